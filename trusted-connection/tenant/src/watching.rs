//! The events of all hosts, beyond the end of a stream: each host is followed by a task of its own, which
//! connects again.

use std::time::Duration;

use cert_chain::HostName;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::error::HostError;
use crate::events::{Position, Told};
use crate::host::Host;
use crate::tenant::Tenant;

/// The streams of all hosts of a tenant. They end with this.
#[derive(Debug)]
pub struct Watch {
    told: mpsc::Receiver<FromStream>,
    _tasks: JoinSet<()>,
}

/// What one host told, or why it tells nothing at the moment.
#[derive(Debug)]
pub struct FromStream {
    /// Which host.
    pub host: HostName,
    /// What.
    pub what: Happening,
}

/// What comes of following one host.
#[derive(Debug)]
pub enum Happening {
    /// The host told something.
    Told(Told),
    /// It cannot be followed at the moment. Said once, not at each attempt.
    Lost(HostError),
    /// Its manager ended the stream: it is ending, or the tenant's certificate does not count any more.
    Ended,
}

/// Whoever reads slowly makes hosts wait, who then say what was missed.
const WAITING: usize = 256;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

impl Tenant {
    /// Follows all hosts, from `position` on.
    pub fn watch(&self, position: Position) -> Watch {
        let (tell, told) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        for host in self.hosts() {
            tasks.spawn(follow(host.clone(), position, tell.clone()));
        }
        Watch {
            told,
            _tasks: tasks,
        }
    }
}

impl Watch {
    /// What is told next, by whichever host.
    pub async fn next(&mut self) -> Option<FromStream> {
        self.told.recv().await
    }
}

/// Until nobody listens.
async fn follow(host: Host, mut position: Position, tell: mpsc::Sender<FromStream>) {
    let (mut pause, mut is_lost) = (FIRST_PAUSE, false);
    loop {
        let end = once(&host, &mut position, &tell, &mut pause, &mut is_lost).await;
        let what = match end {
            Ok(()) => Happening::Ended,
            Err(error) => Happening::Lost(error),
        };
        if tell.is_closed() || (!is_lost && !say(&host, &tell, what).await) {
            return;
        }
        is_lost = true;
        sleep(pause).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// One stream to its end.
async fn once(
    host: &Host,
    position: &mut Position,
    tell: &mpsc::Sender<FromStream>,
    pause: &mut Duration,
    is_lost: &mut bool,
) -> Result<(), HostError> {
    let mut stream = host.follow(*position).await?;
    while let Some(told) = stream.next().await? {
        *position = stream.position();
        (*pause, *is_lost) = (FIRST_PAUSE, false);
        if !say(host, tell, Happening::Told(told)).await {
            break;
        }
    }
    Ok(())
}

/// Whether somebody listens.
async fn say(host: &Host, tell: &mpsc::Sender<FromStream>, what: Happening) -> bool {
    let host = host.name().clone();
    tell.send(FromStream { host, what }).await.is_ok()
}

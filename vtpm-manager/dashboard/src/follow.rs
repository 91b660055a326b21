//! Asking one manager, as long as anybody looks.
//!
//! The host and its counters are asked for at an interval. vRoTs are asked for when the manager tells of an
//! event (`GET /v1/events`), and all of them at a longer interval besides; of a manager that tells
//! of no events, all of them every second.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api_types::wire::{EventLine, HostView, VrotList, VrotView};
use cert_chain::VrotId;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::happening::Happening;
use crate::hub::Hub;
use crate::manager::{Lines, Manager, ManagerError};
use crate::metrics;
use crate::row::Row;

/// How often a host and its counters are asked for.
const HOST_PERIOD: Duration = Duration::from_secs(2);
/// How often all vRoTs are asked for beside events, and without.
const LIST_PERIOD: Duration = Duration::from_secs(15);
const LIST_PERIOD_WITHOUT_EVENTS: Duration = Duration::from_secs(1);
/// Events that come within this time are one change of the page.
const TOGETHER: Duration = Duration::from_millis(10);
/// Of more vRoTs than this, the list is asked for.
const ONE_BY_ONE: usize = 16;
/// As many events are read at once.
const AT_ONCE: usize = 4096;
/// Where events are told.
const EVENTS: &str = "/v1/events";
/// As many that happened before are told.
const NEWEST: u64 = 200;

/// A manager, and where what it tells goes.
#[derive(Clone, Debug)]
pub(crate) struct Follower {
    pub(crate) manager: Manager,
    /// Which of the hosts it is.
    pub(crate) host: usize,
    pub(crate) hub: Arc<Hub>,
}

/// Which event was told last.
#[derive(Debug)]
struct Position {
    /// Which start of the manager its number is of.
    manager: String,
    last: u64,
}

/// What events may have changed.
#[derive(Debug, Default)]
struct Changed {
    vrots: BTreeSet<VrotId>,
    /// They do not say what.
    anything: bool,
}

impl Follower {
    /// Asks whenever somebody looks.
    pub(crate) async fn follow(self) {
        let mut viewers = self.hub.viewers();
        // The hub keeps events while nobody looks: those that it has are not told again.
        let mut position = None;
        while viewers.wait_for(|viewers| *viewers > 0).await.is_ok() {
            tokio::select! {
                () = self.ask_for_host() => {}
                () = self.ask_for_vrots(&mut position) => {}
                _ = viewers.wait_for(|viewers| *viewers == 0) => {}
            }
        }
    }

    /// The host, whose TPM may take its time, and its counters.
    async fn ask_for_host(&self) {
        let mut ticks = interval(HOST_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.manager.json::<HostView>("/v1/host").await {
                Ok(view) => self.hub.change_card(self.host, |card| card.answered(view)),
                Err(error) => {
                    let problem = error.to_string();
                    (self.hub).change_card(self.host, |card| card.failed(&problem));
                    continue;
                }
            }
            if let Ok(text) = self.manager.text("/metrics").await {
                self.hub.add_sample(self.host, &metrics::sample(&text));
            }
        }
    }

    async fn ask_for_vrots(&self, position: &mut Option<Position>) {
        let mut events = None;
        loop {
            if events.is_none() {
                // What happens from here on is told, so that the list misses nothing.
                events = self.open_events(position).await.ok();
            }
            // A store that is not open yet has no list; the host's card says so.
            let _ = self.ask_for_list().await;
            let period = match events {
                Some(_) => LIST_PERIOD,
                None => LIST_PERIOD_WITHOUT_EVENTS,
            };
            let end = Instant::now() + period;
            self.until(end, &mut events, position).await;
        }
    }

    /// Goes on behind the last event that was told; of another start of the manager, with the newest.
    async fn open_events(&self, position: &mut Option<Position>) -> Result<Lines, ManagerError> {
        let mut newest = self.manager.lines(EVENTS).await?;
        if let Some(EventLine::Hello { manager, next, .. }) = event_line(newest.next().await?) {
            let manager = manager.to_string();
            if position
                .as_ref()
                .is_none_or(|known| known.manager != manager)
            {
                let last = next.saturating_sub(1).saturating_sub(NEWEST);
                *position = Some(Position { manager, last });
            }
        }
        match position {
            Some(Position { manager, last }) => {
                let path = format!("{EVENTS}?after={last}&manager={manager}");
                self.manager.lines(&path).await
            }
            None => Ok(newest),
        }
    }

    /// Passes events on until then. At their end, which that of the manager is, they are none.
    async fn until(
        &self,
        end: Instant,
        events: &mut Option<Lines>,
        position: &mut Option<Position>,
    ) {
        let Some(lines) = events else {
            sleep_until(end).await;
            return;
        };
        loop {
            let first = tokio::select! {
                line = lines.next() => line,
                () = sleep_until(end) => return,
            };
            let Ok(Some(first)) = first else {
                break;
            };
            let mut changed = Changed::default();
            self.event(first, &mut changed, position);
            let mut read = 1;
            while read < AT_ONCE
                && let Ok(Ok(Some(line))) = timeout(TOGETHER, lines.next()).await
            {
                self.event(line, &mut changed, position);
                read += 1;
            }
            if self.ask_for_changed(&changed).await.is_err() {
                return;
            }
        }
        *events = None;
        sleep(LIST_PERIOD_WITHOUT_EVENTS).await;
    }

    /// Passes an event on, and notes what it may have changed.
    fn event(&self, line: Vec<u8>, changed: &mut Changed, position: &mut Option<Position>) {
        match event_line(Some(line)) {
            Some(EventLine::Event(event)) => {
                if let Some(position) = position {
                    position.last = event.number;
                }
                match event.vrot {
                    Some(vrot) => drop(changed.vrots.insert(vrot)),
                    None => changed.anything = true,
                }
                self.hub.add_event(self.host, &Happening::from(event));
            }
            Some(EventLine::Missed { from, to }) => {
                changed.anything = true;
                self.hub.add_event(self.host, &Happening::missed(from, to));
            }
            Some(EventLine::Hello { .. }) | None => {}
        }
    }

    async fn ask_for_changed(&self, changed: &Changed) -> Result<(), ManagerError> {
        if changed.anything || changed.vrots.len() > ONE_BY_ONE {
            return self.ask_for_list().await;
        }
        for vrot in &changed.vrots {
            let path = format!("/v1/vrots/{vrot}");
            let row = match self.manager.json::<VrotView>(&path).await {
                Ok(view) => Some(Row::from(&view)),
                Err(ManagerError::Refused(problem)) if problem.status == 404 => None,
                Err(error) => return Err(error),
            };
            self.hub.set_row(self.host, *vrot, row.as_ref());
        }
        Ok(())
    }

    async fn ask_for_list(&self) -> Result<(), ManagerError> {
        let list: VrotList = self.manager.json("/v1/vrots").await?;
        let rows: Vec<Row> = list.vrots.iter().map(Row::from).collect();
        self.hub.set_rows(self.host, &rows);
        Ok(())
    }
}

/// A line that is understood.
fn event_line(line: Option<Vec<u8>>) -> Option<EventLine> {
    line.and_then(|line| serde_json::from_slice(&line).ok())
}

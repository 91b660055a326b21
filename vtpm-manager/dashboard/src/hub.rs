//! What is known of all hosts, and who looks at it.
//!
//! Each change is one line of JSON, made once and sent to all pages. A page that comes, or that was too
//! slow, gets everything first.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use cert_chain::VrotId;
use hyper::body::Bytes;
use serde::Serialize;
use tokio::sync::{broadcast, watch};

use crate::happening::Happening;
use crate::host_card::HostCard;
use crate::row::Row;

/// One change, as it is sent.
pub(crate) type Line = Bytes;

/// Lines that a page may be behind.
const BEHIND: usize = 1024;
/// Events that a page is told of when it comes.
const EVENTS: usize = 200;
/// Samples that it can draw at once: four minutes.
const SAMPLES: usize = 120;

/// What is known of all hosts.
#[derive(Debug)]
pub(crate) struct Hub {
    hosts: Mutex<Vec<Host>>,
    changes: broadcast::Sender<Line>,
    viewers: watch::Sender<usize>,
}

/// What is known of one.
#[derive(Debug)]
struct Host {
    card: HostCard,
    /// Each row as JSON.
    rows: BTreeMap<VrotId, Box<str>>,
    samples: VecDeque<Line>,
    events: VecDeque<Line>,
}

/// Somebody who looks, until it is dropped.
#[derive(Debug)]
pub(crate) struct Viewer {
    hub: Arc<Hub>,
    changes: broadcast::Receiver<Line>,
}

/// What a line says, but for rows ([`rows_line`]).
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Said<'a> {
    /// Everything follows; whatever was known before is void.
    Begin { hosts: usize, version: &'static str },
    /// A host, as a whole.
    Host { host: usize, card: &'a HostCard },
    /// Counters and gauges of a host at a time, in milliseconds since 1970.
    Sample {
        host: usize,
        at: u64,
        values: &'a BTreeMap<&'static str, f64>,
    },
    /// What happened.
    Event { host: usize, event: &'a Happening },
    /// Everything was told; from now on, what changes.
    Ready,
}

impl Hub {
    /// Of managers at these sockets, none of which was asked yet.
    pub(crate) fn new(sockets: &[PathBuf]) -> Arc<Self> {
        let hosts = sockets.iter().map(|socket| Host {
            card: HostCard::of(socket),
            rows: BTreeMap::new(),
            samples: VecDeque::new(),
            events: VecDeque::new(),
        });
        Arc::new(Self {
            hosts: Mutex::new(hosts.collect()),
            changes: broadcast::Sender::new(BEHIND),
            viewers: watch::Sender::new(0),
        })
    }

    /// How many look.
    pub(crate) fn viewers(&self) -> watch::Receiver<usize> {
        self.viewers.subscribe()
    }

    /// Somebody looks, unless `most` do already.
    pub(crate) fn view(self: &Arc<Self>, most: usize) -> Option<Viewer> {
        let admitted = self.viewers.send_if_modified(|viewers| {
            let has_room = *viewers < most;
            if has_room {
                *viewers = viewers.saturating_add(1);
            }
            has_room
        });
        admitted.then(|| Viewer {
            hub: Arc::clone(self),
            changes: self.changes.subscribe(),
        })
    }

    /// Changes what is known of a host itself.
    pub(crate) fn change_card(&self, host: usize, change: impl FnOnce(&mut HostCard)) {
        if let Some(known) = self.hosts().get_mut(host) {
            change(&mut known.card);
            let card = &known.card;
            self.send(line(&Said::Host { host, card }));
        }
    }

    /// All vRoTs of a host, as they are now.
    pub(crate) fn set_rows(&self, host: usize, rows: &[Row]) {
        let new: BTreeMap<VrotId, Box<str>> = rows.iter().map(json_row).collect();
        let mut hosts = self.hosts();
        let Some(known) = hosts.get_mut(host) else {
            return;
        };
        let gone = known.rows.keys().filter(|vrot| !new.contains_key(vrot));
        let gone: Vec<VrotId> = gone.copied().collect();
        let changed: Vec<&str> = new
            .iter()
            .filter(|(vrot, row)| known.rows.get(vrot) != Some(row))
            .map(|(_, row)| row.as_ref())
            .collect();
        self.tell_rows(host, &changed, &gone);
        known.rows = new;
    }

    /// One vRoT as it is now, or that it is gone.
    pub(crate) fn set_row(&self, host: usize, vrot: VrotId, row: Option<&Row>) {
        let mut hosts = self.hosts();
        let Some(known) = hosts.get_mut(host) else {
            return;
        };
        match row.map(json_row) {
            Some((vrot, row)) => {
                if known.rows.get(&vrot) != Some(&row) {
                    self.tell_rows(host, &[&row], &[]);
                    known.rows.insert(vrot, row);
                }
            }
            None => {
                if known.rows.remove(&vrot).is_some() {
                    self.tell_rows(host, &[], &[vrot]);
                }
            }
        }
    }

    /// Counters and gauges of a host, as they are now.
    pub(crate) fn add_sample(&self, host: usize, values: &BTreeMap<&'static str, f64>) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let at = at.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
        let line = line(&Said::Sample { host, at, values });
        if let Some(known) = self.hosts().get_mut(host) {
            keep(&mut known.samples, &line, SAMPLES);
            self.send(line);
        }
    }

    /// Something happened on a host.
    pub(crate) fn add_event(&self, host: usize, event: &Happening) {
        let line = line(&Said::Event { host, event });
        if let Some(known) = self.hosts().get_mut(host) {
            keep(&mut known.events, &line, EVENTS);
            self.send(line);
        }
    }

    fn tell_rows(&self, host: usize, rows: &[&str], gone: &[VrotId]) {
        if !rows.is_empty() || !gone.is_empty() {
            self.send(rows_line(host, rows, gone));
        }
    }

    /// To everybody who looks; nobody may.
    fn send(&self, line: Line) {
        let _ = self.changes.send(line);
    }

    fn hosts(&self) -> MutexGuard<'_, Vec<Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Viewer {
    /// Everything that is known; the changes go on from there.
    pub(crate) fn everything(&mut self) -> Vec<Line> {
        // Under the lock, so that no change falls between.
        let hosts = self.hub.hosts();
        self.changes = self.hub.changes.subscribe();
        let begin = Said::Begin {
            hosts: hosts.len(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let mut lines = vec![line(&begin)];
        for (host, known) in hosts.iter().enumerate() {
            let card = &known.card;
            lines.push(line(&Said::Host { host, card }));
            let rows: Vec<&str> = known.rows.values().map(AsRef::as_ref).collect();
            lines.push(rows_line(host, &rows, &[]));
            lines.extend(known.samples.iter().cloned());
            lines.extend(known.events.iter().cloned());
        }
        lines.push(line(&Said::Ready));
        lines
    }

    /// The next change; none if some were missed, so that everything is to be told again.
    pub(crate) async fn change(&mut self) -> Option<Line> {
        self.changes.recv().await.ok()
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let viewers = &self.hub.viewers;
        viewers.send_modify(|viewers| *viewers = viewers.saturating_sub(1));
    }
}

fn keep(lines: &mut VecDeque<Line>, line: &Line, most: usize) {
    if lines.len() >= most {
        lines.pop_front();
    }
    lines.push_back(line.clone());
}

fn json_row(row: &Row) -> (VrotId, Box<str>) {
    (row.vrot, json(row).into_boxed_str())
}

/// Rows that are new or changed, which are JSON already, and rows that are gone.
fn rows_line(host: usize, rows: &[&str], gone: &[VrotId]) -> Line {
    let (rows, gone) = (rows.join(","), json(&gone));
    format!("{{\"kind\":\"rows\",\"host\":{host},\"rows\":[{rows}],\"gone\":{gone}}}\n").into()
}

fn line(said: &Said<'_>) -> Line {
    (json(said) + "\n").into()
}

/// Nothing here has a map with other keys than texts, or writes that fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

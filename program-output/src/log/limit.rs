//! How many lines of a kind are written.
//!
//! A kind is a place in the program and, where a line or the span that it is in names one, a vRoT or a
//! network peer: so what one guest or peer causes leaves the lines about all others alone.

use std::collections::HashMap;
use std::fmt::{self, Debug, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::line::{ACCEPTED, FOREIGN, NOTICE};
use super::queue::Queue;

/// Lines of one kind that are written at once.
const BURST: u32 = 20;
/// After that, one of the kind is written in this time.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same, of lines about a peer that was [`ACCEPTED`].
const BURST_OF_ACCEPTED: u32 = 1000;
const INTERVAL_OF_ACCEPTED: Duration = Duration::from_millis(100);
/// Lines about all vRoTs together, about all peers and about all accepted ones that are written at once:
/// more than a thousand starts cause.
const BURST_OF_ALL: u32 = 5000;
/// After that, one of them is written in this time.
const INTERVAL_OF_ALL: Duration = Duration::from_millis(50);
/// The same, of lines about accepted peers.
const INTERVAL_OF_ALL_ACCEPTED: Duration = Duration::from_millis(5);
/// Kinds that are remembered. Beyond this number, those about vRoTs and peers share what their place has.
const MAX_KINDS: usize = 16 * 1024;
/// Of the name of a vRoT or peer.
const LONGEST_NAME: usize = 64;
/// The field that names a vRoT.
const VROT: &str = "vrot";
/// The field that names a peer. It must have few values for whoever connects: an address without a port.
const PEER: &str = "peer";

/// Leaves lines out, and counts them.
#[derive(Debug)]
pub(super) struct Limit {
    queue: Arc<Queue>,
    kinds: Mutex<Kinds>,
}

#[derive(Debug)]
struct Kinds {
    of_vrots: Bucket,
    of_peers: Bucket,
    of_accepted: Bucket,
    each: HashMap<Kind, Bucket>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Kind {
    place: Identifier,
    about: Option<About>,
}

/// Whom a line is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum About {
    Vrot(String),
    Peer(String),
}

/// A token bucket.
#[derive(Clone, Debug)]
struct Bucket {
    tokens: u32,
    burst: u32,
    interval: Duration,
    counted_until: Instant,
}

impl Limit {
    pub(super) fn counting_in(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            kinds: Mutex::new(Kinds::new(Instant::now())),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Limit {
    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut named = Named::default();
        span.record(&mut named);
        if let (Some(about), Some(span)) = (named.about, context.span(id)) {
            span.extensions_mut().insert(about);
        }
    }

    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Details are written only where the filter asks for them, and then all of them: but for those
        // of backends, whose guests cause them.
        let asked_for = *metadata.level() > Level::INFO && metadata.target() != FOREIGN;
        if asked_for || metadata.target() == NOTICE {
            return true;
        }
        let mut named = Named::default();
        event.record(&mut named);
        let about = named.about.or_else(|| {
            let mut spans = context.event_scope(event)?;
            spans.find_map(|span| span.extensions().get::<About>().cloned())
        });
        let kind = Kind {
            place: metadata.callsite(),
            about,
        };
        let accepted = metadata.target() == ACCEPTED;
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = kinds.admit(kind, accepted, Instant::now());
        drop(kinds);
        if !admitted {
            let name = metadata.name();
            self.queue
                .leave_out(name.strip_prefix("event ").unwrap_or(name));
        }
        admitted
    }
}

impl Kinds {
    fn new(now: Instant) -> Self {
        let of_all = |interval| Bucket::full(BURST_OF_ALL, interval, now);
        Self {
            of_vrots: of_all(INTERVAL_OF_ALL),
            of_peers: of_all(INTERVAL_OF_ALL),
            of_accepted: of_all(INTERVAL_OF_ALL_ACCEPTED),
            each: HashMap::new(),
        }
    }

    fn admit(&mut self, mut kind: Kind, accepted: bool, now: Instant) -> bool {
        if self.each.len() >= MAX_KINDS {
            self.each.retain(|_, bucket| !bucket.is_full(now));
            if self.each.len() >= MAX_KINDS {
                kind.about = None;
            }
        }
        // There are not many places: only what vRoTs and peers cause needs a bound for all of them.
        let of_all = match (accepted, &kind.about) {
            (true, _) => Some(&mut self.of_accepted),
            (false, Some(About::Vrot(_))) => Some(&mut self.of_vrots),
            (false, Some(About::Peer(_))) => Some(&mut self.of_peers),
            (false, None) => None,
        };
        let (burst, interval) = match accepted {
            true => (BURST_OF_ACCEPTED, INTERVAL_OF_ACCEPTED),
            false => (BURST, INTERVAL),
        };
        let bucket = self
            .each
            .entry(kind)
            .or_insert_with(|| Bucket::full(burst, interval, now));
        bucket.admit(now) && of_all.is_none_or(|of_all| of_all.admit(now))
    }
}

impl Bucket {
    fn full(burst: u32, interval: Duration, now: Instant) -> Self {
        Self {
            tokens: burst,
            burst,
            interval,
            counted_until: now,
        }
    }

    fn earn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted_until);
        let earned = passed.as_nanos() / self.interval.as_nanos().max(1);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(earned).min(self.burst);
        let until = self
            .counted_until
            .checked_add(self.interval.saturating_mul(earned));
        self.counted_until = until.unwrap_or(now);
    }

    fn admit(&mut self, now: Instant) -> bool {
        self.earn(now);
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.earn(now);
        self.tokens == self.burst
    }
}

/// The vRoT or peer that a line names.
#[derive(Default)]
struct Named {
    about: Option<About>,
}

impl Visit for Named {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let about: fn(String) -> About = match field.name() {
            VROT => About::Vrot,
            PEER => About::Peer,
            _ => return,
        };
        let mut name = Name(String::new());
        // It fails at the longest name, whose beginning is enough.
        let _ = write!(name, "{value:?}");
        self.about = Some(about(name.0));
    }
}

/// The beginning of a text.
struct Name(String);

impl fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len().saturating_add(text.len()) > LONGEST_NAME {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::Format;
    use super::super::queue::{Bounds, Passed};
    use super::super::writer::Lines;
    use super::*;

    fn lines_of(work: impl FnOnce()) -> (Vec<String>, u64) {
        let queue = Arc::new(Queue::bounded(Bounds {
            lines: 99_999,
            bytes: 99_999_999,
        }));
        let log = tracing_subscriber::fmt::layer()
            .without_time()
            .with_ansi(false)
            .with_writer(Lines::to(Arc::clone(&queue), Format::Bare));
        let subscriber = tracing_subscriber::registry()
            .with(Limit::counting_in(Arc::clone(&queue)))
            .with(log);
        let mut lines = Vec::new();
        tracing::subscriber::with_default(subscriber, || {
            work();
            queue.pass_on(&mut |line| {
                lines.push(line.text.clone());
                Passed::Done
            });
        });
        (lines, queue.losses().left_out)
    }

    #[test]
    fn what_happens_all_the_time_is_written_a_few_times_and_counted() {
        let (lines, left_out) = lines_of(|| {
            for number in 0..1000 {
                tracing::warn!(number, "a stranger");
            }
            tracing::warn!("something else");
        });
        let strangers = lines.iter().filter(|line| line.contains("a stranger"));
        assert_eq!(strangers.count(), 20);
        assert!(lines.iter().any(|line| line.contains("something else")));
        let told = lines.iter().find(|line| line.contains("left_out=980"));
        assert!(
            told.is_some_and(|told| told.contains("limit.rs")),
            "{lines:?}"
        );
        assert_eq!(left_out, 980);
    }

    #[test]
    fn what_one_vrot_causes_leaves_the_lines_about_another_alone() {
        let (lines, _) = lines_of(|| {
            for vrot in ["first"; 1000].into_iter().chain(["second"]) {
                tracing::error!(%vrot, "no evidence");
            }
        });
        assert!(lines.iter().any(|line| line.contains("vrot=second")));
    }

    #[test]
    fn all_vrots_together_cannot_write_without_end() {
        let (lines, left_out) = lines_of(|| {
            for vrot in 0..20_000u32 {
                tracing::error!(vrot, "no evidence");
            }
        });
        assert!((5000..6000).contains(&lines.len()), "{}", lines.len());
        assert!(left_out > 14_000);
    }

    #[test]
    fn what_one_peer_causes_leaves_the_lines_about_another_alone() {
        let (lines, _) = lines_of(|| {
            for (number, peer) in ["first"; 1000].into_iter().chain(["second"]).enumerate() {
                let _span = tracing::info_span!("connection", number, %peer).entered();
                tracing::warn!("not connected");
            }
        });
        let of_first = lines.iter().filter(|line| line.contains("peer=first"));
        assert_eq!(of_first.count(), 20);
        assert!(lines.iter().any(|line| line.contains("peer=second")));
    }

    #[test]
    fn all_peers_together_cannot_write_without_end_and_leave_vrots_and_accepted_ones_alone() {
        let (lines, left_out) = lines_of(|| {
            for peer in 0..20_000u32 {
                tracing::warn!(peer, "not connected");
            }
            tracing::error!(vrot = 1, "no evidence");
            tracing::info!(target: ACCEPTED, peer = 1, "connected");
        });
        assert!((5000..6000).contains(&lines.len()), "{}", lines.len());
        assert!(left_out > 14_000);
        assert!(lines.iter().any(|line| line.contains("no evidence")));
        assert!(lines.iter().any(|line| line.contains(": connected")));
    }

    #[test]
    fn lines_about_accepted_peers_are_all_there_unless_one_causes_them_without_end() {
        let (lines, _) = lines_of(|| {
            for number in 0..3000 {
                let peer = if number % 3 == 0 { "first" } else { "second" };
                let _span = tracing::info_span!("connection", peer).entered();
                tracing::info!(target: ACCEPTED, number, "closed");
            }
        });
        let of = |peer| lines.iter().filter(|line| line.contains(peer)).count();
        assert_eq!(of("first"), 1000);
        assert!((1000..1500).contains(&of("second")), "{}", of("second"));
    }

    #[test]
    fn details_that_somebody_asked_for_are_all_there_unless_they_are_from_elsewhere() {
        let (lines, left_out) = lines_of(|| {
            for number in 0..100 {
                tracing::debug!(number, "our own");
                tracing::debug!(target: FOREIGN, number, "a backend's");
            }
        });
        let own = lines.iter().filter(|line| line.contains("our own")).count();
        assert_eq!((own, left_out), (100, 80));
    }

    #[test]
    fn a_bucket_fills_again_with_time() {
        let start = Instant::now();
        let mut bucket = Bucket::full(3, Duration::from_secs(10), start);
        assert_eq!((0..9).filter(|_| bucket.admit(start)).count(), 3);
        let later = start + Duration::from_secs(25);
        assert_eq!((0..9).filter(|_| bucket.admit(later)).count(), 2);
        assert!(bucket.admit(later + Duration::from_secs(5)));
    }
}

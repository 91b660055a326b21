//! What has happened to a vRoT, by what its record says before and after.

use api_types::Timestamp;
use api_types::wire::{EventDetails, EventKind};

use crate::vrot::{Lifecycle, StopCause, VrotRecord};

/// What happened, and what else there is to say about it.
type Happened = (EventKind, EventDetails);

/// What has happened to a new vRoT.
pub(super) fn of_new(record: &VrotRecord, not_after: Option<Timestamp>) -> Vec<Happened> {
    let mut happened = vec![(EventKind::Created, generation(record))];
    if record.identity.vik_certificate.is_some() {
        happened.push((EventKind::Certified, certified(not_after)));
    }
    if record.launch.is_some() {
        happened.push((EventKind::LaunchMeasured, EventDetails::default()));
    }
    if record.lifecycle.is_running() {
        happened.push((EventKind::Started, generation(record)));
    }
    happened
}

/// What has happened between two records of a vRoT, in the order in which it makes sense.
/// `not_after` is that of the identity key's certificate afterwards.
pub(super) fn between(
    before: &VrotRecord,
    after: &VrotRecord,
    not_after: Option<Timestamp>,
) -> Vec<Happened> {
    let mut happened = Vec::new();
    if before.generation != after.generation {
        happened.push((EventKind::GenerationChanged, generation(after)));
    }
    if let Some(loss) = after.state_loss
        && before.state_loss != after.state_loss
    {
        let details = EventDetails {
            batch: Some(loss.batch),
            ..EventDetails::default()
        };
        happened.push((EventKind::StateLost, details));
    }
    let certificates = (
        &before.identity.vik_certificate,
        &after.identity.vik_certificate,
    );
    match certificates {
        (None, Some(_)) => happened.push((EventKind::Certified, certified(not_after))),
        (Some(old), Some(new)) if old != new => {
            happened.push((EventKind::Renewed, certified(not_after)));
        }
        _ => {}
    }
    if after.launch.is_some() && before.launch != after.launch {
        happened.push((EventKind::LaunchMeasured, EventDetails::default()));
    }
    happened.extend(transition(before.lifecycle, after.lifecycle, after));
    happened
}

fn transition(before: Lifecycle, after: Lifecycle, record: &VrotRecord) -> Option<Happened> {
    if before.name() == after.name() {
        return None;
    }
    Some(match (before, after) {
        (_, Lifecycle::Manufactured { .. } | Lifecycle::Assigned { .. }) => return None,
        (Lifecycle::Suspended { .. }, Lifecycle::Running { .. }) => {
            (EventKind::Resumed, generation(record))
        }
        (
            Lifecycle::Stopped {
                cause: StopCause::BackendEnded,
                ..
            },
            Lifecycle::Running { .. },
        ) => (EventKind::Restarted, generation(record)),
        (_, Lifecycle::Running { .. }) => (EventKind::Started, generation(record)),
        (_, Lifecycle::Stopped { cause, .. }) => (EventKind::Stopped, stopped(cause)),
        (_, Lifecycle::Suspended { .. }) => (EventKind::Suspended, EventDetails::default()),
        (_, Lifecycle::Deleted { .. }) => (EventKind::Deleted, EventDetails::default()),
    })
}

/// What followers are told of a vRoT's generation.
pub(super) fn generation(record: &VrotRecord) -> EventDetails {
    EventDetails {
        generation: Some(record.generation),
        ..EventDetails::default()
    }
}

fn certified(not_after: Option<Timestamp>) -> EventDetails {
    EventDetails {
        not_after,
        ..EventDetails::default()
    }
}

fn stopped(cause: StopCause) -> EventDetails {
    let cause = match cause {
        StopCause::Ordered => "ordered",
        StopCause::BackendEnded => "backend-ended",
    };
    EventDetails {
        cause: Some(cause.to_owned()),
        ..EventDetails::default()
    }
}

#[cfg(test)]
mod tests {
    use cert_chain::Generation;

    use super::*;
    use crate::vrot::{LostState, example};

    const NOW: Timestamp = Timestamp::new(1_700_000_000);

    fn kinds(happened: Vec<Happened>) -> Vec<EventKind> {
        happened.into_iter().map(|(kind, _)| kind).collect()
    }

    fn with(change: impl FnOnce(&mut VrotRecord)) -> VrotRecord {
        let mut record = example();
        change(&mut record);
        record
    }

    #[test]
    fn each_change_of_a_record_is_told_once_and_what_stays_is_not() {
        let running = Lifecycle::Running {
            since: NOW,
            process: 7,
        };
        let ended = |cause| Lifecycle::Stopped { since: NOW, cause };
        let suspended = Lifecycle::Suspended { since: NOW };
        let told = |before, after| {
            let before = with(|record| record.lifecycle = before);
            let after = with(|record| record.lifecycle = after);
            kinds(between(&before, &after, None))
        };
        let stopped = ended(StopCause::Ordered);
        let failed = ended(StopCause::BackendEnded);
        for (before, after, kind) in [
            (Lifecycle::Assigned { at: NOW }, running, EventKind::Started),
            (stopped, running, EventKind::Started),
            (failed, running, EventKind::Restarted),
            (suspended, running, EventKind::Resumed),
            (running, suspended, EventKind::Suspended),
            (running, stopped, EventKind::Stopped),
            (running, failed, EventKind::Stopped),
            (stopped, Lifecycle::Deleted { at: NOW }, EventKind::Deleted),
        ] {
            assert_eq!(told(before, after), [kind]);
            assert_eq!(told(after, after), []);
        }
    }

    #[test]
    fn certificates_losses_and_generations_are_told_with_what_verifiers_need() {
        let pending = with(|record| record.identity.vik_certificate = None);
        let first = with(|record| record.identity.vik_certificate = Some(vec![1].into()));
        let second = with(|record| record.identity.vik_certificate = Some(vec![2].into()));
        let told = between(&pending, &first, Some(NOW));
        assert_eq!(told, [(EventKind::Certified, certified(Some(NOW)))]);
        let told = between(&first, &second, Some(NOW));
        assert_eq!(told, [(EventKind::Renewed, certified(Some(NOW)))]);
        assert_eq!(between(&second, &pending, None), []);

        let raised = with(|record| record.generation = Generation::new(9));
        let told = between(&example(), &raised, None);
        assert_eq!(told, [(EventKind::GenerationChanged, generation(&raised))]);
        let lost = with(|record| record.state_loss = Some(LostState { batch: 5, at: NOW }));
        let told = between(&example(), &lost, None);
        assert_eq!(told.first().and_then(|(_, details)| details.batch), Some(5));
        assert_eq!(between(&lost, &lost, None), []);
    }
}

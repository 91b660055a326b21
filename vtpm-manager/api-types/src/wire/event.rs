//! What happens to vRoTs, as a stream of lines: one JSON object each (NDJSON).

use std::fmt;

use cert_chain::{Generation, Tenant, VmId, VrotId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::timestamp::Timestamp;

/// Media type of a stream of [`EventLine`]s.
pub const NDJSON: &str = "application/x-ndjson";

/// One line of a stream of events. Empty lines stand between them while nothing happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EventLine {
    /// The first line.
    Hello {
        /// Which start of the manager this is: events are numbered from 1 on in each.
        manager: Uuid,
        /// Number of the oldest event that is kept.
        oldest: u64,
        /// Number of the next event that happens.
        next: u64,
    },
    /// Events that the follower does not get, because they are not kept any more.
    Missed {
        /// Number of the first.
        from: u64,
        /// Number of the last.
        to: u64,
    },
    /// Something happened.
    #[serde(untagged)]
    Event(Event),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its number: one more than that of the event before it in this stream.
    pub number: u64,
    /// When, by the host's clock.
    pub at: Timestamp,
    /// What.
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "started"))]
    pub kind: EventKind,
    /// The VM that it happened to; none if it is about the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// The VM's vRoT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrot: Option<VrotId>,
    /// Whose VM it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "EventDetails::is_empty")]
    pub details: EventDetails,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// A VMM attached.
    Attached,
    /// The identity key got its first certificate.
    Certified,
    /// A vRoT was made for a VM.
    Created,
    /// A command was answered before its state was durable.
    Degraded,
    /// A vRoT was deleted for good.
    Deleted,
    /// The VMM is gone.
    Detached,
    /// All state is durable again.
    Durable,
    /// The vRoT goes on from an older state or a copy: `details.generation`.
    GenerationChanged,
    /// The host was restarted: `details.boot`.
    HostRestarted,
    /// What a VM is launched with was measured for the next start.
    LaunchMeasured,
    /// The identity key got a new certificate: `details.not_after`.
    Renewed,
    /// The TPM of a running VM was reset.
    Reset,
    /// A vRoT whose backend had ended by itself runs again.
    Restarted,
    /// A suspended vRoT goes on.
    Resumed,
    /// A vRoT runs.
    Started,
    /// State that the guest was told of may have been lost: `details.batch`.
    StateLost,
    /// A vRoT does not run any more: `details.cause`.
    Stopped,
    /// A vRoT was stopped, and its volatile state is kept.
    Suspended,
    /// Something of which this version does not know.
    #[serde(untagged)]
    Other(String),
}

/// What else there is to say about an event: only what its kind has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EventDetails {
    /// Number of the store's newest batch when the loss was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// How the host came up: `after-shutdown` or `after-power-loss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Why it stopped: `ordered`, or `backend-ended` if its backend ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// Last second of the identity key's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
}

impl EventDetails {
    /// Whether there is nothing else to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// For people: what there is to say, with commas between.
impl fmt::Display for EventDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            batch,
            boot,
            cause,
            generation,
            not_after,
        } = self;
        let details = [
            batch.map(|batch| format!("batch {batch}")),
            boot.clone(),
            cause.clone(),
            generation.map(|generation| format!("generation {generation}")),
            not_after.map(|end| format!("until {end}")),
        ];
        let details: Vec<String> = details.into_iter().flatten().collect();
        f.write_str(&details.join(", "))
    }
}

impl EventKind {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Attached => "attached",
            Self::Certified => "certified",
            Self::Created => "created",
            Self::Degraded => "degraded",
            Self::Deleted => "deleted",
            Self::Detached => "detached",
            Self::Durable => "durable",
            Self::GenerationChanged => "generation-changed",
            Self::HostRestarted => "host-restarted",
            Self::LaunchMeasured => "launch-measured",
            Self::Renewed => "renewed",
            Self::Reset => "reset",
            Self::Restarted => "restarted",
            Self::Resumed => "resumed",
            Self::Started => "started",
            Self::StateLost => "state-lost",
            Self::Stopped => "stopped",
            Self::Suspended => "suspended",
            Self::Other(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use serde_json::json;

    use super::*;

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    #[test]
    fn each_line_says_by_its_kind_what_it_is() -> Result<()> {
        let hello = json!({"kind": "hello", "manager": ID, "oldest": 1, "next": 3});
        assert_eq!(
            serde_json::from_value::<EventLine>(hello.clone())?,
            EventLine::Hello {
                manager: ID.parse()?,
                oldest: 1,
                next: 3
            }
        );
        let missed = json!({"kind": "missed", "from": 1, "to": 2});
        assert_eq!(
            serde_json::from_value::<EventLine>(missed)?,
            EventLine::Missed { from: 1, to: 2 }
        );
        let event = Event {
            number: 17,
            at: Timestamp::new(1_700_000_000),
            kind: EventKind::StateLost,
            vm: Some(ID.parse()?),
            vrot: Some(ID.parse()?),
            tenant: Some("acme".parse()?),
            details: EventDetails {
                batch: Some(3),
                ..EventDetails::default()
            },
        };
        let line = EventLine::Event(event);
        let shown = json!({"number": 17, "at": "2023-11-14T22:13:20Z", "kind": "state-lost",
            "vm": ID, "vrot": ID, "tenant": "acme", "details": {"batch": 3}});
        assert_eq!(serde_json::to_value(&line)?, shown);
        assert_eq!(serde_json::from_value::<EventLine>(shown)?, line);
        Ok(())
    }

    #[test]
    fn what_a_newer_manager_tells_is_read_as_well() -> Result<()> {
        let line = json!({"number": 1, "at": "2023-11-14T22:13:20Z", "kind": "cloned",
            "details": {"of": 7}});
        let EventLine::Event(event) = serde_json::from_value(line)? else {
            anyhow::bail!("no event");
        };
        assert_eq!(event.kind, EventKind::Other("cloned".to_owned()));
        assert_eq!(event.kind.name(), "cloned");
        assert!(event.details.is_empty());
        Ok(())
    }

    #[test]
    fn every_kind_is_written_as_it_is_named() -> Result<()> {
        use EventKind::*;
        for kind in [
            Attached,
            Certified,
            Created,
            Degraded,
            Deleted,
            Detached,
            Durable,
            GenerationChanged,
            HostRestarted,
            LaunchMeasured,
            Renewed,
            Reset,
            Restarted,
            Resumed,
            Started,
            StateLost,
            Stopped,
            Suspended,
        ] {
            assert_eq!(serde_json::to_value(&kind)?, kind.name());
            assert_eq!(
                serde_json::from_value::<EventKind>(kind.name().into())?,
                kind
            );
        }
        Ok(())
    }
}

//! What the manager reads in the lines of earlier ones.

use std::collections::BTreeSet;

use api_types::Timestamp;
use cert_chain::{Digest32, Generation, VmId, VrotId};
use guarded_state::ledger::{Boot, RecoveryRecord};

use super::{log_of, open};
use crate::{ABSENT, Event, LastRecorded};

#[test]
fn a_log_knows_of_which_recoveries_and_deletions_it_tells() -> anyhow::Result<()> {
    let (_folder, path) = log_of(1)?;
    let log = open(&path)?;
    let recovery = RecoveryRecord {
        accepted: "restored-store",
        finding: "\"event\":\"recovery-found\"".to_owned(),
        batch: 7,
        generation: Generation::new(2),
        raised: vec![VrotId::random()],
        discarded: vec![],
        lost: vec![],
    };
    log.append(
        None,
        &[
            Event::StoreOpened {
                batch: 5,
                boot: Boot::Continued,
            },
            Event::StoreRecovered { recovery },
            Event::RecoveryFound {
                batch: 9,
                generation: Generation::new(3),
            },
        ],
    )?;
    let (vrot, vm, discarded) = (VrotId::random(), VmId::random(), VrotId::random());
    let deleted = Event::VrotDeleted {
        vrot,
        vm,
        tenant: "acme".parse()?,
        deleted_at: Timestamp::now(),
    };
    let discarded_too = Event::VrotDiscarded { vrot: discarded };
    log.append(None, &[deleted, discarded_too])?;
    assert_eq!(log.deleted()?, BTreeSet::from([vrot, discarded]));
    let numbers = [vrot.as_uuid(), vm.as_uuid(), discarded.as_uuid()];
    let found = numbers.map(|number| log.has_deletion(*number).ok());
    assert_eq!(found, [true, true, false].map(Some));
    let found = [5, 7, 8, 9].map(|batch| log.has_recovery(batch).ok());
    assert_eq!(found, [false, true, false, true].map(Some));
    Ok(())
}

#[test]
fn the_last_line_about_a_vrot_says_how_it_is() -> anyhow::Result<()> {
    let (_folder, path) = log_of(1)?;
    let log = open(&path)?;
    let vrot = VrotId::random();
    let [made, renewed, found] = [1, 2, 3].map(|byte| Digest32::new([byte; 32]));
    let last = || anyhow::Ok(log.last_recorded()?.remove(&vrot).unwrap_or_default());
    let name = cert_chain::TpmName::from_bytes(&[&[0, 0x0b], &[6; 32][..]].concat())?;
    for (event, state, certificate) in [
        (
            Event::VrotManufactured {
                vrot,
                vik: name.clone(),
                certificate: Some(made),
            },
            "manufactured",
            Some(made),
        ),
        (Event::VrotStarted { vrot }, "running", Some(made)),
        (
            Event::CertificateRenewed {
                vrot,
                certificate: renewed,
                tls_certificate: None,
            },
            "running",
            Some(renewed),
        ),
        (Event::VrotSuspended { vrot }, "suspended", Some(renewed)),
        (Event::VrotResumed { vrot }, "running", Some(renewed)),
        (
            Event::BackendEnded {
                vrot,
                reason: "\"event\":\"vrot-started\"".into(),
            },
            "stopped",
            Some(renewed),
        ),
        (
            Event::VrotFound {
                vrot,
                state: "suspended",
                certificate: Some(found),
            },
            "suspended",
            Some(found),
        ),
        (Event::VrotDiscarded { vrot }, ABSENT, Some(found)),
        (
            Event::VrotCreated {
                vrot,
                vm: cert_chain::VmId::random(),
                tenant: "acme".parse()?,
                generation: cert_chain::Generation::new(1),
                vik: name,
                certificate: None,
            },
            "assigned",
            None,
        ),
        (
            Event::CertificateIssued {
                vrot,
                certificate: Some(renewed),
            },
            "assigned",
            Some(renewed),
        ),
        (
            Event::VrotFound {
                vrot,
                state: "running",
                certificate: None,
            },
            "running",
            None,
        ),
    ] {
        log.append(None, std::slice::from_ref(&event))?;
        let expected = LastRecorded {
            state: state.to_owned(),
            certificate,
        };
        assert_eq!(last()?, expected, "{event:?}");
    }
    Ok(())
}

//! An operator accepts a store that was refused.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use anyhow::Result;
use cert_chain::{Generation, VrotId};
use guarded_state::ledger::{Boot, Reading, Register};
use guarded_state::testing::{FailedWrite, Fuse};

use crate::host::{Disk, Edit, Host, Image, StoredVrot, checkpoint, policies, state, two_vrots};

#[test]
fn a_recovery_names_what_it_accepts_and_raises_every_generation() -> Result<()> {
    for policy in policies() {
        let (mut host, one, two) = two_vrots(policy)?;
        let old = host.image.clone();
        host.commit(&[state(one, 2), Edit::Raise(two)])?;
        let raised = host.image.vrots.get(&two).unwrap().generation();
        host.reboot()?;
        let newest = host.image.clone();
        host.image = old;

        assert!(host.recover("cleared-tpm", Disk::Works).is_err());
        let record = host.recover("restored-store", Disk::Works)?;
        assert_eq!(record.accepted, "restored-store");
        assert_eq!(record.raised.len(), 2);
        assert!(
            record.generation > raised,
            "above what only the anchor knew"
        );
        assert!(record.finding.contains("old store"));
        assert!(serde_json::to_string(&record)?.contains(&one.to_string()));
        for stored in host.image.vrots.values() {
            assert_eq!(stored.generation(), record.generation);
        }
        // From here on the abandoned store is the one that is refused.
        host.commit(&[state(one, 9)])?;
        host.kill();
        assert_eq!(host.start().unwrap(), Boot::Continued);
        host.reboot()?;
        host.image = newest;
        assert!(host.start().is_err());
    }
    Ok(())
}

/// The same old store, put back and accepted twice: what it leads to the second time is another
/// history, although nothing in it, nor in the registers, knows of the first.
#[test]
fn a_store_that_is_accepted_twice_gets_two_generations() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = two_vrots(policy)?;
        let old = host.image.clone();
        host.commit(&[state(one, 2)])?;
        host.reboot()?;
        host.image = old.clone();
        let first = host.recover("restored-store", Disk::Works)?;
        host.commit(&[state(one, 3)])?;
        host.reboot()?;
        host.image = old;
        for register in Register::BOTH {
            host.registers.set(register, Reading::Absent);
        }
        let second = host.recover("cleared-tpm", Disk::Works)?;
        assert!(second.generation > first.generation);
        assert_eq!(second.raised, first.raised);
    }
    Ok(())
}

/// A recovery that is cut short when both registers are defined, but unwritten, is finished by
/// the next start; what an earlier recovery of the kind left is not.
#[test]
fn an_earlier_recovery_does_not_pass_for_the_one_that_was_cut_short() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    let recover = |host: &mut Host, fuse| -> Result<Image> {
        host.kill();
        for register in Register::BOTH {
            host.registers.set(register, Reading::Absent);
        }
        host.registers.set_fuse(fuse);
        assert_eq!(
            host.recover("cleared-tpm", Disk::Works).is_err(),
            fuse.is_some()
        );
        host.registers.set_fuse(None);
        Ok(host.image.clone())
    };
    let earlier = recover(&mut host, None)?;
    host.commit(&[state(one, 2)])?;
    let write = FailedWrite::Lost;
    let cut_short = recover(&mut host, Some(Fuse { after: 0, write }))?;
    host.image = earlier;
    assert_eq!(host.refusal()?.code(), "cleared-tpm");
    host.image = cut_short;
    assert_eq!(host.start().unwrap(), Boot::Unfinished);
    Ok(())
}

#[test]
fn a_recovery_of_records_raises_only_their_vrots() -> Result<()> {
    let (mut host, one, two) = two_vrots(checkpoint())?;
    let old = host.image.vrots.get(&one).unwrap().clone();
    host.commit(&[state(one, 2)])?;
    host.kill();
    host.image.vrots.insert(one, old);
    let record = host.recover("stale-records", Disk::Works)?;
    assert_eq!(record.raised, [one]);
    let generation = |vrot| host.image.vrots.get(&vrot).map(StoredVrot::generation);
    assert_eq!(generation(one), Some(record.generation));
    assert_eq!(generation(two), Some(Generation::new(1)));
    Ok(())
}

#[test]
fn a_recovery_of_records_does_not_forget_a_loss_of_power() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    let told = |host: &Host| host.ledger.as_ref().unwrap().head().power_loss();
    host.commit(&[state(one, 2)])?;
    host.lose_power();
    host.start().unwrap();
    let loss = told(&host);
    assert!(loss.is_some());
    let old = host.image.vrots.get(&one).unwrap().clone();
    host.commit(&[state(one, 3)])?;
    host.kill();
    host.image.vrots.insert(one, old);
    // The other vRoT keeps its generation, so verifiers see the loss in nothing else.
    host.recover("stale-records", Disk::Works)?;
    assert_eq!(told(&host), loss);
    Ok(())
}

#[test]
fn every_recoverable_refusal_can_be_recovered_from_and_holds_afterwards() -> Result<()> {
    type Damage = fn(&mut Host, VrotId, &Image);
    let damages: [(&str, Damage); 9] = [
        ("cleared-tpm", |host, _, _| {
            for register in Register::BOTH {
                host.registers.set(register, Reading::Absent);
            }
        }),
        ("foreign-anchor", |host, _, _| {
            host.registers.set(Register::Durable, Reading::Foreign);
        }),
        ("volatile-removed", |host, _, _| {
            host.registers.set(Register::Volatile, Reading::Absent);
        }),
        ("volatile-ahead", |host, _, old| host.image = old.clone()),
        ("empty-store", |host, _, _| host.image = Image::default()),
        ("missing-records", |host, one, _| {
            host.image.vrots.remove(&one);
        }),
        ("altered-tree", |host, _, old| {
            host.image.leaves.clone_from(&old.leaves);
        }),
        ("stale-records", |host, _, old| {
            host.image.vrots.clone_from(&old.vrots);
        }),
        ("truncated-chain", |host, _, _| {
            let newest = *host.image.chain.keys().next_back().unwrap();
            host.image.chain.retain(|epoch, _| *epoch == newest);
        }),
    ];
    for (code, damage) in damages {
        for disk in [Disk::Works, Disk::DiesAfter] {
            let (mut host, one, two) = two_vrots(checkpoint())?;
            let old = host.image.clone();
            host.commit(&[state(one, 2)])?;
            host.commit(&[state(one, 3)])?;
            host.kill();
            damage(&mut host, one, &old);
            assert_eq!(host.refusal()?.code(), code);
            let before = host.image.clone();
            assert!(host.recover(code, Disk::DiesBefore).is_err());
            assert_eq!(host.image, before);
            // Still refused; an index that was not this host's may be there by now.
            let still = host.refusal()?.code();
            assert!(still == code || still == "cleared-tpm", "{code}: {still}");

            let recovered = host.recover(still, disk);
            assert_eq!(
                recovered.is_ok(),
                disk == Disk::Works,
                "{code}: {recovered:?}"
            );
            host.kill();
            if let Err(refused) = host.start() {
                let again = refused.refusal().code();
                assert_eq!(disk, Disk::DiesAfter, "{code}: {again}");
                assert_eq!(again, "volatile-removed", "{code}");
                host.recover(again, Disk::Works)?;
            }
            if host.image.vrots.contains_key(&two) {
                host.commit(&[state(two, 4)])?;
            }
            host.lose_power();
            assert!(host.start().is_ok(), "{code}");
        }
    }
    Ok(())
}

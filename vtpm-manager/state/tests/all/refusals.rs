//! Each way a store and an anchor can part, one by one.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use anyhow::{Context, Result};
use cert_chain::{Generation, VrotId};
use guarded_state::disk::{Epoch, Part};
use guarded_state::ledger::{Reading, Refusal, Register, RollbackKeys};
use guarded_state::testing::FakeRegisters;

use crate::host::{Disk, Edit, Host, Image, checkpoint, policies, state, two_vrots};

#[test]
fn a_restored_old_store_is_refused() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = two_vrots(policy)?;
        let old = host.image.clone();
        host.commit(&[state(one, 2)])?;
        host.reboot()?;
        host.image = old;
        let refusal = host.refusal()?;
        assert!(
            matches!(
                refusal,
                Refusal::RestoredStore {
                    found: Epoch { .. },
                    expected: Epoch { .. },
                    ..
                }
            ),
            "{refusal:?}"
        );
        assert!(refusal.to_string().contains("this is an old store"));
    }
    Ok(())
}

#[test]
fn a_store_put_back_while_the_host_runs_is_refused() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    let old = host.image.clone();
    host.commit(&[state(one, 2)])?;
    host.kill();
    host.image = old;
    assert_eq!(host.refusal()?.code(), "volatile-ahead");
    Ok(())
}

#[test]
fn an_old_record_in_a_new_store_is_refused_and_named() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = two_vrots(policy)?;
        let old = host.image.vrots.get(&one).unwrap().clone();
        host.commit(&[state(one, 2)])?;
        host.reboot()?;
        host.image.vrots.insert(one, old);
        let expected = Refusal::StaleRecords {
            stale: vec![(one, Part::Permanent)],
        };
        assert_eq!(host.refusal()?, expected);
    }
    Ok(())
}

#[test]
fn an_old_record_with_its_old_leaf_is_refused_too() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    let old = host.image.clone();
    host.commit(&[state(one, 2)])?;
    host.kill();
    host.image.vrots = old.vrots;
    host.image.leaves = old.leaves;
    assert_eq!(host.refusal()?.code(), "altered-tree");
    Ok(())
}

#[test]
fn swapped_records_are_refused_and_named() -> Result<()> {
    let (mut host, one, two) = two_vrots(checkpoint())?;
    host.reboot()?;
    let [first, second] = [one, two].map(|vrot| host.image.vrots.get(&vrot).unwrap().clone());
    host.image.vrots.insert(one, second);
    host.image.vrots.insert(two, first);
    let Refusal::SwappedRecords { swapped } = host.refusal()? else {
        anyhow::bail!("another refusal");
    };
    assert!(swapped.contains(&(one, Part::Permanent, two)));
    assert!(swapped.contains(&(two, Part::Record, one)));
    Ok(())
}

#[test]
fn a_deleted_vrot_does_not_come_back() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = two_vrots(policy)?;
        let old = host.image.vrots.get(&one).unwrap().clone();
        host.commit(&[Edit::Delete(one)])?;
        assert!(host.commit(&[state(one, 2)]).is_err());
        host.reboot()?;
        host.image.vrots.insert(one, old);
        let refusal = host.refusal()?;
        assert_eq!(refusal.code(), "returned-records");
        assert!(refusal.to_string().contains(&one.to_string()));

        let record = host.recover("returned-records", Disk::Works)?;
        assert_eq!((record.raised, record.discarded), (vec![], vec![one]));
        assert!(!host.image.vrots.contains_key(&one));
        host.reboot()?;
        assert!(host.start().is_ok());
    }
    Ok(())
}

#[test]
fn a_lost_record_is_refused_and_named() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    host.kill();
    let stored = host.image.vrots.get_mut(&one).unwrap();
    stored.parts.remove(&Part::Permanent);
    let expected = Refusal::MissingRecords {
        missing: vec![(one, Part::Permanent)],
    };
    assert_eq!(host.refusal()?, expected);
    Ok(())
}

#[test]
fn a_generation_put_back_is_refused() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    host.commit(&[Edit::Raise(one)])?;
    host.kill();
    let stored = host.image.vrots.get_mut(&one).unwrap();
    stored.put_record(one, Generation::new(1));
    assert_eq!(host.refusal()?.code(), "stale-records");
    Ok(())
}

#[test]
fn a_truncated_chain_is_refused() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    for number in 2..8 {
        host.commit(&[state(one, number)])?;
    }
    host.lose_power();
    let whole = host.image.clone();
    let epochs: Vec<Epoch> = whole.chain.keys().copied().collect();
    let (last, rest) = epochs.split_last().context("no chain")?;

    let middle = rest.get(rest.len() / 2).context("a short chain")?;
    host.image.chain.remove(middle);
    assert_eq!(host.refusal()?.code(), "truncated-chain");

    host.image = whole.clone();
    host.image.chain.retain(|epoch, _| epoch == last);
    let refusal = host.refusal()?;
    assert_eq!(refusal.code(), "truncated-chain");
    assert!(refusal.to_string().contains("a gap between"), "{refusal}");

    host.image = whole.clone();
    host.image.chain.remove(last);
    assert_eq!(host.refusal()?.code(), "altered-tree");

    host.image = whole.clone();
    host.image.chain.clear();
    assert_eq!(host.refusal()?.code(), "missing-chain");

    host.image = whole;
    assert!(host.start().is_ok());
    Ok(())
}

#[test]
fn an_altered_chain_record_is_refused_whichever_it_is() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    for number in 2..5 {
        host.commit(&[state(one, number)])?;
    }
    host.kill();
    let whole = host.image.clone();
    let newest = *whole.chain.keys().next_back().context("no chain")?;
    for epoch in whole.chain.keys() {
        host.image = whole.clone();
        let record = host.image.chain.get_mut(epoch).context("no record")?;
        *record.last_mut().context("an empty record")? ^= 1;
        let expected = if *epoch == newest {
            "foreign-store"
        } else {
            "altered-chain"
        };
        assert_eq!(host.refusal()?.code(), expected);
        assert!(host.recover(expected, Disk::Works).is_err());
    }
    Ok(())
}

#[test]
fn a_foreign_store_is_refused_and_cannot_be_accepted() -> Result<()> {
    let (mut host, _, _) = two_vrots(checkpoint())?;
    host.kill();
    let mut other = Host::blank(checkpoint());
    other.keys = RollbackKeys::derive(&[8; 32]);
    other.init(Disk::Works)?;
    host.image = other.image;
    let refusal = host.refusal()?;
    assert_eq!(refusal, Refusal::ForeignStore);
    assert!(!refusal.last_resort().contains("--accept"));
    assert!(host.recover("foreign-store", Disk::Works).is_err());
    Ok(())
}

#[test]
fn a_foreign_anchor_is_refused() -> Result<()> {
    for register in Register::BOTH {
        let (mut host, _, _) = two_vrots(checkpoint())?;
        host.kill();
        host.registers.set(register, Reading::Foreign);
        assert_eq!(host.refusal()?, Refusal::ForeignAnchor { register });
        // Contents that this host did not write there are no better.
        host.registers.set(register, Reading::Written([1; 64]));
        assert_eq!(host.refusal()?, Refusal::ForeignAnchor { register });
    }
    Ok(())
}

#[test]
fn contents_of_one_register_do_not_pass_in_the_other() -> Result<()> {
    let (mut host, _, _) = two_vrots(checkpoint())?;
    host.kill();
    let durable = host.registers.peek(Register::Durable);
    host.registers.set(Register::Volatile, durable);
    assert_eq!(host.refusal()?.code(), "foreign-anchor");
    Ok(())
}

#[test]
fn a_cleared_tpm_is_refused() -> Result<()> {
    for policy in policies() {
        let (mut host, _, _) = two_vrots(policy)?;
        host.kill();
        host.registers = FakeRegisters::blank();
        assert_eq!(host.refusal()?.code(), "cleared-tpm");
    }
    Ok(())
}

#[test]
fn a_removed_index_is_no_loss_of_power() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    host.commit(&[state(one, 2)])?;
    host.kill();
    host.registers.set(Register::Volatile, Reading::Absent);
    assert_eq!(host.refusal()?.code(), "volatile-removed");
    host.registers.reset();
    assert_eq!(host.refusal()?.code(), "volatile-removed");
    host.registers.set(Register::Durable, Reading::Absent);
    assert_eq!(host.refusal()?.code(), "cleared-tpm");
    Ok(())
}

#[test]
fn a_durable_register_that_was_never_written_does_not_vouch_for_a_grown_store() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    host.commit(&[state(one, 2)])?;
    host.lose_power();
    host.registers.set(Register::Durable, Reading::Unwritten);
    assert_eq!(host.refusal()?.code(), "cleared-tpm");
    Ok(())
}

#[test]
fn an_empty_store_with_a_live_anchor_is_refused() -> Result<()> {
    let (mut host, _, _) = two_vrots(checkpoint())?;
    host.kill();
    host.image = Image::default();
    assert_eq!(host.refusal()?.code(), "empty-store");
    host.registers.reset();
    assert_eq!(host.refusal()?.code(), "empty-store");
    assert!(host.init(Disk::Works).is_err());

    // Accepting it starts over, with all vRoTs gone and the anchor going forward.
    host.recover("empty-store", Disk::Works)?;
    host.commit(&[Edit::Create(VrotId::random())])?;
    host.reboot()?;
    assert!(host.start().is_ok());
    Ok(())
}

#[test]
fn what_a_loss_of_power_cut_off_cannot_come_back_after_the_next_start() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    let covered = host.image.clone();
    host.commit(&[state(one, 2)])?;
    host.commit(&[state(one, 3)])?;
    let cut_off = host.image.clone();
    host.lose_power();
    host.image = covered.clone();
    assert!(host.start().is_ok());
    host.lose_power();
    host.image = cut_off;
    assert_eq!(host.refusal()?.code(), "other-branch");
    host.image = covered;
    assert_eq!(host.refusal()?.code(), "restored-store");
    Ok(())
}

#[test]
fn batches_after_a_shutdown_are_refused() -> Result<()> {
    // The same manager's key, but it had shut down: somebody kept it running apart.
    let (mut host, one, _) = two_vrots(checkpoint())?;
    host.ledger.as_mut().unwrap().close()?;
    let closed = host.registers.peek(Register::Durable);
    host.commit(&[state(one, 2)])?;
    host.lose_power();
    host.registers.set(Register::Durable, closed);
    assert!(matches!(
        host.refusal()?,
        Refusal::TooFarAhead {
            register: Register::Durable,
            ahead: 1,
            allowed: 0
        }
    ));
    Ok(())
}

#[test]
fn two_batches_ahead_of_the_volatile_register_are_refused() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    host.commit(&[state(one, 2)])?;
    let volatile = host.registers.peek(Register::Volatile);
    host.commit(&[state(one, 3)])?;
    host.commit(&[state(one, 4)])?;
    host.kill();
    host.registers.set(Register::Volatile, volatile);
    assert!(matches!(
        host.refusal()?,
        Refusal::TooFarAhead {
            register: Register::Volatile,
            ahead: 2,
            allowed: 1
        }
    ));
    Ok(())
}

#[test]
fn every_refusal_says_what_to_do_and_has_a_code_of_its_own() -> Result<()> {
    let refusal = Refusal::ClearedTpm {
        epoch: Epoch::new(4),
    };
    assert!(refusal.last_resort().contains("--accept cleared-tpm"));
    let many = Refusal::MissingRecords {
        missing: vec![(VrotId::random(), Part::Record); 1000],
    };
    assert!(many.to_string().len() < 400);
    assert!(many.to_string().contains("and 997 more"));
    Ok(())
}

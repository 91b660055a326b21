//! Each way a store and an anchor can part, one by one.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use anyhow::{Context, Result};
use cert_chain::{Generation, VrotId};

use super::chain::Epoch;
use super::decision::{Boot, Decision};
use super::fake_registers::{FailedWrite, FakeRegisters, Fuse};
use super::host::{Disk, Edit, Host, Image, StoredVrot, policies};
use super::keys::RollbackKeys;
use super::ledger::SET_INTERVAL;
use super::policy::{AnchorPolicy, Moment};
use super::refusal::Refusal;
use super::register::{CheckpointInterval, Reading, Register};
use crate::store::Part;

/// A running host with two vRoTs that a checkpoint covers.
fn host(policy: AnchorPolicy) -> Result<(Host, VrotId, VrotId)> {
    let mut host = Host::initialised(policy)?;
    let (one, two) = (VrotId::random(), VrotId::random());
    host.commit(&[Edit::Create(one), Edit::Create(two)])?;
    host.commit(&[state(one, 1), state(two, 1)])?;
    host.checkpoint()?;
    Ok((host, one, two))
}

fn state(vrot: VrotId, number: u8) -> Edit {
    Edit::Write(
        vrot,
        Part::Permanent,
        vec![number; 40]
            .into_iter()
            .chain(*vrot.as_bytes())
            .collect(),
    )
}

fn checkpoint() -> AnchorPolicy {
    AnchorPolicy::default()
}

#[test]
fn a_killed_manager_goes_on_where_it_was() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = host(policy)?;
        host.commit(&[state(one, 2)])?;
        host.kill();
        assert!(matches!(host.decide(), Decision::Equal(_)));
        assert_eq!(host.start().unwrap(), Boot::Continued);
        host.commit(&[state(one, 3)])?;
    }
    Ok(())
}

#[test]
fn a_batch_that_was_not_anchored_yet_is_finished() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = host(policy)?;
        assert!(host.commit_on(Disk::DiesAfter, &[state(one, 2)]).is_err());
        let image = host.image.clone();
        assert!(matches!(host.decide(), Decision::AheadByChain(_)));
        assert_eq!(host.start().unwrap(), Boot::Continued);
        assert_eq!(host.image, image);
        host.kill();
        assert!(matches!(host.decide(), Decision::Equal(_)));
    }
    Ok(())
}

#[test]
fn a_batch_that_did_not_reach_the_disk_never_was() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = host(policy)?;
        assert!(host.commit_on(Disk::DiesBefore, &[state(one, 2)]).is_err());
        assert_eq!(host.start().unwrap(), Boot::Continued);
        host.commit(&[state(one, 3)])?;
    }
    Ok(())
}

#[test]
fn after_a_shutdown_the_store_is_the_one_that_was_shut_down() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = host(policy)?;
        host.commit(&[state(one, 2)])?;
        let before = host.image.clone();
        host.reboot()?;
        assert_eq!(host.start().unwrap(), Boot::AfterShutdown);
        assert_eq!(host.image.vrots, before.vrots);
    }
    Ok(())
}

#[test]
fn after_a_loss_of_power_the_window_is_stated() -> Result<()> {
    let interval = CheckpointInterval::from_secs(90).unwrap();
    for (policy, cut_off) in [
        (AnchorPolicy::Checkpoint(interval), Some(interval)),
        (AnchorPolicy::Strict, None),
    ] {
        let (mut host, one, _) = host(policy)?;
        host.commit(&[state(one, 2)])?;
        let before = host.image.clone();
        host.lose_power();
        assert_eq!(host.start().unwrap(), Boot::AfterPowerLoss { cut_off });
        assert_eq!(host.image.vrots, before.vrots);
    }
    Ok(())
}

#[test]
fn a_loss_of_power_is_told_until_all_have_a_new_generation() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    let told = |host: &Host| host.ledger.as_ref().unwrap().head().power_loss();
    assert_eq!(told(&host), None);
    host.commit(&[state(one, 2)])?;
    host.reboot()?;
    host.start().unwrap();
    assert_eq!(told(&host), None, "nothing was cut off by a shutdown");
    host.commit(&[state(one, 3)])?;
    host.lose_power();
    host.start().unwrap();
    let loss = told(&host).unwrap();
    assert_eq!(loss.batch, host.ledger.as_ref().unwrap().head().epoch());
    assert_eq!(loss.window, CheckpointInterval::DEFAULT);

    // Neither batches, nor a crash, nor a shutdown make it undone.
    host.commit(&[state(one, 4)])?;
    host.checkpoint()?;
    host.kill();
    assert_eq!(host.start().unwrap(), Boot::Continued);
    host.reboot()?;
    assert_eq!(host.start().unwrap(), Boot::AfterShutdown);
    host.commit(&[state(one, 5)])?;
    assert_eq!(told(&host), Some(loss));
    let old = host.image.clone();

    // A later one takes its place, and its number says that it is one, wherever the clock was put.
    host.lose_power();
    host.put_clock_back_to_1970();
    host.start().unwrap();
    let later = told(&host).unwrap();
    assert!(later.batch > loss.batch && later.time < loss.time);

    host.kill();
    host.image = old;
    host.recover("restored-store", Disk::Works)?;
    assert_eq!(told(&host), None);
    Ok(())
}

#[test]
fn under_strict_no_loss_of_power_is_told() -> Result<()> {
    let (mut host, one, _) = host(AnchorPolicy::Strict)?;
    host.commit(&[state(one, 2)])?;
    host.lose_power();
    host.start().unwrap();
    assert_eq!(host.ledger.as_ref().unwrap().head().power_loss(), None);
    Ok(())
}

#[test]
fn within_the_window_a_loss_of_power_can_cut_off_the_last_batches_but_no_more() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    let mut images = vec![host.image.clone()];
    for number in 2..6 {
        host.commit(&[state(one, number)])?;
        images.push(host.image.clone());
    }
    host.checkpoint()?;
    let covered = host.image.clone();
    host.commit(&[state(one, 6)])?;
    host.lose_power();
    for image in images.iter().take(4) {
        host.image = image.clone();
        assert_eq!(host.refusal()?.code(), "restored-store");
    }
    host.image = covered;
    assert!(host.start().is_ok());
    Ok(())
}

#[test]
fn under_strict_a_loss_of_power_cuts_off_nothing_that_was_acknowledged() -> Result<()> {
    let (mut host, one, _) = host(AnchorPolicy::Strict)?;
    host.commit(&[state(one, 2)])?;
    let older = host.image.clone();
    host.commit(&[state(one, 3)])?;
    host.lose_power();
    host.image = older;
    assert_eq!(host.refusal()?.code(), "restored-store");
    Ok(())
}

#[test]
fn a_restored_old_store_is_refused() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = host(policy)?;
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
    let (mut host, one, _) = host(checkpoint())?;
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
        let (mut host, one, _) = host(policy)?;
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
    let (mut host, one, _) = host(checkpoint())?;
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
    let (mut host, one, two) = host(checkpoint())?;
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
        let (mut host, one, _) = host(policy)?;
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
    let (mut host, one, _) = host(checkpoint())?;
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
    let (mut host, one, _) = host(checkpoint())?;
    host.commit(&[Edit::Raise(one)])?;
    host.kill();
    let stored = host.image.vrots.get_mut(&one).unwrap();
    stored.put_record(one, Generation::new(1));
    assert_eq!(host.refusal()?.code(), "stale-records");
    Ok(())
}

#[test]
fn a_truncated_chain_is_refused() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
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
    let (mut host, one, _) = host(checkpoint())?;
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
    let (mut host, _, _) = host(checkpoint())?;
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
        let (mut host, _, _) = host(checkpoint())?;
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
    let (mut host, _, _) = host(checkpoint())?;
    host.kill();
    let durable = host.registers.peek(Register::Durable);
    host.registers.set(Register::Volatile, durable);
    assert_eq!(host.refusal()?.code(), "foreign-anchor");
    Ok(())
}

#[test]
fn a_cleared_tpm_is_refused() -> Result<()> {
    for policy in policies() {
        let (mut host, _, _) = host(policy)?;
        host.kill();
        host.registers = FakeRegisters::blank();
        assert_eq!(host.refusal()?.code(), "cleared-tpm");
    }
    Ok(())
}

#[test]
fn a_removed_index_is_no_loss_of_power() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
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
    let (mut host, one, _) = host(checkpoint())?;
    host.commit(&[state(one, 2)])?;
    host.lose_power();
    host.registers.set(Register::Durable, Reading::Unwritten);
    assert_eq!(host.refusal()?.code(), "cleared-tpm");
    Ok(())
}

#[test]
fn an_empty_store_with_a_live_anchor_is_refused() -> Result<()> {
    let (mut host, _, _) = host(checkpoint())?;
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
fn only_a_blank_host_is_a_first_start() -> Result<()> {
    let mut host = Host::blank(checkpoint());
    assert!(matches!(host.decide(), Decision::FirstStart(_)));
    assert!(host.init(Disk::DiesBefore).is_err());
    assert!(matches!(host.decide(), Decision::FirstStart(_)));
    // Cut short after the store, before either register: the start finishes it.
    for after in 0..2 {
        let mut host = Host::blank(checkpoint());
        let write = FailedWrite::Lost;
        host.registers.set_fuse(Some(Fuse { after, write }));
        assert!(host.init(Disk::Works).is_err());
        host.registers.set_fuse(None);
        assert!(!matches!(host.decide(), Decision::FirstStart(_)));
        assert!(host.start().is_ok());
        host.commit(&[Edit::Create(VrotId::random())])?;
    }
    Ok(())
}

#[test]
fn what_a_loss_of_power_cut_off_cannot_come_back_after_the_next_start() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
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
    let (mut host, one, _) = host(checkpoint())?;
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
    let (mut host, one, _) = host(checkpoint())?;
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
fn nothing_is_acknowledged_before_the_anchor_has_it() -> Result<()> {
    for write in [FailedWrite::Lost, FailedWrite::Happened] {
        let (mut host, one, _) = host(checkpoint())?;
        host.registers.set_fuse(Some(Fuse { after: 0, write }));
        let ledger = host.ledger.as_mut().unwrap();
        let mut changes = super::Changes::default();
        changes.put(one, Part::Permanent, b"2");
        let mut stored = 0;
        let mut commit = |ledger: &mut super::Ledger<FakeRegisters>| {
            ledger.commit(&changes, Moment::now(), |_| {
                stored += 1;
                Ok::<_, std::convert::Infallible>(())
            })
        };
        assert!(matches!(
            commit(ledger),
            Err(super::CommitError::Unanchored { .. })
        ));
        // As long as the anchor stays behind, no further batch enters the store.
        assert!(matches!(
            commit(ledger),
            Err(super::CommitError::Unsettled(_))
        ));
        host.registers.set_fuse(None);
        ledger.settle()?;
        assert!(commit(ledger).is_ok());
        assert_eq!(stored, 2);
    }
    Ok(())
}

#[test]
fn a_failed_transaction_leaves_the_ledger_as_it_was() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    let ledger = host.ledger.as_mut().unwrap();
    let before = (ledger.head().clone(), ledger.leaf(&one).cloned());
    let mut changes = super::Changes::default();
    changes.put(one, Part::Permanent, b"2");
    let failed = ledger.commit(&changes, Moment::now(), |_| Err("disk full"));
    assert!(matches!(
        failed,
        Err(super::CommitError::Store("disk full"))
    ));
    assert_eq!(before, (ledger.head().clone(), ledger.leaf(&one).cloned()));
    assert!(ledger.check(one, Part::Permanent, Some(b"2")).is_err());
    Ok(())
}

#[test]
fn what_is_read_is_held_against_what_was_committed() -> Result<()> {
    let (mut host, one, two) = host(checkpoint())?;
    host.commit(&[Edit::Write(one, Part::Permanent, b"new".to_vec())])?;
    let ledger = host.ledger.as_ref().unwrap();
    assert!(ledger.check(one, Part::Permanent, Some(b"new")).is_ok());
    for (vrot, part) in [
        (one, Part::Volatile),
        (two, Part::Permanent),
        (VrotId::random(), Part::Permanent),
    ] {
        let error = ledger.check(vrot, part, Some(b"new")).unwrap_err();
        assert!(error.to_string().contains(&vrot.to_string()));
    }
    assert!(ledger.check(one, Part::Permanent, None).is_err());
    assert!(ledger.check(one, Part::Volatile, None).is_ok());
    Ok(())
}

#[test]
fn flash_is_written_at_checkpoints_and_never_for_nothing() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    let before = host.registers.durable_writes();
    for number in 0..100 {
        host.commit(&[state(one, number)])?;
    }
    assert_eq!(host.registers.durable_writes(), before);
    host.checkpoint()?;
    host.checkpoint()?;
    assert_eq!(host.registers.durable_writes(), before + 1);
    // Nor does a start: this one finds nothing that is not covered.
    for _ in 0..20 {
        host.kill();
        host.pass(600);
        assert!(host.start().is_ok());
    }
    assert_eq!(host.registers.durable_writes(), before + 1);
    let volatile = host.registers.volatile_writes();
    host.commit(&[state(one, 1)])?;
    assert_eq!(host.registers.volatile_writes(), volatile + 1);
    Ok(())
}

#[test]
fn under_strict_flash_is_written_once_with_each_batch() -> Result<()> {
    let (mut host, one, _) = host(AnchorPolicy::Strict)?;
    let before = host.registers.durable_writes();
    for number in 0..10 {
        host.commit(&[state(one, number)])?;
    }
    assert_eq!(host.registers.durable_writes(), before + 10);
    Ok(())
}

#[test]
fn a_risen_generation_is_never_cut_off() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    let older = host.image.clone();
    host.commit(&[Edit::Raise(one)])?;
    host.lose_power();
    host.image = older;
    assert_eq!(host.refusal()?.code(), "restored-store");
    Ok(())
}

#[test]
fn a_deletion_is_in_flash_before_it_is_acknowledged() -> Result<()> {
    let (mut host, one, two) = host(checkpoint())?;
    host.checkpoint()?;
    let before = host.image.clone();
    let written = host.registers.durable_writes();
    host.commit(&[Edit::Delete(one), Edit::Delete(two)])?;
    assert_eq!(host.registers.durable_writes(), written + 1);
    // What is not there any more costs nothing.
    host.commit(&[Edit::Delete(one)])?;
    assert_eq!(host.registers.durable_writes(), written + 1);
    host.lose_power();
    host.image = before;
    assert_eq!(host.refusal()?.code(), "restored-store");
    Ok(())
}

#[test]
fn new_vrots_share_a_checkpoint_that_follows_soon() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    host.checkpoint()?;
    let written = host.registers.durable_writes();
    host.commit(&[state(one, 1)])?;
    let began = host.now().monotonic;
    for _ in 0..100 {
        host.commit(&[Edit::Create(VrotId::random())])?;
    }
    assert_eq!(host.registers.durable_writes(), written);
    let now = host.now().monotonic;
    let ledger = host.ledger.as_mut().unwrap();
    let due = ledger.checkpoint_due().unwrap();
    assert!(due >= began + SET_INTERVAL && due <= now + SET_INTERVAL);
    ledger.checkpoint()?;
    assert_eq!(host.registers.durable_writes(), written + 1);
    // Mere changes have their time again.
    host.commit(&[state(one, 2)])?;
    let due = host.ledger.as_ref().unwrap().checkpoint_due().unwrap();
    assert!(due > host.now().monotonic + SET_INTERVAL);
    Ok(())
}

#[test]
fn the_window_opens_with_the_first_change_and_closes_with_the_checkpoint() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    let ledger = host.ledger.as_ref().unwrap();
    let closed = ledger.window(host.now());
    assert_eq!((closed.batches, closed.age), (0, None));
    assert_eq!(ledger.checkpoint_due(), None);

    host.commit(&[state(one, 2)])?;
    host.commit(&[state(one, 3)])?;
    let before = host.now().monotonic;
    host.pass(60);
    let now = host.now();
    let ledger = host.ledger.as_mut().unwrap();
    let open = ledger.window(now);
    assert_eq!((open.batches, open.limit.as_secs()), (2, 600));
    assert!(open.age.unwrap().as_secs() >= 60);
    let due = ledger.checkpoint_due().unwrap();
    assert!(due > now.monotonic && due <= before + AnchorPolicy::default().limit());

    ledger.checkpoint()?;
    assert_eq!(ledger.window(now).batches, 0);
    assert_eq!(ledger.checkpoint_due(), None);
    Ok(())
}

/// A manager that is killed again and again before its checkpoint is due must not put the
/// checkpoint off for ever: the policy states how old a store a loss of power can bring back.
#[test]
fn a_crash_loop_does_not_keep_the_window_open() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    for number in 0..20 {
        let before = host.image.clone();
        host.commit(&[state(one, number)])?;
        host.kill();
        host.start().unwrap();
        assert_eq!(host.ledger.as_ref().unwrap().window(host.now()).batches, 0);
        host.lose_power();
        let newest = std::mem::replace(&mut host.image, before);
        assert_eq!(host.refusal()?.code(), "restored-store");
        host.image = newest;
        host.start().unwrap();
    }
    Ok(())
}

/// How long the manager was dead, only the clock could say, which may have been put anywhere.
#[test]
fn a_start_makes_the_checkpoint_that_a_dead_manager_owed() -> Result<()> {
    for put in [
        |host: &mut Host| host.pass(1),
        |host: &mut Host| host.pass(100_000),
        |host: &mut Host| host.put_clock_back_to_1970(),
    ] {
        let (mut host, one, _) = host(checkpoint())?;
        host.pass(3600);
        host.commit(&[state(one, 2)])?;
        let before = host.registers.durable_writes();
        host.kill();
        put(&mut host);
        host.start().unwrap();
        assert_eq!(host.registers.durable_writes(), before + 1);
        assert_eq!(host.ledger.as_ref().unwrap().window(host.now()).batches, 0);
    }
    Ok(())
}

#[test]
fn a_chain_is_pruned_up_to_the_durable_register() -> Result<()> {
    let (mut host, one, _) = host(checkpoint())?;
    for number in 0..50 {
        host.commit(&[state(one, number)])?;
    }
    assert!(host.image.chain.len() > 50);
    host.checkpoint()?;
    host.commit(&[state(one, 1)])?;
    assert_eq!(host.image.chain.len(), 2);
    host.lose_power();
    assert!(host.start().is_ok());
    Ok(())
}

#[test]
fn a_recovery_names_what_it_accepts_and_raises_every_generation() -> Result<()> {
    for policy in policies() {
        let (mut host, one, two) = host(policy)?;
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
        let (mut host, one, _) = host(policy)?;
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
    let (mut host, one, _) = host(checkpoint())?;
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
    let (mut host, one, two) = host(checkpoint())?;
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
            let (mut host, one, two) = host(checkpoint())?;
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

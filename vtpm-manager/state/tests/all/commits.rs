//! What is acknowledged, and when the registers are written.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use anyhow::Result;
use cert_chain::VrotId;
use guarded_state::disk::Part;
use guarded_state::ledger::running::SET_INTERVAL;
use guarded_state::ledger::{AnchorPolicy, Changes, CommitError, Ledger, Moment};
use guarded_state::testing::{FailedWrite, FakeRegisters, Fuse};

use crate::host::{Edit, Host, checkpoint, state, two_vrots};

#[test]
fn nothing_is_acknowledged_before_the_anchor_has_it() -> Result<()> {
    for write in [FailedWrite::Lost, FailedWrite::Happened] {
        let (mut host, one, _) = two_vrots(checkpoint())?;
        host.registers.set_fuse(Some(Fuse { after: 0, write }));
        let ledger = host.ledger.as_mut().unwrap();
        let mut changes = Changes::default();
        changes.put(one, Part::Permanent, b"2");
        let mut stored = 0;
        let mut commit = |ledger: &mut Ledger<FakeRegisters>| {
            ledger.commit(&changes, Moment::now(), |_| {
                stored += 1;
                Ok::<_, std::convert::Infallible>(())
            })
        };
        assert!(matches!(
            commit(ledger),
            Err(CommitError::Unanchored { .. })
        ));
        // As long as the anchor stays behind, no further batch enters the store.
        assert!(matches!(commit(ledger), Err(CommitError::Unsettled(_))));
        host.registers.set_fuse(None);
        ledger.settle()?;
        assert!(commit(ledger).is_ok());
        assert_eq!(stored, 2);
    }
    Ok(())
}

#[test]
fn a_failed_transaction_leaves_the_ledger_as_it_was() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    let ledger = host.ledger.as_mut().unwrap();
    let before = (ledger.head().clone(), ledger.leaf(&one).cloned());
    let mut changes = Changes::default();
    changes.put(one, Part::Permanent, b"2");
    let failed = ledger.commit(&changes, Moment::now(), |_| Err("disk full"));
    assert!(matches!(failed, Err(CommitError::Store("disk full"))));
    assert_eq!(before, (ledger.head().clone(), ledger.leaf(&one).cloned()));
    assert!(ledger.check(one, Part::Permanent, Some(b"2")).is_err());
    Ok(())
}

#[test]
fn what_is_read_is_held_against_what_was_committed() -> Result<()> {
    let (mut host, one, two) = two_vrots(checkpoint())?;
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
    let (mut host, one, _) = two_vrots(checkpoint())?;
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
        host.pass(720);
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
    let (mut host, one, _) = two_vrots(AnchorPolicy::Strict)?;
    let before = host.registers.durable_writes();
    for number in 0..10 {
        host.commit(&[state(one, number)])?;
    }
    assert_eq!(host.registers.durable_writes(), before + 10);
    Ok(())
}

#[test]
fn a_risen_generation_is_never_cut_off() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
    let older = host.image.clone();
    host.commit(&[Edit::Raise(one)])?;
    host.lose_power();
    host.image = older;
    assert_eq!(host.refusal()?.code(), "restored-store");
    Ok(())
}

#[test]
fn a_deletion_is_in_flash_before_it_is_acknowledged() -> Result<()> {
    let (mut host, one, two) = two_vrots(checkpoint())?;
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
    let (mut host, one, _) = two_vrots(checkpoint())?;
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
    let (mut host, one, _) = two_vrots(checkpoint())?;
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
    assert_eq!((open.batches, open.limit.as_secs()), (2, 720));
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
    let (mut host, one, _) = two_vrots(checkpoint())?;
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
        let (mut host, one, _) = two_vrots(checkpoint())?;
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
    let (mut host, one, _) = two_vrots(checkpoint())?;
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

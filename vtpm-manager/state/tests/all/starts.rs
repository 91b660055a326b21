//! What a start accepts, and what a loss of power can cut off.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use anyhow::Result;
use cert_chain::VrotId;
use guarded_state::ledger::{AnchorPolicy, Boot, CheckpointInterval, Decision};
use guarded_state::testing::{FailedWrite, Fuse};

use crate::host::{Disk, Edit, Host, checkpoint, policies, state, two_vrots};

#[test]
fn a_killed_manager_goes_on_where_it_was() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = two_vrots(policy)?;
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
        let (mut host, one, _) = two_vrots(policy)?;
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
        let (mut host, one, _) = two_vrots(policy)?;
        assert!(host.commit_on(Disk::DiesBefore, &[state(one, 2)]).is_err());
        assert_eq!(host.start().unwrap(), Boot::Continued);
        host.commit(&[state(one, 3)])?;
    }
    Ok(())
}

#[test]
fn after_a_shutdown_the_store_is_the_one_that_was_shut_down() -> Result<()> {
    for policy in policies() {
        let (mut host, one, _) = two_vrots(policy)?;
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
        let (mut host, one, _) = two_vrots(policy)?;
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
    let (mut host, one, _) = two_vrots(checkpoint())?;
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
    let (mut host, one, _) = two_vrots(AnchorPolicy::Strict)?;
    host.commit(&[state(one, 2)])?;
    host.lose_power();
    host.start().unwrap();
    assert_eq!(host.ledger.as_ref().unwrap().head().power_loss(), None);
    Ok(())
}

#[test]
fn within_the_window_a_loss_of_power_can_cut_off_the_last_batches_but_no_more() -> Result<()> {
    let (mut host, one, _) = two_vrots(checkpoint())?;
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
    let (mut host, one, _) = two_vrots(AnchorPolicy::Strict)?;
    host.commit(&[state(one, 2)])?;
    let older = host.image.clone();
    host.commit(&[state(one, 3)])?;
    host.lose_power();
    host.image = older;
    assert_eq!(host.refusal()?.code(), "restored-store");
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

//! A vRoT whose VM is paused, saved and goes on.

use anyhow::{Result, ensure};

use crate::support::Host;
use crate::support::vmm::{Attach, Vmm, define_index, extend, pcr};

const PERMANENT: u32 = 1;
const VOLATILE: u32 = 2;

#[test]
fn a_suspended_vrot_goes_on_where_it_was() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    let (vmm, before) = suspended(&host, &vm)?;
    drop(vmm);
    assert_eq!(host.json(["show", &vm])?["state"], "suspended");
    let refused = host.refused(["start", &vm])?;
    ensure!(refused.contains("resume it"), "{refused}");
    host.crash()?;
    host.start_again()?;

    host.ctl(["resume", &vm])?;
    let mut vmm = Vmm::attach_as(&host.control(&vm)?, Attach::Resumed)?;
    assert_eq!(pcr(&mut vmm)?, before);
    let refused = host.refused(["resume", &vm])?;
    ensure!(refused.contains("running already"), "{refused}");
    // The volatile state was used up: what comes next is a reset.
    drop(vmm);
    host.ctl(["stop", &vm])?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    assert_ne!(pcr(&mut vmm)?, before);
    Ok(())
}

#[test]
fn stopping_a_suspended_vrot_gives_its_volatile_state_up() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    let refused = host.refused(["suspend", &vm])?;
    ensure!(refused.contains("not running"), "{refused}");
    let (_vmm, before) = suspended(&host, &vm)?;
    host.ctl(["stop", &vm])?;
    let refused = host.refused(["resume", &vm])?;
    ensure!(refused.contains("not suspended"), "{refused}");
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    assert_ne!(pcr(&mut vmm)?, before);
    Ok(())
}

#[test]
fn a_resumed_vrot_whose_vm_is_not_back_yet_can_be_suspended_again() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    let (_vmm, before) = suspended(&host, &vm)?;
    host.ctl(["resume", &vm])?;
    host.ctl(["suspend", &vm])?;
    host.ctl(["resume", &vm])?;
    let mut vmm = Vmm::attach_as(&host.control(&vm)?, Attach::Resumed)?;
    assert_eq!(pcr(&mut vmm)?, before);
    Ok(())
}

#[test]
fn a_vrot_without_volatile_state_is_not_suspended_and_goes_on() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let refused = host.refused(["suspend", &vm])?;
    ensure!(refused.contains("its TPM is off"), "{refused}");
    assert_eq!(host.json(["show", &vm])?["state"], "running");
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    extend(&mut vmm)?;
    Ok(())
}

#[test]
fn what_a_vmm_carries_is_sealed_and_of_use_only_beside_the_same_permanent_state() -> Result<()> {
    let host = Host::enrolled()?;
    let (vm, other) = (host.create()?, host.create()?);
    host.ctl(["start", &vm])?;
    host.ctl(["start", &other])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    extend(&mut vmm)?;
    let before = pcr(&mut vmm)?;
    let permanent = vmm.state(PERMANENT)?;
    let volatile = vmm.state(VOLATILE)?;
    // Seeds and NV memory do not leave, not even sealed.
    ensure!(permanent.len() < 100, "{} bytes", permanent.len());
    drop(vmm);
    host.ctl(["stop", &vm])?;
    host.ctl(["start", &vm])?;

    let carried = [(PERMANENT, permanent.as_slice()), (VOLATILE, &volatile)];
    let mut vmm = Vmm::attach_as(&host.control(&vm)?, Attach::Bringing(&carried))?;
    assert_eq!(pcr(&mut vmm)?, before);

    // Another vRoT's, an altered one, one in the other's place.
    let mut altered = volatile.clone();
    altered[20] ^= 1;
    for carried in [
        (VOLATILE, altered.as_slice()),
        (VOLATILE, &permanent),
        (PERMANENT, &volatile),
    ] {
        ensure!(Vmm::attach_as(&host.control(&other)?, Attach::Bringing(&[carried])).is_err());
    }
    for carried in carried {
        ensure!(Vmm::attach_as(&host.control(&other)?, Attach::Bringing(&[carried])).is_err());
    }

    // The permanent state goes on; a VMM's old state does not come back.
    define_index(&mut vmm, 0x0150_0001)?;
    drop(vmm);
    for carried in carried {
        ensure!(Vmm::attach_as(&host.control(&vm)?, Attach::Bringing(&[carried])).is_err());
    }
    Ok(())
}

#[test]
fn a_vrot_that_could_not_be_stopped_goes_on_and_begins_anew_with_the_next_reset() -> Result<()> {
    let host = Host::enrolled_on_small_disk("")?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let at_first = pcr(&mut vmm)?;
    let filling = host.fill_disk()?;
    for index in 0x0150_0010..0x0150_0030 {
        define_index(&mut vmm, index)?;
    }
    for order in ["stop", "suspend"] {
        extend(&mut vmm)?;
        let before = pcr(&mut vmm)?;
        host.refused([order, &vm])?;
        assert_eq!(pcr(&mut vmm)?, before);
        drop(vmm);
        vmm = Vmm::attach(&host.control(&vm)?)?;
        assert_eq!(pcr(&mut vmm)?, at_first, "after a failed {order}");
    }
    std::fs::remove_file(filling)?;
    Ok(())
}

/// Starts a VM, which measures something, and suspends it; its VMM and the value of the PCR.
fn suspended(host: &Host, vm: &str) -> Result<(Vmm, [u8; 32])> {
    host.ctl(["start", vm])?;
    let mut vmm = Vmm::attach(&host.control(vm)?)?;
    extend(&mut vmm)?;
    let measured = pcr(&mut vmm)?;
    host.ctl(["suspend", vm])?;
    Ok((vmm, measured))
}

//! The command lines of libvirt, Proxmox, Incus, systemd-vmspawn, Packer and quickemu.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};
use nix::fcntl::FcntlArg;
use serde_json::Value;

use crate::peers::{ALL, NEWER, Peer, Place, until};

fn features(capabilities: &Value) -> BTreeSet<String> {
    let features = capabilities["features"].as_array();
    let names = features.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

#[test]
fn what_is_announced_is_what_swtpm_announces_but_for_what_is_not_offered() -> Result<()> {
    for (line, missing) in [
        (
            "swtpm socket --print-capabilities",
            vec!["cmdarg-print-info", "tpm-1.2", "tpm-send-command-header"],
        ),
        (
            "swtpm_setup --print-capabilities",
            vec![
                "cmdarg-profile",
                "cmdarg-profile-remove-disabled",
                "tpm-1.2",
                "tpm12-not-need-root",
            ],
        ),
    ] {
        let theirs = Place::of(&Peer::New)?.json(line)?;
        let ours = Place::of(&Peer::Ours)?.json(line)?;
        assert_eq!(ours["type"], theirs["type"]);
        let (theirs, ours) = (features(&theirs), features(&ours));
        let not_offered: Vec<_> = theirs.difference(&ours).map(String::as_str).collect();
        assert_eq!(not_offered, missing, "{line}");
        assert_eq!(ours.difference(&theirs).count(), 0, "{line}");
    }
    Ok(())
}

const LIBVIRT_SETUP: &str = "swtpm_setup --tpm2 --tpm-state DIR/state --vmid vm:8d2f --logfile DIR/log \
     --createek --create-ek-cert --create-platform-cert --lock-nvram --not-overwrite";

#[test]
fn libvirts_domain_is_set_up_started_reconfigured_and_ended() -> Result<()> {
    for peer in ALL {
        let place = Place::of(&peer)?;
        place.good(LIBVIRT_SETUP)?;
        assert_eq!(place.mode("state/tpm2-00.permall")?, 0o640, "{peer:?}");
        assert_eq!(place.mode("log")?, 0o600, "{peer:?}");
        assert_eq!(place.names("state")?, [".lock", "tpm2-00.permall"]);
        let made = fs::read(place.path("state/tpm2-00.permall"))?;
        // Again, as at each start: nothing changes.
        place.good(LIBVIRT_SETUP)?;
        assert_eq!(made, fs::read(place.path("state/tpm2-00.permall"))?);
        place.good(
            "swtpm_setup --tpm2 --tpm-state DIR/state --logfile DIR/log --pcr-banks sha1,sha256 \
             --reconfigure",
        )?;
        assert_ne!(made, fs::read(place.path("state/tpm2-00.permall"))?);
        let states = place.json("swtpm socket --tpm2 --tpmstate dir=DIR/state --print-states")?;
        assert_eq!(states["states"][0]["name"], "permall", "{peer:?}");
        let mut served = place.serve(
            "swtpm socket --ctrl type=unixio,path=DIR/s,mode=0600 --tpmstate dir=DIR/state,mode=0600 \
             --log file=DIR/log --terminate --tpm2",
            "s",
        )?;
        assert_eq!(place.mode("s")?, 0o600, "{peer:?}");
        place.good("swtpm_ioctl --unix DIR/s -i")?;
        place.good("swtpm_ioctl --unix DIR/s -s")?;
        assert!(served.ended()?, "{peer:?}");
        assert!(!place.path("s").exists(), "{peer:?} leaves its socket");
        assert_eq!(place.mode("state/tpm2-00.permall")?, 0o600, "{peer:?}");
    }
    Ok(())
}

#[test]
fn a_newer_libvirt_asks_for_the_profile_and_locks_the_state() -> Result<()> {
    for peer in NEWER {
        let place = Place::of(&peer)?;
        place.good(LIBVIRT_SETUP)?;
        let info =
            place.json("swtpm socket --print-info 0x20 --tpm2 --tpmstate dir=DIR/state,lock")?;
        // It asks wherever that is announced, and starts no domain without a name.
        let announced = features(&place.json("swtpm socket --print-capabilities")?);
        assert_eq!(
            info["ActiveProfile"]["Name"].is_string(),
            announced.contains("cmdarg-print-info"),
            "{peer:?}: {info}"
        );
        let _served = place.serve(
            "swtpm socket --ctrl type=unixio,path=DIR/s,mode=0600 \
             --tpmstate backend-uri=file://DIR/f,lock --log file=DIR/log,level=5 --terminate --tpm2 \
             --migration release-lock-outgoing",
            "s",
        )?;
        place.good("swtpm_ioctl --unix DIR/s -i")?;
        assert!(place.path("f").exists());
    }
    Ok(())
}

#[test]
fn a_secret_comes_by_descriptor_and_without_it_the_state_is_refused() -> Result<()> {
    for peer in ALL {
        let place = Place::of(&peer)?;
        place.good(
            "swtpm_setup --tpm2 --pwdfile-fd 7 --cipher aes-256-cbc --tpm-state DIR/state --vmid vm:1 \
             --logfile DIR/log --createek --create-ek-cert --create-platform-cert --lock-nvram \
             --not-overwrite",
        )?;
        let line = "swtpm socket --ctrl type=unixio,path=DIR/s,mode=0600 \
                    --tpmstate dir=DIR/state,mode=0600 --log file=DIR/log --tpm2 \
                    --key pwdfd=7,mode=aes-256-cbc --migration-key pwdfd=8,mode=aes-256-cbc";
        let mut served = place.serve(line, "s")?;
        place.good("swtpm_ioctl --unix DIR/s -i")?;
        let keys = place.good("swtpm_ioctl --unix DIR/s -g")?;
        assert_eq!(keys, "ptm configuration flags: 0x3\n", "{peer:?}");
        place.good("swtpm_ioctl --unix DIR/s -s")?;
        assert!(served.ended()?);
        let log = fs::read_to_string(place.path("log"))?;
        assert!(!log.contains("of 32 bytes"), "{peer:?}");
        // Without the key: at once, or when it is switched on.
        let mut served = place.serve(
            "swtpm socket --ctrl type=unixio,path=DIR/t --tpmstate dir=DIR/state --tpm2",
            if peer == Peer::Ours { "state" } else { "t" },
        )?;
        if peer == Peer::Ours {
            assert!(!served.ended()?);
        } else {
            place.refused("swtpm_ioctl --unix DIR/t -i")?;
        }
    }
    Ok(())
}

#[test]
fn proxmox_keeps_the_state_in_one_file_and_waits_for_the_process_id() -> Result<()> {
    for peer in ALL {
        let place = Place::of(&peer)?;
        fs::write(place.path("volume"), [])?;
        place.good(
            "swtpm_setup --tpmstate file://DIR/volume --createek --create-ek-cert \
             --create-platform-cert --lock-nvram --config DIR/swtpm_setup.conf --runas 0 \
             --not-overwrite --tpm2 --ecc",
        )?;
        place.good(
            "swtpm socket --tpmstate backend-uri=file://DIR/volume,mode=0600 \
             --ctrl type=unixio,path=DIR/s,mode=0600 --pid file=DIR/pid --terminate --daemon \
             --log file=DIR/log,level=1,prefix=[id=100] --tpm2",
        )?;
        assert!(until(|| fs::read_to_string(place.path("pid")).is_ok_and(
            |text| !text.is_empty() && text.trim().parse::<u32>().is_ok()
        )));
        assert_eq!(place.mode("pid")?, 0o644, "{peer:?}");
        // swtpm leaves a file that is there as it is.
        assert!(peer != Peer::Ours || place.mode("volume")? == 0o600);
        place.good("swtpm_ioctl --unix DIR/s -i")?;
        place.good("swtpm_ioctl --unix DIR/s -s")?;
        let is_gone = until(|| !place.path("pid").exists() && !place.path("s").exists());
        assert!(is_gone, "{peer:?} leaves its files");
    }
    Ok(())
}

#[test]
fn incus_names_its_socket_by_a_relative_path() -> Result<()> {
    for peer in NEWER {
        let place = Place::of(&peer)?;
        place.good(
            "swtpm_setup --tpm2 --tpmstate DIR/state --createek --create-ek-cert \
             --create-platform-cert --lock-nvram --config DIR/swtpm_setup.conf",
        )?;
        let _served = place.serve(
            "swtpm socket --tpm2 --tpmstate dir=DIR/state --ctrl type=unixio,path=swtpm.sock \
             --migration release-lock-outgoing",
            "swtpm.sock",
        )?;
        place.good("swtpm_ioctl --unix swtpm.sock -i")?;
    }
    let ours = Place::of(&Peer::Ours)?;
    let why = ours.refused("swtpm chardev --tpm2 --tpmstate dir=DIR/state --vtpm-proxy")?;
    assert!(why.contains("chardev is not offered"), "{why}");
    Ok(())
}

/// Behind the descriptors of secrets, and that which is to be refused.
const FIRST_OF_LISTENERS: i32 = 100;

#[test]
fn vmspawn_looks_for_profiles_and_gives_a_socket_that_listens() -> Result<()> {
    for peer in NEWER {
        let place = Place::of(&peer)?;
        // It does not look at the exit status.
        let profiles = place.run("swtpm_setup --tpm2 --print-profiles")?;
        let profiles: Value = serde_json::from_slice(&profiles.stdout)?;
        assert!(profiles["builtin"].is_array(), "{peer:?}");
        place.good(
            "swtpm_setup --tpm-state DIR/state --tpm2 --pcr-banks sha256 --ecc --createek \
             --create-ek-cert --create-platform-cert --not-overwrite --config DIR/swtpm_setup.conf \
             --logfile /dev/null",
        )?;
        let listener = UnixListener::bind(place.path("s"))?;
        // A number that none of the secrets gets, for it to come along.
        let number = nix::fcntl::fcntl(&listener, FcntlArg::F_DUPFD(FIRST_OF_LISTENERS))?;
        let line =
            format!("swtpm socket --tpm2 --tpmstate dir=DIR/state --ctrl type=unixio,fd={number}");
        let served = place.serve(&line, "s");
        nix::unistd::close(number)?;
        let _served = served?;
        place.good("swtpm_ioctl --unix DIR/s -i")?;
    }
    Ok(())
}

#[test]
fn a_tpm_that_packer_killed_comes_back_and_quickemus_is_started() -> Result<()> {
    for peer in ALL {
        let place = Place::of(&peer)?;
        let packer = "swtpm socket --tpmstate dir=DIR/state --ctrl type=unixio,path=DIR/s --tpm2";
        let mut killed = place.serve(packer, "s")?;
        place.good("swtpm_ioctl --unix DIR/s -i")?;
        killed.0.kill()?;
        killed.0.wait()?;
        fs::remove_file(place.path("s")).context("the socket")?;
        let served = place.serve(
            "swtpm socket --ctrl type=unixio,path=DIR/s --terminate --tpmstate dir=DIR/state --tpm2 \
             --log level=20 --flags startup-clear",
            "s",
        )?;
        let on = until(|| place.good("swtpm_ioctl --unix DIR/s -e").is_ok());
        assert!(on, "{peer:?} is not started");
        drop(served);
    }
    Ok(())
}

#[test]
fn what_callers_abbreviate_is_understood_and_what_is_not_offered_is_refused() -> Result<()> {
    let ours = Place::of(&Peer::Ours)?;
    ours.good("swtpm socket --print-cap")?;
    // Of a version after 0.10.2, which does always so here.
    ours.good("swtpm socket --tpm2 --tpmstate dir=DIR/state,lock,fsync --print-states")?;
    for (line, why) in [
        (
            "swtpm socket --tpmstate dir=DIR/state --ctrl type=unixio,path=DIR/s",
            "add --tpm2",
        ),
        ("swtpm_setup --tpm-state DIR/state", "add --tpm2"),
        (
            "swtpm_setup --tpm2 --tpm-state DIR/state --profile-name x --profile-remove-disable check",
            "none",
        ),
        (
            "swtpm_setup --tpm2 --tpm-state DIR/state --take-ownership",
            "TPM 1.2",
        ),
        (
            "swtpm socket --tpm2 --tpmstate dir=DIR/state --ctrl type=unixio,path=DIR/s --profile name=x",
            "not offered",
        ),
        (
            "swtpm socket --tpm2 --tpmstate dir=DIR/state,backup --ctrl type=unixio,path=DIR/s",
            "backup is not offered",
        ),
        ("swtpm cuse -n x", "cuse is not offered"),
        (
            "swtpm socket --tpm2 --tpmstate dir=DIR/state --ctrl type=unixio,fd=99",
            "descriptor 99",
        ),
        (
            "swtpm_setup --tpm2 --tpm-state DIR/nowhere",
            "does it exist",
        ),
        (
            "swtpm_setup --tpm2 --tpm-state DIR/state --reconfigure",
            "no TPM's state",
        ),
        (
            "swtpm_setup --tpm2 --tpm-state DIR/state --pcr-banks md5",
            "none of the PCR banks",
        ),
    ] {
        let said = ours.refused(line)?;
        assert!(said.contains(why), "{line}: {said}");
        assert!(!ours.path("state/tpm2-00.permall").exists(), "{line}");
    }
    Ok(())
}

#[test]
fn configuration_files_are_written_for_a_user_and_kept_if_they_are_there() -> Result<()> {
    for peer in ALL {
        let place = Place::of(&peer)?;
        for name in [
            "swtpm_setup.conf",
            "swtpm-localca.conf",
            "swtpm-localca.options",
        ] {
            fs::remove_file(place.path(name))?;
        }
        place.refused("swtpm_setup --create-config-files skip-if-exist")?;
        place.good("swtpm_setup --create-config-files root,skip-if-exist")?;
        let written = fs::read_to_string(place.path("swtpm_setup.conf"))?;
        assert!(written.contains("create_certs_tool = "), "{peer:?}");
        assert!(place.path("var/lib/swtpm-localca").is_dir(), "{peer:?}");
        place.refused("swtpm_setup --create-config-files root")?;
        place.good("swtpm_setup --create-config-files root,skip-if-exist")?;
        place.good("swtpm_setup --create-config-files=root,overwrite")?;
        place.good("swtpm_setup --tpm2 --tpm-state DIR/state --create-ek-cert")?;
    }
    Ok(())
}

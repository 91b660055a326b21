//! Other users of the same folders.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::Result;

use crate::peers::{Peer, Place};

#[test]
fn links_in_place_of_logs_process_ids_and_sockets_are_not_followed() -> Result<()> {
    let place = Place::of(&Peer::Ours)?;
    fs::write(place.path("victim"), "precious")?;
    for name in ["state/.lock", "log", "pid", "s"] {
        symlink(place.path("victim"), place.path(name))?;
        let why = place.refused(
            "swtpm socket --tpm2 --tpmstate dir=DIR/state --ctrl type=unixio,path=DIR/s \
             --log file=DIR/log,truncate --pid file=DIR/pid",
        )?;
        assert_eq!(
            fs::read_to_string(place.path("victim"))?,
            "precious",
            "{name}: {why}"
        );
        fs::remove_file(place.path(name))?;
        for left in ["log", "pid"] {
            let _ = fs::remove_file(place.path(left));
        }
    }
    symlink(place.path("victim"), place.path("log"))?;
    place.refused("swtpm_setup --tpm2 --tpm-state DIR/state --logfile DIR/log")?;
    assert_eq!(fs::read_to_string(place.path("victim"))?, "precious");
    Ok(())
}

#[test]
fn a_file_that_is_no_socket_is_not_removed_and_a_failed_setup_leaves_the_state() -> Result<()> {
    let place = Place::of(&Peer::Ours)?;
    fs::write(place.path("s"), "a file")?;
    place.refused("swtpm socket --tpm2 --tpmstate dir=DIR/state --ctrl type=unixio,path=DIR/s")?;
    assert_eq!(fs::read_to_string(place.path("s"))?, "a file");
    place.good("swtpm_setup --tpm2 --tpm-state DIR/state")?;
    let before = fs::read(place.path("state/tpm2-00.permall"))?;
    let broken = "create_certs_tool = /bin/false\n";
    fs::write(place.path("swtpm_setup.conf"), broken)?;
    place.refused("swtpm_setup --tpm2 --tpm-state DIR/state --create-ek-cert --overwrite")?;
    assert_eq!(before, fs::read(place.path("state/tpm2-00.permall"))?);
    Ok(())
}

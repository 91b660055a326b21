//! What callers hand over stays in their hands, too: whatever its close waits for, the manager serves on.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use test_support::descriptors::{lingering, send_along};
use vrot_handover::channel::Channel;
use vrot_handover::message::ToManager;
use vrot_handover::set_up::Existing;

use crate::support::stand_in::Domain;
use crate::support::{Host, TENANT, wait_until};

/// On a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(20);
/// More than the manager's runtime has threads.
const TIMES: usize = 6;

#[test]
fn descriptors_whose_close_lingers_keep_neither_the_api_nor_the_handover_waiting() -> Result<()> {
    let host = Host::enrolled_with(&format!("[swtpm]\ntenant = \"{TENANT}\"\n"))?;
    let domain = Domain::new(&host, "web")?;
    let open = || -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", host.manager()?))?.count())
    };
    let before = open()?;
    let check = minicbor::to_vec(ToManager::Check { lock: None })?;
    let get = b"GET /v1/vrots HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for way in [
        "shown",
        "several",
        "unread at the handover",
        "with a request",
        "unread at the API",
    ] {
        let mut peers = Vec::new();
        for _ in 0..TIMES {
            let (one, first_peer) = lingering()?;
            let (other, second_peer) = lingering()?;
            peers.extend([first_peer, second_peer]);
            // So that it is the manager that has them last.
            host.signal(Signal::SIGSTOP)?;
            let both = [one.as_raw_fd(), other.as_raw_fd()];
            let channel = Channel::connect(&domain.manager)?;
            let mut stream = UnixStream::connect(host.socket())?;
            match way {
                "shown" => {
                    send_along(channel.as_fd(), &check, &both[..1])?;
                    let channel = Channel::connect(&domain.manager)?;
                    send_along(channel.as_fd(), &check, &both[1..])?;
                }
                "several" => send_along(channel.as_fd(), &check, &both)?,
                "unread at the handover" => {
                    channel.send(&ToManager::Written, None)?;
                    send_along(channel.as_fd(), &check, &both)?;
                }
                "with a request" => send_along(stream.as_fd(), get, &both)?,
                _ => {
                    stream.write_all(b"nonsense\r\n\r\n")?;
                    send_along(stream.as_fd(), get, &both)?;
                }
            }
            drop((one, other));
            host.signal(Signal::SIGCONT)?;
            if way == "with a request" {
                stream.set_read_timeout(Some(SLACK))?;
                ensure!(stream.read(&mut [0; 16])? > 0, "no answer");
            }
        }
        let mut caller = UnixStream::connect(host.socket())?;
        caller.set_read_timeout(Some(SLACK))?;
        caller.write_all(get)?;
        let answered = caller.read(&mut [0; 16]);
        ensure!(answered.is_ok(), "{way}: the API waits");
        domain.set_up(Existing::Keep)?;
        drop(peers);
        wait_until("that all are closed", || Ok(open()? <= before + 4))?;
    }
    Ok(())
}

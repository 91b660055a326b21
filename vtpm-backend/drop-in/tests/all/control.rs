//! All of `swtpm_ioctl`, each implementation's with each implementation's TPM.

use std::os::unix::net::UnixStream;

use anyhow::Result;

use crate::peers::{ALL, Peer, Place, free_ports};

/// A line, and whether it succeeds; output that differs between releases is not compared.
const SESSION: [(&str, bool); 19] = [
    ("-e", false),
    ("-i", true),
    ("-e", true),
    ("-g", true),
    ("-b 0", true),
    ("-h abc", true),
    ("-e", true),
    ("-r 3", true),
    ("-l 4", true),
    ("-l 5", false),
    ("-v", true),
    ("-C", true),
    ("--save permanent DIR/p", true),
    ("--save volatile DIR/v", true),
    ("--save nonsense DIR/n", false),
    ("--stop", true),
    ("--load permanent DIR/p", true),
    ("--load volatile DIR/v", true),
    ("-i", true),
];

#[test]
fn every_request_is_answered_alike_by_every_tpm_to_every_client() -> Result<()> {
    let mut sessions = Vec::new();
    for server in ALL {
        for client in ALL {
            let place = Place::of(&server)?;
            let mut served = place.serve(
                "swtpm socket --ctrl type=unixio,path=DIR/s --tpmstate dir=DIR/state --tpm2",
                "s",
            )?;
            let mut said = Vec::new();
            for (request, succeeds) in SESSION {
                // One that is off says of ours that no launch took place.
                if request == "-e" && !succeeds {
                    continue;
                }
                let line = format!("swtpm_ioctl --unix DIR/s {request}");
                let output = place.run_with(&client, &line)?;
                assert_eq!(
                    output.status.success(),
                    succeeds,
                    "{server:?} {client:?} {request}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                said.push(String::from_utf8(output.stdout)?);
            }
            assert!(
                place
                    .run_with(&client, "swtpm_ioctl --unix DIR/s -s")?
                    .status
                    .success()
            );
            assert!(served.ended()?, "{server:?} {client:?}");
            sessions.push(said);
        }
    }
    assert!(
        sessions.windows(2).all(|two| two[0] == two[1]),
        "{sessions:#?}"
    );
    Ok(())
}

#[test]
fn a_tpm_is_reached_by_network_and_describes_itself() -> Result<()> {
    for peer in ALL {
        let place = Place::of(&peer)?;
        let port = free_ports(1)?;
        let line = format!(
            "swtpm socket --ctrl type=tcp,port={port} --tpmstate dir=DIR/state --tpm2 --pid file=DIR/pid"
        );
        let mut served = place.serve(&line, "pid")?;
        let info = place.json(&format!("swtpm_ioctl --tcp :{port} --info 1"))?;
        assert_eq!(info["TPMSpecification"]["family"], "2.0", "{peer:?}");
        place.good(&format!("swtpm_ioctl --tcp 127.0.0.1:{port} -s"))?;
        assert!(served.ended()?);
    }
    Ok(())
}

#[test]
fn a_tpm_that_is_to_end_with_its_connection_does() -> Result<()> {
    for peer in ALL {
        let place = Place::of(&peer)?;
        let mut served = place.serve(
            "swtpm socket --server type=unixio,path=DIR/data --tpmstate dir=DIR/state --tpm2 \
             --flags not-need-init --terminate",
            "data",
        )?;
        drop(UnixStream::connect(place.path("data"))?);
        assert!(served.ended()?, "{peer:?}");
    }
    for peer in [Peer::New, Peer::Ours] {
        let place = Place::of(&peer)?;
        let mut served = place.serve(
            "swtpm socket --ctrl type=unixio,path=DIR/s,terminate --tpmstate dir=DIR/state --tpm2",
            "s",
        )?;
        place.good("swtpm_ioctl --unix DIR/s -c")?;
        assert!(served.ended()?, "{peer:?}");
    }
    Ok(())
}

//! What VirtualBox and bhyve say to the swtpm that somebody started for them, byte by byte, and how much of
//! each answer they read at a time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::peers::{ALL, Place, free_ports};

const STARTUP: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16];
/// A command of 3,968 bytes, as much as there is room for in a command response buffer; too long for what
/// it asks.
const LONGEST: usize = 3968;
const PATIENCE: Duration = Duration::from_secs(20);

// Requests of the control channel (tpm_ioctl.h).
const GET_CAPABILITY: u32 = 1;
const INIT: u32 = 2;
const SHUTDOWN: u32 = 3;
const GET_ESTABLISHED: u32 = 4;
const SET_LOCALITY: u32 = 5;
const CANCEL: u32 = 9;
const RESET_ESTABLISHED: u32 = 11;
const SET_BUFFER_SIZE: u32 = 17;
const GET_INFO: u32 = 18;

#[test]
fn virtualbox_finds_its_tpm_by_two_ports_and_reads_answers_in_parts() -> Result<()> {
    for peer in ALL {
        let place = Place::of(&peer)?;
        let control = free_ports(2)?;
        let data = control + 1;
        let line = format!(
            "swtpm socket --tpmstate dir=DIR/state --ctrl type=tcp,port={control} \
             --server type=tcp,port={data} --tpm2 --pid file=DIR/pid"
        );
        let mut served = place.serve(&line, "pid")?;
        let mut control = VirtualBox(connect(control)?);
        let capabilities = word(&control.ask(&[GET_CAPABILITY], 4)?)?;
        // What it demands of a TPM 2.0.
        assert_eq!(capabilities & 0x27ff & !0x50, 0x27af, "{peer:?}");
        let info = control.ask(&[GET_INFO, 0, 1, 0, 0], 8)?;
        let (total, part) = info.split_at(4);
        assert_eq!(total, part, "{peer:?}: it does not come whole");
        let info = control.read(word(part)?.try_into()?)?;
        let text = info.strip_suffix(&[0]).unwrap_or(&info);
        let info: Value = serde_json::from_slice(text)?;
        assert_eq!(info["TPMSpecification"]["family"], "2.0", "{peer:?}");
        let sizes = control.ask(&[SET_BUFFER_SIZE, 0], 12)?;
        let largest = word(&sizes[8..])?;
        control.ask(&[SET_BUFFER_SIZE, largest], 12)?;
        let mut commands = connect(data)?;

        control.ask(&[INIT, 0], 0)?;
        control.order_at(SET_LOCALITY, 0)?;
        assert_eq!(execute(&mut commands, &STARTUP)?.len(), 10, "{peer:?}");
        // Of this answer it reads five bytes, and takes the three that are left for the beginning of
        // the next one: they have to be zero.
        control.ask(&[GET_ESTABLISHED], 1)?;
        control.order_at(SET_LOCALITY, 3)?;
        control.order_at(RESET_ESTABLISHED, 3)?;
        control.ask(&[GET_ESTABLISHED], 1)?;
        control.order_at(SET_LOCALITY, 0)?;
        assert_eq!(execute(&mut commands, &GET_RANDOM)?.len(), 28, "{peer:?}");
        control.ask(&[CANCEL], 0)?;
        control.ask(&[SHUTDOWN], 0)?;
        assert!(served.ended()?, "{peer:?}");
    }
    Ok(())
}

#[test]
fn bhyve_talks_to_its_tpm_by_one_socket_and_comes_again_when_its_vm_is_reset() -> Result<()> {
    let mut said = Vec::new();
    for peer in ALL {
        let place = Place::of(&peer)?;
        place.good("swtpm_setup --tpm2 --tpm-state DIR/state")?;
        let _served = place.serve(
            "swtpm socket --tpm2 --tpmstate dir=DIR/state --server type=unixio,path=DIR/tpm.sock \
             --flags not-need-init",
            "tpm.sock",
        )?;
        let mut codes = Vec::new();
        for _ in 0..2 {
            let mut tpm = UnixStream::connect(place.path("tpm.sock"))?;
            tpm.set_read_timeout(Some(PATIENCE))?;
            for command in [&STARTUP[..], &GET_RANDOM, &longest()] {
                codes.push(in_one_read(&mut tpm, command)?);
            }
        }
        said.push(codes);
    }
    // Nobody says that the VM was reset: the second TPM2_Startup is refused by each.
    ensure!(said.windows(2).all(|two| two[0] == two[1]), "{said:x?}");
    assert_eq!(said[0], [0, 0, 0x95, 0x100, 0, 0x95]);
    Ok(())
}

/// Its end of the control channel.
struct VirtualBox(TcpStream);

impl VirtualBox {
    fn ask(&mut self, request: &[u32], length: usize) -> Result<Vec<u8>> {
        let bytes: Vec<u8> = request.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.0.write_all(&bytes)?;
        let result = self.read(4)?;
        ensure!(result == [0; 4], "{request:?}: {result:?}");
        self.read(length)
    }

    /// A request with one byte, a locality.
    fn order_at(&mut self, request: u32, locality: u8) -> Result<()> {
        let bytes = [&request.to_be_bytes()[..], &[locality]].concat();
        self.0.write_all(&bytes)?;
        let result = self.read(4)?;
        ensure!(result == [0; 4], "{request} at {locality}: {result:?}");
        Ok(())
    }

    fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// The header of the response first, then the rest.
fn execute(tpm: &mut TcpStream, command: &[u8]) -> Result<Vec<u8>> {
    tpm.write_all(command)?;
    let mut response = vec![0; 10];
    tpm.read_exact(&mut response)?;
    let length = word(&response[2..6])?.try_into()?;
    ensure!(response[6..] == [0; 4], "{response:?}");
    response.resize(length, 0);
    tpm.read_exact(&mut response[10..])?;
    Ok(response)
}

/// The response code of what one read brings, which is to be all.
fn in_one_read(tpm: &mut UnixStream, command: &[u8]) -> Result<u32> {
    tpm.write_all(command)?;
    let mut response = [0; 4096];
    let length = tpm.read(&mut response)?;
    ensure!(
        word(&response[2..6])? == u32::try_from(length)?,
        "half an answer"
    );
    word(&response[6..10])
}

fn longest() -> Vec<u8> {
    let mut command = GET_RANDOM.to_vec();
    command.resize(LONGEST, 0xaa);
    command[4..6].copy_from_slice(&[0x0f, 0x80]);
    command
}

fn word(bytes: &[u8]) -> Result<u32> {
    let bytes = bytes.first_chunk().context("four bytes")?;
    Ok(u32::from_be_bytes(*bytes))
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

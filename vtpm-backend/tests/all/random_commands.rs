//! Random commands of a guest and random requests of its VMM, with resets, saved states and ends of
//! the process between them: each is answered, and the TPM starts again with whatever came of them.
//!
//! `VROT_RANDOM_COMMANDS` sets how many, `VROT_RANDOM_SEED` where to begin; the same seed gives the
//! same sequence.

use std::env;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tpm_wire::host_commands::{HOST_EVIDENCE_READ, HOST_EVIDENCE_REQUEST};
use tpm_wire::{HEADER, Header, frame};

use crate::support::{
    Emulator, INIT, SHUTDOWN, STARTUP, STOP, Vmm, code, command, with_password, words,
};

const OWNER: u32 = 0x4000_0001;
const NULL: u32 = 0x4000_0007;
const LOCKOUT: u32 = 0x4000_000a;
const ENDORSEMENT: u32 = 0x4000_000b;
const PLATFORM: u32 = 0x4000_000c;
const INDEX: u32 = 0x0150_0000;
/// `TPM_RC_INITIALIZE`, `TPM_RC_FAILURE`
const INITIALIZE: u32 = 0x100;
pub(crate) const FAILURE: u32 = 0x101;
/// In a run of `make test`.
const COMMANDS: u64 = 3000;

#[test]
fn whatever_a_guest_and_its_vmm_do_is_answered_and_the_tpm_starts_again() -> Result<()> {
    let commands = number("VROT_RANDOM_COMMANDS", COMMANDS)?;
    let seed = number("VROT_RANDOM_SEED", 1)?;
    let folder = tempfile::tempdir()?;
    let mut bench = Bench::start(folder.path(), seed)?;
    let corpus = corpus();
    for count in 0..commands {
        bench
            .step(&corpus)
            .with_context(|| format!("seed {seed}, step {count}"))?;
    }
    bench.reset(0)
}

struct Bench<'f> {
    folder: &'f Path,
    emulator: Emulator,
    vmm: Vmm,
    random: Random,
}

impl<'f> Bench<'f> {
    fn start(folder: &'f Path, seed: u64) -> Result<Self> {
        let mut emulator = Emulator::ours(folder)?;
        let mut vmm = emulator.attach_and_init()?;
        vmm.execute(&STARTUP)?;
        let random = Random::new(seed);
        Ok(Self {
            folder,
            emulator,
            vmm,
            random,
        })
    }

    fn step(&mut self, corpus: &[Vec<u8>]) -> Result<()> {
        if self.random.below(20) == 0 {
            return self.request();
        }
        let command = self.random.changed(corpus);
        let response = self.vmm.execute(&command);
        let response = response.with_context(|| format!("{command:02x?}"))?;
        ensure!(response.len() <= 4096, "{command:02x?}");
        // A TPM that fails does so for good.
        ensure!(code(&response) != FAILURE, "{command:02x?}");
        Ok(())
    }

    fn request(&mut self) -> Result<()> {
        match self.random.below(14) {
            0 => self.reset(0),
            1 => self.reset(1),
            2 => {
                self.succeed(&[STOP])?;
                self.reset(0)
            }
            3 => {
                self.succeed(&[SHUTDOWN])?;
                self.vmm = self.emulator.attach()?;
                self.reset(0)
            }
            4 => {
                ensure!(self.emulator.end(Signal::SIGTERM)?.success(), "SIGTERM");
                self.again()
            }
            5 => {
                self.emulator.end(Signal::SIGKILL)?;
                self.again()
            }
            6 => self.vmm.control(&words(&[10]), 4).map(drop),
            7 => {
                let parts = [self.state(1)?, self.state(2)?];
                self.succeed(&[STOP])?;
                for (kind, part) in (1..).zip(parts) {
                    let length = u32::try_from(part.len())?;
                    let request = [words(&[13, 0, kind, length]), part].concat();
                    ensure!(self.vmm.control(&request, 4)? == [0; 4], "part {kind}");
                }
                self.succeed(&[INIT, 1])?;
                self.is_started()
            }
            8 => self.state(2).map(drop),
            9 => {
                let locality = u32::try_from(self.random.below(6))? << 24;
                self.vmm.control(&words(&[5, locality]), 4).map(drop)
            }
            10 => {
                self.vmm.control(&words(&[6]), 4)?;
                let data = [words(&[7, 4]), vec![7; 4]].concat();
                self.vmm.control(&data, 4)?;
                self.vmm.control(&words(&[8]), 4).map(drop)
            }
            11 => self.vmm.control(&words(&[9]), 4).map(drop),
            12 => self.vmm.control(&words(&[4]), 8).map(drop),
            _ => {
                // Garbage in place of a state: refused, and what was there goes on.
                self.succeed(&[STOP])?;
                let garbage = self.random.bytes(200);
                let length = u32::try_from(garbage.len())?;
                let request = [words(&[13, 0, 1, length]), garbage].concat();
                ensure!(self.vmm.control(&request, 4)? != [0; 4], "garbage");
                self.reset(0)
            }
        }
    }

    /// A new process beside the same folder.
    fn again(&mut self) -> Result<()> {
        self.emulator = Emulator::ours(self.folder)?;
        self.vmm = self.emulator.attach()?;
        self.reset(0)
    }

    fn reset(&mut self, flags: u32) -> Result<()> {
        self.succeed(&[INIT, flags])?;
        self.is_started()
    }

    fn is_started(&mut self) -> Result<()> {
        let started = code(&self.vmm.execute(&STARTUP)?);
        // One that goes on where it was needs no start.
        ensure!([0, INITIALIZE].contains(&started), "0x{started:x}");
        let random = code(&self.vmm.execute(&command(0x17b, &[0, 8]))?);
        ensure!(random == 0, "TPM2_GetRandom: 0x{random:x}");
        Ok(())
    }

    fn succeed(&mut self, request: &[u32]) -> Result<()> {
        let answer = self.vmm.control(&words(request), 4)?;
        ensure!(answer == [0; 4], "{request:?}: {answer:?}");
        Ok(())
    }

    fn state(&mut self, kind: u32) -> Result<Vec<u8>> {
        let head = self.vmm.control(&words(&[12, 1, kind, 0]), 16)?;
        ensure!(head.get(..4) == Some(&[0; 4]), "part {kind}: {head:?}");
        let length = head.last_chunk().copied().map(u32::from_be_bytes);
        self.vmm
            .answer(usize::try_from(length.context("a length")?)?)
    }
}

/// Commands that do something, to begin with.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = vec![
        command(0x17b, &[0, 8]),
        command(0x145, &[0, 0]),
        command(0x145, &[0, 1]),
        command(0x144, &[0, 1]),
        command(0x143, &[1]),
        command(0x181, &[]),
        command(0x17c, &[]),
        command(HOST_EVIDENCE_REQUEST, &[7; 34]),
        command(HOST_EVIDENCE_READ, &[0; 12]),
        // Sessions: a policy, and what is done with it.
        command(
            0x176,
            &[
                &words(&[NULL, NULL])[..],
                &[0, 16],
                &[7; 16],
                &[0, 0, 1, 0, 0x10, 0, 0x0b],
            ]
            .concat(),
        ),
        command(0x165, &words(&[0x0300_0000])),
        command(0x165, &words(&[0x8000_0000])),
        command(0x162, &words(&[0x0300_0000])),
        command(0x180, &words(&[0x0300_0000])),
        command(0x189, &words(&[0x0300_0000])),
        command(0x16b, &words(&[0x0300_0000])),
        // An ECC key under each hierarchy.
        ecc_key(OWNER),
        ecc_key(NULL),
        ecc_key(ENDORSEMENT),
        with_password(0x120, &[OWNER, 0x8000_0000], &words(&[0x8100_0001])),
        command(0x173, &words(&[0x8000_0000])),
        with_password(0x126, &[PLATFORM], &[]),
        with_password(0x139, &[LOCKOUT], &[]),
        with_password(0x13a, &[LOCKOUT], &words(&[3, 1000, 1000])),
        with_password(0x12f, &[OWNER], &[0, 64, 0, 0x0b]),
        with_password(0x13d, &[0], &[]),
        with_password(0x13d, &[16], &[]),
        command(0x186, &[0, 0, 0, 0x0b]),
    ];
    for capability in 0..10 {
        corpus.push(command(0x17a, &words(&[capability, 0, 64])));
    }
    for pcr in [0, 7, 16, 23] {
        let extend = [&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat();
        corpus.push(with_password(0x182, &[pcr], &extend));
    }
    // Ordinary, counter, bits, extend; orderly ones, and protected ones.
    for (number, attributes) in [
        0x0202_0002u32,
        0x0202_0012,
        0x0202_0022,
        0x0202_0042,
        0x0602_0002,
        0x0602_0012,
        0x0004_0004,
    ]
    .into_iter()
    .enumerate()
    {
        let index = INDEX + u32::try_from(number).unwrap_or(0);
        let size = if attributes & 0x40 == 0 { 8 } else { 32 };
        let public = [
            &[0, 0, 0, 14][..],
            &index.to_be_bytes(),
            &[0, 0x0b],
            &attributes.to_be_bytes(),
            &[0, 0, 0, size],
        ]
        .concat();
        corpus.push(with_password(0x12a, &[OWNER], &public));
        let holder = if attributes & 4 == 0 { OWNER } else { index };
        let data = [&[0, 8][..], &[7; 8], &[0, 0]].concat();
        corpus.push(with_password(0x137, &[holder, index], &data));
        corpus.push(with_password(0x134, &[holder, index], &[]));
        corpus.push(with_password(0x136, &[holder, index], &[0, 2, 7, 7]));
        corpus.push(with_password(0x135, &[holder, index], &[0; 8]));
        corpus.push(with_password(0x14e, &[holder, index], &[0, 8, 0, 0]));
        corpus.push(with_password(0x122, &[OWNER, index], &[]));
        corpus.push(command(0x169, &words(&[index])));
    }
    corpus
}

/// `TPM2_CreatePrimary` of a P-256 signing key.
fn ecc_key(hierarchy: u32) -> Vec<u8> {
    let public = [
        &[0, 0x23, 0, 0x0b, 0, 0x04, 0, 0x72, 0, 0][..],
        &[0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10, 0, 0, 0, 0],
    ]
    .concat();
    let length = [0, u8::try_from(public.len()).unwrap_or(0)];
    let parameters = [&[0, 4, 0, 0, 0, 0][..], &length, &public, &[0; 6]].concat();
    with_password(0x131, &[hierarchy], &parameters)
}

/// xorshift
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(1);
        usize::try_from((self.next() >> 16) % end).unwrap_or(0)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = 1 + self.below(most);
        (0..length)
            .map(|_| self.next().to_be_bytes().first().copied().unwrap_or(0))
            .collect()
    }

    /// One of these, as it is or changed, with a header that states its length.
    pub(crate) fn changed(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let command = corpus.get(self.below(corpus.len()));
        let mut command = command.cloned().unwrap_or_default();
        for _ in 0..self.below(4) {
            let at = self.below(command.len() + 1);
            match self.below(5) {
                0 => {
                    let bytes = self.bytes(4);
                    command.splice(at..at, bytes);
                }
                1 => command.truncate(at.max(10)),
                _ => {
                    let byte = self.bytes(1);
                    if let (Some(place), Some(byte)) = (command.get_mut(at), byte.first()) {
                        *place = *byte;
                    }
                }
            }
        }
        // Tag and code stay what they became.
        let (tag, code) =
            Header::parse(&command).map_or((0, 0), |header| (header.tag, header.code));
        frame(tag, code, command.get(HEADER..).unwrap_or_default())
    }
}

pub(crate) fn number(variable: &str, default: u64) -> Result<u64> {
    match env::var(variable) {
        Ok(value) => value.parse().with_context(|| variable.to_owned()),
        Err(_) => Ok(default),
    }
}

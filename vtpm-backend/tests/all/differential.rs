//! The same bytes to swtpm and to this backend: the same answers, but for what is random and for
//! what is different on purpose.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::support::{Emulator, STARTUP, Vmm, command, with_password, words};

const OWNER: u32 = 0x4000_0001;
const NULL: u32 = 0x4000_0007;
const ENDORSEMENT: u32 = 0x4000_000b;

/// What has to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Same {
    /// Every byte.
    All,
    /// Response code and length: the rest is made of seeds, random numbers or time.
    CodeAndLength,
    /// The response code: keys and tickets have many lengths.
    Code,
}

#[test]
fn commands_get_the_answers_that_swtpm_gives() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut ours, mut theirs) = pair(folder.path())?;
    let mut different = Vec::new();
    for (name, bytes, same) in commands()? {
        let (our, their) = (ours.execute(&bytes)?, theirs.execute(&bytes)?);
        let agree = match same {
            Same::All => our == their,
            Same::CodeAndLength => our.len() == their.len() && code(&our) == code(&their),
            Same::Code => code(&our) == code(&their),
        };
        if !agree {
            different.push(format!(
                "{name}:\n  ours  {}\n  swtpm {}",
                hex(&our),
                hex(&their)
            ));
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

#[test]
fn only_what_tells_of_vendor_commands_differs_in_capabilities() -> Result<()> {
    /// `TPM_PT_TOTAL_COMMANDS` and `TPM_PT_VENDOR_COMMANDS`
    const COUNTS: [u32; 2] = [0x129, 0x12b];
    /// The two commands with the vendor bit, and without it for Linux before 6.12.
    const OURS: [u32; 4] = [0x5652, 0x5653, 0x2000_5652, 0x2000_5653];
    let folder = tempfile::tempdir()?;
    let (mut ours, mut theirs) = pair(folder.path())?;
    let startup = STARTUP.to_vec();
    ours.execute(&startup)?;
    theirs.execute(&startup)?;
    for kind in 0..=9 {
        for first in [0, 0x100, 0x200, 0x8000_0000] {
            let query = command(0x17a, &words(&[kind, first, 1000]));
            let (our, their) = (ours.execute(&query)?, theirs.execute(&query)?);
            if our == their {
                ensure!(!(kind == 2 && first == 0), "no vendor commands are listed");
                continue;
            }
            match kind {
                // TPM_CAP_COMMANDS: TPMA_CC, without the attributes.
                2 => {
                    let codes = |list: &[u8]| -> BTreeSet<u32> {
                        entries(list, 1)
                            .map(|entry| entry.concat_word(0) & 0x2000_ffff)
                            .collect()
                    };
                    let more: BTreeSet<u32> =
                        codes(&our).difference(&codes(&their)).copied().collect();
                    assert_eq!(more, OURS.into_iter().collect());
                    ensure!(codes(&their).is_subset(&codes(&our)));
                }
                // TPM_CAP_TPM_PROPERTIES
                6 => {
                    for (our, their) in entries(&our, 2).zip(entries(&their, 2)) {
                        let (property, value) = (our.concat_word(0), our.concat_word(1));
                        assert_eq!(property, their.concat_word(0));
                        let more = if COUNTS.contains(&property) { 4 } else { 0 };
                        let their = their.concat_word(1);
                        assert_eq!(value, their + more, "0x{property:x}");
                    }
                }
                other => anyhow::bail!("capability {other} from {first}: {}", hex(&our)),
            }
        }
    }
    Ok(())
}

#[test]
fn the_control_channel_answers_as_swtpm_does() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut ours, mut theirs) = (
        Emulator::ours(folder.path())?,
        Emulator::swtpm(folder.path())?,
    );
    let (mut our, mut their) = (ours.attach()?, theirs.attach()?);
    let mut wrong = Vec::new();
    for Exchange {
        name,
        request,
        expected,
    } in exchanges()
    {
        // Whatever comes, as much as a socket takes in one write.
        let (our, their) = (reply(&mut our, &request)?, reply(&mut their, &request)?);
        let fits = match &expected {
            Expected::Same => our == their,
            Expected::Blob { magic } => is_blob(&our, magic) && is_blob(&their, magic),
            // A difference that is gone is one that nobody has looked at.
            Expected::Different { ours, theirs, .. } => our == *ours && their == *theirs,
        };
        if !fits {
            let why = match expected {
                Expected::Same | Expected::Blob { .. } => "",
                Expected::Different { because, .. } => because,
            };
            let [our, their] = [our, their].map(|reply| hex(reply.get(..80).unwrap_or(&reply)));
            wrong.push(format!("{name} ({why}):\n  ours  {our}\n  swtpm {their}"));
        }
    }
    assert_eq!(wrong, [] as [String; 0], "{}", wrong.join("\n"));
    let startup = STARTUP.to_vec();
    assert_eq!(our.execute(&startup)?, their.execute(&startup)?);
    Ok(())
}

struct Exchange {
    name: &'static str,
    request: Vec<u8>,
    expected: Expected,
}

/// How the replies of both emulators compare.
enum Expected {
    /// Every byte.
    Same,
    /// Both are whole blobs, in which the library's begins with this.
    Blob { magic: [u8; 6] },
    /// On purpose.
    Different {
        ours: Vec<u8>,
        theirs: Vec<u8>,
        because: &'static str,
    },
}

/// In their order: what went before matters.
fn exchanges() -> Vec<Exchange> {
    const BAD_ORDINAL: u32 = 10;
    let same = |name, request| Exchange {
        name,
        request,
        expected: Expected::Same,
    };
    let different = |name, request: &[u32], ours: &[u32], theirs: &[u32], because| Exchange {
        name,
        request: words(request),
        expected: Expected::Different {
            ours: words(ours),
            theirs: words(theirs),
            because,
        },
    };
    let blob = |name, kind, magic| Exchange {
        name,
        request: words(&[12, 1, kind, 0]),
        expected: Expected::Blob { magic },
    };
    let locality = |code, locality| [words(&[code]), vec![locality]].concat();
    vec![
        different(
            "GET_CAPABILITY",
            &[1],
            &[0, 0x0001_7fff],
            &[0, 0xffff],
            "LOCK_STORAGE is served, commands with a header of their own are not",
        ),
        same("GET_INFO", words(&[18, 0, 7, 0, 0])),
        same("GET_INFO from an offset", words(&[18, 0, 1, 10, 0])),
        same("GET_INFO of nothing", words(&[18, 0, 0, 0, 0])),
        same(
            "GET_INFO of more than there is",
            words(&[18, 1, 0xff, 0, 0]),
        ),
        same("GET_INFO beyond its end", words(&[18, 0, 1, 1000, 0])),
        different(
            "LOCK_STORAGE",
            &[19, 300],
            &[0],
            &[BAD_ORDINAL],
            "swtpm has it since 0.8",
        ),
        same("STOP before INIT", words(&[14])),
        different(
            "GET_STATEBLOB before INIT",
            &[12, 1, 2, 0],
            &[0x800, 0, 0, 0],
            &[BAD_ORDINAL],
            "there is none: a VM that was never started can move",
        ),
        same("SET_STATEBLOB of nothing", words(&[13, 0, 1, 0])),
        same(
            "SET_STATEBLOB of nonsense",
            words(&[13, 0, 1, 4, 0x6162_6364]),
        ),
        same(
            "SET_STATEBLOB of another version",
            [
                words(&[13, 0, 1, 11]),
                vec![3, 3, 0, 10, 0, 0, 0, 0, 0, 11, 0],
            ]
            .concat(),
        ),
        same(
            "SET_STATEBLOB under a key that is not there",
            [
                words(&[13, 0, 1, 11]),
                vec![2, 1, 0, 10, 0, 2, 0, 0, 0, 11, 0],
            ]
            .concat(),
        ),
        same("SET_BUFFERSIZE, query", words(&[17, 0])),
        same("SET_BUFFERSIZE 3968", words(&[17, 3968])),
        same("SET_BUFFERSIZE too small", words(&[17, 1])),
        same("SET_BUFFERSIZE too large", words(&[17, 100_000])),
        same("INIT", words(&[2, 0])),
        same("INIT again", words(&[2, 0])),
        same("GET_TPMESTABLISHED", words(&[4])),
        same("SET_LOCALITY 4", locality(5, 4)),
        same("SET_LOCALITY 5", locality(5, 5)),
        same("SET_LOCALITY 0", locality(5, 0)),
        same("SET_LOCALITY 0, padded", words(&[5, 0])),
        same("HASH_START", words(&[6])),
        same("HASH_DATA", [words(&[7, 4]), b"boot".to_vec()].concat()),
        same("HASH_END", words(&[8])),
        same("GET_TPMESTABLISHED after a hash", words(&[4])),
        same("RESET_TPMESTABLISHED from locality 3", locality(11, 3)),
        same("GET_TPMESTABLISHED after its reset", words(&[4])),
        same("CANCEL_TPM_CMD", words(&[9])),
        same("STORE_VOLATILE", words(&[10])),
        blob(
            "GET_STATEBLOB of the permanent state",
            1,
            [0, 3, 0xab, 0x36, 0x47, 0x23],
        ),
        blob(
            "GET_STATEBLOB of the volatile state",
            2,
            [0, 4, 0x45, 0x63, 0x78, 0x89],
        ),
        same("GET_STATEBLOB of a saved state", words(&[12, 1, 3, 0])),
        same("GET_STATEBLOB of no kind", words(&[12, 1, 9, 0])),
        same(
            "SET_STATEBLOB while on",
            [words(&[13, 0, 1, 3]), b"abc".to_vec()].concat(),
        ),
        same("GET_CONFIG", words(&[15])),
        same("STOP", words(&[14])),
        same("INIT after STOP", words(&[2, 0])),
        same("an unknown request", words(&[0x1234])),
    ]
}

/// A sequence of numbers, lengths and kinds (`blobheader` and `tlv_header` of swtpm).
const SWTPM_HEADER: usize = 22;

/// Whether a reply is a whole blob, in which what the library wrote begins so.
fn is_blob(reply: &[u8], magic: &[u8; 6]) -> bool {
    let (head, blob) = reply.split_at_checked(16).unwrap_or_default();
    let length = u32::try_from(blob.len()).unwrap_or(u32::MAX);
    let state = blob.get(SWTPM_HEADER..).unwrap_or_default();
    head == words(&[0, 0, length, length]) && state.starts_with(magic)
}

/// What one read brings.
fn reply(vmm: &mut Vmm, request: &[u8]) -> Result<Vec<u8>> {
    vmm.control.write_all(request)?;
    let mut reply = vec![0; 512 * 1024];
    let length = vmm.control.read(&mut reply)?;
    reply.truncate(length);
    Ok(reply)
}

/// Both emulators, switched on.
fn pair(folder: &Path) -> Result<(Attached, Attached)> {
    Ok((
        Attached::new(Emulator::ours(folder)?)?,
        Attached::new(Emulator::swtpm(folder)?)?,
    ))
}

struct Attached {
    vmm: Vmm,
    _emulator: Emulator,
}

impl Attached {
    fn new(mut emulator: Emulator) -> Result<Self> {
        Ok(Self {
            vmm: emulator.attach_and_init()?,
            _emulator: emulator,
        })
    }

    fn execute(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.vmm.execute(bytes)
    }
}

type Case = (&'static str, Vec<u8>, Same);

fn commands() -> Result<Vec<Case>> {
    let index = 0x0150_0000;
    let pcr_read = command(0x17e, &[0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0xff, 0xff]);
    let extend = |pcr| {
        with_password(
            0x182,
            &[pcr],
            &[&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat(),
        )
    };
    let read_index = with_password(0x14e, &[OWNER, index], &[0, 8, 0, 0]);
    let startup = STARTUP.to_vec();
    let all = Same::All;
    Ok(vec![
        ("before TPM2_Startup", pcr_read.clone(), all),
        ("TPM2_ReadClock too early", command(0x181, &[]), all),
        ("TPM2_Startup", startup.clone(), all),
        ("TPM2_Startup twice", startup.clone(), all),
        ("TPM2_SelfTest", command(0x143, &[1]), all),
        ("TPM2_GetTestResult", command(0x17c, &[]), all),
        ("TPM2_IncrementalSelfTest", command(0x142, &[0; 4]), all),
        ("TPM2_PCR_Read", pcr_read.clone(), all),
        ("TPM2_PCR_Extend", extend(16), all),
        ("TPM2_PCR_Extend of PCR 0", extend(0), all),
        ("TPM2_PCR_Extend of no PCR", extend(24), all),
        ("TPM2_PCR_Read after extending", pcr_read.clone(), all),
        ("TPM2_PCR_Reset", with_password(0x13d, &[16], &[]), all),
        (
            "TPM2_PCR_Reset of PCR 0",
            with_password(0x13d, &[0], &[]),
            all,
        ),
        ("TPM2_PCR_Read after a reset", pcr_read, all),
        (
            "TPM2_GetRandom",
            command(0x17b, &[0, 16]),
            Same::CodeAndLength,
        ),
        ("TPM2_StirRandom", command(0x146, &[0, 4, 1, 2, 3, 4]), all),
        ("TPM2_ReadClock", command(0x181, &[]), Same::CodeAndLength),
        (
            "TPM2_NV_DefineSpace",
            with_password(0x12a, &[OWNER], &index_area(index)?),
            all,
        ),
        (
            "TPM2_NV_DefineSpace twice",
            with_password(0x12a, &[OWNER], &index_area(index)?),
            all,
        ),
        ("TPM2_NV_ReadPublic", command(0x169, &words(&[index])), all),
        ("TPM2_NV_Read unwritten", read_index.clone(), all),
        (
            "TPM2_NV_Write",
            with_password(
                0x137,
                &[OWNER, index],
                &[0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0],
            ),
            all,
        ),
        (
            "TPM2_NV_Write beyond the end",
            with_password(
                0x137,
                &[OWNER, index],
                &[0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1],
            ),
            all,
        ),
        ("TPM2_NV_Read", read_index, all),
        (
            "TPM2_NV_ReadPublic of none",
            command(0x169, &words(&[0x0150_ffff])),
            all,
        ),
        (
            "TPM2_NV_UndefineSpace",
            with_password(0x122, &[OWNER, index], &[]),
            all,
        ),
        (
            "TPM2_CreatePrimary, P-256",
            with_password(0x131, &[ENDORSEMENT], &p256_signing_key()),
            Same::CodeAndLength,
        ),
        (
            "TPM2_ReadPublic",
            command(0x173, &words(&[0x8000_0000])),
            Same::CodeAndLength,
        ),
        (
            "TPM2_ReadPublic of none",
            command(0x173, &words(&[0x8000_0007])),
            all,
        ),
        (
            "TPM2_Quote",
            with_password(
                0x158,
                &[0x8000_0000],
                &[0, 4, 1, 2, 3, 4, 0, 0x10, 0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0],
            ),
            Same::CodeAndLength,
        ),
        (
            "TPM2_EvictControl",
            with_password(0x120, &[OWNER, 0x8000_0000], &words(&[0x8100_0001])),
            all,
        ),
        (
            "TPM2_FlushContext",
            command(0x165, &words(&[0x8000_0000])),
            all,
        ),
        (
            "TPM2_FlushContext twice",
            command(0x165, &words(&[0x8000_0000])),
            all,
        ),
        (
            "TPM2_Hash",
            command(
                0x17d,
                &[&[0, 3, 1, 2, 3, 0, 0x0b][..], &words(&[NULL])].concat(),
            ),
            all,
        ),
        (
            "TPM2_StartAuthSession",
            command(
                0x176,
                &[
                    &words(&[NULL, NULL])[..],
                    &[0, 16],
                    &[0; 16],
                    &[0, 0, 1, 0, 0x10, 0, 0x0b],
                ]
                .concat(),
            ),
            Same::CodeAndLength,
        ),
        (
            "TPM2_PolicyGetDigest",
            command(0x189, &words(&[0x0300_0000])),
            all,
        ),
        (
            "TPM2_ContextSave",
            command(0x162, &words(&[0x0300_0000])),
            Same::Code,
        ),
        (
            "TPM2_DictionaryAttackLockReset",
            with_password(0x139, &[0x4000_000a], &[]),
            all,
        ),
        (
            "TPM2_HierarchyChangeAuth",
            with_password(0x129, &[OWNER], &[0, 1, 9]),
            all,
        ),
        (
            "with a wrong password",
            with_password(0x129, &[OWNER], &[0, 0]),
            all,
        ),
        ("TPM2_Clear", with_password(0x126, &[0x4000_000a], &[]), all),
        ("no such code", command(0x0000_0fff, &[]), all),
        ("an unknown vendor code", command(0x2000_0001, &[]), all),
        ("a wrong tag", unhex("80030000000a0000017b")?, all),
        ("cut-off parameters", command(0x17b, &[0]), all),
        ("parameters too many", command(0x17b, &[0, 16, 0]), all),
        (
            "sessions where none are",
            unhex("80020000000a0000017b")?,
            all,
        ),
        ("an empty command", unhex("80010000000a00000000")?, all),
        ("TPM2_Shutdown", command(0x145, &[0, 0]), all),
        ("TPM2_Startup after it", startup, all),
    ])
}

/// TPM2B_AUTH, TPM2B_NV_PUBLIC: eight bytes for the owner.
fn index_area(index: u32) -> Result<Vec<u8>> {
    let public = [
        &index.to_be_bytes()[..],
        &[0x00, 0x0b],
        &0x0202_0002u32.to_be_bytes(),
        &[0, 0, 0, 8],
    ]
    .concat();
    let size = u16::try_from(public.len())?;
    Ok([&[0, 0][..], &size.to_be_bytes(), &public].concat())
}

/// TPM2B_SENSITIVE_CREATE to TPML_PCR_SELECTION of a restricted P-256 signing key.
fn p256_signing_key() -> Vec<u8> {
    let public = [
        &[0, 0x23, 0, 0x0b][..],
        &0x0005_0072u32.to_be_bytes(),
        &[0, 0],
        // No symmetric cipher, ECDSA with SHA-256, P-256, no key derivation, two empty numbers.
        &[0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10, 0, 0, 0, 0],
    ]
    .concat();
    [
        &[0, 4, 0, 0, 0, 0][..],
        &u16::try_from(public.len()).unwrap_or(0).to_be_bytes(),
        &public,
        &[0, 0],
        &[0; 4],
    ]
    .concat()
}

fn code(response: &[u8]) -> u32 {
    response.get(6..).unwrap_or_default().concat_word(0)
}

/// The entries of a capability list, of so many words each.
fn entries(response: &[u8], words: usize) -> impl Iterator<Item = &[u8]> {
    // Header, moreData, capability, count.
    response
        .get(19..)
        .unwrap_or_default()
        .chunks_exact(4 * words)
}

trait Words {
    /// The word number `at`; zero, if there is none.
    fn concat_word(&self, at: usize) -> u32;
}

impl Words for [u8] {
    fn concat_word(&self, at: usize) -> u32 {
        self.chunks_exact(4)
            .nth(at)
            .and_then(|word| word.try_into().ok())
            .map_or(0, u32::from_be_bytes)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let byte = |at| text.get(at..at + 2).context("two digits");
    (0..text.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(byte(at)?, 16)?))
        .collect()
}

//! Registers and counter in a real (software) TPM: what a reset leaves, and what others can do.

use anyhow::Result;
use test_support::Swtpm;
use trust_anchor::{Held, NvAuth, NvCounter, NvRegister, REGISTER_SIZE, Retention, TrustAnchor};

use crate::config;

/// Numbers of the indices, which hosts in the field have.
const VOLATILE: u32 = 0x0180_5652;
const DURABLE: u32 = 0x0180_5653;
const COUNTER: u32 = 0x0180_5654;

struct Indices {
    volatile: NvRegister,
    durable: NvRegister,
    counter: NvCounter,
}

/// A TPM that its firmware started, and the registers as one manager after the other
/// opens them.
struct Host {
    tpm: Swtpm,
}

const ATTRIBUTES: &str = "ownerread|ownerwrite|authread|authwrite|no_da";

impl Host {
    fn new() -> Result<Self> {
        let tpm = Swtpm::blank()?;
        tpm.tool("tpm2_startup -c")?;
        Ok(Self { tpm })
    }

    fn indices(&self) -> Result<Indices> {
        self.indices_of(7)
    }

    /// For somebody whose authorization values are made from this.
    fn indices_of(&self, seed: u8) -> Result<Indices> {
        let anchor = TrustAnchor::start(&config(&self.tpm))?;
        let auth = |number: u8| NvAuth::new([seed.wrapping_add(number); 32]);
        Ok(Indices {
            volatile: anchor.register(Retention::Volatile, auth(0)),
            durable: anchor.register(Retention::Durable, auth(1)),
            counter: anchor.counter(auth(2)),
        })
    }

    /// The machine loses power and comes back.
    fn reset(&self) -> Result<()> {
        self.tpm.switch_off()?;
        self.tpm.switch_on()
    }

    /// What the TPM keeps where flash would be.
    fn flash(&self) -> Result<Vec<u8>> {
        self.tpm.read("state/tpm2-00.permall")
    }
}

fn both(indices: &Indices) -> Result<[Held<[u8; REGISTER_SIZE]>; 2]> {
    Ok([indices.volatile.read()?, indices.durable.read()?])
}

fn defined(host: &Host) -> Result<Indices> {
    let indices = host.indices()?;
    indices.volatile.define()?;
    indices.durable.define()?;
    Ok(indices)
}

#[test]
fn a_tpm_reset_empties_the_volatile_register_and_leaves_the_durable_one() -> Result<()> {
    let host = Host::new()?;
    assert_eq!(both(&host.indices()?)?, [Held::Absent, Held::Absent]);
    let indices = defined(&host)?;
    assert_eq!(both(&indices)?, [Held::Unwritten, Held::Unwritten]);
    indices.volatile.write(&[1; REGISTER_SIZE])?;
    indices.durable.write(&[2; REGISTER_SIZE])?;
    indices.volatile.write(&[3; REGISTER_SIZE])?;
    drop(indices);

    // Another manager process finds both.
    let written = [3, 2].map(|byte| Held::Written([byte; REGISTER_SIZE]));
    assert_eq!(both(&host.indices()?)?, written);

    host.reset()?;
    let after = [Held::Unwritten, Held::Written([2; REGISTER_SIZE])];
    assert_eq!(both(&host.indices()?)?, after);
    let indices = host.indices()?;
    indices.volatile.write(&[4; REGISTER_SIZE])?;
    let again = [4, 2].map(|byte| Held::Written([byte; REGISTER_SIZE]));
    assert_eq!(both(&indices)?, again);
    Ok(())
}

#[test]
fn a_tpm_that_went_away_during_a_write_is_written_when_it_is_back() -> Result<()> {
    let host = Host::new()?;
    let indices = defined(&host)?;
    indices.volatile.write(&[1; REGISTER_SIZE])?;
    indices.durable.write(&[1; REGISTER_SIZE])?;
    host.tpm.switch_off()?;
    for _ in 0..2 {
        assert!(indices.durable.write(&[2; REGISTER_SIZE]).is_err());
    }
    host.tpm.switch_on()?;
    indices.durable.write(&[2; REGISTER_SIZE])?;
    let after = [Held::Unwritten, Held::Written([2; REGISTER_SIZE])];
    assert_eq!(both(&indices)?, after);
    Ok(())
}

#[test]
fn only_the_durable_register_wears_flash() -> Result<()> {
    let host = Host::new()?;
    let indices = defined(&host)?;
    indices.volatile.write(&[1; REGISTER_SIZE])?;
    indices.durable.write(&[1; REGISTER_SIZE])?;
    let before = host.flash()?;
    for byte in 2..12 {
        indices.volatile.write(&[byte; REGISTER_SIZE])?;
    }
    assert!(host.flash()? == before, "a volatile write reached flash");
    indices.durable.write(&[2; REGISTER_SIZE])?;
    assert!(host.flash()? != before, "a durable write did not");
    Ok(())
}

#[test]
fn defining_again_changes_nothing() -> Result<()> {
    let host = Host::new()?;
    let indices = defined(&host)?;
    indices.volatile.write(&[1; REGISTER_SIZE])?;
    indices.durable.write(&[2; REGISTER_SIZE])?;
    drop(indices);
    let written = [1, 2].map(|byte| Held::Written([byte; REGISTER_SIZE]));
    assert_eq!(both(&defined(&host)?)?, written);
    Ok(())
}

#[test]
fn a_removed_index_is_absent_and_cannot_be_written() -> Result<()> {
    let host = Host::new()?;
    drop(defined(&host)?);
    host.tpm.tool(&format!("tpm2_nvundefine {DURABLE:#x}"))?;
    let indices = host.indices()?;
    let after = [Held::Unwritten, Held::Absent];
    assert_eq!(both(&indices)?, after);
    assert!(indices.durable.write(&[1; REGISTER_SIZE]).is_err());
    Ok(())
}

#[test]
fn nobody_else_reads_writes_or_imitates_an_index() -> Result<()> {
    let host = Host::new()?;
    drop(defined(&host)?);
    host.tpm.write("contents", [0; REGISTER_SIZE])?;
    for number in [VOLATILE, DURABLE] {
        for line in [
            format!("tpm2_nvwrite {number:#x} -C o -i contents"),
            format!("tpm2_nvwrite {number:#x} -C {number:#x} -i contents"),
            format!("tpm2_nvread {number:#x} -C o"),
            format!("tpm2_nvread {number:#x} -C {number:#x}"),
        ] {
            host.tpm.tool_fails(&line)?;
        }
    }
    // The owner removes them and defines them anew, as they were, with a value of his own.
    for (number, attributes) in [
        (VOLATILE, "authread|authwrite|no_da|orderly|clear_stclear"),
        (DURABLE, "authread|authwrite|no_da"),
    ] {
        host.tpm.tool(&format!("tpm2_nvundefine {number:#x}"))?;
        host.tpm.tool(&format!(
            "tpm2_nvdefine {number:#x} -C o -s 64 -p guess -a {attributes}"
        ))?;
        host.tpm.tool(&format!(
            "tpm2_nvwrite {number:#x} -C {number:#x} -P guess -i contents"
        ))?;
    }
    let indices = host.indices()?;
    assert_eq!(both(&indices)?, [Held::Foreign, Held::Foreign]);

    // A recovery takes them back.
    indices.volatile.define()?;
    indices.durable.define()?;
    assert_eq!(both(&indices)?, [Held::Unwritten, Held::Unwritten]);
    indices.durable.write(&[5; REGISTER_SIZE])?;
    drop(indices);
    let other = host.indices_of(77)?;
    assert_eq!(both(&other)?, [Held::Foreign, Held::Foreign]);
    Ok(())
}

#[test]
fn an_index_of_another_kind_is_foreign() -> Result<()> {
    let host = Host::new()?;
    host.tpm.tool(&format!(
        "tpm2_nvdefine {DURABLE:#x} -C o -s 64 -a {ATTRIBUTES}"
    ))?;
    host.tpm.tool(&format!(
        "tpm2_nvdefine {VOLATILE:#x} -C o -s 32 -a authread|authwrite"
    ))?;
    let found = both(&host.indices()?)?;
    assert_eq!(found, [Held::Foreign, Held::Foreign]);
    Ok(())
}

fn increment_above(host: &Host, highest: u64) -> Result<u64> {
    let value = host.indices()?.counter.increment_above(highest)?;
    assert_eq!(host.indices()?.counter.read()?, value);
    Ok(value)
}

#[test]
fn no_value_of_the_counter_comes_twice_whatever_becomes_of_the_counter() -> Result<()> {
    let host = Host::new()?;
    assert_eq!(host.indices()?.counter.read()?, 0);
    let undefine = format!("tpm2_nvundefine {COUNTER:#x}");
    let mut newest = 0;
    for (becomes, highest) in [
        ("", 1),
        ("", 0),
        (undefine.as_str(), 0),
        // What the store knows may be ahead of a counter, which catches up.
        ("", 20),
        ("tpm2_clear -c p", 0),
        (undefine.as_str(), 1),
    ] {
        if !becomes.is_empty() {
            host.tpm.tool(becomes)?;
        }
        let value = increment_above(&host, highest)?;
        assert!(value > newest.max(highest), "{becomes}: {value}");
        newest = value;
        host.reset()?;
    }
    Ok(())
}

#[test]
fn a_counter_of_somebody_else_is_replaced_and_gives_no_old_number() -> Result<()> {
    let host = Host::new()?;
    let newest = increment_above(&host, 5)?;
    for attributes in ["authread|authwrite|no_da|nt=counter", ATTRIBUTES] {
        host.tpm.tool(&format!("tpm2_nvundefine {COUNTER:#x}"))?;
        host.tpm.tool(&format!(
            "tpm2_nvdefine {COUNTER:#x} -C o -s 8 -p guess -a {attributes}"
        ))?;
        assert_eq!(host.indices()?.counter.read()?, 0);
    }
    assert!(increment_above(&host, 0)? > newest);
    host.tpm
        .tool_fails(&format!("tpm2_nvincrement {COUNTER:#x} -C {COUNTER:#x}"))?;
    Ok(())
}

/// Not a measurement, but a budget: on this machine a write is a matter of a millisecond.
#[test]
fn a_hundred_batches_leave_no_session_behind() -> Result<()> {
    let host = Host::new()?;
    let indices = defined(&host)?;
    for byte in 0..100 {
        indices.volatile.write(&[byte; REGISTER_SIZE])?;
    }
    drop(indices);
    for kind in ["handles-loaded-session", "handles-transient"] {
        let held = host.tpm.tool(&format!("tpm2_getcap {kind}"))?;
        assert_eq!(held.trim(), "", "{kind}");
    }
    Ok(())
}

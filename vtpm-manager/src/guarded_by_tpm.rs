//! The guarded state with a software TPM in the physical one's role and a file on disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use cert_chain::{Generation, VrotId};
use guarded_state::disk::{Batch, EmbeddedStore, Part};
use guarded_state::journal::{Guard, Journal, Opening};
use guarded_state::ledger::{AnchorPolicy, Boot, RollbackKeys};
use test_support::Swtpm;
use trust_anchor::{AnchorConfig, TrustAnchor};

use crate::registers::TpmRegisters;

fn created(vrot: VrotId) -> Batch {
    Batch::default()
        .put_record(vrot, Generation::new(1), b"a record".to_vec())
        .put(vrot, Part::Permanent, b"state 1".to_vec())
}

fn changed(vrot: VrotId, state: &[u8]) -> Batch {
    Batch::default().put(vrot, Part::Permanent, state.to_vec())
}

#[test]
fn a_real_tpm_tells_an_old_store_from_the_newest_over_a_reset() -> Result<()> {
    let tpm = Swtpm::blank()?;
    tpm.tool("tpm2_startup -c")?;
    let path = tpm.path("store");
    let guard = || -> Result<Guard> {
        let keys = RollbackKeys::derive(&[7; 32]);
        let config = AnchorConfig::new(tpm.tcti().parse()?, tpm.path("anchor.json"));
        let registers = TpmRegisters::new(&TrustAnchor::start(&config)?, &keys);
        Ok(Guard {
            registers: Box::new(registers),
            keys,
            policy: AnchorPolicy::default(),
        })
    };
    let open = |path: &Path| -> Result<Opening> { Ok(guard()?.open(&EmbeddedStore::open(path)?)?) };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let write = |batch: Batch| -> Result<()> {
        runtime.block_on(async {
            let store = Arc::new(EmbeddedStore::open(&path)?);
            let Opening::Opened { ledger, .. } = guard()?.open(store.as_ref())? else {
                bail!("not opened");
            };
            let journal = Journal::start_locked(store)?;
            journal.unlock(*ledger).await?;
            Ok(journal.commit(batch).await?)
        })
    };
    assert!(matches!(open(&path)?, Opening::Blank));
    drop(guard()?.initialise(&EmbeddedStore::open(&path)?)?);
    let vrot = VrotId::random();
    write(created(vrot))?;
    let old = fs::read(&path)?;
    write(changed(vrot, b"state 2"))?;
    let newest = fs::read(&path)?;

    let code = |opening: Opening| match opening {
        Opening::Refused(refused) => refused.refusal().code(),
        _ => "opened",
    };
    fs::write(&path, &old)?;
    assert_eq!(code(open(&path)?), "restored-store");
    tpm.switch_off()?;
    tpm.switch_on()?;
    assert_eq!(code(open(&path)?), "restored-store");
    fs::write(&path, &newest)?;
    let boot = match open(&path)? {
        Opening::Opened { boot, .. } => boot,
        other => bail!("{other:?}"),
    };
    assert_eq!(boot, Boot::AfterShutdown);
    write(changed(vrot, b"state 3"))?;

    tpm.tool("tpm2_clear -c p")?;
    assert_eq!(code(open(&path)?), "cleared-tpm");
    Ok(())
}

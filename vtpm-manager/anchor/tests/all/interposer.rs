//! Somebody on the bus between host and TPM: listening, and changing what passes.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use cert_chain::operator::PolicyKey;
use cert_chain::{Digest32, HashAlgorithm, make_credential};
use rcgen::SigningKey;
use test_support::Swtpm;
use trust_anchor::{
    AnchorError, HardwareError, Held, HostPublic, NvAuth, REGISTER_SIZE, Retention, TrustAnchor,
};

use crate::config;
use crate::tap::{Change, Tap};

/// Command codes (TPM 2.0 Part 2 §6.5.2).
const HASH: u32 = 0x17d;
const NV_READ: u32 = 0x14e;
const NV_WRITE: u32 = 0x137;
const PCR_READ: u32 = 0x17e;
const QUOTE: u32 = 0x158;
const READ_PUBLIC: u32 = 0x173;

/// Changes commands or responses with one code, once it is told to.
#[derive(Clone)]
struct Interposer(Arc<Mutex<Plan>>);

struct Plan {
    code: u32,
    /// Looked for in what passes, and what it becomes.
    replace: Option<(Vec<u8>, Vec<u8>)>,
    changed: u32,
}

impl Interposer {
    fn new(code: u32) -> Self {
        Self(Arc::new(Mutex::new(Plan {
            code,
            replace: None,
            changed: 0,
        })))
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, these bytes become those.
    fn replace(&self, from: &[u8], to: &[u8]) {
        self.plan().replace = Some((from.to_vec(), to.to_vec()));
    }

    /// From now on, nothing is changed.
    fn stop(&self) {
        self.plan().replace = None;
    }

    /// How often it did.
    fn changed(&self) -> u32 {
        self.plan().changed
    }

    fn change(&self, command: &[u8], bytes: &mut Vec<u8>) {
        let mut plan = self.plan();
        let Some((from, to)) = plan.replace.clone() else {
            return;
        };
        if command.get(6..10) != Some(&plan.code.to_be_bytes()) {
            return;
        }
        let at = bytes.windows(from.len()).position(|window| window == from);
        if let Some(at) = at {
            bytes.splice(at..at + from.len(), to);
            plan.changed += 1;
        }
    }
}

impl Change for Interposer {
    fn command(&mut self, command: &mut Vec<u8>) {
        let original = command.clone();
        self.change(&original, command);
    }

    fn response(&mut self, command: &[u8], response: &mut Vec<u8>) {
        self.change(command, response);
    }
}

/// A provisioned host with somebody on its bus.
struct Tapped {
    anchor: TrustAnchor,
    key: PolicyKey,
    public: HostPublic,
    interposer: Interposer,
    _tpm: Swtpm,
}

async fn tapped(code: u32) -> Result<Tapped> {
    let tpm = Swtpm::of_a_host()?;
    let interposer = Interposer::new(code);
    let tap = Tap::changing(&tpm.path("tap"), &tpm.socket(), interposer.clone())?;
    let mut config = config(&tpm);
    config.tpm = tap.tcti();
    let anchor = TrustAnchor::start(&config)?;
    let key = PolicyKey::generate()?;
    let public = anchor.provision(key.public()).await?;
    let values = anchor.pcr_values().await?;
    anchor.approve(key.approve("first", values)?).await?;
    anchor.make_root_secret().await?;
    Ok(Tapped {
        anchor,
        key,
        public,
        interposer,
        _tpm: tpm,
    })
}

#[tokio::test]
async fn secrets_are_not_seen_on_the_bus() -> Result<()> {
    let tpm = Swtpm::of_a_host()?;
    let tap = Tap::open(&tpm.path("tap"), &tpm.socket())?;
    let mut config = config(&tpm);
    config.tpm = tap.tcti();
    let anchor = TrustAnchor::start(&config)?;
    let key = PolicyKey::generate()?;
    let public = anchor.provision(key.public()).await?;
    let values = anchor.pcr_values().await?;
    let pcr = values.get(0).context("PCR 0")?;
    anchor.approve(key.approve("first", values)?).await?;
    let root = anchor.make_root_secret().await?;
    let credential = make_credential(&public.ek_public, &public.ik_public.name(), &[7; 32])?;
    let activated = anchor.activate_credential(&credential).await?;

    assert!(tap.saw(pcr.as_bytes()), "the tap hears what is not secret");
    assert!(!tap.saw(root.expose()));
    assert!(!tap.saw(&activated));
    Ok(())
}

#[tokio::test]
async fn a_message_changed_on_the_bus_is_not_signed() -> Result<()> {
    let host = tapped(HASH).await?;
    let signer = host.anchor.ik_signer(&host.public.ik_public);
    let interposer = host.interposer.clone();
    tokio::task::spawn_blocking(move || {
        signer.sign(b"a certificate for the VM")?;
        interposer.replace(b"for the VM", b"for the XM");
        ensure!(signer.sign(b"a certificate for the VM").is_err());
        let failure = signer.take_failure().context("no reason")?;
        ensure!(
            matches!(
                failure,
                AnchorError::Hardware(HardwareError::Altered { operation }) if operation.0 == "TPM2_Hash"
            ),
            "{failure}"
        );
        assert_eq!(interposer.changed(), 1);
        Ok(())
    })
    .await?
}

#[tokio::test]
async fn a_quote_changed_on_the_bus_is_not_handed_out() -> Result<()> {
    let host = tapped(QUOTE).await?;
    let nonce = Digest32::of(b"nonce");
    host.anchor.quote(nonce).await?;
    // On the way there: the TPM would quote for somebody else's nonce.
    host.interposer
        .replace(nonce.as_bytes(), Digest32::of(b"another").as_bytes());
    ensure!(host.anchor.quote(nonce).await.is_err());
    ensure!(host.interposer.changed() >= 1);
    Ok(())
}

#[tokio::test]
async fn pcr_values_changed_on_the_bus_are_not_shown_for_approval() -> Result<()> {
    let host = tapped(PCR_READ).await?;
    let values = host.anchor.pcr_values().await?;
    let pcr = values.get(0).context("PCR 0")?;
    host.interposer
        .replace(pcr.as_bytes(), Digest32::of(b"what is to come").as_bytes());
    ensure!(host.anchor.pcr_values().await.is_err());
    ensure!(host.anchor.policy().await.is_err());
    ensure!(host.interposer.changed() >= 2);
    // To choose an approval the values are a guess: a wrong one opens nothing.
    ensure!(matches!(
        host.anchor.root_secret().await,
        Err(AnchorError::PcrsNotApproved { .. })
    ));
    let mut lie = values.clone();
    lie.insert(0, HashAlgorithm::Sha256.hash(&[b"what is to come"]))?;
    host.anchor.approve(host.key.approve("lie", lie)?).await?;
    ensure!(host.anchor.root_secret().await.is_err());

    // When it is gone, all goes on.
    host.interposer.stop();
    host.anchor.root_secret().await?;
    assert_eq!(host.anchor.pcr_values().await?, values);
    Ok(())
}

#[tokio::test]
async fn a_register_changed_on_the_bus_is_not_believed() -> Result<()> {
    let host = tapped(NV_READ).await?;
    let interposer = host.interposer.clone();
    let anchor = host.anchor.clone();
    tokio::task::spawn_blocking(move || {
        let register = anchor.register(Retention::Durable, NvAuth::new([7; 32]));
        register.define()?;
        let contents = [9; REGISTER_SIZE];
        register.write(&contents)?;
        ensure!(register.read()? == Held::Written(contents));
        interposer.replace(&[9; 8], &[8; 8]);
        ensure!(register.read().is_err());
        ensure!(interposer.changed() >= 1);
        Ok(())
    })
    .await?
}

/// Changes the last byte of the responses to `TPM2_NV_Write`, which is in their HMAC.
struct Forger(Arc<Mutex<u32>>);

impl Change for Forger {
    fn response(&mut self, command: &[u8], response: &mut Vec<u8>) {
        if command.get(6..10) == Some(&NV_WRITE.to_be_bytes())
            && let Some(last) = response.last_mut()
        {
            *last ^= 1;
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        }
    }
}

#[test]
fn a_register_is_not_called_written_because_somebody_on_the_bus_says_so() -> Result<()> {
    let tpm = Swtpm::of_a_host()?;
    let forged = Arc::<Mutex<u32>>::default();
    let tap = Tap::changing(&tpm.path("tap"), &tpm.socket(), Forger(Arc::clone(&forged)))?;
    let mut config = config(&tpm);
    config.tpm = tap.tcti();
    let anchor = TrustAnchor::start(&config)?;
    let register = anchor.register(Retention::Volatile, NvAuth::new([7; 32]));
    register.define()?;
    ensure!(register.write(&[9; REGISTER_SIZE]).is_err());
    // Through the session of our own, and through the stack.
    let forged = *forged.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(forged >= 2, "{forged} responses were changed");
    Ok(())
}

#[tokio::test]
async fn a_register_is_not_written_as_somebody_on_the_bus_wants() -> Result<()> {
    let host = tapped(NV_WRITE).await?;
    let interposer = host.interposer.clone();
    let anchor = host.anchor.clone();
    tokio::task::spawn_blocking(move || {
        let register = anchor.register(Retention::Volatile, NvAuth::new([7; 32]));
        register.define()?;
        register.write(&[7; REGISTER_SIZE])?;
        interposer.replace(&[9; REGISTER_SIZE], &[8; REGISTER_SIZE]);
        ensure!(register.write(&[9; REGISTER_SIZE]).is_err());
        ensure!(interposer.changed() >= 2);
        ensure!(register.read()? == Held::Written([7; REGISTER_SIZE]));
        interposer.stop();
        register.write(&[9; REGISTER_SIZE])?;
        ensure!(register.read()? == Held::Written([9; REGISTER_SIZE]));
        Ok(())
    })
    .await?
}

#[tokio::test]
async fn another_storage_root_key_is_not_slipped_in_for_the_stack_alone() -> Result<()> {
    let tpm = Swtpm::of_a_host()?;
    // The key that is there, and one that somebody would like to have in its place.
    tpm.tool("tpm2_createprimary -C o -G ecc -c srk.ctx")?;
    tpm.tool("tpm2_evictcontrol -C o -c srk.ctx 0x81000001")?;
    tpm.tool("tpm2_flushcontext -t")?;
    tpm.tool("tpm2_createprimary -C o -G rsa2048 -c other.ctx")?;
    tpm.tool("tpm2_evictcontrol -C o -c other.ctx 0x81000002")?;
    tpm.tool("tpm2_flushcontext -t")?;
    let swap = Swap::default();
    let tap = Tap::changing(&tpm.path("tap"), &tpm.socket(), swap)?;
    let mut config = config(&tpm);
    config.tpm = tap.tcti();
    let anchor = TrustAnchor::start(&config)?;
    let error = anchor
        .provision(PolicyKey::generate()?.public())
        .await
        .err();
    ensure!(
        matches!(
            error,
            Some(AnchorError::Hardware(HardwareError::Altered { .. }))
        ),
        "{error:?}"
    );
    Ok(())
}

/// Shows the key at one handle in place of that at another, the first time only: that is the
/// software stack's look at it, and the next is ours.
#[derive(Default)]
struct Swap {
    done: bool,
}

impl Change for Swap {
    fn command(&mut self, command: &mut Vec<u8>) {
        let code = command.get(6..10) == Some(&READ_PUBLIC.to_be_bytes());
        if code && !self.done && command.ends_with(&[0x81, 0, 0, 1]) {
            self.done = true;
            if let Some(last) = command.last_mut() {
                *last = 2;
            }
        }
    }
}

#[tokio::test]
async fn the_host_ik_certifies_the_storage_root_key_and_no_other_key_can() -> Result<()> {
    let host = tapped(HASH).await?;
    host.anchor
        .certify_storage_root_key(&host.public.ik_public)
        .await?;
    // The word of an IK that the issuer did not certify counts for nothing.
    let other = tapped(HASH).await?;
    ensure!(matches!(
        host.anchor
            .certify_storage_root_key(&other.public.ik_public)
            .await,
        Err(AnchorError::StorageRootKey { .. })
    ));
    Ok(())
}

//! `vrot-service sign`: data signed by this VM's key for data.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use attestation::Binding;
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::profile::vik::VikCertificate;
use cert_chain::{Digest32, VikChain, VmId};
use signed_data::{
    Certificates, Content, Credentials, EvidenceReference, Label, MAX_ATTACHED, Source, ToBeSigned,
    evidence_nonce, hash_of_data,
};

use crate::attester::quoting::EvidenceFiles;
use crate::attester::{Host, VmTpm};
use crate::command_line::SignOptions;
use crate::data_key::TpmDataKey;
use crate::evidence_file;
use durable_file::{Existing, OutputFile};

/// Signs a file or standard input. The data are read before the TPM counts, so that what cannot be read
/// leaves no gap in the numbers.
pub fn sign(
    mut tpm: impl VmTpm,
    host: &dyn Host,
    files: EvidenceFiles,
    options: &SignOptions,
) -> Result<()> {
    let existing = match options.replace {
        true => Existing::Replace,
        false => Existing::Keep,
    };
    let mut output = OutputFile::create(&options.to, 0o666, existing)?;
    let content = read_content(options.from.as_deref(), options.attached)?;
    let chain = tpm.certificates()?;
    let vik_public = tpm.vik_public()?;
    let mut key = TpmDataKey::make(&options.tpm.tpm)?;
    let sequence = key.next_number()?;
    let mut label = Label {
        key: key.public().name(),
        source: Source::Vm(vm_of(&chain)?),
        stream: options.stream_name.clone(),
        sequence,
        time: 0,
        content_type: options.content_type.clone(),
        evidence: None,
    };
    let mut credentials = Credentials {
        certificates: certificates(chain)?,
        identity_key: vik_public.into(),
        statement: key.statement().clone(),
        evidence: None,
    };
    if options.evidence {
        let taken = seconds_now()?;
        let nonce = evidence_nonce(&label.key, sequence, &content.digest())?;
        let evidence = evidence_file::make(tpm, host, files, nonce, Binding::None)?.to_cbor();
        label.evidence = Some(EvidenceReference {
            digest: Digest32::of(&evidence),
            taken,
        });
        credentials.evidence = Some(evidence.into());
    }
    label.time = seconds_now()?;
    if (label.evidence).is_some_and(|evidence| evidence.taken > label.time) {
        bail!("the VM's clock was set back while evidence was taken: sign again");
    }
    let unsigned = ToBeSigned::new(label, content)?;
    let signature = key.sign(&unsigned.digest())?;
    let signed = unsigned.signed(signature, credentials).to_cbor();
    output
        .write_all(&signed)
        .with_context(|| format!("{} cannot be written", options.to.display()))?;
    output.finish()?;
    tracing::info!(number = sequence, "signed");
    Ok(())
}

fn read_content(from: Option<&Path>, attached: bool) -> Result<Content> {
    match from {
        Some(path) => {
            let name = path.display();
            let mut file = File::open(path).with_context(|| format!("{name} cannot be opened"))?;
            read_from(&mut file, attached).with_context(|| format!("{name} cannot be signed"))
        }
        None => {
            let mut input = io::stdin().lock();
            read_from(&mut input, attached).context("standard input cannot be signed")
        }
    }
}

fn read_from(input: &mut impl Read, attached: bool) -> Result<Content> {
    if !attached {
        return Ok(Content::Hash(hash_of_data(input)?));
    }
    let most = u64::try_from(MAX_ATTACHED)?;
    let mut data = Vec::new();
    input.take(most.saturating_add(1)).read_to_end(&mut data)?;
    if data.len() > MAX_ATTACHED {
        bail!(
            "there are more than {MAX_ATTACHED} bytes, the most that travel with their signature: leave out \
             --attached, and the data stay where they are"
        );
    }
    Ok(Content::Attached(data))
}

fn vm_of(chain: &[Vec<u8>]) -> Result<VmId> {
    const MALFORMED: &str = "a certificate in the vRoT does not follow its profile";
    let chain = VikChain::from_der_list(chain).context(MALFORMED)?;
    let host = HostCertificate::read(chain.host_certificate()).context(MALFORMED)?;
    let vik = VikCertificate::read(chain.vik_certificate(), host.host()).context(MALFORMED)?;
    Ok(vik.claims().vm)
}

fn certificates(chain: Vec<Vec<u8>>) -> Result<Certificates> {
    match <[Vec<u8>; 2]>::try_from(chain) {
        Ok(chain) => Ok(Certificates::Vm(chain.map(Into::into))),
        Err(_) => bail!("the vRoT has not the two certificates of a VM"),
    }
}

fn seconds_now() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now
        .context("the VM's clock shows a time before 1970")?
        .as_secs())
}

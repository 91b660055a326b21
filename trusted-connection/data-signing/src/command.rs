//! The command that signs a file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Error, Result, bail};
use cert_chain::Digest32;
use durable_file::{Existing, OutputFile};
use signed_data::{
    Content, EvidenceReference, Label, MAX_ATTACHED, ToBeSigned, evidence_nonce, hash_of_data,
};

use crate::options::SignOptions;
use crate::signer::DataSigner;
use crate::stream::{Job, Summary, sign_stream};

/// What was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// Data, which have this number.
    Data(u64),
    /// A stream.
    Stream(Summary),
}

/// Signs a file or standard input: as a whole, or reading by reading.
pub fn sign<S: DataSigner>(
    options: &SignOptions,
    open: impl FnOnce() -> Result<S>,
) -> Result<Signed> {
    match (options.stream.stream, &options.to) {
        (false, Some(to)) => sign_data(options, to, open).map(Signed::Data),
        (false, None) => bail!("--to says where to write the signed data"),
        (true, to) => {
            let job = Job {
                options: &options.stream,
                from: options.from.as_deref(),
                to: to.as_deref(),
                stream: &options.stream_name,
                content_type: &options.content_type,
                evidence: options.evidence,
            };
            Ok(Signed::Stream(sign_stream(&job, &mut open()?)?))
        }
    }
}

/// The data are read before the TPM is opened and counts, so that what cannot be read leaves no gap in the
/// numbers.
fn sign_data<S: DataSigner>(
    options: &SignOptions,
    to: &Path,
    open: impl FnOnce() -> Result<S>,
) -> Result<u64> {
    let output = OutputFile::create(to, 0o666, Existing::replaced_if(options.replace))?;
    let content = read_content(options.from.as_deref(), options.attached)?;
    let mut signer = open()?;
    let mut credentials = signer.credentials().map_err(Error::from_boxed)?;
    let sequence = signer.number().map_err(Error::from_boxed)?;
    let mut label = Label {
        key: signer.key(),
        source: signer.source(),
        stream: options.stream_name.clone(),
        sequence,
        time: 0,
        content_type: options.content_type.clone(),
        evidence: None,
    };
    if options.evidence {
        let taken = signer.now().map_err(Error::from_boxed)?;
        let nonce = evidence_nonce(&label.key, sequence, &content.digest())?;
        let evidence = signer.evidence(nonce).map_err(Error::from_boxed)?;
        label.evidence = Some(EvidenceReference {
            digest: Digest32::of(&evidence),
            taken,
        });
        credentials.evidence = Some(evidence.into());
    }
    label.time = signer.now().map_err(Error::from_boxed)?;
    if (label.evidence).is_some_and(|evidence| evidence.taken > label.time) {
        bail!("the clock was set back while evidence was taken: sign again");
    }
    let unsigned = ToBeSigned::new(label, content)?;
    let signature = signer.sign(&unsigned.digest()).map_err(Error::from_boxed)?;
    let signed = unsigned.signed(signature, credentials).to_cbor();
    output.finish_with(&signed)?;
    Ok(sequence)
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

//! An archive in the forms that OpenSSL and tpm2-tools read.

use std::io::{Read, Seek, sink};

use anyhow::{Context, Result};
use archive::cose_time_stamp::{StampedSign1, stamped_bytes};
use archive::{ArchiveHash, DataHashes, Form, Reader};
use cert_chain::{PublicArea, pem};
use p256::ecdsa::Signature;
use signed_data::{Certificates, Content, SignedData};

use crate::export::Part;

/// How the parts are judged without us, in a shell. A time stamp has to count at the time of the next one.
pub(super) fn by_hand<R: Read + Seek>(reader: &Reader<R>, signed: &SignedData) -> String {
    let head = reader.head();
    let times: Vec<u64> = (reader.record().tokens())
        .map(|token| token.unverified_time().as_secs())
        .collect();
    let as_of =
        |index: usize| (times.get(index)).map_or(String::new(), |at| format!(" -attime {at}"));
    let (signature, archive) = (as_of(0), as_of(1));
    // One hash value alone is stamped as it is, and not hashed again.
    let archived = match head.form {
        Form::Elsewhere => "head.cbor",
        Form::File | Form::Records => "archived-hashes.bin",
    };
    let stamp = "openssl ts -verify -token_in -CAfile AUTHORITY-ROOT.pem";
    let mut text = format!(
        "By hand, in that folder:\n  \
         openssl dgst -sha256 -verify data-key.pem -signature signature.der signed-message.bin\n  \
         {stamp}{signature} -data stamped-signature.bin -in signature.tst\n  \
         {stamp}{archive} -data {archived} -in archive-1.tst\n"
    );
    let (from, length) = (reader.data_offset() + 1, head.length);
    let data = format!("tail -c +{from} ARCHIVE | head -c {length}");
    if head.form != Form::Elsewhere {
        text.push_str(&format!(
            "  {{ sha256sum head.cbor; {data} | sha256sum; }} | cut -c -64 | LC_ALL=C sort | tr -d '\\n' | \
             tr a-f A-F | basenc -d --base16 | cmp - archived-hashes.bin\n"
        ));
    }
    if let Content::Hash(_) = signed.unverified_content() {
        let data = match head.form {
            Form::Elsewhere => "cat DATA",
            Form::File | Form::Records => &data,
        };
        // The hash value of the data is what the signed message ends with.
        let before = signed.message().len().saturating_sub(32);
        text.push_str(&format!(
            "  {data} | openssl dgst -sha256 -binary | cmp -i 0:{before} - signed-message.bin\n"
        ));
    }
    text
}

/// Its parts, by the names of the files.
///
/// `signed.cose` is the COSE_Sign1 as its signer left it, `signed-message.bin` and `signature.der` what the key in
/// `data-key.pem` signed; `stamped-signature.bin` is what the time stamp `signature.tst` is over, and
/// `archived-hashes.bin` what `archive-1.tst` is over: the SHA-256 values of `head.cbor` and of the data.
pub(super) fn parts<R: Read + Seek>(
    reader: &mut Reader<R>,
    signed: &SignedData,
    stamped: &StampedSign1,
) -> Result<Vec<Part>> {
    let credentials = signed.credentials();
    let key = public_key(&credentials.statement.public)?;
    let certificates: Vec<&[u8]> = match &credentials.certificates {
        Certificates::Vm(chain) => chain.iter().map(|der| der.as_slice()).collect(),
        Certificates::Device(own) => vec![own.as_slice()],
    };
    let chain: String = certificates
        .into_iter()
        .map(pem::encode_certificate)
        .collect();
    let mut parts: Vec<Part> = vec![
        ("signed.cose".to_owned(), stamped.sign1.clone()),
        ("signed-message.bin".to_owned(), signed.message()),
        ("signature.der".to_owned(), signature_der(signed)?),
        (
            "stamped-signature.bin".to_owned(),
            stamped_bytes(&stamped.sign1)?.to_vec(),
        ),
        ("chain.pem".to_owned(), chain.into_bytes()),
        (
            "identity-key.pem".to_owned(),
            public_key(&credentials.identity_key)?,
        ),
        ("data-key.pem".to_owned(), key),
        (
            "data-key.attest".to_owned(),
            credentials.statement.attest.to_vec(),
        ),
        (
            "data-key.sig".to_owned(),
            credentials.statement.signature.to_vec(),
        ),
    ];
    if let Some(token) = &stamped.token {
        parts.push(("signature.tst".to_owned(), token.der().to_vec()));
    }
    if let Some(evidence) = &credentials.evidence {
        parts.push(("evidence.cbor".to_owned(), evidence.to_vec()));
    }
    let checked = reader.check(&[], &mut sink()).context("it is not whole")?;
    let hashes = checked.hashes(ArchiveHash::Sha256);
    let mut hashes: Vec<Vec<u8>> = (hashes.into_iter().flatten())
        .map(|hash| hash.value().to_vec())
        .collect();
    hashes.sort_unstable();
    let head = reader.head();
    parts.push(("head.cbor".to_owned(), head.to_cbor()?));
    if hashes.len() > 1 {
        parts.push(("archived-hashes.bin".to_owned(), hashes.concat()));
    }
    parts.push(("evidence-record.der".to_owned(), reader.record().to_der()?));
    for (index, token) in reader.record().tokens().enumerate() {
        parts.push((format!("archive-{}.tst", index + 1), token.der().to_vec()));
    }
    let lists: String = head.crls().map(pem::encode_crl).collect();
    let texts = [
        ("issuer-crl.pem", (!lists.is_empty()).then_some(lists)),
        ("policy.toml", head.policy.clone()),
        ("verdict.json", head.verdict.clone()),
    ];
    parts.extend(
        texts
            .into_iter()
            .filter_map(|(name, text)| text.map(|text| (name.to_owned(), text.into_bytes()))),
    );
    Ok(parts)
}

/// As OpenSSL wants it.
fn signature_der(signed: &SignedData) -> Result<Vec<u8>> {
    let signature = Signature::from_slice(signed.signature()).context("its signature is none")?;
    Ok(signature.to_der().as_bytes().to_vec())
}

fn public_key(tpmt_public: &[u8]) -> Result<Vec<u8>> {
    let key = PublicArea::parse(tpmt_public).context("a key in it is no public area")?;
    Ok(pem::encode_public_key(&key.subject_public_key_info()).into_bytes())
}

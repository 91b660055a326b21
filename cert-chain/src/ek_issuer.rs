//! The makers' certificates that an endorsement key's certificate names as its issuers: how they are named,
//! and whether their keys can be used.

use rustls_pki_types::TrustAnchor;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

/// The lengths of RSA keys in bits with which signatures are verified.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Extensions that path validation knows (RFC 5280 §4.2.1.3, .6, .9, .10, .12), and so may be critical.
const UNDERSTOOD: [&str; 5] = [
    "2.5.29.15",
    "2.5.29.17",
    "2.5.29.19",
    "2.5.29.30",
    "2.5.29.37",
];

/// The roots, and once more those whose name is an issuer's in another encoding: names are compared as text,
/// without regard to case and repeated blanks (RFC 5280 §7.1), while the library compares their bytes.
pub(crate) fn anchors_for(
    roots: &[TrustAnchor<'static>],
    path: &[X509Certificate<'_>],
) -> Vec<TrustAnchor<'static>> {
    let mut anchors = roots.to_vec();
    for certificate in path {
        let Some(issuer) = contents(certificate.issuer().as_raw()) else {
            continue;
        };
        let named = folded(certificate.issuer());
        anchors.extend(roots.iter().filter_map(|root| {
            let differs = root.subject.as_ref() != issuer;
            (differs && folded_name(&root.subject)? == named).then(|| TrustAnchor {
                subject: issuer.to_vec().into(),
                ..root.clone()
            })
        }));
    }
    anchors
}

/// The length in bits of an RSA key that signed a certificate of the path and is not of use.
pub(crate) fn unusable_rsa_key(
    anchors: &[TrustAnchor<'static>],
    path: &[X509Certificate<'_>],
) -> Option<usize> {
    let of_roots = anchors.iter().filter_map(|root| {
        let names = |certificate: &X509Certificate<'_>| {
            contents(certificate.issuer().as_raw()) == Some(root.subject.as_ref())
        };
        let key = sequence(&root.subject_public_key_info);
        path.iter().any(names).then(|| rsa_bits(&key))?
    });
    let of_path = path.iter().filter_map(|authority| {
        let names = |certificate: &X509Certificate<'_>| {
            certificate.issuer().as_raw() == authority.subject().as_raw()
        };
        path.iter()
            .any(names)
            .then(|| rsa_bits(authority.public_key().raw))?
    });
    of_roots
        .chain(of_path)
        .find(|bits| !RSA_BITS.contains(bits))
}

/// A critical extension in the path that is not understood.
pub(crate) fn critical_extension(path: &[X509Certificate<'_>]) -> Option<String> {
    let extensions = path.iter().flat_map(|certificate| certificate.extensions());
    extensions
        .filter(|extension| extension.critical)
        .map(|extension| extension.oid.to_id_string())
        .find(|identifier| !UNDERSTOOD.contains(&identifier.as_str()))
}

fn rsa_bits(key: &[u8]) -> Option<usize> {
    let (_, key) = SubjectPublicKeyInfo::from_der(key).ok()?;
    match key.parsed().ok()? {
        PublicKey::RSA(key) => Some(key.key_size()),
        _ => None,
    }
}

fn folded_name(contents: &[u8]) -> Option<String> {
    let name = sequence(contents);
    let (_, name) = X509Name::from_der(&name).ok()?;
    Some(folded(&name))
}

fn folded(name: &X509Name<'_>) -> String {
    let text = name.to_string().to_lowercase();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A SEQUENCE in DER with these contents.
fn sequence(contents: &[u8]) -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    let mut der = vec![SEQUENCE];
    match u8::try_from(contents.len()) {
        Ok(length @ 0..=0x7f) => der.push(length),
        _ => {
            let length = contents.len().to_be_bytes();
            let zeros = length.iter().take_while(|byte| **byte == 0).count();
            let length = length.get(zeros..).unwrap_or_default();
            der.push(0x80 | u8::try_from(length.len()).unwrap_or_default());
            der.extend_from_slice(length);
        }
    }
    der.extend_from_slice(contents);
    der
}

/// The contents of a SEQUENCE.
fn contents(der: &[u8]) -> Option<&[u8]> {
    let header = match der.get(1)? {
        short @ 0..=0x7f => return der.get(2..).filter(|c| c.len() == usize::from(*short)),
        long => 2 + usize::from(long & 0x7f),
    };
    der.get(header..)
}

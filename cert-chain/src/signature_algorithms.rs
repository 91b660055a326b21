//! How TPM makers sign certificates: what `ring` verifies, and the combinations that it lacks.

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rustls_pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest, Sha384, Sha512};
use x509_parser::der_parser::Oid;
use x509_parser::der_parser::asn1_rs::FromDer;

/// Every algorithm that an EK certificate's path may use: RSA from 2,048 bits on, PKCS #1 v1.5 and
/// PSS; ECDSA on P-256, P-384 and P-521; Ed25519; each with SHA-256 or more.
pub(crate) const ALL: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
    webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    &Ecdsa {
        curve: alg_id::ECDSA_P256,
        signature: alg_id::ECDSA_SHA512,
        verify: p256_sha512,
    },
    &Ecdsa {
        curve: alg_id::ECDSA_P384,
        signature: alg_id::ECDSA_SHA512,
        verify: p384_sha512,
    },
    &Ecdsa {
        curve: alg_id::ECDSA_P521,
        signature: alg_id::ECDSA_SHA384,
        verify: p521_sha384,
    },
    &Ecdsa {
        curve: alg_id::ECDSA_P521,
        signature: alg_id::ECDSA_SHA512,
        verify: p521_sha512,
    },
];

/// Verifies by public key, message and signature in DER.
type Verify = fn(&[u8], &[u8], &[u8]) -> Result<(), p256::ecdsa::Error>;

/// ECDSA with a curve and a hash algorithm that `ring` does not combine.
#[derive(Debug)]
struct Ecdsa {
    curve: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    verify: Verify,
}

impl SignatureVerificationAlgorithm for Ecdsa {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        (self.verify)(public_key, message, signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.curve
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

fn p256_sha512(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), p256::ecdsa::Error> {
    let signature = p256::ecdsa::DerSignature::try_from(signature)?;
    p256::ecdsa::VerifyingKey::from_sec1_bytes(key)?
        .verify_prehash(&Sha512::digest(message), &signature)
}

fn p384_sha512(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), p256::ecdsa::Error> {
    let signature = p384::ecdsa::Signature::from_der(signature)?;
    p384::ecdsa::VerifyingKey::from_sec1_bytes(key)?
        .verify_prehash(&Sha512::digest(message), &signature)
}

fn p521_sha384(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), p256::ecdsa::Error> {
    let signature = p521::ecdsa::Signature::from_der(signature)?;
    p521::ecdsa::VerifyingKey::from_sec1_bytes(key)?
        .verify_prehash(&Sha384::digest(message), &signature)
}

fn p521_sha512(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), p256::ecdsa::Error> {
    let signature = p521::ecdsa::Signature::from_der(signature)?;
    p521::ecdsa::VerifyingKey::from_sec1_bytes(key)?.verify(message, &signature)
}

/// The name of an algorithm, whose identifier is the contents of an `AlgorithmIdentifier` in DER.
pub(crate) fn name(identifier: &[u8]) -> String {
    let Ok((_, oid)) = Oid::from_der(identifier) else {
        return "an algorithm without an identifier".to_owned();
    };
    let oid = oid.to_id_string();
    let known = NAMES.iter().find(|(known, _)| *known == oid);
    match known {
        Some((_, name)) => format!("{name} ({oid})"),
        None => format!("the algorithm {oid}"),
    }
}

/// Names of signature algorithms (RFC 5480, RFC 8017, RFC 8410, FIPS 186-4, GM/T 0006).
const NAMES: [(&str, &str); 17] = [
    ("1.2.156.10197.1.501", "SM2-with-SM3"),
    ("1.2.840.10040.4.3", "dsa-with-SHA1"),
    ("1.2.840.10045.4.1", "ecdsa-with-SHA1"),
    ("1.2.840.10045.4.3.1", "ecdsa-with-SHA224"),
    ("1.2.840.10045.4.3.2", "ecdsa-with-SHA256"),
    ("1.2.840.10045.4.3.3", "ecdsa-with-SHA384"),
    ("1.2.840.10045.4.3.4", "ecdsa-with-SHA512"),
    ("1.2.840.113549.1.1.4", "md5WithRSAEncryption"),
    ("1.2.840.113549.1.1.5", "sha1WithRSAEncryption"),
    ("1.2.840.113549.1.1.10", "RSASSA-PSS"),
    ("1.2.840.113549.1.1.11", "sha256WithRSAEncryption"),
    ("1.2.840.113549.1.1.12", "sha384WithRSAEncryption"),
    ("1.2.840.113549.1.1.13", "sha512WithRSAEncryption"),
    ("1.2.840.113549.1.1.14", "sha224WithRSAEncryption"),
    ("1.3.101.112", "Ed25519"),
    ("1.3.101.113", "Ed448"),
    ("2.16.840.1.101.3.4.3.2", "dsa-with-SHA256"),
];

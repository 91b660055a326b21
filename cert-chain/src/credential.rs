//! `TPM2_MakeCredential` (TPM 2.0 Part 3 §12.6) in software: the issuer needs no TPM.
//!
//! A credential can be opened only by the TPM that holds the endorsement key, and only while
//! it holds an object with the given name. That is the proof that an attestation key lives
//! beside a certified endorsement key (TPM 2.0 Part 1 §24).

use aes::Aes128;
use cfb_mode::cipher::{AsyncStreamCipher, KeyIvInit};
use hmac::Mac;
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::rand::{SecureRandom, SystemRandom};
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::rand_core::OsRng;
use rsa::{Oaep, RsaPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::endorsement_key::EndorsementKey;
use crate::hexadecimal;
use crate::kdf::{first_bytes, kdfa, keyed};
use crate::name::TpmName;
use crate::public_area::KeyParameters;

/// What `TPM2_ActivateCredential` takes, both parts with their TPM2B length in front.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = Credential))]
pub struct CredentialBlob {
    /// `TPM2B_ID_OBJECT`: integrity value and encrypted secret.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub id_object: Vec<u8>,
    /// `TPM2B_ENCRYPTED_SECRET`: the seed, for the endorsement key alone.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub encrypted_secret: Vec<u8>,
}

/// Why no credential was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The endorsement key cannot be used for key agreement.
    #[error("the endorsement key does not agree on a secret")]
    KeyAgreement,
    /// The endorsement key cannot be encrypted to.
    #[error("the seed could not be encrypted to the endorsement key")]
    Encryption(#[source] rsa::Error),
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// The secret is longer than a credential carries.
    #[error("the secret has {length} bytes: a credential carries 1 to {MAX_SECRET}")]
    SecretLength {
        /// Its length.
        length: usize,
    },
}

/// A `TPM2B_DIGEST` of the name algorithm, SHA-256 (TPM 2.0 Part 1 §24.4).
pub const MAX_SECRET: usize = 32;

/// Wraps `secret` so that only the TPM with `ek` and an object called `name` can unwrap it.
pub fn make_credential(
    ek: &EndorsementKey,
    name: &TpmName,
    secret: &[u8],
) -> Result<CredentialBlob, CredentialError> {
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(CredentialError::SecretLength {
            length: secret.len(),
        });
    }
    let (seed, encrypted_secret) = match ek.public_area().parameters() {
        KeyParameters::Rsa { .. } => seed_for_rsa(ek)?,
        KeyParameters::P256 { .. } => seed_for_p256(ek)?,
    };
    let id_object = protect(&seed, name, secret);
    Ok(CredentialBlob {
        id_object: tpm2b(&id_object),
        encrypted_secret: tpm2b(&encrypted_secret),
    })
}

type Seed = Zeroizing<[u8; 32]>;

/// The OAEP label and KDFe label of identity credentials (TPM 2.0 Part 1 §24.4).
const IDENTITY: &str = "IDENTITY";
/// Key of the cipher over the secret (TPM 2.0 Part 1 §23.4).
const STORAGE: &str = "STORAGE";
/// Key of the outer HMAC (TPM 2.0 Part 1 §23.3).
const INTEGRITY: &str = "INTEGRITY";

/// TPM 2.0 Part 1 annex B.10: the seed is OAEP-encrypted with the key's name algorithm and a label
/// that ends in a zero byte.
fn seed_for_rsa(ek: &EndorsementKey) -> Result<(Seed, Vec<u8>), CredentialError> {
    let key = RsaPublicKey::from_pkcs1_der(ek.public_area().public_key_bytes())
        .map_err(|error| CredentialError::Encryption(error.into()))?;
    let mut seed = Seed::default();
    SystemRandom::new()
        .fill(seed.as_mut())
        .map_err(|_| CredentialError::Random)?;
    let padding = Oaep::new_with_label::<Sha256, _>(format!("{IDENTITY}\0"));
    let encrypted = key
        .encrypt(&mut OsRng, padding, seed.as_ref())
        .map_err(CredentialError::Encryption)?;
    Ok((seed, encrypted))
}

/// TPM 2.0 Part 1 annex C.6: one-pass ECDH with an ephemeral key; the point is the "encryption".
fn seed_for_p256(ek: &EndorsementKey) -> Result<(Seed, Vec<u8>), CredentialError> {
    let random = SystemRandom::new();
    let ephemeral =
        EphemeralPrivateKey::generate(&ECDH_P256, &random).map_err(|_| CredentialError::Random)?;
    let point = ephemeral
        .compute_public_key()
        .map_err(|_| CredentialError::Random)?;
    let [ours, theirs] = [point.as_ref(), ek.public_area().public_key_bytes()].map(coordinates);
    let ((x, y), (ek_x, _)) = ours.zip(theirs).ok_or(CredentialError::KeyAgreement)?;
    let seed = agree_ephemeral(
        ephemeral,
        &UnparsedPublicKey::new(&ECDH_P256, ek.public_area().public_key_bytes()),
        |shared_x| kdfe(shared_x, IDENTITY, x, ek_x),
    )
    .map_err(|_| CredentialError::KeyAgreement)?;
    let encrypted = [tpm2b(x), tpm2b(y)].concat();
    Ok((seed, encrypted))
}

/// The two coordinates of an uncompressed SEC 1 point on P-256.
fn coordinates(point: &[u8]) -> Option<(&[u8], &[u8])> {
    match point.split_first() {
        Some((0x04, coordinates)) if coordinates.len() == 64 => coordinates.split_at_checked(32),
        _ => None,
    }
}

/// TPM 2.0 Part 1 §24.4: encrypt, then authenticate together with the name.
fn protect(seed: &Seed, name: &TpmName, secret: &[u8]) -> Vec<u8> {
    let storage: Zeroizing<[u8; 16]> = kdfa(seed.as_ref(), STORAGE, name.as_bytes());
    let mut identity = tpm2b(secret);
    // A fresh seed makes a fresh key, so the initialisation vector is zero.
    cfb_mode::Encryptor::<Aes128>::new((&*storage).into(), &[0; 16].into()).encrypt(&mut identity);

    let integrity: Zeroizing<[u8; 32]> = kdfa(seed.as_ref(), INTEGRITY, &[]);
    let mut mac = keyed(integrity.as_ref());
    mac.update(&identity);
    mac.update(name.as_bytes());
    let tag = mac.finalize().into_bytes();
    [tpm2b(&tag), identity].concat()
}

/// KDFe (TPM 2.0 Part 1 §11.4.10): SP 800-56A concatenation KDF with SHA-256.
fn kdfe(shared_x: &[u8], label: &str, party_u: &[u8], party_v: &[u8]) -> Seed {
    let mut hash = Sha256::new();
    hash.update(1u32.to_be_bytes());
    hash.update(shared_x);
    hash.update(label.as_bytes());
    hash.update([0]);
    hash.update(party_u);
    hash.update(party_v);
    first_bytes(&hash.finalize())
}

/// Every buffer here is far below 64 KiB: secrets, digests, coordinates, one RSA block.
fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

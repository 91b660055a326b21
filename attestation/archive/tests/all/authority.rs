//! `openssl ts` as a time-stamp authority of a test.

use std::time::{Duration, SystemTime};

use archive::time_stamp::{Nonce, Token};
use archive::{Imprint, TimeStampRequest};
use cert_chain::TrustAnchors;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
pub(crate) use test_support::time_authority::Keys;
use test_support::time_authority::{AuthorityProfile, TimeAuthority};

/// The authority, with what it makes in this project's types.
pub(crate) struct Authority(TimeAuthority);

impl Authority {
    pub(crate) fn new() -> Self {
        Self::with(Keys::P256, "authority")
    }

    /// With the extensions of this section.
    pub(crate) fn with(keys: Keys, extensions: &str) -> Self {
        let profile = AuthorityProfile {
            keys,
            extensions,
            ..AuthorityProfile::default()
        };
        Self(TimeAuthority::with(profile, None).unwrap())
    }

    /// Another certificate in DER of the authority's key, with the same issuer and number.
    pub(crate) fn certificate_with_the_same_number(&self) -> Vec<u8> {
        let shown = self.openssl("x509 -in own.pem -noout -serial", &[]);
        let shown = String::from_utf8(shown).unwrap();
        let number = format!("0x{}", shown.trim().strip_prefix("serial=").unwrap());
        self.openssl(
            "req -x509 -config openssl.cnf -days 3650 -key own.key -extensions authority -CA root.pem \
             -CAkey root.key -out same.pem -set_serial",
            &[&number, "-subj", "/CN=Another authority of t"],
        );
        certificate(&self.read("same.pem"))
    }

    /// The authority's certificate in DER.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        certificate(&self.read("own.pem"))
    }

    pub(crate) fn anchors(&self) -> TrustAnchors {
        TrustAnchors::from_pem(&self.read("root.pem")).unwrap()
    }

    /// The authority's answer to a request in DER.
    pub(crate) fn answer(&self, request: &[u8]) -> Vec<u8> {
        self.0.answer(request).unwrap()
    }

    pub(crate) fn stamp(&self, imprint: Imprint) -> Token {
        let request = request(imprint);
        let answer = self.answer(&request.to_der().unwrap());
        request.token(&answer).unwrap()
    }

    /// A revocation list in DER, of the authority if it was revoked at a time.
    pub(crate) fn crl(&self, revoked: Option<UnixTime>) -> Vec<u8> {
        let revoked = revoked.map(|since| since.as_secs());
        self.0.crl(revoked).unwrap()
    }

    /// Whether OpenSSL takes this token for a time stamp over these data.
    pub(crate) fn openssl_verifies(&self, token: &[u8], data: &[u8]) -> bool {
        self.0.openssl_verifies(token, data).unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        self.0.read(name).unwrap()
    }

    fn openssl(&self, line: &str, more: &[&str]) -> Vec<u8> {
        self.0.openssl(line, more).unwrap()
    }
}

pub(crate) fn request(imprint: Imprint) -> TimeStampRequest {
    TimeStampRequest::new(imprint, Nonce::new([7; 8]))
}

/// Now, and a few seconds for the authority's accuracy.
pub(crate) fn now() -> UnixTime {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    UnixTime::since_unix_epoch(now + Duration::from_secs(5))
}

pub(crate) fn later(days: u64) -> UnixTime {
    let days = Duration::from_secs(days * 24 * 3600);
    UnixTime::since_unix_epoch(Duration::from_secs(now().as_secs()) + days)
}

/// Some seconds after a time.
pub(crate) fn after(time: UnixTime, seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs() + seconds))
}

fn certificate(pem: &[u8]) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem).unwrap().to_vec()
}

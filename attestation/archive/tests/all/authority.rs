//! `openssl ts` as a time-stamp authority of a test.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use archive::time_stamp::{Nonce, Token};
use archive::{Imprint, TimeStampRequest};
use cert_chain::TrustAnchors;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;
use time::OffsetDateTime;

/// Root and authority, with keys of their own, in a folder of their own.
pub(crate) struct Authority {
    folder: TempDir,
}

/// What an authority's keys are.
#[derive(Clone, Copy)]
pub(crate) enum Keys {
    P256,
    Rsa,
}

const CONFIGURATION: &str = "
[req]
distinguished_name = name
prompt = no
[name]
CN = placeholder
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[authority]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[not-critical]
extendedKeyUsage = timeStamping
[two-purposes]
extendedKeyUsage = critical, timeStamping, serverAuth
[ca]
default_ca = this
[this]
database = index.txt
crlnumber = crlnumber
default_md = sha256
default_crl_days = 3650
[tsa]
default_tsa = stamps
[stamps]
serial = serial
signer_digest = sha256
default_policy = 1.3.6.1.4.1.99999.1
digests = sha256, sha384, sha512
accuracy = millisecs:500
ordering = no
tsa_name = yes
ess_cert_id_chain = no
ess_cert_id_alg = sha256
";

impl Authority {
    pub(crate) fn new() -> Self {
        Self::with(Keys::P256, "authority")
    }

    /// With the extensions of this section.
    pub(crate) fn with(keys: Keys, extensions: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Self { folder };
        authority.write("openssl.cnf", CONFIGURATION.as_bytes());
        authority.write("index.txt", b"");
        authority.write("crlnumber", b"01\n");
        authority.write("serial", b"01\n");
        let key: &[&str] = match keys {
            Keys::P256 => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Keys::Rsa => &["-newkey", "rsa:2048"],
        };
        let common = [
            "req",
            "-x509",
            "-config",
            "openssl.cnf",
            "-nodes",
            "-days",
            "3650",
        ];
        let root = [
            "-subj",
            "/CN=Root for time",
            "-extensions",
            "root",
            "-keyout",
            "root.key",
            "-out",
            "root.pem",
        ];
        authority.openssl(&[&common, key, &root].concat());
        let own = [
            "-subj",
            "/CN=Authority of time here",
            "-extensions",
            extensions,
            "-keyout",
            "own.key",
        ];
        let issued = ["-CA", "root.pem", "-CAkey", "root.key", "-out", "own.pem"];
        authority.openssl(&[&common, key, &own, &issued].concat());
        authority
    }

    /// Another certificate in DER of the authority's key, with the same issuer and number.
    pub(crate) fn certificate_with_the_same_number(&self) -> Vec<u8> {
        let shown = self
            .run(&["x509", "-in", "own.pem", "-noout", "-serial"])
            .stdout;
        let shown = String::from_utf8(shown).unwrap();
        let number = format!("0x{}", shown.trim().strip_prefix("serial=").unwrap());
        let common = [
            "req",
            "-x509",
            "-config",
            "openssl.cnf",
            "-days",
            "3650",
            "-key",
            "own.key",
        ];
        let own = [
            "-subj",
            "/CN=Another authority of t",
            "-extensions",
            "authority",
        ];
        let issued = [
            "-CA",
            "root.pem",
            "-CAkey",
            "root.key",
            "-set_serial",
            &number,
        ];
        self.openssl(&[&common[..], &own, &issued, &["-out", "same.pem"]].concat());
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
        self.write("request.tsq", request);
        let signing = [
            "-signer", "own.pem", "-inkey", "own.key", "-chain", "root.pem",
        ];
        let reply = [
            "ts",
            "-reply",
            "-config",
            "openssl.cnf",
            "-queryfile",
            "request.tsq",
        ];
        self.openssl(&[&reply[..], &signing, &["-out", "answer.tsr"]].concat());
        self.read("answer.tsr")
    }

    pub(crate) fn stamp(&self, imprint: Imprint) -> Token {
        let request = request(imprint);
        let answer = self.answer(&request.to_der().unwrap());
        request.token(&answer).unwrap()
    }

    /// A revocation list in DER, of the authority if it was revoked at a time.
    pub(crate) fn crl(&self, revoked: Option<UnixTime>) -> Vec<u8> {
        let ca = [
            "ca",
            "-config",
            "openssl.cnf",
            "-cert",
            "root.pem",
            "-keyfile",
            "root.key",
        ];
        if let Some(since) = revoked {
            self.openssl(
                &[
                    &ca[..],
                    &["-revoke", "own.pem", "-crl_reason", "keyCompromise"],
                ]
                .concat(),
            );
            // A line of the database: state, end of validity, time and reason of the revocation, and the rest.
            let database = String::from_utf8(self.read("index.txt")).unwrap();
            let fields: Vec<&str> = database.splitn(4, '\t').collect();
            let [state, end, _now, rest] = fields[..] else {
                panic!("{database}")
            };
            let since = in_utc(since);
            let line = format!("{state}\t{end}\t{since},keyCompromise\t{rest}");
            self.write("index.txt", line.as_bytes());
        }
        self.openssl(&[&ca[..], &["-gencrl", "-out", "list.pem"]].concat());
        self.openssl(&[
            "crl", "-in", "list.pem", "-outform", "DER", "-out", "list.der",
        ]);
        self.read("list.der")
    }

    /// Whether OpenSSL takes this token for a time stamp over these data.
    pub(crate) fn openssl_verifies(&self, token: &[u8], data: &[u8]) -> bool {
        self.write("judged.tst", token);
        self.write("judged.data", data);
        let verify = [
            "ts",
            "-verify",
            "-data",
            "judged.data",
            "-in",
            "judged.tst",
            "-token_in",
        ];
        let output = self.run(&[&verify[..], &["-CAfile", "root.pem"]].concat());
        output.status.success()
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.folder.path().join(name), content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(name)).unwrap()
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments:?}: {said}");
    }

    fn run(&self, arguments: &[&str]) -> Output {
        openssl_in(self.folder.path(), arguments)
    }
}

fn openssl_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("openssl");
    command
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
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

/// `UTCTime`.
fn in_utc(time: UnixTime) -> String {
    let time = OffsetDateTime::from_unix_timestamp(time.as_secs().try_into().unwrap()).unwrap();
    format!(
        "{:02}{:02}{:02}{:02}{:02}{:02}Z",
        time.year() % 100,
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

fn certificate(pem: &[u8]) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem).unwrap().to_vec()
}

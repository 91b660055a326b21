//! A VM whose keys are in software, what it signs, and `vrot-device` at a time of the test's choosing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use attestation::fixture::{
    Host, NOW, TLS, Vm, certification, sign, sign_fixed, signing_area_with,
};
use attestation::{Binding, KeyStatement, data_key_qualifying_data};
use cert_chain::crl::RevocationReason;
use cert_chain::profile::{CrlSpec, RevokedCertificate};
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{CertificateSerial, Digest32, PublicArea, Validity};
use rcgen::KeyPair;
use rustls_pki_types::UnixTime;
use serde_json::Value;
use signed_data::{
    Certificates, Content, Credentials, EvidenceReference, Label, SignedData, Source, ToBeSigned,
    evidence_nonce,
};
use tempfile::TempDir;
use test_support::time_authority::{AuthorityProfile, TimeAuthority, at_time};

pub(super) const DATA: &[u8] = b"{\"celsius\":21.5}";
pub(super) const HOUR: u64 = 3600;
pub(super) const DAY: u64 = 24 * HOUR;
/// When the VM signs.
pub(super) const SIGNED: u64 = NOW + HOUR;

/// A VM, what it signed, and who reads it: files in a folder.
pub(super) struct Scene {
    pub(super) host: Host,
    pub(super) vm: Vm,
    key: KeyPair,
    folder: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: i32,
    pub(super) out: String,
    pub(super) err: String,
}

impl Scene {
    /// With `reading.signed`, which has its data, `policy.toml`, and what the policy names.
    pub(super) fn new() -> Self {
        let host = Host::new("host-1");
        let scene = Self {
            vm: host.vm(),
            host,
            key: KeyPair::generate().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        let policy = scene.host.policy_text(&scene.vm);
        scene.write("policy.toml", policy.as_bytes());
        scene.write("roots.pem", scene.host.issuer.certificate_pem().as_bytes());
        let reading = scene.signed(Content::Attached(DATA.to_vec()));
        scene.write("reading.signed", &reading.to_cbor());
        scene
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Signed at [`SIGNED`], with evidence.
    pub(super) fn signed(&self, content: Content) -> SignedData {
        self.signed_as("application/json", content)
    }

    /// The same of another type.
    pub(super) fn signed_as(&self, content_type: &str, content: Content) -> SignedData {
        let area = signing_area_with(&self.key, TLS, &DATA_KEY_POLICY);
        let key = PublicArea::parse(&area).unwrap().name();
        let nonce = evidence_nonce(&key, 7, &content.digest()).unwrap();
        let evidence = (self.host.evidence(&self.vm, &nonce, Binding::SignedData)).to_cbor();
        let label = Label {
            key,
            source: Source::Vm(self.vm.vm),
            stream: "room-1/temperature".parse().unwrap(),
            sequence: 7,
            time: SIGNED,
            content_type: content_type.parse().unwrap(),
            evidence: Some(EvidenceReference {
                digest: Digest32::of(&evidence),
                taken: SIGNED - 2,
            }),
        };
        let attest = certification(&area, data_key_qualifying_data().as_bytes());
        let chain = [&self.vm.certificate, &self.host.certificate];
        let credentials = Credentials {
            certificates: Certificates::Vm(chain.map(|der| der.to_vec().into())),
            identity_key: self.vm.public.clone().into(),
            statement: KeyStatement {
                public: area.into(),
                signature: sign(&self.vm.key, &attest),
                attest: attest.into(),
            },
            evidence: Some(evidence.into()),
        };
        let unsigned = ToBeSigned::new(label, content).unwrap();
        let signature = sign_fixed(&self.key, &unsigned.message());
        unsigned.signed(signature, credentials)
    }

    /// Writes a list of the issuer's that was made when the certificate was revoked.
    pub(super) fn revoke(&self, certificate: &[u8], since: u64, name: &str) {
        let since = time(since);
        let list = self.host.issuer.sign_crl(&CrlSpec {
            number: 1,
            validity: Validity::starting(since, Duration::from_secs(7 * DAY)).unwrap(),
            revoked: vec![RevokedCertificate {
                serial: CertificateSerial::of_certificate(certificate).unwrap(),
                since,
                reason: RevocationReason::KeyCompromise,
            }],
        });
        self.write(name, list.unwrap().der());
    }

    /// Writes a list of the issuer's that was made at a time and revokes nothing.
    pub(super) fn list(&self, number: u64, made: u64, name: &str) {
        let list = self.host.issuer.sign_crl(&CrlSpec {
            number,
            validity: Validity::starting(time(made), Duration::from_secs(7 * DAY)).unwrap(),
            revoked: Vec::new(),
        });
        self.write(name, list.unwrap().der());
    }

    /// An authority whose certificate is valid for so many days, and its root in a file.
    pub(super) fn authority(&self, days: u32, root: &str) -> TimeAuthority {
        self.authority_with(
            AuthorityProfile {
                days,
                ..AuthorityProfile::default()
            },
            root,
        )
    }

    pub(super) fn authority_with(
        &self,
        profile: AuthorityProfile<'_>,
        root: &str,
    ) -> TimeAuthority {
        let authority = TimeAuthority::with(profile, Some(SIGNED)).unwrap();
        self.write(root, &authority.read("root.pem").unwrap());
        authority
    }

    /// Runs `vrot-device archive` in the folder at a time, with an argument for each word.
    pub(super) fn archive(&self, at: u64, line: &str) -> Ended {
        self.device(at, &format!("archive {line}"))
    }

    pub(super) fn device(&self, at: u64, line: &str) -> Ended {
        let program = Path::new(env!("CARGO_BIN_EXE_vrot-device"));
        let tool = at_time(program, at)
            .args(line.split(' '))
            .folder(self.folder.path());
        Ended::of(&tool.outcome().unwrap())
    }

    /// Archives `reading.signed` a minute after it was signed, as `reading.archive`.
    pub(super) fn archived_by(&self, authority: &TimeAuthority) {
        let ended = self.create(authority, "reading.signed --to reading.archive");
        assert_eq!(ended.status, 0, "{ended:?}");
    }

    /// Creates an archive by requests in files, which the authority answers, a minute after the signature.
    pub(super) fn create(&self, authority: &TimeAuthority, what: &str) -> Ended {
        self.create_by(authority, what, "first.pem")
    }

    pub(super) fn create_by(&self, authority: &TimeAuthority, what: &str, roots: &str) -> Ended {
        let at = SIGNED + 60;
        let line = format!("create {what} --policy policy.toml");
        self.asking(authority, at, &line, roots)
    }

    /// Renews `reading.archive`.
    pub(super) fn renew(
        &self,
        authority: &TimeAuthority,
        at: u64,
        roots: &str,
        more: &str,
    ) -> Ended {
        let line = format!("renew reading.archive --to reading.archive --replace{more}");
        self.asking(authority, at, &line, roots)
    }

    /// Runs a command until no request waits any more.
    pub(super) fn asking(
        &self,
        authority: &TimeAuthority,
        at: u64,
        line: &str,
        roots: &str,
    ) -> Ended {
        authority.set_clock(at);
        let roots: String = (roots.split(' '))
            .map(|root| format!(" --authority-root {root}"))
            .collect();
        let line = format!("{line} --requests asked{roots}");
        loop {
            let ended = self.archive(at, &line);
            if ended.status != 3 {
                return ended;
            }
            for asked in fs::read_dir(self.path("asked")).unwrap() {
                let asked = asked.unwrap().path();
                let answered = asked.with_extension("tsr");
                if asked.extension().is_some_and(|suffix| suffix == "tsq") && !answered.exists() {
                    let answer = authority.answer(&fs::read(&asked).unwrap()).unwrap();
                    fs::write(answered, answer).unwrap();
                }
            }
        }
    }

    /// Verifies `reading.archive` by these roots of authorities.
    pub(super) fn verify(&self, at: u64, roots: &str, more: &str) -> (i32, Value) {
        let roots: String = (roots.split(' '))
            .map(|root| format!(" --authority-root {root}"))
            .collect();
        let ended = self.archive(
            at,
            &format!("verify reading.archive --policy policy.toml --json{roots}{more}"),
        );
        let told = serde_json::from_str(&ended.out);
        (
            ended.status,
            told.unwrap_or_else(|error| panic!("{error}: {ended:?}")),
        )
    }
}

impl Ended {
    pub(super) fn of(output: &Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub(super) fn time(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

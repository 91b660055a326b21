//! `vrot-device verify-data --stream` while a stream comes, and from one run to the next.

use std::fs::{self, File};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use attestation::fixture::{Host, NOW, TLS, Vm, certification, sign, signing_area_with};
use attestation::{Binding, KeyStatement, data_key_qualifying_data};
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{Digest32, PublicArea};
use rcgen::KeyPair;
use serde_json::Value;
use signed_data::stream::{Batch, BatchStatement, Readings, Span, UnsignedBatch};
use signed_data::{Certificates, Credentials, EvidenceReference, Label, Source, evidence_nonce};
use tempfile::TempDir;
use test_support::deadline::wait_for;

use attestation::fixture::sign_fixed;

/// When the first batch is signed ([`NOW`]), and later.
const SIGNED: &str = "2026-06-01T00:00:00Z";
const LATER: &str = "2026-06-01T00:16:40Z";
const PATIENCE: Duration = Duration::from_secs(120);

/// A VM that signs a stream, and who verifies it in a folder.
struct Scene {
    host: Host,
    vm: Vm,
    key: KeyPair,
    folder: TempDir,
}

/// What a run said, line by line.
#[derive(Debug)]
struct Said {
    status: i32,
    lines: Vec<Value>,
    errors: String,
}

/// A run that waits for batches.
struct Run {
    child: Child,
    said: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let host = Host::new("host-1");
        let scene = Self {
            vm: host.vm(),
            host,
            key: KeyPair::generate().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        scene.write(
            "policy.toml",
            scene.host.policy_text(&scene.vm).into_bytes(),
        );
        let roots = scene.host.issuer.certificate_pem();
        scene.write("roots.pem", roots.into_bytes());
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Four batches of one reading each, ten seconds apart; the first has evidence.
    fn stream(&self) -> Vec<Batch> {
        let area = signing_area_with(&self.key, TLS, &DATA_KEY_POLICY);
        let key = PublicArea::parse(&area).unwrap().name();
        let attest = certification(&area, data_key_qualifying_data().as_bytes());
        let chain = [&self.vm.certificate, &self.host.certificate];
        let credentials = |evidence| Credentials {
            certificates: Certificates::Vm(chain.map(|der| der.to_vec().into())),
            identity_key: self.vm.public.clone().into(),
            statement: KeyStatement {
                public: area.clone().into(),
                signature: sign(&self.vm.key, &attest),
                attest: attest.clone().into(),
            },
            evidence,
        };
        let mut batches = Vec::new();
        let mut after = None;
        for (number, text) in (0..).zip(["a", "b", "c", "d"]) {
            let mut label = Label {
                key: key.clone(),
                source: Source::Vm(self.vm.vm),
                stream: "room-1/temperature".parse().unwrap(),
                sequence: 7 + number,
                time: NOW + 10 * number,
                content_type: "application/json".parse().unwrap(),
                evidence: None,
            };
            let readings = Readings::new(vec![text.as_bytes().to_vec()]).unwrap();
            let text = "text/plain".parse().unwrap();
            let span = Span { from: 1, to: 2 };
            let statement = BatchStatement::over(&readings, &label, after, text, span);
            let digest = Digest32::of(&statement.to_cbor());
            let nonce = evidence_nonce(&key, label.sequence, &digest).unwrap();
            let evidence = (number == 0).then(|| {
                let evidence = self.host.evidence(&self.vm, &nonce, Binding::SignedData);
                evidence.to_cbor()
            });
            label.evidence = evidence.as_ref().map(|evidence| EvidenceReference {
                digest: Digest32::of(evidence),
                taken: NOW,
            });
            let unsigned = UnsignedBatch::new(label, statement, readings).unwrap();
            after = Some(unsigned.link());
            let signature = sign_fixed(&self.key, &unsigned.message());
            let credentials = evidence.map(|evidence| credentials(Some(evidence.into())));
            batches.push(unsigned.signed(signature, credentials));
        }
        batches
    }

    fn command(&self, stream: &str, at: &str, options: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vrot-device"));
        command
            .args(["verify-data", stream, "--stream", "--policy", "policy.toml"])
            .args(["--at", at])
            .args(options.split_whitespace())
            .current_dir(self.folder.path());
        command
    }

    fn verify(&self, stream: &str, at: &str, options: &str) -> Said {
        let output = self.command(stream, at, options).arg("--json").output();
        let output = output.unwrap();
        Said {
            status: output.status.code().unwrap_or(-1),
            lines: lines(&output.stdout),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Verifies standard input.
    fn start(&self, options: &str) -> Run {
        let said = self.path("said");
        let child = (self.command("-", SIGNED, options).arg("--json"))
            .stdin(Stdio::piped())
            .stdout(File::create(&said).unwrap())
            .spawn();
        Run {
            child: child.unwrap(),
            said,
        }
    }
}

impl Said {
    /// Of the readings that were printed.
    fn texts(&self) -> String {
        let texts = self.lines.iter().filter_map(|line| line["text"].as_str());
        texts.collect()
    }

    fn batch(&self, number: usize) -> &Value {
        let mut batches = (self.lines.iter())
            .map(|line| &line["batch"])
            .filter(|batch| !batch.is_null());
        batches.nth(number).unwrap()
    }

    fn refusal(&self) -> &Value {
        &self.lines.last().unwrap()["summary"]["refusal"]
    }
}

impl Run {
    fn write(&mut self, batches: &[&Batch]) {
        let bytes: Vec<u8> = batches.iter().flat_map(|batch| batch.to_stream()).collect();
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(&bytes).unwrap();
    }

    fn wait_for_reading(&self, text: &str) {
        wait_for("a reading", PATIENCE, || {
            let said = fs::read(&self.said)?;
            Ok(lines(&said)
                .iter()
                .any(|line| line["text"] == text)
                .then_some(()))
        })
        .unwrap();
    }

    /// Its end, while its input stays open.
    fn end(&mut self) -> Said {
        let status = wait_for("its end", PATIENCE, || Ok(self.child.try_wait()?)).unwrap();
        Said {
            status: status.code().unwrap_or(-1),
            lines: lines(&fs::read(&self.said).unwrap()),
            errors: String::new(),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines that are whole.
fn lines(said: &[u8]) -> Vec<Value> {
    let said = std::str::from_utf8(said).unwrap();
    let whole = said
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn bytes_of(batches: &[Batch]) -> Vec<u8> {
    batches.iter().flat_map(Batch::to_stream).collect()
}

#[test]
fn a_dropped_batch_is_told_while_the_stream_stays_open() {
    let scene = Scene::new();
    let batches = scene.stream();
    let mut run = scene.start("--identity-alone");
    run.write(&[&batches[0], &batches[2]]);
    let said = run.end();
    assert_eq!((said.status, &*said.texts()), (1, "a"));
    assert_eq!(said.refusal(), "dropped");
    // In a file, what follows is there.
    let [a, b, c, d] = &batches[..] else {
        panic!("four")
    };
    let other: Vec<u8> = [a, c, d, b].iter().flat_map(|b| b.to_stream()).collect();
    scene.write("stream", other);
    let said = scene.verify("stream", SIGNED, "--identity-alone");
    assert_eq!(said.refusal(), "reordered");
}

#[test]
fn a_position_is_kept_by_one_run_at_a_time_and_files_beside_it_stay() {
    let scene = Scene::new();
    let batches = scene.stream();
    scene.write("stream", bytes_of(&batches));
    scene.write("a.new", "mine");
    let said = scene.verify("stream", SIGNED, "--identity-alone --position a.vm1");
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(fs::read(scene.path("a.new")).unwrap(), b"mine");
    let mut run = scene.start("--identity-alone --position b");
    run.write(&[&batches[0]]);
    run.wait_for_reading("a");
    let other = scene.verify("stream", SIGNED, "--identity-alone --position b");
    assert_eq!((other.status, other.lines.len()), (2, 0));
    assert!(other.errors.contains("another run"), "{other:?}");
    run.write(&[&batches[1]]);
    drop(run.child.stdin.take());
    assert_eq!(run.end().status, 0);
    let rest = "--identity-alone --position b --skip-seen";
    assert_eq!(scene.verify("stream", SIGNED, rest).texts(), "cd");
}

#[test]
fn a_revocation_list_that_is_replaced_counts_for_the_next_batch() {
    let scene = Scene::new();
    let batches = scene.stream();
    let list = |number, revoked: &[&[u8]]| {
        let list = scene.host.revocation_list(number, 0, revoked);
        scene.write("next.crl", list.to_pem());
        fs::rename(scene.path("next.crl"), scene.path("issuer.crl")).unwrap();
    };
    list(1, &[]);
    let mut run = scene.start("--identity-alone --crl issuer.crl");
    run.write(&[&batches[0]]);
    run.wait_for_reading("a");
    list(2, &[&scene.host.certificate]);
    run.write(&[&batches[1]]);
    let said = run.end();
    assert_eq!((said.status, &*said.texts()), (1, "a"));
    assert_eq!(said.refusal(), "chain");
}

#[test]
fn a_stream_whose_evidence_shows_another_boot_says_which_part_of_it() {
    let scene = Scene::new();
    scene.write("stream", bytes_of(&scene.stream()));
    // The policy expects another value of the last register that it names.
    let mut policy = scene.host.policy_text(&scene.vm).into_bytes();
    let value = |part: &[u8]| part.iter().all(u8::is_ascii_hexdigit);
    let at = policy.windows(64).rposition(value).unwrap();
    policy[at] = if policy[at] == b'0' { b'1' } else { b'0' };
    scene.write("policy.toml", policy);
    let said = scene.verify("stream", SIGNED, "--max-evidence-age 60");
    assert_eq!((said.status, &*said.texts()), (1, ""));
    let batch = said.batch(0);
    assert_eq!(batch["evidence"], "own");
    let told = batch["attestation"].to_string();
    assert!(told.contains("event-unexpected"), "{told}");
    let text = scene.command("stream", SIGNED, "--max-evidence-age 60");
    let text = { text }.output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("VM by the evidence: contraindicated"),
        "{text}"
    );
    assert!(text.contains("(event-unexpected)"), "{text}");
}

#[test]
fn evidence_before_a_position_counts_behind_it_where_its_batch_is_passed_over() {
    let scene = Scene::new();
    let batches = scene.stream();
    let options = "--max-evidence-age 60 --position position";
    scene.write("stream", bytes_of(&batches[..2]));
    let said = scene.verify("stream", SIGNED, options);
    assert_eq!((said.status, &*said.texts()), (0, "ab"), "{said:?}");
    scene.write("stream", bytes_of(&batches));
    let skip = format!("{options} --skip-seen");
    fs::copy(scene.path("position"), scene.path("before")).unwrap();
    let said = scene.verify("stream", SIGNED, &skip);
    assert_eq!((said.status, &*said.texts()), (0, "cd"), "{said:?}");
    assert_eq!(said.batch(1)["evidence"], "earlier");
    assert_eq!(said.batch(1)["evidence_age_s"], 30);
    // Only as long as its age says, and where the policy accepts it.
    fs::copy(scene.path("before"), scene.path("position")).unwrap();
    let short = skip.replace("60", "15");
    let said = scene.verify("stream", SIGNED, &short);
    assert_eq!((said.status, &*said.texts()), (1, ""));
    assert_eq!(said.batch(0)["reasons"][0]["code"], "evidence-old");
    let policy = scene.host.policy_text(&scene.host.vm());
    scene.write("policy.toml", policy);
    assert_eq!(scene.verify("stream", SIGNED, &skip).status, 1);
}

#[test]
fn nothing_is_no_verified_stream_and_what_was_seen_already_is() {
    let scene = Scene::new();
    scene.write("stream", bytes_of(&scene.stream()));
    scene.write("nothing", "");
    let options = "--identity-alone --position position";
    assert_eq!(scene.verify("nothing", SIGNED, options).status, 2);
    assert_eq!(scene.verify("stream", SIGNED, options).status, 0);
    assert_eq!(scene.verify("nothing", SIGNED, options).status, 2);
    let skip = format!("{options} --skip-seen");
    assert_eq!(scene.verify("stream", SIGNED, &skip).status, 0);
    assert_eq!(scene.verify("nothing", SIGNED, &skip).status, 2);
}

#[test]
fn a_stream_whose_reader_has_gone_is_not_read_to_its_end() {
    let scene = Scene::new();
    let (reader, output) = UnixStream::pair().unwrap();
    reader.shutdown(Shutdown::Both).unwrap();
    let child = (scene.command("-", SIGNED, "--identity-alone"))
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(output))
        .spawn();
    let mut run = Run {
        child: child.unwrap(),
        said: Path::new("/dev/null").into(),
    };
    run.write(&[&scene.stream()[0]]);
    assert_eq!(run.end().status, 2);
}

#[test]
fn batches_that_say_an_earlier_time_do_not_pass_for_those_of_now() {
    let scene = Scene::new();
    scene.write("stream", bytes_of(&scene.stream()));
    let live = "--max-evidence-age 120 --max-delay 60";
    let said = scene.verify("stream", SIGNED, live);
    assert_eq!((said.status, &*said.texts()), (0, "abcd"));
    let said = scene.verify("stream", LATER, live);
    assert_eq!((said.status, &*said.texts()), (1, ""));
    assert_eq!(said.batch(0)["reasons"][0]["code"], "late");
}

//! `vrot-device` as others run it: exit status, standard output, JSON.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use attestation::Binding;
use attestation::event_log::EventType;
use attestation::event_log::writer::LogWriter;
use attestation::fixture::{Host, event_log, nonce};
use cert_chain::HashAlgorithm;
use printable::is_printable;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Genuine evidence, and a policy that accepts it.
struct Given {
    folder: TempDir,
}

/// The fixture's certificates begin to be valid at this time.
const AT: &str = "2026-06-01T00:00:00Z";

impl Given {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new("host-1");
        let vm = host.vm();
        let evidence = host.evidence(&vm, &nonce(), Binding::None);
        for (name, contents) in [
            ("evidence.cbor", evidence.to_cbor()),
            ("policy.toml", host.policy_text(&vm).into_bytes()),
            ("roots.pem", host.issuer.certificate_pem().into_bytes()),
            (
                "demanding.toml",
                (host.policy_text(&vm) + "\n[revocation]\nmax_crl_age_s = 86400\n").into_bytes(),
            ),
            (
                "clean.crl",
                host.revocation_list(1, 60, &[]).to_pem().into_bytes(),
            ),
            (
                "revoking.crl",
                host.revocation_list(2, 60, &[&host.certificate])
                    .der()
                    .to_vec(),
            ),
        ] {
            fs::write(folder.path().join(name), contents).unwrap();
        }
        Self { folder }
    }

    fn write(&self, name: &str, contents: &[u8]) {
        fs::write(self.folder.path().join(name), contents).unwrap();
    }

    fn device(&self, arguments: &[&str]) -> Output {
        device(self.folder.path(), arguments)
    }

    fn verify(&self, evidence: &str, nonce: &str, policy: &str, more: &[&str]) -> Output {
        let arguments = [
            "verify",
            "--evidence",
            evidence,
            "--nonce",
            nonce,
            "--policy",
            policy,
            "--at",
            AT,
        ];
        self.device(&[&arguments, more].concat())
    }
}

fn device(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vrot-device"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn good_nonce() -> String {
    nonce().to_string()
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn genuine_evidence_ends_with_0_and_the_verdict_is_the_last_line() {
    let given = Given::new();
    let output = given.verify("evidence.cbor", &good_nonce(), "policy.toml", &[]);
    assert_eq!(status(&output), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().last(), Some("verdict: affirming"));
    let output = given.verify("evidence.cbor", &good_nonce(), "policy.toml", &["--json"]);
    assert_eq!(json_of(&output)["ear_status"], "affirming");
}

#[test]
fn refused_evidence_ends_with_1_and_an_ear_that_says_why() {
    let given = Given::new();
    let other = "5a".repeat(32);
    let output = given.verify("evidence.cbor", &other, "policy.toml", &[]);
    assert_eq!(status(&output), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().last(), Some("verdict: contraindicated"));

    let output = given.verify("evidence.cbor", &other, "policy.toml", &["--json"]);
    assert_eq!(status(&output), Some(1));
    let ear = json_of(&output);
    assert_eq!(ear["ear_status"], "contraindicated");
    assert_eq!(ear["verdict"], "contraindicated");
    assert_eq!(ear["refusal"]["code"], "nonce");
    assert_eq!(ear["reasons"][0]["code"], "nonce");
    for layer in ["host", "vm"] {
        let vector = &ear["submods"][layer]["ear_trustworthiness_vector"];
        assert_eq!(vector["instance-identity"], 99, "{ear:#}");
    }
}

#[test]
fn a_revocation_list_is_given_as_a_file_and_what_it_says_is_told() {
    let given = Given::new();
    let verify = |policy: &str, more: &[&str]| {
        let output = given.verify("evidence.cbor", &good_nonce(), policy, more);
        (status(&output), String::from_utf8(output.stdout).unwrap())
    };
    let (ended, text) = verify("demanding.toml", &[]);
    assert_eq!(ended, Some(1), "{text}");
    assert!(
        text.contains("(crl-missing)") && text.contains("--crl"),
        "{text}"
    );
    let (ended, text) = verify("demanding.toml", &["--crl", "clean.crl"]);
    assert_eq!(ended, Some(0), "{text}");
    assert!(
        text.contains("not revoked: list 1 of 2026-05-31T23:59:00Z"),
        "{text}"
    );
    let both = ["--crl", "revoking.crl", "--crl", "clean.crl"];
    for policy in ["demanding.toml", "policy.toml"] {
        let (ended, text) = verify(policy, &both);
        assert_eq!(ended, Some(1), "{text}");
        assert!(text.contains("(revoked)"), "{text}");
        assert!(text.contains("host-1.demo.example"), "{text}");
    }
    let (ended, text) = verify("policy.toml", &[]);
    assert_eq!(ended, Some(0), "{text}");
    assert!(text.contains("revocation not asked for"), "{text}");

    for unusable in ["roots.pem", "absent.crl", "evidence.cbor"] {
        let more = ["--crl", unusable];
        let output = given.verify("evidence.cbor", &good_nonce(), "policy.toml", &more);
        assert_eq!(status(&output), Some(2));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(
            told.contains(unusable) && told.contains("revocation list"),
            "{told}"
        );
    }
}

#[test]
fn what_cannot_be_judged_ends_with_2_and_a_word_on_standard_error() {
    let given = Given::new();
    let evidence = fs::read(given.folder.path().join("evidence.cbor")).unwrap();
    given.write("truncated.cbor", &evidence[..evidence.len() - 1]);
    given.write("empty.cbor", b"");
    given.write("malformed.toml", b"[expect");
    given.write("silent.toml", b"[trust]\nroots = \"roots.pem\"\n");
    let nonce = good_nonce();
    let short = "5a".repeat(8);
    for (evidence, nonce, policy) in [
        ("missing.cbor", nonce.as_str(), "policy.toml"),
        ("truncated.cbor", &nonce, "policy.toml"),
        ("empty.cbor", &nonce, "policy.toml"),
        (".", &nonce, "policy.toml"),
        ("evidence.cbor", &nonce, "missing.toml"),
        ("evidence.cbor", &nonce, "malformed.toml"),
        ("evidence.cbor", &nonce, "silent.toml"),
        ("evidence.cbor", "no hexadecimal", "policy.toml"),
        ("evidence.cbor", &short, "policy.toml"),
        // Files that do not end.
        ("/dev/zero", &nonce, "policy.toml"),
        ("evidence.cbor", &nonce, "/dev/zero"),
    ] {
        for more in [&[][..], &["--json"]] {
            let output = given.verify(evidence, nonce, policy, more);
            let case = format!("{evidence} {nonce} {policy}: {output:?}");
            assert_eq!(status(&output), Some(2), "{case}");
            assert!(output.stdout.is_empty(), "{case}");
            assert!(!output.stderr.is_empty(), "{case}");
        }
    }
}

#[test]
fn an_event_log_is_told_in_json_with_the_pcrs_it_leads_to() {
    let given = Given::new();
    given.write("log", &event_log(&[(0, 0x8000_0008, b"firmware")]));
    let output = given.device(&["event-log", "log", "--json"]);
    assert_eq!(status(&output), Some(0));
    let told = json_of(&output);
    let event = told["events"].as_array().unwrap().last().unwrap();
    assert_eq!(event["pcr"], 0);
    assert_eq!(event["type"], "EV_EFI_PLATFORM_FIRMWARE_BLOB");
    let digest = "c3bf47ea1f4a4a605470313cacb3a44f4a461f68c6faeab07e737610cb5ac835";
    assert_eq!(event["digests"], json!({ "sha256": digest }));
    let value = "3e287e57770de15677579228044a2abe6ca7c39d61de4b8a47fd6b7209dd0bab";
    assert_eq!(told["pcrs"], json!({ "sha256": { "0": value } }));
}

/// As firmware for TPM 1.2 wrote it: no header, one SHA-1 digest for each event.
#[test]
fn a_log_with_sha1_alone_is_replayed() {
    let given = Given::new();
    let digest = "9069ca78e7450a285173431b3e52c5c25299e473";
    let log = [
        &4u32.to_le_bytes(),
        &4u32.to_le_bytes(),
        hex::decode(digest).unwrap().as_slice(),
        &4u32.to_le_bytes(),
        &[0; 4],
    ]
    .concat();
    given.write("log", &log);
    let told = json_of(&given.device(&["event-log", "log", "--json"]));
    let event = &told["events"][0];
    assert_eq!(
        (&event["pcr"], &event["type"]),
        (&json!(4), &json!("EV_SEPARATOR"))
    );
    assert_eq!(event["digests"], json!({ "sha1": digest }));
    let value = "b2a83b0ebf2f8374299a5b2bdfc31ea955ad7236";
    assert_eq!(told["pcrs"], json!({ "sha1": { "4": value } }));
}

#[test]
fn what_is_no_event_log_ends_with_2() {
    let given = Given::new();
    let log = event_log(&[(0, 0x8000_0008, b"firmware")]);
    given.write("truncated", &log[..log.len() - 1]);
    given.write("elsewhere", &event_log(&[(24, 0x8000_0008, b"firmware")]));
    for file in ["truncated", "elsewhere", "missing", "/dev/zero"] {
        for more in [&[][..], &["--json"]] {
            let output = given.device(&[&["event-log", file], more].concat());
            assert_eq!(status(&output), Some(2), "{file}: {output:?}");
            assert!(output.stdout.is_empty(), "{file}: {output:?}");
        }
    }
}

/// Text that clears the screen, writes a verdict, turns the reading direction and hides the rest.
const ESCAPES: &str = "\u{1b}[2J\nverdict: \u{1b}[32maffirming\u{9b}8m\u{202e}\u{200b}";

fn assert_harmless(output: &Output) {
    for stream in [&output.stdout, &output.stderr] {
        let text = std::str::from_utf8(stream).unwrap();
        let shown = text.chars().all(|c| c == '\n' || is_printable(c));
        assert!(shown, "{text:?}");
        assert!(!text.contains("\nverdict: affirming"), "{text:?}");
        assert!(!text.contains("\nverdict: \\u{1b}"), "{text:?}");
    }
}

#[test]
fn what_evidence_policies_and_logs_say_moves_no_cursor_and_forges_no_line() {
    let given = Given::new();
    let host = Host::new("host-1");
    let mut vm = host.vm();
    // A boot that the policy does not accept, of something whose name has escapes.
    let policy = host.policy_text(&vm).replace(
        "name = \"kernel\"",
        &format!("name = {}", serde_json::to_string(ESCAPES).unwrap()),
    );
    assert!(policy.contains("\\u001b"));
    vm.log = event_log(&[(0, 0x8000_0008, b"guest firmware"), (9, 6, b"other")]);
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    given.write("other.cbor", &evidence.to_cbor());
    given.write("roots.pem", host.issuer.certificate_pem().as_bytes());
    given.write("named.toml", policy.as_bytes());
    given.write("key.toml", format!("[{ESCAPES:?}]\n").as_bytes());
    given.write("raw.toml", format!("[expect]\n{ESCAPES} = 1\n").as_bytes());
    let nonce = good_nonce();
    for (nonce, policy) in [
        (nonce.as_str(), "named.toml"),
        (&nonce, "key.toml"),
        (&nonce, "raw.toml"),
        (&nonce, ESCAPES),
        (ESCAPES, "named.toml"),
    ] {
        for more in [&[][..], &["--json"]] {
            let output = given.verify("other.cbor", nonce, policy, more);
            assert_ne!(status(&output), Some(0));
            assert_harmless(&output);
        }
    }
    let named = given.verify("other.cbor", &nonce, "named.toml", &[]);
    let text = String::from_utf8(named.stdout).unwrap();
    assert!(
        text.contains(r"\u{1b}[2J\u{a}verdict: \u{1b}[32maffirming"),
        "{text}"
    );
    let json = given.verify("other.cbor", &nonce, "named.toml", &["--json"]);
    let told = json_of(&json)["reasons"].to_string();
    assert!(told.contains(r"\u001b[2J\nverdict"), "{told}");
    assert_harmless(&given.device(&["event-log", ESCAPES]));
    assert_harmless(&given.device(&["attest", "--connect", ESCAPES, "--policy", "policy.toml"]));
}

/// As the kernel hands it out on machines with oddities: fill behind the last event, and a note
/// without a PCR.
#[test]
fn a_note_without_a_pcr_is_told_as_it_is_and_fill_is_no_event() {
    let given = Given::new();
    let mut log = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
    log.note(u32::MAX, b"SP800-155 Event");
    log.measure(0, EventType::S_CRTM_VERSION, b"firmware");
    log.raw(&[0xff; 100]);
    given.write("log", log.bytes());
    let told = json_of(&given.device(&["event-log", "log", "--json"]));
    let pcrs: Vec<&Value> = told["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["pcr"])
        .collect();
    assert_eq!(pcrs, [&json!(0), &json!(u32::MAX), &json!(0)]);
    let text = String::from_utf8(given.device(&["event-log", "log"]).stdout).unwrap();
    assert!(text.contains("PCR 0xffffffff  EV_NO_ACTION"), "{text}");
}

#[test]
fn a_bank_that_an_event_lacks_is_told_as_incomplete_with_event_and_offset() {
    let given = Given::new();
    let mut log = LogWriter::crypto_agile(&[HashAlgorithm::Sha1, HashAlgorithm::Sha256]);
    log.measure(0, EventType::S_CRTM_VERSION, b"firmware");
    let offset = log.bytes().len();
    log.measure_in(
        &[HashAlgorithm::Sha256],
        12,
        EventType::IPL,
        b"command line",
    );
    given.write("log", log.bytes());
    let told = json_of(&given.device(&["event-log", "log", "--json"]));
    let banks: Vec<&String> = told["pcrs"].as_object().unwrap().keys().collect();
    assert_eq!(banks, ["sha256"]);
    let reason = told["incomplete"]["sha1"]["reason"].as_str().unwrap();
    assert!(
        reason.contains(&format!("event 2 (offset {offset})")),
        "{reason}"
    );
    assert!(told["incomplete"]["sha1"]["pcrs"]["0"].is_string());
    assert!(told["incomplete"]["sha1"]["pcrs"]["12"].is_null());
}

#[test]
fn the_running_systems_log_continues_the_firmwares_unless_it_is_unfinished() {
    let given = Given::new();
    let mut log = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
    log.measure(0, EventType::S_CRTM_VERSION, b"firmware");
    log.extend(HashAlgorithm::Sha256, 11, &[7; 32]);
    given.write("log", log.bytes());
    let record = format!(
        "\x1e{{\"pcr\":11,\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{}\"}}],\
         \"content\":{{\"eventType\":\"phase\",\"string\":\"\\u001b[31mready\"}}}}\n",
        "07".repeat(32)
    );
    given.write("userspace", record.as_bytes());
    let command = ["event-log", "log", "--userspace", "userspace"];
    let told = json_of(&given.device(&[&command[..], &["--json"]].concat()));
    let expected = hex::encode(&log.pcrs(HashAlgorithm::Sha256)[&11]);
    assert_eq!(told["pcrs"]["sha256"]["11"], expected);
    assert_eq!(told["userspace_events"][0]["type"], "phase");
    let text = given.device(&command).stdout;
    assert!(!text.contains(&0x1b), "an escape on the terminal");

    let file = given.folder.path().join("userspace");
    fs::set_permissions(file, fs::Permissions::from_mode(0o1600)).unwrap();
    let refused = given.device(&command);
    assert_eq!(status(&refused), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("sticky bit"));
}

#[test]
fn a_bank_that_nothing_was_measured_into_is_no_reference() {
    let given = Given::new();
    let mut log = LogWriter::sha1();
    log.measure(0, EventType::S_CRTM_VERSION, b"firmware");
    given.write("log", log.bytes());
    let output = given.device(&["reference", "--event-log", "log", "--layer", "host"]);
    assert_eq!(status(&output), Some(2));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("sha256") && said.contains("sha1"), "{said}");
}

/// The first and the last second that can be written, what computers count to, and offsets beyond.
#[test]
fn evidence_is_judged_as_of_any_time_and_no_time_is_a_panic() {
    let given = Given::new();
    let nonce = good_nonce();
    let judge = |at: &str, more: &[&str]| {
        let judged = [
            "verify",
            "--evidence",
            "evidence.cbor",
            "--nonce",
            &nonce,
            "--policy",
            "policy.toml",
            "--at",
            at,
        ];
        given.device(&[&judged, more].concat())
    };
    for (at, seconds) in [
        ("1970-01-01T00:00:00Z", 0_i64),
        ("1970-01-01T00:00:01Z", 1),
        ("2038-01-19T03:14:08Z", 1 << 31),
        ("2106-02-07T06:28:16Z", 1 << 32),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
        ("9999-12-31T23:59:59-23:59", 253_402_387_139),
    ] {
        assert_eq!(status(&judge(at, &[])), Some(1), "{at}");
        let json = judge(at, &["--json"]);
        assert_eq!(status(&json), Some(1), "{at}");
        let result: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(result["iat"], seconds, "{at}");
        assert!(result["submods"].is_object(), "{at}: {result}");
        assert_eq!(result["verdict"], "contraindicated", "{at}");
    }
    for at in [
        "1969-12-31T23:59:59Z",
        "0000-01-01T00:00:00Z",
        "0000-01-01T00:00:00+23:59",
        "-9999-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "2026-06-01T00:00:00+99:99",
        "",
    ] {
        assert_eq!(status(&judge(at, &[])), Some(2), "{at}");
    }
}

#[test]
fn a_result_may_live_as_long_as_a_number_can_say() {
    let given = Given::new();
    let policy = fs::read_to_string(given.folder.path().join("policy.toml")).unwrap();
    for (lifetime, expected) in [
        ("0", Some(0)),
        ("1", Some(0)),
        (&i64::MAX.to_string(), Some(0)),
    ] {
        let text = format!("{policy}\n[freshness]\nresult_lifetime_s = {lifetime}\n");
        given.write("long.toml", text.as_bytes());
        let judged = given.verify("evidence.cbor", &good_nonce(), "long.toml", &["--json"]);
        let said = String::from_utf8_lossy(&judged.stderr);
        assert_eq!(status(&judged), expected, "{lifetime}: {said}");
    }
}

#[test]
fn a_tenants_evidence_is_judged_vm_by_vm_and_is_not_taken_for_a_services() {
    let given = Given::new();
    let host = Host::new("host-1");
    let (vm, other) = (host.vm(), host.vm());
    let text = host.policy_text(&vm) + "[vm.without_log]\ndemand = [\"pinned-pcrs\"]\n";
    given.write("policy.toml", text.as_bytes());
    given.write("roots.pem", host.issuer.certificate_pem().as_bytes());
    let set = host.evidence_set(&[&vm, &other], &nonce());
    given.write("set.cbor", &set.to_cbor());
    let verify = |more: &[&str]| given.verify("set.cbor", &good_nonce(), "policy.toml", more);
    let meant = vm.vm.to_string();
    let output = verify(&["--purpose", "tenant", "--vm", &meant]);
    assert_eq!(status(&output), Some(0), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains(&meant) && said.ends_with("verdict: affirming\n"),
        "{said}"
    );
    let all = verify(&["--purpose", "tenant", "--json"]);
    assert_eq!(status(&all), Some(1));
    let all = json_of(&all);
    assert_eq!(all["verdict"], "contraindicated");
    assert_eq!(all["vms"][0]["verdict"], "affirming");
    assert_eq!(all["vms"][1]["result"]["ear_status"], "contraindicated");
    let service = verify(&["--json"]);
    assert_eq!(status(&service), Some(1));
    assert_eq!(json_of(&service)["refusal"]["code"], "purpose");
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    given.write("one.cbor", &evidence.to_cbor());
    let nonce = good_nonce();
    let tenant = given.verify("one.cbor", &nonce, "policy.toml", &["--purpose", "tenant"]);
    assert_eq!(status(&tenant), Some(1));
    // What is no evidence at all is not judged.
    given.write("garbage", &[0xff; 64]);
    for more in [&["--purpose", "tenant"][..], &[], &["--vm", &meant]] {
        let output = given.verify("garbage", &nonce, "policy.toml", more);
        assert_eq!(status(&output), Some(2), "{more:?}");
    }
}

//! Lists of makers as people have them: each certificate of a file counts, or the file is refused.

use std::fs;
use std::process::Command;

use cert_chain::pem::{FileError, certificates};
use cert_chain::{TpmMakerRoots, TrustAnchorError, TrustAnchors};

use crate::support::Maker;

/// Three makers' roots in PEM, each with a line end behind it.
fn three() -> [String; 3] {
    ["one", "two", "three"].map(|name| Maker::new(name).root_pem())
}

fn der(pem: &str) -> Vec<u8> {
    certificates(pem.as_bytes()).unwrap().remove(0).der.to_vec()
}

fn relabelled(pem: &str, label: &str) -> String {
    pem.replace("CERTIFICATE", label)
}

fn windows(pem: &str) -> String {
    format!("\u{feff}{}", pem.replace('\n', "\r\n"))
}

#[test]
fn every_certificate_of_a_file_is_read_however_the_file_was_made() {
    let [one, two, three] = three();
    let all = TrustAnchors::from_pem(&[one.as_str(), &two, &three].concat()).unwrap();
    let joined = |parts: &[&str]| parts.iter().map(|part| part.trim_end()).collect::<String>();
    let files: [(&str, Vec<u8>); 8] = [
        ("END and BEGIN on one line", joined(&[&one, &two, &three]).into()),
        (
            "the older label",
            [&one, &relabelled(&two, "X509 CERTIFICATE"), &three].map(String::as_str).concat().into(),
        ),
        (
            "OpenSSL's label",
            [&relabelled(&one, "TRUSTED CERTIFICATE"), &two, &three].map(String::as_str).concat().into(),
        ),
        (
            "files of Windows, one after the other",
            [windows(&one), windows(&two), windows(&three)].concat().into(),
        ),
        (
            "text between",
            format!("Maker One\n=========\n{one}\n# END of one; --- two\n  {two}subject=/O=Drei & S\u{f6}hne\n{three}\n").into(),
        ),
        ("DER among PEM", [one.as_bytes(), &der(&two), three.as_bytes()].concat()),
        ("DER alone", [der(&one), der(&two), der(&three)].concat()),
        ("no line end in the body", format!("{}{two}{three}", one.replace("\n", "").replace("----------", "-----\n-----")).into()),
    ];
    for (how, file) in files {
        let read = TrustAnchors::from_pem(&file).unwrap_or_else(|error| panic!("{how}: {error}"));
        assert_eq!(read.digest(), all.digest(), "{how}");
    }
}

#[test]
fn what_would_be_passed_over_is_refused_and_found_by_its_line() {
    let [one, two, _] = three();
    let lines = one.lines().count();
    let behind = lines + 1;
    let cut_off = two.trim_end().strip_suffix('-').unwrap();
    let named = |what: &str| format!("-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n");
    let cases: [(String, Vec<u8>); 9] = [
        (format!("line {behind} "), format!("{one}# {two}").into()),
        (
            format!("line {behind} "),
            format!("{one}{}", two.replace("-----", "----")).into(),
        ),
        (
            format!("line {behind} "),
            format!("{one}{}", two.replace("-----", "\u{2014}")).into(),
        ),
        (format!("line {behind} "), format!("{one}{cut_off}").into()),
        (
            format!("line {behind} "),
            format!("{one}{}", named("PRIVATE KEY")).into(),
        ),
        (
            format!("line {behind} "),
            format!("{one}{}", named("X509 CRL")).into(),
        ),
        (
            format!("line {behind} "),
            format!("{one}{}", two.replacen("MII", "*II", 1)).into(),
        ),
        (
            "at byte 1 ".to_owned(),
            one.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        ),
        (
            format!("at byte {} ", one.len()),
            [one.as_bytes(), &[0x30, 0x82, 1, 0, 7]].concat(),
        ),
    ];
    for (place, file) in cases {
        let error = TpmMakerRoots::from_pem(&file).unwrap_err();
        assert!(matches!(error, TrustAnchorError::File(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(place.trim_end()), "{place}: {text}");
    }
    assert!(matches!(
        TpmMakerRoots::from_pem("nothing in it"),
        Err(TrustAnchorError::Empty)
    ));
}

#[test]
fn trust_settings_of_openssl_are_not_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let [one, _, _] = three();
    fs::write(folder.path().join("one.pem"), &one).unwrap();
    let trusted = |settings: &[&str]| {
        let output = Command::new("openssl")
            .args(["x509", "-in", "one.pem", "-trustout"])
            .args(settings)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    };
    for harmless in [&[][..], &["-setalias", "Maker One"]] {
        let read = TrustAnchors::from_pem(&trusted(harmless)).unwrap();
        assert_eq!(
            read.digest(),
            TrustAnchors::from_pem(&one).unwrap().digest()
        );
    }
    for settings in [
        ["-addtrust", "serverAuth"],
        ["-addreject", "anyExtendedKeyUsage"],
    ] {
        let error = TrustAnchors::from_pem(&trusted(&settings)).unwrap_err();
        assert!(
            matches!(
                error,
                TrustAnchorError::File(FileError::TrustSettings { line: 1 })
            ),
            "{error}"
        );
    }
}

/// END and BEGIN that share their dashes: the second certificate is not passed over.
#[test]
fn a_begin_that_lost_its_dashes_to_the_end_before_it_is_refused() {
    let one = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----";
    for rest in ["BEGIN CERTIFICATE-----\nMAA=\n", "BEGIN IN text"] {
        let file = format!("{one}{rest}");
        assert!(matches!(
            cert_chain::pem::certificates(file.as_bytes()),
            Err(cert_chain::pem::FileError::Mark { line: 3 })
        ));
    }
    assert!(cert_chain::pem::certificates(one.as_bytes()).is_ok());
}

//! Hosts that are not who they should be, and hosts that say what no manager says.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rcgen::{CertificateParams, KeyPair};

use crate::server::{Answers, Client, host, list, ok, serve, serve_with};

/// A tenant of one host that answers this.
fn client_of(answers: Answers) -> Client {
    let host = host("host-1");
    let vm = host.vm();
    let port = serve(&host, answers);
    Client::of(&host, &vm, &[(&host, port)])
}

fn chunked(lines: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n{lines}").into_bytes()
}

#[test]
fn a_host_of_another_issuer_another_name_or_with_a_revoked_certificate_is_not_spoken_to() {
    let own = host("host-1");
    let vm = own.vm();
    let answers = || -> Answers {
        let empty = list(&host("host-1"), &[]);
        Box::new(move |_| empty.clone())
    };
    let of_own = Client::of(&own, &vm, &[(&own, serve(&own, answers()))]);
    assert_eq!(of_own.json(&["vms"]).0, 0);
    let refused = |client: &Client, what: &str| {
        let (status, told) = client.json(&["vms"]);
        assert_eq!(
            (status, &told["hosts"][0]["error"]["code"]),
            (3, &"tls".into()),
            "{told:#}"
        );
        let why = told["hosts"][0]["error"]["text"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(why.contains(what), "{why}");
    };
    // The same name of another issuer's, and a certificate for itself.
    let foreign = host("host-1");
    refused(
        &Client::of(&own, &vm, &[(&own, serve(&foreign, answers()))]),
        "BadSignature",
    );
    let key = KeyPair::generate().unwrap();
    let itself = CertificateParams::new(vec![own.name.to_string()]).unwrap();
    let itself = itself.self_signed(&key).unwrap();
    let port = serve_with(vec![itself.der().clone()], &key, answers());
    refused(&Client::of(&own, &vm, &[(&own, port)]), "certificate");
    // A neighbour of the same issuer.
    let neighbour = crate::server::neighbour(&own, "host-2");
    refused(
        &Client::of(&own, &vm, &[(&own, serve(&neighbour, answers()))]),
        "not valid for name",
    );
    // The older list counts no more, wherever it stands.
    let (clean, revoking) = (
        own.revocation_list(1, 120, &[]),
        own.revocation_list(2, 60, &[&own.certificate]),
    );
    of_own.write("clean.crl", &clean.to_pem());
    of_own.write("revoking.crl", &revoking.to_pem());
    of_own.change("deadline_s", "crls = [\"clean.crl\"]\ndeadline_s");
    assert_eq!(of_own.json(&["vms"]).0, 0);
    of_own.change("\"clean.crl\"", "\"clean.crl\", \"revoking.crl\"");
    refused(&of_own, "Revoked");
}

#[test]
fn answers_that_are_too_long_none_at_all_or_something_else_are_told_as_such() {
    let endless = client_of(Box::new(|_| {
        let spaces = vec![b' '; 33 * 1024 * 1024];
        ok("application/json", &spaces)
    }));
    let deep = client_of(Box::new(|_| {
        ok("application/json", "[".repeat(1 << 20).as_bytes())
    }));
    let header = client_of(Box::new(|_| {
        format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes()
    }));
    let ends = client_of(Box::new(|_| {
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec()
    }));
    let other = client_of(Box::new(|_| ok("text/html", b"<html>")));
    let problem = client_of(Box::new(|_| {
        b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n".to_vec()
    }));
    for (client, code) in [
        (endless, "answer-too-long"),
        (deep, "answer"),
        (header, "connection"),
        (ends, "connection"),
        (other, "answer"),
        (problem, "request-refused"),
    ] {
        let (status, told) = client.json(&["vms"]);
        assert_eq!(
            (status, &told["hosts"][0]["error"]["code"]),
            (3, &code.into()),
            "{told:#}"
        );
        let output = client.run(&["attest", "--all"]);
        assert_eq!(output.status.code(), Some(3), "{code}");
    }
    // One that says nothing has until the deadline.
    let silent = client_of(Box::new(|_| {
        std::thread::sleep(std::time::Duration::from_secs(20));
        Vec::new()
    }));
    silent.change("deadline_s = 30", "deadline_s = 1");
    let (status, told) = silent.json(&["vms"]);
    assert_eq!(
        (status, &told["hosts"][0]["error"]["code"]),
        (3, &"deadline".into()),
        "{told:#}"
    );
}

#[test]
fn what_a_terminal_would_obey_is_shown_and_not_sent_to_it() {
    const EVIL: &str = "\u{1b}]0;owned\u{7}\u{202e}\nverdict: affirming";
    let host = host("host-1");
    let vm = host.vm();
    let mut told = String::from_utf8(list(&host, &[&vm])).unwrap();
    let evil = serde_json::to_string(EVIL).unwrap();
    told = told.split("\r\n\r\n").nth(1).unwrap().to_owned();
    told = told.replace("\"name\":null", &format!("\"name\":{evil}"));
    let problem = format!("{{\"type\":{evil},\"title\":\"\",\"status\":400,\"detail\":{evil}}}");
    let refused = format!(
        "HTTP/1.1 400 X\r\ncontent-length: {}\r\n\r\n{problem}",
        problem.len()
    );
    let event = format!(
        "{{\"kind\":\"hello\",\"manager\":\"7c9e6679-7425-40de-944b-e07fc1f90ae7\",\"oldest\":1,\"next\":1}}\n\
         {{\"number\":1,\"at\":\"2026-11-28T19:15:00Z\",\"kind\":{evil},\"details\":{{\"cause\":{evil}}}}}\n"
    );
    let client = client_of(Box::new(move |asked| {
        match asked.line.split(' ').nth(1).unwrap() {
            "/v1/vms" => ok("application/json", told.as_bytes()),
            "/v1/events" => chunked(&event),
            _ => refused.clone().into_bytes(),
        }
    }));
    for arguments in [
        &["vms"][..],
        &["attest", "--all"],
        &["--output", "json", "vms"],
    ] {
        let output = client.run(arguments);
        let shown = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(shown.contains("owned"), "{shown:?}");
        assert!(
            !shown.contains(['\u{1b}', '\u{7}', '\u{202e}'])
                && !shown.contains("\nverdict: affirming"),
            "{shown:?}"
        );
    }
    let mut watch = client
        .command(&["watch"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find(|line| line.contains("owned"));
    watch.kill().unwrap();
    watch.wait().unwrap();
    let line = line.unwrap();
    assert!(!line.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{line:?}");
}

#[test]
fn events_that_a_host_leaves_out_or_tells_twice_are_told_and_it_is_followed_anew() {
    const MANAGER: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
    let client = client_of(Box::new(|asked| {
        let path = asked.line.split(' ').nth(1).unwrap().to_owned();
        let hello =
            format!("{{\"kind\":\"hello\",\"manager\":\"{MANAGER}\",\"oldest\":1,\"next\":9}}\n");
        let event = |number| {
            format!(
                "{{\"number\":{number},\"at\":\"2026-11-28T19:15:00Z\",\"kind\":\"started\"}}\n"
            )
        };
        let more = match path.as_str() {
            "/v1/events?after=0" => [event(1), event(4), event(4)].concat(),
            _ if path == format!("/v1/events?after=4&manager={MANAGER}") => event(5),
            _ => format!("{{\"kind\":\"missed\",\"from\":6,\"to\":8}}\n{}", event(9)),
        };
        chunked(&(hello + &more))
    }));
    let mut watch = client
        .command(&["--output", "json", "watch", "--earlier"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut told = Vec::new();
    for line in lines.map_while(Result::ok) {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["host"], "host-1.demo.example");
        told.push(match (&line["number"], line["kind"].as_str().unwrap()) {
            (serde_json::Value::Null, "missed") => {
                format!("missed {}-{}", line["from"], line["to"])
            }
            (serde_json::Value::Null, kind) => kind.to_owned(),
            (number, _) => number.to_string(),
        });
        if told.last().unwrap() == "9" {
            break;
        }
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(
        told,
        [
            "following",
            "1",
            "missed 2-3",
            "4",
            "lost",
            "following",
            "5",
            "ended",
            "following",
            "missed 6-8",
            "9"
        ]
    );
}

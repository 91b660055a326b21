//! Who sees the page that shows hosts: a browser of this machine with the token, and nobody else.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::process::Process;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use vrot_tests::chromium::REBOUND;
use vrot_tests::dashboard::Dashboard;
use vrot_tests::fake_manager::{FakeManager, vrot};

use crate::dashboard::browser;

#[test]
fn a_browser_without_the_token_or_under_a_strangers_name_sees_nothing() -> Result<()> {
    let run = RunFolder::create("dashboard-access")?;
    let manager = FakeManager::start(&run.join("manager.sock"))?;
    manager.tell_host("host-1.test.example", &[vrot(1, "precious", "running")]);
    let page = Dashboard::start(
        &run.join(""),
        &run.log("dashboard.log"),
        &[manager.socket()],
    )?;
    let mode = fs::metadata(run.join("dashboard.token"))?.permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    // A wrong token, and then the right one.
    let tab = browser()?.open(&page.url)?;
    page.enter(&tab, &"0".repeat(32))?;
    tab.wait(
        "the refusal",
        "document.querySelector('#token-error').textContent.includes('wrong')",
    )?;
    ensure!(
        !tab.text("document.documentElement.textContent")?
            .contains("precious")
    );
    page.enter(&tab, &page.token)?;
    tab.wait(
        "the page",
        "document.querySelector('.row')?.innerText.includes('precious')",
    )?;
    // It is nowhere where others find it, and a tab that is loaded anew has it still.
    let traces = tab.text(
        "location.href + document.cookie + document.referrer + JSON.stringify(localStorage)",
    )?;
    ensure!(!traces.contains(&page.token), "{traces}");
    tab.go(&page.url)?;
    tab.wait(
        "the page",
        "document.querySelector('.row')?.innerText.includes('precious')",
    )?;

    // A stranger's name that leads here shows nothing, not even the question for the token.
    let rebound = page.url.replace("127.0.0.1", REBOUND);
    let stranger = browser()?.open(&rebound)?;
    let said = stranger.text("document.documentElement.innerText")?;
    ensure!(said.contains("names of the loopback only"), "{said}");

    let authority = page.url.trim_start_matches("http://").trim_end_matches('/');
    let bearer = format!("Authorization: Bearer {}", page.token);
    let host_of = |name: &str| format!("Host: {name}");
    let own = host_of(authority);
    let stream = "GET /api/stream";
    for (request, headers, status) in [
        ("GET /", vec![own.as_str()], 200),
        (stream, vec![&own, &bearer], 200),
        (
            stream,
            vec![&own, &bearer, "Sec-Fetch-Site: same-origin"],
            200,
        ),
        (stream, vec![&own], 401),
        (stream, vec![&own, "Authorization: Bearer 0"], 401),
        (&format!("{stream}?token={}", page.token), vec![&own], 401),
        (
            stream,
            vec![&own, &format!("Cookie: token={}", page.token)],
            401,
        ),
        (
            stream,
            vec![&own, &bearer, "Origin: http://attacker.example"],
            403,
        ),
        (
            stream,
            vec![&own, &bearer, "Sec-Fetch-Site: cross-site"],
            403,
        ),
        (
            stream,
            vec![&own, &bearer, "Sec-Fetch-Site: same-site"],
            403,
        ),
        ("GET /", vec!["Host: attacker.example"], 421),
        (stream, vec!["Host: attacker.example", &bearer], 421),
        (stream, vec![&bearer], 421),
        ("POST /api/stream", vec![&own, &bearer], 405),
        (
            "DELETE /api/hosts/0/vrots/00000000-0000-4000-8000-000000000001",
            vec![&own, &bearer],
            405,
        ),
        (
            "GET /api/hosts/1/vrots/00000000-0000-4000-8000-000000000001",
            vec![&own, &bearer],
            404,
        ),
        ("GET /api/hosts/0/vrots/..%2fhost", vec![&own, &bearer], 404),
        ("GET /api/anything", vec![&own, &bearer], 404),
        ("GET /../Cargo.toml", vec![&own], 401),
    ] {
        let head = ask(authority, request, &headers)?;
        let found = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        assert_eq!(found, Some(status), "{request} {headers:?}: {head}");
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "x-frame-options: DENY",
            "cache-control: no-store",
            "cross-origin-opener-policy: same-origin",
            "cross-origin-resource-policy: same-origin",
        ] {
            ensure!(head.contains(header), "{request}: no {header}: {head}");
        }
        ensure!(!head.contains("access-control-"), "{head}");
        ensure!(!head.contains("set-cookie"), "{head}");
    }
    Ok(())
}

#[test]
fn on_a_socket_curl_reads_the_same_lines_with_the_token_only() -> Result<()> {
    let run = RunFolder::create("dashboard-socket")?;
    let manager = FakeManager::start(&run.join("manager.sock"))?;
    manager.tell_host("host-1.test.example", &[vrot(1, "web-1", "running")]);
    let (socket, token) = (run.join("page.sock"), run.join("token"));
    let mut command = Command::new(program("vtpmctl")?);
    command.arg("--socket").arg(manager.socket());
    command.arg("dashboard").arg("--listen").arg(&socket);
    command.arg("--token-file").arg(&token);
    let log = run.log("dashboard.log");
    let mut page = Process::start("vtpmctl dashboard", command, &log)?;
    page.wait_until("the token", Duration::from_secs(30), || {
        Ok(fs::read_to_string(&token)
            .ok()
            .filter(|token| !token.is_empty()))
    })?;
    for path in [&socket, &token] {
        assert_eq!(fs::metadata(path)?.permissions().mode() & 0o777, 0o600);
    }
    let token = fs::read_to_string(&token)?;
    let follow = |bearer: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer", "--max-time", "60"])
            .arg("--unix-socket")
            .arg(&socket)
            .args(["--header", &format!("Authorization: Bearer {bearer}")])
            .arg("http://localhost/api/stream");
        curl
    };
    // It goes on until curl ends.
    let mut curl = follow(token.trim()).stdout(Stdio::piped()).spawn()?;
    let mut told = String::new();
    let mut kinds = Vec::new();
    let all = ["ready", "host", "rows", "sample"];
    let output = BufReader::new(curl.stdout.take().context("its output")?);
    for value in serde_json::Deserializer::from_reader(output).into_iter() {
        let value: Value = value.with_context(|| told.clone())?;
        kinds.push(value["kind"].as_str().context("a kind")?.to_owned());
        told.push_str(&value.to_string());
        if all.iter().all(|kind| kinds.iter().any(|told| told == kind)) && told.contains("web-1") {
            break;
        }
    }
    curl.kill()?;
    curl.wait()?;
    assert_eq!(kinds.first().map(String::as_str), Some("begin"));
    for kind in all {
        ensure!(kinds.iter().any(|told| told == kind), "{kind}: {told}");
    }
    ensure!(told.contains("web-1"), "{told}");
    let refused = String::from_utf8(follow("0").output()?.stdout)?;
    ensure!(refused.contains("urn:vrot:problem:token"), "{refused}");
    // What it says on the terminal leads from another machine to the socket, and the token is not there.
    let said = fs::read_to_string(&log)?;
    ensure!(
        said.contains("ssh -L 7080:") && !said.contains(token.trim()),
        "{said}"
    );
    Ok(())
}

/// The head of an answer, in small letters where it is a header's name.
fn ask(authority: &str, request: &str, headers: &[&str]) -> Result<String> {
    let mut stream = TcpStream::connect(authority)?;
    let headers: String = headers
        .iter()
        .map(|header| format!("{header}\r\n"))
        .collect();
    write!(
        stream,
        "{request} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"
    )?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        head.extend(byte);
    }
    Ok(String::from_utf8(head)?)
}

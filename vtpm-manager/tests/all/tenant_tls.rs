//! What a tenant's end of a connection does that curl does not: another key than its certificate's, heads
//! and bodies that end where the host gives up, and answers that are not read.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use attestation::event_log::EventType;
use attestation::event_log::writer::LogWriter;
use cert_chain::HashAlgorithm;
use rustls::AlertDescription;
use serde_json::json;

use crate::support::evidence::{NONCE, log_into};
use crate::support::tenant::{Tenant, serve_tenants};
use crate::support::tls_client::TlsClient;
use crate::support::{Host, wait_until};

fn serving() -> Result<Host> {
    let mut host = Host::enrolled()?;
    serve_tenants(&mut host, "")?;
    Ok(host)
}

#[test]
fn a_tenant_s_certificate_without_its_key_is_refused_in_the_handshake() -> Result<()> {
    let host = serving()?;
    let acme = Tenant::certified(&host, "acme")?;
    let other = Tenant::certified(&host, "other")?;
    let request = b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n";
    let alert = TlsClient::with_key(&acme, other.key())?.alert(request);
    let refused = rustls::Error::AlertReceived(AlertDescription::DecryptError);
    assert_eq!(alert, Some(refused));
    assert_eq!(host.metric("vrot_tenant_admissions_total")?, 0.0);
    let mut own = TlsClient::of(&acme)?;
    own.write(request)?;
    assert_eq!(own.status()?, 200);
    Ok(())
}

#[test]
fn a_head_or_a_body_that_is_too_long_is_refused_with_the_reason() -> Result<()> {
    let host = serving()?;
    let acme = Tenant::certified(&host, "acme")?;
    // No more than what is read before the answer: what is not read would take the answer away.
    let begin = "GET /v1/vms HTTP/1.1\r\nhost: x\r\nx-long: ";
    let head = format!("{begin}{}", "x".repeat(16 * 1024 - begin.len()));
    let begin = "POST /v1/evidence HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n";
    let body = format!("{begin}{}", "x".repeat(256 * 1024 + 1));
    for (request, status) in [(head, 431), (body, 413)] {
        let mut client = TlsClient::of(&acme)?;
        client.write(request.as_bytes())?;
        assert_eq!(client.status()?, status);
    }
    assert_eq!(acme.is_admitted()?, Ok(()));
    Ok(())
}

#[test]
fn who_says_nothing_or_stops_in_the_middle_is_given_up() -> Result<()> {
    let host = serving()?;
    let acme = Tenant::certified(&host, "acme")?;
    let mut silent = TcpStream::connect(acme.address())?;
    silent.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut half = TlsClient::of(&acme)?;
    half.write(b"POST /v1/evidence HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")?;
    assert_eq!(half.status()?, 408);
    assert_eq!(silent.read(&mut [0])?, 0, "the end of its connection");
    Ok(())
}

#[test]
fn a_tenant_that_does_not_take_its_evidence_is_given_no_more() -> Result<()> {
    let host = serving()?;
    let acme = Tenant::certified(&host, "acme")?;
    let other = Tenant::certified(&host, "other")?;
    for tenant in ["acme", "other"] {
        host.ctl(
            ["create", "--tenant", tenant, "--vm"]
                .into_iter()
                .chain([uuid::Uuid::new_v4().to_string().as_str()]),
        )?;
    }
    // More than the connection's two ends have room for.
    let mut log = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
    for _ in 0..112 {
        log.measure(16, EventType::S_CRTM_VERSION, &[0; 64 * 1024]);
    }
    log_into(&host, &log)?;
    let body = json!({ "nonce": NONCE });
    let text = body.to_string();
    let request = format!(
        "POST /v1/evidence HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    let quotes = || host.metric("vrot_host_quotes_total");
    let before = quotes()?;
    let mut untaken = TlsClient::of(&acme)?;
    untaken.write(request.as_bytes())?;
    assert_eq!(untaken.status()?, 200);
    assert_eq!(quotes()?, before + 1.0);

    thread::scope(|scope| {
        let second = scope.spawn(|| acme.evidence(&body, &host.path("second.cbor")));
        wait_until("the second request", || {
            Ok(host.metric("vrot_tenant_requests_total{kind=\"evidence\"}")? == 2.0)
        })?;
        thread::sleep(Duration::from_millis(300));
        assert_eq!(quotes()?, before + 1.0);
        // Another tenant has its own turn.
        assert_eq!(other.evidence(&body, &host.path("other.cbor"))?, 200);
        assert_eq!(quotes()?, before + 2.0);
        drop(untaken);
        let second = second.join();
        ensure!(matches!(second, Ok(Ok(200))), "{second:?}");
        assert_eq!(quotes()?, before + 3.0);
        Ok::<_, anyhow::Error>(())
    })?;
    ensure!(fs::metadata(host.path("second.cbor"))?.len() > 7 << 20);
    Ok(())
}

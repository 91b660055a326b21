//! Tenants ask the manager about their VMs, with curl: each learns of its own, and of nothing else.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use test_support::tool::Tool;
use uuid::Uuid;

use crate::support::tenant::{Tenant, port, serve_tenants};
use crate::support::{DOMAIN, Host, PATIENCE, said, wait_until};

fn serving(more: &str) -> Result<Host> {
    let mut host = Host::enrolled()?;
    serve_tenants(&mut host, more)?;
    Ok(host)
}

/// Two tenants, and two VMs of each.
fn two_tenants(host: &Host) -> Result<[(Tenant, Vec<String>); 2]> {
    let of = |name| {
        let mut vms = vec![host.create_certified(name)?, host.create_certified(name)?];
        let tenant = Tenant::certified(host, name)?;
        vms.sort();
        Ok::<_, anyhow::Error>((tenant, vms))
    };
    Ok([of("acme")?, of("other")?])
}

#[test]
fn each_tenant_sees_its_own_vms_and_what_is_not_its_own_is_as_if_it_were_not_there() -> Result<()> {
    let host = serving("")?;
    let [(acme, own), (other, others)] = two_tenants(&host)?;
    for (tenant, vms) in [(&acme, &own), (&other, &others)] {
        let mut listed = tenant.vms()?;
        listed.sort();
        assert_eq!(listed, *vms);
    }
    host.ctl(["start", &own[0]])?;
    let shown = acme.json(&format!("/v1/vms/{}", own[0]))?;
    assert_eq!(shown["vm"], own[0].as_str());
    assert_eq!(shown["state"], "running");
    assert_eq!(shown["degraded"], false);
    let identity = host.json(["identity", &own[0]])?;
    for part in ["vik", "ek_rsa", "ek_p256", "chain_pem"] {
        assert_eq!(shown["keys"][part], identity[part], "{part}");
    }
    let root = fs::read_to_string(host.path("issuer/root.pem"))?;
    assert_eq!(shown["issuer_pem"], root);
    for private in ["process", "control", "state_dir", "tpm"] {
        ensure!(
            !shown.to_string().contains(&format!("\"{private}\"")),
            "{shown}"
        );
    }

    let foreign = host.json(["show", &others[0]])?;
    let vrot = foreign["vrot"].as_str().context("a vRoT")?;
    let own_vrot = shown["vrot"].as_str().context("a vRoT")?;
    let nothing = acme.ask(&format!("/v1/vms/{}", Uuid::new_v4()), &[])?;
    assert_eq!(nothing.status, 404);
    for id in [
        &others[0],
        &others[1],
        vrot,
        own_vrot,
        "00000000-0000-0000-0000-000000000000",
        "x",
        "..%2f..%2fetc",
        &others[0].to_uppercase(),
        &format!("%7b{}%7d", others[0]),
        &others[0].replace('-', ""),
    ] {
        let answer = acme.ask(&format!("/v1/vms/{id}"), &[])?;
        assert_eq!((answer.status, &answer.body), (404, &nothing.body), "{id}");
        let without_date = |headers: &std::collections::BTreeMap<String, String>| {
            let mut headers = headers.clone();
            headers.remove("date");
            headers
        };
        assert_eq!(
            without_date(&answer.headers),
            without_date(&nothing.headers),
            "{id}"
        );
    }
    // While it is made, and once it is gone.
    host.ctl(["delete", &others[1]])?;
    let gone = other.ask(&format!("/v1/vms/{}", others[1]), &[])?;
    assert_eq!((gone.status, gone.body), (404, nothing.body));
    assert_eq!(other.vms()?, [others[0].clone()]);
    Ok(())
}

#[test]
fn nothing_that_a_tenant_writes_makes_it_another_one() -> Result<()> {
    let host = serving("")?;
    let [(acme, own), (_, others)] = two_tenants(&host)?;
    for headers in [
        ["-H", "X-Tenant: other"],
        ["-H", "Tenant: other"],
        ["-H", "Authorization: Bearer other"],
        ["-H", "X-Forwarded-Client-Cert: URI=urn:vrot:tenant:other"],
        ["-H", "X-SSL-Client-S-DN: CN=other"],
        ["-H", "Host: host-2.test.example"],
        ["-H", "X-HTTP-Method-Override: DELETE"],
        ["-H", "Connection: close"],
    ] {
        let answer = acme.ask("/v1/vms", &headers)?;
        assert_eq!(answer.status, 200, "{headers:?}");
        ensure!(
            others.iter().all(|vm| !answer.body.contains(vm.as_str())),
            "{headers:?}"
        );
        ensure!(
            own.iter().all(|vm| answer.body.contains(vm.as_str())),
            "{headers:?}"
        );
    }
    let query = acme.ask("/v1/vms?tenant=other", &[])?;
    ensure!(others.iter().all(|vm| !query.body.contains(vm.as_str())));
    let events = acme.ask("/v1/events?tenant=other", &[])?;
    assert_eq!(events.status, 400);
    for (path, more) in [
        ("/v1/vrots", vec![]),
        ("/v1/host", vec![]),
        ("/metrics", vec![]),
        ("/v1/audit", vec![]),
        ("/v1/vms/../vrots", vec!["--path-as-is"]),
        ("//v1/vms", vec!["--path-as-is"]),
    ] {
        assert_eq!(acme.ask(path, &more)?.status, 404, "{path}");
    }
    for method in ["DELETE", "PUT", "PATCH"] {
        let answer = acme.ask(&format!("/v1/vms/{}", own[0]), &["-X", method])?;
        assert_eq!(answer.status, 405, "{method}");
    }
    Ok(())
}

#[test]
fn whoever_has_no_certificate_of_a_tenant_is_not_spoken_to() -> Result<()> {
    let host = serving("")?;
    let acme = Tenant::certified(&host, "acme")?;
    assert_eq!(acme.is_admitted()?, Ok(()));
    let refused = |certificate: &str, key: &str| -> Result<()> {
        let tenant = Tenant::with(&host, certificate.to_owned(), key.to_owned())?;
        let admitted = tenant.is_admitted()?;
        ensure!(admitted.is_err(), "{certificate}");
        Ok(())
    };
    // Made by somebody else, with the same names, and by the right names' owner alone.
    let (own, own_key) = (host.path("self.pem"), host.path("self.key"));
    Tool::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args([
            "-subj",
            "/CN=acme",
            "-addext",
            "subjectAltName=URI:urn:vrot:tenant:acme",
        ])
        .args([
            "-addext",
            "extendedKeyUsage=clientAuth",
            "-out",
            &own,
            "-keyout",
            &own_key,
        ])
        .run()?;
    refused(&own, &own_key)?;
    // An issuer of another domain.
    let elsewhere = host.path("elsewhere");
    let (makers, operator) = (host.path("makers.pem"), host.path("operator.pem.pub"));
    host.ctl([
        "issuer",
        "init",
        "--domain",
        "other.example",
        "--dir",
        &elsewhere,
        "--tpm-roots",
        &makers,
        "--operator-keys",
        &operator,
    ])?;
    let (foreign, foreign_key) = (host.path("foreign.pem"), host.path("foreign.key"));
    host.ctl([
        "issuer",
        "tenant",
        "add",
        "acme",
        "--dir",
        &elsewhere,
        "--out",
        &foreign,
        "--new-key",
        &foreign_key,
    ])?;
    refused(&foreign, &foreign_key)?;
    // No certificate.
    let mut curl = Command::new("curl");
    let resolve = format!("host-1.{DOMAIN}:{}:127.0.0.1", port(&host)?);
    let none = said(
        curl.args([
            "--silent",
            "--show-error",
            "--resolve",
            &resolve,
            "--cacert",
        ])
        .arg(host.path("issuer/root.pem"))
        .arg(acme.url("/v1/vms")),
    )?;
    ensure!(none.status != 0 && none.out.is_empty(), "{}", none.out);
    // Nor does the host pass for another one.
    let other_name = acme.url("/v1/vms").replace("host-1", "host-2");
    let resolve = format!("host-2.{DOMAIN}:{}:127.0.0.1", port(&host)?);
    let said = said(acme.curl().args(["--resolve", &resolve]).arg(other_name))?;
    ensure!(said.err.contains("SSL"), "{}", said.err);

    // A host counts them after it has said so.
    wait_until("the refusals", || {
        let audit = host.audit()?;
        let is_told = audit.iter().any(|line| line["event"] == "tenant-refused");
        let refused = host.metric("vrot_tenant_refusals_total{reason=\"handshake\"}")?;
        Ok(is_told && refused >= 3.0)
    })?;
    let lines = host.audit()?;
    let admitted: Vec<&Value> = (lines.iter())
        .filter(|line| line["event"] == "tenant-admitted")
        .collect();
    assert_eq!(admitted.len(), 1, "{admitted:?}");
    assert_eq!(admitted[0]["tenant"], "acme");
    ensure!(host.metric("vrot_tenant_admissions_total")? >= 1.0);
    Ok(())
}

#[test]
fn a_certificate_that_is_revoked_ends_its_connections_and_gets_no_other() -> Result<()> {
    let mut host = Host::enrolled()?;
    let (issuer, list) = (host.path("issuer"), host.path("issuer.crl"));
    host.ctl(["issuer", "crl", "--dir", &issuer, "--out", &list])?;
    serve_tenants(
        &mut host,
        &format!("crls = [\"{list}\"]\ncrl_max_age_hours = 1\n"),
    )?;
    let [(acme, _), (other, _)] = two_tenants(&host)?;
    let mut stream = acme.follow("?after=0")?;
    assert_eq!(stream.events.hello["kind"], "hello");
    let vm = host.create_for("acme")?;
    stream.events.tells(&vm, &["created", "certified"])?;

    let revoked = host.json([
        "issuer",
        "tenant",
        "revoke",
        "acme",
        "--dir",
        &issuer,
        "--reason",
        "privilege-withdrawn",
        "--crl",
        &list,
    ])?;
    assert_eq!(revoked["revoked"][0]["subject"], "urn:vrot:tenant:acme");
    while stream.events.next().is_ok_and(|line| line.is_some()) {}
    let refused = acme.is_admitted()?.err().context("it is admitted")?;
    ensure!(refused.contains("revoked"), "{refused}");
    assert_eq!(other.is_admitted()?, Ok(()));
    let ended = "vrot_tenant_refusals_total{reason=\"certificate-ended\"}";
    assert_eq!(host.metric(ended)?, 1.0);

    // A new certificate of the same tenant counts.
    let again = Tenant::certified(&host, "acme2")?;
    assert_eq!(again.vms()?, Vec::<String>::new());
    let known = host.json(["issuer", "tenant", "list", "--dir", &issuer])?;
    assert_eq!(known["certificates"].as_array().map(Vec::len), Some(3));
    Ok(())
}

#[test]
fn a_tenant_hears_of_its_own_vms_under_numbers_that_tell_nothing_of_others() -> Result<()> {
    let host = serving("")?;
    let [(acme, own), (other, others)] = two_tenants(&host)?;
    let mut stream = acme.follow("")?;
    let next = stream.events.hello["next"].as_u64().context("a number")?;
    assert_eq!(next, 5, "two of each VM");
    for _ in 0..3 {
        host.ctl(["start", &others[0]])?;
        host.ctl(["stop", &others[0]])?;
    }
    host.ctl(["start", &own[0]])?;
    let told = stream.events.tells(&own[0], &["started"])?;
    assert_eq!(told[0]["number"], next);
    let mut all = other.follow("?after=0")?;
    for number in 1..=10 {
        let event = all.events.next()?.context("an event")?;
        assert_eq!(event["number"], number);
        ensure!(
            others.iter().any(|vm| event["vm"] == vm.as_str()),
            "{event}"
        );
    }
    Ok(())
}

#[test]
fn a_tenant_that_floods_uses_up_its_own_quota_and_nobody_else_s() -> Result<()> {
    let host = serving("requests_per_minute = 40\nconnections = 2\n")?;
    let [(acme, _), (other, others)] = two_tenants(&host)?;
    let mut refused = Vec::new();
    // More than there are at once; on a busy machine places come back meanwhile.
    wait_until("refusals", || {
        let answer = acme.ask("/v1/vms", &[])?;
        refused.extend((answer.status == 429).then_some(answer));
        Ok(refused.len() >= 5)
    })?;
    assert_eq!(refused[0].headers["retry-after"], "1");
    ensure!(
        refused[0].body.contains("urn:vrot:problem:quota"),
        "{}",
        refused[0].body
    );
    assert_eq!(other.vms()?.len(), others.len());
    host.ctl(["start", &others[0]])?;

    // Connections, too.
    let mut streams = Vec::new();
    wait_until("the places of what was asked before", || {
        streams.extend(other.follow("").ok());
        Ok(streams.len() == 2)
    })?;
    for _ in 0..2 {
        ensure!(other.follow("").is_err(), "a third connection");
    }
    drop(streams);
    wait_until("a place", || Ok(other.is_admitted()?.is_ok()))?;
    Ok(())
}

#[test]
fn tls_is_version_1_3_without_tickets_and_who_says_nothing_keeps_nobody_out() -> Result<()> {
    let host = serving("")?;
    let acme = Tenant::certified(&host, "acme")?;
    let version = acme.ask("/v1/vms", &["--tls-max", "1.2"]);
    let refused = format!("{:#}", version.err().context("TLS 1.2")?);
    ensure!(refused.contains("protocol version"), "{refused}");
    let request = host.path("request");
    fs::write(
        &request,
        "GET /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )?;
    let hello = Command::new("openssl")
        .args(["s_client", "-connect", &acme.address(), "-ign_eof"])
        .args([
            "-servername",
            &format!("host-1.{DOMAIN}"),
            "-verify_return_error",
        ])
        .args(["-CAfile", &host.path("issuer/root.pem"), "-cert"])
        .arg(acme.certificate())
        .args(["-key", &host.path("acme.key")])
        .stdin(fs::File::open(&request)?)
        .output()?;
    let told = String::from_utf8_lossy(&hello.stdout).into_owned();
    ensure!(
        told.contains("TLSv1.3") && told.contains("HTTP/1.1 200"),
        "{told}"
    );
    ensure!(
        !told.contains("Post-Handshake New Session Ticket"),
        "{told}"
    );

    // Beyond its places, an address is closed at once; a connection before may still have one.
    let mut silent = Vec::new();
    wait_until("as many silent connections as an address may have", || {
        silent.clear();
        for _ in 0..40 {
            silent.push(TcpStream::connect(acme.address())?);
        }
        // They are let in one after the other: with the last, it is decided about all.
        let last = silent.last().context("no connection")?;
        last.set_read_timeout(Some(PATIENCE))?;
        assert_eq!((&mut &*last).read(&mut [0])?, 0, "the last is let in");
        let mut open = 0;
        for stream in &silent {
            stream.set_nonblocking(true)?;
            match (&mut &*stream).read(&mut [0]) {
                Ok(0) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => open += 1,
                other => bail!("a silent connection was told something: {other:?}"),
            }
        }
        ensure!(open <= 16, "{open} connections");
        Ok(open == 16)
    })?;
    for mut stream in &silent {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    }
    wait_until("a place", || Ok(acme.is_admitted()?.is_ok()))?;
    Ok(())
}

#[test]
fn a_ca_of_the_operator_s_own_names_tenants_and_a_request_s_key_stays_with_the_tenant() -> Result<()>
{
    let mut host = Host::enrolled()?;
    let at = |name: &str| host.path(name);
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    Tool::new("openssl")
        .args([
            "req",
            "-x509",
            "-subj",
            "/CN=Corp tenants",
            "-addext",
            "keyUsage=keyCertSign,cRLSign",
        ])
        .args(key)
        .args(["-out", &at("corp.pem"), "-keyout", &at("corp.key")])
        .run()?;
    // What was made ten days ago, for one, has expired.
    let issue = |name: &str, made: &str| -> Result<(String, String)> {
        let (pem, private) = (at(&format!("{name}.pem")), at(&format!("{name}.key")));
        let request = at("request");
        Tool::new("openssl")
            .args(["req", "-new", "-subj", &format!("/O=Corp/CN={name}")])
            .args(key)
            .args(["-out", &request, "-keyout", &private])
            .run()?;
        fs::write(at("extensions"), "extendedKeyUsage=clientAuth\n")?;
        Tool::new("faketime")
            .args([
                made,
                "openssl",
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                &at("corp.pem"),
                "-CAkey",
            ])
            .args([
                &at("corp.key"),
                "-days",
                "2",
                "-extfile",
                &at("extensions"),
                "-out",
                &pem,
            ])
            .run()?;
        Ok((pem, private))
    };
    let (blue, expired) = (issue("blue", "now")?, issue("red", "10 days ago")?);
    let corp = at("corp.pem");
    let more = format!("[[tenants.authority]]\nroot = \"{corp}\"\nnames = \"common-name\"\n");
    serve_tenants(&mut host, &more)?;
    let vm = host.create_for("blue")?;
    let tenant = Tenant::with(&host, blue.0, blue.1)?;
    assert_eq!(tenant.vms()?, [vm]);
    let red = Tenant::with(&host, expired.0, expired.1)?;
    let refused = red.is_admitted()?.err().context("an expired certificate")?;
    ensure!(refused.contains("expired"), "{refused}");

    let (request, private) = (host.path("acme.csr"), host.path("acme.key"));
    Tool::new("openssl")
        .args(["req", "-new", "-subj", "/CN=whoever"])
        .args(key)
        .args(["-out", &request, "-keyout", &private])
        .run()?;
    let (issuer, certificate) = (host.path("issuer"), host.path("acme.pem"));
    host.ctl([
        "issuer",
        "tenant",
        "add",
        "acme",
        "--dir",
        &issuer,
        "--csr",
        &request,
        "--out",
        &certificate,
    ])?;
    assert_eq!(
        Tenant::with(&host, certificate, private)?.vms()?,
        Vec::<String>::new()
    );
    // Neither both nor none, and no name that is none.
    for bad in [
        vec!["acme", "--new-key", "/dev/null", "--csr", &request],
        vec!["acme"],
        vec!["ac/me", "--csr", &request],
        vec!["аcme", "--csr", &request],
    ] {
        let mut command = host.vtpmctl([
            "issuer",
            "tenant",
            "add",
            "--dir",
            &issuer,
            "--out",
            "/dev/null",
        ]);
        assert_eq!(said(command.args(bad))?.status, 2);
    }
    Ok(())
}

#[test]
fn a_tenant_with_vms_on_two_hosts_sees_on_each_its_own() -> Result<()> {
    let hosts = [serving("")?, serving("")?];
    let mut told = Vec::new();
    for host in &hosts {
        let (of_acme, of_other) = (host.create_for("acme")?, host.create_for("other")?);
        let (acme, other) = (
            Tenant::certified(host, "acme")?,
            Tenant::certified(host, "other")?,
        );
        assert_eq!(acme.vms()?, std::slice::from_ref(&of_acme));
        assert_eq!(other.vms()?, std::slice::from_ref(&of_other));
        told.push((acme, of_acme));
    }
    let [(first, own), (second, elsewhere)] = &told[..] else {
        anyhow::bail!("two hosts");
    };
    assert_eq!(first.ask(&format!("/v1/vms/{elsewhere}"), &[])?.status, 404);
    assert_eq!(second.ask(&format!("/v1/vms/{own}"), &[])?.status, 404);
    // Each host admits its own issuer's tenants.
    let (pem, key) = (hosts[0].path("acme.pem"), hosts[0].path("acme.key"));
    ensure!(Tenant::with(&hosts[1], pem, key)?.is_admitted()?.is_err());
    Ok(())
}

//! A web service that has an order confirmed: curl fetches the request, `vrot-confirm` shows it, curl brings the
//! confirmation, and the service verifies it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use attestation::Nonce;
use confirmation::{ConfirmableText, ConfirmationPolicy, Expected, judge};
use rustls_pki_types::UnixTime;
use test_support::tool::Tool;

use crate::support::{Device, PIN, SERVICE};

const ORDER: &str = "Transfer 2 500 € to Müller & Söhne";

/// The service: which nonces it gave out that nobody used yet.
struct Service {
    policy: ConfirmationPolicy,
    open: BTreeSet<Vec<u8>>,
    drawn: u8,
}

impl Service {
    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        match (method, path.strip_prefix("/order")) {
            ("GET", Some("")) => {
                self.drawn += 1;
                let nonce = [self.drawn; 32];
                self.open.insert(nonce.to_vec());
                (
                    200,
                    nonce.iter().map(|byte| format!("{byte:02x}")).collect(),
                )
            }
            ("POST", Some(rest)) => match self.accept(rest.trim_start_matches('/'), body) {
                Ok(key) => (200, format!("done, confirmed with {key}")),
                Err(error) => (403, format!("{error:#}")),
            },
            _ => (404, String::new()),
        }
    }

    fn accept(&mut self, nonce: &str, body: &[u8]) -> Result<String> {
        let nonce: Nonce = nonce.parse()?;
        // Each nonce once, whatever comes of it.
        let is_open = self.open.remove(nonce.as_bytes());
        anyhow::ensure!(is_open, "no order waits for this nonce");
        let expected = Expected {
            service: &SERVICE.parse()?,
            nonce: &nonce,
            text: &ConfirmableText::new(ORDER)?,
        };
        let confirmation = (!body.is_empty()).then_some(body);
        let verified = judge(confirmation, &expected, &self.policy, UnixTime::now())?;
        Ok(verified.context("none")?.key().to_string())
    }

    fn serve(&mut self, stream: TcpStream) -> Result<()> {
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split(' ').map(str::to_owned);
        let (method, path) = (words.next().context("?")?, words.next().context("?")?);
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let (status, said) = self.answer(&method, &path, &body);
        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n", said.len());
        (&stream).write_all(format!("{head}Connection: close\r\n\r\n{said}").as_bytes())?;
        Ok(())
    }
}

fn curl(url: &str, upload: Option<&std::path::Path>) -> Result<String> {
    let mut tool = Tool::new("curl").args(["-s", "-w", " [%{http_code}]", url]);
    if let Some(file) = upload {
        let data = format!("@{}", file.display());
        tool = tool.args(["-H", "Expect:", "--data-binary", &data]);
    }
    tool.text()
}

#[test]
fn a_web_service_has_an_order_confirmed_and_takes_each_confirmation_once() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let order = format!("http://{}/order", listener.local_addr()?);
    let mut service = Service {
        policy: device.policy()?,
        open: BTreeSet::new(),
        drawn: 0,
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = service.serve(stream);
        }
    });
    let fetch = || -> Result<Nonce> {
        let said = curl(&order, None)?;
        Ok(said.split(' ').next().context("a nonce")?.parse()?)
    };
    let nonce = fetch()?;
    let asking = device.ask(ORDER, &nonce)?;
    device.screen.wait_for(ORDER)?;
    device.screen.wait_for(SERVICE)?;
    device.screen.press(&format!("{PIN}\r"))?;
    let confirmation = device.path("confirmation");
    std::fs::write(&confirmation, asking.confirmed()?)?;
    let post = |nonce: &Nonce| curl(&format!("{order}/{nonce}"), Some(&confirmation));
    let said = post(&nonce)?;
    assert!(
        said.contains(&device.key_name()?) && said.contains("[200]"),
        "{said}"
    );
    // The same again, and for the next order.
    let said = post(&nonce)?;
    assert!(
        said.contains("no order waits") && said.contains("[403]"),
        "{said}"
    );
    let said = post(&fetch()?)?;
    assert!(
        said.contains("another nonce") && said.contains("[403]"),
        "{said}"
    );
    // An agent that shows another text than the service's.
    let nonce = fetch()?;
    let asking = device.ask("Transfer 1 € to Müller & Söhne", &nonce)?;
    device.screen.wait_for("Transfer 1 €")?;
    device.screen.press(&format!("{PIN}\r"))?;
    std::fs::write(&confirmation, asking.confirmed()?)?;
    let said = post(&nonce)?;
    assert!(
        said.contains("is not what this text looks like") && said.contains("[403]"),
        "{said}"
    );
    Ok(())
}

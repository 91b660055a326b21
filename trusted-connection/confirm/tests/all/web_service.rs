//! A web service that has an order confirmed: curl fetches the request, `vrot-confirm` shows it, curl brings the
//! confirmation, and the service verifies it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use attestation::Nonce;
use confirmation::{ConfirmableText, ConfirmationPolicy, Expected, judge};
use rustls_pki_types::UnixTime;
use test_support::tool::Tool;

use crate::support::{Device, PIN, SERVICE};

const ORDER: &str = "Transfer 2 500 € to Müller & Söhne";

/// The service: its orders, each with the nonce that it drew, until that is used.
struct Service {
    policy: ConfirmationPolicy,
    nonces: BTreeMap<String, Nonce>,
}

impl Service {
    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let order = path.strip_prefix("/order/").unwrap_or_default();
        match (method, order.split_once('/')) {
            ("GET", Some((_, "text"))) => (200, format!("{ORDER}\n")),
            ("GET", Some((order, "nonce"))) => match self.draw(order) {
                Ok(nonce) => (200, nonce.to_string()),
                Err(error) => (500, format!("{error:#}")),
            },
            ("POST", Some((order, "confirmation"))) => match self.accept(order, body) {
                Ok(key) => (200, format!("done, confirmed with {key}")),
                Err(error) => (403, format!("{error:#}")),
            },
            _ => (404, String::new()),
        }
    }

    fn draw(&mut self, order: &str) -> Result<Nonce> {
        let mut random = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let nonce = Nonce::new(random)?;
        self.nonces.insert(order.to_owned(), nonce.clone());
        Ok(nonce)
    }

    fn accept(&mut self, order: &str, body: &[u8]) -> Result<String> {
        // Each nonce once, whatever comes of it.
        let nonce = self.nonces.remove(order);
        let nonce = nonce.context("no nonce of this order waits for a confirmation")?;
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

/// What the service answers, and with which status.
fn curl(url: &str, upload: Option<&Path>) -> Result<(String, String)> {
    let mut tool = Tool::new("curl").args(["-s", "-w", "|%{http_code}", url]);
    if let Some(file) = upload {
        let data = format!("@{}", file.display());
        tool = tool.args(["-H", "Expect:", "--data-binary", &data]);
    }
    let said = tool.text()?;
    let (body, status) = said.rsplit_once('|').context("a status")?;
    Ok((body.to_owned(), status.to_owned()))
}

#[test]
fn a_web_service_has_an_order_confirmed_and_takes_each_confirmation_once() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let orders = format!("http://{}/order", listener.local_addr()?);
    let mut service = Service {
        policy: device.policy()?,
        nonces: BTreeMap::new(),
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = service.serve(stream);
        }
    });
    let fetch = |order: u8, what: &str| curl(&format!("{orders}/{order}/{what}"), None);
    let confirmed = |text: &str, nonce: &str| -> Result<PathBuf> {
        let asking = device.ask(text, &nonce.parse()?)?;
        device.screen.wait_for("Page 1 of 1")?;
        assert!(device.screen.shows(text) && device.screen.shows(SERVICE));
        device.screen.press(&format!("{PIN}\r"))?;
        let file = device.path("confirmation");
        std::fs::write(&file, asking.confirmed()?)?;
        Ok(file)
    };
    let post = |order: u8, file: &Path| curl(&format!("{orders}/{order}/confirmation"), Some(file));
    let (text, _) = fetch(17, "text")?;
    let (nonce, _) = fetch(17, "nonce")?;
    let confirmation = confirmed(text.trim_end(), &nonce)?;
    let (said, status) = post(17, &confirmation)?;
    assert!(
        said.contains(&device.key_name()?) && status == "200",
        "{said}"
    );
    // The same again, and for another order.
    let (said, status) = post(17, &confirmation)?;
    assert!(
        said.contains("no nonce of this order") && status == "403",
        "{said}"
    );
    fetch(18, "nonce")?;
    let (said, status) = post(18, &confirmation)?;
    assert!(said.contains("another nonce") && status == "403", "{said}");
    // An agent that shows another text than the service's.
    let (nonce, _) = fetch(19, "nonce")?;
    let confirmation = confirmed("Transfer 1 € to Müller & Söhne", &nonce)?;
    let (said, status) = post(19, &confirmation)?;
    assert!(
        said.contains("is not what this text looks like") && status == "403",
        "{said}"
    );
    Ok(())
}

//! What answers in place of a time-stamp authority.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use archive::time_stamp::Nonce;
use archive::{ArchiveHash, TimeStampRequest, Token};
use rcgen::generate_simple_self_signed;
use rustls::pki_types::PrivateKeyDer;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use test_support::time_authority::TimeAuthority;
use vrot_device::archiving::{AuthorityClient, AuthorityError};

fn request(nonce: u8) -> TimeStampRequest {
    TimeStampRequest::new(ArchiveHash::Sha256.of(b"data"), Nonce::new([nonce; 8]))
}

async fn stamp(url: &str, deadline: Duration) -> Result<Token, AuthorityError> {
    let client = AuthorityClient::new(url.parse().unwrap(), None)?.with_deadline(deadline);
    client.stamp(&request(1)).await
}

/// Answers one request with these bytes, and again and again with the last, until nobody listens.
fn answering(first: Vec<u8>, again: Vec<u8>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(read_request(&mut stream));
        let mut written = stream.write_all(&first);
        while written.is_ok() && !again.is_empty() {
            written = stream.write_all(&again);
        }
    });
    (url, thread)
}

/// Reads the whole of a request, if one comes: what was not read would take the answer away.
fn read_request(stream: &mut impl Read) -> bool {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    // The request's last bytes are its nonce and that certificates are asked for.
    while !request.ends_with(&[1, 1, 0xff]) {
        match stream.read(&mut piece) {
            Ok(read @ 1..) => request.extend(&piece[..read]),
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

fn answer_of(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/timestamp-reply\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Without keeping the runtime from closing the connection.
async fn ended(thread: JoinHandle<()>) {
    tokio::task::spawn_blocking(|| thread.join())
        .await
        .unwrap()
        .unwrap();
}

const LONG: Duration = Duration::from_secs(120);

#[tokio::test]
async fn an_answer_that_is_too_long_silent_or_none_of_an_authority_is_refused_in_time() {
    let endless = b"HTTP/1.1 200 OK\r\nContent-Type: application/timestamp-reply\r\n\
                    Transfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    let chunk = [b"10000\r\n".as_slice(), &[0; 0x10000], b"\r\n"].concat();
    let (url, thread) = answering(endless, chunk);
    let refused = stamp(&url, LONG).await;
    assert!(
        matches!(refused, Err(AuthorityError::Body { .. })),
        "{refused:?}"
    );
    ended(thread).await;
    let head = b"HTTP/1.1 200 OK\r\n".to_vec();
    let (url, thread) = answering(head, b"A: b\r\n".to_vec());
    let refused = stamp(&url, LONG).await;
    assert!(
        matches!(refused, Err(AuthorityError::Http { .. })),
        "{refused:?}"
    );
    ended(thread).await;
    for other in [
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ] {
        let (url, thread) = answering(other.into(), Vec::new());
        let refused = stamp(&url, LONG).await;
        assert!(
            matches!(refused, Err(AuthorityError::NoAuthority { .. })),
            "{refused:?}"
        );
        ended(thread).await;
    }
    // It says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let refused = stamp(&url, Duration::from_millis(50)).await;
    assert!(
        matches!(refused, Err(AuthorityError::Deadline { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_older_answer_over_the_same_data_is_told_by_its_nonce() {
    let authority = TimeAuthority::new().unwrap();
    let older = authority.answer(&request(2).to_der().unwrap()).unwrap();
    let (url, thread) = answering(answer_of(&older), Vec::new());
    let refused = stamp(&url, LONG).await;
    let Err(AuthorityError::Answer { source, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(source.to_string().contains("nonce"), "{source}");
    ended(thread).await;
}

#[tokio::test]
async fn an_authority_is_asked_over_tls_if_its_server_has_a_certificate_that_is_vouched_for() {
    let authority = TimeAuthority::new().unwrap();
    let answer = answer_of(&authority.answer(&request(1).to_der().unwrap()).unwrap());
    let own = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![own.cert.der().clone()], key)
    .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "https://localhost:{}/",
        listener.local_addr().unwrap().port()
    );
    let thread = thread::spawn(move || {
        for _ in 0..2 {
            let (stream, _): (TcpStream, _) = listener.accept().unwrap();
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            // Whoever does not believe the certificate asks nothing.
            if read_request(&mut stream) {
                stream.write_all(&answer).unwrap();
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
        }
    });
    let refused = AuthorityClient::new(url.parse().unwrap(), None).unwrap();
    let refused = refused.stamp(&request(1)).await;
    assert!(
        matches!(refused, Err(AuthorityError::Unreachable { .. })),
        "{refused:?}"
    );
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let client = AuthorityClient::new(url.parse().unwrap(), Some(roots)).unwrap();
    client.stamp(&request(1)).await.unwrap();
    thread.join().unwrap();
}

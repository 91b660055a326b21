//! `vrot-device proxy`, as programs use it that know nothing of attestation.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attestation::fixture::event_log;
use attested_tls::AttestedStream;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::support::{Application, Listening, Machine, folder, host_and_vm, listen, listen_with};

/// Longer than anything takes here, on a machine that may be slow.
const LONG: Duration = Duration::from_secs(120);

/// A proxy that runs.
struct Proxy {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
    folder: TempDir,
}

impl Proxy {
    async fn to(machine: &Machine, service: &str, policy: &str, more: &[&str]) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_vrot-device"));
        Self::by(command, machine, service, policy, more).await
    }

    async fn by(
        mut command: Command,
        machine: &Machine,
        service: &str,
        policy: &str,
        more: &[&str],
    ) -> Self {
        let folder = folder(&machine.host, policy);
        let mut child = command
            .args(["proxy", "--listen", "127.0.0.1:0", "--connect", service])
            .args(["--policy", "policy.toml"])
            .args(more)
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                written.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let mut proxy = Self {
            child,
            address: String::new(),
            log,
            folder,
        };
        let line = proxy.line_with("listen=").await;
        let behind = line.split("listen=").nth(1).unwrap();
        proxy.address = behind.split(' ').next().unwrap().to_owned();
        proxy
    }

    /// A line of the log, once it is there.
    async fn line_with(&self, part: &str) -> String {
        self.nth_line_with(0, part).await
    }

    async fn nth_line_with(&self, nth: usize, part: &str) -> String {
        let found = async {
            loop {
                let log = self.log.lock().unwrap().clone();
                if let Some(line) = log.lines().filter(|line| line.contains(part)).nth(nth) {
                    return line.to_owned();
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let found = timeout(LONG, found).await;
        found.unwrap_or_else(|_| panic!("no {part}: {}", self.log.lock().unwrap()))
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    fn terminate(&self) {
        self.signal("-TERM");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill")
            .args([signal, &pid])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Puts another policy in the place of the one that the proxy was started with, and has it read.
    fn give(&self, policy: &str) {
        std::fs::write(self.folder.path().join("policy.toml"), policy).unwrap();
        self.signal("-HUP");
    }
}

/// What comes back for this, from a service that gives it back in capital letters.
async fn exchange(mut stream: TcpStream, sent: &[u8]) -> io::Result<Vec<u8>> {
    let (mut read, mut write) = stream.split();
    let mut received = Vec::new();
    let (written, read) = tokio::join!(
        async {
            write.write_all(sent).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut received),
    );
    written.and(read.map(|_| received))
}

/// Shows that a connection serves, and keeps it open.
async fn hello(stream: &mut TcpStream, read: &mut [u8; 5]) {
    stream.write_all(b"hello").await.unwrap();
    timeout(LONG, stream.read_exact(read))
        .await
        .unwrap()
        .unwrap();
}

/// A web server as simple as can be: a page to whoever asks, and the body of a request back.
#[derive(Clone)]
struct Web;

const PAGE: usize = 4_000_000;

impl Application for Web {
    async fn serve(&self, stream: AttestedStream, _: Arc<Mutex<Vec<u8>>>) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        if body.is_empty() {
            body = vec![b'p'; PAGE];
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = stream.into_inner();
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.shutdown().await?;
        let _ = stream.ended().await;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_a_page_and_sends_a_file_through_an_attested_connection() {
    let (host, vm) = host_and_vm();
    let id = vm.vm.to_string();
    let machine = Machine::new(host, vm);
    let Listening { address, .. } = listen_with(machine.service(), Web).await;
    let proxy = Proxy::to(&machine, &address, &machine.policy_text(), &[]).await;
    let url = format!("http://{}/", proxy.address);
    let sent = vec![b's'; PAGE];
    let upload = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(upload.path(), &sent).unwrap();
    let file = format!("@{}", upload.path().display());
    for (more, expected) in [
        (vec![], vec![b'p'; PAGE]),
        (vec!["--data-binary", &file, "-H", "Expect:"], sent),
    ] {
        let curl = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "100", &url])
            .args(more)
            .output()
            .await
            .unwrap();
        assert!(
            curl.status.success(),
            "{}",
            String::from_utf8_lossy(&curl.stderr)
        );
        assert!(curl.stdout == expected, "{} bytes", curl.stdout.len());
    }
    // The log says what the connection is to, and what it carried.
    let attested = proxy.line_with("vm=").await;
    assert!(attested.contains(&id), "{attested}");
    let attested = proxy.line_with("X25519MLKEM768").await;
    assert!(attested.contains("host-1.demo.example"), "{attested}");
    proxy.line_with("all data were sent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_at_once_each_carry_their_own_data_to_the_end() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let Listening { address, .. } = listen(machine.service()).await;
    let proxy = Proxy::to(&machine, &address, &machine.policy_text(), &[]).await;
    let mut open = Vec::new();
    for number in 0..60_usize {
        let stream = proxy.connect().await;
        open.push(tokio::spawn(async move {
            // More than the window of a connection.
            let sent = format!("number {number} ").repeat(40_000);
            let received = exchange(stream, sent.as_bytes()).await.unwrap();
            assert!(received == sent.to_uppercase().as_bytes(), "{number}");
        }));
    }
    for connection in open {
        timeout(LONG, connection).await.unwrap().unwrap();
    }
    assert_eq!(machine.made.lock().unwrap().len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_refused_costs_the_local_connection_and_the_log_says_why() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let good = machine.vm.lock().unwrap().log.clone();
    let Listening { address, received } = listen(machine.service()).await;
    let proxy = Proxy::to(&machine, &address, &machine.policy_text(), &[]).await;
    machine.vm.lock().unwrap().log = event_log(&[(0, 0x8000_0008, b"other firmware")]);
    let outcome = timeout(LONG, exchange(proxy.connect().await, b"a secret")).await;
    let outcome = outcome.unwrap();
    assert!(outcome.is_err(), "{outcome:?}");
    let refused = proxy.line_with("not connected").await;
    assert!(refused.contains("pcr-unexpected"), "{refused}");
    // A program that only waits does not take it for the end of data.
    let waiting = timeout(LONG, exchange(proxy.connect().await, b"")).await;
    assert!(waiting.unwrap().is_err());
    assert!(received.lock().unwrap().is_empty());
    // The next connection is attested for itself.
    machine.vm.lock().unwrap().log = good;
    let outcome = timeout(LONG, exchange(proxy.connect().await, b"hello")).await;
    assert_eq!(outcome.unwrap().unwrap(), b"HELLO");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_cannot_be_attested_anew_is_reset_and_the_log_says_why() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let policy = machine.policy_text() + "\n[freshness]\nresult_lifetime_s = 4\n";
    let Listening { address, .. } = listen(machine.service()).await;
    let proxy = Proxy::to(&machine, &address, &policy, &[]).await;
    let mut stream = proxy.connect().await;
    let mut read = [0; 5];
    hello(&mut stream, &mut read).await;
    {
        let mut vm = machine.vm.lock().unwrap();
        vm.resets += 1;
    }
    let told = proxy.line_with("the VM's TPM was reset").await;
    assert!(told.contains("peer=127.0.0.1"), "{told}");
    // That alone is no reason to end it; another boot is.
    hello(&mut stream, &mut read).await;
    machine.vm.lock().unwrap().log = event_log(&[(0, 0x8000_0008, b"other firmware")]);
    let ended = timeout(LONG, stream.read(&mut read)).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
    let told = proxy.line_with("the attested connection failed").await;
    assert!(told.contains("pcr-unexpected"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_open_connections_end_and_takes_no_new_ones() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let Listening { address, .. } = listen(machine.service()).await;
    let mut proxy = Proxy::to(&machine, &address, &machine.policy_text(), &[]).await;
    let mut stream = proxy.connect().await;
    let mut read = [0; 5];
    hello(&mut stream, &mut read).await;
    proxy.terminate();
    proxy.line_with("stopping").await;
    assert!(TcpStream::connect(&proxy.address).await.is_err());
    assert_eq!(exchange(stream, b"goodbye").await.unwrap(), b"GOODBYE");
    let status = timeout(LONG, proxy.child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_in_time_is_closed_at_the_end() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let Listening { address, .. } = listen(machine.service()).await;
    let policy = machine.policy_text();
    let mut proxy = Proxy::to(&machine, &address, &policy, &["--drain-seconds", "1"]).await;
    let mut stream = proxy.connect().await;
    let mut read = [0; 5];
    hello(&mut stream, &mut read).await;
    proxy.terminate();
    let status = timeout(LONG, proxy.child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    let ended = timeout(LONG, stream.read(&mut read)).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_more_connections_than_are_allowed() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let Listening { address, .. } = listen(machine.service()).await;
    let policy = machine.policy_text();
    let proxy = Proxy::to(&machine, &address, &policy, &["--connections", "1"]).await;
    let mut first = proxy.connect().await;
    let mut read = [0; 5];
    hello(&mut first, &mut read).await;
    let second = timeout(LONG, exchange(proxy.connect().await, b"hello"))
        .await
        .unwrap();
    assert!(second.map_or(true, |received| received.is_empty()));
    proxy.line_with("there are too many").await;
    assert_eq!(exchange(first, b"on").await.unwrap(), b"ON");
}

/// What a proxy says that ends instead of listening there.
async fn refused_to_listen(folder: &Path, listen: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vrot-device"))
        .args(["proxy", "--listen", listen, "--connect", "127.0.0.1:1"])
        .args(["--policy", "policy.toml"])
        .current_dir(folder)
        .kill_on_drop(true)
        .output();
    let output = timeout(LONG, output).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn other_machines_are_served_only_if_that_is_said() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let folder = folder(&machine.host, &machine.policy_text());
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let told = refused_to_listen(folder.path(), listen).await;
        assert!(told.contains("--serve-other-machines"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_read_anew_counts_for_new_connections_and_for_those_that_live() {
    let (host, vm) = host_and_vm();
    let id = vm.vm.to_string();
    let machine = Machine::new(host, vm);
    let good = machine.policy_text() + "\n[freshness]\nresult_lifetime_s = 20\n";
    let another = good.replace(&id, "71097de4-f31e-4b41-9c47-30bb990ea49b");
    assert_ne!(good, another);
    let Listening { address, .. } = listen(machine.service()).await;
    let proxy = Proxy::to(&machine, &address, &good, &[]).await;
    let mut living = proxy.connect().await;
    let mut read = [0; 5];
    hello(&mut living, &mut read).await;

    // What cannot be used changes nothing.
    proxy.give("[trust");
    let told = proxy.line_with("nothing is changed").await;
    assert!(
        told.contains("policy.toml") && told.contains("line 1"),
        "{told}"
    );
    assert_eq!(told.matches("line 1").count(), 1, "{told}");
    hello(&mut living, &mut read).await;
    hello(&mut proxy.connect().await, &mut read).await;

    proxy.give(&another);
    proxy.line_with("read anew").await;
    let outcome = timeout(LONG, exchange(proxy.connect().await, b"hello")).await;
    assert!(outcome.unwrap().is_err());
    let told = proxy.line_with("not connected").await;
    assert!(told.contains("vm-unexpected"), "{told}");
    let ended = timeout(LONG, living.read(&mut read)).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
    let told = proxy.line_with("the attested connection failed").await;
    assert!(told.contains("vm-unexpected"), "{told}");

    proxy.give(&good);
    proxy.nth_line_with(1, "read anew").await;
    hello(&mut proxy.connect().await, &mut read).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cannot_listen_says_why() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let folder = folder(&machine.host, &machine.policy_text());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let told = refused_to_listen(folder.path(), &taken).await;
    assert!(told.contains(&taken) && told.contains("in use"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_when_connections_are_taken_and_when_no_more() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = tokio::net::UnixDatagram::bind(&socket).unwrap();
    let said = || async {
        let mut said = [0; 4096];
        let length = timeout(LONG, manager.recv(&mut said))
            .await
            .unwrap()
            .unwrap();
        String::from_utf8(said[..length].to_vec()).unwrap()
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_vrot-device"));
    command.env("NOTIFY_SOCKET", &socket);
    let policy = machine.policy_text();
    let mut proxy = Proxy::by(command, &machine, "127.0.0.1:1", &policy, &[]).await;
    assert_eq!(said().await.trim(), "READY=1");
    proxy.terminate();
    assert_eq!(said().await.trim(), "STOPPING=1");
    let status = timeout(LONG, proxy.child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

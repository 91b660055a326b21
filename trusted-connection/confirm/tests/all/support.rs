//! A device with a daemon, and a person who reads its terminal and types.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use attestation::Nonce;
use cert_chain::pem::encode_certificate;
use cert_chain::{AttestationKey, DeviceName, DeviceSpec, Issuer, PublicArea, Validity};
use confirmation::{ConfirmableText, ConfirmationPolicy, Expected, ServiceName};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustls_pki_types::UnixTime;
use tempfile::TempDir;
use test_support::deadline::wait_for;
use test_support::process::Process;
use test_support::programs::program;
use test_support::software_tpm::{MadeTpm, SoftwareTpm};
use test_support::tool::Tool;
use vrot_confirm::key_file::KeyFile;

pub(crate) const PIN: &str = "738291";
pub(crate) const SERVICE: &str = "shop.example";
/// Without it, nobody changes how the TPM counts wrong PINs.
pub(crate) const LOCKOUT_PASSWORD: &str = "kept elsewhere";
const DEVICE: &str = "spiffe://demo.example/desk-1";
const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAM: &str = env!("CARGO_BIN_EXE_vrot-confirm");

/// A pseudoterminal: what a program shows there, and a keyboard.
pub(crate) struct Screen {
    master: File,
    path: PathBuf,
    shown: Arc<Mutex<Vec<u8>>>,
    /// While it is open, the terminal stays there for the next program.
    _slave: File,
}

impl Screen {
    pub(crate) fn open(columns: u16, rows: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = PathBuf::from(ptsname(&master, Vec::new())?.into_string()?);
        let no_controlling = i32::try_from(rustix::fs::OFlags::NOCTTY.bits())?;
        let slave = std::os::unix::fs::OpenOptionsExt::custom_flags(
            OpenOptions::new().read(true).write(true),
            no_controlling,
        )
        .open(&path)?;
        let screen = Self {
            master: master.into(),
            path,
            shown: Arc::default(),
            _slave: slave,
        };
        screen.resize(columns, rows)?;
        let (shown, mut from) = (Arc::clone(&screen.shown), screen.master.try_clone()?);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                shown.extend(piece.iter().take(length));
            }
        });
        Ok(screen)
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All that was shown so far.
    pub(crate) fn all(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// What was shown since the screen was last cleared.
    fn now(&self) -> String {
        let all = self.all();
        all.rsplit("\x1b[H").next().unwrap_or_default().to_owned()
    }

    pub(crate) fn wait_for(&self, text: &str) -> Result<()> {
        wait_for(text, PATIENCE, || {
            Ok(self.now().contains(text).then_some(()))
        })
        .with_context(|| format!("the screen shows: {:?}", self.now()))
    }

    pub(crate) fn shows(&self, text: &str) -> bool {
        self.now().contains(text)
    }

    pub(crate) fn press(&self, keys: &str) -> Result<()> {
        (&self.master).write_all(keys.as_bytes())?;
        Ok(())
    }
}

/// The way to a TPM.
#[derive(Clone, Default)]
struct Wire {
    /// What went there.
    sent: Arc<Mutex<Vec<u8>>>,
    /// Whether somebody sits there who puts a key of their own in place of each primary one.
    has_impostor: Arc<AtomicBool>,
}

/// A device whose person has set a PIN, and whose daemon runs.
pub(crate) struct Device {
    pub(crate) screen: Screen,
    pub(crate) daemon: Process,
    pub(crate) key: KeyFile,
    pub(crate) tpm: SoftwareTpm,
    /// How programs with the TCG software stack name it.
    pub(crate) tpm_name: String,
    wire: Wire,
    issuer: Issuer,
    folder: TempDir,
}

impl Device {
    pub(crate) fn enrolled(columns: u16, rows: u16) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        MadeTpm::first(&["sha256"])?.copy_to(&at("state"))?;
        let tpm = SoftwareTpm::start("the TPM", &at("state"), &at("tpm"), &at("tpm-log"))?;
        let screen = Screen::open(columns, rows)?;
        let wire = Wire::default();
        let tpm_name = bridge(tpm.socket(), &wire)?;
        owned("tpm2_changeauth", &tpm)
            .args(["-c", "lockout", LOCKOUT_PASSWORD])
            .run()?;
        enrol(&tpm_name, &screen, &at("key"))?;
        let key = KeyFile::read(&at("key"))?;

        let now = UnixTime::now();
        let validity = Validity::starting(now, Duration::from_secs(86400))?;
        let issuer = Issuer::create("demo.example".parse()?, validity)?;
        let certificate = certify(
            &issuer,
            &key,
            Validity::starting(now, Duration::from_secs(3600))?,
        )?;
        fs::write(at("certificate.pem"), certificate)?;
        let daemon = serve(folder.path(), screen.path(), &["--any-terminal"], &tpm_name)?;
        screen.wait_for("nothing to confirm")?;
        Ok(Self {
            screen,
            daemon,
            key,
            tpm,
            tpm_name,
            wire,
            issuer,
            folder,
        })
    }

    /// In place of the daemon that runs, another one on this terminal.
    pub(crate) fn move_to(&mut self, terminal: &Path) -> Result<()> {
        self.daemon.stop()?;
        self.daemon = serve(self.folder.path(), terminal, &[], &self.tpm_name)?;
        Ok(())
    }

    /// In place of the daemon that runs, another one on the same terminal.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.daemon.stop()?;
        self.daemon = serve(
            self.folder.path(),
            self.screen.path(),
            &["--any-terminal"],
            &self.tpm_name,
        )?;
        Ok(())
    }

    /// Gives the device another certificate, valid for so many seconds from this time on, and restarts the daemon.
    pub(crate) fn certify_anew(&mut self, from: u64, seconds: u64) -> Result<()> {
        let from = UnixTime::since_unix_epoch(Duration::from_secs(from));
        let validity = Validity::starting(from, Duration::from_secs(seconds))?;
        let certificate = certify(&self.issuer, &self.key, validity)?;
        fs::write(self.path("certificate.pem"), certificate)?;
        self.restart()
    }

    /// The certificate of who certified it.
    pub(crate) fn issuer_pem(&self) -> String {
        self.issuer.certificate_pem()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What went to the TPM since the enrolment began.
    pub(crate) fn sent_to_tpm(&self) -> Vec<u8> {
        let sent = self.wire.sent.lock();
        sent.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many sessions were begun with the TPM (TPM2_StartAuthSession).
    pub(crate) fn sessions(&self) -> usize {
        let sent = self.sent_to_tpm();
        let is_start = |window: &&[u8]| matches!(window, [0x80, 1, _, _, _, _, 0, 0, 1, 0x76]);
        sent.windows(10).filter(is_start).count()
    }

    /// From now on, somebody sits on the way to the TPM.
    pub(crate) fn intrude(&self) {
        self.wire.has_impostor.store(true, Ordering::Release);
    }

    /// `vrot-confirm ask`, not waited for.
    pub(crate) fn ask(&self, text: &str, nonce: &Nonce) -> Result<Asking> {
        let name = format!("ask-{nonce}");
        fs::write(self.path(&name), text)?;
        let out = self.path(&format!("{name}.cbor"));
        let child = Command::new(PROGRAM)
            .args(["ask", "--service", SERVICE, "--nonce", &nonce.to_string()])
            .arg("--socket")
            .arg(self.path("socket"))
            .arg("--text")
            .arg(self.path(&name))
            .arg("--out")
            .arg(&out)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Asking { child, out })
    }

    /// A connection to the daemon by which this line was sent.
    pub(crate) fn send(&self, line: &str) -> Result<UnixStream> {
        let stream = UnixStream::connect(self.path("socket"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        (&stream).write_all(format!("{line}\n").as_bytes())?;
        Ok(stream)
    }

    /// A service's policy that accepts this device and its key.
    pub(crate) fn policy(&self) -> Result<ConfirmationPolicy> {
        self.policy_with("required", &self.key_name()?)
    }

    pub(crate) fn policy_with(&self, demand: &str, key: &str) -> Result<ConfirmationPolicy> {
        let text = Self::policy_text(demand, key);
        Ok(ConfirmationPolicy::parse(&text, |_| {
            Ok(self.issuer.certificate_pem())
        })?)
    }

    fn policy_text(demand: &str, key: &str) -> String {
        format!(
            "demand = \"{demand}\"\nroots = \"roots.pem\"\ndevices = [\"{DEVICE}\"]\nkeys = [\"{key}\"]\n\
             max_age_s = 300\n"
        )
    }

    /// `vrot-device verify-confirmation` with a policy of this demand.
    pub(crate) fn verify_command(&self, demand: &str, asked: &Asked) -> Result<Tool> {
        let policy = self.path(&format!("{demand}.toml"));
        fs::write(&policy, Self::policy_text(demand, &self.key_name()?))?;
        fs::write(self.path("roots.pem"), self.issuer.certificate_pem())?;
        fs::write(self.path("asked"), asked.text.as_str())?;
        Ok(Tool::new(program("vrot-device")?)
            .args(["verify-confirmation", "--json", "--service", SERVICE])
            .args(["--nonce", &asked.nonce.to_string()])
            .arg("--policy")
            .arg(policy)
            .arg("--text")
            .arg(self.path("asked")))
    }

    pub(crate) fn key_name(&self) -> Result<String> {
        let area = PublicArea::parse(&self.key.statement.public)?;
        Ok(area.name().to_string())
    }
}

/// A certificate of the device's identity key, in PEM.
fn certify(issuer: &Issuer, key: &KeyFile, validity: Validity) -> Result<String> {
    let ik = AttestationKey::try_from(PublicArea::parse(&key.identity_key)?)?;
    let certificate = issuer.certify_device(&DeviceSpec {
        device: DEVICE.parse::<DeviceName>()?,
        ek: ik.name(),
        ik,
        validity,
    })?;
    Ok(encode_certificate(&certificate))
}

/// What the TPM's owner does with it.
pub(crate) fn owned(tool: &str, tpm: &SoftwareTpm) -> Tool {
    Tool::new(tool).env("TPM2TOOLS_TCTI", tpm.tcti())
}

/// The daemon on a terminal, with what [`Device::enrolled`] left in a folder.
fn serve(folder: &Path, terminal: &Path, options: &[&str], tpm: &str) -> Result<Process> {
    let at = |name: &str| folder.join(name);
    let mut command = Command::new(PROGRAM);
    command
        .arg("serve")
        .args(options)
        .args(["--tpm", tpm, "--terminal"])
        .arg(terminal)
        .arg("--key")
        .arg(at("key"))
        .arg("--certificate")
        .arg(at("certificate.pem"))
        .arg("--socket")
        .arg(at("socket"));
    let mut daemon = Process::start("vrot-confirm", command, &at("log"))?;
    daemon.wait_until("its socket", PATIENCE, || {
        Ok(UnixStream::connect(at("socket")).ok())
    })?;
    Ok(daemon)
}

/// `vrot-confirm enrol`.
pub(crate) fn enrolment(tpm: &str, screen: &Screen, key: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["enrol", "--json", "--terminal"])
        .arg(screen.path())
        .args(["--tpm", tpm])
        .arg("--key")
        .arg(key)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Sets [`PIN`] on a screen.
pub(crate) fn enrol(tpm: &str, screen: &Screen, key: &Path) -> Result<()> {
    let enrolling = enrolment(tpm, screen, key).spawn()?;
    screen.wait_for("Set a PIN")?;
    screen.press(&format!("{PIN}\r"))?;
    screen.wait_for("Once more")?;
    screen.press(&format!("{PIN}\r"))?;
    let output = enrolling.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

pub(crate) struct Asking {
    pub(crate) child: std::process::Child,
    out: PathBuf,
}

impl Asking {
    /// Whether it has ended already.
    pub(crate) fn is_answered(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    pub(crate) fn ended(self) -> Result<(Output, PathBuf)> {
        Ok((self.child.wait_with_output()?, self.out))
    }

    pub(crate) fn confirmed(self) -> Result<Vec<u8>> {
        let (output, out) = self.ended()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(fs::read(out)?)
    }

    /// What it complained, when it ended with this status.
    pub(crate) fn failed(self, status: i32) -> Result<String> {
        let (output, _) = self.ended()?;
        ensure!(output.status.code() == Some(status), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    }
}

/// What a service asked, which owns its parts.
pub(crate) struct Asked {
    pub(crate) service: ServiceName,
    pub(crate) nonce: Nonce,
    pub(crate) text: ConfirmableText,
}

impl Asked {
    pub(crate) fn new(text: &str, nonce: u8) -> Result<Self> {
        Ok(Self {
            service: SERVICE.parse()?,
            nonce: Nonce::new([nonce; 32])?,
            text: ConfirmableText::new(text)?,
        })
    }

    pub(crate) fn expected(&self) -> Expected<'_> {
        Expected {
            service: &self.service,
            nonce: &self.nonce,
            text: &self.text,
        }
    }
}

/// Two ports, on an address of this test's own, for the two sockets of swtpm: `tss-esapi` names no sockets.
fn bridge(socket: &Path, wire: &Wire) -> Result<String> {
    static BRIDGES: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let number = BRIDGES.fetch_add(1, Ordering::Relaxed);
    let host = Ipv4Addr::new(127, high, low, number);
    let mut control = socket.as_os_str().to_owned();
    control.push(".ctrl");
    for (port, to) in [(2321, socket.to_owned()), (2322, control.into())] {
        let listener = TcpListener::bind((host, port))?;
        let wire = wire.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(tpm) = UnixStream::connect(&to) {
                    let _ = join(stream, tpm, wire.clone());
                }
            }
        });
    }
    Ok(format!("swtpm:host={host},port=2321"))
}

/// Passes bytes in both directions until either end closes, and notes those that go to the TPM.
fn join(stream: TcpStream, tpm: UnixStream, wire: Wire) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut answers, mut to) = (tpm.try_clone()?, stream.try_clone()?);
    let has_impostor = Arc::clone(&wire.has_impostor);
    thread::spawn(move || {
        while let Ok(answer) = answer(&mut answers) {
            let answer = match has_impostor.load(Ordering::Acquire) {
                true => with_another_key(&answer).unwrap_or(answer),
                false => answer,
            };
            if to.write_all(&answer).is_err() {
                break;
            }
        }
        to.shutdown(std::net::Shutdown::Both)
    });
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = (&stream).read(&mut piece) {
            let piece = piece.get(..length).unwrap_or_default();
            let sent = wire.sent.lock();
            sent.unwrap_or_else(PoisonError::into_inner).extend(piece);
            if (&tpm).write_all(piece).is_err() {
                break;
            }
        }
        tpm.shutdown(std::net::Shutdown::Both)
    });
    Ok(())
}

/// What comes next: an answer of the TPM in one piece, or whatever the control channel says.
fn answer(from: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut answer = vec![0; 4096];
    let mut length = 0;
    loop {
        let free = answer.get_mut(length..).unwrap_or_default();
        match from.read(free)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
        // Tag with or without sessions, then the size (TPM 2.0 Library, Part 1, "Response Header").
        let whole = match answer.get(..6) {
            Some([0x80, 1 | 2, size @ ..]) if length >= 6 => size
                .iter()
                .fold(0, |size, byte| size << 8 | usize::from(*byte)),
            _ => 0,
        };
        if length >= whole {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// An answer to TPM2_CreatePrimary with a key whose private part anybody knows (it is 1), and its name; `None` for
/// another answer.
fn with_another_key(answer: &[u8]) -> Option<Vec<u8>> {
    const GENERATOR: &str = "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                             4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    let length = answer.get(18..20)?;
    let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
    let area = answer.get(20..20 + length)?;
    let name = PublicArea::parse(area).ok()?.name();
    let point = hex::decode(GENERATOR).ok()?;
    let mut other = area.to_vec();
    let x = length.checked_sub(66)?;
    other.get_mut(x..x + 32)?.copy_from_slice(point.get(..32)?);
    other.get_mut(x + 34..)?.copy_from_slice(point.get(32..)?);
    let other_name = PublicArea::parse(&other).ok()?.name();
    let mut answer = answer.to_vec();
    answer.get_mut(20..20 + length)?.copy_from_slice(&other);
    let name = name.as_bytes();
    let at = answer.windows(name.len()).position(|part| part == name)?;
    let place = answer.get_mut(at..at + name.len())?;
    place.copy_from_slice(other_name.as_bytes());
    Some(answer)
}

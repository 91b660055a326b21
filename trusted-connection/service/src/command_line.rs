//! The command line of `vrot-service`.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::attester::TpmAddress;
use crate::proxy::Destination;
use attestation::spiffe::TrustDomain;
use attestation::{BOOT_PCRS, Nonce};
use attested_tls::tls::KeyExchange;
use cert_chain::HashAlgorithm;
use cert_chain::operator::RequiredPcrs;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Attests this VM: which one it is, what booted in it, on which host it runs and what booted
/// there.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    /// How the log looks.
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Answer challenges of devices until stopped. The answers are bound to nothing: they say what the
    /// VM is, not who is at the other end of a connection. `proxy` says that.
    Serve {
        /// Where to listen.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7071")]
        listen: SocketAddr,
        /// The VM's TPM.
        #[command(flatten)]
        tpm: TpmOptions,
    },
    /// Take attested connections and pass what comes on them to a TCP service.
    Proxy(ProxyOptions),
    /// Write fresh evidence of this VM and its host, for whoever chose the nonce: what `serve` would
    /// answer to a challenge with it.
    Evidence(EvidenceOptions),
    /// Show who this VM is: the certificates of a key in its vRoT and of the host that made them. A VM
    /// whose identity is not certified yet waits for it.
    Identity(IdentityOptions),
    /// Sign data with this VM's key for data: which VM they are from, which number they have, when, and, if
    /// wanted, what had booted then. `vrot-device verify-data` verifies them.
    Sign(SignCommand),
    /// Seal data to this VM's vRoT: no other opens them.
    Seal(SealOptions),
    /// Open sealed data.
    Unseal(UnsealOptions),
    /// Show what a file with sealed data is sealed to. The TPM is not asked.
    ShowSealed(ShowSealedOptions),
    /// Print the PCR values of the present boot as JSON, for `approve-boot`.
    BootValues(BootOptions),
    /// Sign an approval of PCR values, with which data that are sealed to approved boots open. This is for
    /// the machine where the key is, and needs no TPM.
    ApproveBoot(ApproveOptions),
}

/// Of `sign`.
#[derive(Args)]
pub struct SignCommand {
    /// What is signed.
    #[command(flatten)]
    pub data: data_signing::SignOptions,
    /// The VM's TPM.
    #[command(flatten)]
    pub tpm: TpmOptions,
}

/// Of `seal`.
#[derive(Args)]
pub struct SealOptions {
    /// The data. Without it, standard input.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Where to write the sealed data.
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Take the place of a file that exists.
    #[arg(long)]
    pub replace: bool,
    /// Seal to the present boot as well: the data open only while the PCRs are as they are now.
    #[arg(long, conflicts_with = "policy_key")]
    pub boot: bool,
    /// Seal to boots that this key's owner approves (`approve-boot`), now or later: a public key, P-256, in
    /// PEM.
    #[arg(long, value_name = "FILE")]
    pub policy_key: Option<PathBuf>,
    /// Of --boot.
    #[command(flatten)]
    pub pcrs: PcrOptions,
    /// The VM's TPM (with a resource manager).
    #[arg(long, value_name = "DEVICE", default_value = DEVICE)]
    pub tpm: TpmAddress,
}

/// Which PCRs a boot is known by.
#[derive(Args)]
pub struct PcrOptions {
    /// The PCRs by which a boot is known.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = BOOT_PCRS)]
    pub pcrs: Vec<u8>,
    /// The PCR bank: sha256, sha384 or sha512. Without it the first of these that has the PCRs and into which
    /// the boot was measured.
    #[arg(long, value_name = "BANK")]
    pub pcr_bank: Option<HashAlgorithm>,
}

/// Of `unseal`.
#[derive(Args)]
pub struct UnsealOptions {
    /// The sealed data.
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// Where to write the data; nobody but the owner may read the file. Without it, to standard output, once
    /// all of them were found genuine.
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// Take the place of a file that exists.
    #[arg(long, requires = "to")]
    pub replace: bool,
    /// An approval of the present boot, for data that are sealed to approved boots. Can be given several
    /// times; the one that fits is used.
    #[arg(long, value_name = "FILE")]
    pub approval: Vec<PathBuf>,
    /// The VM's TPM (with a resource manager).
    #[arg(long, value_name = "DEVICE", default_value = DEVICE)]
    pub tpm: TpmAddress,
}

/// Of `show-sealed`.
#[derive(Args)]
pub struct ShowSealedOptions {
    /// The sealed data.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Write the TPM's object to files object.pub and object.priv in this folder, as tpm2_load reads them.
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Of `boot-values`.
#[derive(Args)]
pub struct BootOptions {
    /// Which values.
    #[command(flatten)]
    pub pcrs: PcrOptions,
    /// The VM's TPM (with a resource manager).
    #[arg(long, value_name = "DEVICE", default_value = DEVICE)]
    pub tpm: TpmAddress,
}

/// Of `approve-boot`.
#[derive(Args)]
pub struct ApproveOptions {
    /// The private key, P-256, PKCS #8 in PEM: `openssl genpkey -algorithm EC -pkeyopt
    /// ec_paramgen_curve:P-256`. It does not belong into the VM.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The values: what `boot-values` printed in a VM that booted as it should.
    #[arg(long, value_name = "FILE")]
    pub values: PathBuf,
    /// A name for what is approved, e.g. the system's version.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub label: String,
    /// The PCRs that the values must cover, so that the approval fits one boot only: numbers and ranges.
    #[arg(long, value_name = "LIST", default_value = "0-7")]
    pub require_pcrs: RequiredPcrs,
    /// Where to write the approval.
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}

/// Of `evidence`.
#[derive(Args)]
pub struct EvidenceOptions {
    /// The verifier's nonce, in hexadecimal: 16 to 64 bytes.
    #[arg(long, value_name = "HEX")]
    pub nonce: Nonce,
    /// The SPIFFE trust domain whose authority asks, to attest this VM as a node: the evidence is of use
    /// there and nowhere else. Not what the other end says, but the trust domain that this VM is to be in.
    #[arg(long, value_name = "DOMAIN")]
    pub spiffe: Option<TrustDomain>,
    /// Where to write the evidence (CBOR). Without it, to standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The VM's TPM.
    #[command(flatten)]
    pub tpm: TpmOptions,
}

/// Of `identity`.
#[derive(Args)]
pub struct IdentityOptions {
    /// Of which key: the VM's identity key, or that of its TLS connections.
    #[arg(long, value_name = "KEY", default_value = "vik")]
    pub key: IdentityKey,
    /// Print as JSON: what the certificates say, and the certificates. Without it, certificates in PEM.
    #[arg(long)]
    pub json: bool,
    /// The VM's TPM (with a resource manager).
    #[arg(long, value_name = "DEVICE", default_value = DEVICE)]
    pub tpm: TpmAddress,
}

/// Keys of a vRoT whose certificates a VM may want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdentityKey {
    /// The key that quotes.
    Vik,
    /// The key of TLS connections.
    Tls,
}

/// The TPM of most VMs.
const DEVICE: &str = "/dev/tpmrm0";

/// Of `proxy`.
#[derive(Args)]
pub struct ProxyOptions {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7072")]
    pub listen: SocketAddr,
    /// The service that connections are passed to.
    #[arg(long, value_name = "HOST:PORT")]
    pub forward: Destination,
    /// Tell the service who connects: what is passed to it begins with a header of the PROXY protocol
    /// (version 2), with the peer's address and the name under which the device was accepted. The service
    /// has to expect it.
    #[arg(long)]
    pub proxy_protocol: bool,
    /// What is demanded of devices: a policy file. Each device is judged by it before the first byte
    /// passes, and again as long as the connection lives.
    #[arg(long, value_name = "FILE", required_unless_present = "any_device")]
    pub policy: Option<PathBuf>,
    /// Let every device in: nothing is demanded of devices, neither an identity nor evidence.
    #[arg(long, conflicts_with = "policy")]
    pub any_device: bool,
    /// Answer challenges in the clear as well, as `serve` does, here.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub challenges: Option<SocketAddr>,
    /// The key exchange of TLS: hybrid-first also takes elliptic curves from devices that have no
    /// X25519MLKEM768.
    #[arg(long, value_name = "GROUPS", default_value = "hybrid-first")]
    pub tls_group: TlsGroup,
    /// Connections at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 4096)]
    pub connections: usize,
    /// Those of one peer: an IPv4 address, or an IPv6 network of 64 bits.
    #[arg(long, value_name = "NUMBER", default_value_t = 2048)]
    pub connections_per_peer: usize,
    /// How long open connections may go on once the service is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_seconds: u64,
    /// The VM's TPM.
    #[command(flatten)]
    pub tpm: TpmOptions,
}

/// Of the VM's TPM and what evidence is made of.
#[derive(Args)]
pub struct TpmOptions {
    /// The VM's TPM (with a resource manager).
    #[arg(long, value_name = "DEVICE", default_value = DEVICE)]
    pub tpm: TpmAddress,
    /// The event log of the VM's boot. Where it is missing, and the host says that no firmware measures
    /// into the VM's TPM (virtio-tpm, virtio-i2c), evidence goes without one.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/sys/kernel/security/tpm0/binary_bios_measurements"
    )]
    pub event_log: PathBuf,
    /// The PCRs to quote. Devices ask for all of these; leave out those that something goes on
    /// extending after the boot, and have the devices' policies ignore them.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = BOOT_PCRS)]
    pub quoted_pcrs: Vec<u8>,
    /// The PCR bank to quote: sha256, sha384 or sha512. Without it the first of these that the
    /// TPM has and the event log accounts for.
    #[arg(long, value_name = "BANK")]
    pub pcr_bank: Option<HashAlgorithm>,
    /// A revocation list of the issuer (`vtpmctl issuer crl`), PEM or DER, which the evidence then
    /// carries to devices that have no other way to get it, and in which devices with a TPM are looked
    /// for. It is read anew when it changes. Can be given several times.
    #[arg(long, value_name = "FILE")]
    pub crl: Vec<PathBuf>,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The key exchanges that are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsGroup {
    /// X25519MLKEM768 first, and elliptic curves.
    HybridFirst,
    /// X25519MLKEM768 alone.
    HybridOnly,
}

impl From<TlsGroup> for KeyExchange {
    fn from(group: TlsGroup) -> Self {
        match group {
            TlsGroup::HybridFirst => Self::HybridFirst,
            TlsGroup::HybridOnly => Self::HybridOnly,
        }
    }
}

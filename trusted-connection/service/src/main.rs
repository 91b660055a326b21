//! `vrot-service`: attests the VM that it runs in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::BOOT_PCRS;
use cert_chain::{HashAlgorithm, PcrSelection};
use clap::{Parser, Subcommand};
use connection_proxy::Stop;
use program_output::console::arguments;
use program_output::log;
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;
use trusted_connection::crl_files::CrlFiles;
use vrot_service::attester::batches::Batches;
use vrot_service::attester::esys::{EsysTpm, HostThroughTpm};
use vrot_service::attester::quoting::EvidenceFiles;
use vrot_service::service::Service;

/// Attests this VM: which one it is, what booted in it, on which host it runs and what booted
/// there.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer challenges of devices until stopped.
    Serve {
        /// Where to listen.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7071")]
        listen: SocketAddr,
        /// The VM's TPM (with a resource manager).
        #[arg(long, value_name = "DEVICE", default_value = "/dev/tpmrm0")]
        tpm: PathBuf,
        /// The event log of the VM's boot.
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/sys/kernel/security/tpm0/binary_bios_measurements"
        )]
        event_log: PathBuf,
        /// The PCRs to quote. Devices ask for all of these; leave out those that something goes on
        /// extending after the boot, and have the devices' policies ignore them.
        #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = BOOT_PCRS)]
        quoted_pcrs: Vec<u8>,
        /// The PCR bank to quote: sha256, sha384 or sha512. Without it the first of these that the
        /// TPM has and the event log accounts for.
        #[arg(long, value_name = "BANK")]
        pcr_bank: Option<HashAlgorithm>,
        /// A revocation list of the issuer (`vtpmctl issuer crl`), PEM or DER, which the evidence then
        /// carries to devices that have no other way to get it. It is read anew when it changes.
        /// Can be given several times.
        #[arg(long, value_name = "FILE")]
        crl: Vec<PathBuf>,
    },
}

/// How long devices have for what they began when the service is stopped.
const DRAIN: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(end) => return end,
    };
    let _log = log::start(LevelFilter::INFO, log::Format::Text);
    log::on_panic(|_| {});
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("vrot-service: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let Command::Serve {
        listen,
        tpm,
        event_log,
        quoted_pcrs,
        pcr_bank,
        crl,
    } = arguments.command;
    let quoted = PcrSelection::new(quoted_pcrs).context("--quoted-pcrs cannot be used")?;
    let vrot = EsysTpm::open(&tpm, quoted, pcr_bank).with_context(|| {
        format!(
            "{} is no vRoT, or may not be used by this user",
            tpm.display()
        )
    })?;
    let runtime = tokio::runtime::Runtime::new().context("no threads can be started")?;
    let files = EvidenceFiles {
        event_log,
        crls: CrlFiles::open(&crl)?,
    };
    files.carried().context("--crl cannot be used")?;
    let host = Arc::new(HostThroughTpm::new(&tpm));
    let batches = Batches::start(vrot, host, files)
        .context("no thread can be started for the vRoT's quotes")?;
    runtime.block_on(async {
        let stop = Stop::at_signals(DRAIN).context("signals cannot be listened to")?;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("{listen} cannot be listened on"))?;
        tracing::info!(%listen, "answering challenges");
        Service::new(Arc::new(batches)).serve(listener, &stop).await;
        Ok(())
    })
}

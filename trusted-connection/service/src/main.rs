//! `vrot-service`: attests the VM that it runs in.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::Binding;
use attestation::device::DeviceResult;
use attested_tls::{Demands, NoDemand};
use cert_chain::PcrSelection;
use connection_proxy::{Limits, Stop, allow_open_files, ready, reload_at_hangup, serve};
use data_signing::Signed;
use data_signing::stream::Summary;
use printable::WithCauses;
use program_output::console::arguments;
use program_output::log;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::net::TcpListener;
use tracing_subscriber::filter::{LevelFilter, Targets};
use trusted_connection::crl_files::CrlFiles;
use vrot_service::attester::batches::Batches;
use vrot_service::attester::esys::{EsysTpm, HostThroughTpm};
use vrot_service::attester::quoting::EvidenceFiles;
use vrot_service::command_line::{Arguments, Command, LogFormat, ProxyOptions, TpmOptions};
use vrot_service::devices::{Devices, Told};
use vrot_service::proxy::Proxy;
use vrot_service::service::{self, Service};
use vrot_service::signing_data::VmSigner;
use vrot_service::tls_identity::{RENEWAL_PERIOD, TlsIdentity};
use vrot_service::tls_key::TpmTlsKey;
use vrot_service::vm_attester::VmAttester;
use vrot_service::{evidence_file, identity, sealing};

/// How long devices have for challenges that they began when the service is stopped.
const CHALLENGES_END: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(end) => return end,
    };
    let format = match arguments.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    let _log = log::start(told(), format);
    log::on_panic(|_| {});
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("vrot-service: {}", WithCauses(&*error));
            ExitCode::FAILURE
        }
    }
}

/// The binding to the TPM's software stack logs as an error whatever a TPM refuses, even where that is an
/// answer like any other; what matters of it is in our own errors.
fn told() -> Targets {
    Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("tss_esapi", LevelFilter::OFF)
}

fn run(command: Command) -> Result<()> {
    let runtime = || tokio::runtime::Runtime::new().context("no threads can be started");
    match command {
        Command::Serve { listen, tpm } => runtime()?.block_on(async {
            let stop = Stop::at_signals(CHALLENGES_END).context(SIGNALS)?;
            let batches = batches(open_tpm(&tpm)?, &tpm)?;
            let listener = bind(listen).await?;
            ready();
            answer_challenges(listener, batches, &stop).await
        }),
        Command::Proxy(options) => runtime()?.block_on(demanding_proxy(options)),
        Command::Evidence(options) => evidence_file::write(
            open_tpm(&options.tpm)?,
            &HostThroughTpm::new(options.tpm.tpm.clone()),
            evidence_files(&options.tpm)?,
            options.nonce,
            options
                .spiffe
                .map_or(Binding::None, |domain| domain.binding()),
            options.output.as_deref(),
        ),
        Command::Identity(options) => identity::show(&options),
        Command::Sign(options) => {
            let address = &options.tpm.tpm;
            let signed = data_signing::sign(&options.data, || {
                let host = HostThroughTpm::new(address.clone());
                let files = evidence_files(&options.tpm)?;
                VmSigner::open(address, open_tpm(&options.tpm)?, host, files)
            })?;
            match signed {
                Signed::Data(number) => tracing::info!(number, "signed"),
                Signed::Stream(Summary { batches, readings }) => {
                    tracing::info!(batches, readings, "signed");
                }
            }
            Ok(())
        }
        Command::Seal(options) => sealing::commands::seal(&options),
        Command::Unseal(options) => sealing::commands::unseal(&options),
        Command::ShowSealed(options) => sealing::commands::show(&options),
        Command::BootValues(options) => sealing::approving::boot_values(&options),
        Command::ApproveBoot(options) => sealing::approving::approve(&options),
    }
}

/// Serves a proxy that demands of devices what the command line says.
async fn demanding_proxy(options: ProxyOptions) -> Result<()> {
    match options.policy.clone() {
        Some(policy) => {
            let crls = Arc::new(CrlFiles::open(&options.tpm.crl)?);
            let devices = Arc::new(load(&policy)?.with_crls(crls));
            let has_lists = !options.tpm.crl.is_empty();
            tell_missing_lists(&devices, has_lists);
            let clients = devices.client_certificates()?;
            let told = |device: &Arc<DeviceResult>| Told::of(device);
            let judging = Arc::clone(&devices);
            let demands = Box::new(move || judging.verifier());
            proxy(options, clients, demands, told, move |identity| {
                let anew = load(&policy)?;
                identity.let_through(anew.client_certificates()?)?;
                devices.replace(&anew);
                tell_missing_lists(&anew, has_lists);
                tracing::info!(policy = %anew.policy().digest(), "the policy is read anew");
                Ok(())
            })
            .await
        }
        // The command line says so in so many words.
        None => {
            tracing::warn!("nothing is demanded of devices: every one is let in");
            let clients = WebPkiClientVerifier::no_client_auth();
            let told = |(): &()| Told::any();
            proxy(options, clients, Box::new(|| NoDemand), told, |_| {
                tracing::info!("there is no policy that could be read anew");
                Ok(())
            })
            .await
        }
    }
}

fn tell_missing_lists(devices: &Devices, has_lists: bool) {
    if !has_lists && devices.demands_a_list() {
        tracing::warn!(
            "the policy demands a revocation list, and none is given (--crl): no device with a TPM is \
             accepted"
        );
    }
}

fn load(policy: &Path) -> Result<Devices> {
    Devices::load(policy)
        .with_context(|| format!("{} is no policy about devices", policy.display()))
}

const SIGNALS: &str = "signals cannot be waited for";

/// Serves a proxy that demands this of devices; `reload` reads anew what.
async fn proxy<D: Demands>(
    options: ProxyOptions,
    clients: Arc<dyn ClientCertVerifier>,
    demands: Box<dyn Fn() -> D + Send + Sync>,
    told: fn(&D::Result) -> Told,
    reload: impl Fn(&TlsIdentity) -> Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let limits = Limits {
        connections: options.connections,
        of_a_peer: options.connections_per_peer,
    };
    let mut listeners = vec![limits];
    listeners.extend(options.challenges.map(|_| service::LIMITS));
    allow_open_files(&listeners);
    let mut tpm = open_tpm(&options.tpm)?;
    let key = TpmTlsKey::open(&options.tpm.tpm)?;
    let statement = TpmTlsKey::certified_by(&mut tpm)?;
    let batches = batches(tpm, &options.tpm)?;
    let attester = VmAttester::new(Arc::clone(&batches), statement);
    let identity = TlsIdentity::wait_for(key, clients, options.tls_group.into()).await?;
    let stop = Stop::at_signals(Duration::from_secs(options.drain_seconds)).context(SIGNALS)?;
    let listener = bind(options.listen).await?;
    let challenges = match options.challenges {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let handler = Proxy {
        identity: Arc::clone(&identity),
        attester: Arc::new(attester),
        demands,
        told,
        forward: options.forward,
        tells_who: options.proxy_protocol,
    };
    let reloading = Arc::clone(&identity);
    reload_at_hangup(move || Ok(reload(&reloading)?)).context(SIGNALS)?;
    let listen = listener.local_addr()?;
    tracing::info!(%listen, forward = %handler.forward, "taking attested connections");
    ready();
    let proxied = serve(listener, limits, &stop, Arc::new(handler));
    let answered = async {
        match challenges {
            Some(listener) => answer_challenges(listener, batches, &stop).await,
            None => Ok(()),
        }
    };
    let served = async { tokio::join!(proxied, answered) };
    tokio::select! {
        ((), answered) = served => answered,
        () = identity.keep_renewed(RENEWAL_PERIOD) => Ok(()),
    }
}

async fn answer_challenges(
    listener: TcpListener,
    batches: Arc<Batches>,
    stop: &Stop,
) -> Result<()> {
    let listen = listener.local_addr()?;
    tracing::info!(%listen, "answering challenges");
    Service::new(batches).serve(listener, stop).await;
    Ok(())
}

fn open_tpm(options: &TpmOptions) -> Result<EsysTpm> {
    let quoted =
        PcrSelection::new(options.quoted_pcrs.clone()).context("--quoted-pcrs cannot be used")?;
    EsysTpm::open(&options.tpm, quoted, options.pcr_bank).with_context(|| {
        format!(
            "{} is no vRoT, or may not be used by this user",
            options.tpm
        )
    })
}

fn batches(tpm: EsysTpm, options: &TpmOptions) -> Result<Arc<Batches>> {
    let host = Arc::new(HostThroughTpm::new(options.tpm.clone()));
    let batches = Batches::start(tpm, host, evidence_files(options)?)
        .context("no thread can be started for the vRoT's quotes")?;
    Ok(Arc::new(batches))
}

fn evidence_files(options: &TpmOptions) -> Result<EvidenceFiles> {
    let files = EvidenceFiles {
        event_log: options.event_log.clone(),
        crls: CrlFiles::open(&options.crl)?,
    };
    files.carried().context("--crl cannot be used")?;
    Ok(files)
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("{address} cannot be listened on"))
}

//! `vtpmctl libvirt-hook`: what libvirt calls around a domain's life (libvirt's "Hooks for specific
//! system management").
//!
//! libvirt waits meanwhile, and this must not ask it anything. A refusal before a start is what
//! `virsh` prints; after the end, nobody is interested.

use std::io;
use std::path::Path;
use std::time::Duration;

use api_types::wire::{CreateRequest, TpmTransport, VrotView};
use cert_chain::{Tenant, VmId};
use printable::is_printable;
use roxmltree::Document;
use vrot_handover::config::Mode;

use crate::arguments::HookArguments;
use crate::client::Client;
use crate::error::CtlError;
use crate::launch;
use crate::measurement::OpenLaunch;
use crate::parts::Parts;

use super::config::Config;
use super::domain::{self, Domain, DomainTpm};
use super::edit::read_all;
use super::error::LibvirtError;
use super::links;
use super::measured;
use super::notes::Note;

/// libvirt holds the domain as long as the hook runs; what is not stopped then is when the domain
/// starts again.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// As long as programs that hand over wait for a manager that is being restarted.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// The manager takes names of this many characters.
const MAX_NAME: usize = 64;

/// What libvirt is about to do, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Start a domain: nothing of it is there yet.
    Prepare,
    /// Start one from what was saved.
    Restore,
    /// Take one over from another host.
    Migrate,
    /// A domain has ended, and everything that it had is free.
    Release,
}

impl Operation {
    fn of(arguments: &HookArguments) -> Option<Self> {
        let part = arguments.part.as_deref().unwrap_or_default();
        match (arguments.operation.as_str(), part) {
            ("prepare", "begin") => Some(Self::Prepare),
            ("restore", "begin") => Some(Self::Restore),
            ("migrate", "begin") => Some(Self::Migrate),
            ("release", "end") => Some(Self::Release),
            _ => None,
        }
    }
}

/// Does what a domain needs.
pub(super) fn run(arguments: &HookArguments, client: &Client) -> Result<(), CtlError> {
    let Some(operation) = Operation::of(arguments) else {
        return Ok(());
    };
    let text = read_all(io::stdin().lock()).map_err(|source| LibvirtError::Input {
        from: "standard input".to_owned(),
        source,
    })?;
    let config = Config::read(&arguments.config.config)?;
    let document = domain::parse(&text)?;
    let domain = Domain::read(&document, &config.links)?;
    let is_ours = domain.is_ours(&config.links);
    if domain.tpm == DomainTpm::Emulator && matches!(is_ours, Ok(false)) {
        return started_by_libvirt(operation, &config, &document, domain.vm, client);
    }
    match operation {
        // It did not start, if it says what does not fit.
        Operation::Release if !matches!(is_ours, Ok(true)) => Ok(()),
        _ if !is_ours? => Ok(()),
        Operation::Prepare => {
            let parts = match config.measure {
                true => Some(measured::parts(&document)?),
                false => None,
            };
            let start = Start {
                config_file: &arguments.config.config,
                config: &config,
                domain: &domain,
                is_restored: links::take_mark(&config.links, domain.vm)?,
                parts,
            };
            start.prepare(client)
        }
        // libvirt 11 takes a refusal here for a domain that was started: it is said a step later.
        Operation::Restore => Ok(links::mark_restored(&config.links, domain.vm)?),
        Operation::Migrate => Err(LibvirtError::Migration { vm: domain.vm }.into()),
        Operation::Release => release(&config, &domain, client),
    }
}

/// A domain of which libvirt starts the TPM by itself: where that is a vRoT, what is measured here counts
/// for its start, which follows.
fn started_by_libvirt(
    operation: Operation,
    config: &Config,
    document: &Document<'_>,
    vm: VmId,
    client: &Client,
) -> Result<(), CtlError> {
    let is_anchored = match Mode::of_this_host() {
        Ok(mode) => mode != Mode::Plain,
        Err(source) => return Err(LibvirtError::Swtpm { vm, source }.into()),
    };
    if !config.measure || !is_anchored {
        return Ok(());
    }
    let launch = match operation {
        // What goes on is not what the definition names.
        Operation::Restore | Operation::Migrate => {
            return Ok(links::mark_restored(&config.links, vm)?);
        }
        Operation::Prepare if links::take_mark(&config.links, vm)? => None,
        Operation::Prepare => measured::parts(document)?.open()?,
        Operation::Release => return Ok(()),
    };
    launch::announce(client, vm, launch, START_PATIENCE)
}

/// The start of a domain with its vRoT.
struct Start<'a> {
    config_file: &'a Path,
    config: &'a Config,
    domain: &'a Domain,
    /// It goes on from what was saved: what runs then is not what the definition names.
    is_restored: bool,
    /// What the definition names, if that is to be measured.
    parts: Option<Parts>,
}

impl Start<'_> {
    fn prepare(&self, client: &Client) -> Result<(), CtlError> {
        let vm = self.domain.vm;
        let started = match launch::find(client, vm)? {
            Some(vrot) if !vrot.transport.is_emulator() => {
                let transport = vrot.transport;
                return Err(LibvirtError::Transport { vm, transport }.into());
            }
            Some(vrot) => {
                if let Some(tenant) = &self.domain.tenant {
                    launch::check_tenant(&vrot, tenant)?;
                }
                launch::start_anew(client, &vrot, self.launch()?)?
            }
            None if self.is_restored => return Err(LibvirtError::NoVrotToRestore { vm }.into()),
            None => self.create(client)?,
        };
        let linked = match &started.backend {
            Some(backend) => links::make(&self.config.links, vm, &backend.control),
            None => Ok(()),
        };
        linked.or_else(|error| {
            // It was refused before libvirt began with it.
            launch::stop(client, started.vrot, STOP_PATIENCE)?;
            Err(error.into())
        })
    }

    fn create(&self, client: &Client) -> Result<VrotView, CtlError> {
        let (vm, config) = (self.domain.vm, self.config_file.to_owned());
        if !self.config.create {
            return Err(LibvirtError::NoVrot { vm, config }.into());
        }
        let tenant: &Tenant = (self.domain.tenant.as_ref())
            .or(self.config.tenant.as_ref())
            .ok_or(LibvirtError::NoTenant { vm, config })?;
        let request = CreateRequest {
            vm: Some(vm),
            tenant: tenant.clone(),
            name: shown(&self.domain.name),
            start: true,
            require_launch_measurement: false,
            launch: None,
            transport: TpmTransport::Emulator,
        };
        let vrot = launch::create(client, request, self.launch()?)?;
        // What is not noted would never be deleted.
        if let Err(error) = Note::new(vm, vrot.vrot).keep(&self.config.notes) {
            launch::stop(client, vrot.vrot, STOP_PATIENCE)?;
            launch::delete(client, vrot.vrot)?;
            return Err(error.into());
        }
        Ok(vrot)
    }

    fn launch(&self) -> Result<Option<OpenLaunch>, CtlError> {
        let parts = self.parts.as_ref().filter(|_| !self.is_restored);
        Ok(parts.map(Parts::open).transpose()?.flatten())
    }
}

/// As much of a domain's name as a vRoT takes for its own.
fn shown(name: &str) -> Option<String> {
    let printable = name.chars().filter(|c| is_printable(*c));
    let name: String = printable.take(MAX_NAME).collect();
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn release(config: &Config, domain: &Domain, client: &Client) -> Result<(), CtlError> {
    let unlinked = links::remove(&config.links, domain.vm);
    if let Some(vrot) = launch::find_patiently(client, domain.vm, STOP_PATIENCE)? {
        launch::stop(client, vrot.vrot, STOP_PATIENCE)?;
    }
    Ok(unlinked?)
}

//! A VM's service: the shipped proxy before an echo, and the shipped answers to challenges.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use attestation::{BOOT_PCRS, RequestDigest};
use attested_tls::NoDemand;
use attested_tls::tls::KeyExchange;
use cert_chain::PcrSelection;
use connection_proxy::{Limits, Stop, serve};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use vrot_device::connection::ServiceAddress;
use vrot_service::attester::batches::Batches;
use vrot_service::attester::esys::EsysTpm;
use vrot_service::attester::host_evidence::{HostMemory, host_layer};
use vrot_service::attester::{Host, HostEvidenceError, TpmAddress};
use vrot_service::devices::Told;
use vrot_service::proxy::Proxy;
use vrot_service::tls_identity::TlsIdentity;
use vrot_service::tls_key::TpmTlsKey;
use vrot_service::vm_attester::VmAttester;

use crate::bare_vm::BareVm;
use crate::vmm::Vmm;

/// A running service. It ends with the process.
pub(super) struct Service {
    /// Where it takes attested connections.
    pub(super) attested: ServiceAddress,
    /// Where it answers challenges.
    pub(super) challenges: SocketAddr,
    pub(super) vm: BareVm,
    pub(super) batches: Arc<Batches>,
}

const LIMITS: Limits = Limits {
    connections: 4096,
    of_a_peer: 4096,
};

impl Service {
    /// Boots a VM and starts its service.
    pub(super) async fn start(vmm: Vmm, folder: &Path) -> Result<Self> {
        let vm = BareVm::boot_with(vmm, folder)?;
        let tpm: TpmAddress = vm.tpm().parse()?;
        let mut quoting = open(&vm)?;
        let statement = TpmTlsKey::certified_by(&mut quoting)?;
        let host = Arc::new(HostBelow::of(&vm));
        let batches = Batches::start(quoting, host, vm.event_log().to_owned())?;
        let batches = Arc::new(batches);
        let identity = TlsIdentity::wait_for(
            TpmTlsKey::open(&tpm)?,
            WebPkiClientVerifier::no_client_auth(),
            KeyExchange::HybridFirst,
        )
        .await?;
        let proxy = Proxy {
            identity,
            attester: Arc::new(VmAttester::new(Arc::clone(&batches), statement)),
            demands: Box::new(|| NoDemand),
            told: |()| Told::any(),
            forward: echo().await?.to_string().parse()?,
            tells_who: false,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let attested = listener.local_addr()?.to_string().parse()?;
        let stop = Stop::after(Duration::ZERO);
        let until = stop.clone();
        tokio::spawn(async move { serve(listener, LIMITS, &until, Arc::new(proxy)).await });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let challenges = listener.local_addr()?;
        let answering = vrot_service::service::Service::new(Arc::clone(&batches));
        tokio::spawn(async move { answering.serve(listener, &stop).await });
        Ok(Self {
            attested,
            challenges,
            vm,
            batches,
        })
    }
}

/// The host below a VM, asked by the shipped code.
pub(super) struct HostBelow {
    vm: BareVm,
    memory: Mutex<HostMemory>,
}

impl HostBelow {
    pub(super) fn of(vm: &BareVm) -> Self {
        Self {
            vm: vm.clone(),
            memory: Mutex::default(),
        }
    }
}

impl Host for HostBelow {
    fn layer(&self, request: &RequestDigest) -> Result<Vec<u8>, HostEvidenceError> {
        host_layer(&mut self.vm.client(), request, &self.memory)
    }
}

/// Another connection to a VM's TPM.
pub(super) fn open(vm: &BareVm) -> Result<EsysTpm> {
    Ok(EsysTpm::open(
        &vm.tpm().parse()?,
        PcrSelection::new(BOOT_PCRS)?,
        None,
    )?)
}

/// Sends everything back.
pub(super) async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok(address)
}

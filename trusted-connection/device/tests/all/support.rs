//! Hosts with VMs whose TPMs are keys in software, services in those VMs, and both ends of a
//! connection to one.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attestation::fixture::{Host, Vm};
use attestation::{Binding, Evidence, Nonce};
use attested_tls::tls::{KeyExchange, ServerTls, provider};
use attested_tls::{
    Attested, AttestedStream, Attester, ConnectionError, Deadlines, Demand, EvidenceFuture,
    NoDemand, accept,
};
use cert_chain::Issuer;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::server::NoClientAuth;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpListener;
use vrot_device::Connector;
use vrot_device::connection::{Appraised, ConnectError, DeviceIdentity, ServiceAddress};

/// A host with one VM, as of now: connections are judged by the clock.
pub(crate) fn host_and_vm() -> (Host, Vm) {
    let host = Host::made_at(UnixTime::now(), "host-1");
    let vm = host.vm();
    (host, vm)
}

/// Another host under the same issuer, with one VM.
pub(crate) fn neighbour(of: &Host) -> (Host, Vm) {
    let host = Host::under_at(UnixTime::now(), issuer_of(of), "host-2");
    let vm = host.vm();
    (host, vm)
}

pub(crate) fn issuer_of(host: &Host) -> Issuer {
    host.issuer_again()
}

/// So long ago that what was certified then for a day has expired.
pub(crate) fn two_days_ago() -> UnixTime {
    let then = UnixTime::now().as_secs() - 2 * 86_400;
    UnixTime::since_unix_epoch(Duration::from_secs(then))
}

/// A VM's service: the certificate of its TLS key, and evidence of the VM.
pub(crate) struct Service {
    pub(crate) tls: ServerTls,
    pub(crate) attester: Arc<dyn Attester>,
}

/// Evidence of a VM as its vRoT and its host make it, and what a hostile VM makes of it.
pub(crate) struct Machine {
    pub(crate) host: Arc<Host>,
    pub(crate) vm: Mutex<Vm>,
    /// Stands for all that an attester in an attacker's hands can do: it is given the nonce and the
    /// binding that the connection asks for.
    pub(crate) make: Make,
    /// Evidence that was made so far.
    pub(crate) made: Mutex<Vec<Evidence>>,
}

pub(crate) type Make = Box<dyn Fn(&Host, &Vm, &Nonce, Binding) -> Evidence + Send + Sync>;

/// What an honest attester does.
pub(crate) fn honestly() -> Make {
    Box::new(|host, vm, nonce, binding| host.evidence(vm, nonce, binding))
}

impl Machine {
    pub(crate) fn new(host: impl Into<Arc<Host>>, vm: Vm) -> Arc<Self> {
        Self::making(host, vm, honestly())
    }

    pub(crate) fn making(host: impl Into<Arc<Host>>, vm: Vm, make: Make) -> Arc<Self> {
        Arc::new(Self {
            host: host.into(),
            vm: Mutex::new(vm),
            make,
            made: Mutex::default(),
        })
    }

    /// The policy that accepts this VM as it booted on this host.
    pub(crate) fn policy_text(&self) -> String {
        self.host.policy_text(&self.vm.lock().unwrap())
    }

    pub(crate) fn connector(&self) -> Connector {
        self.connector_with(&self.policy_text())
    }

    pub(crate) fn connector_with(&self, policy: &str) -> Connector {
        self.connector_of(policy, DeviceIdentity::none())
    }

    pub(crate) fn connector_of(&self, policy: &str, device: DeviceIdentity) -> Connector {
        let policy = self.host.read_policy(policy).unwrap();
        Connector::new(Arc::new(policy), device, None)
            .unwrap()
            .with_deadlines(deadlines())
    }

    /// Another VM on the same host that booted the same.
    pub(crate) fn sibling(&self) -> Arc<Self> {
        Self::new(Arc::clone(&self.host), self.host.vm())
    }

    /// The key that the service has in TLS: where that is stolen, or the VM itself is in an attacker's
    /// hands.
    pub(crate) fn tls_key(&self) -> KeyPair {
        KeyPair::from_pem(&self.vm.lock().unwrap().tls_key.serialize_pem()).unwrap()
    }

    /// The certificates with which the service authenticates itself.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let own = self.host.tls_certificate(&self.vm.lock().unwrap());
        vec![own, self.host.certificate.clone()]
    }

    /// A certificate for this key as the host would make it of the VM's own; `change` makes it
    /// another one.
    pub(crate) fn certify(
        &self,
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let host = self.host.name.to_string();
        let (vm, vrot) = {
            let vm = self.vm.lock().unwrap();
            (vm.vm, vm.vrot)
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = called(format!("vRoT {vrot}"));
        params.subject_alt_names = vec![
            SanType::URI(format!("urn:uuid:{vm}").try_into().unwrap()),
            SanType::DnsName(format!("{vrot}.{host}").try_into().unwrap()),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = called(host);
        let issuer = rcgen::Issuer::new(issuer, &self.host.key);
        let own = params.signed_by(key, &issuer).unwrap().into();
        vec![own, self.host.certificate.clone()]
    }

    /// The service in the VM, as it should be.
    pub(crate) fn service(self: &Arc<Self>) -> Service {
        let vm = self.vm.lock().unwrap();
        let certificate = self.host.tls_certificate(&vm);
        Service {
            tls: server(
                vec![certificate, self.host.certificate.clone()],
                &vm.tls_key,
            ),
            attester: Arc::clone(self) as Arc<dyn Attester>,
        }
    }

    /// The service with another certificate.
    pub(crate) fn service_with(
        self: &Arc<Self>,
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Service {
        Service {
            tls: server(chain, key),
            attester: Arc::clone(self) as Arc<dyn Attester>,
        }
    }
}

impl Attester for Machine {
    fn evidence(&self, _: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        let vm = self.vm.lock().unwrap();
        let evidence = (self.make)(&self.host, &vm, &nonce, binding);
        let bytes = evidence.to_cbor();
        self.made.lock().unwrap().push(evidence);
        Box::pin(std::future::ready(Ok(bytes)))
    }
}

fn called(name: String) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

/// A key with certificates, as TLS needs it.
pub(crate) fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> CertifiedKey {
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    CertifiedKey::from_der(chain, private, &provider(KeyExchange::HybridFirst)).unwrap()
}

/// The server's side of TLS with these certificates, its own first, which asks for no client's.
pub(crate) fn server(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> ServerTls {
    let key = certified(chain, key);
    ServerTls::new(key, Arc::new(NoClientAuth), KeyExchange::HybridFirst).unwrap()
}

/// Deadlines for peers that are never slow, on a machine that may be.
pub(crate) fn deadlines() -> Deadlines {
    Deadlines {
        handshake: Duration::from_secs(60),
        attestation: Duration::from_secs(60),
        sending: Duration::from_secs(60),
    }
}

pub(crate) fn address() -> ServiceAddress {
    "vm-1.example.org:7072".parse().unwrap()
}

/// What a device's connection to a service comes to, at the service's end and at the device's.
pub(crate) async fn meet(
    service: &Service,
    connector: &Connector,
) -> (
    Result<Attested<()>, ConnectionError>,
    Result<Attested<Appraised>, ConnectError>,
) {
    let (ours, theirs) = duplex(64 * 1024);
    let (attester, address) = (Arc::clone(&service.attester), address());
    tokio::join!(
        accept(ours, &service.tls, attester, NoDemand, deadlines()),
        connector.attest(theirs, &address),
    )
}

/// A folder with a policy and its roots, as the program reads them.
pub(crate) fn folder(host: &Host, policy: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let roots = host.issuer.certificate_pem();
    fs::write(folder.path().join("roots.pem"), roots).unwrap();
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

/// A service that listens.
pub(crate) struct Listening {
    pub(crate) address: String,
    /// All that was sent to it.
    pub(crate) received: Arc<Mutex<Vec<u8>>>,
}

/// What a service does with a connection.
pub(crate) trait Application: Clone + Send + Sync + 'static {
    fn serve(
        &self,
        stream: AttestedStream,
        received: Arc<Mutex<Vec<u8>>>,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// Has a service listen that gives everything back in capital letters.
pub(crate) async fn listen(service: Service) -> Listening {
    listen_with(service, Capitals).await
}

/// Has a service listen for as long as the test's runtime lives.
pub(crate) async fn listen_with(service: Service, application: impl Application) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listening = Listening {
        address: listener.local_addr().unwrap().to_string(),
        received: Arc::default(),
    };
    let received = Arc::clone(&listening.received);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, application) = (service.tls.clone(), application.clone());
            let (attester, received) = (Arc::clone(&service.attester), Arc::clone(&received));
            tokio::spawn(async move {
                if let Ok(attested) = accept(stream, &tls, attester, NoDemand, deadlines()).await {
                    // A connection that ends before its data do is what some tests are about.
                    let _ = application.serve(attested.stream, received).await;
                }
            });
        }
    });
    listening
}

#[derive(Clone)]
pub(crate) struct Capitals;

impl Application for Capitals {
    async fn serve(
        &self,
        mut stream: AttestedStream,
        received: Arc<Mutex<Vec<u8>>>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = stream.read(&mut buffer).await?;
            if length == 0 {
                break;
            }
            (received.lock().unwrap()).extend_from_slice(&buffer[..length]);
            let capitals = buffer[..length].to_ascii_uppercase();
            stream.write_all(&capitals).await?;
        }
        stream.shutdown().await?;
        let _ = stream.ended().await;
        Ok(())
    }
}

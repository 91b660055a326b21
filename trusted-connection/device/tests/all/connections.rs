//! Which services a device connects to, and why not to others.

use std::sync::Arc;

use attestation::fixture::{TLS, event_log, signing_area};
use attestation::{Binding, Durability, Evidence, Verdict};
use attested_tls::tls::is_hybrid;
use attested_tls::{ConnectionError, Unattested};
use cert_chain::profile::{TlsSpec, issue_vrot_certificate};
use cert_chain::{ObjectAttributes, PublicArea, TlsKey, Validity, VmId};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vrot_device::connection::{ConnectError, DeviceIdentity, NotAccepted, SetupError};
use vrot_device::{Connector, Judgement};

use crate::support::{
    Machine, Service, certified, host_and_vm, meet, neighbour, server, two_days_ago,
};

/// The code of the reason for which evidence was refused.
fn refusal(outcome: Result<impl Sized, ConnectError>) -> String {
    match outcome.err().unwrap() {
        ConnectError::NotAccepted { why, .. } => match why.judgement() {
            Some(Judgement::Refused { refusal, .. }) => refusal.code().to_owned(),
            other => format!("{other:?}"),
        },
        other => format!("{other:?}"),
    }
}

/// The codes of the reasons for which genuine evidence was not accepted.
fn reasons(outcome: Result<impl Sized, ConnectError>) -> Vec<String> {
    let ear = match outcome.err().unwrap() {
        ConnectError::NotAccepted { why, .. } => why.judgement().unwrap().to_json(),
        other => panic!("{other:?}"),
    };
    let reasons = ear["reasons"].as_array().unwrap();
    reasons
        .iter()
        .map(|reason| reason["code"].as_str().unwrap().to_owned())
        .collect()
}

fn assert_handshake_failed(outcome: Result<impl Sized, ConnectError>, because: &str) {
    let error = outcome.err().unwrap();
    let text = printable::WithCauses(&error).to_string();
    let in_the_handshake = matches!(
        error,
        ConnectError::NoVrot { .. }
            | ConnectError::NotAttested {
                source: ConnectionError::Io(_),
                ..
            }
    );
    assert!(in_the_handshake && text.contains(because), "{text}");
}

#[tokio::test]
async fn a_stream_comes_with_the_result_of_the_vm_at_its_other_end() {
    let (host, vm) = host_and_vm();
    let id = vm.vm;
    let machine = Machine::new(host, vm);
    let (served, connected) = meet(&machine.service(), &machine.connector()).await;
    let (mut served, mut connected) = (served.unwrap(), connected.unwrap());
    assert_eq!(connected.appraisal.verdict(), Verdict::Affirming);
    assert_eq!(connected.appraisal.evidence().leaf().vm, id);
    assert!(is_hybrid(&connected.peer.parameters));
    assert_eq!(connected.peer.parameters, served.peer.parameters);

    connected.stream.write_all(b"question").await.unwrap();
    connected.stream.shutdown().await.unwrap();
    let mut question = Vec::new();
    served.stream.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    served.stream.write_all(b"answer").await.unwrap();
    served.stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    connected.stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    let (one, other) = tokio::join!(served.stream.ended(), connected.stream.ended());
    assert!(one.is_ok() && other.is_ok());
}

/// Beside the certificate that is like the host's own work: so the others are refused for what they
/// differ in.
#[tokio::test]
async fn a_certificate_that_is_not_for_servers_in_so_many_words_is_refused() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    for (purposes, good) in [
        (vec![ServerAuth, ClientAuth], true),
        (vec![ClientAuth], false),
        (vec![], false),
        (vec![ExtendedKeyUsagePurpose::Any], false),
    ] {
        let key = machine.tls_key();
        let chain = machine.certify(&key, |params| params.extended_key_usages = purposes);
        let service = machine.service_with(chain, &key);
        let (_, connected) = meet(&service, &machine.connector()).await;
        match good {
            true => assert!(connected.is_ok(), "{connected:?}"),
            false => {
                let because = "extended key usage is not exactly serverAuth and clientAuth";
                assert_handshake_failed(connected, because);
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_that_has_expired_or_leads_to_another_root_is_refused_in_the_handshake() {
    let (mut host, vm) = host_and_vm();
    host.made_at = two_days_ago();
    let expired = host.tls_certificate(&vm);
    host.made_at = UnixTime::now();
    let machine = Machine::new(host, vm);
    let chain = vec![expired, machine.host.certificate.clone()];
    let service = machine.service_with(chain, &machine.tls_key());
    let (_, connected) = meet(&service, &machine.connector()).await;
    assert_handshake_failed(connected, "expired");

    let (other, vm) = host_and_vm();
    let other = Machine::new(other, vm);
    let (_, connected) = meet(&other.service(), &machine.connector()).await;
    assert_handshake_failed(connected, "BadSignature");
}

#[tokio::test]
async fn a_certificate_must_stand_with_its_hosts_and_no_other_ones() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let (key, own) = (machine.tls_key(), machine.chain().remove(0));
    let host = machine.host.certificate.clone();
    let (stranger, _) = neighbour(&machine.host);
    for chain in [
        vec![own.clone()],
        vec![own.clone(), stranger.certificate.clone()],
        vec![own, host, stranger.certificate],
    ] {
        let service = machine.service_with(chain, &key);
        let (_, connected) = meet(&service, &machine.connector()).await;
        assert_handshake_failed(connected, "");
    }
}

/// Genuine evidence of the right VM, and its host's certificate for a key that is not in its vRoT.
#[tokio::test]
async fn the_key_of_the_handshake_must_be_the_one_that_the_vrot_certified() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let foreign = KeyPair::generate().unwrap();
    let service = machine.service_with(machine.certify(&foreign, |_| {}), &foreign);
    let (_, connected) = meet(&service, &machine.connector()).await;
    assert_eq!(refusal(connected), "tls-key-mismatch");
}

/// The statement is genuine, and of the very key of the handshake; but the key's attributes do not say
/// that it was made in the TPM and can be nowhere else.
#[tokio::test]
async fn a_key_that_could_be_elsewhere_is_refused_although_the_vrot_certified_it() {
    let imported = ObjectAttributes::SIGN;
    for (attributes, good) in [(TLS, true), (imported, false)] {
        let (host, vm) = host_and_vm();
        let machine = Machine::making(
            host,
            vm,
            Box::new(move |host, vm, nonce, binding| {
                let statement = vm.statement_about(signing_area(&vm.tls_key, attributes));
                let layer = vm.layer_with(host, nonce, binding, Some(statement));
                let leaf = host.leaf(vm, &layer);
                Evidence::new(layer, host.layer(&[leaf], 0))
            }),
        );
        let (_, connected) = meet(&machine.service(), &machine.connector()).await;
        match good {
            true => assert!(connected.is_ok(), "{connected:?}"),
            false => assert_eq!(refusal(connected), "tls-key"),
        }
    }
}

#[tokio::test]
async fn evidence_that_is_bound_to_nothing_or_to_another_connection_is_refused() {
    for other in [
        Binding::None,
        Binding::Connection(cert_chain::Digest32::of(b"another connection")),
    ] {
        let (host, vm) = host_and_vm();
        let machine = Machine::making(
            host,
            vm,
            Box::new(move |host, vm, nonce, _| host.evidence(vm, nonce, other.clone())),
        );
        let (_, connected) = meet(&machine.service(), &machine.connector()).await;
        assert_eq!(refusal(connected), "binding");
    }
}

#[tokio::test]
async fn a_service_without_evidence_is_not_connected_to() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let service = Service {
        attester: Arc::new(Unattested),
        ..machine.service()
    };
    let (_, connected) = meet(&service, &machine.connector()).await;
    assert!(
        matches!(
            connected,
            Err(ConnectError::NotAttested {
                source: ConnectionError::PeerHasNone(_),
                ..
            })
        ),
        "{connected:?}"
    );
}

#[tokio::test]
async fn a_genuine_vm_that_the_policy_does_not_mean_is_not_connected_to() {
    let (host, vm) = host_and_vm();
    let other = host.policy_text(&host.vm());
    let machine = Machine::new(host, vm);
    let (_, connected) = meet(&machine.service(), &machine.connector_with(&other)).await;
    assert_eq!(reasons(connected), ["vm-unexpected"]);

    let elsewhere = (machine.policy_text()).replace("host-1.demo.example", "host-2.demo.example");
    let (_, connected) = meet(&machine.service(), &machine.connector_with(&elsewhere)).await;
    assert!(reasons(connected).contains(&"host-unexpected".to_owned()));

    let policy = machine.policy_text();
    machine.vm.lock().unwrap().log = event_log(&[(0, 0x8000_0008, b"other firmware")]);
    let (_, connected) = meet(&machine.service(), &machine.connector_with(&policy)).await;
    assert!(reasons(connected).contains(&"pcr-unexpected".to_owned()));
}

/// A certificate of the right key that calls the VM by another name would deceive whoever looks at
/// the certificate alone.
#[tokio::test]
async fn certificate_and_evidence_must_name_the_same_vm() {
    let (host, vm) = host_and_vm();
    let area = PublicArea::parse(&signing_area(&vm.tls_key, TLS)).unwrap();
    let spec = TlsSpec {
        vm: VmId::random(),
        vrot: vm.vrot,
        key: TlsKey::try_from(area).unwrap(),
        validity: Validity::starting(UnixTime::now(), std::time::Duration::from_secs(600)).unwrap(),
    };
    let certificate = issue_vrot_certificate(&spec, &host.key, &host.certificate).unwrap();
    let machine = Machine::new(host, vm);
    let chain = vec![certificate, machine.host.certificate.clone()];
    let service = machine.service_with(chain, &machine.tls_key());
    let (_, connected) = meet(&service, &machine.connector()).await;
    let error = connected.unwrap_err();
    let ConnectError::NotAccepted { why, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(**why, NotAccepted::OtherVm { .. }), "{why:?}");
    assert!(why.to_string().contains(&spec.vm.to_string()), "{why}");
}

#[tokio::test]
async fn a_warning_is_enough_only_where_the_policy_says_so() {
    let (host, vm) = host_and_vm();
    let machine = Machine::making(
        host,
        vm,
        Box::new(|host, vm, nonce, binding| {
            let layer = vm.layer(host, nonce, binding);
            let mut leaf = host.leaf(vm, &layer);
            leaf.durability = Durability::Degraded;
            Evidence::new(layer, host.layer(&[leaf], 0))
        }),
    );
    let policy = machine.policy_text();
    let (_, connected) = meet(&machine.service(), &machine.connector()).await;
    assert_eq!(reasons(connected), ["state-degraded"]);
    let lenient = format!("[connection]\nverdict = \"warning\"\n\n{policy}");
    let (_, connected) = meet(&machine.service(), &machine.connector_with(&lenient)).await;
    assert_eq!(connected.unwrap().appraisal.verdict(), Verdict::Warning);
    for nonsense in ["contraindicated", "none", ""] {
        let text = format!("[connection]\nverdict = \"{nonsense}\"\n\n{policy}");
        assert!(machine.host.read_policy(&text).is_err(), "{nonsense}");
    }
}

#[tokio::test]
async fn a_policy_that_asks_for_hybrid_key_exchange_gets_no_other() {
    use attested_tls::tls::{KeyExchange, provider};
    use rustls::crypto::aws_lc_rs::kx_group;
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let policy = machine.policy_text();
    let hybrid = format!("[connection]\nkey_exchange = \"hybrid\"\n\n{policy}");
    let (_, connected) = meet(&machine.service(), &machine.connector_with(&hybrid)).await;
    assert!(is_hybrid(&connected.unwrap().peer.parameters));

    // A server of another make, which has elliptic curves alone.
    let mut curves = (*provider(KeyExchange::HybridFirst)).clone();
    curves.kx_groups = vec![kx_group::X25519];
    let key = certified(machine.chain(), &machine.tls_key());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(curves))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    for (policy, offered) in [(&hybrid, false), (&policy, true)] {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.clone()));
        let connector = machine.connector_with(policy);
        let address = crate::support::address();
        let (shaken, connected) = tokio::join!(
            async {
                // It shows nothing after the handshake.
                acceptor.accept(ours).await.map(drop)
            },
            connector.attest(theirs, &address),
        );
        assert_eq!(shaken.is_ok(), offered, "{shaken:?}");
        assert!(connected.is_err());
    }
}

#[tokio::test]
async fn a_name_is_compared_where_one_is_asked_for() {
    let (host, vm) = host_and_vm();
    let own = format!("{}.{}", vm.vrot, host.name);
    let machine = Machine::new(host, vm);
    let policy = Arc::new((machine.host.read_policy(&machine.policy_text())).unwrap());
    for (name, good) in [(own.as_str(), true), ("vm-1.example.org", false)] {
        let name = name.to_owned().try_into().unwrap();
        let connector =
            Connector::new(Arc::clone(&policy), DeviceIdentity::none(), Some(name)).unwrap();
        let (_, connected) = meet(&machine.service(), &connector).await;
        match good {
            true => assert!(connected.is_ok(), "{connected:?}"),
            false => assert_handshake_failed(connected, "not valid for name"),
        }
    }
}

#[tokio::test]
async fn a_service_learns_the_identity_that_a_device_shows() {
    use attested_tls::tls::{KeyExchange, ServerTls, provider};
    use rustls::RootCertStore;
    use rustls::server::WebPkiClientVerifier;
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let key = KeyPair::generate().unwrap();
    let own: CertificateDer<'static> = CertificateParams::new(vec!["device.example".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap()
        .into();
    let mut roots = RootCertStore::empty();
    roots.add(own.clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider(KeyExchange::HybridFirst),
    )
    .build()
    .unwrap();
    let key_of_service = certified(machine.chain(), &machine.tls_key());
    let service = Service {
        tls: ServerTls::new(key_of_service, clients, KeyExchange::HybridFirst).unwrap(),
        attester: Arc::clone(&machine) as _,
    };
    let (_, anonymous) = meet(&service, &machine.connector()).await;
    assert!(anonymous.is_err());
    let device = DeviceIdentity::in_software(certified(vec![own.clone()], &key));
    let connector = machine.connector_of(&machine.policy_text(), device);
    let (served, connected) = meet(&service, &connector).await;
    assert!(connected.is_ok(), "{connected:?}");
    assert_eq!(served.unwrap().peer.certificates, [own]);
}

#[test]
fn a_policy_whose_results_end_at_once_makes_no_connections() {
    let (host, vm) = host_and_vm();
    let text = host.policy_text(&vm) + "\n[freshness]\nresult_lifetime_s = 1\n";
    let policy = Arc::new(host.read_policy(&text).unwrap());
    assert!(matches!(
        Connector::new(policy, DeviceIdentity::none(), None),
        Err(SetupError::Lifetime { found: 1 })
    ));
}

/// What the test's own server is: not less than the program's.
#[test]
fn the_fixtures_certificate_is_the_profiles() {
    let (host, vm) = host_and_vm();
    let certificate = host.tls_certificate(&vm);
    let read = cert_chain::profile::TlsCertificate::read(&certificate, &host.name).unwrap();
    assert_eq!((read.vm(), read.vrot()), (vm.vm, vm.vrot));
    drop(server(vec![certificate], &vm.tls_key));
}

//! Devices at the server's end of an attested connection. What a device's TPM makes, keys in software
//! make here; a real TPM is in the tests of `vrot-device`.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attestation::connection::TlsParameters;
use attestation::device::fixture::FixtureDevice;
use attestation::device::{DeviceIdentity, DevicePolicy, DeviceResult};
use attestation::fixture::{Host, event_log};
use attestation::policy::PolicyError;
use attestation::{Binding, Nonce, Verdict};
use attested_tls::tls::{ClientTls, KeyExchange, ServerTls, provider};
use attested_tls::{
    Attester, ConnectionError, Deadlines, Demand, EvidenceFuture, Format, NoDemand, NoEvidence,
    Peer, Verifier, accept, connect,
};
use cert_chain::profile::{CrlSpec, RevokedCertificate};
use cert_chain::{Digest32, RevocationReason, Validity};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, ServerName, UnixTime};
use trusted_connection::crl_files::CrlFiles;
use vrot_service::devices::{DeviceVerifier, Devices, Told};

/// An authority for certificates of TLS, above servers and above devices without a TPM.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn certified(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> CertifiedKey {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &*self.0).unwrap();
        let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = provider(KeyExchange::HybridFirst);
        CertifiedKey::from_der(vec![certificate.into()], private, &provider).unwrap()
    }
}

/// What a device answers with.
struct Answers<F>(F);

impl<F> Attester for Answers<F>
where
    F: Fn(&Nonce, Binding) -> Result<Vec<u8>, NoEvidence> + Send + Sync + 'static,
{
    fn evidence(&self, _: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        Box::pin(std::future::ready((self.0)(&nonce, binding)))
    }
}

fn attesting(device: FixtureDevice) -> Arc<dyn Attester> {
    let answer = move |nonce: &Nonce, binding| Ok(device.evidence(nonce, binding).to_cbor());
    Arc::new(Answers(answer))
}

/// A device without a root of trust.
fn unattesting() -> Arc<dyn Attester> {
    Arc::new(Answers(|_: &Nonce, _| Ok(Vec::new())))
}

fn device(path: &str) -> FixtureDevice {
    let now = UnixTime::now();
    FixtureDevice::under_at(now, Host::made_at(now, "host-1").issuer, path)
}

/// What a service with this policy makes of a device.
async fn meet(
    policy: DevicePolicy,
    device: Arc<dyn Attester>,
    identity: Option<CertifiedKey>,
) -> Result<Arc<DeviceResult>, ConnectionError> {
    judge(Devices::new(policy), device, identity).await
}

async fn judge(
    devices: Devices,
    device: Arc<dyn Attester>,
    identity: Option<CertifiedKey>,
) -> Result<Arc<DeviceResult>, ConnectionError> {
    const NAME: &str = "service.example";
    let servers = Authority::new();
    let server = ServerTls::new(
        servers.certified(NAME, ExtendedKeyUsagePurpose::ServerAuth),
        devices.client_certificates().unwrap(),
        KeyExchange::HybridFirst,
    )
    .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(servers.0.der().clone()).unwrap();
    let trusted = WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots),
        provider(KeyExchange::HybridFirst),
    )
    .build()
    .unwrap();
    let client = match identity {
        None => ClientTls::anonymous(trusted, KeyExchange::HybridFirst),
        Some(key) => ClientTls::with_certificate(key, trusted, KeyExchange::HybridFirst),
    }
    .unwrap();
    let patience = Duration::from_secs(20);
    let deadlines = || Deadlines {
        handshake: patience,
        attestation: patience,
        sending: patience,
    };
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(NAME).unwrap();
    let (met, _) = tokio::join!(
        accept(
            ours,
            &server,
            Arc::new(attested_tls::Unattested),
            Arc::new(devices).verifier(),
            deadlines()
        ),
        connect(theirs, &client, name, device, NoDemand, deadlines()),
    );
    met.map(|attested| attested.appraisal)
}

fn refusal(met: Result<Arc<DeviceResult>, ConnectionError>) -> String {
    match met {
        Err(ConnectionError::Refused(refused)) => refused.reason,
        Err(other) => panic!("{other:?}"),
        Ok(result) => panic!("{} was accepted", result.name()),
    }
}

#[tokio::test]
async fn a_device_with_a_tpm_is_known_by_name_and_boot() {
    let device = device("plant-7/meter-12");
    let met = meet(device.policy(), attesting(device), None)
        .await
        .unwrap();
    assert_eq!(met.name(), "spiffe://demo.example/plant-7/meter-12");
    assert_eq!(met.verdict(), Verdict::Affirming);
    assert_eq!(Told::of(&met).reasons, None);
    assert!(matches!(met.identity(), DeviceIdentity::Attested(_)));
}

#[tokio::test]
async fn a_device_that_booted_something_else_is_refused() {
    let mut device = device("meter-12");
    let policy = device.policy();
    device.log = event_log(&[(0, 0x8000_0008, b"another firmware")]);
    let reason = refusal(meet(policy, attesting(device), None).await);
    assert!(reason.contains("pcr-unexpected"), "{reason}");
}

#[tokio::test]
async fn a_device_that_the_policy_does_not_name_is_refused() {
    let ours = device("meter-12");
    let theirs = FixtureDevice::under_at(
        UnixTime::now(),
        cert_chain::Issuer::from_pem(&ours.issuer.key_pem(), &ours.issuer.certificate_pem())
            .unwrap(),
        "meter-13",
    );
    let reason = refusal(meet(ours.policy(), attesting(theirs), None).await);
    assert!(reason.contains("device-unexpected"), "{reason}");
    assert!(reason.contains("meter-13"), "{reason}");
}

#[tokio::test]
async fn a_device_that_its_issuer_revoked_is_refused_as_soon_as_the_list_is_there() {
    let device = device("meter-12");
    let policy = device.policy();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("issuer.crl");
    let issuer =
        cert_chain::Issuer::from_pem(&device.issuer.key_pem(), &device.issuer.certificate_pem())
            .unwrap();
    let serial = issuer.recognise(&device.certificate).unwrap().serial;
    let publish = |number, revoked| {
        let spec = CrlSpec {
            number,
            validity: Validity::starting(UnixTime::now(), Duration::from_secs(86_400)).unwrap(),
            revoked,
        };
        fs::write(&file, issuer.sign_crl(&spec).unwrap().der()).unwrap();
    };
    publish(1, Vec::new());
    let crls = Arc::new(CrlFiles::open(std::slice::from_ref(&file)).unwrap());
    let device = attesting(device);
    let meet = || {
        let devices = Devices::new(policy.clone()).with_crls(Arc::clone(&crls));
        judge(devices, Arc::clone(&device), None)
    };
    meet().await.unwrap();
    publish(
        2,
        vec![RevokedCertificate {
            serial,
            since: UnixTime::now(),
            reason: RevocationReason::KeyCompromise,
        }],
    );
    let reason = refusal(meet().await);
    assert!(reason.starts_with("revoked: "), "{reason}");
}

/// The evidence is genuine and of the very device, and was made for another connection.
#[tokio::test]
async fn evidence_of_another_connection_is_refused() {
    let device = device("meter-12");
    let policy = device.policy();
    let made = Mutex::new(Vec::new());
    let device = Arc::new(device);
    let replaying = {
        let device = Arc::clone(&device);
        move |nonce: &Nonce, binding: Binding| {
            let mut made = made.lock().unwrap();
            made.push(device.evidence(nonce, binding).to_cbor());
            Ok(made.first().unwrap().clone())
        }
    };
    let replaying: Arc<dyn Attester> = Arc::new(Answers(replaying));
    assert!(
        meet(policy.clone(), Arc::clone(&replaying), None)
            .await
            .is_ok()
    );
    let reason = refusal(meet(policy, replaying, None).await);
    assert!(reason.starts_with("nonce: "), "{reason}");
}

/// Evidence of another device is genuine and made for this very connection: whoever rules two devices has both
/// make what it likes.
#[test]
fn a_connection_is_of_the_device_that_was_accepted_first() {
    const METER: &str = "meter-3.example.org";
    let issuer_again = |device: &FixtureDevice| {
        cert_chain::Issuer::from_pem(&device.issuer.key_pem(), &device.issuer.certificate_pem())
            .unwrap()
    };
    let first = device("plant-7/meter-12");
    let under = |path| FixtureDevice::under_at(UnixTime::now(), issuer_again(&first), path);
    let (second, impostor) = (under("plant-7/meter-13"), under("plant-7/meter-12"));
    let authority = Authority::new();
    let text = first.policy_text().replace("meter-12", "*");
    let exemption = format!(
        "[exempt_software_keys]\nroots = \"ca.pem\"\ndevices = [\"{METER}\"]\nreason = \"series 3\"\n"
    );
    let roots = |file: &Path| match file.ends_with("ca.pem") {
        true => Ok(authority.0.pem()),
        false => Ok(first.issuer.certificate_pem()),
    };
    let policy = DevicePolicy::parse(&format!("{text}\n{exemption}"), roots).unwrap();
    let devices = Arc::new(Devices::new(policy));
    let certified = authority.certified(METER, ExtendedKeyUsagePurpose::ClientAuth);
    let peer = Peer {
        certificates: certified.cert.clone(),
        identity: None,
        parameters: TlsParameters {
            version: 0x0304,
            suite: 0x1302,
            group: 0x11ec,
        },
    };
    let round = |verifier: &DeviceVerifier, device: Option<&FixtureDevice>| {
        let nonce = Nonce::new([1; 32]).unwrap();
        let binding = Binding::Connection(Digest32::of(nonce.as_bytes()));
        let evidence = device.map(|device| device.evidence(&nonce, binding.clone()).to_cbor());
        let appraised = verifier.appraise(&evidence.unwrap_or_default(), &nonce, &binding, &peer);
        appraised.map(|appraisal| appraisal.result.name())
    };
    let everybody = [Some(&first), Some(&second), Some(&impostor), None];
    for (one, accepted) in everybody.iter().enumerate() {
        let verifier = devices.verifier();
        let name = round(&verifier, *accepted).unwrap();
        for (other, shown) in everybody.iter().enumerate() {
            let again = round(&verifier, *shown);
            if one == other {
                assert_eq!(again.unwrap(), name);
            } else {
                let reason = again.unwrap_err().reason;
                assert!(reason.contains(&format!("is that of {name}")), "{reason}");
            }
        }
    }
}

fn exempting(authority: &Authority, devices: &str) -> DevicePolicy {
    let text = format!(
        "[exempt_software_keys]\nroots = \"ca.pem\"\ndevices = [\"{devices}\"]\nreason = \"series 3\"\n"
    );
    DevicePolicy::parse(&text, |_| Ok(authority.0.pem())).unwrap()
}

#[tokio::test]
async fn a_device_with_a_software_key_is_accepted_where_the_policy_exempts_it_and_nowhere_else() {
    const DEVICE: &str = "meter-3.example.org";
    let authority = Authority::new();
    let identity = || authority.certified(DEVICE, ExtendedKeyUsagePurpose::ClientAuth);

    let policy = exempting(&authority, DEVICE);
    let met = meet(policy.clone(), unattesting(), Some(identity()))
        .await
        .unwrap();
    assert_eq!(met.name(), DEVICE);
    assert_eq!(met.verdict(), Verdict::Warning);
    let reasons = met.layer().reasons();
    assert_eq!(reasons.first().unwrap().code, "software-key-exempted");
    let told = Told::of(&met).reasons.unwrap();
    assert!(told.contains("software-key-exempted"), "{told}");
    assert!(told.contains("series 3"), "{told}");

    // Not the certificate, but the exemption lets it in.
    let other = exempting(&authority, "meter-4.example.org");
    let reason = refusal(meet(other, unattesting(), Some(identity())).await);
    assert!(reason.contains("device-unexpected"), "{reason}");
    let none = device("meter-12").policy();
    let reason = refusal(meet(none, unattesting(), Some(identity())).await);
    assert!(reason.contains("exempts no device"), "{reason}");

    // And not the exemption without the certificate.
    let reason = refusal(meet(policy.clone(), unattesting(), None).await);
    assert!(reason.contains("client certificate"), "{reason}");
    let stranger = Authority::new().certified(DEVICE, ExtendedKeyUsagePurpose::ClientAuth);
    assert!(matches!(
        meet(policy, unattesting(), Some(stranger)).await,
        Err(ConnectionError::Io(_))
    ));
}

#[test]
fn what_is_demanded_is_what_the_policy_accepts() {
    let formats = |policy| match Arc::new(Devices::new(policy)).verifier().demand() {
        Demand::Evidence { formats, .. } => formats,
        Demand::Nothing => panic!("nothing is demanded"),
    };
    let device = device("meter-12");
    let exemption =
        "\n[exempt_software_keys]\nroots = \"ca.pem\"\ndevices = [\"a\"]\nreason = \"b\"\n";
    let both = device.read_policy(&format!("{}{exemption}", device.policy_text()));
    assert_eq!(formats(device.policy()), [Format::Device]);
    assert_eq!(
        formats(exempting(&Authority::new(), "a")),
        [Format::ClientCertificate]
    );
    assert_eq!(
        formats(both.unwrap()),
        [Format::Device, Format::ClientCertificate]
    );
}

#[test]
fn a_policy_is_read_with_the_roots_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("devices.toml");
    let device = device("meter-12");
    fs::write(&file, device.policy_text()).unwrap();
    let missing = Devices::load(&file).unwrap_err();
    assert!(
        matches!(&missing, PolicyError::Read { path, .. } if *path == folder.path().join("roots.pem")),
        "{missing}"
    );
    fs::write(
        folder.path().join("roots.pem"),
        device.issuer.certificate_pem(),
    )
    .unwrap();
    let policy = Devices::load(&file).unwrap();
    assert_eq!(policy.policy().digest(), device.policy().digest());
}

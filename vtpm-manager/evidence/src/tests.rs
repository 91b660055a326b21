//! Requests that share a quote, and those that get none.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use attestation::merkle::root_from_path;
use cert_chain::{HashAlgorithm, PublicArea};
use tokio::sync::Semaphore;

use super::*;

/// Quotes when it is let, and notes what it was asked to sign.
struct GatedQuoter {
    gate: Arc<Semaphore>,
    /// How often it was asked.
    asked: Arc<AtomicUsize>,
    signed: Arc<Mutex<Vec<Digest32>>>,
}

impl HostQuoter for GatedQuoter {
    async fn identity_key(&self) -> Result<AttestationKey, AnchorError> {
        Ok(identity_key())
    }

    async fn quote(&self, qualifying_data: Digest32) -> Result<SignedQuote, AnchorError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let permit = self.gate.acquire().await;
        permit.map_err(|_| AnchorError::Stopped)?.forget();
        let signed = self.signed.lock();
        signed
            .map_err(|_| AnchorError::Stopped)?
            .push(qualifying_data);
        Ok(SignedQuote {
            attest: vec![1],
            signature: [&[0, 0x18, 0, 0x0b, 0, 1, 7, 0, 1, 9][..]].concat(),
            pcrs: PcrValues::new(HashAlgorithm::Sha256),
        })
    }

    async fn quoted_pcrs(&self) -> Result<PcrValues, AnchorError> {
        Ok(PcrValues::new(HashAlgorithm::Sha256))
    }
}

/// A TPMT_PUBLIC with the shape of an attestation key; its point is P-256's base point.
fn identity_key() -> AttestationKey {
    let area = "0023000b00050472000000100018000b00030010\
                00206b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                00204fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    let area = hex::decode(area).ok().and_then(|bytes| {
        let area = PublicArea::parse(&bytes).ok()?;
        AttestationKey::try_from(area).ok()
    });
    match area {
        Some(key) => key,
        None => unreachable!("a constant key"),
    }
}

fn subject() -> Subject {
    Subject {
        vm: VmId::random(),
        vrot: VrotId::random(),
        tenant: match "acme".parse() {
            Ok(tenant) => tenant,
            Err(error) => unreachable!("a constant name: {error}"),
        },
        generation: Generation::new(1),
        vik: identity_key().name(),
        eks: vec![],
        anchoring: Anchoring::Strict,
        cut_off: CutOff::Excluded,
        state_loss: StateLoss::Excluded,
        launch: LaunchMeasurement::NotMeasured,
        transport: TpmTransport::Emulator,
    }
}

fn request(number: u8) -> RequestDigest {
    RequestDigest(Digest32::new([number; 32]))
}

#[tokio::test]
async fn requests_during_a_quote_share_the_next_one() -> anyhow::Result<()> {
    let log = tempfile::NamedTempFile::new()?;
    let gate = Arc::new(Semaphore::new(0));
    let signed = Arc::new(Mutex::new(Vec::new()));
    let quoter = GatedQuoter {
        gate: Arc::clone(&gate),
        asked: Arc::default(),
        signed: Arc::clone(&signed),
    };
    let (evidence, service) = HostEvidence::new(quoter, log.path());
    tokio::spawn(service);
    let ask = |number| {
        let evidence = evidence.clone();
        async move {
            evidence
                .layer(&subject(), Durability::Durable, request(number))
                .await
        }
    };
    let mut layers = tokio::task::JoinSet::new();
    for number in 0..50 {
        layers.spawn(ask(number));
    }
    // The first quote may serve one request or all; what it does not serve, the second does.
    gate.add_permits(2);
    let layers: Vec<HostLayer> = layers
        .join_all()
        .await
        .into_iter()
        .map(|layer| Ok(HostLayer::from_cbor(&layer?.part(0, usize::MAX))?))
        .collect::<anyhow::Result<_>>()?;

    assert_eq!(layers.len(), 50);
    assert!(evidence.metrics().quotes() <= 2);
    let signed = signed.lock().map(|signed| signed.clone());
    let signed = signed.map_err(|_| anyhow::anyhow!("poisoned"))?;
    for layer in &layers {
        let leaf = attestation::merkle::leaf_hash(&layer.leaf);
        let root = root_from_path(leaf, layer.index, layer.tree_size, &layer.path)?;
        assert_eq!(root, layer.root);
        let data = host_qualifying_data(
            &root,
            layer.tree_size,
            &identity_key().name(),
            &Digest32::of(&layer.event_log),
        );
        assert!(signed.contains(&data));
    }
    Ok(())
}

#[tokio::test]
async fn a_vrot_that_floods_is_refused_and_its_neighbours_share_the_next_quote()
-> anyhow::Result<()> {
    let log = tempfile::NamedTempFile::new()?;
    let gate = Arc::new(Semaphore::new(0));
    let quoter = GatedQuoter {
        gate: Arc::clone(&gate),
        asked: Arc::default(),
        signed: Arc::default(),
    };
    let (evidence, service) = HostEvidence::new(quoter, log.path());
    tokio::spawn(service);
    let ask = |subject: Subject, number| {
        let evidence = evidence.clone();
        async move {
            evidence
                .layer(&subject, Durability::Durable, request(number))
                .await
        }
    };
    let mut first = pin!(ask(subject(), 0));
    let floods = subject();
    let mut flood = tokio::task::JoinSet::new();
    let mut neighbours = tokio::task::JoinSet::new();
    // A quote is under way; meanwhile far more than its share comes from one, and one from each of
    // the others.
    assert!(
        timeout(Duration::from_millis(50), &mut first)
            .await
            .is_err()
    );
    for number in 0..200 {
        flood.spawn(ask(floods.clone(), number));
    }
    for number in 0..50 {
        neighbours.spawn(ask(subject(), number));
    }
    let mut refused = 0;
    while refused < 200 - OF_A_VROT {
        match flood.join_next().await {
            Some(Ok(Err(HostEvidenceError::Busy))) => refused += 1,
            other => anyhow::bail!("{other:?}"),
        }
    }
    gate.add_permits(2);
    first.await?;
    assert!(neighbours.join_all().await.iter().all(Result::is_ok));
    assert_eq!(evidence.metrics().quotes(), 2);
    assert!(flood.join_all().await.iter().all(Result::is_ok));
    Ok(())
}

/// What a guest sees of the tree that its layer stands in.
async fn seen(evidence: &HostEvidence) -> anyhow::Result<(u64, usize)> {
    let subject = subject();
    let layer = evidence.layer(&subject, Durability::Durable, request(0));
    let layer = HostLayer::from_cbor(&layer.await?.part(0, usize::MAX))?;
    let leaf = attestation::merkle::leaf_hash(&layer.leaf);
    let root = root_from_path(leaf, layer.index, layer.tree_size, &layer.path)?;
    assert_eq!(root, layer.root);
    Ok((layer.tree_size, layer.path.len()))
}

#[tokio::test]
async fn a_guest_does_not_see_whether_others_share_its_quote() -> anyhow::Result<()> {
    let log = tempfile::NamedTempFile::new()?;
    let gate = Arc::new(Semaphore::new(1));
    let asked = Arc::<AtomicUsize>::default();
    let quoter = GatedQuoter {
        gate: Arc::clone(&gate),
        asked: Arc::clone(&asked),
        signed: Arc::default(),
    };
    let (evidence, service) = HostEvidence::new(quoter, log.path());
    tokio::spawn(service);
    let alone = seen(&evidence).await?;
    // While one quote is under way, others and a tenant's set come to share the next with it.
    let mut first = pin!(seen(&evidence));
    while asked.load(Ordering::SeqCst) < 2 {
        let under_way = timeout(Duration::from_millis(5), &mut first).await;
        assert!(under_way.is_err(), "no quote was made yet");
    }
    let mut guest = pin!(seen(&evidence));
    let mut neighbours = pin!(async { tokio::join!(seen(&evidence), seen(&evidence)) });
    let quoted = [(subject(), Durability::Durable, request(1))];
    let mut set = pin!(evidence.statements(&quoted));
    tokio::select! {
        biased;
        _ = &mut guest => anyhow::bail!("no quote was made yet"),
        _ = &mut neighbours => anyhow::bail!("no quote was made yet"),
        _ = &mut set => anyhow::bail!("no quote was made yet"),
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
    }
    gate.add_permits(2);
    let (first, guest, neighbours, set) = tokio::join!(first, guest, neighbours, set);
    assert_eq!(evidence.metrics().quotes(), 3);
    assert_eq!(first?, alone);
    assert_eq!(guest?, alone);
    assert_eq!(neighbours.0?, alone);
    assert_eq!(set?.1.tree_size, alone.0);
    Ok(())
}

#[tokio::test]
async fn equal_requests_get_different_leaves() -> anyhow::Result<()> {
    let subject = subject();
    let leaves = [
        leaf(
            &subject,
            Durability::Durable,
            request(1),
            QuotePurpose::Service,
        )?,
        leaf(
            &subject,
            Durability::Durable,
            request(1),
            QuotePurpose::Service,
        )?,
    ];
    assert_ne!(leaves.first(), leaves.last());
    Ok(())
}

#[tokio::test]
async fn a_missing_event_log_is_named() {
    let quoter = GatedQuoter {
        gate: Arc::new(Semaphore::new(1)),
        asked: Arc::default(),
        signed: Arc::default(),
    };
    let (evidence, service) = HostEvidence::new(quoter, Path::new("/nonexistent/log"));
    tokio::spawn(service);
    let error = evidence
        .layer(&subject(), Durability::Durable, request(1))
        .await;
    let error = error.map_or_else(|error| WithCauses(&error).to_string(), |_| String::new());
    assert!(error.contains("/nonexistent/log"), "{error}");
    assert_eq!(evidence.metrics().failed(), 1);
}

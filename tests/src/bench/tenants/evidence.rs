//! Evidence of all VMs of a tenant, which its host makes without the guests; and what its verification takes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use attestation::{EvidenceSet, Nonce};
use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;
use serde_json::json;
use test_support::run_folder::RunFolder;
use uuid::Uuid;

use super::client::{Client, Request};
use crate::bench::load::number;
use crate::bench::report::Report;
use crate::bench::samples::Samples;

/// How many sets are asked for, one after the other.
const SETS: usize = 30;

/// Asks for sets of all `count` VMs, each with a nonce of its own, and verifies every one: in the end each
/// VM must have been quoted each time.
pub(super) fn measure(
    report: &mut Report,
    run: &RunFolder,
    client: &Client,
    count: usize,
) -> Result<()> {
    let nonces: Vec<String> = (0..SETS).map(|_| fresh_nonce()).collect();
    let sets: Vec<PathBuf> = (0..SETS)
        .map(|set| run.join(format!("set-{set}.cbor")))
        .collect();
    let each = nonces.iter().zip(&sets);
    let requests: Vec<_> = (each.clone())
        .map(|(nonce, set)| request(nonce, None, set.clone()))
        .collect();
    let mut took = Samples::default();
    client.ask(&requests, |time| took.add_ms(time))?;

    let anchors = TrustAnchors::from_pem(&fs::read(client.root())?)?;
    let mut verifying = Duration::ZERO;
    for (nonce, set) in each {
        let bytes = fs::read(set)?;
        let nonce: Nonce = nonce.parse()?;
        let begin = Instant::now();
        let set = EvidenceSet::from_cbor(&bytes)?;
        let verified = set.verify(&nonce, &anchors, UnixTime::now())?;
        verifying += begin.elapsed();
        if let Some(unquoted) = verified.unquoted().first() {
            bail!("{unquoted}");
        }
        for vm in verified.vms() {
            if let Err(refused) = vm {
                bail!("{:?}: {}", refused.vm, refused.refusal);
            }
        }
        let found = verified.vms().len();
        ensure!(found == count, "{found} of {count} VMs are in a set");
    }
    let quotes = number(SETS * count)?;
    let asking: f64 = took.clone().into_values().iter().sum::<f64>() / 1e3;
    report.alone("tenant_evidence_per_s", quotes / asking, "/s", SETS);
    let p99 = took.percentile(99)?;
    report.alone("tenant_evidence_p99_ms", p99, "ms", SETS);
    report.spread(&took)?;
    let rate = quotes / verifying.as_secs_f64();
    report.alone("verify_set_per_s", rate, "/s", SETS);
    sets.iter()
        .try_for_each(fs::remove_file)
        .context("removing sets")
}

/// The request for a set of one VM, or of all.
pub(super) fn request(nonce: &str, vm: Option<Uuid>, answer: PathBuf) -> Request {
    let body = match vm {
        Some(vm) => json!({ "nonce": nonce, "vms": [vm] }),
        None => json!({ "nonce": nonce }),
    };
    Request {
        path: "/v1/evidence",
        body: Some(body.to_string()),
        answer,
    }
}

/// 32 bytes in hexadecimal digits.
pub(super) fn fresh_nonce() -> String {
    let [first, second] = [Uuid::new_v4(), Uuid::new_v4()];
    format!("{}{}", first.simple(), second.simple())
}

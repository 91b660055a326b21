//! Attestation results: a verdict with its reasons, for people and, as EAR, for programs.

pub(crate) mod claims;
pub(crate) mod ear;

use std::collections::BTreeMap;

use cert_chain::{Digest32, HashValue};
use rustls_pki_types::UnixTime;
use serde::Serialize;

use crate::policy::Policy;
use crate::refusal::Layer;
use crate::verification::{TpmReport, VerifiedEvidence};

pub use crate::verdict::Verdict;

/// The outcome of an appraisal. Only [`appraise`](crate::appraise) makes one.
#[derive(Clone, Debug)]
pub struct AttestationResult {
    evidence: VerifiedEvidence<TpmReport>,
    host: LayerResult,
    vm: LayerResult,
    policy: Digest32,
    issued_at: UnixTime,
    expires_at: UnixTime,
}

/// What was found about one layer.
#[derive(Clone, Debug)]
pub struct LayerResult {
    verdict: Verdict,
    claims: BTreeMap<Claim, Verdict>,
    reasons: Vec<Reason>,
    booted: Vec<(String, HashValue)>,
    /// Reasons beyond [`MAX_REASONS`]: how many, and the most serious one's verdict.
    left_out: Option<(usize, Verdict)>,
}

/// Why a layer's verdict is not affirming.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// A short name for programs, which stays the same from version to version.
    pub code: &'static str,
    /// How much it weighs.
    pub verdict: Verdict,
    /// A sentence for people.
    pub text: String,
}

/// How many reasons a layer's result lists; more are counted. The evidence and the policy decide
/// how many there are, and neither should decide how long a result is.
pub const MAX_REASONS: usize = 64;

/// The trustworthiness claims of AR4SI that an appraisal here makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    Identity,
    Configuration,
    Executables,
}

impl AttestationResult {
    pub(crate) fn new(
        evidence: VerifiedEvidence,
        policy: &Policy,
        mut host: LayerResult,
        mut vm: LayerResult,
    ) -> Self {
        host.count_what_was_left_out();
        vm.count_what_was_left_out();
        let at = evidence.verified_at();
        let by_policy = at
            .as_secs()
            .saturating_add(policy.result_lifetime().as_secs());
        let expires_at = by_policy.min(evidence.chain().not_after().as_secs());
        Self {
            evidence: evidence.without_logs(),
            host,
            vm,
            policy: *policy.digest(),
            issued_at: at,
            expires_at: UnixTime::since_unix_epoch(std::time::Duration::from_secs(expires_at)),
        }
    }

    /// The verdict on the whole: the VM's, which is never better than the host's.
    pub fn verdict(&self) -> Verdict {
        self.vm.verdict.max(self.host.verdict)
    }

    /// What was found about a layer.
    pub fn layer(&self, layer: Layer) -> &LayerResult {
        match layer {
            Layer::Host => &self.host,
            Layer::Vm => &self.vm,
        }
    }

    /// The evidence that was appraised, without the logs.
    pub fn evidence(&self) -> &VerifiedEvidence<TpmReport> {
        &self.evidence
    }

    /// The policy, as [`Policy::digest`] names it.
    pub fn policy(&self) -> &Digest32 {
        &self.policy
    }

    /// When the appraisal took place.
    pub fn issued_at(&self) -> UnixTime {
        self.issued_at
    }

    /// From when on the result must not be relied on.
    pub fn expires_at(&self) -> UnixTime {
        self.expires_at
    }
}

impl LayerResult {
    pub(crate) fn new() -> Self {
        Self {
            verdict: Verdict::Affirming,
            claims: BTreeMap::new(),
            reasons: Vec::new(),
            booted: Vec::new(),
            left_out: None,
        }
    }

    /// The layer's verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Why the verdict is not better.
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// What booted and is known by name, with its digest in the quoted bank.
    pub fn boot(&self) -> &[(String, HashValue)] {
        &self.booted
    }

    /// Whether something contradicts the policy in this respect.
    pub(crate) fn contradicts(&self, claim: Claim) -> bool {
        self.claims.get(&claim) == Some(&Verdict::Contraindicated)
    }

    pub(crate) fn approve(&mut self, claim: Claim) {
        self.claims.entry(claim).or_insert(Verdict::Affirming);
    }

    pub(crate) fn booted(&mut self, name: &str, digest: HashValue) {
        self.booted.push((name.to_owned(), digest));
    }

    pub(crate) fn warn(&mut self, claim: Claim, code: &'static str, text: String) {
        self.add(claim, Verdict::Warning, code, || text);
    }

    pub(crate) fn contradict(&mut self, claim: Claim, code: &'static str, text: String) {
        self.contradict_with(claim, code, || text);
    }

    /// The same where the text is long to make: it is made if the reason is listed.
    pub(crate) fn contradict_with(
        &mut self,
        claim: Claim,
        code: &'static str,
        text: impl FnOnce() -> String,
    ) {
        self.add(claim, Verdict::Contraindicated, code, text);
    }

    /// A VM on a host that cannot be relied on cannot be relied on.
    pub(crate) fn limit_to(&mut self, host: &Self) {
        if host.verdict > self.verdict {
            self.verdict = host.verdict;
            self.reasons.push(Reason {
                code: "host-limits",
                verdict: host.verdict,
                text: format!(
                    "a VM is relied on no further than its host, whose verdict is {}",
                    host.verdict
                ),
            });
        }
    }

    fn add(
        &mut self,
        claim: Claim,
        verdict: Verdict,
        code: &'static str,
        text: impl FnOnce() -> String,
    ) {
        let known = self.claims.entry(claim).or_insert(verdict);
        *known = verdict.max(*known);
        self.verdict = self.verdict.max(verdict);
        if self.reasons.len() < MAX_REASONS {
            self.reasons.push(Reason {
                code,
                verdict,
                text: text(),
            });
        } else {
            let (count, worst) = self.left_out.unwrap_or((0, verdict));
            self.left_out = Some((count.saturating_add(1), worst.max(verdict)));
        }
    }

    pub(crate) fn count_what_was_left_out(&mut self) {
        if let Some((count, verdict)) = self.left_out.take() {
            self.reasons.push(Reason {
                code: "reasons-left-out",
                verdict,
                text: format!("{count} more reasons are not listed"),
            });
        }
    }
}

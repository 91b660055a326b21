//! When a certificate is to be renewed: at half of its life at the latest.

use std::ops::RangeInclusive;
use std::time::Duration;

use api_types::Timestamp;
use cert_chain::Validity;
use minicbor::bytes::ByteVec;

use crate::host::Enrolment;
use crate::vrot::Identity;

/// Whether a vRoT's certificates should be renewed, and would live longer then.
///
/// What is not valid now, at either end of its life, was issued by a clock that has been set
/// since, or was not renewed in time. Waiting does not mend that.
pub(super) fn is_due(
    identity: &Identity,
    now: Timestamp,
    after: Duration,
    host: Option<&Enrolment>,
) -> bool {
    let Some(certificate) = &identity.vik_certificate else {
        // It is issued for the first time, which is no renewal.
        return false;
    };
    let Some(life) = &life(certificate) else {
        return true;
    };
    if *life.start() > now.seconds()
        || !has_valid_eks(identity, now)
        || !are_valid([&identity.tls_certificate], now)
    {
        return true;
    }
    let due = half_life(identity, life).min(later(identity.vik_issued_at, after.as_secs()));
    if now < due {
        return false;
    }
    // One that ends with the host's own certificate waits for the host to get a new one.
    let ends_with_host = host.is_some_and(|enrolment| {
        enrolment.certificate.der()[..] == identity.host_certificate[..]
            && *life.end() == enrolment.certificate.not_after().as_secs()
    });
    !ends_with_host || identity.vik_issued_at == Timestamp::new(0)
}

/// Whether a certificate issued now under this one of the host would live its whole life.
pub(super) fn outlives(host_certificate: &[u8], now: Timestamp, lifetime: Duration) -> bool {
    let end = later(now, lifetime.as_secs()).seconds();
    life(host_certificate).is_some_and(|life| *life.end() >= end)
}

/// Whether the certificates of both endorsement keys are valid, where they are not pending.
pub(in crate::manager) fn has_valid_eks(identity: &Identity, now: Timestamp) -> bool {
    let eks = [&identity.ek_rsa_certificate, &identity.ek_p256_certificate];
    are_valid(eks, now)
}

/// Whether certificates are valid, where they are not pending.
fn are_valid<'a>(
    certificates: impl IntoIterator<Item = &'a Option<ByteVec>>,
    now: Timestamp,
) -> bool {
    (certificates.into_iter().flatten())
        .all(|certificate| life(certificate).is_some_and(|life| life.contains(&now.seconds())))
}

/// Whether the vIK's certificate has most of its life before it.
pub(in crate::manager) fn is_fresh(identity: &Identity, now: Timestamp) -> bool {
    let life = identity
        .vik_certificate
        .as_deref()
        .and_then(|der| life(der));
    life.is_some_and(|life| now < half_life(identity, &life))
}

/// First and last second of a certificate; none, if it cannot be read.
fn life(certificate: &[u8]) -> Option<RangeInclusive<u64>> {
    let validity = Validity::of_certificate(certificate).ok()?;
    Some(validity.not_before().as_secs()..=validity.not_after().as_secs())
}

/// When half of the life of the vIK's certificate is over.
fn half_life(identity: &Identity, life: &RangeInclusive<u64>) -> Timestamp {
    let issued = identity.vik_issued_at;
    later(issued, life.end().saturating_sub(issued.seconds()) / 2)
}

fn later(at: Timestamp, seconds: u64) -> Timestamp {
    Timestamp::new(at.seconds().saturating_add(seconds))
}

//! Devices that their issuer does not vouch for any more.

use std::sync::Arc;

use attestation::fixture::now;
use cert_chain::{ChainError, RevocationLists};
use confirmation::{ConfirmationPolicy, ConfirmationRefused, PolicyError, judge};

use crate::scene::Scene;

const WEEK: &str = "\n[revocation]\nmax_crl_age_s = 604800\n";

fn is_accepted(scene: &Scene, policy: &ConfirmationPolicy) -> bool {
    let confirmation = scene.confirmation(scene.signed());
    match judge(Some(&confirmation), &scene.expected(), policy, now()) {
        Ok(verified) => verified.is_some(),
        Err(ConfirmationRefused::Certificate(ChainError::Revocation { .. })) => false,
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_may_demand_a_revocation_list_and_a_revoked_device_confirms_nothing() {
    let scene = Scene::new();
    let list = |age_s: u64, revoked: &[&[u8]]| {
        let mut lists = RevocationLists::default();
        lists.add(Arc::new(scene.host.revocation_list(1, age_s, revoked)));
        lists
    };
    let demanding = scene.policy_with(WEEK).unwrap();
    let (good, revoked) = (list(60, &[]), list(60, &[&scene.device.certificate]));
    assert!(!is_accepted(&scene, &demanding));
    assert!(is_accepted(&scene, &demanding.clone().with_lists(&good)));
    assert!(!is_accepted(
        &scene,
        &demanding.clone().with_lists(&revoked)
    ));
    let younger = scene.policy_with("\n[revocation]\nmax_crl_age_s = 3600\n");
    let too_old = list(2 * 3600, &[]);
    assert!(!is_accepted(&scene, &younger.unwrap().with_lists(&too_old)));
    // Without the section none is demanded, and one that is there is heeded.
    assert!(is_accepted(&scene, &scene.policy()));
    assert!(!is_accepted(&scene, &scene.policy().with_lists(&revoked)));

    let refused = scene.policy_with("\n[revocation]\nmax_crl_age_s = 1\n");
    assert!(matches!(refused, Err(PolicyError::Revocation(_))));
    let unknown = scene.policy_with("\n[revocation]\nmax_age_s = 604800\n");
    assert!(matches!(unknown, Err(PolicyError::Toml(_))));
}

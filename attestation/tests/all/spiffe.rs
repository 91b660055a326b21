//! Evidence for a SPIFFE trust domain, and the identity that it earns.

use attestation::fixture::{Host, nonce, now};
use attestation::spiffe::{NodeAttributes, TrustDomain};
use attestation::{Binding, Purpose, Refusal, appraise};
use cert_chain::Digest32;

fn domain(text: &str) -> TrustDomain {
    text.parse().unwrap()
}

#[test]
fn evidence_for_a_trust_domain_is_of_use_there_and_for_nothing_else() {
    let host = Host::new("host-1");
    let vm = host.vm();
    let policy = host.policy(&vm);
    let (here, there) = (domain("example.org"), domain("example.com"));
    let key = Digest32::of(b"key");
    let connection = Binding::Connection(Digest32::of(b"connection"));
    let purposes = [
        here.purpose(),
        there.purpose(),
        Purpose::Challenge,
        Purpose::SignedData,
        Purpose::Connection {
            binding: connection,
            key,
        },
    ];
    for (made, made_for) in purposes.iter().enumerate() {
        let evidence = host.evidence(&vm, &nonce(), made_for.binding().clone());
        for (asked, asked_for) in purposes.iter().enumerate() {
            let verified = evidence.verify(&nonce(), asked_for, policy.anchors(), now());
            if made == asked {
                // The fixture's connection has another key.
                assert!(!matches!(verified, Err(Refusal::Binding { .. })));
            } else {
                assert!(matches!(verified, Err(Refusal::Binding { .. })));
            }
        }
    }
}

#[test]
fn a_node_has_its_name_from_tenant_and_vm_and_only_an_affirming_result_gives_it() {
    let host = Host::new("host-1");
    let (vm, other) = (host.vm(), host.vm());
    let here = domain("example.org");
    let evidence = host.evidence(&vm, &nonce(), here.binding());
    let verify = |policy: &attestation::Policy| {
        let verified = evidence.verify(&nonce(), &here.purpose(), policy.anchors(), now());
        appraise(verified.unwrap(), policy)
    };
    let attributes = NodeAttributes::of(&verify(&host.policy(&vm)), &here).unwrap();
    let tenant = attributes
        .selector_values
        .iter()
        .find_map(|selector| selector.strip_prefix("tenant:"))
        .unwrap();
    assert_eq!(
        attributes.spiffe_id,
        format!("spiffe://example.org/spire/agent/vrot/{tenant}/{}", vm.vm)
    );
    assert!(
        attributes
            .selector_values
            .contains(&format!("vm:{}", vm.vm))
    );
    assert_eq!(
        NodeAttributes::of(&verify(&host.policy(&other)), &here),
        None
    );
}

#[test]
fn a_trust_domain_has_no_scheme_port_or_path() {
    for text in ["example.org", "a_b-c.9"] {
        assert_eq!(domain(text).to_string(), text);
    }
    for text in [
        "",
        "Example.org",
        "spiffe://a",
        "a:1",
        "a/b",
        "ä",
        &"a".repeat(256),
    ] {
        assert!(text.parse::<TrustDomain>().is_err(), "{text}");
    }
}

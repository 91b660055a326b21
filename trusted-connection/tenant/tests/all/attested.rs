//! What evidence is worth, with hosts that lie about it.

use std::sync::Arc;

use attestation::fixture::{Host, Vm};
use attestation::{Binding, Nonce};

use crate::server::{Client, HOSTS, evidence_by, host, list, neighbour, policy, serve};

/// Two hosts of one issuer, and two VMs on each.
struct Scene {
    hosts: [Arc<Host>; 2],
    vms: [[Arc<Vm>; 2]; 2],
}

impl Scene {
    fn new() -> Self {
        let one = host("host-1");
        let other = neighbour(&one, "host-2");
        let vms = |host: &Host| [(); 2].map(|()| Arc::new(host.vm()));
        Self {
            vms: [vms(&one), vms(&other)],
            hosts: [Arc::new(one), Arc::new(other)],
        }
    }

    /// A host that has both its VMs quoted as it should.
    fn honest(&self, number: usize) -> u16 {
        let (host, vms) = (Arc::clone(&self.hosts[number]), self.vms[number].clone());
        self.with_evidence(number, move |nonce| {
            let vms: Vec<&Vm> = vms.iter().map(|vm| &**vm).collect();
            host.evidence_set(&vms, nonce).to_cbor()
        })
    }

    fn with_evidence(
        &self,
        number: usize,
        make: impl Fn(&Nonce) -> Vec<u8> + Send + Sync + 'static,
    ) -> u16 {
        let vms: Vec<&Vm> = self.vms[number].iter().map(|vm| &**vm).collect();
        let list = list(&self.hosts[number], &vms);
        serve(&self.hosts[number], evidence_by(list, make))
    }

    fn client(&self, ports: &[u16]) -> Client {
        let hosts: Vec<(&Host, u16)> = (self.hosts.iter().map(|host| &**host))
            .zip(ports.iter().copied())
            .collect();
        Client::of(&self.hosts[0], &self.vms[0][0], &hosts)
    }

    fn id(&self, host: usize, vm: usize) -> String {
        self.vms[host][vm].vm.to_string()
    }
}

#[test]
fn all_vms_of_all_hosts_are_affirmed_and_a_policy_of_one_s_own_refuses_one() {
    let scene = Scene::new();
    let client = scene.client(&[scene.honest(0), scene.honest(1)]);
    let (status, told) = client.json(&["attest", "--all"]);
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    for host in 0..2 {
        let vms = told["hosts"][host]["vms"].as_array().unwrap();
        assert_eq!(vms.len(), 2);
        assert_eq!(
            vms[0]["result"]["ear.status"],
            vms[1]["result"]["ear.status"]
        );
    }
    assert_ne!(told["hosts"][0]["nonce"], told["hosts"][1]["nonce"]);
    // One named VM, and its host alone is asked for evidence.
    let (status, told) = client.json(&["attest", &scene.id(1, 0)]);
    assert_eq!(status, 0, "{told:#}");
    assert_eq!(told["hosts"][0]["vms"].as_array().unwrap().len(), 0);
    assert_eq!(told["hosts"][1]["vms"].as_array().unwrap().len(), 1);

    let strict = policy(&scene.hosts[0], &scene.vms[0][0])
        .replace(HOSTS, "hosts = [\"host-1.demo.example\"]");
    client.write("strict.toml", &strict);
    let own = format!(
        "\n[[vm]]\nid = \"{}\"\npolicy = \"strict.toml\"\n[[host]]",
        scene.id(1, 1)
    );
    let settings = std::fs::read_to_string(client.path("tenant.toml")).unwrap();
    client.write("tenant.toml", &settings.replacen("[[host]]", &own, 1));
    let (status, told) = client.json(&["attest", "--all"]);
    assert_eq!(
        (status, &told["verdict"]),
        (1, &"contraindicated".into()),
        "{told:#}"
    );
    for vm in told["hosts"][1]["vms"].as_array().unwrap() {
        let is_strict = vm["vm"] == scene.id(1, 1);
        assert_eq!(vm["verdict"] == "affirming", !is_strict, "{vm:#}");
    }
    let text = client.run(&["attest", "--all"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.ends_with("\nverdict: contraindicated\n"), "{text}");
    assert!(text.contains("(host-unexpected)"), "{text}");
}

#[test]
fn evidence_for_another_nonce_of_another_host_or_for_another_purpose_is_refused() {
    let scene = Scene::new();
    let [own, other] = &scene.hosts;
    let [vm, _] = &scene.vms[0];
    // An answer to another challenge, kept from before.
    let old = own
        .evidence_set(&[vm], &Nonce::new([7; 32]).unwrap())
        .to_cbor();
    let replaying = scene.with_evidence(0, move |_| old.clone());
    // Another host, asked with the very nonce.
    let (host, theirs) = (Arc::clone(other), Arc::clone(&scene.vms[1][0]));
    let relaying = scene.with_evidence(0, move |nonce| {
        host.evidence_set(&[&theirs], nonce).to_cbor()
    });
    // A service in the VM, asked with the very nonce.
    let (host, guest) = (Arc::clone(own), Arc::clone(vm));
    let of_service = scene.with_evidence(0, move |nonce| {
        host.evidence(&guest, nonce, Binding::None).to_cbor()
    });
    for (port, code) in [
        (replaying, "nonce"),
        (relaying, "other-host"),
        (of_service, "purpose"),
    ] {
        let client = scene.client(&[port]);
        let (status, told) = client.json(&["attest", "--all"]);
        assert_eq!((status, &told["verdict"]), (1, &"contraindicated".into()));
        assert_eq!(told["hosts"][0]["refused"]["code"], code, "{told:#}");
        assert_eq!(told["hosts"][0]["vms"].as_array().unwrap().len(), 0);
        let text = client.run(&["attest", "--all"]);
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains("all evidence is refused"), "{text}");
    }
}

#[test]
fn evidence_of_another_vm_is_no_answer_for_the_one_that_is_meant() {
    let scene = Scene::new();
    let (host, other) = (Arc::clone(&scene.hosts[0]), Arc::clone(&scene.vms[0][1]));
    let port = scene.with_evidence(0, move |nonce| {
        host.evidence_set(&[&other], nonce).to_cbor()
    });
    let client = scene.client(&[port]);
    let (status, told) = client.json(&["attest", &scene.id(0, 0)]);
    assert_eq!(
        (status, &told["verdict"]),
        (1, &"warning".into()),
        "{told:#}"
    );
    assert_eq!(told["hosts"][0]["vms"].as_array().unwrap().len(), 0);
    assert_eq!(told["hosts"][0]["unquoted"][0]["vm"], scene.id(0, 0));
    // Nor is a host believed that leaves out a VM which the settings know.
    client.change(
        "[[host]]",
        &format!(
            "[[vm]]\nid = \"{}\"\npolicy = \"policy.toml\"\n[[host]]",
            scene.id(0, 0)
        ),
    );
    let (status, told) = client.json(&["attest", "--all"]);
    assert_eq!(
        (status, &told["verdict"]),
        (1, &"warning".into()),
        "{told:#}"
    );
    assert_eq!(told["missing"], serde_json::json!([scene.id(0, 0)]));
}

#[test]
fn a_vm_that_no_host_has_is_not_affirmed_and_may_be_on_a_host_that_is_down() {
    let scene = Scene::new();
    let one = scene.honest(0);
    let client = scene.client(&[one]);
    let (status, told) = client.json(&["attest", &scene.id(0, 0), &scene.id(1, 0)]);
    assert_eq!(
        (status, &told["verdict"]),
        (1, &"warning".into()),
        "{told:#}"
    );
    assert_eq!(told["missing"], serde_json::json!([scene.id(1, 0)]));
    assert_eq!(
        client.run(&["show", &scene.id(1, 0)]).status.code(),
        Some(2)
    );

    // Nobody listens at this port, and no other test comes to.
    let client = scene.client(&[one, 1]);
    let (status, told) = client.json(&["attest", &scene.id(0, 0), &scene.id(1, 0)]);
    assert_eq!(status, 3, "{told:#}");
    assert_eq!(told["hosts"][0]["verdict"], "affirming");
    assert_eq!(told["hosts"][1]["error"]["code"], "unreachable");
    let (status, told) = client.json(&["vms"]);
    assert_eq!(status, 3, "{told:#}");
    assert_eq!(told["hosts"][0]["vms"].as_array().unwrap().len(), 2);
    // Who names a host asks that one alone.
    assert_eq!(client.json(&["vms", "--host", "host-1.demo.example"]).0, 0);
}

//! An archive as a person wants to see it: from the issuer down to the data, and when that was there.

use std::fmt::Write as _;

use archive::{EvidenceRecord, Form, Head, Token};
use cert_chain::TpmName;
use cert_chain::profile::device::DeviceCertificate;
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::profile::vik::VikCertificate;
use printable::Printable;
use serde_json::{Value, json};
use signed_data::{Certificates, Content, SignedData};

use crate::times::rfc3339;

/// What is drawn. Nothing of it is verified.
pub(super) struct Archive<'a> {
    pub(super) head: &'a Head,
    pub(super) signed: &'a SignedData,
    pub(super) stamp: Option<&'a Token>,
    pub(super) record: &'a EvidenceRecord,
}

/// A node of the tree, and what is said of it.
struct Node {
    what: &'static str,
    name: String,
    facts: Vec<String>,
}

impl Node {
    fn new(what: &'static str, name: impl Into<String>, facts: Vec<String>) -> Self {
        let name = name.into();
        Self { what, name, facts }
    }
}

/// The chain: each node is certified, or signed, by the one above it.
pub(super) struct Tree(Vec<Node>);

impl Tree {
    pub(super) fn of(archive: &Archive<'_>) -> Self {
        let mut nodes = source(&archive.signed.credentials().certificates);
        nodes.push(signature(archive));
        nodes.push(data(archive));
        Self(nodes)
    }

    pub(super) fn draw(&self) -> String {
        let mut text = String::new();
        for (depth, node) in self.0.iter().enumerate() {
            let branch = match depth {
                0 => String::new(),
                _ => format!("{}└─", "  ".repeat(depth - 1)),
            };
            let name = Printable(&node.name);
            let _ = writeln!(text, "{branch}· {}  {name}", node.what);
            let line = match depth + 1 == self.0.len() {
                true => " ",
                false => "│",
            };
            for fact in &node.facts {
                let _ = writeln!(text, "{}{line}  {}", "  ".repeat(depth), Printable(fact));
            }
        }
        text
    }

    /// The same for programs.
    pub(super) fn to_json(&self) -> Value {
        let node =
            |node: &Node| json!({ "what": node.what, "name": node.name, "facts": node.facts });
        self.0.iter().map(node).collect()
    }
}

/// The issuer, and whom it certified.
fn source(certificates: &Certificates) -> Vec<Node> {
    let issuer = |name: &str| {
        let fact = "its root is not in the archive: whoever verifies brings it".to_owned();
        Node::new("identity issuer", name, vec![fact])
    };
    let unreadable = |what| {
        vec![Node::new(
            what,
            "of a certificate that cannot be read",
            Vec::new(),
        )]
    };
    match certificates {
        Certificates::Device(own) => match DeviceCertificate::read(own) {
            Ok(device) => {
                let key = short(&device.claims().ik);
                let facts = vec![
                    format!("identity key {key} in its TPM"),
                    until(device.not_after().as_secs()),
                ];
                let name = device.device().to_string();
                vec![issuer(device.issuer()), Node::new("device", name, facts)]
            }
            Err(_) => unreadable("device"),
        },
        Certificates::Vm([vik, host]) => {
            let Ok(host) = HostCertificate::read(host) else {
                return unreadable("host");
            };
            let key = short(&host.claims().ik);
            let facts = vec![
                format!("identity key {key} in the physical TPM"),
                until(host.not_after().as_secs()),
            ];
            let mut nodes = vec![
                issuer(host.issuer()),
                Node::new("host", host.host().to_string(), facts),
            ];
            match VikCertificate::read(vik, host.host()) {
                Ok(vik) => {
                    let claims = vik.claims();
                    let facts = vec![
                        format!("vRoT {}, generation {}", claims.vrot, claims.generation),
                        format!("identity key {} (virtual)", short(&claims.vik)),
                        format!("tenant {}", claims.tenant),
                    ];
                    nodes.push(Node::new("VM", claims.vm.to_string(), facts));
                }
                Err(_) => nodes.extend(unreadable("VM")),
            }
            nodes
        }
    }
}

fn signature(archive: &Archive<'_>) -> Node {
    let label = archive.signed.unverified_label();
    let mut facts = vec![
        format!(
            "number {} of the source, stream {}",
            label.sequence, label.stream
        ),
        format!("at {}, by the source's own clock", rfc3339(label.time)),
    ];
    facts.push(match archive.stamp {
        Some(stamp) => before("stamped", stamp),
        None => "not stamped".to_owned(),
    });
    facts.push(match &label.evidence {
        Some(evidence) => {
            let age = label.time.saturating_sub(evidence.taken);
            format!("evidence asked for {age} s before")
        }
        None => "without evidence of what had booted".to_owned(),
    });
    Node::new(
        "signature",
        format!("by the key for data {}", short(&label.key)),
        facts,
    )
}

fn data(archive: &Archive<'_>) -> Node {
    let content = archive.signed.unverified_content();
    let head = archive.head;
    let mut facts = vec![match (head.form, content) {
        (Form::Elsewhere, Content::Attached(data)) => {
            format!("{} bytes, with the signature", data.len())
        }
        (Form::Elsewhere, Content::Hash(_)) => "elsewhere".to_owned(),
        (Form::File, _) => format!("{} bytes, in the archive", head.length),
        (Form::Records, _) => format!("records of {} bytes, in the archive", head.length),
    }];
    facts.push(format!("SHA-256 of what was signed {}", content.digest()));
    facts.push(format!(
        "revocation lists of issuers: {}",
        head.crls().count()
    ));
    if head.policy.is_some() {
        facts
            .push("beside them: the policy of whoever archived them, and what it found".to_owned());
    }
    let mut stamps = archive.record.tokens();
    facts.extend(stamps.next().map(|stamp| before("archived", stamp)));
    facts.extend(stamps.map(|stamp| before("renewed", stamp)));
    let content_type = &archive.signed.unverified_label().content_type;
    Node::new("data", content_type.to_string(), facts)
}

fn before(what: &str, stamp: &Token) -> String {
    let time = rfc3339(stamp.unverified_time().as_secs());
    let hash = stamp.imprint().algorithm().name();
    format!("{what} at {time} by an authority's clock, over {hash}")
}

fn until(seconds: u64) -> String {
    format!("certificate until {}", rfc3339(seconds))
}

/// The first bytes of a name's digest are enough to compare two by eye.
fn short(name: &TpmName) -> String {
    let text: String = name.to_string().chars().skip(4).take(16).collect();
    format!("{text}…")
}

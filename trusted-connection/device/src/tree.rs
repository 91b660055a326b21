//! The verdict as a person wants to read it: the chain of trust as a tree, then the reasons.

use std::fmt::Write as _;
use std::io::IsTerminal;

use attestation::result::LayerResult;
use attestation::{AttestationResult, Durability, LaunchMeasurement, Layer, Verdict};
use cert_chain::{RevocationStatus, TpmName};
use printable::Printable;

use crate::judgement::Judgement;
use crate::times::rfc3339;

/// Whether the text may carry colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// For a terminal.
    Ansi,
    /// For everything else.
    Plain,
}

impl Colour {
    /// What standard output takes.
    pub fn of_output() -> Self {
        match std::env::var_os("NO_COLOR").is_some() || !std::io::stdout().is_terminal() {
            true => Self::Plain,
            false => Self::Ansi,
        }
    }
}

/// Draws the judgement; the last line is `verdict: …`.
pub fn draw(judgement: &Judgement, colour: Colour) -> String {
    let mut text = String::new();
    match judgement {
        Judgement::Appraised(result) => draw_result(&mut text, result, colour),
        Judgement::Refused { refusal, .. } => {
            let _ = writeln!(
                text,
                "{} The evidence is refused ({}).\n  {}\n  What to do: {}.\n",
                mark(Verdict::Contraindicated, colour),
                refusal.code(),
                Printable(&refusal.explanation()),
                refusal.remedy()
            );
        }
    }
    let verdict = judgement.verdict();
    let _ = writeln!(
        text,
        "verdict: {}",
        painted(&verdict.to_string(), verdict, colour)
    );
    text
}

fn draw_result(text: &mut String, result: &AttestationResult, colour: Colour) {
    let evidence = result.evidence();
    let chain = evidence.chain();
    let leaf = evidence.leaf();
    let (host, vm) = (result.layer(Layer::Host), result.layer(Layer::Vm));
    let ok = mark(Verdict::Affirming, colour);
    let _ = writeln!(text, "{ok} identity issuer  {}", Printable(chain.issuer()));
    let _ = writeln!(text, "│  trusted by the policy");
    let _ = writeln!(
        text,
        "└─{} host  {}",
        mark(host.verdict(), colour),
        chain.host()
    );
    let mut host_facts = vec![
        format!(
            "identity key {} in the physical TPM",
            short(&chain.host_claims().ik)
        ),
        format!("endorsement key {}", short(&chain.host_claims().ek)),
        format!("PCR bank {}", evidence.layer(Layer::Host).bank()),
    ];
    host_facts.push(match chain.revocation() {
        RevocationStatus::NotAsked => "revocation not asked for by the policy".to_owned(),
        RevocationStatus::NotListed(list) => format!(
            "not revoked: list {} of {}",
            list.number,
            rfc3339(list.this_update.as_secs())
        ),
    });
    host_facts.extend(booted(host));
    for fact in host_facts {
        let _ = writeln!(text, "  │  {}", Printable(&fact));
    }
    let _ = writeln!(
        text,
        "  └─{ok} vRoT  {}, generation {}",
        leaf.vrot, leaf.generation
    );
    let _ = writeln!(text, "    │  identity key {} (virtual)", short(&leaf.vik));
    let _ = writeln!(
        text,
        "    │  certificates valid until {}",
        rfc3339(chain.not_after().as_secs())
    );
    let _ = writeln!(text, "    └─{} VM  {}", mark(vm.verdict(), colour), leaf.vm);
    let mut vm_facts = vec![
        format!("tenant {}", leaf.tenant),
        format!("PCR bank {}", evidence.layer(Layer::Vm).bank()),
    ];
    vm_facts.extend(launched(&leaf.launch));
    if !leaf.transport.reaches_firmware() {
        vm_facts.push(format!(
            "TPM attached by {}: its firmware measures nothing",
            leaf.transport.name()
        ));
    }
    if leaf.durability == Durability::Degraded {
        vm_facts.push("state not durable yet".to_owned());
    }
    vm_facts.extend(booted(vm));
    for fact in vm_facts {
        let _ = writeln!(text, "         {}", Printable(&fact));
    }
    let _ = writeln!(
        text,
        "\nFresh for nonce {}; valid until {}.",
        evidence.nonce(),
        rfc3339(result.expires_at().as_secs())
    );
    for (name, layer) in [("host", host), ("VM", vm)] {
        for reason in layer.reasons() {
            let _ = writeln!(
                text,
                "{} {name}: {} ({})",
                mark(reason.verdict, colour),
                Printable(&reason.text),
                reason.code
            );
        }
    }
    text.push('\n');
}

/// The launch in one line, and a line for each of its parts.
fn launched(launch: &LaunchMeasurement) -> Vec<String> {
    match launch {
        LaunchMeasurement::NotMeasured => vec!["launch not measured by the host".to_owned()],
        LaunchMeasurement::Measured(launch) => {
            let parts = launch.parts().iter().map(|part| format!("  {part}"));
            std::iter::once(format!("launch measured by the host: {}", launch.digest()))
                .chain(parts)
                .collect()
        }
    }
}

fn booted(layer: &LayerResult) -> impl Iterator<Item = String> {
    layer.boot().iter().map(|(name, digest)| {
        format!(
            "booted {name} {}…",
            digest.to_string().chars().take(16).collect::<String>()
        )
    })
}

/// The first bytes of a name's digest are enough to compare two by eye.
fn short(name: &TpmName) -> String {
    let text: String = name.to_string().chars().skip(4).take(16).collect();
    format!("{text}…")
}

pub(crate) fn mark(verdict: Verdict, colour: Colour) -> String {
    let symbol = match verdict {
        Verdict::Affirming => "✓",
        Verdict::Warning => "!",
        Verdict::Contraindicated => "✗",
    };
    painted(symbol, verdict, colour)
}

fn painted(text: &str, verdict: Verdict, colour: Colour) -> String {
    let code = match verdict {
        Verdict::Affirming => 32,
        Verdict::Warning => 33,
        Verdict::Contraindicated => 31,
    };
    match colour {
        Colour::Ansi => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        Colour::Plain => text.to_owned(),
    }
}

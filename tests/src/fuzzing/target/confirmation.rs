//! What a device is asked to show, and what comes back as a person's confirmation of it.

use attestation::Nonce;
use confirmation::{ConfirmableText, ConfirmationPolicy, Expected, Rendering, TerminalSize, judge};
use rustls_pki_types::UnixTime;
use vrot_confirm::request::Request;

use super::Target;

/// A request on the daemon's socket: what is shown has no character that a terminal obeys, and no line that is
/// longer than the terminal.
pub(super) const REQUEST: Target = Target {
    name: "confirmation-request",
    run: |input| {
        let Ok(request) = Request::parse(input) else {
            return;
        };
        for columns in [40, 80] {
            let Ok(size) = TerminalSize::new(columns, 24) else {
                return;
            };
            let rendering = Rendering::of(request.text(), size);
            for line in rendering.lines() {
                assert!(line.chars().count() < usize::from(columns) - 2);
                assert!(!line.chars().any(char::is_control));
            }
        }
    },
    seeds: || {
        let request = |text: &str| {
            let (nonce, service) = ("07".repeat(32), "shop.example");
            format!("{{\"text\":\"{text}\",\"service\":\"{service}\",\"nonce\":\"{nonce}\"}}\n")
        };
        Ok(vec![
            request("Pay 100 € to Müller & Söhne\\n\\nThis cannot be taken back.").into(),
            request("\\u041f\\u0435\\u0440\\u0435\\u0432\\u0435\\u0441\\u0442\\u0438 100 €").into(),
            request(&"word ".repeat(40)).into(),
        ])
    },
};

/// A whole confirmation: decoding and verification.
pub(super) const CONFIRMATION: Target = Target {
    name: "confirmation",
    run: |input| {
        let Ok(is_verified) = verifies(input) else {
            return;
        };
        assert!(
            is_verified == (input == GOLDEN),
            "a confirmation with a changed byte was verified"
        );
    },
    seeds: || {
        anyhow::ensure!(verifies(GOLDEN)?, "the confirmation is not verified");
        Ok(vec![GOLDEN.to_vec()])
    },
};

/// Made with swtpm, once.
const GOLDEN: &[u8] =
    include_bytes!("../../../../attestation/confirmation/tests/all/golden/confirmation-v1.cbor");

fn verifies(confirmation: &[u8]) -> anyhow::Result<bool> {
    let policy = include_str!("../../../../attestation/confirmation/tests/all/golden/policy.toml");
    let roots = include_str!("../../../../attestation/confirmation/tests/all/golden/roots.pem");
    let text = include_str!("../../../../attestation/confirmation/tests/all/golden/text.txt");
    let time = include_str!("../../../../attestation/confirmation/tests/all/golden/time");
    let policy = ConfirmationPolicy::parse(policy, |_| Ok(roots.to_owned()))?;
    let expected = Expected {
        service: &"shop.example".parse()?,
        nonce: &Nonce::new([9; 32])?,
        text: &ConfirmableText::new(text.trim_end())?,
    };
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(time.trim().parse()?));
    Ok(judge(Some(confirmation), &expected, &policy, at).is_ok())
}

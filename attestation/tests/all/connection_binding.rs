//! The binding of evidence to a connection, against values that were computed by other means.

use anyhow::{Context, Result};
use attestation::connection::{
    ConnectionFacts, EXPORTER_LABEL, EndIdentity, Role, TlsParameters, exporter_context,
};
use attestation::{Binding, Nonce};
use cert_chain::Digest32;
use serde_json::Value;

const VALUES: &str = include_str!("data/connection_binding_v1.json");

#[test]
fn bindings_and_exporter_contexts_are_those_that_the_documentation_defines() -> Result<()> {
    let values: Vec<Value> = serde_json::from_str(VALUES)?;
    assert_eq!(values.len(), 2);
    for value in values {
        let attester = match text(&value, "attester")? {
            "server" => Role::Server,
            _ => Role::Client,
        };
        let nonce = Nonce::new(hex::decode(text(&value, "nonce")?)?)?;
        let sequence = u32::try_from(value["sequence"].as_u64().context("a number")?)?;
        assert_eq!(text(&value, "exporter_label")?.as_bytes(), EXPORTER_LABEL);
        assert_eq!(
            hex::encode(exporter_context(attester, sequence, &nonce)),
            text(&value, "exporter_context")?
        );
        let facts = ConnectionFacts {
            attester,
            exporter: *Digest32::as_bytes(&digest(&value, "exporter")?),
            nonce: &nonce,
            server: identity(&value["server"])?.context("a server")?,
            client: identity(&value["client"])?,
            parameters: TlsParameters {
                version: number(&value, "version")?,
                suite: number(&value, "suite")?,
                group: number(&value, "group")?,
            },
        };
        assert_eq!(
            hex::encode(facts.binding_data()),
            text(&value, "connection_binding_data")?
        );
        assert_eq!(
            facts.binding(),
            Binding::Connection(digest(&value, "binding")?)
        );
    }
    Ok(())
}

fn text<'v>(value: &'v Value, name: &str) -> Result<&'v str> {
    value[name].as_str().with_context(|| name.to_owned())
}

fn number(value: &Value, name: &str) -> Result<u16> {
    Ok(u16::try_from(
        value[name].as_u64().with_context(|| name.to_owned())?,
    )?)
}

fn digest(value: &Value, name: &str) -> Result<Digest32> {
    Ok(text(value, name)?.parse()?)
}

fn identity(value: &Value) -> Result<Option<EndIdentity>> {
    if value.is_null() {
        return Ok(None);
    }
    Ok(Some(EndIdentity {
        key: digest(value, "key")?,
        certificate: digest(value, "certificate")?,
    }))
}

//! The binding of evidence to a connection, and what quotes cover for it, against values that were computed by
//! other means from what `docs/connection.md` and `evidence.cddl` say.

use anyhow::{Context, Result, anyhow};
use attestation::connection::{
    ConnectionFacts, EXPORTER_LABEL, EndIdentity, Role, TlsParameters, exporter_context,
};
use attestation::merkle::{Tree, leaf_hash};
use attestation::{
    Binding, BootRecord, KeyStatement, Nonce, device_qualifying_data, vm_qualifying_data,
    vm_request_leaf,
};
use cert_chain::{Digest32, TpmName};
use ring::digest::{Algorithm, SHA256, SHA384, digest as hash};
use ring::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
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
        let exporter = *digest(&value, "exporter")?.as_bytes();
        assert_eq!(exported(&value)?, exporter);
        let facts = ConnectionFacts {
            attester,
            exporter,
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
        let binding = Binding::Connection(digest(&value, "binding")?);
        assert_eq!(facts.binding(), binding);
        match attester {
            Role::Server => check_vm(&value["vm"], &nonce, &binding)?,
            Role::Client => check_device(&value["device"], &nonce, &binding)?,
        }
    }
    Ok(())
}

/// What the VM's quote covers for this binding.
fn check_vm(vm: &Value, nonce: &Nonce, binding: &Binding) -> Result<()> {
    let tls_key: KeyStatement = minicbor::decode(&bytes(vm, "tls_key")?)?;
    let salt = digest(vm, "salt")?;
    let leaf = vm_request_leaf(&salt, nonce, binding, Some(&tls_key.digest()));
    assert_eq!(leaf, leaf_hash(&bytes(vm, "vm_request_leaf")?));
    let tree = Tree::new(vec![leaf]).context("a leaf")?;
    assert_eq!((tree.root(), tree.size()), (digest(vm, "root")?, 1));
    let boot = BootRecord::Log {
        digest: digest(vm, "event_log")?,
        log: Vec::new().into(),
    };
    let qualifying_data = vm_qualifying_data(&tree.root(), tree.size(), &boot);
    assert_eq!(qualifying_data, Digest32::of(&bytes(vm, "vm_quote_data")?));
    assert_eq!(qualifying_data, digest(vm, "qualifying_data")?);
    Ok(())
}

/// What a device's quote covers for this binding.
fn check_device(device: &Value, nonce: &Nonce, binding: &Binding) -> Result<()> {
    let ik = TpmName::from_bytes(&bytes(device, "device_ik")?)?;
    let log = digest(device, "event_log")?;
    let qualifying_data = device_qualifying_data(nonce, binding, &ik, &log);
    assert_eq!(
        qualifying_data,
        Digest32::of(&bytes(device, "device_quote_data")?)
    );
    assert_eq!(qualifying_data, digest(device, "qualifying_data")?);
    Ok(())
}

/// RFC 8446 §7.5, from the connection's exporter secret.
fn exported(value: &Value) -> Result<[u8; 32]> {
    let (kdf, algorithm): (hkdf::Algorithm, &'static Algorithm) = match number(value, "suite")? {
        0x1302 => (HKDF_SHA384, &SHA384),
        _ => (HKDF_SHA256, &SHA256),
    };
    let length = algorithm.output_len();
    let secret = Prk::new_less_safe(kdf, &bytes(value, "exporter_secret")?);
    let label = text(value, "exporter_label")?.as_bytes();
    let secret = expand_label(&secret, label, hash(algorithm, b"").as_ref(), length)?;
    let secret = Prk::new_less_safe(kdf, &secret);
    let context = hash(algorithm, &bytes(value, "exporter_context")?);
    let exported = expand_label(&secret, b"exporter", context.as_ref(), 32)?;
    exported.try_into().map_err(|_| anyhow!("32 bytes"))
}

/// `HKDF-Expand-Label` of RFC 8446 §7.1.
fn expand_label(secret: &Prk, label: &[u8], context: &[u8], length: usize) -> Result<Vec<u8>> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let label = [b"tls13 ", label].concat();
    let info = [
        &u16::try_from(length)?.to_be_bytes(),
        &[u8::try_from(label.len())?][..],
        &label,
        &[u8::try_from(context.len())?],
        context,
    ];
    let mut expanded = vec![0; length];
    secret
        .expand(&info, Length(length))
        .and_then(|expanding| expanding.fill(&mut expanded))
        .map_err(|_| anyhow!("HKDF gives no such length"))?;
    Ok(expanded)
}

fn bytes(value: &Value, name: &str) -> Result<Vec<u8>> {
    Ok(hex::decode(text(value, name)?)?)
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

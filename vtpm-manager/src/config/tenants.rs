//! The API for tenants: off unless it is told where to listen.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cert_chain::TenantNaming;
use serde::Deserialize;
use tenant_api::{AuthoritySettings, Limits, Listen, ServerCertificate, Settings};

use super::error::ConfigError;

/// The entries as they are written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TenantsFile {
    listen: Vec<String>,
    issuer: Option<PathBuf>,
    authority: Vec<AuthorityFile>,
    crls: Vec<PathBuf>,
    crl_max_age_hours: Option<u32>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    connections: Option<u32>,
    requests_per_minute: Option<u32>,
    evidence_per_minute: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityFile {
    root: PathBuf,
    names: String,
}

/// Stands for the socket that the service manager passes.
const PASSED: &str = "systemd";
const COMMON_NAME: &str = "common-name";
const URI: &str = "uri:";
const HOUR: Duration = Duration::from_secs(60 * 60);

/// What is configured; none, if the API is off.
pub(super) fn tenants(file: TenantsFile, config: &Path) -> Result<Option<Settings>, ConfigError> {
    let refused = |field, problem: &str| ConfigError::Value {
        config: config.to_owned(),
        field,
        problem: problem.to_owned(),
    };
    if file.listen.is_empty() {
        return Ok(None);
    }
    let mut authorities = Vec::new();
    authorities.extend(file.issuer.map(|root| AuthoritySettings {
        root,
        naming: TenantNaming::Profile,
    }));
    for AuthorityFile { root, names } in file.authority {
        let naming = naming(&names).ok_or_else(|| {
            refused(
                "tenants.authority.names",
                "is neither `common-name` nor `uri:` and the beginning of the URIs that name tenants, \
                 e.g. `uri:spiffe://corp.example/tenant/`",
            )
        })?;
        authorities.push(AuthoritySettings { root, naming });
    }
    if authorities.is_empty() {
        return Err(refused(
            "tenants",
            "says where to listen, and not whom to admit: name the root of the identity issuer, \
             `issuer = \"/etc/vtpm-manager/root.pem\"`, or a CA of your own in [[tenants.authority]]",
        ));
    }
    let certificate = match (file.certificate, file.key) {
        (None, None) => ServerCertificate::OfHostIk,
        (Some(certificate), Some(key)) => ServerCertificate::Files { certificate, key },
        _ => {
            return Err(refused(
                "tenants.certificate",
                "and `tenants.key` belong together: write both, or none to have the host IK certify a key \
                 that is made at each start",
            ));
        }
    };
    let paths = authorities.iter().map(|authority| &authority.root);
    let files = match &certificate {
        ServerCertificate::OfHostIk => vec![],
        ServerCertificate::Files { certificate, key } => vec![certificate, key],
    };
    for path in paths.chain(&file.crls).chain(files) {
        if !path.is_absolute() {
            return Err(ConfigError::Relative {
                config: config.to_owned(),
                field: "tenants",
                value: path.clone(),
            });
        }
    }
    let limits = Limits::default();
    let limit = |field, value: Option<u32>, default| match value {
        Some(0) => Err(refused(
            field,
            "is 0, with which no tenant could ask anything: write at least 1, or leave `listen` out",
        )),
        other => Ok(other.unwrap_or(default)),
    };
    Ok(Some(Settings {
        listen: file
            .listen
            .iter()
            .map(|at| match at.as_str() {
                PASSED => Ok(Listen::Passed),
                at => at.parse().map(Listen::At).map_err(|_| {
                    refused(
                        "tenants.listen",
                        "is no address with a port, as in `192.0.2.1:8443` or `[2001:db8::1]:8443`, nor \
                         `systemd`",
                    )
                }),
            })
            .collect::<Result<_, _>>()?,
        certificate,
        authorities,
        crls: file.crls,
        crl_max_age: file.crl_max_age_hours.map(|hours| HOUR.saturating_mul(hours)),
        limits: Limits {
            connections: limit("tenants.connections", file.connections, limits.connections)?,
            requests_per_minute: limit(
                "tenants.requests_per_minute",
                file.requests_per_minute,
                limits.requests_per_minute,
            )?,
            evidence_per_minute: limit(
                "tenants.evidence_per_minute",
                file.evidence_per_minute,
                limits.evidence_per_minute,
            )?,
        },
    }))
}

fn naming(names: &str) -> Option<TenantNaming> {
    if names == COMMON_NAME {
        return Some(TenantNaming::CommonName);
    }
    let prefix = names.strip_prefix(URI)?;
    (!prefix.is_empty()).then(|| TenantNaming::Uri(prefix.to_owned()))
}

//! The address of a time-stamp authority.

use std::str::FromStr;

use hyper::Uri;
use serde::Deserialize;

/// Where an authority is asked: `http://` or `https://`, without a password.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct AuthorityUrl(Uri);

impl AuthorityUrl {
    pub(crate) fn is_secure(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    pub(crate) fn host(&self) -> &str {
        self.0.host().unwrap_or_default()
    }

    pub(crate) fn port(&self) -> u16 {
        let usual = if self.is_secure() { 443 } else { 80 };
        self.0.port_u16().unwrap_or(usual)
    }

    /// Host and port as a request's head names them.
    pub(crate) fn host_and_port(&self) -> &str {
        self.0
            .authority()
            .map_or("", |authority| authority.as_str())
    }

    pub(crate) fn path(&self) -> &str {
        self.0.path_and_query().map_or("/", |path| path.as_str())
    }
}

impl FromStr for AuthorityUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) {
            return Err("it begins with neither http:// nor https://".to_owned());
        }
        if url.host().is_none_or(str::is_empty) {
            return Err("it names no host".to_owned());
        }
        // It would stand in the list of processes.
        if url
            .authority()
            .is_some_and(|host| host.as_str().contains('@'))
        {
            return Err("a name or password in it is not used: leave it out".to_owned());
        }
        Ok(Self(url))
    }
}

impl TryFrom<String> for AuthorityUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl std::fmt::Display for AuthorityUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

//! Who may look: three checks of a request, before anything is done about it.
//!
//! * The host that it names is this machine's loopback, by number or as `localhost`, whatever the port
//!   (which is another one behind `ssh -L`). A page of another name that had this server's
//!   address put behind its name (DNS rebinding) says its own name here.
//! * What asks for data is this page: no page of another origin, and no navigation.
//! * It shows the token, in a header that no page of another origin can send without being allowed to
//!   (Fetch standard, "CORS-preflight"), and that a browser never sends by itself: not in a cookie, which would
//!   go to every port of the host, and never in a URL.

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Request, StatusCode};

use crate::token::Token;

/// A request that passed all checks; made by [`admit`] alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted(());

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A name that may be anybody's.
    #[error(
        "this page is served under the names of the loopback only: open it as \
         http://127.0.0.1:PORT/ or http://localhost:PORT/"
    )]
    Host,
    /// A page of somebody else, or a link to it.
    #[error("only the page itself may ask for this")]
    Origin,
    /// No token, or a wrong one.
    #[error("the token is missing or wrong: it is shown where the dashboard was started")]
    Token,
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SCHEME: &[u8] = b"Bearer ";

impl Refusal {
    /// As an HTTP status.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::Token => StatusCode::UNAUTHORIZED,
        }
    }
}

/// Whether the page itself may be served: it holds no data.
pub(crate) fn check_host<B>(request: &Request<B>) -> Result<(), Refusal> {
    let authority = only(request.headers(), &HOST).and_then(|host| host.to_str().ok());
    // A request in absolute form names a second host, which would go before (RFC 9112 §3.2.2).
    let is_plain = request.uri().authority().is_none();
    match authority.and_then(|host| host.parse::<Authority>().ok()) {
        Some(authority) if is_plain && is_loopback(&authority) => Ok(()),
        _ => Err(Refusal::Host),
    }
}

/// Whether data may be served.
pub(crate) fn admit<B>(request: &Request<B>, token: &Token) -> Result<Admitted, Refusal> {
    check_host(request)?;
    let headers = request.headers();
    let same_site = headers.get_all(FETCH_SITE);
    if !same_site.iter().all(|site| site == "same-origin") {
        return Err(Refusal::Origin);
    }
    if headers.contains_key(ORIGIN) && !is_of_page(headers) {
        return Err(Refusal::Origin);
    }
    let shown = only(headers, &AUTHORIZATION).map(HeaderValue::as_bytes);
    match shown.and_then(|value| value.strip_prefix(SCHEME)) {
        Some(shown) if token.is(shown) => Ok(Admitted(())),
        _ => Err(Refusal::Token),
    }
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let number = host.trim_start_matches('[').trim_end_matches(']');
    // No user before the host.
    !authority.as_str().contains('@')
        && (host.eq_ignore_ascii_case("localhost")
            || number
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback()))
}

fn is_of_page(headers: &HeaderMap) -> bool {
    let origin = only(headers, &ORIGIN).map(HeaderValue::as_bytes);
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    origin.and_then(|origin| origin.strip_prefix(b"http://")) == host && host.is_some()
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Result<Request<()>> {
        let mut request = Request::builder().uri("/api/stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.body(())?)
    }

    #[test]
    fn only_names_of_the_loopback_are_served() -> Result<()> {
        for host in [
            "127.0.0.1:7080",
            "127.0.0.1",
            "127.8.9.1:1",
            "[::1]:7080",
            "localhost:9000",
            "LOCALHOST",
        ] {
            check_host(&request(&[("host", host)])?)?;
        }
        for host in [
            "attacker.example:7080",
            "127.0.0.1.attacker.example",
            "localhost.attacker.example",
            "127.0.0.1@attacker.example",
            "attacker.example@127.0.0.1",
            "10.0.0.1:7080",
            "[::2]:7080",
            "0.0.0.0:7080",
            "",
        ] {
            let refused = check_host(&request(&[("host", host)])?);
            assert_eq!(refused, Err(Refusal::Host), "{host}");
        }
        assert_eq!(check_host(&request(&[])?), Err(Refusal::Host));
        let two = request(&[("host", "127.0.0.1"), ("host", "attacker.example")])?;
        assert_eq!(check_host(&two), Err(Refusal::Host));
        let absolute = Request::builder()
            .uri("http://attacker.example/")
            .header("host", "127.0.0.1")
            .body(())?;
        assert_eq!(check_host(&absolute), Err(Refusal::Host));
        Ok(())
    }

    #[test]
    fn a_request_of_another_origin_or_without_the_token_gets_no_data() -> Result<()> {
        let token = Token::new()?;
        let bearer = format!("Bearer {}", token.expose());
        let host = ("host", "127.0.0.1:7080");
        let right = ("authorization", bearer.as_str());
        let admitted = |more: &[(&str, &str)]| -> Result<Option<Refusal>> {
            let request = request(&[&[host], more].concat())?;
            Ok(admit(&request, &token).err())
        };
        assert_eq!(admitted(&[right])?, None);
        let own = ("origin", "http://127.0.0.1:7080");
        assert_eq!(
            admitted(&[right, own, ("sec-fetch-site", "same-origin")])?,
            None
        );

        for origin in [
            "http://127.0.0.1:7081",
            "https://127.0.0.1:7080",
            "http://attacker.example",
            "null",
        ] {
            let refused = admitted(&[right, ("origin", origin)])?;
            assert_eq!(refused, Some(Refusal::Origin), "{origin}");
        }
        for site in ["same-site", "cross-site", "none"] {
            let refused = admitted(&[right, ("sec-fetch-site", site)])?;
            assert_eq!(refused, Some(Refusal::Origin), "{site}");
        }
        let shorter = bearer.get(..bearer.len() - 1).unwrap_or_default();
        for shown in [
            shorter,
            "Bearer ",
            "",
            token.expose(),
            &format!("{bearer}0"),
        ] {
            let refused = admitted(&[("authorization", shown)])?;
            assert_eq!(refused, Some(Refusal::Token), "{shown}");
        }
        assert_eq!(admitted(&[])?, Some(Refusal::Token));
        assert_eq!(admitted(&[right, right])?, Some(Refusal::Token));
        Ok(())
    }
}

//! Peers without evidence, with another's, or with a certificate of another issuer are refused.

use std::sync::Arc;

use anyhow::{Context, Result};
use attested_tls::{CloseReason, ConnectionError, NoDemand, Unattested, accept, connect};
use tokio::io::duplex;

use crate::support::{Issuer, Signer, Trusting, between, deadlines, name};

fn refused<T>(outcome: Result<T, ConnectionError>) -> Result<()> {
    match outcome.err().context("it was accepted")? {
        ConnectionError::Refused(_) => Ok(()),
        other => Err(other.into()),
    }
}

#[tokio::test]
async fn no_end_gets_a_stream_whose_peer_shows_nothing_or_something_else() -> Result<()> {
    let issuer = Issuer::new()?;
    let (service, other) = (Signer::new()?, Signer::new()?);
    let (server, client) = between(
        (&issuer.server()?, Arc::new(Unattested), NoDemand),
        (
            &issuer.client()?,
            Arc::new(Unattested),
            Trusting::new(&service),
        ),
    )
    .await;
    assert!(
        matches!(client, Err(ConnectionError::PeerHasNone(_))),
        "{client:?}"
    );
    assert!(
        matches!(
            server,
            Err(ConnectionError::ClosedByPeer(CloseReason::NoEvidence))
        ),
        "{server:?}"
    );
    let (server, client) = between(
        (&issuer.server()?, other, NoDemand),
        (
            &issuer.client()?,
            Arc::new(Unattested),
            Trusting::new(&service),
        ),
    )
    .await;
    refused(client)?;
    assert!(
        matches!(
            server,
            Err(ConnectionError::ClosedByPeer(CloseReason::Refused))
        ),
        "{server:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_with_a_certificate_of_another_issuer_is_refused_in_the_handshake() -> Result<()> {
    let (issuer, other) = (Issuer::new()?, Issuer::new()?);
    let service = Signer::new()?;
    let (ours, theirs) = duplex(64 * 1024);
    let (server_tls, client_tls) = (other.server()?, issuer.client()?);
    let (server, client) = tokio::join!(
        accept(ours, &server_tls, service.clone(), NoDemand, deadlines()),
        connect(
            theirs,
            &client_tls,
            name(),
            Arc::new(Unattested),
            Trusting::new(&service),
            deadlines()
        ),
    );
    assert!(matches!(client, Err(ConnectionError::Io(_))), "{client:?}");
    assert!(server.is_err());
    Ok(())
}

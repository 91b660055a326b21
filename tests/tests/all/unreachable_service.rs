//! `vrot-service proxy` before a service that is not there.

use std::time::Duration;

use anyhow::{Context, Result};
use test_support::deadline::wait_for;
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::attested_connections::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_told_that_the_service_cannot_be_reached() -> Result<()> {
    let stage = Stage::get()?;
    // Nobody else gets this port, and nobody listens there.
    let nobody = TcpSocket::new_v4()?;
    nobody.bind("127.0.0.1:0".parse()?)?;
    let address = nobody.local_addr()?;
    let proxy = stage.vm.proxy("no-service", address, &["--any-device"])?;
    // Depending on who is quicker, the device is told before or after it has accepted the service.
    let told = match stage.connect(&proxy).await {
        Ok(mut connected) => {
            let read = timeout(Duration::from_secs(60), connected.stream.read(&mut [0])).await?;
            read.err().context("an end was read")?.into()
        }
        Err(error) => error,
    };
    let told = format!("{told:#}");
    assert!(
        told.contains("what is behind it cannot be reached"),
        "{told}"
    );
    // The log is written beside what it tells of.
    wait_for("the proxy's word", Duration::from_secs(60), || {
        let said = proxy.said("the service cannot be reached")?;
        Ok(said.then_some(()))
    })
}

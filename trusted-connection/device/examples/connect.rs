//! Sends a line to a service in a VM and prints what comes back, if the VM is what the policy says:
//!
//! ```text
//! cargo run -p vrot-device --example connect -- policy.toml vm-1.example.org:7072
//! ```

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vrot_device::connection::DeviceIdentity;
use vrot_device::{Connector, policy_files};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let policy = arguments.next().context("a policy is needed")?;
    let service = arguments.next().context("HOST:PORT is needed")?;

    let policy = policy_files::load(Path::new(&policy))?;
    let connector = Connector::new(Arc::new(policy), DeviceIdentity::none(), None)?;
    let attested = connector.connect(&service.parse()?).await?;
    println!("VM {}", attested.appraisal.evidence().leaf().vm);

    let mut stream = attested.stream;
    stream.write_all(b"hello\n").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    print!("{answer}");
    Ok(())
}

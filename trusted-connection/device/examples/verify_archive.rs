//! Verifies an archive of signed data as a third party does, by roots of its own:
//!
//! ```text
//! cargo run -p vrot-device --example verify_archive -- reading.archive policy.toml time-root.pem
//! ```

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use archive::Reader;
use attestation::PolicyAbout;
use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;
use signed_data::Demand;
use trusted_connection::policy_files;
use vrot_device::archiving::{Judge, judge};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &'static str| arguments.next().context(what);
    let archive = next("an archive is needed")?;
    let policy = next("a policy is needed: what is expected of the source")?;
    let time_roots = next("roots of time-stamp authorities are needed")?;

    let policy = policy_files::load_about_either(Path::new(&policy))?;
    let issuers = match &policy {
        PolicyAbout::Vms(policy) => policy.anchors(),
        PolicyAbout::Devices(policy) => {
            (policy.anchors()).context("the policy trusts no issuer")?
        }
    };
    let authorities = TrustAnchors::from_pem(&fs::read(time_roots)?)?;

    // Here the data are hashed alone; in place of the sink, a file takes them.
    let mut reader = Reader::open(File::open(archive)?)?;
    let checked = reader.check(&[], &mut io::sink())?;
    let by = Judge {
        policy: &policy,
        issuers,
        authorities: &authorities,
        demand: &Demand::default(),
    };
    let archived = judge(checked, None, &by, UnixTime::now())?;

    let (time, data) = (archived.archive().signature(), archived.result());
    println!("signed before {} s after 1970", time.before().as_secs());
    println!("  says {}", time.authority().name());
    println!("signed by {}", data.data().label().source);
    println!("verdict: {}", data.verdict());
    Ok(())
}

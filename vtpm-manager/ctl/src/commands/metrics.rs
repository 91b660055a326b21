//! Metrics for Prometheus, which does not reach the manager's socket: written where something that it
//! does reach reads them, the textfile collector of its node exporter for instance.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use api_types::wire::HostView;
use api_types::{Timestamp, WithCauses};
use nix::sys::statvfs::statvfs;
use program_output::console::{complain, print};

use crate::arguments::MetricsArguments;
use crate::client::{Client, HOST};
use crate::error::CtlError;
use crate::files;

/// How long a manager that hangs is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Exit status 1 if the manager was not reached, which the metrics say as well.
pub(crate) fn run(arguments: &MetricsArguments, client: &Client) -> Result<ExitCode, CtlError> {
    let asked = client.within(PATIENCE, |client| {
        let metrics = client.text("/metrics")?;
        let host: HostView = client.get(HOST)?;
        Ok::<_, CtlError>((metrics, host))
    });
    let said = asked.and_then(|said| said);
    let mut text = Text::default();
    if let Ok((metrics, host)) = &said {
        text.0.push_str(metrics);
        let end = host.enrolment.as_ref();
        text.gauge(
            "vrot_host_certificate_end_seconds",
            "When the host's certificate ends, since 1970; 0 if there is none.",
            end.map_or(0, |enrolment| enrolment.not_after.seconds()),
        );
        if let Some(free) = free_in(&host.state_dir) {
            text.gauge(
                "vrot_state_disk_free_bytes",
                "What is free on the disk of the state folder.",
                free,
            );
        }
    }
    text.gauge(
        "vrot_manager_up",
        "1 if the manager answered, else 0.",
        u8::from(said.is_ok()),
    );
    text.gauge(
        "vrot_metrics_time_seconds",
        "When these metrics were written, since 1970.",
        Timestamp::now().seconds(),
    );
    match &arguments.out {
        Some(path) => files::write(path, text.0.as_bytes())?,
        None => print(&text.0).map_err(CtlError::Output)?,
    }
    Ok(match said {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("vtpmctl: {}", WithCauses(&error)));
            ExitCode::FAILURE
        }
    })
}

/// None where this user does not get as far as the folder.
fn free_in(folder: &Path) -> Option<u64> {
    let disk = statvfs(folder).ok()?;
    Some(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        // A String takes every character.
        let _ = write!(
            self.0,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
        );
    }
}

//! Looks at a host, and says what to do about what is wrong.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use api_types::WithCauses;
use api_types::wire::HostView;
use host_doctor::{
    Examination, Finding, ManagerSaid, NotSaid, Programs, Report, Status, System, listener,
};

use nix::errno::Errno;

use crate::arguments::DoctorArguments;
use crate::client::{Client, HOST};
use crate::commands::policy::POLICY;
use crate::error::CtlError;
use crate::output::{Output, Table};

const MANAGER: &str = "vtpm-managerd";
/// How long one that hangs is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Something does not work, or will not soon.
const FAILED: u8 = 1;
/// Only warnings.
const WARNINGS: u8 = 3;

pub(crate) fn run(
    arguments: &DoctorArguments,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CtlError> {
    let programs = Programs {
        manager: arguments.manager.clone().unwrap_or_else(beside),
        config: arguments.config.clone(),
    };
    let examination = Examination {
        system: &System::this(),
        programs: &programs,
        manager: &ask(client),
        revocation_lists: &arguments.crl,
        version: env!("CARGO_PKG_VERSION"),
    };
    let report = examination.report();
    output.result(&report, || describe(&report))?;
    Ok(match report.worst() {
        Status::Failed => FAILED.into(),
        Status::Warning => WARNINGS.into(),
        Status::Ok | Status::Unseen => ExitCode::SUCCESS,
    })
}

fn beside() -> PathBuf {
    env::current_exe().map_or_else(|_| MANAGER.into(), |own| own.with_file_name(MANAGER))
}

/// A manager that does not answer is one that cannot be seen.
fn ask(client: &Client) -> ManagerSaid {
    let asked = client.within(PATIENCE, |client| {
        let host: Result<HostView, _> = client.get(HOST).map_err(not_said);
        let is_opening = host
            .as_ref()
            .is_ok_and(|host| host.store.state == "opening");
        let policy = match (&host, is_opening) {
            (Err(reason), _) => Err(reason.clone()),
            // It would be waited for.
            (Ok(_), true) => Err(NotSaid {
                reason: "the manager is opening its store".to_owned(),
                errno: None,
            }),
            (Ok(_), false) => client.get(POLICY).map_err(not_said),
        };
        ManagerSaid {
            host,
            policy,
            metrics: client.text("/metrics").ok(),
            process: listener(client.socket()),
        }
    });
    asked.unwrap_or_else(|error| {
        let hangs = not_said(error);
        ManagerSaid {
            host: Err(hangs.clone()),
            policy: Err(hangs),
            metrics: None,
            process: None,
        }
    })
}

fn not_said(error: CtlError) -> NotSaid {
    let errno = match &error {
        CtlError::Unreachable { source, .. } => source.raw_os_error(),
        CtlError::Silent { .. } => Some(Errno::ETIMEDOUT as i32),
        _ => None,
    };
    NotSaid {
        reason: WithCauses(&error).to_string(),
        errno,
    }
}

fn describe(report: &Report) -> String {
    let mut table = Table::default();
    for Finding {
        check,
        status,
        found,
        remedy,
    } in &report.findings
    {
        let word = match status {
            Status::Ok => "ok",
            Status::Unseen => "unseen",
            Status::Warning => "WARNING",
            Status::Failed => "FAILED",
        };
        table.row([word, check, found]);
        if let Some(remedy) = remedy {
            table.row(["", "", &format!("→ {remedy}")]);
        }
    }
    let [failed, warnings, unseen] =
        [Status::Failed, Status::Warning, Status::Unseen].map(|status| report.count(status));
    format!(
        "{}\n{failed} failed, {warnings} warnings, {unseen} could not be seen",
        table.render()
    )
}

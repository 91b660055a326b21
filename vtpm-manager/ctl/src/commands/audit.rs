//! The audit log: verified in files, or by the manager.

use std::path::Path;

use api_types::WithCauses;
use api_types::audit::{Known, LogError, verify};
use api_types::wire::{AuditAcceptance, AuditView};

use crate::arguments::AuditCommand;
use crate::client::Client;
use crate::error::CtlError;
use crate::output::Output;

pub(crate) fn run(
    command: &AuditCommand,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    let view = match command {
        AuditCommand::Accept { head } => {
            client.post("/v1/audit/accept", &AuditAcceptance { head: *head })?
        }
        AuditCommand::Verify { log, from, head } => {
            let known = Known {
                from: *from,
                head: *head,
            };
            match log {
                Some(path) => check_files(path, known)?,
                None => check_own(known, client)?,
            }
        }
    };
    show(&view, output)
}

fn show(view: &AuditView, output: &Output) -> Result<(), CtlError> {
    output.result(view, || {
        let parts = match view.parts {
            1 => "one part".to_owned(),
            parts => format!("{parts} parts"),
        };
        let (log, lines, head) = (view.log.display(), view.entries, view.head);
        let vouched = match view.vouched_lines {
            Some(vouched) if vouched == lines => {
                "\nthe physical TPM vouches for all of them".into()
            }
            Some(vouched) => format!("\nthe physical TPM vouches for the first {vouched}"),
            None => String::new(),
        };
        let state = match &view.problem {
            Some(problem) => format!("ALTERED: {problem}"),
            None => "unaltered".to_owned(),
        };
        format!("{log}: {lines} lines in {parts}, {state}\nnewest hash {head}{vouched}")
    })
}

/// The manager's own log, which it holds against what it knows of it.
fn check_own(known: Known, client: &Client) -> Result<AuditView, CtlError> {
    let view: AuditView = client.get("/v1/audit")?;
    if let Some(problem) = view.problem {
        return Err(CtlError::LogAltered { problem });
    }
    if known == Known::default() {
        return Ok(view);
    }
    let from = known.from.or(view.begins_after);
    check_files(&view.log, Known { from, ..known })
}

/// A log in files, and what is known of it.
fn check_files(path: &Path, known: Known) -> Result<AuditView, CtlError> {
    let end = verify(path, known).map_err(|error| match error {
        LogError::File { path, source, .. } => CtlError::File {
            path,
            action: "read",
            source,
        },
        altered => CtlError::LogAltered {
            problem: WithCauses(&altered).to_string(),
        },
    })?;
    // A manager writes a line when it starts, so that only what goes on from taken parts can have none.
    if end.entries == 0 && known.from.is_none() {
        return Err(CtlError::LogAltered {
            problem: format!(
                "`{}` has no line, and a manager's log has one from its first start on: it was emptied, or \
                 is no such log",
                path.display()
            ),
        });
    }
    Ok(AuditView {
        log: path.to_owned(),
        begins_after: known.from,
        entries: end.entries,
        parts: end.parts,
        bytes: end.bytes,
        head: end.head,
        vouched_lines: None,
        intact: true,
        problem: None,
    })
}

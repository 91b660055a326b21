//! What a check found.

use serde::Serialize;

/// How it is with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It could not be seen: for want of rights, of a program, or of a manager that runs.
    Unseen,
    /// It works, and something should be done all the same.
    Warning,
    /// Something does not work, or will not soon.
    Failed,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Short name of the check; it does not change.
    pub check: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What all checks found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// In the order in which a host is set up.
    pub findings: Vec<Finding>,
}

/// Findings of one check.
pub(crate) struct Check<'a> {
    name: &'static str,
    findings: &'a mut Vec<Finding>,
}

impl Report {
    /// The worst of it.
    pub fn worst(&self) -> Status {
        let statuses = self.findings.iter().map(|finding| finding.status);
        statuses.max().unwrap_or(Status::Ok)
    }

    /// How many findings are like this.
    pub fn count(&self, status: Status) -> usize {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.status == status).count()
    }
}

impl<'a> Check<'a> {
    pub(crate) fn new(name: &'static str, findings: &'a mut Vec<Finding>) -> Self {
        Self { name, findings }
    }

    pub(crate) fn ok(&mut self, found: impl Into<String>) {
        self.add(Status::Ok, found.into(), None);
    }

    pub(crate) fn unseen(&mut self, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(Status::Unseen, found.into(), Some(remedy.into()));
    }

    pub(crate) fn warning(&mut self, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(Status::Warning, found.into(), Some(remedy.into()));
    }

    pub(crate) fn failed(&mut self, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(Status::Failed, found.into(), Some(remedy.into()));
    }

    fn add(&mut self, status: Status, found: String, remedy: Option<String>) {
        self.findings.push(Finding {
            check: self.name,
            status,
            found,
            remedy,
        });
    }
}

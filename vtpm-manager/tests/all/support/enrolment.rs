//! The four files of an enrolment, and the commands that make them.

use super::Host;

/// Where the files of one enrolment are.
pub(crate) struct Files {
    issuer: String,
    pub(crate) request: String,
    pub(crate) challenge: String,
    pub(crate) answer: String,
    pub(crate) certificate: String,
}

impl Files {
    /// With this host's issuer.
    pub(crate) fn of(host: &Host) -> Self {
        let [request, challenge, answer, certificate] =
            ["1.json", "2.json", "3.json", "4.json"].map(|name| host.path(name));
        Self {
            issuer: host.path("issuer"),
            request,
            challenge,
            answer,
            certificate,
        }
    }

    /// The host asks under a name.
    pub(crate) fn ask<'a>(&'a self, name: &'a str) -> [&'a str; 6] {
        ["host", "request", "--name", name, "--out", &self.request]
    }

    /// The issuer challenges the host.
    pub(crate) fn challenge(&self) -> [&str; 8] {
        let (issuer, request) = (&self.issuer, &self.request);
        [
            "issuer",
            "challenge",
            "--dir",
            issuer,
            "--request",
            request,
            "--out",
            &self.challenge,
        ]
    }

    /// The host answers.
    pub(crate) fn answer(&self) -> [&str; 6] {
        [
            "host",
            "answer",
            "--challenge",
            &self.challenge,
            "--out",
            &self.answer,
        ]
    }

    /// The issuer certifies the host.
    pub(crate) fn certify(&self) -> [&str; 8] {
        let (issuer, answer) = (&self.issuer, &self.answer);
        [
            "issuer",
            "certify",
            "--dir",
            issuer,
            "--answer",
            answer,
            "--out",
            &self.certificate,
        ]
    }
}

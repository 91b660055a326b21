//! How commands end, and how they print.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use printable::{printable_json, printable_lines};
use program_output::console::print;
use serde_json::Value;

/// How a command ended that could be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, and all is well.
    Good,
    /// A verdict is less than affirming.
    NotAffirming,
    /// There is nothing to show.
    Nothing,
    /// A host did not answer.
    Incomplete,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Good => 0,
            Outcome::NotAffirming => 1,
            Outcome::Nothing => 2,
            Outcome::Incomplete => 3,
        })
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Output {
    pub(crate) fn say(
        self,
        json: impl FnOnce() -> Value,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        let said = match self {
            Self::Json => printable_json(&format!("{:#}\n", json())),
            Self::Text => printable_lines(&text()),
        };
        print(&said).context("the result cannot be written to standard output")
    }
}

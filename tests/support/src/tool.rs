//! A program that is run to its end, for what it prints.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// A command line of a program that runs to its end.
#[derive(Debug)]
pub struct Tool {
    command: Command,
}

impl Tool {
    /// The program, by name or path.
    pub fn new(program: impl AsRef<Path>) -> Self {
        Self {
            command: Command::new(program.as_ref()),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I, S>(mut self, arguments: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs the program in another folder.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// The command line as a person would type it.
    pub fn line(&self) -> String {
        let mut words = Vec::new();
        let program = Path::new(self.command.get_program());
        words.push(
            program
                .file_name()
                .unwrap_or(program.as_os_str())
                .to_string_lossy()
                .into_owned(),
        );
        for argument in self.command.get_args() {
            let argument = argument.to_string_lossy();
            if argument.is_empty() || argument.contains([' ', '"', '$', '*', ';']) {
                words.push(format!("'{argument}'"));
            } else {
                words.push(argument.into_owned());
            }
        }
        words.join(" ")
    }

    /// Runs it and yields what happened, whatever the exit status.
    pub fn outcome(mut self) -> Result<Output> {
        self.command.output().with_context(|| {
            format!(
                "running {}: is it installed? `make setup` installs what is missing",
                self.line()
            )
        })
    }

    /// Runs it, demands success, and yields its standard output.
    pub fn run(self) -> Result<Vec<u8>> {
        let line = self.line();
        let output = self.outcome()?;
        if !output.status.success() {
            bail!(
                "`{line}` ended with {}:\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(output.stdout)
    }

    /// Runs it, demands success, and yields its standard output as text.
    pub fn text(self) -> Result<String> {
        Ok(String::from_utf8(self.run()?)?)
    }
}

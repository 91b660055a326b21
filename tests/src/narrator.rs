//! What the demo says while it works: numbered steps, and the commands it runs.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use test_support::tool::Tool;

/// Tells a person what happens.
#[derive(Debug)]
pub struct Narrator {
    steps: usize,
    step: usize,
    begin: Instant,
}

impl Narrator {
    /// A demonstration of so many steps.
    pub fn new(steps: usize) -> Self {
        Self {
            steps,
            step: 0,
            begin: Instant::now(),
        }
    }

    /// Begins a step, and says why it matters.
    pub fn step(&mut self, title: &str, explanation: &str) {
        self.step += 1;
        println!(
            "\n[{}/{}] {title}  ({} s)",
            self.step,
            self.steps,
            self.begin.elapsed().as_secs()
        );
        for line in explanation.lines() {
            println!("      {}", line.trim());
        }
    }

    /// One line on how it goes.
    pub fn note(&self, text: &str) {
        println!("      {text}");
    }

    /// What a program printed, indented.
    pub fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("      | {line}");
        }
    }

    /// A command that is about to run.
    pub fn command(&self, tool: &Tool) {
        println!("      $ {}", tool.line());
    }

    /// Shows a command and runs it; it must succeed.
    pub fn run(&self, tool: Tool) -> Result<String> {
        self.command(&tool);
        tool.text()
    }

    /// Does something that takes time, and says how long it took.
    pub fn wait<T>(&self, what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        print!("      {what} … ");
        io::stdout().flush().context("writing to the terminal")?;
        let begin = Instant::now();
        let outcome = action();
        match &outcome {
            Ok(_) => println!("{:.1} s", begin.elapsed().as_secs_f32()),
            Err(_) => println!("failed"),
        }
        outcome
    }
}

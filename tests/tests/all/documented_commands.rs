//! The command lines in the documentation: each names commands and options that the programs have.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use test_support::programs::{program, workspace_folder};
use test_support::tool::Tool;

const PROGRAMS: [&str; 9] = [
    "vtpmctl",
    "vtpm-backend",
    "vtpm-managerd",
    "vrot-service",
    "vrot-device",
    "vrot-confirm",
    "swtpm",
    "swtpm_setup",
    "swtpm_ioctl",
];
/// What stands before a command: who types it, or what runs it.
const BEFORE: [&str; 7] = ["host", "operator", "issuer", "device", "sudo", "do", "exec"];

/// What callers of swtpm say, and is not offered here.
const REFUSED: [&str; 1] = ["swtpm chardev --vtpm-proxy"];

/// What a program says of a command of its own.
#[derive(Default)]
struct Help {
    commands: Vec<String>,
    options: Vec<String>,
}

#[derive(Default)]
struct Programs(BTreeMap<String, Help>);

impl Programs {
    fn help(&mut self, path: &[String]) -> Result<&Help> {
        let key = path.join(" ");
        if !self.0.contains_key(&key) {
            let (name, commands) = path.split_first().context("a program")?;
            let text = Tool::new(program(name)?)
                .args(commands)
                .arg("--help")
                .text()?;
            self.0.insert(key.clone(), Help::parse(&text));
        }
        self.0.get(&key).context("its help")
    }

    /// Holds the words of one command against what its program has.
    fn check(&mut self, words: &[String]) -> Result<()> {
        let (name, words) = words.split_first().context("a program")?;
        let mut path = vec![name.clone()];
        let mut options = Vec::new();
        let mut is_value = false;
        for word in words {
            match word.as_str() {
                "--" => break,
                // Something is left out.
                "…" => return Ok(()),
                _ => {}
            }
            if let Some(option) = word.strip_prefix("--") {
                let option = option.split('=').next().unwrap_or_default();
                options.push(option.trim_end_matches(['…', ',', '.', ']']).to_owned());
                is_value = !word.contains('=');
                continue;
            }
            let help = self.help(&path)?;
            if help.commands.contains(word) {
                path.push(word.clone());
            } else if !help.commands.is_empty() && !is_value && is_name(word) {
                anyhow::bail!("{} has no command `{word}`", path.join(" "));
            }
            is_value = false;
        }
        let help = self.help(&path)?;
        for option in options {
            // Callers of swtpm abbreviate, as GNU programs have it.
            let is_abbreviated = name.starts_with("swtpm");
            let is_there = help.options.iter().any(|known| {
                *known == option || (is_abbreviated && known.starts_with(option.as_str()))
            });
            ensure!(
                is_there || option.is_empty(),
                "{} has no --{option}",
                path.join(" ")
            );
        }
        Ok(())
    }
}

impl Help {
    fn parse(text: &str) -> Self {
        let mut commands = Vec::new();
        let listed = text.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in listed.lines().take_while(|line| !line.is_empty()) {
            let name = line
                .strip_prefix("  ")
                .filter(|rest| !rest.starts_with(' '));
            commands.extend(name.and_then(|rest| rest.split(' ').next().map(str::to_owned)));
        }
        let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
        let options = text.split("--").skip(1);
        let options = options.filter_map(|rest| rest.split(ends).next());
        Self {
            commands,
            options: options.map(str::to_owned).collect(),
        }
    }
}

/// Whether a word can be a command's, and is no placeholder.
fn is_name(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
}

/// What is shown as code: blocks, and what stands between backticks.
fn code(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, part) in page.split("```").enumerate() {
        if number % 2 == 1 {
            let block = part.replace("\\\n", " ");
            found.extend(block.lines().map(str::to_owned));
        } else {
            let spans = part.split('`').skip(1).step_by(2);
            found.extend(spans.map(|span| span.replace('\n', " ")));
        }
    }
    found
}

/// The words of the commands in a line of a shell's.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let mut word = String::new();
    let mut quote = None;
    for c in line.chars().chain([' ']) {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.push(if c == '-' { '_' } else { c }),
            ('"' | '\'', None) => quote = Some(c),
            (' ' | '|' | ';' | '&' | '(' | ')' | '<' | '>', None) => {
                if word == "#" {
                    return all;
                }
                if let Some(command) = all.last_mut().filter(|_| !word.is_empty()) {
                    command.push(std::mem::take(&mut word));
                }
                if c != ' ' {
                    all.push(Vec::new());
                }
            }
            (c, None) => word.push(c),
        }
    }
    all
}

/// From the program on, if the command is one of a program of ours.
fn of_ours(command: &[String]) -> Option<&[String]> {
    let is_before = |word: &String| BEFORE.contains(&word.as_str()) || word.contains('=');
    let start = command.iter().position(|word| !is_before(word))?;
    let command = command.get(start..)?;
    let is_ours = command
        .first()
        .is_some_and(|name| PROGRAMS.contains(&name.as_str()));
    is_ours.then_some(command)
}

#[test]
fn the_documented_command_lines_name_commands_and_options_that_there_are() -> Result<()> {
    let root = workspace_folder()?;
    let mut pages = vec![root.join("README.md"), root.join("SECURITY.md")];
    for page in fs::read_dir(root.join("docs"))? {
        let page = page?.path();
        if page.extension().is_some_and(|extension| extension == "md") {
            pages.push(page);
        }
    }
    let mut programs = Programs::default();
    let (mut checked, mut wrong) = (0, Vec::new());
    for page in pages {
        let name = page.file_name().unwrap_or_default().to_string_lossy();
        for line in code(&fs::read_to_string(&page)?) {
            for command in commands(&line) {
                let Some(command) = of_ours(&command) else {
                    continue;
                };
                if REFUSED.contains(&command.join(" ").as_str()) {
                    continue;
                }
                checked += 1;
                if let Err(error) = programs.check(command) {
                    wrong.push(format!("{name}: `{}`: {error:#}", command.join(" ")));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(checked > 150, "only {checked} command lines were found");
    Ok(())
}

#[test]
fn a_command_line_with_what_there_is_not_is_found() -> Result<()> {
    let mut programs = Programs::default();
    for (line, is_right) in [
        ("host vtpmctl show UUID | head", true),
        ("vtpmctl --socket S list --output json", true),
        ("X=$(vtpmctl qemu-args $VM --nonsense)", false),
        ("sudo vtpmctl shew UUID", false),
        ("vtpmctl host policy nonsense", false),
        ("vtpmctl run --tenant a -- qemu --whatever", true),
    ] {
        let found: Result<Vec<()>> = commands(line)
            .iter()
            .filter_map(|command| of_ours(command))
            .map(|command| programs.check(command))
            .collect();
        assert_eq!(
            found.is_ok_and(|found| found.len() == 1),
            is_right,
            "{line}"
        );
    }
    Ok(())
}

//! Judges files by libraries that are not this project's. Exit status 0 if they are what they
//! should be, 1 if not (standard error says why), 2 if there is nothing to judge.
//!
//!     format-judge cddl DESCRIPTION FILE…   CBOR is as the first rule of a CDDL file says
//!     format-judge ear FILE…                JSON is an EAT attestation result; each is printed as
//!                                           crate `ear` understood it, on a line of its own

use std::fs;
use std::process::ExitCode;

use ear::Ear;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let judged = match words.as_slice() {
        ["cddl", description, files @ ..] if !files.is_empty() => described(description, files),
        ["ear", files @ ..] if !files.is_empty() => read_as_ears(files),
        _ => {
            eprintln!("usage: format-judge cddl DESCRIPTION FILE…\n       format-judge ear FILE…");
            return ExitCode::from(2);
        }
    };
    match judged {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            eprintln!("{}", faults.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("format-judge: {error}");
            ExitCode::from(2)
        }
    }
}

/// What is wrong with each file, or why none could be judged.
type Faults = Result<Vec<String>, String>;

fn described(description: &str, files: &[&str]) -> Faults {
    let description =
        String::from_utf8(read(description)?).map_err(|error| format!("{description}: {error}"))?;
    let mut faults = Vec::new();
    for file in files {
        if let Err(error) = cddl::validate_cbor_from_slice(&description, &read(file)?, None) {
            faults.push(format!("{file} is not as described: {error}"));
        }
    }
    Ok(faults)
}

fn read_as_ears(files: &[&str]) -> Faults {
    let mut faults = Vec::new();
    for file in files {
        let understood =
            serde_json::from_slice::<Ear>(&read(file)?).and_then(|ear| serde_json::to_string(&ear));
        match understood {
            Ok(json) => println!("{json}"),
            Err(error) => faults.push(format!("{file} is no EAR: {error}")),
        }
    }
    Ok(faults)
}

fn read(file: &str) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{file} cannot be read: {error}"))
}

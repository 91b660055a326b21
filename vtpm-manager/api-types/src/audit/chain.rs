//! The chain that the lines are: what one looks like, and how all are checked.

use std::path::{Path, PathBuf};

use cert_chain::Digest32;
use serde::{Deserialize, Serialize};

use super::LogError;
use super::parts::Parts;
use crate::Timestamp;

/// A log without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Number of the last line, which is how many there were, with those of parts that were taken
    /// away.
    pub entries: u64,
    /// Hash of the last line.
    pub head: Digest32,
    /// How many files the log is.
    pub parts: u64,
    /// Their size.
    pub bytes: u64,
}

/// What somebody knows of a log from elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The hash of a line that is in the log or, if the parts up to it were taken away, right
    /// before it. Without it, the log has to be there from its first line on.
    pub from: Option<Digest32>,
    /// The hash of a line that was the last one earlier.
    pub head: Option<Digest32>,
}

const DOMAIN: &[u8] = b"vrot audit log v1\0";
/// What the first line names as previous.
const BEGINNING: Digest32 = Digest32::new([0; 32]);
const HASH_FIELD: &str = ",\"hash\":\"";

/// One line, before it is written.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Entry<'a, E> {
    /// Its number, counted from one.
    pub sequence: u64,
    /// When it happened.
    pub time: Timestamp,
    /// The user who ordered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_uid: Option<u32>,
    /// What happened: an object, whose fields stand in the line.
    #[serde(flatten)]
    pub event: &'a E,
    /// Hash of the line before.
    pub previous: Digest32,
}

/// What verification looks at; everything else is covered by the hash alone.
#[derive(Deserialize)]
struct Links {
    sequence: u64,
    previous: Digest32,
}

/// Checks every line of a log, in all its parts, and that it holds what is known of it. Blocks.
pub fn verify(path: &Path, known: Known) -> Result<Verified, LogError> {
    verify_parts(Parts::open(path)?, known)
}

/// The same for a log whose parts were found before.
pub fn verify_parts(parts: Parts, known: Known) -> Result<Verified, LogError> {
    let path = parts.path().to_owned();
    let from = known.from.unwrap_or(BEGINNING);
    let mut from_found = false;
    let mut head_found = known.head.is_none_or(|head| head == BEGINNING);
    // The first line, until there is one.
    let mut begins: Option<(PathBuf, Digest32)> = None;
    let mut verified = Verified {
        entries: 0,
        head: BEGINNING,
        parts: parts.count(),
        bytes: 0,
    };
    parts.each_line(|place, text| {
        let broken = |problem| LogError::Broken {
            path: place.path.to_owned(),
            line: place.line,
            problem,
        };
        verified.bytes += text.len() as u64;
        let text = text
            .strip_suffix(b"\n")
            .ok_or_else(|| broken("the line does not end"))?;
        let (body, hash) = split(text).ok_or_else(|| broken("there is no hash"))?;
        if hash_of(body) != hash {
            return Err(broken("the hash is not that of the line"));
        }
        let links: Links = serde_json::from_slice(text)
            .map_err(|_| broken("the line is not one of an audit log"))?;
        if begins.is_none() {
            // A line that names no other is the first of all.
            let first = links.previous == BEGINNING;
            if links.sequence == 0 || (first && links.sequence != 1) {
                return Err(broken("the number is not that of a first line"));
            }
            begins = Some((place.path.to_owned(), links.previous));
            from_found |= links.previous == from;
            head_found |= known.head == Some(links.previous);
        } else if links.previous != verified.head {
            return Err(match place.before {
                Some(before) if place.line == 1 => LogError::Apart {
                    path: place.path.to_owned(),
                    before: before.to_owned(),
                },
                _ => broken("it does not continue the line before"),
            });
        } else if Some(links.sequence) != verified.entries.checked_add(1) {
            return Err(broken("the number is not the next one"));
        }
        verified.entries = links.sequence;
        verified.head = hash;
        from_found |= hash == from;
        head_found |= known.head == Some(hash);
        Ok(())
    })?;
    match begins {
        Some((path, after)) if !from_found => Err(LogError::Begins {
            path,
            after,
            stated: known.from,
        }),
        // Which number the next line has to have cannot be told.
        None if from != BEGINNING => Err(LogError::Nothing { path }),
        _ => match known.head {
            Some(known) if !head_found => Err(LogError::Replaced { path, known }),
            _ => Ok(verified),
        },
    }
}

impl<E: Serialize> Entry<'_, E> {
    /// The line with its line feed, and its hash.
    pub fn line(&self) -> (String, Digest32) {
        let mut line = match serde_json::to_string(self) {
            Ok(json) => json,
            // Strings, numbers, and maps with string keys.
            Err(error) => unreachable!("JSON: {error}"),
        };
        line.pop();
        let hash = hash_of(line.as_bytes());
        line.push_str(HASH_FIELD);
        line.push_str(&hash.to_string());
        line.push_str("\"}\n");
        (line, hash)
    }
}

/// Splits a line into what is hashed and the hash.
fn split(line: &[u8]) -> Option<(&[u8], Digest32)> {
    let text = line.strip_suffix(b"\"}")?;
    let (rest, hash) = text.split_at_checked(text.len().checked_sub(64)?)?;
    let body = rest.strip_suffix(HASH_FIELD.as_bytes())?;
    let hash = std::str::from_utf8(hash).ok()?.parse().ok()?;
    Some((body, hash))
}

fn hash_of(body: &[u8]) -> Digest32 {
    Digest32::of(&[DOMAIN, body].concat())
}

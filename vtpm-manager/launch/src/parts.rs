//! Which parts a launch can have, and where their values come from.

use std::sync::Arc;

use api_types::wire::{LaunchPartRequest, LaunchRequest, LaunchSource};
use attestation::launch::{LaunchError, LaunchPart, MAX_PARTS, PartId, PartValue};
use cert_chain::Digest32;

use super::{MeasureError, ReceivedFile};

/// A part before it is measured.
#[derive(Debug)]
pub enum PartToMeasure {
    /// It needed no reading.
    Known(LaunchPart),
    /// A file's contents.
    File {
        /// Which part it is.
        id: PartId,
        /// The file, open for reading.
        file: ReceivedFile,
    },
}

/// Where the value of a part comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    File,
    Text,
    Setting,
    Number,
}

/// Holds what is asked for against what there is. A descriptor may serve for several parts.
pub fn parts_to_measure(
    request: LaunchRequest,
    files: &[ReceivedFile],
) -> Result<Vec<PartToMeasure>, MeasureError> {
    let found = request.parts.len();
    if !(1..=MAX_PARTS).contains(&found) {
        return Err(LaunchError::Count { found }.into());
    }
    let parts = request.parts.into_iter();
    parts.map(|part| to_measure(part, files)).collect()
}

fn to_measure(
    request: LaunchPartRequest,
    files: &[ReceivedFile],
) -> Result<PartToMeasure, MeasureError> {
    let id: PartId = request.part.parse()?;
    let source = source_of(&id)?;
    let value = match (source, request.source) {
        (Source::File, LaunchSource::Descriptor(index)) => {
            let file = usize::try_from(index).ok().and_then(|at| files.get(at));
            let Some(file) = file else {
                let count = files.len();
                return Err(MeasureError::NoDescriptor {
                    part: id,
                    index,
                    count,
                });
            };
            let file = Arc::clone(file);
            return Ok(PartToMeasure::File { id, file });
        }
        (Source::Text, LaunchSource::Text(text)) => {
            PartValue::Digest(Digest32::of(text.as_bytes()))
        }
        (Source::Setting, LaunchSource::Value(value)) => setting(&value)?,
        (Source::Number, LaunchSource::Value(value)) => {
            let found = setting(&value)?;
            let is_number = value.parse::<u64>().is_ok_and(|number| number > 0);
            if !is_number || value.starts_with(['0', '+']) {
                return Err(MeasureError::Number { part: id, found });
            }
            found
        }
        (expected, _) => {
            return Err(MeasureError::Source {
                part: id,
                expected: expected.described(),
            });
        }
    };
    Ok(PartToMeasure::Known(LaunchPart { id, value }))
}

/// A setting is told as it is: a digest that nothing was measured for would pass for one.
fn setting(text: &str) -> Result<PartValue, MeasureError> {
    Ok(PartValue::Text(text.parse()?))
}

fn source_of(id: &PartId) -> Result<Source, MeasureError> {
    let kind = id
        .as_str()
        .split_once(':')
        .map_or((id.as_str(), false), |(kind, _)| (kind, true));
    match kind {
        ("firmware" | "firmware-variables" | "kernel" | "initramfs", false)
        | ("disk" | "file", true) => Ok(Source::File),
        ("command-line", false) | ("text", true) => Ok(Source::Text),
        ("machine" | "cpu-model", false) | ("value", true) => Ok(Source::Setting),
        ("cpus" | "memory-mib", false) => Ok(Source::Number),
        _ => Err(MeasureError::UnknownPart { part: id.clone() }),
    }
}

impl Source {
    fn described(self) -> &'static str {
        match self {
            Self::File => "file: give `descriptor`",
            Self::Text => "text: give `text`",
            Self::Setting | Self::Number => "setting: give `value`",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(part: &str, source: LaunchSource) -> LaunchRequest {
        LaunchRequest {
            parts: vec![LaunchPartRequest {
                part: part.to_owned(),
                source,
            }],
        }
    }

    fn value(text: &str) -> LaunchSource {
        LaunchSource::Value(text.to_owned())
    }

    fn text(text: &str) -> LaunchSource {
        LaunchSource::Text(text.to_owned())
    }

    fn is_taken(part: &str, source: LaunchSource) -> bool {
        parts_to_measure(request(part, source), &[]).is_ok()
    }

    #[test]
    fn each_part_comes_from_where_it_can_be_measured() -> anyhow::Result<()> {
        let files = [Arc::new(tempfile::tempfile()?.into())];
        for part in [
            "firmware",
            "firmware-variables",
            "kernel",
            "initramfs",
            "disk:root",
            "file:a",
        ] {
            let descriptor = request(part, LaunchSource::Descriptor(0));
            assert!(parts_to_measure(descriptor, &files).is_ok(), "{part}");
            assert!(!is_taken(part, LaunchSource::Descriptor(0)), "{part}");
            // Whoever launches VMs cannot say what a file holds.
            assert!(!is_taken(part, value("sha256:00")), "{part}");
            assert!(!is_taken(part, text("x")), "{part}");
        }
        for part in ["machine", "cpu-model", "value:zone"] {
            assert!(is_taken(part, value("x")), "{part}");
            assert!(!is_taken(part, text("x")), "{part}");
            let digest = format!("sha256:{}", Digest32::of(b"x"));
            assert!(!is_taken(part, value(&digest)), "{part}");
        }
        assert!(is_taken("command-line", text("")));
        assert!(is_taken("text:notes", text("line\nline")));
        for part in ["disk", "kernel:a", "vendor", "value", "disk:", "Kernel"] {
            assert!(!is_taken(part, value("x")), "{part}");
            assert!(parts_to_measure(request(part, LaunchSource::Descriptor(0)), &files).is_err());
        }
        Ok(())
    }

    #[test]
    fn numbers_are_written_in_one_way() {
        for good in ["1", "4096"] {
            assert!(is_taken("cpus", value(good)) && is_taken("memory-mib", value(good)));
        }
        for bad in ["0", "02", "+2", "-1", "2 ", "two", "2.0", ""] {
            assert!(!is_taken("cpus", value(bad)), "{bad}");
        }
    }

    #[test]
    fn requests_are_written_as_documented() -> anyhow::Result<()> {
        let json = r#"{"parts":[{"part":"kernel","descriptor":0},{"part":"cpus","value":"2"},
            {"part":"command-line","text":"console=ttyS0"}]}"#;
        let request: LaunchRequest = serde_json::from_str(json)?;
        let files = [Arc::new(tempfile::tempfile()?.into())];
        assert_eq!(parts_to_measure(request, &files)?.len(), 3);
        for bad in [
            r#"{"parts":[{"part":"kernel"}]}"#,
            r#"{"parts":[{"part":"kernel","path":"/etc/shadow"}]}"#,
            r#"{"parts":[{"part":"kernel","descriptor":-1}]}"#,
        ] {
            assert!(serde_json::from_str::<LaunchRequest>(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}

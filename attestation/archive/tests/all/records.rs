//! Many records in one archive.

use archive::ArchiveError;
use archive::file::{RecordReader, RecordWriter, record_length};

fn records() -> Vec<(String, Vec<u8>)> {
    let names = (0..300u32).map(|number| format!("{:04}/{}", number, "n".repeat(number as usize)));
    names
        .map(|name| (name.clone(), name.repeat(3).into_bytes()))
        .collect()
}

fn written() -> Vec<u8> {
    let mut writer = RecordWriter::new(Vec::new());
    for (name, content) in records() {
        writer.record(&name, &content).unwrap();
    }
    writer.into_inner()
}

fn read(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let mut reader = RecordReader::new(bytes, bytes.len() as u64);
    let mut found = Vec::new();
    while let Some(record) = reader.next_record()? {
        found.push(record);
    }
    Ok(found)
}

#[test]
fn records_are_read_as_they_were_written_and_have_the_length_that_was_computed() {
    let bytes = written();
    assert_eq!(read(&bytes).unwrap(), records());
    let computed: u64 = (records().iter())
        .map(|(name, content)| record_length(name.len(), content.len() as u64))
        .sum();
    assert_eq!(computed, bytes.len() as u64);
    assert!(read(&[]).unwrap().is_empty());
}

#[test]
fn records_have_names_that_rise_and_a_cut_is_noticed() {
    let mut writer = RecordWriter::new(Vec::new());
    writer.record("b", b"1").unwrap();
    for name in ["a", "b", ""] {
        assert!(writer.record(name, b"2").is_err(), "{name:?}");
    }
    let one = writer.into_inner();
    assert!(read(&[one.as_slice(), &one].concat()).is_err());
    for length in 1..one.len() {
        assert!(read(&one[..length]).is_err());
    }
}

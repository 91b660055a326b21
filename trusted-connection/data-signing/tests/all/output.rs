//! Files that grow.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cert_chain::PublicArea;
use data_signing::stream::collector::Collector;
use data_signing::stream::output::{Opened, Output, OutputError};
use signed_data::LabelText;
use signed_data::stream::Link;

use crate::scene::{SoftwareSigner, batches, options, stream_name};

/// A stream of two batches, with its source's key.
fn stream() -> (PublicArea, Vec<u8>) {
    let collector = Collector::new(1, Duration::from_secs(3600));
    let mut signed = 0;
    let mut source = SoftwareSigner::new();
    source.meanwhile = Box::new(|| {
        signed += 1;
        match signed {
            1 => collector.add(b"2".to_vec()),
            _ => collector.end(None),
        }
    });
    collector.add(b"1".to_vec());
    let key = PublicArea::parse(&source.area()).unwrap();
    let (summary, bytes) = source.sign(&options(1), &collector);
    assert_eq!(summary.batches, 2);
    (key, bytes)
}

#[test]
fn a_stream_in_a_file_goes_on_behind_its_last_whole_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stream");
    let (key, bytes) = stream();
    let all = batches(&bytes);
    let first = all[0].to_stream();
    let append = |contents: &[u8]| -> Option<Link> {
        fs::write(&path, contents).unwrap();
        let Opened { mut output, after } = Output::append(&path, &key, &stream_name()).unwrap();
        output.write(b"next").unwrap();
        after
    };
    // Whatever a signer that was killed left: each time, the disk is waited for.
    let (end, second) = (bytes.len(), first.len());
    let near = [17, second - 1, second, second + 1, second + 4, end - 1];
    for length in (0..end).step_by(199).chain(near) {
        let after = append(&bytes[..length]);
        let whole = match length < first.len() {
            true => &[][..],
            false => &first,
        };
        assert_eq!(
            after,
            (!whole.is_empty()).then(|| all[0].link()),
            "{length}"
        );
        assert_eq!(fs::read(&path).unwrap(), [whole, b"next"].concat());
    }
    assert_eq!(append(&bytes), Some(all[1].link()));
    fs::remove_file(&path).unwrap();
    let opened = Output::append(&path, &key, &stream_name()).unwrap();
    assert_eq!(opened.after, None);
}

#[test]
fn a_file_with_something_else_in_it_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stream");
    let (key, bytes) = stream();
    let room = "room-2/temperature".parse().unwrap();
    let other = refused(&path, &bytes, &key, &room);
    assert!(
        matches!(other, OutputError::OtherStream { .. }),
        "{other:?}"
    );
    let (another, _) = stream();
    let other = refused(&path, &bytes, &another, &stream_name());
    assert!(
        matches!(other, OutputError::OtherStream { .. }),
        "{other:?}"
    );
    // Some begin as a batch that promises more bytes than there are.
    let texts = [
        "text",
        "Year,celsius\n1,2\n",
        "Zone,celsius\n1,2\n",
        "Xa",
        "W\n",
    ];
    for text in texts {
        for before in [&[][..], &bytes] {
            let contents = [before, text.as_bytes()].concat();
            let other = refused(&path, &contents, &key, &stream_name());
            let found = matches!(other, OutputError::NoStream { .. });
            assert!(found, "{text:?}: {other:?}");
        }
    }
    // And so little tells nothing, unless it stands behind a batch.
    for little in [&b"Y"[..], &bytes[..16]] {
        let other = refused(&path, little, &key, &stream_name());
        assert!(matches!(other, OutputError::NoStream { .. }), "{other:?}");
    }
    let exists = Output::create(&path).unwrap_err();
    assert!(matches!(exists, OutputError::Exists(_)), "{exists:?}");
}

#[test]
fn a_stream_does_not_go_on_behind_a_batch_that_its_key_did_not_sign() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stream");
    let (key, bytes) = stream();
    let all = batches(&bytes);
    let first = all[0].to_stream();
    let signature = all[1].signature();
    let signature = (bytes.windows(64)).position(|part| part == signature);
    // As after a loss of power, or by whoever writes into the file.
    for at in [bytes.len() - 1, signature.unwrap()] {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        let error = refused(&path, &altered, &key, &stream_name());
        let OutputError::Damaged { length, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(length, first.len() as u64);
    }
    let mut altered = bytes.clone();
    altered[first.len()..][..5].fill(0);
    let error = refused(&path, &altered, &key, &stream_name());
    assert!(matches!(error, OutputError::NoStream { .. }), "{error:?}");
    // What the message says to do.
    altered.truncate(first.len());
    fs::write(&path, altered).unwrap();
    let opened = Output::append(&path, &key, &stream_name()).unwrap();
    assert_eq!(opened.after, Some(all[0].link()));
}

fn refused(path: &Path, contents: &[u8], key: &PublicArea, stream: &LabelText) -> OutputError {
    fs::write(path, contents).unwrap();
    let refused = Output::append(path, key, stream).unwrap_err();
    assert_eq!(fs::read(path).unwrap(), contents);
    refused
}

#[test]
fn two_signers_do_not_write_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stream");
    let (key, _) = stream();
    let first = Output::create(&path).unwrap();
    let second = Output::append(&path, &key, &stream_name());
    assert!(matches!(second, Err(OutputError::Locked(_))), "{second:?}");
    drop(first);
}

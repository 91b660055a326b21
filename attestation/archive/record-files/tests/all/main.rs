//! Directories as records, and records as directories.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use archive::records::{RecordName, RecordWriter, Records};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use record_files::{FileKind, NewFolder, RecordFilesError, read_folder};
use tempfile::TempDir;

type Pair = (String, Vec<u8>);

/// Its names, in the order of bytes: `-` and `.` are before `/`, and `0` is behind it.
const NAMES: [&str; 8] = ["a", "b-", "b.txt", "b/1", "b/c/2", "b/c/ü", "b0", "empty"];

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let content = if name == "empty" { "" } else { name };
        fs::write(path, content).unwrap();
    }
    fs::create_dir(folder.path().join("without-files")).unwrap();
    folder
}

fn read(folder: &Path) -> Result<(Vec<Pair>, Records), RecordFilesError> {
    let mut found = Vec::new();
    let mut writer = RecordWriter::new(Vec::new());
    read_folder(folder, |name, content| {
        found.push((name.as_str().to_owned(), content.to_vec()));
        writer.record(name, content)
    })?;
    Ok((found, writer.finish().unwrap().records))
}

#[test]
fn files_are_read_in_the_order_of_their_names() {
    let folder = folder();
    let (found, _) = read(folder.path()).unwrap();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, NAMES);
    assert!(
        found
            .iter()
            .all(|(name, content)| name.as_bytes() == content || name == "empty")
    );
}

#[test]
fn a_directory_that_was_written_from_records_is_the_same_directory() {
    let folder = folder();
    let (found, records) = read(folder.path()).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("again");
    let mut again = NewFolder::create(&path).unwrap();
    for (name, content) in &found {
        again
            .write(RecordName::parse(name).unwrap(), content)
            .unwrap();
    }
    again.finish().unwrap();
    assert_eq!(read(&path).unwrap(), (found, records));
    let twice = NewFolder::create(&path);
    assert!(
        matches!(twice, Err(RecordFilesError::Write { .. })),
        "{twice:?}"
    );
}

#[test]
fn what_is_no_file_is_named_and_not_read() {
    for (make, expected) in [
        (link as fn(&Path), FileKind::Link),
        (pipe, FileKind::Special),
        (socket, FileKind::Special),
    ] {
        let folder = folder();
        make(&folder.path().join("b/other"));
        let refused = read(folder.path());
        assert!(
            matches!(
                &refused,
                Err(RecordFilesError::Kind { path, kind })
                    if path.ends_with("b/other") && *kind == expected
            ),
            "{refused:?}"
        );
    }
}

fn link(path: &Path) {
    symlink("/etc/hostname", path).unwrap();
}

fn pipe(path: &Path) {
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

fn socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

#[test]
fn names_and_files_that_records_cannot_have_are_named() {
    let folder = folder();
    fs::write(folder.path().join(OsStr::from_bytes(b"not\xfftext")), "").unwrap();
    let refused = read(folder.path());
    assert!(
        matches!(refused, Err(RecordFilesError::NotText { .. })),
        "{refused:?}"
    );
    let folder = self::folder();
    let large = fs::File::create(folder.path().join("large")).unwrap();
    large.set_len(16 * 1024 * 1024 + 1).unwrap();
    let refused = read(folder.path());
    assert!(
        matches!(&refused, Err(RecordFilesError::TooLong { path, .. }) if path.ends_with("large")),
        "{refused:?}"
    );
}

/// While one record is looked at, another one is replaced by something else: the directory was listed before.
#[test]
fn a_file_that_becomes_something_else_meanwhile_is_noticed() {
    for make in [link as fn(&Path), pipe, gone, directory] {
        let folder = folder();
        let path = folder.path().join("b/1");
        let refused = read_folder(folder.path(), |name, _| {
            if name.as_str() == "b.txt" {
                fs::write(folder.path().join("b/0"), "").unwrap();
            }
            if name.as_str() == "b/0" {
                fs::remove_file(&path).unwrap();
                make(&path);
            }
            Ok(())
        });
        assert!(
            matches!(&refused, Err(RecordFilesError::Changed { path }) if path.ends_with("b/1")),
            "{refused:?}"
        );
    }
}

fn gone(_: &Path) {}

fn directory(path: &Path) {
    fs::create_dir(path).unwrap();
}

/// What has such a name in a directory.
fn beside(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).unwrap();
    let found = entries.find(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_str().unwrap().starts_with(prefix)
    });
    found.map(|entry| entry.unwrap().path())
}

#[test]
fn a_directory_has_its_name_only_once_it_is_whole() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("new");
    let name = RecordName::parse("a/b").unwrap();
    let mut folder = NewFolder::create(&path).unwrap();
    folder.write(name, b"1").unwrap();
    assert!(!path.exists());
    drop(folder);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    // What took the name meanwhile stays as it is.
    let mut folder = NewFolder::create(&path).unwrap();
    folder.write(name, b"2").unwrap();
    fs::create_dir(&path).unwrap();
    let refused = folder.finish();
    assert!(
        matches!(refused, Err(RecordFilesError::Write { .. })),
        "{refused:?}"
    );
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    fs::remove_dir(&path).unwrap();
    let mut folder = NewFolder::create(&path).unwrap();
    folder.write(name, b"3").unwrap();
    folder.finish().unwrap();
    assert_eq!(fs::read(path.join("a/b")).unwrap(), b"3");
    assert!(beside(parent.path(), ".new.").is_none());
    // A name of the greatest length, too.
    let long = parent.path().join("n".repeat(255));
    NewFolder::create(&long).unwrap().finish().unwrap();
    assert!(long.is_dir());
}

/// A name and a directory of the same name cannot both be there; and links that somebody put there are not followed.
#[test]
fn records_are_written_below_the_new_directory_alone_and_over_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("new");
    let outside = parent.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let mut folder = NewFolder::create(&path).unwrap();
    let made = beside(parent.path(), ".new.").unwrap();
    symlink(&outside, made.join("directory")).unwrap();
    symlink(outside.join("file"), made.join("file")).unwrap();
    let write = |folder: &mut NewFolder, name| folder.write(RecordName::parse(name).unwrap(), b"");
    write(&mut folder, "a").unwrap();
    for name in ["a", "a/b", "directory/x", "file"] {
        assert!(write(&mut folder, name).is_err(), "{name}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

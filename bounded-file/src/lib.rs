//! Reading files that somebody else may have written.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads a file of at most `limit` bytes. A longer one, or one that does not end, is an error
/// once that many bytes were read.
pub fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    read_open_bounded(&File::open(path)?, limit)
}

/// The same of a file that is open. It is read into memory of the file's size, so that growing leaves no
/// copy of a secret behind.
pub fn read_open_bounded(file: &File, limit: usize) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(size.min(limit).saturating_add(1));
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(one_more).read_to_end(&mut bytes)?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    Err(io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("it has more than {limit} bytes"),
    ))
}

/// The same for text.
pub fn read_bounded_text(path: &Path, limit: usize) -> io::Result<String> {
    String::from_utf8(read_bounded(path, limit)?).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let problem = format!("it is no text in UTF-8 (see byte {offset}): save it as such");
        io::Error::new(io::ErrorKind::InvalidData, problem)
    })
}

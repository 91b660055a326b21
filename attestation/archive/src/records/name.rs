//! Names of records.

/// The most that a name has, in bytes of UTF-8.
pub const MAX_NAME: usize = 4096;
/// The most that each of a name's parts has, in bytes: no more makes a file's name.
pub const MAX_NAME_PART: usize = 255;

/// A relative path, with `/` between its parts. Under a directory, it leads to a file below that directory: it does
/// not begin with `/`, and no part is empty, `.` or `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordName<'a>(&'a str);

/// Why a text is no record's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It leads elsewhere.
    #[error("it begins with `/`; names are relative")]
    Absolute,
    /// No text at all.
    #[error("it is empty")]
    Empty,
    /// No file can be called so.
    #[error("it has a NUL byte")]
    Nul,
    /// A part that leads elsewhere or nowhere.
    #[error("a part of it is empty, `.` or `..`")]
    Part,
    /// A long part.
    #[error("a part of it has more than {MAX_NAME_PART} bytes")]
    PartTooLong,
    /// Long by itself.
    #[error("it has more than {MAX_NAME} bytes")]
    TooLong,
}

impl<'a> RecordName<'a> {
    /// Checks a name.
    pub fn parse(name: &'a str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        if name.starts_with('/') {
            return Err(NameError::Absolute);
        }
        if name.contains('\0') {
            return Err(NameError::Nul);
        }
        for part in name.split('/') {
            if matches!(part, "" | "." | "..") {
                return Err(NameError::Part);
            }
            if part.len() > MAX_NAME_PART {
                return Err(NameError::PartTooLong);
            }
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

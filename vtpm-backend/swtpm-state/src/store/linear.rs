//! The directory of a linear store: numbers in little endian, a magic number, a version, 15 entries
//! of which swtpm uses the first three, one for each part of the state.
//!
//! swtpm overwrites a part where it lies. Here a part is written beside the last one, and the
//! directory, within one sector of a disk, says afterwards which of the two counts. The place of the
//! last one is noted in an entry that swtpm does not use, as empty, so that swtpm moves it along where
//! it moves sections, and there is never a gap, which it could not handle.

use crate::{MAX_STATE, StateKind};

/// Where each part of the state lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    entries: [Option<Section>; ENTRIES],
}

/// A section of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// Where it begins.
    pub(crate) offset: u32,
    /// How much of it is in use; zero where it is only kept free.
    pub(crate) used: u32,
    /// Its length.
    pub(crate) length: u32,
}

/// What is wrong with a linear store.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinearError {
    /// It is something else.
    #[error(
        "it does not begin with swtpm's magic number, and is not blank: to have it used for a TPM, \
         overwrite its first {HEADER} bytes with zeros"
    )]
    Foreign,
    /// It was taken over by somebody else.
    #[error("the TPM whose state it holds was taken over: `vtpmctl import --undo` gives it back")]
    Retired,
    /// It is blank, and is not to be made a store.
    #[error("it is blank: no TPM has its state there")]
    Blank,
    /// It is too short for a directory.
    #[error("it has {length} bytes; its directory alone has {HEADER}")]
    TooShort {
        /// Its length.
        length: u64,
    },
    /// Its version is not known.
    #[error("it has version {version} of the format (offset 8); version 1 is read")]
    Version {
        /// Its version.
        version: u8,
    },
    /// Its directory has another length.
    #[error("it says (offset 10) that its directory has {size} bytes; it must be {HEADER}")]
    HeaderSize {
        /// What it says.
        size: u16,
    },
    /// An entry is impossible: beyond the file's end, over the directory, or over another one.
    #[error("entry {entry} of its directory (offset {offset}) names a place that it cannot have")]
    Entry {
        /// Counted from zero.
        entry: usize,
        /// Where in the file the entry is.
        offset: usize,
    },
    /// There is no room.
    #[error("it has no room for {size} bytes more: make it larger")]
    Full {
        /// How much was to be written.
        size: usize,
    },
}

/// "swtpmlin"
const MAGIC: u64 = 0x7377_7470_6d6c_696e;
pub(crate) const VERSION: u8 = 1;
/// A version that no reader knows: swtpm starts no TPM from such a store, and makes no new one.
pub(crate) const RETIRED_VERSION: u8 = 0xff;
/// Where the version is.
pub(crate) const VERSION_OFFSET: u64 = 8;
const ENTRIES: usize = 15;
const ENTRY: usize = 12;
const BEFORE_ENTRIES: usize = 12;
/// Length of the directory.
pub(crate) const HEADER: usize = BEFORE_ENTRIES + ENTRIES * ENTRY;
const HEADER_U16: u16 = 192;
const HEADER_U32: u32 = 192;
const _: () = assert!(HEADER == 192);
/// The first entry that swtpm does not use.
const FIRST_FREE: usize = 3;

impl Section {
    fn end(self) -> u32 {
        self.offset.saturating_add(self.length)
    }
}

impl Directory {
    /// Without any part.
    pub(crate) const EMPTY: Self = Self {
        entries: [None; ENTRIES],
    };

    /// Reads the directory of a file that is `length` bytes long.
    pub(crate) fn parse(bytes: &[u8; HEADER], length: u64) -> Result<Self, LinearError> {
        let Some((head, entries)) = bytes.split_first_chunk::<BEFORE_ENTRIES>() else {
            return Err(LinearError::TooShort { length });
        };
        let [m0, m1, m2, m3, m4, m5, m6, m7, version, _, s0, s1] = *head;
        if u64::from_le_bytes([m0, m1, m2, m3, m4, m5, m6, m7]) != MAGIC {
            return Err(match bytes.iter().all(|byte| *byte == 0) {
                true => LinearError::Blank,
                false => LinearError::Foreign,
            });
        }
        if version == RETIRED_VERSION {
            return Err(LinearError::Retired);
        }
        if version != VERSION {
            return Err(LinearError::Version { version });
        }
        let size = u16::from_le_bytes([s0, s1]);
        if size != HEADER_U16 {
            return Err(LinearError::HeaderSize { size });
        }
        let mut directory = Self::EMPTY;
        let places = entries.chunks_exact(ENTRY).zip(&mut directory.entries);
        for (bytes, place) in places {
            *place = section(bytes);
        }
        directory.check(length)?;
        Ok(directory)
    }

    /// Sections are apart from each other, and what is in use of them is in the file.
    fn check(&self, length: u64) -> Result<(), LinearError> {
        let mut all: Vec<_> = self.sections().collect();
        all.sort_by_key(|(_, section)| section.offset);
        let mut end = HEADER_U32;
        for (entry, section) in all {
            let is_within = u64::from(section.offset) + u64::from(section.used) <= length;
            let section_end = section.offset.checked_add(section.length);
            match section_end {
                Some(next)
                    if section.offset >= end && is_within && section.used <= section.length =>
                {
                    end = next;
                }
                _ => {
                    return Err(LinearError::Entry {
                        entry,
                        offset: BEFORE_ENTRIES + entry * ENTRY,
                    });
                }
            }
        }
        Ok(())
    }

    /// As it is written.
    pub(crate) fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend([VERSION, 0]);
        bytes.extend(HEADER_U16.to_le_bytes());
        for section in self.entries {
            let section = section.unwrap_or(Section {
                offset: 0,
                used: 0,
                length: 0,
            });
            for number in [section.offset, section.used, section.length] {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes.first_chunk().copied().unwrap_or([0; HEADER])
    }

    /// Where a part of the state lies.
    pub(crate) fn find(&self, kind: StateKind) -> Option<Section> {
        self.entries.get(entry_of(kind)).copied().flatten()
    }

    /// Where the last section ends.
    pub(crate) fn end(&self) -> u32 {
        let ends = self.sections().map(|(_, section)| section.end());
        ends.max().unwrap_or(HEADER_U32)
    }

    /// A directory with a part of this size in a place where none lies now, and that place.
    pub(crate) fn place(
        &self,
        kind: StateKind,
        size: usize,
    ) -> Result<(Self, Section), LinearError> {
        let full = LinearError::Full { size };
        let used = u32::try_from(size).map_err(|_| full)?;
        if size == 0 || size > MAX_STATE {
            return Err(full);
        }
        let mut next = self.clone();
        let spare = next
            .entries
            .iter_mut()
            .skip(FIRST_FREE)
            .filter(|entry| entry.is_some_and(|free| free.used == 0 && free.length >= used))
            .min_by_key(|entry| entry.map(|free| free.length))
            .and_then(Option::take);
        let place = spare.unwrap_or(Section {
            offset: self.end(),
            used: 0,
            // As swtpm rounds.
            length: used.next_power_of_two(),
        });
        let place = Section { used, ..place };
        place.offset.checked_add(place.length).ok_or(full)?;
        let entry = next.entries.get_mut(entry_of(kind)).ok_or(full)?;
        let last = entry.replace(place);
        next.set_free(last).map_err(|()| full)?;
        Ok((next, place))
    }

    /// A directory without a part.
    pub(crate) fn without(&self, kind: StateKind) -> Result<Self, LinearError> {
        let mut next = self.clone();
        let last = next.entries.get_mut(entry_of(kind)).and_then(Option::take);
        next.set_free(last)
            .map_err(|()| LinearError::Full { size: 0 })?;
        Ok(next)
    }

    /// Notes a section as free, together with its free neighbours; nothing is noted of what is free
    /// at the end.
    fn set_free(&mut self, section: Option<Section>) -> Result<(), ()> {
        let mut free: Vec<Section> = section.into_iter().collect();
        for entry in self.entries.iter_mut().skip(FIRST_FREE) {
            free.extend(entry.take_if(|section| section.used == 0));
        }
        free.sort_by_key(|section| section.offset);
        let mut merged: Vec<Section> = Vec::new();
        for section in free {
            match merged.last_mut() {
                Some(last) if last.end() == section.offset => last.length += section.length,
                _ => merged.push(section),
            }
        }
        let end = self.end();
        for section in merged.into_iter().filter(|free| free.offset < end) {
            let mut entries = self.entries.iter_mut().skip(FIRST_FREE);
            let entry = entries.find(|entry| entry.is_none()).ok_or(())?;
            *entry = Some(Section { used: 0, ..section });
        }
        Ok(())
    }

    fn sections(&self) -> impl Iterator<Item = (usize, Section)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(entry, section)| section.map(|section| (entry, section)))
    }
}

fn entry_of(kind: StateKind) -> usize {
    match kind {
        StateKind::Permanent => 0,
        StateKind::Volatile => 1,
        StateKind::SaveState => 2,
    }
}

/// An entry whose offset is zero is in nobody's use.
fn section(bytes: &[u8]) -> Option<Section> {
    let mut numbers = bytes.chunks_exact(4).filter_map(|number| {
        let number = number.first_chunk().copied();
        number.map(u32::from_le_bytes)
    });
    let (offset, used, length) = (numbers.next()?, numbers.next()?, numbers.next()?);
    (offset != 0).then_some(Section {
        offset,
        used,
        length,
    })
}

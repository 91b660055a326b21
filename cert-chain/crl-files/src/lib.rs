//! Revocation lists in files that somebody replaces while a program runs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bounded_file::read_bounded;
use cert_chain::TrustAnchors;
use cert_chain::crl::{Crl, CrlFileError, MAX_CRL_FILE};
use cert_chain::revocation::RevocationLists;
use printable::WithCauses;
use rustls_pki_types::TrustAnchor;

/// Files of revocation lists. A file that changed is read anew when it is needed; what cannot be read
/// then is said in the log, and what was read before goes on to count.
#[derive(Debug, Default)]
pub struct CrlFiles {
    files: Mutex<Vec<CrlFile>>,
    /// The newest of each issuer that [was ever kept](Self::keep_newest).
    newest: Mutex<Vec<Newest>>,
}

/// Why a file of revocation lists cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrlFilesError {
    /// It cannot be read.
    #[error("the revocation list {} cannot be read (`vtpmctl issuer crl` makes one)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error("the revocation list {} cannot be used", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CrlFileError,
    },
}

/// The newest list of an issuer.
#[derive(Debug)]
struct Newest {
    issuer: TrustAnchor<'static>,
    list: Arc<Crl>,
}

#[derive(Debug)]
struct CrlFile {
    path: PathBuf,
    lists: Vec<Arc<Crl>>,
    /// Of what was tried last.
    state: FileState,
}

/// What changes with a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds of the last change.
    changed: (i64, i64),
}

impl CrlFiles {
    /// Reads these files; each must be usable.
    pub fn open(paths: &[PathBuf]) -> Result<Self, CrlFilesError> {
        let files = paths
            .iter()
            .map(|path| {
                let state = FileState::of(path).map_err(|source| CrlFilesError::Read {
                    path: path.clone(),
                    source,
                })?;
                Ok(CrlFile {
                    lists: read(path)?,
                    path: path.clone(),
                    state,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            files: Mutex::new(files),
            newest: Mutex::default(),
        })
    }

    /// The lists, as the files have them now.
    pub fn lists(&self) -> Vec<Arc<Crl>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter_mut().for_each(CrlFile::follow);
        files.iter().flat_map(|file| file.lists.clone()).collect()
    }

    /// The same for a verifier, and the newest that were [kept](Self::keep_newest).
    pub fn for_verification(&self) -> RevocationLists {
        self.with_newest(&self.lists())
    }

    /// These roots with the lists for a verifier to whom nobody shows any: the newest in the files are
    /// [kept](Self::keep_newest).
    pub fn anchors(&self, roots: &TrustAnchors) -> TrustAnchors {
        let in_files = self.lists();
        self.keep(roots, &in_files, &[]);
        roots.with_lists(&self.with_newest(&in_files))
    }

    /// Keeps the newest list of each of these roots, of those in the files and those that somebody else has shown,
    /// in DER. Whoever shows an older one afterwards, or puts it into a file, changes nothing, whatever other
    /// roots were asked about in between.
    pub fn keep_newest(&self, roots: &TrustAnchors, shown: &[&[u8]]) {
        self.keep(roots, &self.lists(), shown);
    }

    fn keep(&self, roots: &TrustAnchors, in_files: &[Arc<Crl>], shown: &[&[u8]]) {
        let candidates = (in_files.iter().map(|list| list.der())).chain(shown.iter().copied());
        if self.keeps_all(candidates) {
            return;
        }
        // Nobody waits while lists are parsed and verified: a peer may show long ones.
        let known = roots.with_lists(&self.with_newest(in_files));
        let found = known.newest_lists(shown.iter().copied());
        let mut newest = self.newest();
        for (issuer, list) in found {
            match newest.iter_mut().find(|kept| kept.issuer == *issuer) {
                Some(kept) if list.age_order() > kept.list.age_order() => kept.list = list,
                Some(_) => {}
                None => newest.push(Newest {
                    issuer: issuer.clone(),
                    list,
                }),
            }
        }
    }

    fn with_newest(&self, in_files: &[Arc<Crl>]) -> RevocationLists {
        let mut lists = RevocationLists::default();
        for kept in self.newest().iter() {
            lists.add(Arc::clone(&kept.list));
        }
        for list in in_files {
            lists.add(Arc::clone(list));
        }
        lists
    }

    fn keeps_all<'a>(&self, mut lists: impl Iterator<Item = &'a [u8]>) -> bool {
        let newest = self.newest();
        lists.all(|der| newest.iter().any(|kept| kept.list.der() == der))
    }

    fn newest(&self) -> MutexGuard<'_, Vec<Newest>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CrlFile {
    fn follow(&mut self) {
        // While a file is replaced in two steps it is absent; it is looked for again the next time.
        let Ok(state) = FileState::of(&self.path) else {
            return;
        };
        if state == self.state {
            return;
        }
        self.state = state;
        match read(&self.path) {
            Ok(lists) => self.lists = lists,
            Err(error) => {
                let error = WithCauses(&error).to_string();
                tracing::warn!(%error, "the revocation list that was read before goes on to count");
            }
        }
    }
}

impl FileState {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

fn read(path: &Path) -> Result<Vec<Arc<Crl>>, CrlFilesError> {
    let file = read_bounded(path, MAX_CRL_FILE).map_err(|source| CrlFilesError::Read {
        path: path.to_owned(),
        source,
    })?;
    let lists = Crl::all_from_file(&file).map_err(|source| CrlFilesError::Content {
        path: path.to_owned(),
        source,
    })?;
    Ok(lists.into_iter().map(Arc::new).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::slice;

    use attestation::fixture::Host;
    use cert_chain::TrustAnchors;

    use super::*;

    fn numbers(files: &CrlFiles) -> Vec<String> {
        let lists = files.lists();
        lists.iter().map(|list| list.number().to_string()).collect()
    }

    #[test]
    fn a_list_that_was_replaced_is_read_anew_and_a_broken_one_leaves_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issuer.crl");
        assert!(matches!(
            CrlFiles::open(slice::from_ref(&path)),
            Err(CrlFilesError::Read { .. })
        ));
        let host = Host::new("host-1");
        let list = |number| host.revocation_list(number, 0, &[]);
        fs::write(&path, list(1).to_pem()).unwrap();
        let files = CrlFiles::open(slice::from_ref(&path)).unwrap();
        assert_eq!(numbers(&files), ["1"]);

        // In place, in DER, and by another file under the same name.
        fs::write(&path, list(2).der()).unwrap();
        assert_eq!(numbers(&files), ["2"]);
        let next = folder.path().join("next");
        fs::write(&next, [list(3).to_pem(), list(4).to_pem()].concat()).unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(numbers(&files), ["3", "4"]);

        fs::write(&path, "no list").unwrap();
        assert_eq!(numbers(&files), ["3", "4"]);
        fs::remove_file(&path).unwrap();
        assert_eq!(numbers(&files), ["3", "4"]);
        fs::write(&path, list(5).to_pem()).unwrap();
        assert_eq!(numbers(&files), ["5"]);
        assert!(matches!(
            CrlFiles::open(&[folder.path().join("nothing"), path]),
            Err(CrlFilesError::Read { .. })
        ));
    }

    #[test]
    fn the_newest_list_that_was_shown_is_kept_and_no_forged_one() {
        let (host, stranger) = (Host::new("host-1"), Host::new("host-1"));
        let list = |number| host.revocation_list(number, 0, &[]);
        let roots = TrustAnchors::from_pem(&host.issuer.certificate_pem()).unwrap();
        let files = CrlFiles::default();
        let newest = |shown: &[&Crl]| {
            let shown: Vec<_> = shown.iter().map(|list| list.der()).collect();
            files.keep_newest(&roots, &shown);
            let newest = roots.with_lists(&files.for_verification());
            let newest = newest.newest_lists([]);
            newest.first().map(|(_, list)| list.number().to_string())
        };
        assert_eq!(newest(&[]), None);
        let forged = stranger.revocation_list(99, 0, &[]);
        assert_eq!(newest(&[&forged]), None);
        assert_eq!(newest(&[&list(5), &list(7), &forged]).unwrap(), "7");
        assert_eq!(newest(&[&list(6)]).unwrap(), "7");
        assert_eq!(newest(&[]).unwrap(), "7");
        assert_eq!(newest(&[&list(8)]).unwrap(), "8");
        // One of each issuer, however many were shown; and none of these travels in evidence of our own.
        assert!(files.lists().is_empty());
    }

    #[test]
    fn a_file_that_was_put_back_to_an_older_list_does_not_hide_the_newer_one_of_its_issuer() {
        let (host, other) = (Host::new("host-1"), Host::new("host-1"));
        let [roots, others] = [&host, &other]
            .map(|host| TrustAnchors::from_pem(&host.issuer.certificate_pem()).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issuer.crl");
        let put = |number| fs::write(&path, host.revocation_list(number, 0, &[]).der()).unwrap();
        put(7);
        let files = CrlFiles::open(slice::from_ref(&path)).unwrap();
        let newest = |roots: &TrustAnchors| {
            let known = roots.with_lists(&files.for_verification());
            let newest = known.newest_lists([]);
            newest.first().map(|(_, list)| list.number().to_string())
        };
        // Seen in the file alone, where nobody shows any.
        files.keep_newest(&roots, &[]);
        put(6);
        files.keep_newest(&roots, &[]);
        assert_eq!(newest(&roots).unwrap(), "7");
        // A policy with other roots in between, also of the same name.
        let of_other = other.revocation_list(3, 0, &[]);
        files.keep_newest(&others, &[of_other.der()]);
        assert_eq!(newest(&others).unwrap(), "3");
        assert_eq!(newest(&roots).unwrap(), "7");
        put(8);
        files.keep_newest(&roots, &[]);
        put(6);
        assert_eq!(newest(&roots).unwrap(), "8");
        assert_eq!(newest(&others).unwrap(), "3");
    }
}

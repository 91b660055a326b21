//! Asking an authority by files: for machines without a connection, and for authorities that want more than an
//! HTTP request.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use archive::time_stamp::MAX_RESPONSE;
use archive::{Imprint, TimeStampRequest, Token};
use bounded_file::read_bounded;
use durable_file::replace;
use program_output::console::complain;

use super::authority::fresh_request;

/// A folder with requests and answers.
pub(super) struct Requests {
    folder: PathBuf,
}

/// Ours have some 70 bytes.
const MAX_REQUEST: usize = 4096;

impl Requests {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The token of the answer; `None` if the request has none yet. It is written if it is not there. One that waits
    /// for another archive's answer is left as it is.
    pub(super) fn stamp(&self, name: &str, imprint: Imprint) -> Result<Option<Token>> {
        let (asked, answered) = (self.file(name, "tsq"), self.file(name, "tsr"));
        let request = read_if_there(&asked, MAX_REQUEST)?
            .map(|der| TimeStampRequest::from_der(&der))
            .transpose()
            .with_context(|| format!("{} is no request of ours", asked.display()))?;
        let is_other = (request.as_ref()).is_some_and(|request| *request.imprint() != imprint);
        match (request, read_if_there(&answered, MAX_RESPONSE)?) {
            (Some(_), _) if is_other => bail!(
                "{} asks about something else: a folder is for one archive, and what is archived, policy and \
                 revocation lists too, must not change until it is whole. If nobody else waits for its answer, \
                 remove it and {}",
                asked.display(),
                answered.display()
            ),
            (Some(request), Some(answer)) => request
                .token(&answer)
                .map(Some)
                .with_context(|| format!("{} cannot be used", answered.display())),
            (None, Some(_)) => bail!(
                "{} is the answer to a request that is not there any more. Remove it to ask anew",
                answered.display()
            ),
            (request, None) => {
                if request.is_none() {
                    let request = fresh_request(imprint)?.to_der()?;
                    fs::create_dir_all(&self.folder)
                        .and_then(|()| replace(&asked, &request, 0o644))
                        .with_context(|| format!("{} cannot be written", asked.display()))?;
                }
                complain(format_args!(
                    "vrot-device: have the authority answer {} in {}, and run the same command again",
                    asked.display(),
                    answered.display()
                ));
                Ok(None)
            }
        }
    }

    fn file(&self, name: &str, suffix: &str) -> PathBuf {
        self.folder.join(format!("{name}.{suffix}"))
    }
}

fn read_if_there(path: &Path, limit: usize) -> Result<Option<Vec<u8>>> {
    match read_bounded(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

//! Standard error that systemd's journal reads, which notes the time itself and a line's level from what it begins with.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::Level;

/// Whether standard error goes there: systemd says of which file that is so (`JOURNAL_STREAM` in systemd.exec(5)).
pub(super) fn is_standard_error() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some_and(|stream| is(io::stderr(), &stream))
}

fn is(file: impl AsFd, stream: &OsStr) -> bool {
    fstat(file).is_ok_and(|found| *stream == *format!("{}:{}", found.st_dev, found.st_ino))
}

/// What a line of that level begins with (sd-daemon(3)).
pub(super) fn beginning(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn only_the_file_that_systemd_names_is_its_journal() -> io::Result<()> {
        let file = File::open("/dev/null")?;
        let found = file.metadata()?;
        let named = format!("{}:{}", found.dev(), found.ino());
        assert!(is(&file, OsStr::new(&named)));
        // As of a process that was given another standard error, and of nonsense.
        for other in [
            format!("{}:{}", found.dev(), found.ino() + 1),
            String::new(),
        ] {
            assert!(!is(&file, OsStr::new(&other)), "{other}");
        }
        Ok(())
    }
}

//! One run's folder: short enough for socket paths, and nothing in it outlives the run.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::programs;

/// A folder for the sockets, states and files of one run, and one for its logs.
///
/// The first lies below the system's temporary folder, because a socket's path may have 108
/// bytes at most (`sockaddr_un`), and is removed with the run. The logs stay, below `target/`.
///
/// A small janitor process waits for the end of this value, or of this whole process, however
/// it comes; it then ends every process that still names the folder on its command line and
/// removes the folder. So shared environments in statics, which Rust never drops, and tests
/// that are interrupted leave nothing behind.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    logs: PathBuf,
    janitor: Child,
}

impl RunFolder {
    /// A new folder; `name` is where the logs go, below `target/run-logs`.
    pub fn create(name: &str) -> Result<Self> {
        let logs = programs::target_folder()?.join("run-logs").join(name);
        Self::with_logs(logs)
    }

    /// A new folder whose logs go to `logs`, which is emptied first.
    pub fn with_logs(logs: PathBuf) -> Result<Self> {
        let path = tempfile::Builder::new()
            .prefix("vrot-")
            .tempdir()
            .context("creating the run's folder")?
            .keep();
        match fs::remove_dir_all(&logs) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("emptying {}", logs.display()));
            }
        }
        fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
        let janitor = Command::new("sh")
            .arg("-c")
            .arg(JANITOR)
            .env("FOLDER", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not in our group: an interrupt from the keyboard must reach it last.
            .process_group(0)
            .spawn()
            .context("starting the janitor (sh)")?;
        Ok(Self {
            path,
            logs,
            janitor,
        })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The path of a log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(name)
    }

    /// Where the logs are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // Closing its standard input is the janitor's signal.
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// `$FOLDER` is the run's folder; on its own command line, it would take its helpers for users. A
/// first, polite signal lets programs stop their own children.
const JANITOR: &str = r#"
cat > /dev/null
users() {
    { printf '%s\n' "$FOLDER" | grep -lsF -f - /proc/[0-9]*/cmdline
      find /proc/[0-9]* -maxdepth 1 -name cwd -printf '%p %l\n' 2> /dev/null |
          while read -r file home; do
              case $home in "$FOLDER"*) echo "$file" ;; esac
          done
    } | cut -d / -f 3
}
for number in $(users); do kill "$number" 2> /dev/null; done
for pause in 1 2 3 4 5 6 7 8 9 10; do
    [ -z "$(users)" ] && break
    sleep 0.1
done
for number in $(users); do kill -9 "$number" 2> /dev/null; done
rm -rf "$FOLDER"
"#;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::deadline::wait_for;

    #[test]
    fn a_process_that_names_the_folder_ends_with_it() -> Result<()> {
        let folder = RunFolder::create("janitor")?;
        let path = folder.path().to_owned();
        let mut child = Command::new("tail")
            .arg("-f")
            .arg(path.join("file"))
            .arg("/dev/null")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        drop(folder);
        wait_for("the process to end", Duration::from_secs(10), || {
            Ok(child.try_wait()?)
        })?;
        assert!(!path.exists());
        Ok(())
    }
}

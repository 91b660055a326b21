//! What a VM is launched with, on its way to the manager, which measures it.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use api_types::wire::{LaunchPartRequest, LaunchRequest, LaunchSource, LaunchState, LaunchView};

use crate::arguments::LaunchArguments;
use crate::error::CtlError;
use crate::output::Table;

/// The parts of a launch with their files, opened: what the VMM opens under the same paths, it opens with
/// rights of its own.
#[derive(Debug, Default)]
pub(crate) struct OpenLaunch {
    request: LaunchRequest,
    files: Vec<File>,
}

impl OpenLaunch {
    /// What is named on a command line; nothing, if nothing is.
    pub(crate) fn of(arguments: &LaunchArguments) -> Result<Option<Self>, CtlError> {
        let mut launch = Self::default();
        for (part, path) in [
            ("firmware", &arguments.firmware),
            ("firmware-variables", &arguments.firmware_variables),
            ("kernel", &arguments.kernel),
            ("initramfs", &arguments.initramfs),
        ] {
            if let Some(path) = path {
                launch.file(part, path)?;
            }
        }
        if let Some(text) = &arguments.command_line {
            launch.text("command-line", text);
        }
        let numbers = [
            ("cpus", arguments.cpus.map(|number| number.to_string())),
            (
                "memory-mib",
                arguments.memory_mib.map(|number| number.to_string()),
            ),
        ];
        let settings = [
            ("machine", arguments.machine.clone()),
            ("cpu-model", arguments.cpu_model.clone()),
        ];
        for (part, value) in settings.into_iter().chain(numbers) {
            if let Some(value) = value {
                launch.value(part, &value);
            }
        }
        for (kind, files) in [("disk", &arguments.disk), ("file", &arguments.file)] {
            for (name, path) in files {
                launch.file(&format!("{kind}:{name}"), Path::new(path))?;
            }
        }
        for (name, value) in &arguments.value {
            launch.value(&format!("value:{name}"), value);
        }
        for (name, text) in &arguments.text {
            launch.text(&format!("text:{name}"), text);
        }
        Ok(Some(launch).filter(|launch| !launch.request.parts.is_empty()))
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, part: &str, path: &Path) -> Result<(), CtlError> {
        // A pipe is not waited for; the manager refuses it.
        let opened = File::options()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path);
        let file = opened.map_err(|source| CtlError::File {
            path: path.to_owned(),
            action: "read",
            source,
        })?;
        let index = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        self.files.push(file);
        self.part(part, LaunchSource::Descriptor(index));
        Ok(())
    }

    /// Adds a setting, which evidence tells as it is.
    pub(crate) fn value(&mut self, part: &str, value: &str) {
        self.part(part, LaunchSource::Value(value.to_owned()));
    }

    /// Adds a text, of which evidence tells the SHA-256 value.
    pub(crate) fn text(&mut self, part: &str, text: &str) {
        self.part(part, LaunchSource::Text(text.to_owned()));
    }

    /// What is asked for, and the files for it.
    pub(crate) fn into_parts(self) -> (LaunchRequest, Vec<File>) {
        (self.request, self.files)
    }

    /// How much is to be read, for people.
    pub(crate) fn size(&self) -> String {
        let bytes: u64 = (self.files.iter())
            .filter_map(|file| file.metadata().ok())
            .map(|file| file.len())
            .sum();
        format!(
            "{} files, {} MiB",
            self.files.len(),
            bytes.div_ceil(1024 * 1024)
        )
    }

    fn part(&mut self, part: &str, source: LaunchSource) {
        self.request.parts.push(LaunchPartRequest {
            part: part.to_owned(),
            source,
        });
    }
}

/// What becomes of a measurement, in words.
pub(crate) fn described(launch: &LaunchView) -> &'static str {
    match (launch.state, launch.required) {
        (LaunchState::NotMeasured, false) => "not measured",
        (LaunchState::NotMeasured, true) => "not measured: it is not started without",
        (LaunchState::Prepared, _) => "measured, for its next start",
        (LaunchState::InForce, _) => "measured, and told in evidence",
        (LaunchState::UsedUp, _) => {
            "measured, but another VMM has attached since: evidence says \"not measured\""
        }
    }
}

/// What was measured, and what a device's policy says to accept it.
pub(crate) fn details(launch: &LaunchView) -> String {
    let mut table = Table::default();
    table.row(["launch", described(launch)]);
    for part in &launch.parts {
        table.row([&part.part, &part.value]);
    }
    let mut text = table.render();
    if let Some(digest) = &launch.digest {
        text.push_str(&format!(
            "\nIn a device's policy, all of it:\n\n[launch]\ndigests = [\"{digest}\"]\n\n\
             or part by part:\n\n[launch.parts]\n"
        ));
        for part in &launch.parts {
            text.push_str(&format!("\"{}\" = [{}]\n", part.part, quoted(&part.value)));
        }
    }
    text
}

/// A TOML basic string. Values are printable ASCII.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_becomes_parts_with_their_files_opened() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, "kernel")?;
        let arguments = LaunchArguments {
            kernel: Some(kernel.clone()),
            command_line: Some(String::new()),
            cpus: Some(2),
            disk: vec![("root".to_owned(), kernel.display().to_string())],
            ..LaunchArguments::default()
        };
        let (request, files) = OpenLaunch::of(&arguments)?.unwrap_or_default().into_parts();
        let parts: Vec<&str> = request
            .parts
            .iter()
            .map(|part| part.part.as_str())
            .collect();
        assert_eq!(parts, ["kernel", "command-line", "cpus", "disk:root"]);
        assert_eq!(files.len(), 2);
        assert!(OpenLaunch::of(&LaunchArguments::default())?.is_none());
        let missing = LaunchArguments {
            firmware: Some(folder.path().join("none")),
            ..LaunchArguments::default()
        };
        assert!(matches!(
            OpenLaunch::of(&missing),
            Err(CtlError::File { .. })
        ));
        Ok(())
    }
}

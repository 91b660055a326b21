//! What a VM is launched with.

use std::path::PathBuf;

use clap::Args;

/// The parts of a launch. Files are opened here, with the rights of who calls, and read by the manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "What the VM is launched with")]
pub(crate) struct LaunchArguments {
    /// Its firmware's code.
    #[arg(long, value_name = "FILE")]
    pub(crate) firmware: Option<PathBuf>,
    /// The template of its firmware's variables.
    #[arg(long, value_name = "FILE")]
    pub(crate) firmware_variables: Option<PathBuf>,
    /// A kernel that the VMM loads.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// An initramfs that the VMM loads.
    #[arg(long, value_name = "FILE", visible_alias = "initrd")]
    pub(crate) initramfs: Option<PathBuf>,
    /// The command line of that kernel. Evidence has its SHA-256 value.
    #[arg(
        long,
        value_name = "TEXT",
        visible_alias = "cmdline",
        allow_hyphen_values = true
    )]
    pub(crate) command_line: Option<String>,
    /// The machine type with its version, e.g. pc-q35-7.2.
    #[arg(long, value_name = "TYPE")]
    pub(crate) machine: Option<String>,
    /// The number of processors.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<u32>,
    /// Their model.
    #[arg(long, value_name = "MODEL")]
    pub(crate) cpu_model: Option<String>,
    /// The size of its memory.
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib: Option<u64>,
    /// A disk image to which nobody writes. May be given again.
    #[arg(long, value_name = "NAME=FILE", value_parser = named)]
    pub(crate) disk: Vec<(String, String)>,
    /// Another file. May be given again.
    #[arg(long, value_name = "NAME=FILE", value_parser = named)]
    pub(crate) file: Vec<(String, String)>,
    /// Another setting, of at most 64 characters; evidence tells it as it is. May be given again.
    #[arg(long, value_name = "NAME=TEXT", value_parser = named)]
    pub(crate) value: Vec<(String, String)>,
    /// Another text; evidence has its SHA-256 value. May be given again.
    #[arg(long, value_name = "NAME=TEXT", value_parser = named)]
    pub(crate) text: Vec<(String, String)>,
}

fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("write NAME=VALUE, neither of them empty".to_owned()),
    }
}

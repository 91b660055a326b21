//! `swtpm_ioctl`

use std::process::ExitCode;

fn main() -> ExitCode {
    swtpm_drop_in::ioctl::main()
}

//! `swtpm_setup`

use std::process::ExitCode;

fn main() -> ExitCode {
    swtpm_drop_in::setup::main()
}

//! `swtpm`

use std::process::ExitCode;

fn main() -> ExitCode {
    swtpm_drop_in::swtpm::main()
}

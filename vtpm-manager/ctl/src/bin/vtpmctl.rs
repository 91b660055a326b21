//! `vtpmctl`

use std::process::ExitCode;

fn main() -> ExitCode {
    vtpmctl::main()
}

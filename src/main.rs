//! The `quicraft` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    quicraft::cli::main()
}

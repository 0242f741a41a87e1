//! The `quicraft` command: node, client and certificate authority in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    quicraft::cli::main()
}

//! The `quicraft` command.

fn main() {}

//! The consensus core against the paper: golden scripts (`scripts/`), and seeded random runs.
//!
//! A script is commands, `---`, and the trace that follows; `script.rs` lists the commands. To write
//! traces anew, and then read every line of them: `UPDATE_GOLDENFILES=1 cargo test --test raft`.

mod checks;
mod cluster;
mod command;
mod dice;
mod forge;
mod links;
mod node;
mod random;
mod script;
mod trace;

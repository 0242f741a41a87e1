//! The whole node under a deterministic simulator: its turns, log, recovery, store, snapshots, sessions and wire format
//! are the real ones; disk, network and clock are made up, and go wrong in every way that a seed can think of.
//!
//! `cargo test --release --test sim -- --seeds N --events M [--first S] [--threads T] [--floor EVENTS-A-SECOND]`, or `--seed S` for one, told in
//! full, or `--wan` for what distance costs. What is simulated and what is not: `docs/testing.md`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cell;
mod clients;
mod clock;
mod coverage;
mod ending;
mod event;
mod history;
mod hostile;
mod linear;
mod members;
mod nemesis;
mod network;
mod options;
mod repair;
mod rng;
mod run;
mod seats;
mod talk;
mod transfer;
mod truth;
mod wan;
mod wire;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    match run::Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => run::all(&arguments),
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

//! What the store costs, beside others that do the same: `cargo bench --bench store`.
//!
//! - One million keys (16 B + 64 B) in this store, `crossbeam-skiplist` and `BTreeMap`, side by side: sorted load, random
//!   insert, scan, get, overwrite, and bytes per key.
//! - Restart: a snapshot loaded into a store, a node process from its start to its first served read, and Redis loading the
//!   same keys from its RDB file, if `redis-server` is there.
//! - A checkpoint beside 50,000 puts a second: latencies of puts with and without, reads, memory.
//! - Ten million overwrites of a thousand keys: memory.
//!
//! Arguments choose parts: `others`, `restart`, `checkpoint`, `overwrite`. `STORE_BENCH_KEYS` (1000000) and
//! `STORE_BENCH_MANY_KEYS` (10000000) change how much.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made fails by panicking")]

#[path = "../tests/harness/mod.rs"]
mod harness;

mod store {
    pub(crate) mod checkpoint;
    pub(crate) mod load;
    pub(crate) mod others;
    pub(crate) mod restart;
}

use store::{checkpoint, others, restart};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    if let [first, name, keys] = &arguments[..]
        && first == others::CHILD
    {
        return others::child(name, keys.parse().unwrap());
    }
    let setting = |name: &str, usual: usize| {
        std::env::var(name).map_or(usual, |value| value.parse().unwrap())
    };
    let chosen: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|name| !name.starts_with("--")).collect();
    let is_chosen = |part: &str| chosen.is_empty() || chosen.contains(&part);
    let keys = setting("STORE_BENCH_KEYS", 1_000_000);
    if is_chosen("others") {
        others::run(keys);
    }
    if is_chosen("restart") {
        restart::run(keys);
        restart::run(setting("STORE_BENCH_MANY_KEYS", 10 * keys));
    }
    if is_chosen("checkpoint") {
        checkpoint::beside_puts();
    }
    if is_chosen("overwrite") {
        checkpoint::overwrites();
    }
}

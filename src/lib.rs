//! Quicraft: a durable, replicated, ordered key-value store in one binary.

pub mod proto;
pub mod raft;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod store;

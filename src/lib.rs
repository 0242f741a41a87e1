//! Quicraft: a durable, replicated, ordered key-value store in one binary.

#[cfg(feature = "server")]
pub mod disk;
pub mod proto;
pub mod raft;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod wal;

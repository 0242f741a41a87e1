//! Quicraft: a durable, replicated, ordered key-value store in one binary.

#[cfg(feature = "server")]
pub mod cli;
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod disk;
#[cfg(feature = "server")]
pub mod node;
pub mod pki;
pub mod proto;
pub mod quic;
pub mod raft;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod wal;

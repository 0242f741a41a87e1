//! Quicraft: a durable, replicated, ordered key-value store in one binary.

pub mod pki;
pub mod proto;
pub mod quic;
pub mod raft;
#[cfg(feature = "server")]
pub mod store;

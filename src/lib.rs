//! Quicraft: a durable, replicated, ordered key-value store in one binary.
//!
//! The house, bottom up; each room knows only those above it in this list, and its own essay says the
//! rest:
//!
//! | room | what lives there |
//! |---|---|
//! | [`raft`] | the consensus core: pure, without clock, randomness, IO or payload bytes |
//! | [`disk`] | files, memory maps, syncs and locks, behind a trait that tests replace |
//! | [`proto`] | frames and messages between processes, and their limits |
//! | [`pki`] | certificate authority, identities, credentials |
//! | [`wal`] | the write-ahead log: batches, segments, recovery |
//! | [`store`] | the arena skiplist with versions, sessions, snapshots |
//! | [`quic`] | endpoints, TLS, frames over streams |
//! | [`node`] | core, log and store tied together in turns |
//! | [`server`] | peer links, client connections, the drive of the turns |
//! | [`client`] | the client library |
//! | [`config`], [`cli`] | node.toml, the command line |

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

//! The consensus core: pure, infallible, without clock, randomness, IO or payload bytes.

mod types;

pub use types::{EntryKind, HardState, Index, Membership, NodeId, Term};

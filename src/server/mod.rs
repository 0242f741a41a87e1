//! The node as a server: peer links, client sessions, push-back.

mod settings;

pub use settings::{LogIo, Member, Settings};

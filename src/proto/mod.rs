//! What travels between processes: frames, the messages in them, and their limits.
//!
//! - [`frame`]: `u32 len | u8 kind | u8 flags | u64 request_id | body`, little-endian; the same on every stream.
//! - [`command`]: what is replicated. A log entry is an owner and exactly the bytes of a client's `Write` frame.
//! - [`client`]: requests and replies between clients and nodes.
//! - [`peer`]: messages between nodes.
//! - [`limits`]: every number that bounds something on the wire.
//!
//! Decoders are total: any bytes give a value or a [`Malformed`], trailing bytes are an error, and nothing is allocated
//! from a length that was not checked. Enum variants and struct fields are only ever appended, never moved: postcard
//! is not self-describing. The version is agreed on in `Hello`.

pub mod client;
pub mod command;
pub mod frame;
pub mod limits;
pub mod peer;

use serde::{Deserialize, Serialize};

/// ALPN of the port between nodes.
pub const PEER_ALPN: &[u8] = b"quicraft-peer/1";
/// ALPN of the port for clients.
pub const CLIENT_ALPN: &[u8] = b"quicraft-client/1";
/// The version of frames and messages that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// A node ends a stream with this code if nothing of its answers was taken for long.
pub const STREAM_NOT_TAKEN: u32 = 5;
/// A node ends a stream with this code if a frame on it was not whole in time.
pub const STREAM_HALF_FRAME: u32 = 6;
/// A node ends a connection with this code if its principal, or all together, have too many.
pub const TOO_MANY_CONNECTIONS: u32 = 7;

/// Bytes from outside that are no message; names what they should have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// Appends the postcard encoding of `value` to `buffer`.
pub fn encode<T: Serialize>(value: &T, buffer: &mut Vec<u8>) {
    let taken = std::mem::take(buffer);
    *buffer = postcard::to_extend(value, taken)
        .expect("a Vec takes any length and our types have no failing Serialize");
}

/// Decodes one value that fills `bytes` to the last byte.
///
/// # Errors
/// [`Malformed`] if the bytes are no such value or go on after it.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &'static str) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(Malformed(what)),
    }
}

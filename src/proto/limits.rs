//! Every number that bounds something on the wire, with its reason.

/// Longest key. Keys are compared often and stored inline; longer ones belong in the value.
pub const KEY_BYTES_MAX: usize = 4096;
/// Longest value unless configured otherwise.
pub const VALUE_BYTES_MAX_DEFAULT: usize = 4 << 20;
/// Longest value that can be configured, and what the store accepts of an append whatever is configured (a replicated
/// result must not depend on one node's configuration).
pub const VALUE_BYTES_CEILING: usize = 64 << 20;
/// Room for everything in a frame besides one value.
pub const FRAME_OVERHEAD_BYTES_MAX: usize = 64 << 10;
/// Longest frame that any end accepts.
pub const FRAME_BYTES_MAX: usize = VALUE_BYTES_CEILING + FRAME_OVERHEAD_BYTES_MAX;
/// Requests and replies above this go on a stream of their own, so that small ones never wait behind them.
pub const LARGE_BYTES: usize = 64 << 10;
/// Rows in one page of a scan.
pub const SCAN_PAGE_ROWS_MAX: usize = 1000;
/// A page of a scan is sent once it is this long (one value above it makes one longer page).
pub const SCAN_PAGE_BYTES: usize = 32 << 10;
/// Writes of one session that may wait for their answer; the client holds back the next.
pub const SESSION_IN_FLIGHT_MAX: usize = 4096;
/// Open sessions of all principals; opening one more ends one of the principal that has most. They take 40 MiB at
/// most.
pub const SESSIONS_MAX: usize = 65_536;
/// Open sessions of one principal; opening one more ends its own that was used longest ago. A quarter of all: four times
/// the connections that a node takes from clients, and one principal leaves room for others.
pub const SESSIONS_PER_PRINCIPAL_MAX: usize = SESSIONS_MAX / 4;
/// Unanswered outcomes of all principals. Above, a principal gets [`Outcome::SessionFull`] that holds its share of them
/// (this number over the number of principals with sessions): whoever holds less goes on. They take 25 to 100 MiB.
///
/// [`Outcome::SessionFull`]: super::command::Outcome::SessionFull
pub const OUTCOMES_MAX: usize = 1 << 20;
/// Unanswered outcomes of one principal; above, its writes get `SessionFull`. A quarter of all, and enough for 1,024 of
/// its clients with 256 writes under way each.
pub const OUTCOMES_PER_PRINCIPAL_MAX: usize = OUTCOMES_MAX / 4;
/// A session that was not used for this long (log time) ends.
pub const SESSION_IDLE_MS_MAX: u64 = 3_600_000;
/// Longest name or address of a member.
pub const CONTACT_BYTES_MAX: usize = 255;
pub use crate::raft::MEMBERS_MAX;

const _: () = assert!(VALUE_BYTES_MAX_DEFAULT <= VALUE_BYTES_CEILING);
const _: () = assert!(SESSION_IN_FLIGHT_MAX <= OUTCOMES_PER_PRINCIPAL_MAX);
const _: () = assert!(KEY_BYTES_MAX < FRAME_OVERHEAD_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < u32::MAX as usize);

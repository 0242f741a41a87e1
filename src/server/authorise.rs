//! Who may do what: one function over what a request wants, and no second path around it.

use crate::pki::{Role, Who};
use crate::proto::client::Refusal;
use crate::proto::frame::FrameKind;

/// Whether this identity may send this kind of request.
///
/// # Errors
/// The refusal to answer with.
pub(super) fn authorise(who: &Who, kind: FrameKind) -> Result<(), Refusal> {
    let (writes, manages) = match kind {
        FrameKind::Write | FrameKind::WriteAnywhere => (true, false),
        FrameKind::Manage => (true, true),
        FrameKind::Hello
        | FrameKind::Get
        | FrameKind::Scan
        | FrameKind::Save
        | FrameKind::Status => (false, false),
        FrameKind::Reply
        | FrameKind::Raft
        | FrameKind::Snapshot
        | FrameKind::SnapshotChunk
        | FrameKind::SnapshotDone
        | FrameKind::PeerHello
        | FrameKind::Forward
        | FrameKind::Fetch
        | FrameKind::Fetched
        | FrameKind::SnapshotWanted
        | FrameKind::StateHash => {
            return Err(Refusal::Invalid { reason: "not a request".to_owned() });
        }
    };
    match who {
        Who::Client { role: Role::ReadOnly, .. } if writes => {
            Err(Refusal::Denied { role: "readonly".to_owned() })
        }
        Who::Client { role: Role::ReadWrite, .. } if manages => {
            Err(Refusal::Denied { role: "readwrite".to_owned() })
        }
        Who::Client { .. } | Who::Node { .. } => Ok(()),
    }
}

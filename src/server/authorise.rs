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
        | FrameKind::StateHash
        | FrameKind::AskMembers
        | FrameKind::Members => {
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
        // A node joins and looks how others are; what it does for clients, it does on the port of nodes.
        Who::Node { .. }
            if !matches!(kind, FrameKind::Hello | FrameKind::Status | FrameKind::Manage) =>
        {
            Err(Refusal::Denied { role: "node".to_owned() })
        }
        Who::Client { .. } | Who::Node { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_does_what_it_may_and_no_more() {
        let client = |role| Who::Client { name: "c".to_owned(), role };
        let node = Who::Node { name: "n1".to_owned() };
        use FrameKind::*;
        let all = [Hello, Status, Get, Scan, Save, Write, WriteAnywhere, Manage];
        let allowed = |who: &Who| all.map(|kind| authorise(who, kind).is_ok());
        let (yes, no) = (true, false);
        assert_eq!(allowed(&client(Role::Admin)), [yes; 8]);
        assert_eq!(allowed(&client(Role::ReadWrite)), [yes, yes, yes, yes, yes, yes, yes, no]);
        assert_eq!(allowed(&client(Role::ReadOnly)), [yes, yes, yes, yes, yes, no, no, no]);
        assert_eq!(allowed(&node), [yes, yes, no, no, no, no, no, yes]);
        for kind in [Raft, Snapshot, Forward, Fetch, StateHash, AskMembers, Members, PeerHello] {
            assert!(authorise(&client(Role::Admin), kind).is_err(), "{kind:?}");
        }
    }
}

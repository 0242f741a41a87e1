//! Who may act as a member, and until when: the standing of a sender, and the table of what each standing allows.
//!
//! **In and out:** [`Roster::standing`] judges an id with the data directory that acts under it, [`PeerMessage::is_allowed`]
//! says whether a message of that sender counts. The core asks both for each message, the transport for each connection
//! and for what the core never sees.
//!
//! **Always:** only the memberships of this node's own log, and one that was vouched for, give a standing. What comes
//! from anybody else changes nothing that lasts. `docs/members.md` shows the same table; a test compares the two.
//!
//! **Left out:** certificates, names and addresses, which the transport checks before.

use super::{DataId, Membership, NodeId};

/// What a sender is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A voter.
    Voter,
    /// A member without a vote, as far as this log goes: it may have become a voter in a later entry.
    Learner,
    /// A voter whose removal is not committed yet (thesis 4.2.2).
    Leaving,
    /// A voter of a cluster that is being founded: no data directory is bound to it yet.
    Founder,
    /// It took part once and never will again.
    Removed,
    /// An id that no membership here has given: a stranger, or a member that is newer than this log.
    Unknown,
    /// The id is a member's, and another data directory acts for that member.
    OtherData,
}

/// The memberships that a node knows.
#[derive(Clone, Copy, Debug)]
pub struct Roster<'a> {
    /// The latest in the log, which is in force.
    pub latest: &'a Membership,
    /// The latest that is committed.
    pub committed: &'a Membership,
    /// One that is newer than the log.
    pub vouched: Option<&'a Membership>,
}

impl<'a> Roster<'a> {
    /// What a sender is that says it is `id` and acts by this data directory.
    pub fn standing(&self, id: NodeId, data: DataId) -> Standing {
        let Some(membership) = self.membership_of(id) else {
            let all = [Some(self.latest), self.vouched];
            let is_removed = all.into_iter().flatten().any(|known| known.is_removed(id));
            return if is_removed { Standing::Removed } else { Standing::Unknown };
        };
        match membership.data.get(&id) {
            Some(acting) if *acting != data => Standing::OtherData,
            None if membership.is_founding() => Standing::Founder,
            // Announced, and nobody has joined in its name.
            None => Standing::Unknown,
            Some(_) if membership.voters.contains(&id) => Standing::Voter,
            Some(_) if membership.learners.contains_key(&id) => Standing::Learner,
            Some(_) => Standing::Leaving,
        }
    }

    /// The membership that tells of a member: this log's, or else one that is vouched for.
    pub fn membership_of(&self, id: NodeId) -> Option<&'a Membership> {
        let all = [Some(self.latest), Some(self.committed), self.vouched];
        all.into_iter().flatten().find(|known| known.is_member(id))
    }
}

/// The kinds of messages between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// Asks for a vote or a pre-vote.
    RequestVote,
    /// Answers that.
    VoteReply,
    /// `AppendEntries` and heartbeats: the sender leads.
    AppendEntries,
    /// The answers to those.
    Appended,
    /// Run at once.
    TimeoutNow,
    /// Asks for an index to read at.
    ReadIndex,
    /// Answers that.
    ReadIndexReply,
    /// Brings a snapshot.
    Snapshot,
    /// Hands a client's write on.
    Forward,
    /// Asks for entries that a damaged log lacks.
    Fetch,
    /// Tells the state of the sender's store.
    StateHash,
    /// Asks for the committed members.
    AskMembers,
}

impl PeerMessage {
    /// All kinds, in the order of the table.
    pub const ALL: [PeerMessage; 12] = [
        PeerMessage::RequestVote,
        PeerMessage::VoteReply,
        PeerMessage::AppendEntries,
        PeerMessage::Appended,
        PeerMessage::TimeoutNow,
        PeerMessage::ReadIndex,
        PeerMessage::ReadIndexReply,
        PeerMessage::Snapshot,
        PeerMessage::Forward,
        PeerMessage::Fetch,
        PeerMessage::StateHash,
        PeerMessage::AskMembers,
    ];

    /// Whether a message of this kind counts that comes from a sender of this standing; `leads`: it is the leader of this
    /// node's term.
    pub fn is_allowed(self, standing: Standing, leads: bool) -> bool {
        use PeerMessage::*;
        let has_seat = match standing {
            Standing::Voter | Standing::Learner | Standing::Leaving => true,
            // All founders have voted for it: it may bring a snapshot to one that was away since.
            Standing::Founder if leads => true,
            Standing::Founder => matches!(
                self,
                RequestVote | VoteReply | AppendEntries | Appended | Fetch | AskMembers
            ),
            Standing::Unknown => matches!(self, AskMembers),
            Standing::Removed | Standing::OtherData => false,
        };
        has_seat && (leads || !matches!(self, TimeoutNow | ReadIndexReply | Snapshot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::*;

    /// The columns of the table in the documents, after the first.
    const COLUMNS: [(&str, Standing, bool); 8] = [
        ("leader of this term", Voter, true),
        ("voter", Voter, false),
        ("learner", Learner, false),
        ("leaving", Leaving, false),
        ("founder", Founder, false),
        ("removed", Removed, false),
        ("unknown", Unknown, false),
        ("other data", OtherData, false),
    ];

    #[test]
    fn the_documents_show_this_table() {
        let text = include_str!("../../docs/members.md");
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let rows: Vec<Vec<String>> =
            text.lines().filter(|l| l.starts_with('|')).map(cells).collect();
        let header = rows.iter().position(|row| row[0] == "message").expect("the table is there");
        let names: Vec<&str> = COLUMNS.iter().map(|column| column.0).collect();
        assert_eq!(rows[header][1..], names);
        for (row, kind) in rows[header + 2..].iter().zip(PeerMessage::ALL) {
            assert_eq!(row[0], format!("`{kind:?}`"));
            for (cell, (name, standing, leads)) in row[1..].iter().zip(COLUMNS) {
                let is_allowed = kind.is_allowed(standing, leads);
                assert_eq!(cell == "yes", is_allowed, "{kind:?} of a sender that is {name}");
                assert!(["yes", "no"].contains(&cell.as_str()), "{kind:?}, {name}: {cell}");
            }
        }
        assert_eq!(rows[header + 2..].iter().take_while(|row| row[0].starts_with('`')).count(), 12);
    }

    #[test]
    fn a_founder_that_leads_is_a_leader_like_any_other() {
        for kind in PeerMessage::ALL {
            assert_eq!(kind.is_allowed(Founder, true), kind.is_allowed(Voter, true), "{kind:?}");
            assert!(!kind.is_allowed(OtherData, true) && !kind.is_allowed(Removed, true));
        }
    }

    #[test]
    fn a_seat_is_an_id_with_its_data_directory() {
        let mut latest = Membership::of([1, 2, 5].map(NodeId));
        latest.outgoing = [1, 2, 3].map(NodeId).into();
        latest.data.insert(NodeId(3), DataId(3));
        latest.learners.insert(NodeId(4), super::super::Learner::default());
        latest.last_id = 6;
        let mut committed = Membership::of([1, 2, 3].map(NodeId));
        committed.last_id = 4;
        let vouched = Membership { last_id: 9, ..Membership::of([1, 2, 9].map(NodeId)) };
        let judge = |vouched, id, data| {
            let roster = Roster { latest: &latest, committed: &committed, vouched };
            roster.standing(NodeId(id), DataId(data))
        };
        assert_eq!(judge(None, 1, 1), Voter);
        assert_eq!(judge(None, 1, 7), OtherData);
        assert_eq!(judge(None, 3, 3), Leaving);
        assert_eq!(judge(None, 4, 4), Unknown, "announced, and nobody joined");
        assert_eq!(judge(None, 6, 6), Removed);
        assert_eq!(judge(None, 0, 0), Removed, "zero is no node");
        assert_eq!(judge(None, 9, 9), Unknown);
        assert_eq!(judge(Some(&vouched), 9, 9), Voter);
        assert_eq!(judge(Some(&vouched), 9, 1), OtherData);
        assert_eq!(judge(Some(&vouched), 7, 7), Removed, "so the newer members say");
        latest.learners.clear();
        assert_eq!(
            Roster { latest: &latest, committed: &latest, vouched: None }
                .standing(NodeId(4), DataId(4)),
            Removed
        );
    }

    #[test]
    fn founders_have_no_directories_yet() {
        let founding = Membership { data: [].into(), ..Membership::of([1, 2].map(NodeId)) };
        let roster = Roster { latest: &founding, committed: &founding, vouched: None };
        assert_eq!(roster.standing(NodeId(1), DataId(77)), Founder);
        assert_eq!(roster.standing(NodeId(3), DataId(77)), Unknown);
    }
}

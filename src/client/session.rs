//! The client's half of a session: numbers for writes, so that none applies twice (thesis 6.3).

use std::collections::BTreeSet;

use crate::proto::command::SessionId;

/// An open session; replaced as a whole when the cluster has forgotten it.
#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    next_seq: u64,
    unanswered: BTreeSet<u64>,
}

/// One write's place in its session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) session: SessionId,
    pub(super) seq: u64,
    pub(super) answered_below: u64,
}

impl Session {
    pub(super) fn new(id: SessionId) -> Session {
        Session { id, next_seq: 1, unanswered: BTreeSet::new() }
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    /// A number for a new write.
    pub(super) fn begin(&mut self) -> Slot {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.unanswered.insert(seq);
        let answered_below = self.unanswered.first().copied().unwrap_or(seq);
        Slot { session: self.id, seq, answered_below }
    }

    /// The write's answer came, or its caller has given up on it: it is not sent again.
    pub(super) fn end(&mut self, slot: Slot) {
        if slot.session == self.id {
            self.unanswered.remove(&slot.seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_may_forget_what_is_answered_and_nothing_else() {
        let mut session = Session::new(SessionId(9));
        let (first, second) = (session.begin(), session.begin());
        assert_eq!((first.seq, first.answered_below), (1, 1));
        assert_eq!((second.seq, second.answered_below), (2, 1));
        session.end(second);
        assert_eq!(session.begin().answered_below, 1);
        session.end(first);
        assert_eq!(session.begin().answered_below, 3);
    }
}

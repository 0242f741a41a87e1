//! What the whole cluster has decided, seen from outside, and what every node must agree with at each step. Each
//! committed entry is kept as it was first seen; a model of its own says what it means.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use quicraft::node::Node;
use quicraft::proto;
use quicraft::proto::command::{Command, Op, Principal, SessionId, decode_entry};
use quicraft::raft::{EntryKind, Index, Membership, NodeId, RoleKind, Term};

use crate::clock::{LogClock, SeenClock};
use crate::coverage::Coverage;

/// What is broken, in words.
pub(crate) type Broken = String;

#[derive(Default)]
pub(crate) struct Truth {
    /// Term of each committed entry, by index from 1.
    terms: Vec<Term>,
    /// The term of the node that was first seen to have each committed: it was committed in that term or before.
    committed_in: Vec<Term>,
    leaders: BTreeMap<Term, usize>,
    /// The members from each committed change on.
    memberships: BTreeMap<u64, Membership>,
    /// Hash of the store's state at each index at which some node was seen.
    states: HashMap<u64, u64>,
    pub(crate) model: Model,
    pub(crate) clock: LogClock,
    /// The present, in the order of requests and answers.
    pub(crate) moment: u64,
}

/// What the simulator remembers of a node between its turns; begins anew with each start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    commit: u64,
    applied: u64,
    role: Option<(Term, RoleKind)>,
    clock: SeenClock,
}

impl Truth {
    /// How many entries are committed.
    pub(crate) fn committed(&self) -> u64 {
        self.terms.len() as u64
    }

    /// The members now.
    pub(crate) fn membership(&self) -> Option<&Membership> {
        self.memberships.last_key_value().map(|(_, membership)| membership)
    }

    /// Whether the founders' directories are written down.
    pub(crate) fn is_founded(&self) -> bool {
        self.membership().is_some_and(|membership| !membership.is_founding())
    }

    /// Whether these are a quorum of those that decided on an entry: of the members at its place in the log, or of those
    /// that were decided on behind it before it was committed.
    pub(crate) fn has_quorum(&self, index: u64, holders: &BTreeSet<NodeId>) -> bool {
        let before = self.memberships.range(..=index).next_back();
        let after = self.memberships.range(index + 1..);
        before.into_iter().chain(after).any(|(_, membership)| membership.has_quorum(holders))
    }

    /// Looks at a node after its turn.
    pub(crate) fn check(
        &mut self,
        at: usize,
        node: &Node,
        seen: &mut Seen,
        coverage: &mut Coverage,
    ) -> Result<(), Broken> {
        let core = node.core();
        let hard = core.hard_state();
        let commit = hard.commit_index.0;
        if commit < seen.commit {
            return Err(format!("n{}: commit went back from {} to {commit}", at + 1, seen.commit));
        }
        self.clock.look(at, node, &mut seen.clock)?;
        for index in seen.commit + 1..=commit {
            self.check_entry(at, node, index, coverage)?;
        }
        seen.commit = commit;
        let members = &core.membership_at(hard.commit_index).membership;
        let known = self.memberships.range(..=commit).next_back();
        if known.is_some_and(|(_, known)| known != members) {
            return Err(format!("n{}: goes by {members:?} at {commit}, not {known:?}", at + 1));
        }
        let (applied, hash) = node.applied();
        if applied.0 < seen.applied || applied.0 > commit {
            let was = seen.applied;
            return Err(format!("n{}: applied {applied} after {was}, commit {commit}", at + 1));
        }
        if applied.0 > seen.applied {
            seen.applied = applied.0;
            match self.states.insert(applied.0, hash) {
                Some(other) if other != hash => {
                    return Err(format!("n{}: another state at index {applied}", at + 1));
                }
                Some(_) => coverage.count("check: state compared with another node's"),
                None => {}
            }
        }
        let role = (hard.term, core.role());
        if seen.role != Some(role) {
            seen.role = Some(role);
            if role.1 == RoleKind::Leader {
                self.check_leader(at, node, coverage)?;
            }
        }
        Ok(())
    }

    /// Election safety and leader completeness (Raft 5.4.3).
    fn check_leader(
        &mut self,
        at: usize,
        node: &Node,
        coverage: &mut Coverage,
    ) -> Result<(), Broken> {
        let core = node.core();
        let term = core.hard_state().term;
        coverage.count("role: leader");
        let other = *self.leaders.entry(term).or_insert(at);
        if other != at {
            return Err(format!("n{} and n{} both lead in term {term}", at + 1, other + 1));
        }
        // A leader that was elected late, while another one led in a later term already, need not have what that one
        // has committed.
        let before = self.committed_in.iter().rposition(|committed_in| *committed_in < term);
        let last = Index(before.map_or(0, |place| place as u64 + 1));
        coverage.count("check: leader holds all that is committed");
        if core.last_index() < last {
            let has = core.last_index();
            return Err(format!("n{} leads and has entries up to {has} of {last}", at + 1));
        }
        match core.term_at(last) {
            Some(term) if last.0 > 0 && term != self.terms[last.0 as usize - 1] => {
                Err(format!("n{} leads with another entry at {last}", at + 1))
            }
            _ => Ok(()),
        }
    }

    fn check_entry(
        &mut self,
        at: usize,
        node: &Node,
        index: u64,
        coverage: &mut Coverage,
    ) -> Result<(), Broken> {
        let Some(term) = node.core().term_at(Index(index)) else { return Ok(()) };
        if let Some(&known) = self.terms.get(index as usize - 1) {
            coverage.count("check: entry compared with another node's");
            if known != term {
                let n = at + 1;
                return Err(format!("n{n} committed term {term} at {index}, another {known}"));
            }
            return Ok(());
        }
        if index != self.committed() + 1 {
            return Err(format!("n{} commits {index}, known are {}", at + 1, self.committed()));
        }
        let entry = match node.entry(Index(index)) {
            Ok(entry) => entry,
            // It will be seen at another node, or this one's damage stops it.
            Err(error) => return Err(format!("n{}: cannot read entry {index}: {error}", at + 1)),
        };
        self.terms.push(term);
        self.committed_in.push(node.core().hard_state().term);
        if entry.kind == EntryKind::Membership {
            let membership = proto::decode(&entry.body, "membership")
                .map_err(|error| format!("entry {index} holds a {error}"))?;
            self.memberships.insert(index, membership);
        }
        if entry.kind == EntryKind::Command {
            let (owner, command) = decode_entry(&entry.body)
                .map_err(|error| format!("entry {index} holds a {error}"))?;
            if let Command::Clock { now_ms } = command {
                self.clock.committed((index, term), now_ms, coverage)?;
            }
            self.model.apply((index, self.moment), owner, &command, coverage);
        }
        Ok(())
    }

    /// Whether a node's whole content is what the model says.
    pub(crate) fn check_content(&self, at: usize, node: &Node) -> Result<(), Broken> {
        let (applied, _) = node.applied();
        let reader = node.reader();
        let rows: Vec<_> = reader
            .scan(quicraft::store::Range::ALL, applied)
            .map(|row| (row.key.to_vec(), row.value.to_vec()))
            .collect();
        let expected = self.model.rows_at(applied.0);
        if rows == expected {
            return Ok(());
        }
        Err(format!("n{}: at {applied} it holds {rows:?} instead of {expected:?}", at + 1))
    }
}

/// A revision and what the key held from then on.
type Version = (u64, Option<Vec<u8>>);

/// The store as its documentation says, written again with nothing shared: keys with all their versions, and which
/// write of which client became which revision.
#[derive(Default)]
pub(crate) struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    sessions: BTreeMap<u64, BTreeMap<u64, (u64, u64)>>,
    floors: BTreeMap<u64, u64>,
    owners: BTreeMap<u64, Principal>,
}

impl Model {
    fn apply(
        &mut self,
        (index, moment): (u64, u64),
        owner: Principal,
        command: &Command<'_>,
        coverage: &mut Coverage,
    ) {
        let is_foreign = |session: &SessionId| {
            self.sessions.contains_key(&session.0) && self.owners.get(&session.0) != Some(&owner)
        };
        match command {
            Command::Clock { .. } | Command::Compact { .. } => {}
            Command::CloseSession(session) if is_foreign(session) => {
                coverage.count("session: another's was not closed");
            }
            Command::Write { session, .. } if is_foreign(session) => {
                coverage.count("session: another's number was not used");
            }
            Command::OpenSession => {
                self.owners.insert(index, owner);
                self.sessions.insert(index, BTreeMap::new());
            }
            Command::CloseSession(session) => {
                self.sessions.remove(&session.0);
            }
            Command::Write { session, seq, answered_below, op } => {
                let Some(applied) = self.sessions.get_mut(&session.0) else { return };
                let floor = self.floors.entry(session.0).or_insert(1);
                *floor = (*floor).max(*answered_below);
                if applied.contains_key(seq) {
                    coverage.count("session: write sent again was applied once");
                    return;
                }
                if *seq < *floor {
                    return;
                }
                applied.insert(*seq, (index, moment));
                self.write(index, op);
            }
        }
    }

    fn write(&mut self, index: u64, op: &Op<'_>) {
        let versions = self.keys.entry(op.key().to_vec()).or_default();
        let before = versions.last().and_then(|(_, value)| value.clone());
        let after = match op {
            Op::Put { value, .. } => Some(value.to_vec()),
            Op::Append { value, .. } => Some([&before.unwrap_or_default()[..], value].concat()),
            Op::Delete { .. } => None,
        };
        versions.push((index, after));
    }

    /// The revision of a write and the moment when it was committed, if it happened.
    pub(crate) fn written(&self, session: u64, seq: u64) -> Option<(u64, u64)> {
        self.sessions.get(&session)?.get(&seq).copied()
    }

    /// What a key held at a revision.
    pub(crate) fn value_at(&self, key: &[u8], revision: u64) -> Option<&[u8]> {
        let versions = self.keys.get(key)?;
        let version = versions.iter().rev().find(|(index, _)| *index <= revision)?;
        version.1.as_deref()
    }

    /// All keys with their values at a revision, in order.
    pub(crate) fn rows_at(&self, revision: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
        let row = |key: &Vec<u8>| Some((key.clone(), self.value_at(key, revision)?.to_vec()));
        self.keys.keys().filter_map(row).collect()
    }

    /// Revisions at which a key changed.
    pub(crate) fn changes(&self, key: &[u8]) -> impl Iterator<Item = u64> {
        self.keys.get(key).into_iter().flatten().map(|(index, _)| *index)
    }
}

//! A node whose log is damaged, until it is whole again.
//!
//! **What it is for.** It finds out what is lacking, says whom to ask for it ([`Repair::ask`]), takes the answers
//! ([`Repair::answered`]), and in the end there is an [`Outcome`]: the log can be mended ([`Repair::mend`]), or nobody
//! has what it lacks.
//!
//! **What always holds.** Such a node takes no part: it does not vote, not even by what its log claims to have, it
//! confirms nothing, and it serves no reads. It only answers those that repair their own logs ([`Repair::fetch`]), with
//! what is certain in its own. So a vote or confirmation that it has forgotten can do no harm. What it cannot name, it
//! does not guess: then a new member takes its place.

use std::collections::{BTreeMap, BTreeSet};

use super::open::{covered, snapshot_membership};
use super::{Book, Error, OpenOptions, Opening, Peer, open, snapshots_dir};
use crate::proto::PROTOCOL_VERSION;
use crate::proto::client::{Doors, HelloReply, MemberInfo, MemberKind, RoleName, Status};
use crate::proto::peer::{FETCH_BYTES_MAX, Want};
use crate::raft::{Contact, Founding, Membership, NodeId};
use crate::wal::{Batch, Damaged};

/// A node in repair; nothing on its disk was changed.
pub struct Repair {
    options: OpenOptions,
    /// `None` if the log is whole, and what it begins after is lost.
    log: Option<Damaged>,
    /// Why it cannot be mended, if that is known already.
    lost: Option<String>,
    /// Who takes part, as far as the newest snapshot tells it, or else the configuration.
    membership: Membership,
    /// How the members are reached.
    contacts: BTreeMap<NodeId, Contact>,
    /// Who answered that it does not have what is wanted now.
    lacking: BTreeSet<NodeId>,
    /// Who was asked for it, with or without an answer.
    tried: BTreeSet<NodeId>,
    /// Who was asked last.
    asked: NodeId,
    fetched: u64,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something is still wanted.
    Wanting,
    /// Everything is there.
    Mendable,
    /// Why nobody can say what was lost: this node's place is for a new member.
    Lost(String),
}

/// Decides what becomes of a damaged log.
///
/// # Errors
/// [`Error::Damaged`] if there is nobody to mend it from; what the disk says.
pub(super) fn begin(
    mut log: Damaged,
    options: OpenOptions,
    mut notes: Vec<String>,
) -> Result<Opening, Error> {
    let found = snapshots_dir(&options.disk, &options.dir).load_newest(options.store)?;
    log.forget(covered(&found));
    let membership = match &found.loaded {
        Some((_, meta)) => snapshot_membership(&options, meta)?,
        None => Membership::default(),
    };
    let is_mendable = log.is_mendable();
    if is_mendable && log.wanted().is_empty() {
        notes.extend(log.damages().iter().map(|damage| {
            format!("{damage}; nothing that counts was lost, the log is written anew")
        }));
        drop(found);
        return mend(log, options, notes);
    }
    if !options.has_others {
        let damage = log.damages()[0].clone();
        return Err(Error::Damaged { damage, dir: options.dir });
    }
    let lost =
        (!is_mendable).then(|| format!("{}; what else was lost, nobody can say", log.damages()[0]));
    Ok(Opening::Repair(Box::new(Repair::new(options, Some(log), lost, &membership))))
}

/// Writes the log anew, and opens the node.
fn mend(log: Damaged, options: OpenOptions, notes: Vec<String>) -> Result<Opening, Error> {
    log.mend()?;
    let mut opening = open(options)?;
    if let Opening::Ready(opened) = &mut opening {
        opened.notes.splice(0..0, notes);
    }
    Ok(opening)
}

impl Repair {
    fn new(
        options: OpenOptions,
        log: Option<Damaged>,
        lost: Option<String>,
        membership: &Membership,
    ) -> Repair {
        let membership = match membership.members().is_empty() {
            // Nobody's data directory is known here: only who they are.
            true => Membership::founded_with(Founding::of(options.founders.clone())),
            false => membership.clone(),
        };
        let contact = |id: NodeId| {
            let configured = options.about.configured.get(membership.name_of(id)?);
            Some((id, configured.or_else(|| membership.contacts.get(&id))?.clone()))
        };
        let contacts = membership.members().into_iter().filter_map(contact).collect();
        let asked = options.raft.id;
        Repair {
            options,
            log,
            lost,
            membership,
            contacts,
            lacking: BTreeSet::new(),
            tried: BTreeSet::new(),
            asked,
            fetched: 0,
        }
    }

    /// For a node whose log is whole and begins after what its snapshots cover.
    pub(super) fn of_lost(options: OpenOptions, why: String) -> Result<Opening, Error> {
        let repair = Repair::new(options, None, Some(why), &Membership::default());
        Ok(Opening::Repair(Box::new(repair)))
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.options.raft.id
    }

    /// The other nodes that are known here.
    pub fn others(&self) -> impl Iterator<Item = (NodeId, &Contact)> {
        let own = self.id();
        self.contacts.iter().map(|(&id, contact)| (id, contact)).filter(move |&(id, _)| id != own)
    }

    /// The same, as they are dialled.
    pub fn peers(&self) -> BTreeMap<NodeId, Peer> {
        let peer = |(id, contact): (NodeId, &Contact)| {
            let data = self.membership.data.get(&id).copied();
            let (name, addresses) = (contact.name.clone(), vec![contact.peer_address.clone()]);
            (id, Peer { name, data, addresses })
        };
        self.others().map(peer).collect()
    }

    /// Who may speak to it.
    pub fn book(&self) -> Book {
        Book::of_members(self.id(), self.options.identity.data, &self.membership)
    }

    /// What is wrong, for people.
    pub fn damages(&self) -> Vec<String> {
        let damages = self.log.iter().flat_map(Damaged::damages);
        self.lost.clone().into_iter().chain(damages.map(ToString::to_string)).collect()
    }

    /// The others do not take part in it: a new member must take this node's place.
    pub fn lose(&mut self, why: String) {
        self.lost.get_or_insert(why);
    }

    /// How many entries are still wanted.
    pub fn wanted_entries(&self) -> u64 {
        let gaps = self.log.iter().flat_map(Damaged::wanted);
        gaps.map(|gap| gap.last.0 - gap.first.0 + 1).sum()
    }

    /// Whether a majority does not have what is wanted, and nobody is left to be asked: those that do not answer may be
    /// gone for ever. A majority that goes on without this node has all that was committed.
    fn is_given_up(&self) -> bool {
        let (others, members) = (self.others().count(), self.others().count() + 1);
        let majority = members / 2 + 1;
        self.lacking.len() >= majority.min(others)
            && self.others().all(|(id, _)| self.tried.contains(&id))
    }

    /// How it stands.
    pub fn outcome(&self) -> Outcome {
        if let Some(why) = &self.lost {
            return Outcome::Lost(why.clone());
        }
        match self.log.as_ref().and_then(|log| log.wanted().first()) {
            None => Outcome::Mendable,
            Some(gap) if self.is_given_up() => {
                let all = format!("entries {} to {}", gap.first, gap.last);
                Outcome::Lost(format!(
                    "other nodes do not have {all} any more, which are lost here"
                ))
            }
            Some(_) => Outcome::Wanting,
        }
    }

    /// Whom to ask next, and for what.
    pub fn ask(&mut self) -> Option<(NodeId, Want)> {
        if self.outcome() != Outcome::Wanting {
            return None;
        }
        let gap = *self.log.as_ref()?.wanted().first()?;
        if self.asked != self.id() {
            self.tried.insert(self.asked);
        }
        let others = || self.others().map(|(id, _)| id).filter(|id| !self.lacking.contains(id));
        let next = others().find(|id| *id > self.asked).or_else(|| others().next())?;
        self.asked = next;
        Some((next, Want { first: gap.first, last: gap.last, anchor: gap.anchor }))
    }

    /// Takes in what a node answered: entries, or that it does not have them.
    pub fn answered(&mut self, from: NodeId, want: Want, answer: Option<Batch>) {
        let Some(log) = &mut self.log else { return };
        if log.wanted().first().is_none_or(|gap| gap.first != want.first) {
            // Answered by another node meanwhile.
            return;
        }
        let count = answer.as_ref().map_or(0, |batch| batch.len() as u64);
        if answer.is_some_and(|batch| log.supply(batch).is_ok()) {
            self.fetched += count;
            self.lacking.clear();
            self.tried.clear();
        } else {
            self.lacking.insert(from);
            self.tried.insert(from);
        }
    }

    /// What this node's log surely has of what another one lacks.
    pub fn fetch(&self, want: &Want) -> Option<Batch> {
        self.log.as_ref()?.read(want.anchor, (want.first, want.last), FETCH_BYTES_MAX)
    }

    /// Writes the log anew, and opens the node; to be called when the outcome is [`Outcome::Mendable`].
    ///
    /// # Errors
    /// [`crate::wal::Error::NoSpace`] and what else the disk says: the damaged log is as it was then.
    ///
    /// # Panics
    /// If something is still wanted.
    pub fn mend(self) -> Result<Opening, Error> {
        let log = self.log.expect("what is mendable has a log");
        let mut notes: Vec<String> = log.damages().iter().map(ToString::to_string).collect();
        notes.push(format!(
            "the log was mended: {} entries came from other nodes; the damaged files are kept beside it as *.damaged",
            self.fetched
        ));
        mend(log, self.options, notes)
    }

    /// For whoever asks how the node is.
    pub fn status(&self) -> Status {
        Status {
            node_id: self.id().0,
            name: self.options.about.name.clone(),
            cluster: self.options.about.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: RoleName::Repairing,
            term: 0,
            leader: None,
            commit_index: 0,
            applied_index: 0,
            last_log_index: 0,
            durable_index: 0,
            snapshot_index: 0,
            log_bytes: 0,
            keys: 0,
            store_bytes: 0,
            oldest_revision: 0,
            state_hash: 0,
            peers: Vec::new(),
            doors: Doors::default(),
            certificates: Vec::new(),
        }
    }

    /// What clients are told of the cluster: whom to ask instead.
    pub fn hello(&self) -> HelloReply {
        let member = |(id, contact): (&NodeId, &Contact)| {
            let Contact { name, peer_address, client_address } = contact.clone();
            MemberInfo { id: id.0, name, client_address, peer_address, kind: MemberKind::Voter }
        };
        HelloReply {
            version: PROTOCOL_VERSION,
            node_id: self.id().0,
            leader: None,
            members: self.contacts.iter().map(member).collect(),
            value_bytes_max: self.options.about.value_bytes_max as u64,
        }
    }
}

//! Memory for the next image.
//!
//! **For:** the checkpoint thread, while so much is written that one checkpoint follows the other: the memory of the
//! arena that the store has left takes the next image, and is not given back and asked for again. Fresh memory is what
//! most of a compaction costs where a hypervisor must find it.
//!
//! **Always:** no more is kept than the next image will take, and only between checkpoints that follow each other
//! within [`SPARE_KEPT`].

use std::time::{Duration, Instant};

use super::CheckpointJob;
use crate::store::{Compacted, Unread};

/// The memory of an arena that the store has left, kept for the next image while checkpoints follow each other closely.
#[derive(Default)]
pub(super) struct Spare {
    memory: Option<Unread>,
    /// When the last image was made, and what it takes.
    last: Option<(Instant, u64)>,
    /// Whether another image will be made soon: this one is for growth, and was begun soon after the one before it.
    is_wanted: bool,
}

impl Spare {
    /// Whether another image will be made soon.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Nothing came for so long that none is likely.
    pub(super) fn give_back(&mut self) {
        *self = Spare::default();
    }

    /// A checkpoint begins: it may have what is kept.
    pub(super) fn lend(&mut self, job: &mut CheckpointJob) {
        self.is_wanted =
            job.is_for_growth && self.last.is_some_and(|(at, _)| at.elapsed() < SPARE_KEPT);
        self.memory.take().into_iter().for_each(|memory| job.checkpoint.reuse(memory));
    }

    /// Its image is made, unless that failed.
    pub(super) fn on_image(&mut self, image: Option<&Compacted>) {
        self.last = image.map(|image| (Instant::now(), image.bytes()));
    }

    /// Its image has grown.
    pub(super) fn on_caught_up(&mut self, image: &Compacted) {
        self.last = self.last.map(|(at, _)| (at, image.bytes()));
    }

    /// Keeps as much of it as the next image will take, if one will be made soon.
    pub(super) fn on_unread(&mut self, mut unread: Vec<Unread>) {
        let last = self.last.filter(|_| self.is_wanted);
        if let (Some((_, bytes)), Some(mut memory)) = (last, unread.pop()) {
            memory.shrink(bytes);
            self.memory = Some(memory);
        }
    }
}

/// Memory is kept for the next image if that is likely to be made within this time.
pub(super) const SPARE_KEPT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::MemDisk;
    use crate::node::SnapshotAt;
    use crate::node::run;
    use crate::proto::command::{Command, Principal};
    use crate::raft::{Membership, Term};
    use crate::store::snapshot::Dir;
    use crate::store::{Adoption, Options, Pace, Store};

    /// A checkpoint of all of it, and the swap to its image.
    fn checkpoint(store: &mut Store, spare: &mut Spare, dir: &Dir, is_for_growth: bool) {
        let mut next = store.revision().next();
        let session = match store.apply(next, Principal(1), &Command::OpenSession) {
            crate::proto::command::Outcome::SessionOpened(session) => session,
            other => panic!("{other:?}"),
        };
        for seq in 1..=1000 {
            next = next.next();
            let op = crate::proto::command::Op::Put { key: b"key", value: &[7; 300] };
            let command = Command::Write { session, seq, answered_below: seq, op };
            store.apply(next, Principal(1), &command);
        }
        let compact = Command::Compact { below: next.0 };
        store.apply(next.next(), Principal::CLUSTER, &compact);
        let at = SnapshotAt { index: store.revision(), term: Term(1) };
        let (checkpoint, membership) = (store.checkpoint(), Membership::default());
        let mut job = CheckpointJob { checkpoint, at, membership, is_for_growth };
        spare.lend(&mut job);
        let (compacted, image) =
            run::compact(job, [1; 16], &Pace::default()).expect("there is room");
        spare.on_image(Some(&compacted));
        assert!(matches!(store.adopt(compacted), Adoption::Adopted));
        spare.on_unread(store.take_unread());
        run::write(image, dir, &Pace::default(), &mut || ()).expect("there is room");
    }

    #[test]
    fn memory_is_kept_between_checkpoints_that_growth_makes_due_soon_after_each_other() {
        let options = Options { arena_bytes: 4 << 20, hash_seed: 1 };
        let mut store = Store::new(options).expect("there is memory");
        let dir = Dir::new(Arc::new(MemDisk::new()), "/snapshots".into());
        dir.create().expect("there is room");
        let mut spare = Spare::default();
        let kept = [(true, false), (true, true), (true, true), (false, false), (true, true)];
        for (round, (is_for_growth, is_kept)) in kept.into_iter().enumerate() {
            checkpoint(&mut store, &mut spare, &dir, is_for_growth);
            assert_eq!(spare.memory.is_some(), is_kept, "round {round}");
            assert_eq!(spare.is_wanted(), is_kept, "round {round}");
        }
        spare.last = spare.last.and_then(|(at, bytes)| Some((at.checked_sub(SPARE_KEPT)?, bytes)));
        checkpoint(&mut store, &mut spare, &dir, true);
        assert!(spare.memory.is_none(), "the one before was long ago");
        checkpoint(&mut store, &mut spare, &dir, true);
        spare.give_back();
        assert!(spare.memory.is_none());
    }
}

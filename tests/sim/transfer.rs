//! Checkpoints, and snapshots on their way from node to node.

use quicraft::node::{self, ReceivedSnapshot, Sent, SnapshotAt};
use quicraft::proto;
use quicraft::proto::peer::StateHash;
use quicraft::raft::{NodeId, Term};
use quicraft::store::{self, Pace, Store};

use crate::cell::{CLUSTER, STORE};
use crate::event::Event;
use crate::world::World;

impl World {
    /// The image of a checkpoint is made; its file takes longer, and the store may go on in it meanwhile.
    pub(crate) fn compacted(&mut self, node: usize, life: u64) {
        let Some(running) = self.cells[node].alive(life) else { return };
        let Some(mut job) = running.checkpoint.take() else { return };
        running.spare.take().into_iter().for_each(|spare| job.checkpoint.reuse(spare));
        let (compacted, image) = node::run::compact(job, CLUSTER, &Pace::default()).unzip();
        running.input.images.push(compacted);
        running.image = image;
        let wait = self.rng.spread(20_000);
        self.schedule(wait, Event::Checkpointed { node, life });
        self.wake(node, 5);
    }

    pub(crate) fn checkpointed(&mut self, node: usize, life: u64) {
        let cell = &mut self.cells[node];
        let dir = cell.snapshots();
        let Some(running) = cell.alive(life) else { return };
        let image = running.image.take();
        let written =
            image.and_then(|image| node::run::write(image, &dir, &Pace::default(), &mut || ()));
        if written.is_some() {
            self.coverage.count("snapshot: written");
        }
        let running = self.cells[node].alive(life).expect("it ran a moment ago");
        running.input.checkpoints.push(written);
        self.wake(node, 5);
    }

    /// What a node says of its store reaches the others at their next turn, if they run.
    pub(crate) fn tell_state_hash(&mut self, from: usize, hash: StateHash) {
        if self.cells[from].is_odd {
            return;
        }
        let others = self.cells.iter_mut().enumerate();
        for (to, cell) in others.filter(|(to, cell)| *to != from && !cell.is_odd) {
            if let Some(running) = cell.running.as_mut().filter(|_| !self.network.is_cut(from, to))
            {
                running.input.state_hashes.push((NodeId(from as u64 + 1), hash));
            }
        }
    }

    pub(crate) fn send_snapshot(&mut self, from: usize, to: usize, life: u64) {
        let cell = &self.cells[from];
        let Some(term) = cell.running.as_ref().map(|running| running.node.term()) else { return };
        let newest = cell.snapshots().list().ok().and_then(|all| all.into_iter().next());
        let bytes = newest.and_then(|(_, path)| cell.disk.dump(&path));
        let id = NodeId(to as u64 + 1);
        let roster = cell.running.as_ref().map(|running| running.node.core().roster());
        let meant = roster.and_then(|roster| roster.membership_of(id)?.data.get(&id).copied());
        // The sender looks for the directory that it knows, and no other one takes it in.
        let is_refused = meant != Some(self.cells[to].data());
        let breaks = is_refused || self.network.is_cut(from, to) || self.rng.permille(100);
        let wait = self.rng.spread(50_000);
        match bytes.filter(|_| !breaks) {
            Some(mut bytes) => {
                if self.rng.permille(20) && !bytes.is_empty() {
                    // The sender's disk gave back something else than what is on it.
                    let place = self.rng.below(bytes.len() as u64) as usize;
                    bytes[place] ^= 1;
                }
                self.schedule(wait, Event::SnapshotArrives { from, term, to, bytes, life });
            }
            None => {
                self.coverage.count("snapshot: failed to arrive");
                let event = Event::SnapshotReported { node: from, to, sent: Sent::Lost, life };
                self.schedule(wait, event);
            }
        }
    }

    pub(crate) fn take_snapshot(
        &mut self,
        (from, term): (usize, Term),
        to: usize,
        bytes: &[u8],
    ) -> Sent {
        let data = self.cells[from].data();
        let cell = &mut self.cells[to];
        let dir = cell.snapshots();
        let Some(running) = cell.running.as_mut() else { return Sent::Lost };
        let load = || {
            let mut incoming = store::Incoming::create(&dir)?;
            incoming.write(bytes)?;
            Store::load(&dir, &incoming.finish(&CLUSTER)?, STORE)
        };
        let (store, meta) = match load() {
            Ok(loaded) => loaded,
            Err(store::Error::Corrupt { .. }) => return Sent::Damaged,
            Err(_) => return Sent::Lost,
        };
        let membership = proto::decode(&meta.membership, "membership").expect("it was verified");
        let at = SnapshotAt { index: meta.index, term: meta.term };
        let from = NodeId(from as u64 + 1);
        let received = ReceivedSnapshot { from, data, term, at, membership, store };
        running.input.snapshots_received.push(received);
        self.wake(to, 5);
        Sent::Arrived(meta.index)
    }
}

//! Checkpoints and snapshots of the cluster in one thread, and what becomes of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quicraft::disk::Disk;
use quicraft::node::{self, CheckpointJob, ReceivedSnapshot, Sent, SnapshotAt};
use quicraft::raft::NodeId;
use quicraft::store::{self, Pace, Store};
use quicraft::{proto, raft};

use crate::cluster::{CLUSTER, Cell, Cluster, STORE, disk};

/// What is never heard of again once a checkpoint has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Nothing,
    /// Its file, of which nothing is written.
    Files,
    /// The file and the image.
    All,
}

/// What the checkpoint thread does.
pub(crate) fn checkpoint(cell: &mut Cell, job: CheckpointJob, lost: Lost) {
    if lost == Lost::All {
        return;
    }
    let (compacted, image) = node::run::compact(job, CLUSTER, &Pace::default()).unzip();
    cell.input.images.push(compacted);
    if lost == Lost::Nothing {
        let dir = node::snapshots_dir(&disk(&cell.disk), &cell.dir);
        let write = |image| node::run::write(image, &dir, &Pace::default(), &mut || ());
        cell.input.checkpoints.push(image.and_then(write));
    }
}

impl Cluster {
    /// Damages the newest snapshot of a node that is down.
    pub(crate) fn damage_newest_snapshot(&mut self, node: usize) {
        let cell = &self.cells[node];
        let dir = cell.dir.join("snapshots");
        let names = cell.disk.list(&dir).unwrap();
        let newest = names.iter().rfind(|name| name.ends_with(".snap")).unwrap();
        cell.disk.tamper(&dir.join(newest), |bytes| bytes[100] ^= 1);
    }

    pub(crate) fn send_snapshot(&mut self, from: usize, to: NodeId, term: raft::Term) {
        let target = to.0 as usize - 1;
        let source = &self.cells[from];
        let dir = node::snapshots_dir(&disk(&source.disk), &source.dir);
        let (index, path) = dir.list().unwrap().remove(0);
        let bytes = source.disk.dump(&path).unwrap();
        let is_cut = self.isolated == Some(from) || self.isolated == Some(target);
        if is_cut || self.cells[target].running.is_none() {
            self.cells[from].input.snapshots_sent.push((to, Sent::Lost));
            return;
        }
        let receiver = &self.cells[target];
        let dir = node::snapshots_dir(&disk(&receiver.disk), &receiver.dir);
        let mut incoming = store::Incoming::create(&dir).unwrap();
        incoming.write(&bytes).unwrap();
        let path = incoming.finish(&CLUSTER).unwrap();
        let (store, meta) = Store::load(&dir, &path, STORE).unwrap();
        let membership = proto::decode(&meta.membership, "membership").unwrap();
        let at = SnapshotAt { index: meta.index, term: meta.term };
        let from_id = NodeId(from as u64 + 1);
        let (source, _) = self.cells[from].running.as_ref().expect("it sends");
        let data = source.core().data();
        let received = ReceivedSnapshot { from: from_id, data, term, at, membership, store };
        self.cells[target].input.snapshots_received.push(received);
        self.cells[from].input.snapshots_sent.push((to, Sent::Arrived(index)));
        self.snapshots_sent += 1;
    }
}

//! Tests of the store through its public face.

mod crash;
mod frozen;
mod golden;
mod history;
mod many;
mod model;
#[cfg(model_check)]
mod publication;
mod sessions;
mod snapshots;

use super::{Options, Store};
use crate::proto::command::{Command, Op, Outcome, Principal, SessionId};
use crate::raft::Index;

const OPTIONS: Options = Options { arena_bytes: 64 << 20, hash_seed: 7 };

/// A store with one session, which never repeats a number.
struct Client {
    store: Store,
    session: SessionId,
    seq: u64,
}

impl Client {
    fn new() -> Client {
        let mut store = Store::new(OPTIONS).unwrap();
        let session = open(&mut store);
        Client { store, session, seq: 0 }
    }

    fn write(&mut self, op: Op<'_>) -> Outcome {
        self.seq += 1;
        write(&mut self.store, self.session, self.seq, self.seq, op)
    }

    /// A command as the next write sends it.
    fn command<'a>(&self, op: Op<'a>) -> Command<'a> {
        let seq = self.seq + 1;
        Command::Write { session: self.session, seq, answered_below: seq, op }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome {
        self.write(Op::Put { key, value })
    }
}

fn next(store: &Store) -> Index {
    store.revision().next()
}

/// Whose sessions these are, where it does not matter.
const OWNER: Principal = Principal(77);

/// The next entry: the owner's, or the cluster's if it must be.
fn apply(store: &mut Store, command: &Command<'_>) -> Outcome {
    let owner = match command {
        Command::Clock { .. } | Command::Compact { .. } => Principal::CLUSTER,
        Command::OpenSession | Command::CloseSession(_) | Command::Write { .. } => OWNER,
    };
    store.apply(next(store), owner, command)
}

fn open(store: &mut Store) -> SessionId {
    open_as(store, OWNER)
}

fn open_as(store: &mut Store, owner: Principal) -> SessionId {
    match store.apply(next(store), owner, &Command::OpenSession) {
        Outcome::SessionOpened(id) => id,
        other => panic!("{other:?}"),
    }
}

fn write(
    store: &mut Store,
    session: SessionId,
    seq: u64,
    answered_below: u64,
    op: Op<'_>,
) -> Outcome {
    apply(store, &Command::Write { session, seq, answered_below, op })
}

/// A small generator of test data (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

#[test]
fn readers_and_checkpoints_go_to_other_threads() {
    fn shared<T: Clone + Send + Sync>() {}
    fn sent<T: Send + 'static>() {}
    shared::<super::Reader>();
    sent::<super::Checkpoint>();
    sent::<Store>();
}

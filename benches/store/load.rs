//! What all measurements put into a store.

use quicraft::proto::command::{Command, Op, Outcome, Principal, SessionId};
use quicraft::store::{Options, Store};

pub(crate) const VALUE_BYTES: usize = 64;
/// Writes that are applied together.
const LOT: usize = 64;

const OWNER: Principal = Principal(1);

/// A store with one session.
pub(crate) struct Loaded {
    pub(crate) store: Store,
    session: SessionId,
    seq: u64,
}

impl Loaded {
    pub(crate) fn new() -> Loaded {
        let mut store = Store::new(options()).unwrap();
        let next = store.revision().next();
        let opened = store.apply(next, OWNER, &Command::OpenSession);
        let Outcome::SessionOpened(session) = opened else {
            panic!("no session");
        };
        Loaded { store, session, seq: 0 }
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.seq += 1;
        let op = Op::Put { key, value };
        let (session, seq) = (self.session, self.seq);
        let command = Command::Write { session, seq, answered_below: seq, op };
        self.store.apply(self.store.revision().next(), OWNER, &command);
    }

    /// Puts in lots whose keys are brought into the caches together, as the node does.
    pub(crate) fn put_all(&mut self, numbers: impl Iterator<Item = u64>, value: &[u8]) {
        let mut numbers = numbers.map(key);
        loop {
            let lot: Vec<[u8; 16]> = numbers.by_ref().take(LOT).collect();
            let commands: Vec<Command<'_>> = lot
                .iter()
                .map(|key| {
                    self.seq += 1;
                    let (session, seq, op) = (self.session, self.seq, Op::Put { key, value });
                    Command::Write { session, seq, answered_below: seq, op }
                })
                .collect();
            self.store.warm_up(commands.iter());
            for command in &commands {
                self.store.apply(self.store.revision().next(), OWNER, command);
            }
            if lot.len() < LOT {
                return;
            }
        }
    }

    pub(crate) fn compact(&mut self) {
        let below = self.store.revision().0;
        let command = Command::Compact { below };
        self.store.apply(self.store.revision().next(), Principal::CLUSTER, &command);
    }
}

pub(crate) fn options() -> Options {
    Options { arena_bytes: 32 << 30, hash_seed: 0x5eed }
}

/// The 16 bytes of a key; keys ascend with their numbers, below 2^24, and differ in their first bytes.
pub(crate) fn key(number: u64) -> [u8; 16] {
    let mut key = [b'k'; 16];
    key[..8].copy_from_slice(&(number << 40).to_be_bytes());
    key
}

/// Numbers below a power of two above `count`, all different, in no order; those below `count` are given.
pub(crate) fn shuffled(count: usize) -> impl Iterator<Item = u64> {
    let mask = (count as u64).next_power_of_two() - 1;
    // An odd multiplier and an addition make a permutation of the numbers below a power of two.
    let scatter = move |number: u64| {
        let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(12_345) & mask;
        (number ^ (number >> 7)).wrapping_mul(0xd134_2543_de82_ef95) & mask
    };
    (0..=mask).map(scatter).filter(move |&number| number < count as u64)
}

/// Bytes of memory that this process has.
pub(crate) fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

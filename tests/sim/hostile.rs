//! Clients with certificates of their own that go for the sessions of others: they guess ids, use up numbers, move floors,
//! close, and open sessions without end. The model knows whose sessions are whose, so nothing of it may come through.

use quicraft::node::{ReplyTo, Request, RequestBody};
use quicraft::proto::command::{Command, Op, SessionId};

use crate::clients::encoded;
use crate::world::World;

impl World {
    /// Perhaps something hostile, at the moment when the client `victim` asks something.
    pub(crate) fn be_hostile(&mut self, victim: usize) {
        if self.is_calm || !self.rng.permille(self.options.hostile) {
            return;
        }
        let anywhere = self.rng.below(self.cells.len() as u64) as usize;
        let target = self.leader().filter(|_| self.rng.permille(700)).unwrap_or(anywhere);
        let bodies = self.hostile_requests(victim);
        let Some(running) = &mut self.cells[target].running else { return };
        for body in bodies {
            self.next_request += 1;
            let reply_to = ReplyTo { stream: HOSTILE, request_id: self.next_request };
            running.input.requests.push(Request { reply_to, body });
        }
        let wait = self.rng.spread(self.options.net.delay_us);
        self.wake(target, wait);
    }

    fn hostile_requests(&mut self, victim: usize) -> Vec<RequestBody> {
        // Beside the principals of the clients.
        let number = self.clients.len() + self.rng.below(2) as usize;
        let (known, next_seq) = self.clients[victim].session();
        let guessed = 1 + self.rng.below(self.truth.committed() + 10);
        let session = SessionId(known.filter(|_| self.rng.permille(700)).unwrap_or(guessed));
        let count = self.rng.between(1, 8);
        match self.rng.below(10) {
            0 => vec![encoded(number, &Command::CloseSession(session))],
            1 => {
                self.coverage.count("hostile: opens sessions");
                (0..count * 8).map(|_| encoded(number, &Command::OpenSession)).collect()
            }
            _ => {
                // A key of its own: a guess may be a session of its own.
                let op = Op::Append { key: b"stolen", value: b"x" };
                let first = next_seq.saturating_sub(self.rng.below(3));
                let seqs = first..first + count;
                let floor = *self.rng.pick(&[0, first, first + count, u64::MAX]);
                let write =
                    |seq| Command::Write { session, seq, answered_below: floor, op: op.clone() };
                seqs.map(|seq| encoded(number, &write(seq))).collect()
            }
        }
    }
}

/// Where answers to such clients go.
pub(crate) const HOSTILE: u64 = u64::MAX - 16;

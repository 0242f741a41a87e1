//! What goes between clients and nodes.

use quicraft::node::{Replies, ReplyTo, Request};
use quicraft::proto;
use quicraft::proto::client::Reply;
use quicraft::proto::command::Outcome;
use quicraft::raft::Index;
use quicraft::store::{Range, Reader};

use crate::clients::{Answer, Next};
use crate::event::Event;
use crate::hostile::HOSTILE;
use crate::truth::Broken;
use crate::wan::PROBE;
use crate::world::World;

impl World {
    pub(crate) fn ask(&mut self, number: usize, request: u64) {
        let client = &mut self.clients[number];
        if request < client.first_request {
            return;
        }
        self.be_hostile(number);
        let client = &mut self.clients[number];
        if request > 0 && request == client.first_request && !client.is_idle() {
            // Nothing came in answer to the last sending.
            let next = client.time_out(self.cells.len(), self.is_calm, &mut self.rng);
            if matches!(next, Next::Rest) {
                let request = self.new_request(number);
                return self
                    .schedule(self.options.think_us, Event::Ask { client: number, request });
            }
        }
        if client.is_idle() {
            if self.is_calm && std::mem::replace(&mut client.has_asked_last, true) {
                return;
            }
            self.truth.moment += 1;
        }
        let (keys, records) = (&self.keys, &mut self.records);
        let body = client.ask(self.truth.moment, number, keys, records, &mut self.rng);
        let target = client.target;
        let request = self.new_request(number);
        if let Some(running) = &mut self.cells[target].running {
            let reply_to = ReplyTo { stream: number as u64, request_id: request };
            running.input.requests.push(Request { reply_to, body });
            let wait = self.rng.spread(self.options.net.delay_us);
            self.wake(target, wait);
        }
        let patience = self.rng.between(50_000, 800_000);
        self.schedule(patience, Event::Ask { client: number, request });
    }

    fn new_request(&mut self, client: usize) -> u64 {
        self.next_request += 1;
        self.clients[client].first_request = self.next_request;
        self.next_request
    }

    pub(crate) fn answer(&mut self, to: ReplyTo, answer: Answer) {
        match to.stream {
            u64::MAX | HOSTILE => return,
            PROBE => return self.probed = Some((self.now, answer)),
            _ => {}
        }
        if self.rng.permille(self.options.net.loss / 3) && !self.is_calm {
            self.coverage.count("answer: lost on its way");
            return;
        }
        let (client, request) = (to.stream as usize, to.request_id);
        let wait = self.rng.spread(self.options.net.delay_us);
        self.schedule(wait, Event::Hear { client, request, answer });
    }

    pub(crate) fn hear(
        &mut self,
        number: usize,
        request: u64,
        answer: &Answer,
    ) -> Result<(), Broken> {
        let client = &mut self.clients[number];
        if request < client.first_request {
            return Ok(());
        }
        self.truth.moment += 1;
        let (records, nodes) = (&mut self.records, self.cells.len());
        let next = client.hear(
            self.truth.moment,
            answer,
            records,
            nodes,
            &mut self.rng,
            &mut self.coverage,
        )?;
        let wait = match next {
            Next::Rest => self.rng.spread(self.options.think_us),
            Next::Again => self.rng.spread(20_000),
        };
        let request = self.new_request(number);
        // A number of its own, so that it is not taken for a timeout.
        self.clients[number].first_request = request + 1;
        self.next_request += 1;
        self.schedule(wait, Event::Ask { client: number, request: request + 1 });
        Ok(())
    }
}

/// Takes the answers of a turn; beside them the revisions that were acknowledged.
#[derive(Default)]
pub(crate) struct Answers(pub(crate) Vec<(ReplyTo, Answer)>, pub(crate) Vec<u64>);

impl Replies for Answers {
    fn reply(&mut self, to: ReplyTo, reply: &Reply<'_>) {
        if let Reply::Outcome(Outcome::Written { revision, .. }) = reply {
            self.1.push(*revision);
        }
        let mut bytes = Vec::new();
        proto::encode(reply, &mut bytes);
        self.0.push((to, Answer::Bytes(bytes)));
    }

    fn scan(&mut self, to: ReplyTo, reader: Reader, at: Index) {
        let rows = reader.scan(Range::ALL, at);
        let rows = rows.map(|row| (row.key.to_vec(), row.value.to_vec())).collect();
        self.0.push((to, Answer::Scan { at: at.0, rows }));
    }

    fn snapshot(&mut self, _: ReplyTo, _: Index) {
        unreachable!("nobody asks for a backup here");
    }
}

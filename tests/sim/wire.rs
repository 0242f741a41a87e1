//! Messages on their way between nodes, through the encoding of the wire and the judgement of connections.

use std::sync::Arc;

use bytes::Bytes;
use quicraft::node::{self, Book, Stranger};
use quicraft::proto;
use quicraft::proto::peer::PeerHello;
use quicraft::raft::{Message, NodeId};
use quicraft::wal::Batch;

use crate::cell::{Running, founding};
use crate::event::{Event, message_name};
use crate::truth::Broken;
use crate::world::World;

impl World {
    pub(crate) fn send(&mut self, message: &Message, batches: &[Batch]) {
        self.coverage.count(message_name(&message.body));
        let (from, to) = (message.from.0 as usize - 1, message.to.0 as usize - 1);
        if to >= self.cells.len() {
            // Added, and not started yet.
            return;
        }
        let (now, rng) = (self.now, &mut self.rng);
        let arrivals = self.network.arrivals((from, to), now, rng, &mut self.coverage);
        if arrivals.is_empty() {
            return;
        }
        // Through the wire's own encoding, as between processes.
        let mut bytes = Vec::new();
        proto::peer::encode_message(message, &mut bytes);
        for batch in batches {
            bytes.extend_from_slice(&batch.bytes());
        }
        self.note(u64::from(crc32fast::hash(&bytes)));
        let (bytes, hello) = (Bytes::from(bytes), self.hello(message));
        let directory = self.cells[to].directory;
        for at in arrivals {
            let (hello, bytes) = (Arc::clone(&hello), bytes.clone());
            self.schedule_at(at, Event::Deliver { to, directory, hello, bytes });
        }
    }

    /// What the sender has said first on the connection.
    fn hello(&self, message: &Message) -> Arc<PeerHello> {
        let cell = &self.cells[place(message.from)];
        let is_odd = self.cells[place(message.to)].is_odd;
        Arc::new(PeerHello {
            from: message.from,
            data: message.data,
            to: message.to,
            to_data: None,
            // Nodes that were founded alike need not tell each other at each message here.
            founding: cell
                .other_founding
                .clone()
                .or_else(|| is_odd.then(|| founding(&self.options))),
            peer_address: String::new(),
            client_address: String::new(),
        })
    }

    /// A message arrives at a node, unless its data directory was made anew meanwhile: no connection survives that.
    pub(crate) fn deliver(
        &mut self,
        (to, directory): (usize, u64),
        hello: &PeerHello,
        bytes: &Bytes,
    ) -> Result<(), Broken> {
        if self.cells[to].directory != directory {
            return Ok(());
        }
        let Some(running) = &mut self.cells[to].running else { return Ok(()) };
        let decoded = node::decode_message(bytes).map_err(|error| error.to_string())?;
        let name = running.node.name_of(hello.from);
        match running.book().judge(hello, &name) {
            Ok(_) => {
                running.input.messages.push(decoded);
                let wait = self.rng.below(100);
                self.wake(to, wait);
            }
            Err(stranger) => self.refuse(hello, &stranger),
        }
        Ok(())
    }

    /// The sender is told why it is refused.
    fn refuse(&mut self, hello: &PeerHello, stranger: &Stranger) {
        let from = hello.from.0 as usize - 1;
        self.coverage.count(match stranger {
            Stranger::Unknown => "refused: unknown",
            Stranger::Removed => "refused: removed",
            Stranger::Misdirected => "refused: another is meant",
            Stranger::OtherData => "refused: other data",
            Stranger::FoundedDifferently { .. } => "refused: founded differently",
        });
        let is_its_own = self.cells[from].data() == hello.data;
        if *stranger == Stranger::OtherData && is_its_own {
            self.unseat(from);
        }
    }

    /// Another node says that a node has no place: it stops, unless its own log says for certain that it has.
    pub(crate) fn unseat(&mut self, node: usize) {
        let Some(running) = &mut self.cells[node].running else { return };
        if !running.book().is_seated() {
            self.coverage.count("seat: a node without one stops");
            self.crash(node, false);
            self.cells[node].is_unseated = true;
        }
    }
}

impl Running {
    /// What connections are judged by.
    pub(crate) fn book(&mut self) -> &Book {
        let version = self.node.members_version();
        if self.book.as_ref().is_none_or(|(made_at, _)| *made_at != version) {
            self.book = Some((version, Book::of(&self.node)));
        }
        let (_, book) = self.book.as_ref().expect("it was just made");
        book
    }
}

/// The place of a node in the list of cells.
pub(crate) fn place(id: NodeId) -> usize {
    id.0 as usize - 1
}

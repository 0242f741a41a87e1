//! Nodes that join and nodes that go.

use quicraft::node::{self, ReplyTo, Request, RequestBody};
use quicraft::proto::client::Manage;
use quicraft::raft::NodeId;

use crate::cell::Cell;
use crate::event::Event;
use crate::options::JOINERS_MAX;
use crate::world::World;

impl World {
    /// Asks the leader to add a node.
    pub(crate) fn ask_for_another(&mut self) {
        let number = self.cells.len() + 1;
        if number > self.options.nodes + JOINERS_MAX || !self.options.changes_members {
            return;
        }
        self.manage(
            "member: addition asked for",
            Manage::Add {
                name: format!("n{number}"),
                peer_address: format!("n{number}:1"),
                client_address: format!("n{number}:2"),
                data: self.next_data(),
                stays: false,
                rejoins: false,
            },
        );
    }

    /// Asks the leader for a new member in the place of one that has lost its data.
    pub(crate) fn ask_to_replace(&mut self, id: NodeId) {
        if self.cells.len() + 1 > self.options.nodes + JOINERS_MAX {
            return;
        }
        let data = self.next_data();
        let add = Manage::Add {
            name: format!("n{}", id.0),
            peer_address: format!("n{}:1", id.0),
            client_address: format!("n{}:2", id.0),
            data,
            stays: false,
            rejoins: true,
        };
        self.manage("member: replacement asked for", add);
    }

    /// The data directory that the next new cell will have.
    fn next_data(&self) -> u64 {
        1000 + self.cells.len() as u64 + 1
    }

    /// Asks the leader to remove a node, perhaps itself.
    pub(crate) fn ask_to_remove(&mut self, node: usize) {
        if self.options.changes_members {
            self.manage("member: removal asked for", Manage::Remove { id: node as u64 + 1 });
        }
    }

    fn manage(&mut self, name: &'static str, manage: Manage) {
        let Some(leader) = self.leader() else { return };
        self.coverage.count(name);
        let running = self.cells[leader].running.as_mut().expect("it leads");
        // Nobody waits for the answer: what comes of it is seen in the log.
        let reply_to = ReplyTo { stream: u64::MAX, request_id: 0 };
        running.input.requests.push(Request { reply_to, body: RequestBody::Manage(manage) });
        self.wake(leader, 10);
    }

    /// Starts the nodes that were added.
    pub(crate) fn take_in_joiners(&mut self) {
        let last_id = self.truth.membership().map_or(0, |membership| membership.last_id);
        while (self.cells.len() as u64) < last_id {
            let id = self.cells.len();
            let cell = Cell::new(id, &self.options);
            cell.init_learner(&self.options);
            self.options.clock_permille.push(1000);
            self.cells.push(cell);
            self.coverage.count("member: joined");
            self.schedule(1000, Event::Start { node: id });
        }
    }

    /// Whether a node is a member no more, or never was for long.
    pub(crate) fn is_removed(&self, node: usize) -> bool {
        let membership = self.truth.membership();
        membership.is_some_and(|membership| membership.is_removed(NodeId(node as u64 + 1)))
    }
}

impl Cell {
    /// Makes the data directory of a node that joins.
    fn init_learner(&self, options: &crate::options::Options) {
        node::init_learner(&self.open_options(options)).expect("the disk is new and good");
    }
}

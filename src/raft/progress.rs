//! What a leader knows of one follower, and how much it may send (Raft 5.3, thesis 10.2).

use std::collections::VecDeque;

use super::Index;

#[derive(Debug)]
pub(super) struct Progress {
    /// Highest index known to be equal to ours and durable there.
    pub(super) match_index: Index,
    /// The next entry to send.
    pub(super) next_index: Index,
    pub(super) state: State,
    /// Sent and not yet answered: last index and bytes of each message.
    in_flight: VecDeque<(Index, u64)>,
    in_flight_bytes: u64,
    /// The newest round of heartbeats that was answered.
    pub(super) round: u64,
    /// Ticks since the last sign of progress while something is in flight.
    stalled_ticks: u32,
    /// Ticks since the last message of any kind.
    pub(super) silent_ticks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Where the logs agree is not known: one message at a time.
    Probe { sent: bool },
    /// The logs agree: entries stream within the window.
    Replicate,
    /// What it lacks is gone from the log: a snapshot is on its way.
    Snapshot,
}

impl Progress {
    pub(super) fn new(next_index: Index) -> Progress {
        Progress {
            match_index: Index(0),
            next_index,
            state: State::Probe { sent: false },
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            round: 0,
            stalled_ticks: 0,
            silent_ticks: u32::MAX,
        }
    }

    /// Whether another message may be sent now.
    pub(super) fn may_send(&self, window_bytes: u64) -> bool {
        match self.state {
            State::Probe { sent } => !sent,
            State::Replicate => {
                self.in_flight_bytes < window_bytes && self.in_flight.len() < IN_FLIGHT_MAX
            }
            State::Snapshot => false,
        }
    }

    pub(super) fn on_sent(&mut self, last: Index, bytes: u64) {
        self.in_flight.push_back((last, bytes));
        self.in_flight_bytes += bytes;
        match self.state {
            State::Probe { .. } => self.state = State::Probe { sent: true },
            State::Replicate => self.next_index = last.next(),
            State::Snapshot => unreachable!("nothing is sent to a peer that waits for a snapshot"),
        }
    }

    /// The follower's log equals ours, durably, up to `index`; returns whether that is news.
    pub(super) fn on_match(&mut self, index: Index) -> bool {
        while self.in_flight.front().is_some_and(|&(last, _)| last <= index) {
            let (_, bytes) = self.in_flight.pop_front().expect("just seen");
            self.in_flight_bytes -= bytes;
        }
        if index <= self.match_index && !matches!(self.state, State::Probe { .. }) {
            return false;
        }
        self.stalled_ticks = 0;
        let is_news = index > self.match_index;
        let agrees = index >= self.next_index.previous();
        self.match_index = self.match_index.max(index);
        self.next_index = self.next_index.max(self.match_index.next());
        let snapshot_is_in = self.state == State::Snapshot && is_news;
        // A late answer to something else is none to the question: with each of them the whole window would go out
        // again, and where messages overtake each other the answers to that would do the same.
        let is_answer = matches!(self.state, State::Probe { .. }) && agrees;
        if is_answer || snapshot_is_in {
            self.become_replicate(agrees);
        }
        is_news
    }

    /// Entries stream from now on. If the follower agreed with the question itself, what came with
    /// the question is taken there and need not be sent again; the disk may still be at it.
    fn become_replicate(&mut self, agrees: bool) {
        if !agrees {
            self.in_flight.clear();
            self.in_flight_bytes = 0;
        }
        let taken = self.in_flight.back().map_or(self.match_index, |&(last, _)| last);
        self.next_index = self.match_index.max(taken).next();
        self.state = State::Replicate;
    }

    /// Starts over from what is known for certain, or from `next` if that is further on.
    pub(super) fn become_probe(&mut self, next: Index) {
        self.state = State::Probe { sent: false };
        self.next_index = next.max(self.match_index.next());
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.stalled_ticks = 0;
    }

    /// What is in flight is taken for lost. Where the logs agree is asked again at the same place: to
    /// begin at what is known would bring a follower that was only away a needless snapshot.
    pub(super) fn on_lost(&mut self) {
        let asks = matches!(self.state, State::Probe { .. });
        self.become_probe(if asks { self.next_index } else { Index(0) });
    }

    pub(super) fn become_snapshot(&mut self) {
        self.become_probe(Index(0));
        self.state = State::Snapshot;
    }

    /// One tick; returns whether something in flight must be taken for lost.
    pub(super) fn on_tick(&mut self, patience_ticks: u32) -> bool {
        self.silent_ticks = self.silent_ticks.saturating_add(1);
        let waits = matches!(self.state, State::Probe { sent: true }) || !self.in_flight.is_empty();
        self.stalled_ticks = if waits { self.stalled_ticks + 1 } else { 0 };
        waits && self.stalled_ticks >= patience_ticks
    }
}

/// Messages in flight to one follower, whatever their size.
const IN_FLIGHT_MAX: usize = 256;

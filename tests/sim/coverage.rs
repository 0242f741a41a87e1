//! What was reached: a simulator that does nothing is always green.

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Coverage) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    pub(crate) fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// The names of [`REQUIRED`] that were never reached.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        REQUIRED.iter().filter(|what| self.get(what) == 0).copied().collect()
    }

    pub(crate) fn print(&self) {
        for (what, count) in &self.0 {
            println!("  {count:>12}  {what}");
        }
    }
}

/// Faults, messages, verdicts and branches that a run of many seeds must reach, each.
pub(crate) const REQUIRED: &[&str] = &[
    "answer: busy",
    "answer: done",
    "answer: lost on its way",
    "answer: no space",
    "answer: not the leader",
    "answer: scan",
    "answer: unknown outcome",
    "answer: value",
    "check: entry compared with another node's",
    "check: leader holds all that is committed",
    "check: log reopened",
    "check: state compared with another node's",
    "check: write acknowledged by a majority of disks",
    "clock: days ahead",
    "clock: days back",
    "clock: entry moved the log's time at the true rate",
    "clock: paused",
    "crash: all nodes",
    "crash: between two changes of the disk",
    "crash: leader",
    "crash: one node",
    "disk: byte rotted",
    "disk: filled",
    "disk: name not synced was lost",
    "disk: sector kept",
    "disk: sector lost",
    "disk: sector torn",
    "disk: slow",
    "disk: sync failed",
    "disk: write went astray",
    "hostile: opens sessions",
    "member: addition asked for",
    "member: joined",
    "member: removal asked for",
    "member: removed",
    "member: replacement asked for",
    "message: AppendEntries",
    "message: AppendRejected",
    "message: Appended",
    "message: Heartbeat",
    "message: HeartbeatReply",
    "message: ReadIndex",
    "message: ReadIndexReply",
    "message: RequestVote",
    "message: TimeoutNow",
    "message: VoteReply",
    "network: clogged",
    "network: cut in one direction",
    "network: doubled",
    "network: healed",
    "network: leader cut off",
    "network: lost",
    "network: replayed",
    "network: split in two",
    "network: stopped at a cut",
    "recovery: clean",
    "recovery: older snapshot taken",
    "recovery: snapshot and log",
    "recovery: torn end cut",
    "repair: another node lacks them too",
    "repair: begun",
    "repair: entries fetched",
    "repair: log mended",
    "repair: nobody can say what was lost",
    "refused: founded differently",
    "refused: other data",
    "refused: removed",
    "refused: unknown",
    "role: leader",
    "seat: a node without one stops",
    "seat: directory made anew",
    "seat: directory made anew before the cluster was founded",
    "seat: founded with another list",
    "seat: members asked for",
    "session: another's number was not used",
    "session: another's was not closed",
    "session: write sent again was applied once",
    "size: 1",
    "size: 2",
    "size: 3",
    "size: 4",
    "size: 5",
    "size: 7",
    "snapshot: arrived damaged",
    "snapshot: failed to arrive",
    "snapshot: installed",
    "snapshot: written",
    "stranger: a member's clone",
    "stranger: removed",
    "stranger: unknown",
    "transfer: asked for",
];

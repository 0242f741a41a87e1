//! Forged messages for the golden scripts.

use quicraft::raft::{Body, DataId, EntryMeta, Event, Index, Message, Payload, Term};

use crate::cluster::Cluster;
use crate::command::Command;

/// A message that nobody sent, from one node to another.
pub(crate) fn forge(cluster: &mut Cluster, command: &Command) {
    let Command::Forge { from, to, kind, term, index, index_term, entry_term, commit, data } =
        command
    else {
        unreachable!("dispatched by kind");
    };
    let (index, index_term) = (Index(*index), Term(*index_term));
    let entry = EntryMeta { term: Term(*entry_term), bytes: 10, payload: Payload::Command };
    let body = match kind.as_str() {
        "append" => Body::AppendEntries {
            prev_log_index: index,
            prev_log_term: index_term,
            commit_index: commit.map_or(index.plus(1), Index),
            entries: vec![entry],
        },
        "heartbeat" => Body::Heartbeat { commit_index: index, round: u64::MAX },
        "alive" => Body::HeartbeatReply { round: u64::MAX },
        "vote" => Body::RequestVote {
            pre: false,
            last_log_index: index,
            last_log_term: index_term,
            transfer: false,
        },
        "appended" => Body::Appended { match_index: index },
        "run" => Body::TimeoutNow,
        "rejected" => {
            Body::AppendRejected { prev_log_index: index, hint_index: index, hint_term: index_term }
        }
        other => panic!("no forgery of {other}"),
    };
    let data = DataId(data.unwrap_or(from.0.0));
    let message = Message { from: from.0, data, to: to.0, term: Term(*term), body };
    cluster.step(to.0, Event::Receive(message));
}

//! Effects and messages as one short line each.

use std::fmt::Write as _;

use quicraft::raft::{Body, Effects, EntryMeta, Membership, Message, NodeId, Refused, Term, Write};

/// A message: `n1->n2 t1 append 3@1 +2@1,1 commit=2`.
pub(crate) fn message(message: &Message) -> String {
    let Message { from, to, term, body, .. } = message;
    format!("{from}->{to} t{term} {}", self::body(body))
}

fn body(body: &Body) -> String {
    match body {
        Body::RequestVote { pre, last_log_index, last_log_term, transfer } => {
            let kind = if *pre { "prevote?" } else { "vote?" };
            let transfer = if *transfer { " transfer" } else { "" };
            format!("{kind} last={last_log_index}@{last_log_term}{transfer}")
        }
        Body::VoteReply { pre, granted } => {
            let kind = if *pre { "prevote" } else { "vote" };
            format!("{kind} {}", if *granted { "yes" } else { "no" })
        }
        Body::AppendEntries { prev_log_index, prev_log_term, commit_index, entries } => {
            let terms = terms(entries);
            format!("append {prev_log_index}@{prev_log_term} +[{terms}] commit={commit_index}")
        }
        Body::Appended { match_index } => format!("appended {match_index}"),
        Body::AppendRejected { prev_log_index, hint_index, hint_term } => {
            format!("rejected {prev_log_index} hint={hint_index}@{hint_term}")
        }
        Body::Heartbeat { commit_index, round } => {
            format!("heartbeat round={round} commit={commit_index}")
        }
        Body::HeartbeatReply { round } => format!("alive round={round}"),
        Body::TimeoutNow => "run-now".to_owned(),
        Body::ReadIndex { id } => format!("read? {}", id.0),
        Body::ReadIndexReply { id, index } => format!("read {} at={index}", id.0),
    }
}

fn terms(entries: &[EntryMeta]) -> String {
    let terms: Vec<String> = entries.iter().map(|meta| meta.term.to_string()).collect();
    terms.join(",")
}

/// All effects of one step but the messages.
pub(crate) fn effects(out: &mut String, id: NodeId, effects: &Effects) {
    for (term, role) in &effects.roles {
        line(out, id, &format!("is {role:?} t{term}"));
    }
    for (number, write) in &effects.writes {
        line(out, id, &format!("write #{} {}", number.0, self::write(write)));
    }
    match &effects.proposal {
        Some(Ok(index)) => line(out, id, &format!("proposed at {index}")),
        Some(Err(Refused::NotLeader(Some(leader)))) => {
            line(out, id, &format!("refused: {leader} leads"));
        }
        Some(Err(Refused::NotLeader(None))) => line(out, id, "refused: no leader"),
        Some(Err(Refused::Busy)) => line(out, id, "refused: busy"),
        None => {}
    }
    match &effects.change {
        Some(Ok(member)) => line(out, id, &format!("changes {member}")),
        Some(Err(refused)) => line(out, id, &format!("refuses: {refused}")),
        None => {}
    }
    for (read, index) in &effects.reads {
        line(out, id, &format!("may read {} at {index}", read.0));
    }
    for read in &effects.reads_refused {
        line(out, id, &format!("refuses read {}", read.0));
    }
    for peer in &effects.send_snapshots {
        line(out, id, &format!("wants to send a snapshot to {peer}"));
    }
    if effects.install_snapshot {
        line(out, id, "installs the snapshot");
    }
    for (peer, index) in &effects.contradictions {
        line(out, id, &format!("is contradicted by {peer} at {index}"));
    }
}

/// One line of a node.
pub(crate) fn line(out: &mut String, id: NodeId, text: &str) {
    writeln!(out, "{id} {text}").expect("a string takes everything");
}

/// Voters, outgoing voters after a plus, learners in parentheses, data directories that have another number than their
/// node.
pub(crate) fn members(membership: &Membership) -> String {
    let list = |ids: Vec<String>| ids.join(" ");
    let mut text = list(membership.voters.iter().map(ToString::to_string).collect());
    if membership.is_joint() {
        text.push_str(" + ");
        text.push_str(&list(membership.outgoing.iter().map(ToString::to_string).collect()));
    }
    if !membership.learners.is_empty() {
        let learners = list(membership.learners.keys().map(ToString::to_string).collect());
        text.push_str(&format!(" ({learners})"));
    }
    if membership.is_founding() {
        text.push_str(" to be founded");
    }
    let others = membership.data.iter().filter(|(id, data)| id.0 != data.0);
    for (id, data) in others {
        text.push_str(&format!(" {id}={}", data.0));
    }
    text
}

fn write(write: &Write) -> String {
    match write {
        Write::Hard(hard) => {
            let Term(term) = hard.term;
            let vote = hard.voted_for.map_or("nobody".to_owned(), |vote| vote.to_string());
            format!("term={term} vote={vote} commit={}", hard.commit_index)
        }
        Write::Noop { index, term } => format!("noop {index}@{term}"),
        Write::Membership { index, term, body } => {
            let membership: Membership = postcard::from_bytes(body).expect("the core encodes it");
            format!("members {index}@{term}: {}", members(&membership))
        }
        Write::Proposed { first, term } => format!("proposed {first}@{term}"),
        Write::Received { first, skip } => format!("received {first}.. skip={skip}"),
        Write::Truncate { from } => format!("truncate {from}.."),
        Write::Reset { index, term } => format!("reset {index}@{term}"),
    }
}

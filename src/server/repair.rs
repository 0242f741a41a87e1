//! A node whose log is damaged, as others see it: it is reached and says how it is, answers those that repair their own
//! logs, and asks for what it lacks; nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use super::answers::Burst;
use super::joined::Joined;
use super::joining::{self, Ask, Succession};
use super::links::Links;
use super::shared::{Ending, Shared};
use super::{Error, Settings, fetch};
use crate::node::{Input, Outcome, Repair, Replies, RequestBody};
use crate::proto::client::{Refusal, Reply};
use crate::proto::peer::Want;
use crate::raft::NodeId;
use crate::wal::Batch;

/// How a repair ended.
pub(super) enum Ended {
    /// The log can be mended.
    Mendable(Box<Repair>),
    /// A new member takes the node's place.
    Replaced(Joined),
    /// The node was told to stop.
    Stopped,
}

/// A node's answer.
type Answer = (NodeId, Want, Option<Option<Batch>>);

/// Repairs until there is a result.
///
/// # Errors
/// [`Error::Removed`], and what makes it impossible to become a new member.
pub(super) async fn run(
    mut repair: Box<Repair>,
    settings: &Settings,
    mut links: Links,
    shared: Arc<Shared>,
    shutdown: &mut (impl Future<Output = ()> + Unpin),
    ask: &Ask<'_>,
) -> Result<Ended, Error> {
    for damage in repair.damages() {
        tracing::warn!("{damage}");
    }
    links.follow(repair.peers());
    let (answers, mut answered) = mpsc::unbounded_channel::<Answer>();
    let mut ticker = interval(TICK);
    let mut is_asking = false;
    let mut successor: Option<Succession> = None;
    let (mut next_word, mut told) = (Instant::now(), BTreeSet::new());
    loop {
        tokio::select! {
            () = shared.bell.notified() => {}
            _ = ticker.tick() => {}
            Some((from, want, answer)) = answered.recv() => {
                is_asking = false;
                // Who does not answer is asked again: it may come back.
                if let Some(answer) = answer {
                    repair.answered(from, want, answer);
                }
            }
            given = joining::given(&mut successor) => match given {
                Ok(joined) => return Ok(Ended::Replaced(joined)),
                Err(error) => return Err(Error::NoSuccessor(error)),
            },
            () = &mut *shutdown => return Ok(Ended::Stopped),
        }
        match shared.ending() {
            Some(Ending::OtherData { by }) => repair.lose(format!(
                "not even the number of the data directory can be read: {by} knows another one"
            )),
            Some(ending @ Ending::Removed { .. }) => return Err(ending.into()),
            None => {}
        }
        answer_clients(&repair, &shared);
        shared.answer_fetches(|want| repair.fetch(want));
        let outcome = repair.outcome();
        if Instant::now() >= next_word {
            next_word = Instant::now() + WORD_EVERY;
            report(&repair, &outcome);
        }
        match outcome {
            Outcome::Mendable => return Ok(Ended::Mendable(repair)),
            Outcome::Lost(why) => {
                if told.insert(why.clone()) {
                    tracing::warn!("{why}: a new member shall take this node's place");
                }
                if successor.is_none() {
                    let others = repair.others().map(|(_, contact)| contact.client_address.clone());
                    successor = Some(joining::succeed(settings, others, ask)?);
                }
            }
            Outcome::Wanting if !is_asking => {
                if let Some((to, want)) = repair.ask()
                    && let Some(connection) = links.connection(to)
                {
                    is_asking = true;
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        let answer = fetch::ask(&connection, want).await;
                        // The repair may be over.
                        let _ = answers.send((to, want, answer));
                    });
                }
            }
            Outcome::Wanting => {}
        }
    }
}

fn report(repair: &Repair, outcome: &Outcome) {
    if *outcome == Outcome::Wanting {
        tracing::warn!(
            "in repair: {} entries are still wanted from other nodes; until then this node takes no part. If the others \
             are gone for good, `quicraft log salvage` decides to go on without these entries",
            repair.wanted_entries()
        );
    }
}

/// Says how the node is; there is nothing else to be had here. What peers send meanwhile is let go.
fn answer_clients(repair: &Repair, shared: &Shared) {
    let mut input = Input::default();
    shared.take_input(&mut input);
    let mut replies = Burst::new(shared);
    for request in input.requests {
        let reply = match request.body {
            RequestBody::Status => Reply::Status(Box::new(repair.status())),
            RequestBody::Hello => Reply::Hello(repair.hello()),
            _ => Reply::Refused(Refusal::NotLeader { leader: None }),
        };
        replies.reply(request.reply_to, &reply);
    }
}

const TICK: Duration = Duration::from_millis(50);
/// How often an operator is told how it stands.
const WORD_EVERY: Duration = Duration::from_secs(10);

//! Tells a dead or deposed node from a slow one, long before QUIC's idle timeout would.
//!
//! In: a connection on which somebody waits. Out: nothing, or the connection is closed, or the waiting
//! requests are given up in favour of another leader, so that `retry` sends them elsewhere: a dead leader
//! must not cost seconds. Always: nothing is given up that could not be sent again safely, and nothing is
//! done while nobody waits. After [`CHECK_EVERY`] without progress three questions are asked at once: does
//! anything listen there (a closed UDP port answers with ICMP on most networks)? does the node itself answer?
//! do others know another leader?

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::Link;
use super::retry::Answer;
use super::routes::Routes;
use super::transport::is_refused;
use crate::proto::client::{RoleName, Status};

/// How often a connection on which somebody waits is looked at.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// A node that says nothing for so long, not even how it is, is taken for dead.
const SILENCE_MAX: Duration = Duration::from_millis(750);
/// How long a question of the watchdog may take.
const ASK_TIMEOUT: Duration = Duration::from_millis(100);

/// Watches one connection until it is over. Boxed, since it dials, and each dial begins such a watch.
pub(super) fn watch(
    routes: Weak<Routes>,
    link: Arc<Link>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(run(routes, link))
}

async fn run(routes: Weak<Routes>, link: Arc<Link>) {
    while link.somebody_waits().await {
        sleep(CHECK_EVERY).await;
        let Some(quiet) = link.quiet() else { continue };
        if quiet.progress < CHECK_EVERY {
            continue;
        }
        let Some(routes) = routes.upgrade() else { return };
        if quiet.heard >= SILENCE_MAX {
            link.close("the node does not answer any more");
            routes.leader_is_lost(link.node_id());
            return;
        }
        check(&routes, &link).await;
    }
}

async fn check(routes: &Arc<Routes>, link: &Arc<Link>) {
    let (refused, own, other) = tokio::join!(
        is_refused(&link.address),
        timeout(ASK_TIMEOUT, link.ping()),
        other_leader(routes, link.node_id()),
    );
    if refused {
        link.close("nothing is listening there any more");
        routes.leader_is_lost(link.node_id());
        return;
    }
    let own_term = match own {
        Ok(Ok(frame)) => match Answer::from_frame(&frame) {
            Ok(Answer::Status(status)) => status.term,
            Ok(_) | Err(_) => 0,
        },
        Ok(Err(_)) | Err(_) => 0,
    };
    if let Some(other) = other
        && other.term > own_term
        && routes.leader_is(other.node_id)
    {
        link.give_up_waiting();
    }
}

/// The leader of the highest term among the nodes other than `node_id` that say that they lead.
async fn other_leader(routes: &Arc<Routes>, node_id: u64) -> Option<Status> {
    let mut asked = JoinSet::new();
    for member in routes.members() {
        if member.id == node_id {
            continue;
        }
        let routes = Arc::clone(routes);
        asked.spawn(timeout(ASK_TIMEOUT, async move {
            let link = routes.link_to_member(&member).await.ok()?;
            match Answer::from_frame(&link.ping().await.ok()?) {
                Ok(Answer::Status(status)) => Some(status),
                Ok(_) | Err(_) => None,
            }
        }));
    }
    let mut best: Option<Status> = None;
    while let Some(answer) = asked.join_next().await {
        let Ok(Ok(Some(status))) = answer else { continue };
        if status.role == RoleName::Leader && best.as_ref().is_none_or(|b| b.term < status.term) {
            best = Some(*status);
        }
    }
    best
}

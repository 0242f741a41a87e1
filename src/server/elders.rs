//! Who the members are, both ends: a node that hears no leader may have missed that others joined, whom its log does not
//! know. It asks the nodes that its operator named, each at the address that was given for it and by the name in its
//! certificate, and believes what is committed there until its own log tells as much.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, SendStream};
use tokio::time::timeout;

use super::dialler::{Common, resolve};
use super::shared::{Ending, Shared};
use super::snapshots::Frames;
use crate::node::Book;
use crate::proto;
use crate::proto::frame::{FrameKind, encode_frame};
use crate::proto::peer::{MEMBERS_BYTES_MAX, PeerHello};
use crate::quic::{self, PortKind};
use crate::raft::{MembershipAt, NodeId};

/// Asks a node of this name for the members and hands in what it says; ends silently if it cannot be asked.
pub(super) async fn ask(common: Arc<Common>, name: String, addresses: Vec<String>) {
    for address in addresses {
        match timeout(PATIENCE, ask_at(&common, &name, &address)).await {
            Ok(Some(members)) => return take(&common.shared, &name, members),
            Ok(None) | Err(_) => {
                tracing::debug!("{name} was not asked for the members at {address}")
            }
        }
    }
}

async fn ask_at(common: &Common, name: &str, address: &str) -> Option<MembershipAt> {
    let address = resolve(address).await.ok()?;
    let (endpoint, credentials) = (&common.endpoint, common.keyring.current());
    let dialled = quic::dial(endpoint, address, name, &credentials, PortKind::Peer).await;
    let connection = dialled.ok()?;
    let asked = ask_on(&connection, common).await;
    connection.close(0_u32.into(), b"asked");
    asked
}

async fn ask_on(connection: &Connection, common: &Common) -> Option<MembershipAt> {
    let mut bytes = Vec::new();
    let hello = PeerHello { to: NodeId(0), to_data: None, ..common.hello(NodeId(0), None) };
    encode_frame(&mut bytes, FrameKind::PeerHello, 0, |body| proto::encode(&hello, body));
    let mut greeting = connection.open_uni().await.ok()?;
    greeting.write_all(&bytes).await.ok()?;
    let (mut send, receive) = connection.open_bi().await.ok()?;
    bytes.clear();
    encode_frame(&mut bytes, FrameKind::AskMembers, 0, |_| ());
    send.write_all(&bytes).await.ok()?;
    send.finish().ok()?;
    let answer = Frames::of(receive, MEMBERS_BYTES_MAX).next().await.ok()?;
    if answer.kind != FrameKind::Members {
        return None;
    }
    let members: MembershipAt = proto::decode(&answer.body, "members").ok()?;
    members.membership.is_sane().then_some(members)
}

/// Judges this node itself by the answer, and hands the answer in.
fn take(shared: &Shared, name: &str, members: MembershipAt) {
    let book = shared.book.borrow().clone();
    let (own, data) = (book.own(), book.data());
    let membership = &members.membership;
    if membership.is_removed(own) {
        shared.ends(Ending::Removed { by: name.to_owned() });
    } else if membership.data.get(&own).is_some_and(|acting| *acting != data) {
        shared.ends(Ending::OtherData { by: name.to_owned() });
    } else {
        shared.tell(|input| input.vouched.push(members));
    }
}

/// Answers with what is committed here.
pub(super) async fn receive(mut send: SendStream, book: &Book) {
    let mut bytes = Vec::new();
    encode_frame(&mut bytes, FrameKind::Members, 0, |body| proto::encode(book.committed(), body));
    // Who asked asks again if this does not arrive.
    if send.write_all(&bytes).await.is_ok() && send.finish().is_ok() {
        let _ = send.stopped().await;
    }
}

/// How long one node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

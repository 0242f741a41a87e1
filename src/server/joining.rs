//! How a data directory comes to be: that of a new cluster's node, of a node that joins, and of one that takes its own
//! place as a new member because it lost what it knew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use super::joined::{self, Joined};
use super::setup::{load_credentials, open_options, own_member};
use super::{Error, Settings};
use crate::disk::OsDisk;
use crate::node;
use crate::pki::Credentials;
use crate::proto::client::Manage;
use crate::raft::{Contact, Index, Membership, NodeId};
use crate::store::snapshot;

/// Asks the cluster at these addresses for a change, until it is done: the id, or why it will never be.
pub type Ask<'a> = dyn Fn(Manage, Vec<String>) -> Asked + 'a;
/// The answer, when it comes.
pub type Asked = Pin<Box<dyn Future<Output = Result<u64, String>>>>;

/// Makes the data directory of a new cluster's node.
///
/// # Errors
/// If there is one already, or the disk says no.
pub fn init(settings: &Settings) -> Result<(), Error> {
    let credentials = load_credentials(settings)?;
    let members = settings.members.iter().map(|member| NodeId(member.id));
    node::init(&open_options(settings, &credentials)?, &Membership::of(members))?;
    Ok(())
}

/// Makes the data directory of a new cluster's node, which begins with the data of a snapshot file of another cluster;
/// gives the revision that it begins at, after `skipped` that are left out.
///
/// # Errors
/// If the certificate is of the same cluster as the file, the file is damaged, or the directory holds a node already.
pub fn restore(
    settings: &Settings,
    from: &snapshot::Dir,
    file: &Path,
    skipped: u64,
) -> Result<Index, Error> {
    let credentials = load_credentials(settings)?;
    let members = settings.members.iter().map(|member| NodeId(member.id));
    let options = open_options(settings, &credentials)?;
    Ok(node::restore(&options, &Membership::of(members), (from, file), skipped)?)
}

/// What a node that wants to join must ask for: `None` if its data directory holds a member already. The question
/// is kept, so that it is the same after a crash.
///
/// # Errors
/// If the data directory cannot be written or read, or the certificate is not the node's.
pub fn ask_to_join(settings: &Settings, rejoins: bool) -> Result<Option<Manage>, Error> {
    load_credentials(settings)?;
    if node::holds_data(&OsDisk, &settings.data) {
        return Ok(None);
    }
    let joined = match Joined::read(&settings.data)? {
        Some(joined) => joined,
        None => {
            let joined = Joined { ticket: draw_ticket(), id: None, replaces: false };
            joined.write(&settings.data)?;
            joined
        }
    };
    Ok(Some(question(settings, joined.ticket, rejoins)?))
}

/// Makes the data directory of a node that was given this id.
///
/// # Errors
/// If there is one already, or the disk says no.
pub fn init_joined(settings: &Settings, id: u64) -> Result<(), Error> {
    let credentials = load_credentials(settings)?;
    let joined = Joined::read(&settings.data)?;
    let ticket = joined.map_or(0, |joined| joined.ticket);
    Joined { ticket, id: Some(id), replaces: false }.write(&settings.data)?;
    node::init_learner(&open_options(settings, &credentials)?)?;
    Ok(())
}

/// Asks for a new member in the place of this node.
///
/// # Errors
/// If the settings do not say how the node is reached.
pub(super) fn succeed(
    settings: &Settings,
    contacts: &BTreeMap<NodeId, Contact>,
    ask: &Ask<'_>,
) -> Result<Asked, Error> {
    let others = settings.members.iter().filter(|member| member.name != settings.name);
    let mut endpoints: Vec<String> = others.map(|member| member.client_address.clone()).collect();
    endpoints.extend(contacts.values().map(|contact| contact.client_address.clone()));
    endpoints.sort();
    endpoints.dedup();
    // Drawn anew at each start: at worst a member that was never there is replaced in its turn.
    Ok(ask(question(settings, draw_ticket(), true)?, endpoints))
}

/// The answer to [`succeed`]; never, while nothing was asked.
pub(super) async fn given(asked: &mut Option<Asked>) -> Result<u64, String> {
    match asked {
        Some(asked) => asked.await,
        None => std::future::pending().await,
    }
}

/// The data directory becomes that of the new member `id`; what it held is kept beside it.
///
/// # Errors
/// If the disk says no. Begun again at the next start then.
pub(super) fn replace(
    settings: &Settings,
    credentials: &Credentials,
    id: u64,
) -> Result<(), Error> {
    Joined { ticket: 0, id: Some(id), replaces: true }.write(&settings.data)?;
    finish_replacing(settings, credentials)
}

/// Does what is left to do of [`replace`].
///
/// # Errors
/// If the disk says no.
pub(super) fn finish_replacing(
    settings: &Settings,
    credentials: &Credentials,
) -> Result<(), Error> {
    let Some(joined) = Joined::read(&settings.data)?.filter(|joined| joined.replaces) else {
        return Ok(());
    };
    set_aside(&settings.data).map_err(|(path, source)| joined::Error::Io {
        op: "move aside",
        path,
        source,
    })?;
    node::init_learner(&open_options(settings, credentials)?)?;
    Joined { replaces: false, ..joined }.write(&settings.data)?;
    Ok(())
}

/// Moves log and snapshots to `lost-N`; the two newest of those are kept.
fn set_aside(data: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let lost = |number: u64| data.join(format!("lost-{number}"));
    let names = fs::read_dir(data).map_err(failed(data))?;
    let names = names.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = names.filter_map(|name| name.strip_prefix("lost-")?.parse().ok());
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    let next = numbers.last().map_or(1, |last| last + 1);
    for old in numbers.iter().rev().skip(LOST_KEPT - 1) {
        fs::remove_dir_all(lost(*old)).map_err(failed(&lost(*old)))?;
    }
    fs::create_dir(lost(next)).map_err(failed(&lost(next)))?;
    for part in ["wal", "snapshots"] {
        match fs::rename(data.join(part), lost(next).join(part)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err((data.join(part), error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    for dir in [lost(next), data.to_owned()] {
        fs::File::open(&dir).and_then(|dir| dir.sync_all()).map_err(failed(&dir))?;
    }
    Ok(())
}

fn question(settings: &Settings, ticket: u64, rejoins: bool) -> Result<Manage, Error> {
    let own = own_member(settings)?;
    Ok(Manage::Add {
        name: own.name.clone(),
        peer_address: own.peer_address.clone(),
        client_address: own.client_address.clone(),
        ticket,
        stays: false,
        rejoins,
    })
}

/// Hash seeds are drawn by the system for each process.
fn draw_ticket() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish().max(1)
}

/// How many lost data directories are kept for whoever wants to look into them.
const LOST_KEPT: usize = 2;

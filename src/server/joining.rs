//! How a data directory comes to be: that of a new cluster's node, of a node that joins, and of one that takes its own
//! place as a new member because it lost what it knew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use super::joined::{self, Joined, Known};
use super::setup::{draw_data, load_credentials, open_options, own_member};
use super::{Error, Settings};
use crate::disk::OsDisk;
use crate::node;
use crate::pki::Credentials;
use crate::proto::client::Manage;
use crate::raft::{Founding, Index, NodeId};
use crate::store::snapshot;

/// Asks the cluster at these addresses for a change, until it is done, or says why it will never be.
pub type Ask<'a> = dyn Fn(Manage, Vec<String>) -> Asked + 'a;
/// The answer, when it comes.
pub type Asked = Pin<Box<dyn Future<Output = Result<Admitted, String>>>>;

/// What a node is told that joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Its id.
    pub id: u64,
    /// The members then.
    pub members: Vec<Known>,
}

/// Makes the data directory of a new cluster's node.
///
/// # Errors
/// If there is one already, or the disk says no.
pub fn init(settings: &Settings) -> Result<(), Error> {
    let credentials = load_credentials(settings)?;
    node::init(&open_options(settings, &credentials)?, Founding::of(founders(settings)))?;
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
    let options = open_options(settings, &credentials)?;
    Ok(node::restore(&options, founders(settings), (from, file), skipped)?)
}

fn founders(settings: &Settings) -> BTreeMap<NodeId, String> {
    settings.members.iter().map(|member| (NodeId(member.id), member.name.clone())).collect()
}

/// What a node that wants to join must ask for: `None` if its data directory holds a member already. The question
/// is kept, so that it is the same after a crash. A node that joins again sets data aside that was made for it by mistake,
/// with `--init`, or that has no place in the cluster any more.
///
/// # Errors
/// If the data directory cannot be written or read, or the certificate is not the node's.
pub fn ask_to_join(settings: &Settings, rejoins: bool) -> Result<Option<Manage>, Error> {
    let credentials = load_credentials(settings)?;
    let mut known = Joined::read(&settings.data)?;
    if node::holds_data(&OsDisk, &settings.data) {
        if !rejoins || !node::is_unseated(open_options(settings, &credentials)?)? {
            return Ok(None);
        }
        tracing::warn!(
            "the data of {} has no place in the cluster: it is kept beside",
            settings.name
        );
        move_aside(&settings.data)?;
        known = None;
    }
    let joined = match known {
        Some(joined) => joined,
        None => {
            let joined = Joined { data: draw_data()?.0, ..Joined::default() };
            joined.write(&settings.data)?;
            joined
        }
    };
    Ok(Some(question(settings, joined.data, rejoins)?))
}

/// Makes the data directory of a node that was admitted.
///
/// # Errors
/// If there is one already, or the disk says no.
pub fn init_joined(settings: &Settings, admitted: Admitted) -> Result<(), Error> {
    let credentials = load_credentials(settings)?;
    let Admitted { id, members } = admitted;
    let joined = Joined::read(&settings.data)?.unwrap_or_default();
    Joined { id: Some(id), members, ..joined }.write(&settings.data)?;
    node::init_learner(&open_options(settings, &credentials)?)?;
    Ok(())
}

/// A node that asks for its successor: the question's data directory, and the answer when it comes.
pub(super) struct Succession {
    data: u64,
    asked: Asked,
}

/// Asks for a new member in the place of this node.
///
/// # Errors
/// If the settings do not say how the node is reached.
pub(super) fn succeed(
    settings: &Settings,
    others: impl Iterator<Item = String>,
    ask: &Ask<'_>,
) -> Result<Succession, Error> {
    let members = settings.members.iter().filter(|member| member.name != settings.name);
    let mut endpoints: Vec<String> = members.map(|member| member.client_address.clone()).collect();
    endpoints.extend(others);
    endpoints.sort();
    endpoints.dedup();
    // Drawn anew at each start: at worst a member that was never there is replaced in its turn.
    let data = draw_data()?.0;
    Ok(Succession { data, asked: ask(question(settings, data, true)?, endpoints) })
}

/// The answer to [`succeed`]; never, while nothing was asked.
pub(super) async fn given(succession: &mut Option<Succession>) -> Result<Joined, String> {
    let Some(Succession { data, asked }) = succession else { return std::future::pending().await };
    let Admitted { id, members } = asked.await?;
    Ok(Joined { data: *data, id: Some(id), replaces: true, members })
}

/// The data directory becomes that of the new member; what it held is kept beside it.
///
/// # Errors
/// If the disk says no. Begun again at the next start then.
pub(super) fn replace(
    settings: &Settings,
    credentials: &Credentials,
    joined: Joined,
) -> Result<(), Error> {
    joined.write(&settings.data)?;
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
    move_aside(&settings.data)?;
    node::init_learner(&open_options(settings, credentials)?)?;
    Joined { replaces: false, ..joined }.write(&settings.data)?;
    Ok(())
}

fn move_aside(data: &Path) -> Result<(), joined::Error> {
    let failed = |(path, source)| joined::Error::Io { op: "move aside", path, source };
    set_aside(data).map_err(failed)
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

fn question(settings: &Settings, data: u64, rejoins: bool) -> Result<Manage, Error> {
    let own = own_member(settings)?;
    Ok(Manage::Add {
        name: own.name.clone(),
        peer_address: own.peer_address.clone(),
        client_address: own.client_address.clone(),
        data,
        stays: false,
        rejoins,
    })
}

/// How many lost data directories are kept for whoever wants to look into them.
const LOST_KEPT: usize = 2;

//! From what a node is told at start to what its parts are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};

use super::driver::TICK;
use super::joined::{Joined, Known};
use super::{Error, Member, Settings};
use crate::disk::OsDisk;
use crate::node::{About, OpenOptions};
use crate::pki::{self, Credentials};
use crate::raft::{Config, Contact, DataId, NodeId};
use crate::{store, wal};

/// The node's entry among the members.
///
/// # Errors
/// [`Error::NotAMember`].
pub(super) fn own_member(settings: &Settings) -> Result<&Member, Error> {
    let own = settings.members.iter().find(|member| member.name == settings.name);
    own.ok_or_else(|| Error::NotAMember(settings.name.clone()))
}

/// The node's certificate and key.
///
/// # Errors
/// If they cannot be used, or are another node's.
pub(super) fn load_credentials(settings: &Settings) -> Result<Credentials, Error> {
    let credentials = Credentials::load(&settings.certs, &settings.name)?;
    let certificate = credentials.identity().to_string();
    match &credentials.identity().who {
        pki::Who::Node { name } if *name == settings.name => Ok(credentials),
        pki::Who::Node { .. } | pki::Who::Client { .. } => {
            Err(Error::WrongCertificate { certificate, name: settings.name.clone() })
        }
    }
}

/// How the node's data directory is opened.
///
/// # Errors
/// If the settings do not say who the node is.
pub(super) fn open_options(
    settings: &Settings,
    credentials: &Credentials,
) -> Result<OpenOptions, Error> {
    let joined = Joined::read(&settings.data)?;
    let (id, data) = match &joined {
        Some(joined) => {
            let id = joined.id.ok_or_else(|| Error::NotJoined(settings.name.clone()))?;
            (NodeId(id), DataId(joined.data))
        }
        None => (NodeId(own_member(settings)?.id), draw_data()?),
    };
    let ticks = |time: Duration| {
        u32::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX).max(1)
    };
    let heartbeat_ticks = ticks(settings.heartbeat);
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    let cluster = &credentials.identity().cluster;
    let secret = credentials.derive_secret(b"quicraft store hash");
    // The ids of the configuration are those of the founders; who joined was given another.
    let founders = settings.members.iter().filter(|_| joined.is_none());
    let founders = founders.map(|member| (NodeId(member.id), member.name.clone())).collect();
    Ok(OpenOptions {
        dir: settings.data.clone(),
        disk: Arc::new(OsDisk),
        identity: wal::Identity { cluster: pki::cluster_id(cluster), node: id, data },
        log: wal::Options {
            segment_bytes: settings.segment_bytes,
            ..wal::Options::new(settings.log_io)
        },
        store: store::Options {
            arena_bytes: ARENA_BYTES,
            hash_seed: u64::from_le_bytes(*secret.first_chunk().expect("32 bytes hold 8")),
        },
        raft: Config {
            id,
            data,
            heartbeat_ticks,
            election_ticks: ticks(settings.election_timeout).max(heartbeat_ticks + 1),
            seed,
            append_bytes_max: APPEND_BYTES_MAX,
            append_entries_max: APPEND_ENTRIES_MAX,
            window_bytes_max: WINDOW_BYTES_MAX,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
            lease_ms: if settings.lease_reads { lease_ms(settings.election_timeout) } else { 0 },
        },
        about: About {
            name: settings.name.clone(),
            cluster: cluster.clone(),
            configured: configured(settings, joined.as_ref()),
            value_bytes_max: settings.value_bytes_max,
            store_bytes_max: settings.store_bytes_max,
            snapshot_log_bytes: settings.snapshot_log_bytes,
            retention: crate::node::Retention {
                revisions: settings.history_revisions,
                age_ms: u64::try_from(settings.history_age.as_millis()).unwrap_or(u64::MAX),
            },
        },
        founders,
        has_others: joined.is_some() || settings.members.len() > 1,
    })
}

/// How nodes are reached: as a node was told when it joined, and above all as its configuration says.
fn configured(settings: &Settings, joined: Option<&Joined>) -> BTreeMap<String, Contact> {
    let told = joined.into_iter().flat_map(|joined| joined.members.iter().cloned());
    let told = told.map(|Known { name, peer, client }| Contact {
        name,
        peer_address: peer,
        client_address: client,
    });
    let members = settings.members.iter().cloned();
    let configured = members.map(|Member { name, peer_address, client_address, .. }| Contact {
        name,
        peer_address,
        client_address,
    });
    told.chain(configured).map(|contact| (contact.name.clone(), contact)).collect()
}

/// The number of a new data directory.
///
/// # Errors
/// If the system has no randomness.
pub(super) fn draw_data() -> Result<DataId, Error> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
    Ok(DataId(u64::from_le_bytes(bytes).max(1)))
}

/// The lease of a leader ends before the promises that it rests on, also if a voter's clock runs by a third faster.
fn lease_ms(election_timeout: Duration) -> u64 {
    u64::try_from(election_timeout.as_millis() * 2 / 3).unwrap_or(u64::MAX)
}

/// Address space for the store: what its 32-bit offsets reach.
const ARENA_BYTES: u64 = 32 << 30;
/// Bytes of entries in one message between nodes.
const APPEND_BYTES_MAX: u64 = 256 << 10;
/// Entries in one message between nodes.
const APPEND_ENTRIES_MAX: usize = 4096;
/// Bytes on their way to one follower: what a long path holds, and what the disk at its end has not synced yet.
const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// Bytes proposed and not committed; above it clients get `Busy`.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

//! The rules between keys, and the bounds of each.

use std::collections::BTreeMap;
use std::time::Duration;

use super::units::show_size;
use super::{Draft, Error, Origin};
use crate::proto::limits::{MEMBERS_MAX, VALUE_BYTES_CEILING};
use crate::server::Settings;

/// More members than this make every write slower and the cluster hardly safer.
const MEMBERS_WISE: usize = 7;
/// A leader that is silent for fewer heartbeats than this would often be taken for dead.
const HEARTBEATS_PER_ELECTION_MIN: u32 = 5;
const HEARTBEAT_MIN: Duration = Duration::from_millis(1);
const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Below this, segment headers and rotation cost more than the entries.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const STORE_BYTES_MIN: u64 = 1 << 20;
/// The store links by 32-bit offsets in units of 8 bytes.
const STORE_BYTES_CEILING: u64 = 32 << 30;

/// Checks every rule.
pub(super) fn check(draft: &Draft) -> Result<(), Error> {
    let settings = &draft.config.settings;
    let same = settings.peer_listen == settings.client_listen;
    let key =
        if draft.origins.contains_key("client_listen") { "client_listen" } else { "peer_listen" };
    refuse(same, draft.origin(key), || {
        format!("client_listen and peer_listen are both {}; they must differ", settings.peer_listen)
    })?;
    check_times(draft)?;
    check_sizes(draft)?;
    check_members(draft)
}

/// What is allowed but unwise.
pub(super) fn warnings(settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    let n = settings.members.len();
    if n > MEMBERS_WISE {
        warnings.push(format!("{n} members: more than {MEMBERS_WISE} make every write slower"));
    }
    if n == 2 {
        warnings.push("2 members: the cluster stops when either of them does".to_owned());
    }
    warnings
}

fn check_times(draft: &Draft) -> Result<(), Error> {
    let settings = &draft.config.settings;
    let (heartbeat, election) = (settings.heartbeat, settings.election_timeout);
    let show = |time: Duration| humantime::format_duration(time).to_string();
    refuse(heartbeat < HEARTBEAT_MIN, draft.origin("heartbeat"), || {
        format!("heartbeat is {}; at least {}", show(heartbeat), show(HEARTBEAT_MIN))
    })?;
    refuse(election > ELECTION_TIMEOUT_MAX, draft.origin("election_timeout"), || {
        format!("election_timeout is {}; at most {}", show(election), show(ELECTION_TIMEOUT_MAX))
    })?;
    let least = heartbeat.saturating_mul(HEARTBEATS_PER_ELECTION_MIN);
    let key = if draft.origins.contains_key("election_timeout") {
        "election_timeout"
    } else {
        "heartbeat"
    };
    refuse(election < least, draft.origin(key), || {
        format!(
            "election_timeout is {} with heartbeat {}; at least {HEARTBEATS_PER_ELECTION_MIN} times the heartbeat: {}",
            show(election),
            show(heartbeat),
            show(least)
        )
    })
}

fn check_sizes(draft: &Draft) -> Result<(), Error> {
    let settings = &draft.config.settings;
    let value_bytes = settings.value_bytes_max as u64;
    check_range(draft, "value_max", value_bytes, 1, VALUE_BYTES_CEILING as u64)?;
    check_range(draft, "segment", settings.segment_bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)?;
    check_range(
        draft,
        "snapshot_after",
        settings.snapshot_log_bytes,
        SEGMENT_BYTES_MIN,
        STORE_BYTES_CEILING,
    )?;
    check_range(draft, "store_max", settings.store_bytes_max, STORE_BYTES_MIN, STORE_BYTES_CEILING)
}

fn check_range(draft: &Draft, key: &str, bytes: u64, min: u64, max: u64) -> Result<(), Error> {
    refuse(!(min..=max).contains(&bytes), draft.origin(key), || {
        format!(
            "{key} is {}; allowed is {} to {}",
            show_size(bytes),
            show_size(min),
            show_size(max)
        )
    })
}

fn check_members(draft: &Draft) -> Result<(), Error> {
    let settings = &draft.config.settings;
    let n = settings.members.len();
    let last = draft.member_origins.last().cloned().unwrap_or(Origin::Default);
    refuse(n > MEMBERS_MAX, last, || format!("{n} members; at most {MEMBERS_MAX}"))?;
    let mut seen = BTreeMap::new();
    for (member, origin) in settings.members.iter().zip(&draft.member_origins) {
        // Ids, names and addresses are told apart by their prefix; an address may serve one purpose of one member.
        for fact in [
            format!("id {}", member.id),
            format!("name {}", member.name),
            format!("address {}", member.peer_address),
            format!("address {}", member.client_address),
        ] {
            let first = seen.insert(fact.clone(), origin);
            refuse(first.is_some(), origin.clone(), || {
                format!("{fact} stands twice in [[members]]; each must be unique")
            })?;
        }
    }
    let known = settings.members.iter().any(|member| member.name == settings.name);
    refuse(!known, draft.origin("name"), || {
        let names: Vec<_> = settings.members.iter().map(|member| member.name.as_str()).collect();
        format!("name {:?} is not in [[members]]; they are {}", settings.name, names.join(", "))
    })
}

fn refuse(wrong: bool, origin: Origin, rule: impl FnOnce() -> String) -> Result<(), Error> {
    if wrong { Err(Error::Rule { origin, rule: rule() }) } else { Ok(()) }
}

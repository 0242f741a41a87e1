//! A member list in the form `node0ip=127.0.0.1` / `node0port=29016`, one pair for each node, `#` for comments.
//!
//! Node `i` becomes the member `n(i+1)` with id `i+1`. Its port is where clients go; the peers' port lies
//! [`PEER_PORT_OFFSET`] above it.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::{ADDRESS_ALLOWED, address};
use super::{Error, Origin};
use crate::server::Member;

/// From a node's client port to its peer port, as in `quicraft cluster`.
const PEER_PORT_OFFSET: u16 = 100;

#[derive(Default)]
struct Pair {
    ip: Option<String>,
    port: Option<u16>,
    line: usize,
}

/// The members, each with its line.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<(Member, usize)>, Error> {
    let mut pairs: BTreeMap<u16, Pair> = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong =
            || syntax(path, number, "give lines such as `node0ip=10.0.0.1` and `node0port=29016`");
        let (key, value) = line.split_once('=').ok_or_else(wrong)?;
        let rest = key.trim().strip_prefix("node").ok_or_else(wrong)?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let pair = pairs.entry(rest[..digits].parse().map_err(|_| wrong())?).or_default();
        pair.line = number;
        let twice = match &rest[digits..] {
            "ip" => pair.ip.replace(value.trim().to_owned()).is_some(),
            "port" => pair.port.replace(value.trim().parse().map_err(|_| wrong())?).is_some(),
            _ => return Err(wrong()),
        };
        if twice {
            return Err(syntax(path, number, &format!("{} stands twice", key.trim())));
        }
    }
    if pairs.is_empty() {
        return Err(syntax(
            path,
            1,
            "no node in this file; give `node0ip=` and `node0port=` lines",
        ));
    }
    pairs.into_iter().map(|(i, pair)| member(path, i, pair)).collect()
}

fn member(path: &Path, i: u16, pair: Pair) -> Result<(Member, usize), Error> {
    let missing = |key: &str| syntax(path, pair.line, &format!("node{i}{key} is missing"));
    let ip = pair.ip.as_ref().ok_or_else(|| missing("ip"))?;
    let port = pair.port.ok_or_else(|| missing("port"))?;
    let full = |port: Option<u16>| {
        let port = port.unwrap_or(0); // 0 is refused below
        address(&format!("{ip}:{port}"))
            .ok_or_else(|| syntax(path, pair.line, &format!("node{i}: give {ADDRESS_ALLOWED}")))
    };
    let id = u64::from(i) + 1;
    let member = Member {
        id,
        name: format!("n{id}"),
        peer_address: full(port.checked_add(PEER_PORT_OFFSET))?,
        client_address: full(Some(port))?,
    };
    Ok((member, pair.line))
}

fn syntax(path: &Path, line: usize, reason: &str) -> Error {
    Error::Syntax {
        origin: Origin::File { path: path.to_owned(), line },
        reason: reason.to_owned(),
    }
}

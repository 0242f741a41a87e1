//! From the text of `node.toml` to keys with their lines.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{NAME_ALLOWED, is_name, key_names};
use super::{Error, Origin};
use crate::server::Member;

/// What stands in a file, still as text.
pub(super) struct Content {
    pub(super) entries: Vec<Entry>,
    pub(super) members: Vec<(Member, Origin)>,
}

/// One scalar key of the file.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) origin: Origin,
}

/// Reads the form, not the meaning: unknown scalar keys pass, they are refused where flags and variables are too.
pub(super) fn parse(path: &Path, text: &str) -> Result<Content, Error> {
    let reader = Reader { path, text };
    let document = DeTable::parse(text).map_err(|error| Error::Syntax {
        origin: reader.origin(error.span().unwrap_or(0..0)),
        reason: error.message().lines().collect::<Vec<_>>().join("; "),
    })?;
    let mut content = Content { entries: Vec::new(), members: Vec::new() };
    for (key, value) in reader.in_order(document.get_ref()) {
        if key.get_ref() == "members" {
            content.members = reader.members(value)?;
            continue;
        }
        let origin = reader.origin(key.span());
        if !key_names().any(|name| name == key.get_ref()) {
            let (key, allowed) = (key.get_ref().to_string(), allowed_keys());
            return Err(Error::UnknownKey { origin, key, allowed });
        }
        let value = reader.scalar(key.get_ref(), value)?;
        content.entries.push(Entry { key: key.get_ref().to_string(), value, origin });
    }
    Ok(content)
}

/// All top-level keys, for messages.
pub(super) fn allowed_keys() -> String {
    key_names().chain(["[[members]]"]).collect::<Vec<_>>().join(", ")
}

const MEMBER_KEYS: &str = "id, name, peer, client";
pub(super) const ADDRESS_ALLOWED: &str =
    "a host and a port from 1 to 65535, such as \"10.0.0.1:7101\"";

/// The file, to find the line of a place in it.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn origin(&self, span: Range<usize>) -> Origin {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Origin::File { path: self.path.to_owned(), line }
    }

    /// The table's entries as they stand in the file, so that the first error is the topmost.
    fn in_order<'t, 'i>(
        &self,
        table: &'t DeTable<'i>,
    ) -> Vec<(&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>)> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries
    }

    /// The text of a string, a decimal integer or a truth value.
    fn scalar(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, Error> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Boolean(truth) => Ok(truth.to_string()),
            DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
            other => Err(Error::Syntax {
                origin: self.origin(value.span()),
                reason: format!(
                    "{key} is {} here; give text in quotes, a decimal number, true or false",
                    article(other.type_str())
                ),
            }),
        }
    }

    fn members(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<(Member, Origin)>, Error> {
        let wrong = |span| Error::Syntax {
            origin: self.origin(span),
            reason: format!("members are tables: [[members]] with {MEMBER_KEYS}"),
        };
        let list = value.get_ref().as_array().ok_or_else(|| wrong(value.span()))?;
        let mut members = Vec::with_capacity(list.len());
        for item in list.iter() {
            let table = item.get_ref().as_table().ok_or_else(|| wrong(item.span()))?;
            let origin = self.origin(item.span());
            members.push((self.member(table, &origin)?, origin));
        }
        Ok(members)
    }

    fn member(&self, table: &DeTable<'_>, origin: &Origin) -> Result<Member, Error> {
        for (key, _) in self.in_order(table) {
            if !["id", "name", "peer", "client"].contains(&key.get_ref().as_ref()) {
                return Err(Error::UnknownKey {
                    origin: self.origin(key.span()),
                    key: format!("members.{}", key.get_ref()),
                    allowed: MEMBER_KEYS.to_owned(),
                });
            }
        }
        let id = self.field(table, origin, "id", "a number from 1 up", |text| {
            text.parse().ok().filter(|id| *id >= 1)
        })?;
        let name = self.field(table, origin, "name", NAME_ALLOWED, |text| {
            is_name(text).then(|| text.to_owned())
        })?;
        let peer_address = self.field(table, origin, "peer", ADDRESS_ALLOWED, address)?;
        let client_address = self.field(table, origin, "client", ADDRESS_ALLOWED, address)?;
        Ok(Member { id, name, peer_address, client_address })
    }

    /// One key of a member.
    fn field<T>(
        &self,
        table: &DeTable<'_>,
        origin: &Origin,
        key: &'static str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let key_text = || format!("members.{key}");
        let Some(value) = table.get(key) else {
            let (origin, allowed) = (origin.clone(), allowed.to_owned());
            return Err(Error::Missing { origin, key: key_text(), allowed });
        };
        let text = self.scalar(&key_text(), value)?;
        read(&text).ok_or_else(|| Error::BadValue {
            origin: self.origin(value.span()),
            key: key_text(),
            value: text.clone(),
            allowed: allowed.to_owned(),
        })
    }
}

/// `host:port`; the host may be a name, an IPv4 address or an IPv6 address in brackets.
pub(super) fn address(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = !host.is_empty() && !host.contains([':', '/', ' ', '[', ']']);
    (port != 0 && (plain || bracketed)).then(|| text.to_owned())
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

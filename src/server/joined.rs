//! What a node that joined a running cluster keeps beside its data: the number of its data directory, with which it asked,
//! so that it can ask again after a crash and be the same; the id that it was given; and whom it can ask who the members
//! are, until its log tells it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Joined {
    /// The number of the data directory, drawn before the first question; never zero. As text: TOML has no numbers of 64
    /// bits without a sign.
    #[serde(with = "hex")]
    pub(super) data: u64,
    /// The answer, once it came.
    pub(super) id: Option<u64>,
    /// The data directory still holds the data of the member whose place this one takes.
    #[serde(default)]
    pub(super) replaces: bool,
    /// The members when it joined.
    #[serde(default)]
    pub(super) members: Vec<Known>,
}

/// A member that a joining node was told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Its name, as in its certificate.
    pub name: String,
    /// `host:port` for other nodes.
    pub peer: String,
    /// `host:port` for clients.
    pub client: String,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Joined {
    /// What the data directory says, if it says anything.
    pub(super) fn read(data: &Path) -> Result<Option<Joined>, Error> {
        let path = data.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { op: "read", path, source }),
        };
        match toml::from_str(&text) {
            Ok(joined) => Ok(Some(joined)),
            Err(error) => Err(Error::Malformed { path, reason: error.message().to_owned() }),
        }
    }

    /// Writes it durably, whole or not at all.
    pub(super) fn write(&self, data: &Path) -> Result<(), Error> {
        let path = data.join(FILE);
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
            let new = path.with_extension("new");
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            let text = toml::to_string(self).map_err(io::Error::other)?;
            file.write_all(
                format!("# Made by `quicraft node --join`; it goes with the data.\n{text}")
                    .as_bytes(),
            )?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(data)?.sync_all()
        };
        write().map_err(|source| Error::Io { op: "write", path: path.clone(), source })
    }
}

const FILE: &str = "joined.toml";

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{number:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
        let text = String::deserialize(input)?;
        u64::from_str_radix(&text, 16).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_what_it_wrote_and_refuses_anything_else() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("n4");
        assert_eq!(Joined::read(&data).unwrap(), None);
        let known = |name: &str| Known {
            name: name.to_owned(),
            peer: format!("{name}:7101"),
            client: format!("{name}:7001"),
        };
        for joined in [
            Joined { data: u64::MAX, ..Joined::default() },
            Joined {
                data: 1,
                id: Some(4),
                replaces: true,
                members: vec![known("n1"), known("n2")],
            },
        ] {
            joined.write(&data).unwrap();
            assert_eq!(Joined::read(&data).unwrap(), Some(joined));
        }
        for text in ["", "data = 1", "data = \"x\"", "data = \"1\"\nidentity = 2"] {
            fs::write(data.join(FILE), text).unwrap();
            let error = Joined::read(&data).unwrap_err().to_string();
            assert!(error.contains("joined.toml: "), "{error}");
        }
    }
}

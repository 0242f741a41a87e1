//! Snapshot files: the store at one revision, checked to the last byte.
//!
//! **For:** restarting without the log's beginning, and bringing a follower up to date.
//!
//! **In and out:** [`Image::write`](super::Image::write) makes one in a [`Dir`]; [`Store::load`] and
//! [`Dir::load_newest`] read one; [`Dir::verify`], [`Dir::list`] and [`Dir::retain`] look after them.
//!
//! **Always:** a file named `{index:016x}.snap` was complete and synced, and was read back from the disk, before it got
//! its name. Any changed, missing or added byte makes it damaged; damaged files are never loaded and never removed by
//! [`Dir::load_newest`].
//!
//! **Left out:** transfer; the receiver writes the bytes to a file and calls [`Dir::verify`].
//!
//! The bytes of the file: `format`, and `docs/format.md`.

use std::path::{Path, PathBuf};

use super::arena::Arena;
pub use super::files::Dir;
use super::files::{self, NewFile, Pace, Source};
pub(super) use super::format::Header;
use super::format::{self, BLOCK_BYTES, DIGEST_BYTES, Input, LENGTHS_AT, Output};
use super::frozen::Frozen;
use super::history::History;
use super::session::Sessions;
use super::tree::Tree;
use super::{Error, Options, Store};
use crate::raft::{Index, Term};

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The cluster whose state it is.
    pub cluster: [u8; 16],
    /// The last entry that is included.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The membership at that entry, as the log encodes it; at most [`MEMBERSHIP_BYTES_MAX`].
    pub membership: Vec<u8>,
}

/// A snapshot that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The file.
    pub path: PathBuf,
    /// The last entry that is included.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The file's length.
    pub bytes: u64,
}

/// What was found at a restart.
pub struct Recovery {
    /// The store of the newest undamaged snapshot, with what that says about itself; `None` if there is none.
    pub loaded: Option<(Store, SnapshotMeta)>,
    /// Why newer files were passed over, newest first.
    pub damaged: Vec<Error>,
}

/// What a snapshot file holds, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What it says about itself.
    pub meta: SnapshotMeta,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of the keys and their values.
    pub live_bytes: u64,
    /// The oldest revision that can be read.
    pub oldest: Index,
    /// A hash over everything that led to it.
    pub state_hash: u64,
    /// The length of the file.
    pub bytes: u64,
}

impl Dir {
    /// The snapshots, newest first, by name only.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn list(&self) -> Result<Vec<(Index, PathBuf)>, Error> {
        let names = self.names()?;
        let path = |name: &String| Some((index_of(name)?, self.path.join(name)));
        Ok(names.iter().rev().filter_map(path).collect())
    }

    /// Index and term of the newest snapshot that is not damaged.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::Version`].
    pub fn newest_sound(&self) -> Result<Option<(Index, Term)>, Error> {
        for (_, path) in self.list()? {
            match self.verify(&path) {
                Ok(meta) => return Ok(Some((meta.index, meta.term))),
                Err(Error::Corrupt { .. } | Error::Disk(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Reads a whole file and checks every byte.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Version`], [`Error::Disk`].
    pub fn verify(&self, path: &Path) -> Result<SnapshotMeta, Error> {
        Ok(self.describe(path)?.meta)
    }

    /// Reads a whole file, checks every byte, and says what it holds.
    ///
    /// # Errors
    /// As [`Dir::verify`].
    pub fn describe(&self, path: &Path) -> Result<Description, Error> {
        describe(Input::open(self, path)?)
    }

    /// What tells a snapshot file from every other: its digest, unchecked.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::Corrupt`] for a file that is too short.
    pub fn digest(&self, path: &Path) -> Result<[u8; DIGEST_BYTES], Error> {
        let mut source = Source::open(self, path)?;
        let mut digest = [0; DIGEST_BYTES];
        source.offset = source.len.saturating_sub(format::END_BYTES);
        source.read(&mut digest)?;
        Ok(digest)
    }

    /// Makes a snapshot in this directory from the one at `path` in `from`: the same state under another `meta`, whose
    /// index may be later. Every byte is checked on the way.
    ///
    /// # Errors
    /// As [`Dir::verify`].
    ///
    /// # Panics
    /// If `meta` goes back to an earlier index.
    pub fn adopt(
        &self,
        from: &Dir,
        path: &Path,
        meta: impl FnOnce(&SnapshotMeta) -> SnapshotMeta,
    ) -> Result<SnapshotInfo, Error> {
        let mut input = Input::open(from, path)?;
        let mut header = input.header()?;
        let meta = meta(&header.meta);
        assert!(meta.index >= header.meta.index, "revisions never go back");
        header.meta = meta;
        let file = NewFile::create(self, &name(header.meta.index), Pace::default())?;
        let mut output = Output::begin(file, &header)?;
        for section in [header.replicated_bytes, header.image_bytes] {
            input.pass(section, |block| output.block(block))?;
        }
        input.end()?;
        finish(output, &header.meta, &Pace::default())
    }

    /// Loads the newest snapshot that is not damaged, and removes what unfinished ones left behind.
    ///
    /// # Errors
    /// If the directory cannot be read, if memory is short, or if a snapshot is of another format version: an older
    /// state must not pass for the newest then.
    pub fn load_newest(&self, options: Options) -> Result<Recovery, Error> {
        for name in self.names()? {
            if name.ends_with(files::TEMPORARY) {
                self.remove(&self.path.join(name))?;
            }
        }
        let mut damaged = Vec::new();
        for (_, path) in self.list()? {
            match Store::load(self, &path, options) {
                Ok(loaded) => return Ok(Recovery { loaded: Some(loaded), damaged }),
                Err(error @ (Error::Corrupt { .. } | Error::Disk(_))) => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(Recovery { loaded: None, damaged })
    }

    /// Gives the damaged files that [`Dir::load_newest`] found another name, under which they are no snapshots any more.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn set_aside(&self, damaged: &[Error]) -> Result<(), Error> {
        for error in damaged {
            // Of what could not be read it is not known what it is.
            if let Error::Corrupt { path, .. } = error {
                self.rename(path, &path.with_extension(DAMAGED))?;
            }
        }
        Ok(())
    }

    /// Removes all but the `count` newest snapshots; gives the indexes that are left, newest first.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn retain(&self, count: usize) -> Result<Vec<Index>, Error> {
        let all = self.list()?;
        for (_, path) in all.iter().skip(count) {
            self.remove(path)?;
        }
        Ok(all.into_iter().take(count).map(|(index, _)| index).collect())
    }
}

/// The file name of the snapshot at `index`.
pub fn name(index: Index) -> String {
    format!("{:016x}{SUFFIX}", index.0)
}

impl Store {
    /// The store that a snapshot holds; every byte of the file is checked on the way.
    pub fn load(dir: &Dir, path: &Path, options: Options) -> Result<(Store, SnapshotMeta), Error> {
        let mut input = Input::open(dir, path)?;
        let header = input.header()?;
        let state_at = input.source.offset;
        let state_len = usize::try_from(header.replicated_bytes)
            .map_err(|_| input.source.corrupt(LENGTHS_AT, "impossible length"))?;
        let mut state = vec![0; state_len];
        input.section(&mut state)?;
        let (sessions, history) = decode_replicated(&state, header.meta.index.0)
            .filter(|(_, history)| history.oldest() == header.oldest.0)
            .ok_or_else(|| input.source.corrupt(state_at, "the sessions make no sense"))?;
        let mut writer = Arena::reserve(options.arena_bytes)?;
        input.section(writer.restore(header.image_bytes)?)?;
        input.end()?;
        let mut tree = Tree::of_image(writer, header.counts);
        let revision = header.meta.index;
        tree.publish(revision.0);
        tree.set_oldest(history.oldest());
        let state_hash = header.state_hash;
        let retired = Vec::new();
        let store = Store { tree, sessions, history, revision, state_hash, retired };
        Ok((store, header.meta))
    }
}

/// What the state section holds: all that is replicated beside the keys.
pub(super) fn encode_replicated(sessions: &Sessions, history: &History) -> Vec<u8> {
    let bytes = sessions.encode();
    postcard::to_extend(history, bytes).expect("writing to memory does not fail for such types")
}

fn decode_replicated(bytes: &[u8], index: u64) -> Option<(Sessions, History)> {
    let (sessions, rest) = Sessions::decode(bytes, index)?;
    let (history, rest) = postcard::take_from_bytes::<History>(rest).ok()?;
    (rest.is_empty() && history.is_sound(index)).then_some((sessions, history))
}

/// Writes a snapshot file, reads it back and gives it its name; does something else between the blocks of the image.
pub(super) fn write(
    dir: &Dir,
    header: &Header,
    state: &[u8],
    image: Frozen,
    pace: &Pace,
    meanwhile: &mut dyn FnMut(),
) -> Result<SnapshotInfo, Error> {
    let file = NewFile::create(dir, &name(header.meta.index), pace.clone())?;
    let mut output = Output::begin(file, header)?;
    for block in state.chunks(BLOCK_BYTES) {
        output.block(block)?;
    }
    image.read(BLOCK_BYTES, |block| {
        meanwhile();
        output.block(block)
    })?;
    finish(output, &header.meta, pace)
}

/// Reads a file back and gives it its name.
fn finish(mut output: Output, meta: &SnapshotMeta, pace: &Pace) -> Result<SnapshotInfo, Error> {
    output.end()?;
    let back = describe(output.file.sync()?.into())?.meta;
    assert_eq!(back, *meta, "a snapshot says what was written");
    pace.check()?;
    let bytes = output.bytes;
    let path = output.file.publish_as(&name(back.index))?;
    Ok(SnapshotInfo { path, index: back.index, term: back.term, bytes })
}

/// Checks every byte, and says what they hold.
pub(super) fn describe(mut input: Input) -> Result<Description, Error> {
    let header = input.header()?;
    for section in [header.replicated_bytes, header.image_bytes] {
        input.pass(section, |_| Ok(()))?;
    }
    input.end()?;
    Ok(Description {
        meta: header.meta,
        keys: header.counts.keys,
        live_bytes: header.counts.live_bytes,
        oldest: header.oldest,
        state_hash: header.state_hash,
        bytes: input.source.len,
    })
}

fn index_of(name: &str) -> Option<Index> {
    let digits = name.strip_suffix(SUFFIX)?;
    let plain = digits.len() == 16 && !digits.starts_with('+');
    let index = u64::from_str_radix(digits, 16).ok().filter(|_| plain)?;
    (self::name(Index(index)) == name).then_some(Index(index))
}

/// Longest membership in a snapshot: far more than the most members need.
pub const MEMBERSHIP_BYTES_MAX: usize = 64 << 10;
const SUFFIX: &str = ".snap";
/// What the name of a damaged one ends in.
const DAMAGED: &str = "damaged";

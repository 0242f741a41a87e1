//! A snapshot that comes from another node: written piece by piece, verified whole, then published.

use std::path::PathBuf;

use super::files::{Dir, NewFile, Pace};
use super::{Error, snapshot};

/// A snapshot file in the making; dropped before [`Incoming::finish`] it leaves nothing behind.
pub struct Incoming {
    file: NewFile,
    bytes: u64,
}

impl Incoming {
    /// Begins a file in `dir`, which is made if it is missing. One at a time: a second one would write
    /// over the first.
    ///
    /// # Errors
    /// [`Error::Disk`] if the file cannot be made.
    pub fn create(dir: &Dir) -> Result<Incoming, Error> {
        dir.create()?;
        Ok(Incoming { file: NewFile::create(dir, "incoming", Pace::default())?, bytes: 0 })
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// [`Error::Disk`], for example on a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// How many bytes are here.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks every byte, makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is no whole snapshot of this cluster; nothing is left behind then.
    pub fn finish(mut self, cluster: &[u8; 16]) -> Result<PathBuf, Error> {
        let source = self.file.sync()?;
        let temporary = source.path.clone();
        let meta = snapshot::describe(source.into())?.meta;
        if meta.cluster != *cluster {
            let (path, reason) = (temporary, "it is of another cluster");
            return Err(Error::Corrupt { path, offset: 0, reason });
        }
        self.file.publish_as(&snapshot::name(meta.index))
    }
}

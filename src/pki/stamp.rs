//! Whether the files of credentials have changed since they were read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the file system says of `ca.crt`, `NAME.crt` and `NAME.key`. Taking it costs three system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp([Option<File>; 3]);

/// Time of the last change with its nanoseconds, number and length.
type File = (i64, i64, u64, u64);

impl Stamp {
    /// The files as they are now.
    pub fn of(dir: &Path, name: &str) -> Stamp {
        Stamp(["ca.crt".to_owned(), format!("{name}.crt"), format!("{name}.key")].map(|file| {
            let found = fs::metadata(dir.join(file)).ok()?;
            Some((found.mtime(), found.mtime_nsec(), found.ino(), found.len()))
        }))
    }
}

//! P: which file a vhost file is, and which user owns it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// What an open handle says of a file.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct FileIdentity {
    /// The numeric id of the user who owns the file.
    pub uid: u32,
    inode: Inode,
}

/// A file system reuses the number of a removed file at once, so the time of birth belongs to it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Inode {
    device: u64,
    number: u64,
    /// Nanoseconds since the epoch; 0 where the file system does not keep it.
    born: u64,
}

impl FileIdentity {
    pub fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok();
        let born = born.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            uid: metadata.uid(),
            inode: Inode {
                device: metadata.dev(),
                number: metadata.ino(),
                born: born.map_or(0, |it| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX)),
            },
        }
    }

    /// A text that is in no file, such as standard input, and has `uid`'s rights.
    pub fn without_file(uid: u32) -> Self {
        Self {
            uid,
            ..Self::default()
        }
    }

    /// A rename, a `chown` and a write in place keep it, a copy does not. `None`: there is no file.
    pub fn inode(&self) -> Option<Inode> {
        (self.inode != Inode::default()).then_some(self.inode)
    }

    /// Whether both are one file.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.inode().is_some() && self.inode == other.inode
    }
}

//! R: symbolic links below a root that nginx does not follow.
//!
//! `disable_symlinks if_not_owner` stops a link whose owner is not that of its target; only nginx's
//! error log says so.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a walk has found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StoppedLinks {
    /// With the user id of each target.
    pub links: Vec<(PathBuf, u32)>,
    /// Entries that were looked at.
    pub entries: usize,
    /// Whether these were all.
    pub is_whole: bool,
}

/// Looks at `most` entries below `root`, level by level. Links are not followed, and names that begin
/// with a dot are left out: nginx does not serve them.
pub fn stopped_below(root: &Path, most: usize) -> StoppedLinks {
    let mut found = StoppedLinks {
        is_whole: true,
        ..StoppedLinks::default()
    };
    let mut level = vec![root.to_path_buf()];
    while !level.is_empty() {
        let mut below = Vec::new();
        for directory in level {
            // what cannot be read is told elsewhere
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                if found.entries == most {
                    found.is_whole = false;
                    return found;
                }
                found.entries += 1;
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => below.push(entry.path()),
                    Ok(kind) if kind.is_symlink() => found.links.extend(stopped(entry.path())),
                    _ => {}
                }
            }
        }
        below.sort();
        level = below;
    }
    found
}

fn stopped(link: PathBuf) -> Option<(PathBuf, u32)> {
    let own = fs::symlink_metadata(&link).ok()?.uid();
    let target = fs::metadata(&link).ok()?.uid();
    (own != target).then_some((link, target))
}

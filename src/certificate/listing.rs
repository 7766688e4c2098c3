//! R: what is in a directory that may not be there yet.

use std::fs;
use std::io;
use std::path::Path;

/// The names in it, in no order; none where it does not exist.
pub(super) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        let name = entry?.file_name();
        Ok(name.to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

/// Those that are no dot-files.
pub(crate) fn visible_names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = names(directory)?;
    names.retain(|name| !name.starts_with('.'));
    Ok(names)
}

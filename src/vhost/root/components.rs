//! R: how a root's path is resolved, component by component, and who owns what it goes through.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component as Part, Path, PathBuf};

use super::links::{Component, Lookup};

/// The components of `root`, which is absolute and without `..`, as far as they can be looked at.
pub(super) fn components(root: &Path) -> Vec<Component> {
    let mut resolution = Resolution {
        at: PathBuf::from("/"),
        lookups: Vec::new(),
        links: 0,
    };
    let mut written = PathBuf::from("/");
    let mut components = Vec::new();
    for part in root.components() {
        let Part::Normal(name) = part else { continue };
        written.push(name);
        let Ok(entry) = resolution.enter(name) else {
            break;
        };
        let Ok(target) = fs::symlink_metadata(&resolution.at) else {
            break;
        };
        components.push(Component {
            path: written.clone(),
            lookups: std::mem::take(&mut resolution.lookups),
            uid: entry.uid(),
            target_uid: target.uid(),
        });
    }
    components
}

/// As the kernel does it (path_resolution(7)).
struct Resolution {
    /// Without symbolic links.
    at: PathBuf,
    lookups: Vec<Lookup>,
    links: usize,
}

impl Resolution {
    /// Goes on to `name` and to where that leads; returns what the entry itself is.
    fn enter(&mut self, name: &OsStr) -> io::Result<Metadata> {
        let directory = fs::symlink_metadata(&self.at)?;
        let path = self.at.join(name);
        let entry = fs::symlink_metadata(&path)?;
        self.lookups.push(Lookup {
            directory_uid: directory.uid(),
            directory_mode: directory.mode(),
            entry_uid: entry.uid(),
        });
        match entry.is_symlink() {
            true => self.follow(&fs::read_link(&path)?)?,
            false => self.at = path,
        }
        Ok(entry)
    }

    fn follow(&mut self, target: &Path) -> io::Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(io::Error::from(nix::errno::Errno::ELOOP));
        }
        for part in target.components() {
            match part {
                Part::RootDir => self.at = PathBuf::from("/"),
                Part::ParentDir => {
                    self.at.pop();
                }
                Part::Normal(name) => {
                    self.enter(name)?;
                }
                Part::CurDir | Part::Prefix(_) => {}
            }
        }
        Ok(())
    }
}

/// Linux follows as many (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_component_has_the_lookups_of_every_name_that_its_link_leads_through() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("app/releases/5/public")).unwrap();
        symlink("releases/../releases/5", base.join("app/current")).unwrap();
        symlink(base.join("app/current"), base.join("app/live")).unwrap();
        let depth = base.components().count() - 1;
        let lookups = |root: &str| {
            let components = components(&base.join(root));
            let written = components[depth..].iter();
            written.map(|it| it.lookups.len()).collect::<Vec<_>>()
        };
        assert_eq!(lookups("app/releases/5"), [1, 1, 1]);
        assert_eq!(lookups("app/current/public"), [1, 4, 1]);
        assert_eq!(lookups("app/live/public"), [1, 1 + depth + 1 + 4, 1]);
        let last = components(&base.join("app/current")).pop().unwrap();
        assert_eq!(last.path, base.join("app/current"));
    }

    #[test]
    fn components_end_with_the_last_that_leads_somewhere() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        fs::create_dir(base.join("app")).unwrap();
        symlink("loop", base.join("app/loop")).unwrap();
        symlink("gone", base.join("app/dangling")).unwrap();
        for root in ["app/loop/x", "app/dangling", "app/missing/public"] {
            let last = components(&base.join(root)).pop().unwrap();
            assert_eq!(last.path, base.join("app"), "{root}");
        }
    }

    #[test]
    fn the_owner_of_a_link_and_that_of_its_target_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().canonicalize().unwrap().join("proc");
        symlink("/proc/1", &link).unwrap();
        let found = components(&link).pop().unwrap();
        assert_eq!(found.uid, fs::symlink_metadata(&link).unwrap().uid());
        assert_eq!(found.target_uid, fs::metadata(&link).unwrap().uid());
    }
}

//! W: the roots of our CA in the system's own trust store.
//!
//! Every family of distributions has a directory for the admin's roots, and a command that makes
//! from it what programs read. A root is one file there, `vhostd-ID.crt`; what is not byte for byte
//! a root of ours is not touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::atomic_file::{self, WriteError};
use crate::certificate::internal::Root;
use crate::command::{self, CommandError};

/// Where this system's admin puts roots, and how they are read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustStore {
    pub directory: PathBuf,
    program: PathBuf,
    /// What the program needs to hear to forget what is gone.
    forget: &'static [&'static str],
}

/// What was done in the directory.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    pub added: Vec<PathBuf>,
    pub removed: Vec<PathBuf>,
    /// Named like a root of ours, and something else.
    pub foreign: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("find this system's trust store: there is none that vhostd knows")]
    NoStore,
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("update the trust store: {} {how}", program.display())]
    Update { program: PathBuf, how: String },
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl TrustStore {
    /// The first of the known ones that this system has.
    pub fn of_this_system() -> Result<Self, TrustError> {
        Self::below(Path::new("/"))
    }

    fn below(top: &Path) -> Result<Self, TrustError> {
        let found = FAMILIES.iter().find_map(|family| {
            let directory = top.join(family.directory);
            let mut programs = PROGRAMS.iter().map(|it| top.join(it).join(family.program));
            let program = programs.find(|program| program.is_file())?;
            directory.is_dir().then_some(Self {
                directory,
                program,
                forget: family.forget,
            })
        });
        found.ok_or(TrustError::NoStore)
    }

    /// Makes the system trust `roots`, and `former` ones no more.
    pub fn install(&self, roots: &[Root], former: &[Root]) -> Result<Changes, TrustError> {
        let mut changes = self.remove(former)?;
        for root in roots {
            let path = self.path(root);
            match read(&path)? {
                Some(text) if text == root.pem.as_bytes() => {}
                // of that name only we make files
                _ => {
                    atomic_file::write(&path, root.pem.as_bytes(), 0o644)?;
                    changes.added.push(path);
                }
            }
        }
        self.update(!changes.removed.is_empty())?;
        Ok(changes)
    }

    /// Makes the system trust none of `roots` any more.
    pub fn uninstall(&self, roots: &[Root]) -> Result<Changes, TrustError> {
        let changes = self.remove(roots)?;
        self.update(true)?;
        Ok(changes)
    }

    /// What a person who has installed some of `roots` should know; `former` are those that nobody
    /// should trust any more.
    pub fn advice(&self, roots: &[Root], former: &[Root]) -> Option<String> {
        let names = |roots: Vec<&Root>| {
            let names = roots.iter().map(|root| root.name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let (held, missing): (Vec<_>, Vec<_>) = roots.iter().partition(|root| self.holds(root));
        let left: Vec<_> = former.iter().filter(|root| self.holds(root)).collect();
        match (held.is_empty() && left.is_empty(), missing.is_empty()) {
            (true, _) => None,
            (false, false) => Some(format!(
                "this system does not trust {}, as it does earlier roots: run `vhostd ca install`",
                names(missing)
            )),
            (false, true) if left.is_empty() => None,
            (false, true) => Some(format!(
                "this system still trusts {}, which is not in use any more: run `vhostd ca install`",
                names(left)
            )),
        }
    }

    pub fn holds(&self, root: &Root) -> bool {
        fs::read(self.path(root)).is_ok_and(|text| text == root.pem.as_bytes())
    }

    fn remove(&self, roots: &[Root]) -> Result<Changes, TrustError> {
        // it would be taken for a root, too
        atomic_file::sweep_dead(&self.directory)?;
        let mut changes = Changes::default();
        for root in roots {
            let path = self.path(root);
            match read(&path)? {
                None => {}
                Some(text) if text == root.pem.as_bytes() => {
                    atomic_file::remove(&path)?;
                    changes.removed.push(path);
                }
                Some(_) => changes.foreign.push(path),
            }
        }
        Ok(changes)
    }

    /// Also where nothing was changed: somebody may have been killed before this.
    fn update(&self, forgetting: bool) -> Result<(), TrustError> {
        let arguments = match forgetting {
            true => self.forget,
            false => &[],
        };
        let finished = command::run(&self.program, arguments, LIMIT)?;
        if finished.status.success() {
            return Ok(());
        }
        let mut said = finished.stderr.lines().map(str::trim);
        let last = said.rfind(|line| !line.is_empty());
        let how = match last {
            Some(line) => format!("ended with {}: {line}", finished.status),
            None => format!("ended with {}", finished.status),
        };
        let program = self.program.clone();
        Err(TrustError::Update { program, how })
    }

    fn path(&self, root: &Root) -> PathBuf {
        self.directory.join(format!("vhostd-{}.crt", root.id))
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, TrustError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TrustError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

struct Family {
    directory: &'static str,
    program: &'static str,
    forget: &'static [&'static str],
}

const FAMILIES: [Family; 4] = [
    // Debian, Ubuntu, Alpine: without it the links to a removed root stay in /etc/ssl/certs
    Family {
        directory: "usr/local/share/ca-certificates",
        program: "update-ca-certificates",
        forget: &["--fresh"],
    },
    // Fedora, RHEL
    Family {
        directory: "etc/pki/ca-trust/source/anchors",
        program: "update-ca-trust",
        forget: &[],
    },
    // Arch
    Family {
        directory: "etc/ca-certificates/trust-source/anchors",
        program: "update-ca-trust",
        forget: &[],
    },
    // SUSE
    Family {
        directory: "etc/pki/trust/anchors",
        program: "update-ca-certificates",
        forget: &[],
    },
];

/// Where the system has its programs, whatever PATH says.
const PROGRAMS: [&str; 3] = ["usr/sbin", "usr/bin", "sbin"];

/// Its hooks may convert the whole store for Java.
const LIMIT: Duration = Duration::from_secs(120);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::slice::from_ref;

    use time::OffsetDateTime;

    use super::*;
    use crate::certificate::Identifier;
    use crate::certificate::internal::InternalCa;

    fn system(family: &Family, script: &str) -> (tempfile::TempDir, TrustStore) {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join(family.directory)).unwrap();
        fs::create_dir_all(top.path().join("usr/sbin")).unwrap();
        let program = top.path().join("usr/sbin").join(family.program);
        let log = top.path().join("ran");
        let script = format!(
            "#!/bin/sh\necho \"ran $*\" >> {}\n{script}\n",
            log.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let store = TrustStore::below(top.path()).unwrap();
        (top, store)
    }

    fn root() -> Root {
        let directory = tempfile::tempdir().unwrap();
        let ca = InternalCa::new(directory.path());
        let name = [Identifier::Dns("a.test".into())];
        ca.prepare([&name[..]], OffsetDateTime::UNIX_EPOCH).unwrap();
        ca.roots().unwrap().remove(0)
    }

    #[test]
    fn each_family_of_distributions_is_known_by_its_directory_and_its_program() {
        for family in &FAMILIES {
            let (top, store) = system(family, "");
            assert_eq!(store.directory, top.path().join(family.directory));
            let root = root();
            let added = store.install(from_ref(&root), &[]).unwrap().added;
            assert_eq!(
                added,
                [store.directory.join(format!("vhostd-{}.crt", root.id))]
            );
            assert!(store.holds(&root));
            assert_eq!(store.uninstall(from_ref(&root)).unwrap().removed, added);
            assert!(!store.holds(&root));
            let ran = fs::read_to_string(top.path().join("ran")).unwrap();
            assert_eq!(ran.lines().count(), 2, "{ran}");
            fs::remove_dir(store.directory).unwrap();
            let none = TrustStore::below(top.path()).unwrap_err();
            assert!(matches!(none, TrustError::NoStore));
        }
    }

    #[test]
    fn what_is_not_ours_stays_and_a_former_root_goes() {
        let (top, store) = system(&FAMILIES[0], "");
        let (first, second) = (root(), root());
        store.install(from_ref(&first), &[]).unwrap();
        fs::write(store.directory.join("vhostd-other.crt"), "x").unwrap();
        let changes = store.install(from_ref(&second), from_ref(&first)).unwrap();
        assert_eq!((changes.added.len(), changes.removed.len()), (1, 1));
        // somebody has put something else there
        let path = store.path(&second);
        fs::write(&path, "y").unwrap();
        let changes = store.uninstall(&[first, second]).unwrap();
        assert_eq!(changes.foreign, from_ref(&path));
        assert_eq!(fs::read_to_string(path).unwrap(), "y");
        assert!(store.directory.join("vhostd-other.crt").exists());
        drop(top);
    }

    #[test]
    fn what_was_killed_half_way_is_finished_by_the_next_run() {
        let (top, store) = system(&FAMILIES[0], "");
        let root = root();
        let half = store.directory.join(".vhostd-tmp-9999999-1-vhostd-x.crt");
        fs::write(&half, &root.pem[..40]).unwrap();
        // written, and the program was not run
        fs::write(store.path(&root), &root.pem).unwrap();
        assert_eq!(store.install(&[root], &[]).unwrap(), Changes::default());
        assert!(!half.exists());
        let ran = fs::read_to_string(top.path().join("ran")).unwrap();
        assert_eq!(ran, "ran \n");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let (_top, store) = system(&FAMILIES[0], "echo 'no space' >&2; exit 3");
        let error = store.install(&[root()], &[]).unwrap_err().to_string();
        let words = "update-ca-certificates ended with exit status: 3: no space";
        assert!(error.ends_with(words), "{error}");
    }
}

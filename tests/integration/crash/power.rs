//! A power cut after every fsync: the disk as it is then is copied, mounted and looked at.
//!
//! The host lives on an ext4 of its own (`noauto_da_alloc`: nothing is written early out of
//! kindness; no journal commit by the clock), so what is durable changes only when vhostd says so.

mod order; // the machine starts again, and the CA goes on

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::scene::{Reload, Renewal, Rollback, Scene, Setup};
use crate::support::host::{Host, acme};
use crate::support::nginx::NginxHost;
use crate::support::pebble::Pebble;
use crate::support::tracer::{Effect, Fate, is_possible, trace};
use crate::support::wait_for;
use crate::support::walk::Walk;

/// A file system in a file; unmounted when dropped.
struct Disk {
    directory: tempfile::TempDir,
    /// How many copies were made.
    cuts: AtomicUsize,
}

impl Disk {
    /// `None`, loudly, where nothing can be mounted.
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let cuts = AtomicUsize::default();
        let disk = Self { directory, cuts };
        let file = fs::File::create(disk.path("live.img")).unwrap();
        file.set_len(24 << 20).unwrap();
        let options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        let made = run(Command::new("mkfs.ext4")
            .args(options)
            .arg(disk.path("live.img")));
        assert!(made.status.success(), "{made:?}");
        fs::create_dir(disk.path("live")).unwrap();
        let mounted = disk.mount("live");
        if !mounted.status.success() {
            eprintln!("SKIPPED: no file system can be mounted here: {mounted:?}");
            return None;
        }
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mount(&self, name: &str) -> Output {
        let image = self.path(&format!("{name}.img"));
        run(Command::new("mount")
            .args(["-o", "loop,noauto_da_alloc,commit=600"])
            .args([image, self.path(name)]))
    }

    /// All that was written so far is durable.
    fn sync(&self) {
        let synced = run(Command::new("sync").arg("-f").arg(self.path("live")));
        assert!(synced.status.success(), "{synced:?}");
    }

    /// What a machine finds whose power was cut now.
    fn cut(&self) -> Cut<'_> {
        let name = self.copy();
        fs::create_dir(self.path(&name)).unwrap();
        let mounted = self.mount(&name);
        assert!(mounted.status.success(), "{mounted:?}");
        Cut { disk: self, name }
    }

    /// The power fails and comes back, and nginx starts again.
    fn cut_power(&self, host: &Host) {
        let copy = self.path(&format!("{}.img", self.copy()));
        host.nginx.stop();
        self.umount();
        fs::rename(copy, self.path("live.img")).unwrap();
        let mounted = self.mount("live");
        assert!(mounted.status.success(), "{mounted:?}");
        host.nginx.start();
    }

    /// An image of what is durable; its name.
    fn copy(&self) -> String {
        // a name of its own: somebody's mount namespace may hold on to the one before
        let name = format!("cut{}", self.cuts.fetch_add(1, Ordering::Relaxed));
        let images = ["live.img".to_owned(), format!("{name}.img")].map(|name| self.path(&name));
        // the kernel may write while it is read: only a copy that is the same afterwards is one of
        // a single moment
        wait_for("a copy of the disk", || {
            let copied = run(Command::new("cp").arg("--sparse=always").args(&images));
            assert!(copied.status.success(), "{copied:?}");
            let same = run(Command::new("cmp").arg("--silent").args(&images));
            same.status.success().then_some(())
        });
        name
    }

    fn umount(&self) {
        // lazily: nginx is told to end, and may still have its log open
        run(Command::new("umount").arg("--lazy").arg(self.path("live")));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.umount();
    }
}

/// The copy, mounted; unmounted when dropped.
struct Cut<'a> {
    disk: &'a Disk,
    name: String,
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        let umounted = run(Command::new("umount").arg(self.root()));
        if umounted.status.success() {
            let _ = fs::remove_file(self.disk.path(&format!("{}.img", self.name)));
        }
    }
}

impl Cut<'_> {
    /// Where something of the host is in the copy.
    fn path(&self, host: &Host, name: &str) -> PathBuf {
        let live = host.path(name);
        let inside = live.strip_prefix(self.disk.path("live")).unwrap();
        self.root().join(inside)
    }

    fn root(&self) -> PathBuf {
        self.disk.path(&self.name)
    }

    /// Runs a script where the copy is in the place of the disk, with a network of its own.
    fn run(&self, script: &str) -> Output {
        let script = format!("mount --bind \"$0\" \"$1\" && ip link set lo up && {script}");
        run(Command::new("unshare")
            .args(["--mount", "--net", "sh", "-ec", &script])
            .args([self.root(), self.disk.path("live")]))
    }

    /// No file is torn: each is as some process wrote it, or absent.
    fn assert_whole(&self, host: &Host, at: &str) {
        for (path, bytes) in tree(&self.path(host, "state")) {
            if path.to_str().unwrap().contains("/.vhostd-tmp-") {
                continue;
            }
            if path.extension().is_some_and(|ending| ending == "json") {
                let value: Result<serde_json::Value, _> = serde_json::from_slice(&bytes);
                assert!(value.is_ok(), "{at}: {path:?} {value:?}");
            }
            let is_immutable = ["generations", "certificates", "placeholders", "accounts"]
                .iter()
                .any(|name| path.starts_with(format!("/{name}")));
            let live = fs::read(host.path("state").join(path.strip_prefix("/").unwrap()));
            if is_immutable && let Ok(live) = live {
                assert!(bytes == live, "{at}: {path:?} is torn");
            }
        }
    }

    /// nginx takes what is there, at once.
    fn assert_nginx_starts(&self, host: &Host, at: &str) {
        let test = self.run(&nginx(host, "-t"));
        assert!(test.status.success(), "{at}: {test:?}");
    }

    /// After the machine has started again, the next run makes all of it serve.
    fn assert_converges(&self, host: &Host, next: &str, at: &str) {
        let script = format!(
            "{start}; VHOSTD_CONFIG={config} {vhostd} {next}; \
             VHOSTD_CONFIG={config} {vhostd} status --json; {stop}; \
             while [ -e {pid} ]; do sleep 0.01; done",
            start = nginx(host, ""),
            config = host.path("vhostd.yml").display(),
            vhostd = env!("CARGO_BIN_EXE_vhostd"),
            stop = nginx(host, "-s stop"),
            pid = host.path("nginx.pid").display(),
        );
        let ended = self.run(&script);
        assert!(ended.status.success(), "{at}: {ended:?}");
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let (_, status) = said
            .split_once("\n{")
            .unwrap_or(("", said.trim_start_matches('{')));
        let status: serde_json::Value = serde_json::from_str(&format!("{{{status}")).unwrap();
        let generation = &status["generation"];
        // 0 has no listeners that could tell
        let serves = generation["active"] == 0 || generation["serving"] == generation["active"];
        assert!(serves, "{at}: {status}");
    }
}

/// `nginx` of this host, as a shell would run it.
fn nginx(host: &Host, arguments: &str) -> String {
    format!(
        "nginx -p {directory} -e {directory}/logs/error.log -c {directory}/nginx.conf {arguments}",
        directory = host.path("").display(),
    )
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// Each file with its bytes, each link with its target, each directory with nothing; by its path
/// from `root` on.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let bytes = if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                target.into_os_string().into_encoded_bytes()
            } else if kind.is_dir() {
                directories.push(path.clone());
                Vec::new()
            } else if kind.is_file() {
                fs::read(&path).unwrap()
            } else {
                continue;
            };
            let name = Path::new("/").join(path.strip_prefix(root).unwrap());
            found.insert(name, bytes);
        }
    }
    found
}

/// What vhostd keeps, and the file by which nginx reads it.
fn kept(root: impl Fn(&str) -> PathBuf) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = tree(&root("state"));
    all.extend(tree(&root("conf.d")));
    for name in ["vhosts.d", "run"] {
        all.insert(name.into(), vec![u8::from(root(name).is_dir())]);
    }
    all
}

/// The numbers that decide what a restart finds.
fn landmarks(cut: &Cut<'_>, host: &Host) -> Vec<PathBuf> {
    let is_landmark = |path: &PathBuf| {
        let depth = path.components().count();
        path.starts_with("/generations") && depth == 3
            || path.starts_with("/certificates") && depth == 4
    };
    let mut all: Vec<PathBuf> = tree(&cut.path(host, "state"))
        .into_keys()
        .filter(|path| is_landmark(path) && !path.to_str().unwrap().contains("tmp"))
        .collect();
    all.extend(fs::read_link(cut.path(host, "state/current")));
    all
}

/// Cuts the power after every fsync of one run, or a sample of them, and after its end. How many moments
/// there were.
fn cut_after_every_fsync(disk: &Disk, scene: &mut impl Scene) -> usize {
    let next = scene.arguments().join(" ");
    cut_and_start(disk, scene, &next)
}

/// `next`: what is run after a cut, where nothing but the host itself can be reached.
fn cut_and_start(disk: &Disk, scene: &mut impl Scene, next: &str) -> usize {
    let walk = Walk::new(&scene.arguments().join(" "));
    scene.prepare();
    disk.sync();
    let (mut cuts, mut synced, mut activated) = (0, false, false);
    let mut seen: Vec<Vec<PathBuf>> = Vec::new();
    let traced = {
        let scene = &*scene;
        let host = scene.host();
        let mut look = |at: &str| {
            let cut = disk.cut();
            cut.assert_whole(host, at);
            cut.assert_nginx_starts(host, at);
            let landmarks = landmarks(&cut, host);
            if !seen.contains(&landmarks) {
                seen.push(landmarks);
                cut.assert_converges(host, next, at);
            }
        };
        trace(&host.command(scene.arguments()), |call| {
            if synced && (call.effect.changes() || call.effect == Effect::Durability) {
                let activates = call.name == "rename" && call.path.ends_with("/current");
                if activates || activated || walk.meets(cuts) {
                    look(&format!("power cut before {call:?}"));
                }
                cuts += 1;
                (synced, activated) = (false, activates);
            }
            synced |= call.effect == Effect::Durability;
            Fate::Pass
        })
    };
    assert_eq!(traced.exit, Some(0), "{traced:?}");
    // it was reported as done: all of it is there
    let cut = disk.cut();
    let (live, found) = (
        kept(|name| scene.host().path(name)),
        kept(|name| cut.path(scene.host(), name)),
    );
    for (path, bytes) in &live {
        assert!(found.get(path) == Some(bytes), "{path:?} did not survive");
    }
    let extra: Vec<_> = found
        .keys()
        .filter(|path| !live.contains_key(*path))
        .collect();
    assert!(extra.is_empty(), "{extra:?} came back");
    drop(cut);
    scene.converge("after the cuts");
    eprintln!(
        "{}: {cuts} cuts, {} restarts",
        scene.arguments().join(" "),
        seen.len()
    );
    cuts + 1
}

/// Runs `test` with a disk, where that is possible.
fn with_disk(test: impl FnOnce(&Disk, &Path)) {
    if !is_possible() {
        return;
    }
    if let Some(disk) = Disk::new() {
        let home = disk.path("live");
        test(&disk, &home);
    }
}

#[test]
fn a_power_cut_after_any_fsync_of_a_reload_loses_nothing_that_was_reported() {
    with_disk(|disk, home| {
        let cuts = cut_after_every_fsync(disk, &mut Reload::on(Host::below(home)));
        assert!(cuts > 15, "{cuts}");
    });
}

#[test]
fn a_power_cut_after_any_fsync_of_a_renewal_loses_no_key_and_no_certificate() {
    with_disk(|disk, home| {
        let cuts = cut_after_every_fsync(disk, &mut Renewal::on(Host::below(home), None));
        assert!(cuts > 10, "{cuts}");
    });
}

#[test]
fn a_power_cut_after_any_fsync_of_an_order_loses_no_key_and_no_certificate() {
    with_disk(|disk, home| {
        let nginx = NginxHost::below(home);
        let pebble = Pebble::builder(nginx.http_port).refused_nonces(0).start();
        let host = Host::on(nginx, &acme(&pebble));
        let cuts = cut_and_start(disk, &mut Renewal::on(host, Some(pebble)), "renew");
        assert!(cuts > 10, "{cuts}");
    });
}

#[test]
fn a_power_cut_after_any_fsync_of_a_rollback_loses_nothing_that_was_reported() {
    with_disk(|disk, home| {
        let cuts = cut_after_every_fsync(disk, &mut Rollback::on(Host::below(home)));
        assert!(cuts > 10, "{cuts}");
    });
}

#[test]
fn a_power_cut_after_any_fsync_of_a_setup_leaves_nginx_able_to_start() {
    with_disk(|disk, home| {
        let cuts = cut_after_every_fsync(disk, &mut Setup::below(home));
        assert!(cuts > 10, "{cuts}");
    });
}

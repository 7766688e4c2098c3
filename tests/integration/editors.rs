//! Every way of saving a file is seen, and none drops the site.

mod lost;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use super::support::client;
use super::support::host::{Daemon, Host};
use super::support::traffic::Traffic;
use super::support::{wait_for, wait_within};

const NAME: &str = "hello.example.com";
/// The daemon reads the directory every 30 seconds, whatever it was told.
const SEEN: Duration = Duration::from_secs(10);

/// A served page, requested without a pause until the end of the test.
struct Site {
    host: Host,
    daemon: Daemon,
    traffic: Traffic,
}

impl Site {
    /// `hello.yml` serves page 1.
    fn new() -> Self {
        let host = Host::with_settings("tls: off\n");
        for page in 1..=3 {
            host.page(&page.to_string(), &page.to_string());
        }
        let daemon = host.daemon();
        host.drop_file("hello.yml", &text(&host, 1));
        host.wait_for_serving("hello");
        let traffic = Traffic::http(&host, NAME);
        Self {
            host,
            daemon,
            traffic,
        }
    }

    fn text(&self, page: u8) -> String {
        text(&self.host, page)
    }

    fn file(&self) -> PathBuf {
        self.path("hello.yml")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.path("vhosts.d").join(name)
    }

    fn wait_for(&self, page: u8) {
        wait_for_page(&self.host, page);
    }

    /// `page` serves, and no request failed on the way.
    fn converges_to(self, page: u8) {
        self.wait_for(page);
        println!("{}", self.daemon.log());
        self.traffic.assert_unbroken();
    }
}

fn text(host: &Host, page: u8) -> String {
    let root = host.path("srv").join(page.to_string());
    format!("server_name: {NAME}\nroot: {}\n", root.display())
}

/// Well before the daemon would look by itself: the event was seen.
fn wait_for_page(host: &Host, page: u8) {
    wait_within(SEEN, &format!("page {page}"), || {
        let answer = client::get(host.http(), NAME, "/").ok()?;
        (answer.body == page.to_string().as_bytes()).then_some(())
    });
}

/// What a person or a slow disk takes; no condition to poll for.
fn pause() {
    thread::sleep(Duration::from_millis(300));
}

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("HOME", directory)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

#[test]
fn a_file_written_in_place_is_seen_and_while_it_is_empty_the_site_stays() {
    let site = Site::new();
    let mut file = fs::File::create(site.file()).unwrap();
    pause();
    file.write_all(site.text(2).as_bytes()).unwrap();
    drop(file);
    site.converges_to(2);
}

#[test]
fn a_half_written_file_is_not_served_even_where_the_half_would_do() {
    let site = Site::new();
    let before = site.host.active();
    let mut file = fs::File::create(site.file()).unwrap();
    // whole keys of a file that is not whole
    file.write_all(site.text(2).as_bytes()).unwrap();
    pause();
    assert_eq!(site.host.active(), before, "{}", site.daemon.log());
    file.write_all(b"redirect_from: www.example.com\n").unwrap();
    drop(file);
    site.wait_for(2);
    wait_for("the whole file", || {
        let www = client::get(site.host.http(), "www.example.com", "/").ok()?;
        (www.status == 301).then_some(())
    });
    assert_eq!(site.host.active(), before + 1);
    site.converges_to(2);
}

#[test]
fn a_file_renamed_into_place_is_seen() {
    let site = Site::new();
    site.host.drop_file("hello.yml", &site.text(2));
    site.converges_to(2);
}

#[test]
fn a_save_in_vims_way_is_seen() {
    let site = Site::new();
    // :help 'backupcopy' "no", with its probe for a writable directory
    fs::write(site.path("4913"), "").unwrap();
    fs::remove_file(site.path("4913")).unwrap();
    fs::write(site.path(".hello.yml.swp"), "b0VIM").unwrap();
    fs::rename(site.file(), site.path("hello.yml~")).unwrap();
    pause();
    fs::write(site.file(), site.text(2)).unwrap();
    fs::remove_file(site.path("hello.yml~")).unwrap();
    fs::remove_file(site.path(".hello.yml.swp")).unwrap();
    site.wait_for(2);
    for copy in ["no", "yes"] {
        site.host.drop_file("hello.yml", &site.text(2));
        site.wait_for(2);
        let set = format!("set writebackup backupcopy={copy}");
        let arguments = [
            "-Nu",
            "NONE",
            "-es",
            "-c",
            &set,
            "-c",
            "%s,/2$,/3,",
            "-c",
            "wq",
        ];
        let file = site.file();
        let all = [&arguments[..], &[file.to_str().unwrap()]].concat();
        run("vim", &all, &site.host.path("temp"));
        site.wait_for(3);
    }
    site.converges_to(3);
}

#[test]
fn a_save_in_emacs_way_is_seen() {
    let site = Site::new();
    symlink("someone@host.4711:1763884800", site.path(".#hello.yml")).unwrap();
    fs::write(site.path("#hello.yml#"), "server_name: half").unwrap();
    fs::rename(site.file(), site.path("hello.yml~")).unwrap();
    pause();
    fs::write(site.file(), site.text(2)).unwrap();
    fs::remove_file(site.path("#hello.yml#")).unwrap();
    fs::remove_file(site.path(".#hello.yml")).unwrap();
    site.converges_to(2);
}

#[test]
fn git_checkout_of_another_branch_is_seen() {
    let site = Site::new();
    let directory = site.host.path("vhosts.d");
    let git = |arguments: &[&str]| {
        let who = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
        run("git", &[&who[..], arguments].concat(), &directory);
    };
    git(&["init", "-q", "-b", "one"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "one"]);
    git(&["checkout", "-qb", "two"]);
    fs::write(site.file(), site.text(2)).unwrap();
    fs::write(
        site.path("extra.yml"),
        "server_name: extra.example.com\nroot: /nowhere\n",
    )
    .unwrap();
    git(&["add", "."]);
    git(&["commit", "-qm", "two"]);
    site.wait_for(2);
    for (branch, page) in [("one", 1), ("two", 2), ("one", 1)] {
        git(&["checkout", "-q", branch]);
        site.wait_for(page);
    }
    site.converges_to(1);
}

#[test]
fn rsync_is_seen() {
    let site = Site::new();
    let source = site.host.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("hello.yml"), format!("{}# new\n", site.text(2))).unwrap();
    let directory = site.host.path("vhosts.d");
    let arguments = ["-a", "--delete", "./", directory.to_str().unwrap()];
    run("rsync", &arguments, &source);
    site.converges_to(2);
}

#[test]
fn ansible_template_is_seen() {
    let site = Site::new();
    // written elsewhere, then owner, mode and a time of its own, then moved
    let elsewhere = site.host.path("temp/.ansible-tmp-1763884800.1-source");
    fs::write(&elsewhere, site.text(2)).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o644)).unwrap();
    let old = SystemTime::now() - Duration::from_secs(86400);
    let file = fs::File::options().write(true).open(&elsewhere).unwrap();
    file.set_modified(old).unwrap();
    drop(file);
    fs::rename(elsewhere, site.file()).unwrap();
    site.wait_for(2);
    // from another file system: copied beside the target first
    let beside = site.path(".ansible_tmpx7k2hello.yml");
    fs::write(&beside, site.text(3)).unwrap();
    fs::rename(beside, site.file()).unwrap();
    site.converges_to(3);
}

#[test]
fn a_touch_reloads_nothing() {
    let site = Site::new();
    let (before, seen) = (site.host.active(), nothing_to_change(&site));
    let file = fs::File::options().write(true).open(site.file()).unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    drop(file);
    wait_for("the daemon to look", || {
        (nothing_to_change(&site) > seen).then_some(())
    });
    assert_eq!(site.host.active(), before);
    site.converges_to(1);
}

fn nothing_to_change(site: &Site) -> usize {
    site.daemon
        .log()
        .matches("nothing to change (file)")
        .count()
}

//! `nginx -t` is an effect: what it does while it judges stays where nobody sees it.

mod prying; // what code that has taken over nginx's test could reach
mod units; // the units allow the sandbox

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::app::App;
use super::support::faults::processes_of;
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::wait_for;

/// Every path below `directory` but vhostd's own: inode, mode, owner and size.
type Listing = BTreeMap<PathBuf, (u64, u32, u32, u64)>;

fn listing(host: &Host) -> Listing {
    let mut found = Listing::new();
    let mut left = vec![host.path("")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let ours = ["state", "run", "vhosts.d", "strace.log"];
            if ours.iter().any(|name| path == host.path(name)) {
                continue;
            }
            let it = fs::symlink_metadata(&path).unwrap();
            // a directory's size tells how many entries it once had
            let size = if it.is_dir() { 0 } else { it.size() };
            found.insert(path.clone(), (it.ino(), it.mode(), it.uid(), size));
            if it.is_dir() {
                left.push(path);
            }
        }
    }
    found
}

/// Without privileges, nothing can be mounted: `what` is not tested then.
fn is_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: {what} needs root");
    }
    root
}

#[test]
fn a_refused_test_creates_no_log_no_directory_and_no_pid_file() {
    if !is_root("a mount namespace") {
        return;
    }
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    // an edit of the admin's that nobody has loaded; the address is nobody's, which nginx finds out
    // after it has created all that is named
    host.nginx.site(
        "unfinished",
        &format!(
            "access_log {0}/logs/unfinished.log;\n\
             proxy_cache_path {0}/temp/cache levels=1:2 keys_zone=unfinished:1m;\n\
             server {{ listen 192.0.2.1:8080; server_name x.example.org; }}\n",
            host.path("").display()
        ),
    );
    host.drop_app("shop", "shop.example.com", &app);
    let before = listing(&host);
    let report = host.reload_ends(1, "rejected");
    assert!(report.to_string().contains("192.0.2.1"), "{report}");
    assert_eq!(listing(&host), before);
    // the same while nginx is down, when even the pid file is missing
    host.nginx.stop();
    let before = listing(&host);
    assert!(!before.contains_key(&host.path("nginx.pid")));
    host.reload_ends(1, "rejected");
    assert_eq!(listing(&host), before);
}

#[test]
fn a_test_leaves_the_logs_of_the_running_nginx_as_they_are() {
    if !is_root("a mount namespace") {
        return;
    }
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    let log = host.path("logs/hello.access.log");
    assert!(wait_for("a line", || {
        host.plain("hello.example.com")?;
        (fs::metadata(&log).ok()?.len() > 0).then_some(true)
    }));
    let (before, pid) = (listing(&host), fs::read(host.path("nginx.pid")).unwrap());
    host.override_template("shop.example.com", "send_timeout nonsense;");
    let before_test = listing(&host);
    host.drop_app("shop", "shop.example.com", &app);
    host.reload_ends(3, "unchanged");
    assert_eq!(listing(&host), before_test);
    assert!(before_test.len() > before.len());
    assert_eq!(fs::read(host.path("nginx.pid")).unwrap(), pid);
}

/// `blog`'s second log cannot be opened, which nginx finds out when it has created the first.
fn host_with_half_a_log() -> Host {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    fs::create_dir(host.path("logs/blog#2.access.log")).unwrap();
    let text = format!(
        "- server_name: blog.example.com\n  proxy_pass_url: {0}\n\
         - server_name: www.example.com\n  proxy_pass_url: {0}\n",
        app.url()
    );
    host.drop_file("blog.yml", &text);
    host
}

#[test]
fn the_first_log_of_a_vhost_whose_second_nginx_refuses_is_not_left() {
    if !is_root("a mount namespace") {
        return;
    }
    let host = host_with_half_a_log();
    let before = listing(&host);
    host.reload_ends(3, "unchanged");
    assert_eq!(listing(&host), before);
}

#[test]
fn without_namespaces_it_is_put_back() {
    if !is_root("setpriv") {
        return;
    }
    let host = host_with_half_a_log();
    let before = listing(&host);
    let program = host.command(&["reload"]);
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
        .arg(program.get_program())
        .args(program.get_args())
        .env("VHOSTD_CONFIG", host.path("vhostd.yml"))
        .env("VHOSTD_LOG", "info")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert_eq!(said.matches("no mount namespace here").count(), 1, "{said}");
    assert_eq!(said.matches("no sandbox here").count(), 1, "{said}");
    assert_eq!(listing(&host), before);
    assert_eq!(fs::read_dir(host.path("state/scratch")).unwrap().count(), 0);
}

/// `vhostd` without the privilege to make namespaces, with these arguments.
fn without_namespaces(host: &Host, arguments: &[&str]) -> (Option<i32>, String, String) {
    let program = host.command(arguments);
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
        .arg(program.get_program())
        .args(program.get_args())
        .env("VHOSTD_CONFIG", host.path("vhostd.yml"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_missing_sandbox_is_told_by_every_reload_and_by_the_status() {
    if !is_root("setpriv") {
        return;
    }
    let host = Host::with_settings("tls: off\n");
    host.drop_app("hello", "hello.example.com", &App::start());
    let words = "nginx's tests of changed vhosts and of certificates have no sandbox on this host";
    // changed, and unchanged
    for _ in 0..2 {
        let (status, _, said) = without_namespaces(&host, &["reload"]);
        assert_eq!(status, Some(0), "{said}");
        assert_eq!(said.matches(words).count(), 1, "{said}");
        let warnings = host.status()["warnings"].to_string();
        assert!(warnings.contains(words), "{warnings}");
        let text = host.vhostd(&["status"]);
        assert!((text.stdout + &text.stderr).contains(words));
    }
    // a process that has one says nothing
    let reload = host.vhostd(&["reload"]);
    assert!(!reload.stderr.contains(words), "{reload:?}");
    let warnings = host.status()["warnings"].to_string();
    assert!(!warnings.contains(words), "{warnings}");
}

#[test]
fn where_the_sandbox_is_required_and_missing_no_candidate_is_tested_and_what_served_serves() {
    if !is_root("setpriv") {
        return;
    }
    let host = Host::with_settings("tls: off\nsandbox: require\n");
    let app = App::start();
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    host.drop_app("shop", "shop.example.com", &app);
    let before = (listing(&host), host.active());
    let (status, report, said) = without_namespaces(&host, &["reload", "--json"]);
    assert_eq!(status, Some(1), "{report} {said}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["outcome"], "rejected", "{report}");
    let words = report["error"].as_str().unwrap();
    assert!(
        words.starts_with("failed to test a candidate without the sandbox: "),
        "{words}"
    );
    let hint = report["hint"].as_str().unwrap();
    assert!(hint.contains("sandbox: auto"), "{hint}");
    assert_eq!((listing(&host), host.active()), before);
    assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
    assert!(host.plain("shop.example.com").is_none());
    let warnings = host.status()["warnings"].to_string();
    assert!(warnings.contains("have no sandbox"), "{warnings}");
    host.reload_ends(0, "activated");
    assert_eq!(host.plain("shop.example.com").unwrap().0, 200);
}

/// A program in nginx's place, which runs the real one, but for a changed vhost that is tried
/// alone: there it looks around, waits until it has been looked at from outside, and tells what it
/// saw as nginx would tell of a fault.
fn spy(directory: &Path) -> PathBuf {
    let path = directory.join("spy");
    let text = format!(
        "#!/bin/bash\n\
         case \"$*\" in\n\
         *scratch/nginx.conf*)\n\
         [ -e {0}/outside ] || exit 0\n\
         scratch=${{@: -1}}; scratch=${{scratch%/nginx.conf}}\n\
         file=$(ls $scratch/vhosts/* | head -1)\n\
         until [ -e {0}/seen ]; do sleep 0.02; done\n\
         see=\"pid=$$ processes=$(ls /proc | wc -l)\"\n\
         (echo x > {0}/outside) 2>/dev/null && see=\"$see wrote\"\n\
         (echo x > {0}/logs/mine.log) 2>/dev/null && see=\"$see logged\"\n\
         echo \"nginx: [emerg] $see in $file:1\" >&2; exit 1;;\n\
         esac\n\
         if [ -e {0}/outside ] && grep -qs vhosts/ {0}/state/current/http.conf; then\n\
         echo 'nginx: [emerg] the whole is refused' >&2; exit 1; fi\n\
         exec nginx \"$@\"\n",
        directory.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_changed_vhost_is_tried_alone_without_the_hosts_network_processes_files_and_privileges() {
    if !is_root("a sandbox") {
        return;
    }
    let nginx = NginxHost::new();
    let spy = spy(&nginx.path(""));
    let host = Host::on(nginx.with_binary(&spy), "tls: off\n");
    fs::write(host.path("outside"), "untouched").unwrap();
    host.drop_app("shop", "shop.example.com", &App::start());
    let (spied, report) = std::thread::scope(|scope| {
        // the running nginx is not this one, so more than the trial is not to be had
        let reload = scope.spawn(|| host.json(&["reload"]).1);
        let spied = wait_for("the trial", || {
            let of_spy = |(_, title): &(u32, String)| title.contains("scratch/nginx.conf");
            let pid = processes_of(&host.path("")).into_iter().find(of_spy)?.0;
            Some(Spied::look(pid))
        });
        fs::write(host.path("seen"), "").unwrap();
        (spied, reload.join().unwrap())
    });
    for (kind, namespace) in &spied.namespaces {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(*namespace, own, "{kind}");
    }
    let seen = report["rejected"][0]["reason"].as_str().unwrap();
    assert!(seen.contains("pid=1 processes=0"), "{seen}");
    assert!(spied.status.contains("NoNewPrivs:\t1"), "{}", spied.status);
    // NET_BIND_SERVICE
    for set in ["CapBnd", "CapEff", "CapPrm"] {
        let line = format!("{set}:\t0000000000000400");
        assert!(spied.status.contains(&line), "{}", spied.status);
    }
    // a user of its own
    for line in ["Uid", "Gid"].map(|name| format!("{name}:\t65533\t65533\t65533\t65533")) {
        assert!(spied.status.contains(&line), "{}", spied.status);
    }
    assert!(spied.status.contains("Groups:\t \n"), "{}", spied.status);
    assert!(!seen.contains("wrote"), "{seen}");
    assert_eq!(fs::read(host.path("outside")).unwrap(), b"untouched");
    // its log is one in memory
    assert!(seen.contains("logged"), "{seen}");
    assert!(!host.path("logs/mine.log").exists());
}

/// What is seen of a sandboxed process from outside.
struct Spied {
    namespaces: Vec<(&'static str, PathBuf)>,
    status: String,
}

impl Spied {
    fn look(pid: u32) -> Self {
        let namespace = |kind| {
            (
                kind,
                fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap(),
            )
        };
        Self {
            namespaces: ["mnt", "net", "pid", "ipc", "uts"].map(namespace).into(),
            status: fs::read_to_string(format!("/proc/{pid}/status")).unwrap(),
        }
    }
}

/// How often `vhostd reload` starts nginx.
#[derive(Debug, Eq, PartialEq)]
struct Runs {
    whole: usize,
    alone: usize,
}

fn nginx_runs(host: &Host) -> Runs {
    let log = host.path("strace.log");
    let program = host.command(&["reload"]);
    let status = Command::new("strace")
        .args(["-f", "-qq", "-s", "512", "-e", "trace=execve", "-o"])
        .arg(&log)
        .arg(program.get_program())
        .args(program.get_args())
        .env("VHOSTD_CONFIG", host.path("vhostd.yml"))
        .output()
        .unwrap()
        .status;
    assert!(matches!(status.code(), Some(0 | 3)), "{status:?}");
    let log = fs::read_to_string(log).unwrap();
    let count = |words: [&str; 2]| {
        let is_one = |line: &&str| words.iter().all(|word| line.contains(word));
        log.lines().filter(is_one).count()
    };
    Runs {
        whole: count(["nginx.conf", "\"-T\""]),
        alone: count(["/scratch/nginx.conf", "\"-t\""]),
    }
}

#[test]
fn bad_vhosts_among_a_thousand_cost_one_further_test_of_the_whole_however_many_they_are() {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    for number in 0..1000 {
        let name = format!("n{number}.example.com");
        host.drop_app(&format!("n{number}"), &name, &app);
    }
    host.reload_ends(0, "activated");
    let other = App::start();
    host.drop_app("n7", "n7.example.com", &other);
    let good = nginx_runs(&host);
    // one for the hand-written files, one for the whole
    assert_eq!(good, Runs { whole: 2, alone: 1 });
    drop_bad_ones(&host, &app);
    host.drop_app("n7", "n7.example.com", &app);
    let bad = nginx_runs(&host);
    assert_eq!(bad.whole, good.whole + 1);
    assert_eq!(host.state("bad1"), "rejected");
    assert_eq!(host.state("n7"), "serving");
}

/// Three that nginx refuses, each at a line of its own.
fn drop_bad_ones(host: &Host, app: &App) {
    host.override_template("bad.example.com", "send_timeout nonsense;");
    let template = host.path("templates/vhost.conf");
    let bent = fs::read_to_string(&template).unwrap();
    let names = r#"name in ["bad1.example.com", "bad2.example.com", "bad3.example.com"]"#;
    let bent = bent.replace(r#"name == "bad.example.com""#, names);
    fs::write(&template, bent).unwrap();
    for number in 1..=3 {
        let name = format!("bad{number}.example.com");
        host.drop_app(&format!("bad{number}"), &name, app);
    }
}

#[test]
fn with_a_log_directory_behind_a_link_the_trial_judges_all_the_same() {
    let host = Host::with_settings("tls: off\n");
    let app = App::start();
    let (logs, real) = (host.path("logs"), host.path("elsewhere"));
    fs::rename(&logs, &real).unwrap();
    std::os::unix::fs::symlink(&real, &logs).unwrap();
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    drop_bad_ones(&host, &app);
    host.drop_app("good", "good.example.com", &app);
    // hand-written, refused, accepted: the trial found all three at once
    assert_eq!(nginx_runs(&host).whole, 3);
    for number in 1..=3 {
        assert_eq!(host.state(&format!("bad{number}")), "rejected");
    }
    assert_eq!(host.state("good"), "serving");
}

//! What code that has taken over nginx's test could reach: tried by a program in nginx's place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::is_root;
use crate::support::app::App;
use crate::support::host::Host;
use crate::support::nginx::NginxHost;

/// Tries all of it, and prints what it could do. `$dir`: the host's directory; `$scratch`: where it may
/// write; `$process`: one outside.
const PRYING: &str = r#"
use Socket; use Fcntl;
my ($dir, $scratch, $process) = @ARGV; my @done;
my @devices = ("$dir/device", "$dir/srv/device", "$scratch/made");
system("mknod", "-m", "666", "$scratch/made", "b", "7", "0");
push @devices, glob("/dev/loop[0-9]*");
for my $device (grep { -b $_ } @devices) {
    for my $mode (O_RDONLY, O_RDWR) { push @done, "opened:$device" if sysopen(my $file, $device, $mode); }
}
for my $path (map { "$dir/$_" } qw(run/spied state/spied srv/spied apart/spied admins conf.d/spied)) {
    for my $kind (SOCK_STREAM, SOCK_DGRAM) {
        socket(my $socket, PF_UNIX, $kind, 0);
        push @done, "connected:$path" if connect($socket, pack_sockaddr_un($path));
    }
}
socket(my $socket, PF_UNIX, SOCK_STREAM, 0);
push @done, "connected:abstract" if connect($socket, pack_sockaddr_un("\0vhostd-spied-$$dir"));
for my $file ("$dir/secret", glob("$dir/state/accounts/* $dir/state/probe-secret"), "/etc/shadow") {
    push @done, "read:$file" if open(my $handle, "<", $file);
}
for my $name (qw(/home /root /mnt /media /srv /var/lib /run /tmp /dev/shm /sys)) {
    push @done, "saw:$name" if glob("$name/*");
}
push @done, "signalled" if kill(0, $process);
print join(" ", @done) || "nothing";
"#;

/// Sockets and files of root's, and block devices, in several places below `directory`.
struct Bait {
    _streams: Vec<UnixListener>,
    _datagrams: Vec<UnixDatagram>,
}

impl Bait {
    fn lay(directory: &Path) -> Self {
        fs::create_dir(directory.join("apart")).unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let streams = ["run/spied", "srv/spied", "apart/spied", "admins"].map(|name| {
            let path = directory.join(name);
            let socket = UnixListener::bind(&path).unwrap();
            // of root's group, which the test is not in
            mode(&path, if name == "admins" { 0o660 } else { 0o600 });
            socket
        });
        let datagrams = ["state/spied", "conf.d/spied"].map(|name| {
            let path = directory.join(name);
            let socket = UnixDatagram::bind(&path).unwrap();
            mode(&path, 0o600);
            socket
        });
        for name in ["device", "srv/device"] {
            let path = directory.join(name);
            // a loop device; open to everybody
            let made = Command::new("mknod")
                .args(["-m", "666"])
                .arg(&path)
                .args(["b", "7", "0"])
                .status();
            assert!(made.unwrap().success());
        }
        fs::write(directory.join("secret"), "").unwrap();
        mode(&directory.join("secret"), 0o600);
        Self {
            _streams: streams.into(),
            _datagrams: datagrams.into(),
        }
    }
}

/// A program in nginx's place that pries where the changed vhosts are tried.
fn spy(directory: &Path) -> PathBuf {
    let path = directory.join("spy");
    fs::write(directory.join("prying.pl"), PRYING).unwrap();
    let text = format!(
        "#!/bin/bash\n\
         case \"$*\" in\n\
         *scratch/nginx.conf*)\n\
         scratch=${{@: -1}}; scratch=${{scratch%/nginx.conf}}\n\
         file=$(ls $scratch/vhosts/* | head -1)\n\
         done=$(perl {0}/prying.pl {0} $scratch {1} 2>&1 | tail -n 1)\n\
         echo \"nginx: [emerg] $done in $file:1\" >&2; exit 1;;\n\
         esac\n\
         if grep -qs vhosts/ {0}/state/current/http.conf; then\n\
         echo 'nginx: [emerg] the whole is refused' >&2; exit 1; fi\n\
         exec nginx \"$@\"\n",
        directory.display(),
        std::process::id()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_trial_opens_no_block_device_no_socket_of_roots_and_no_file_of_roots() {
    if !is_root("a sandbox") {
        return;
    }
    let nginx = NginxHost::new();
    let directory = nginx.config().parent().unwrap().to_path_buf();
    let spy = spy(&directory);
    let host = Host::on(nginx.with_binary(&spy), "tls: internal\nsandbox: require\n");
    let _bait = Bait::lay(&directory);
    // what the program can do where nothing keeps it from it
    let outside = Command::new("perl")
        .arg(host.path("prying.pl"))
        .args([&directory, &directory.join("apart")])
        .arg(std::process::id().to_string())
        .output()
        .unwrap();
    let outside = String::from_utf8_lossy(&outside.stdout).into_owned();
    let at = |name: &str| directory.join(name).display().to_string();
    for name in [
        "run/spied",
        "state/spied",
        "srv/spied",
        "apart/spied",
        "admins",
    ] {
        assert!(
            outside.contains(&format!("connected:{}", at(name))),
            "{outside}"
        );
    }
    let opened = ["device", "srv/device", "apart/made"].map(|name| format!("opened:{}", at(name)));
    let can_open = opened.iter().all(|it| outside.contains(it));
    assert!(can_open || !Path::new("/dev/loop0").exists(), "{outside}");
    assert!(
        outside.contains(&format!("read:{}", at("secret"))),
        "{outside}"
    );
    host.drop_app("shop", "shop.example.com", &App::start());
    let report = host.json(&["reload"]).1;
    let seen = report["rejected"][0]["reason"].as_str().unwrap_or_default();
    assert!(seen.contains("nothing"), "{report}");
}

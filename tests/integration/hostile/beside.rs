//! Fifty good vhosts beside each of very many bad files.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::app::App;
use crate::support::client;
use crate::support::host::Host;
use crate::support::nginx::NginxHost;
use crate::support::traffic::Traffic;

const GOOD: usize = 50;

/// What goes before a text that would be good without what is said behind it.
const PROXY: &str = "proxy_pass_url: http://127.0.0.1:1\n";

/// Each another way to be bad: the text, and what its refusal says.
const BAD: &[(&str, &str)] = &[
    // nothing to serve
    ("", "the file is empty"),
    ("# only a comment\n", "the file is empty"),
    ("{}\n", "`server_name` is missing"),
    ("[]\n", "the list of vhosts is empty"),
    (
        "server_name: bad.example.com\n",
        "neither `root` nor `proxy_pass_url`",
    ),
    ("root: /srv/x\n", "`server_name` is missing"),
    // no YAML, or more of it than is read
    ("server_name: [\n", "not valid YAML"),
    ("server_name: \"bad.example.com\n", "not valid YAML"),
    ("a:\n\tb: c\n", "not valid YAML"),
    ("server_name: a: b\n", "not valid YAML"),
    ("hello\n", "found a string"),
    ("42\n", "found a number"),
    ("- - a\n", "a vhost (a mapping)"),
    ("server_name: !!str bad.example.com\n", "a YAML tag"),
    ("server_name: *bad\n", "begins a YAML alias"),
    ("<<: {a: b}\n", "the merge key"),
    ("a: 1\n---\nb: 2\n", "a second document"),
    ("a: 1\na: 2\n", "duplicate key `a`"),
    ("1: 2\n", "expected a key"),
    ("a: &a [*a]\n", "an alias inside its own anchor"),
    (
        "a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: 1}}}}}}}}}}}}}}}}}\n",
        "too deeply nested",
    ),
    ("server_name: bad.example.com\r\n", "carriage return"),
    ("\u{feff}server_name: bad.example.com\n", "byte order mark"),
    ("server_name: bad\u{0}.example.com\n", "control character"),
    (
        "server_name: \"bad\\u202e.example.com\"\n",
        "control character",
    ),
    // keys
    ("server_nme: bad.example.com\n", "unknown key `server_nme`"),
    ("listen: 80\n", "unknown key `listen`"),
    ("include: /etc/passwd\n", "unknown key `include`"),
    (
        "headers: {X-A: \"b\\r\\nSet-Cookie: c\"}\n",
        "control character",
    ),
    ("headers: {}\n", "not supported by this version"),
    ("locations: []\n", "not supported by this version"),
    ("nginx__vhosts: {}\n", "expected a list of vhosts"),
    ("pki__realms: []\n", "`nginx__vhosts` is missing"),
    // names
    ("server_name: 5\n", "found a number"),
    ("server_name: []\n", "found an empty list"),
    ("server_name: {a: b}\n", "found a mapping"),
    ("server_name: ''\n", "``"),
    ("server_name: localhost\n", "at least two labels"),
    ("server_name: bad.example.com.\n", "`bad.example.com.`"),
    ("server_name: '~^.*$'\n", "`~^.*$`"),
    ("server_name: $hostname\n", "`$hostname`"),
    ("server_name: .example.com\n", "`.example.com`"),
    (
        "server_name: 'bad.example.com; }'\n",
        "`bad.example.com; }`",
    ),
    ("server_name: bad_.example.com\n", "`bad_.example.com`"),
    ("server_name: 127.1\n", "found a number"),
    ("server_name: 169.254.169.254\n", "metadata service"),
    ("server_name: vhostd.invalid\n", "`vhostd.invalid`"),
    (
        "server_name: [b.example.com, B.example.com]\n",
        "is already in line 1",
    ),
    (
        "server_name: good-7.example.com\nproxy_pass_url: http://127.0.0.1:1\n",
        "good-7",
    ),
    (
        "server_name: Good-7.Example.COM\nproxy_pass_url: http://127.0.0.1:1\n",
        "good-7",
    ),
    (
        "server_name: hand.example.com\nproxy_pass_url: http://127.0.0.1:1\n",
        "sites/hand",
    ),
    // what answers
    (
        "proxy_pass_url: http://backend:80\n",
        "a host name cannot be an upstream",
    ),
    ("proxy_pass_url: http://127.1:80\n", "not an IP address"),
    ("proxy_pass_url: http://127.0.0.1\n", "the port is missing"),
    (
        "proxy_pass_url: http://169.254.169.254:80\n",
        "metadata service",
    ),
    (
        "proxy_pass_url: 'http://unix:/run/x;.sock'\n",
        "not the path of a unix socket",
    ),
    (
        "proxy_pass_url: [http://127.0.0.1:1, https://127.0.0.1:2]\n",
        "http:// and https:// in one list",
    ),
    ("root: relative\n", "not an absolute path"),
    ("root: /etc\n", "the root is not below"),
    ("root: SRV/../../etc\n", "not a path without"),
    (
        "root: SRV/$host\n",
        "a character that a path here cannot have",
    ),
    (
        "server_name: bad.example.com\nroot: SRV/out\n",
        "through a symbolic link",
    ),
    (
        "cache_assets: {paths: [\"/(a+)+$/\"]}\n",
        "not a path prefix",
    ),
    ("cache_assets: {max_age: forever}\n", "not a duration"),
    ("tls: perhaps\n", "expected auto or internal or off"),
    (
        "tls: auto\nserver_name: \"*.bad.example.com\"\n",
        "needs dns-01",
    ),
    // the parser accepts them, and nginx does not (the override below sees to that)
    (
        "server_name: timeout.example.com\nproxy_pass_url: http://127.0.0.1:1\n",
        "nginx refuses it",
    ),
    (
        "server_name: level.example.com\nproxy_pass_url: http://127.0.0.1:1\n",
        "nginx refuses it",
    ),
    (
        "server_name: page.example.com\nproxy_pass_url: http://127.0.0.1:1\n",
        "nginx refuses it",
    ),
    (
        "server_name: twice.example.com\nproxy_pass_url: http://127.0.0.1:1\n",
        "nginx refuses it",
    ),
    // of this one nginx says no place
    (
        "server_name: variable.example.com\nproxy_pass_url: http://127.0.0.1:1\n",
        "nginx refuses it",
    ),
    // nginx would accept it, and the audit does not
    (
        "server_name: alias.example.com\nproxy_pass_url: http://127.0.0.1:1\n",
        "is not what was meant",
    ),
];

/// For certain names what nginx refuses, and for one what it would not.
const NONSENSE: [(&str, &str); 6] = [
    ("timeout", "send_timeout nonsense;"),
    ("level", "gzip_comp_level 99;"),
    ("page", "error_page nonsense;"),
    ("twice", "etag on; etag on;"),
    ("variable", "add_header X-A $no_such_variable;"),
    ("alias", "alias /etc/;"),
];

#[test]
fn fifty_good_vhosts_are_neither_changed_nor_interrupted_by_any_of_very_many_bad_files() {
    assert!(BAD.len() >= 60, "{}", BAD.len());
    let (host, _app, traffic) = fifty_good_vhosts();
    let (before, active) = (files(&host), host.active());
    assert_eq!(before.len(), GOOD);
    let mut wrong = Vec::new();
    for (text, reason) in BAD {
        host.drop_file("bad.yml", &written(&host, text));
        let (exit, report) = host.json(&["reload"]);
        let said = &report["rejected"][0];
        let rejected = (exit, &report["outcome"]) == (3, &"unchanged".into())
            && (&said["name"], &said["stale"]) == (&"bad".into(), &false.into())
            && report["rejected"].to_string().contains(reason);
        if !rejected {
            wrong.push(format!(
                "{text:?}: {exit} {} {}",
                report["outcome"], report["rejected"]
            ));
        }
        assert_eq!(
            (files(&host), host.active()),
            (before.clone(), active),
            "{text:?}"
        );
        host.remove_file("bad.yml");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    host.reload_ends(0, "unchanged");
    let daemon = host.daemon();
    // all of those that the parser refuses at once, and a good edit beside them
    let by_parser = BAD
        .iter()
        .filter(|(_, reason)| !reason.contains("nginx refuses"));
    let mut count = 0;
    for (number, (text, _)) in by_parser.enumerate() {
        host.drop_file(&format!("bad-{number}.yml"), &written(&host, text));
        count += 1;
    }
    host.drop_file("new.yml", &format!("server_name: new.example.com\n{PROXY}"));
    // who is quicker, the daemon or the command, is nobody's business
    let (exit, report) = host.json(&["reload"]);
    assert_eq!((exit, &report["error"]), (3, &serde_json::Value::Null));
    assert_eq!(host.state("new"), "serving");
    let rejected = report["rejected"].as_array().unwrap();
    let mut names: Vec<&str> = rejected
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    names.dedup();
    assert_eq!(names.len(), count, "{report}");
    let mut after = files(&host);
    assert!(after.remove("new.conf").is_some());
    assert_eq!(after, before);
    traffic.assert_unbroken();
    assert_eq!(daemon.stop(), 0);
}

/// With a client that asks for one after the other, all the time.
fn fifty_good_vhosts() -> (Host, App, Traffic) {
    let app = App::start();
    let nginx = NginxHost::new();
    nginx.site(
        "hand",
        &format!(
            "server {{ listen {}; server_name hand.example.com; return 204; }}\n",
            nginx.http_port
        ),
    );
    let host = Host::on(nginx, "tls: off\n");
    std::os::unix::fs::symlink("/etc", host.path("srv/out")).unwrap();
    override_template(&host);
    for number in 0..GOOD {
        let name = format!("good-{number}");
        host.drop_app(&name, &format!("{name}.example.com"), &app);
    }
    host.reload_ends(0, "activated");
    let (address, next) = (host.http(), AtomicUsize::new(0));
    let traffic = Traffic::start(move || {
        let number = next.fetch_add(1, Ordering::Relaxed) % GOOD;
        let name = format!("good-{number}.example.com");
        match client::get(address, &name, "/") {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(format!("{name}: status {}", answer.status)),
            Err(error) => Err(format!("{name}: {error}")),
        }
    });
    (host, app, traffic)
}

/// Where a text does not say it all, the rest of it is good.
fn written(host: &Host, text: &str) -> String {
    text.replace("SRV", &host.path("srv").display().to_string())
}

fn files(host: &Host) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(host.path("state/current/vhosts")).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn override_template(host: &Host) {
    let shipped = include_str!("../../../templates/vhost.conf");
    let marker = "    server_tokens off;\n";
    assert!(shipped.contains(marker));
    let mut lines = marker.to_owned();
    for (name, line) in NONSENSE {
        lines.push_str(&format!(
            "{{% if server.names[0] == \"{name}.example.com\" %}}    {line}\n{{% endif %}}"
        ));
    }
    fs::create_dir_all(host.path("templates")).unwrap();
    let text = shipped.replacen(marker, &lines, 1);
    fs::write(host.path("templates/vhost.conf"), text).unwrap();
}

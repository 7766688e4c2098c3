//! The units allow the sandbox: with what they leave to vhostd, it is there.

use std::collections::BTreeMap;
use std::process::Command;

use super::is_root;
use crate::support::app::App;
use crate::support::host::Host;

const DAEMON: &str = include_str!("../../../systemd/vhostd.service");
const RENEWAL: &str = include_str!("../../../systemd/vhostd-renew.service");

/// Keys of `[Service]` that are about when and how long it runs, or about a running daemon.
const OF_ONE: [&str; 11] = [
    "ExecReload",
    "ExecStart",
    "Restart",
    "RestartPreventExitStatus",
    "RestartSec",
    "RuntimeDirectory",
    "RuntimeDirectoryMode",
    "StateDirectoryMode",
    "TimeoutStartSec",
    "Type",
    "WatchdogSec",
];

/// What `[Service]` says of its process.
fn restrictions(unit: &str) -> BTreeMap<&str, &str> {
    let (_, rest) = unit.split_once("[Service]\n").unwrap();
    let section = rest.split("\n[").next().unwrap();
    let lines = section.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(key, _)| !key.starts_with('#') && !OF_ONE.contains(key))
        .collect()
}

#[test]
fn the_renewals_unit_restricts_nothing_that_the_daemons_does_not() {
    let (daemon, renewal) = (restrictions(DAEMON), restrictions(RENEWAL));
    assert_eq!(renewal, daemon);
    // those that the sandbox is made of
    assert_eq!(daemon["RestrictNamespaces"], "mnt net pid ipc uts");
    assert!(daemon["SystemCallFilter"].contains("@mount"));
    // of `@setuid`, capset and prctl
    assert!(daemon["SystemCallFilter"].contains("@system-service"));
}

#[test]
fn with_the_capabilities_and_the_proc_of_the_units_the_sandbox_is_there() {
    if !is_root("setpriv") {
        return;
    }
    for unit in [DAEMON, RENEWAL] {
        let host = Host::with_settings("tls: off\nsandbox: require\n");
        host.drop_app("hello", "hello.example.com", &App::start());
        let restrictions = restrictions(unit);
        let capabilities = restrictions["CapabilityBoundingSet"].split(' ');
        let kept = capabilities.map(|name| name.trim_start_matches("CAP_").to_lowercase());
        let kept: String = kept.map(|name| format!(",+{name}")).collect();
        let script = format!(
            "mount -t proc -o hidepid={} proc /proc && exec setpriv --no-new-privs --inh-caps=-all \
             --bounding-set=-all{kept} \"$0\" reload --json",
            restrictions["ProtectProc"]
        );
        let program = host.command(&[]);
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-ec", &script])
            .arg(program.get_program())
            .env("VHOSTD_CONFIG", host.path("vhostd.yml"))
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert_eq!(report["outcome"], "activated", "{report} {output:?}");
        assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
    }
}

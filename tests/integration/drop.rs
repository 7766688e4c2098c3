//! The first way in which vhostd is used: drop a file.

use super::support::app::App;
use super::support::client::Trust;
use super::support::host::Host;

#[test]
fn a_dropped_file_is_served_over_https_that_verifies() {
    let (host, pebble) = Host::with_pebble();
    let app = App::start();
    let daemon = host.daemon();
    host.drop_app("hello", "hello.example.com", &app);
    let trust = Trust::Root(pebble.issuing_root());
    let answer = host.wait_for_https("hello.example.com", "/", &trust);
    assert_eq!(answer.status, 200);
    println!("{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

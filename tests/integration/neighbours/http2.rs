//! HTTP/2 is not switched on for hand-written sites.

use super::super::support::later;
use super::*;

/// What is agreed on with a client that knows both.
fn protocol(host: &Host, name: &str, trust: &client::Trust) -> Vec<u8> {
    let alpn = ["h2", "http/1.1"];
    let stream = client::connect_tls(host.https(), name, trust, &alpn).unwrap();
    stream.conn.alpn_protocol().unwrap_or(b"http/1.1").to_vec()
}

fn host_with(nginx: NginxHost, http2: bool) -> Host {
    let text = site(&nginx, "");
    let text = match http2 {
        true => text.replace(" ssl;", " ssl http2;"),
        false => text,
    };
    nginx.site("own", &text);
    let host = Host::on(nginx, "tls: internal\n");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    host.reload_ends(0, "activated");
    host
}

fn protocols(host: &Host) -> [Vec<u8>; 2] {
    let own = client::Trust::pem(&fs::read_to_string(host.path("own.pem")).unwrap());
    [
        protocol(host, OWN, &own),
        protocol(host, HELLO, &host.internal_root()),
    ]
}

fn warning(host: &Host) -> bool {
    let warnings = host.status()["warnings"].to_string();
    warnings.contains("without HTTP/2")
}

#[test]
fn a_hand_written_site_without_http2_stays_without_and_that_is_told() {
    let host = host_with(NginxHost::new(), false);
    assert_eq!(protocols(&host), [b"http/1.1", b"http/1.1"]);
    assert!(warning(&host));
    let setup = host.vhostd(&["setup"]);
    assert!(setup.stderr.contains("without HTTP/2"), "{setup:?}");
    // the way out that it says
    let text = site(&host.nginx, "").replace(" ssl;", " ssl http2;");
    host.nginx.site("own", &text);
    host.reload_ends(0, "activated");
    assert_eq!(protocols(&host), [b"h2", b"h2"]);
    assert!(!warning(&host));
}

#[test]
fn beside_a_hand_written_site_with_http2_vhosts_have_it() {
    let host = host_with(NginxHost::new(), true);
    assert_eq!(protocols(&host), [b"h2", b"h2"]);
    assert!(!warning(&host));
}

#[test]
fn a_later_nginx_has_http2_for_each_server_by_itself() {
    let Some(nginx) = later("nginx") else { return };
    let host = host_with(NginxHost::new().with_binary(&nginx), false);
    assert_eq!(protocols(&host)[1], b"h2");
    let own = fs::read_to_string(host.path("sites/own")).unwrap();
    assert!(!own.contains("http2"));
    assert!(!warning(&host));
}

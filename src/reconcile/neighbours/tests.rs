use std::path::Path;

use super::*;
use crate::nginx::dump;

/// What is found where `before` is read before our files and `after` behind them.
fn surveyed(before: &str, after: &str) -> Survey {
    let dump = format!(
        "# configuration file /n/nginx.conf:\nhttp {{ include before; include ours; include after; }}\n\
         # configuration file /n/before:\n{before}\n\
         # configuration file /n/ours:\ninclude /state/current/http.conf;\n\
         # configuration file /state/current/http.conf:\n\
         # configuration file /n/after:\n{after}\n"
    );
    dump::survey(dump.as_bytes(), Path::new("/state")).unwrap()
}

fn at(settings: &NginxSettings, survey: &Survey, socket: &str) -> Listener {
    let socket: SocketAddr = socket.parse().unwrap();
    let all = listeners(settings, survey, true, socket.port());
    *all.iter().find(|it| it.address == socket).unwrap()
}

const SITE: &str = "server { listen 80; listen [::]:443 ssl; server_name a.example; }";
const DEFAULT: &str = "server { listen 80; }\nserver { listen 80 default_server; }";

#[test]
fn the_default_server_is_ours_unless_a_hand_written_one_says_so_or_is_read_first() {
    let theirs = |place: &str| Some(place.to_owned());
    for (before, after, socket, owner) in [
        (SITE, "", "0.0.0.0:80", theirs("/n/before:1")),
        (SITE, "", "[::]:443", theirs("/n/before:1")),
        (SITE, "", "[::]:80", None),
        (SITE, "", "0.0.0.0:443", None),
        ("", SITE, "0.0.0.0:80", None),
        ("", DEFAULT, "0.0.0.0:80", theirs("/n/after:2")),
        (SITE, DEFAULT, "0.0.0.0:80", theirs("/n/after:2")),
        ("server { }", "", "0.0.0.0:80", theirs("/n/before:1")),
        ("server { listen 127.0.0.1:80; }", "", "0.0.0.0:80", None),
        ("", "", "0.0.0.0:80", None),
    ] {
        let survey = surveyed(before, after);
        let socket: SocketAddr = socket.parse().unwrap();
        let found = default_site(&survey, socket).filter(DefaultSite::stays);
        let case = format!("{before} | {after} | {socket}");
        assert_eq!(found.map(|site| site.place), owner, "{case}");
        let mut settings = NginxSettings::default();
        let ours =
            |settings: &NginxSettings| at(settings, &survey, &socket.to_string()).default_server;
        assert_eq!(ours(&settings), owner.is_none(), "{case}");
        settings.default_server = DefaultServer::Off;
        assert!(!ours(&settings), "{case}");
        settings.default_server = DefaultServer::On;
        assert!(ours(&settings), "{case}");
    }
}

#[test]
fn clients_of_an_address_get_the_certificate_of_a_hand_written_default_server() {
    let site = "server { listen 443 ssl; }";
    let explicit = "server { listen 443 ssl default_server; }";
    let owner = |before: &str, after: &str| {
        let all = entrances(&Settings::default(), &surveyed(before, after), false);
        all.ours[0].default_server.clone()
    };
    assert_eq!(
        owner(site, ""),
        DefaultServerOf::FirstHandWritten("/n/before:1".into())
    );
    assert_eq!(owner("", site), DefaultServerOf::Us);
    assert_eq!(
        owner("", explicit),
        DefaultServerOf::HandWritten("/n/after:1".into())
    );
}

#[test]
fn http2_is_a_parameter_where_a_hand_written_site_of_the_socket_has_it_or_none_is_there() {
    let (with, without) = (
        "server { listen 443 ssl http2; }",
        "server { listen 443 ssl; }",
    );
    for (before, after, expected) in [
        ("", "", true),
        (without, "", false),
        ("", without, false),
        (with, without, true),
        (without, with, true),
        ("server { listen 127.0.0.1:443 ssl; }", "", true),
    ] {
        let survey = surveyed(before, after);
        let listener = at(&NginxSettings::default(), &survey, "0.0.0.0:443");
        assert_eq!(listener.http2, expected, "{before} | {after}");
    }
}

#[test]
fn a_displaced_default_server_is_told_with_both_places() {
    let settings = NginxSettings::default();
    let socket = "0.0.0.0:80".parse().unwrap();
    let told = advice::displaced(&settings, &surveyed("", SITE), socket).unwrap();
    assert!(
        told.contains("/n/after:1") && told.contains("/n/ours:1"),
        "{told}"
    );
    assert_eq!(
        advice::displaced(&settings, &surveyed(SITE, ""), socket),
        None
    );
    assert_eq!(
        advice::displaced(&settings, &surveyed("", DEFAULT), socket),
        None
    );
    let on = NginxSettings {
        default_server: DefaultServer::On,
        ..settings
    };
    assert_eq!(advice::displaced(&on, &surveyed("", SITE), socket), None);
}

#[test]
fn setup_says_who_gets_the_unknown_names_of_each_socket() {
    let settings = NginxSettings::default();
    let who = advice::unknown_names(&settings, &surveyed(SITE, DEFAULT), true);
    let vhostd = "vhostd, which refuses them";
    assert_eq!(
        who,
        [
            "0.0.0.0:80: /n/after:2".to_owned(),
            format!("[::]:80: {vhostd}"),
            format!("0.0.0.0:443: {vhostd}"),
            "[::]:443: /n/before:1, the first there".to_owned(),
        ]
    );
}

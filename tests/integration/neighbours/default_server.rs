//! Unknown names stay with the hand-written site that got them by being the first.

use super::*;

const UNKNOWN: &str = "unknown.example.com";

/// As Debian's main file: `conf.d`, then `sites-enabled`.
fn debian() -> NginxHost {
    let nginx = NginxHost::new();
    fs::create_dir(nginx.path("sites-enabled")).unwrap();
    let main = fs::read_to_string(nginx.config()).unwrap();
    let main = main.replace("include sites/*;", "include sites-enabled/*;");
    fs::write(nginx.config(), main).unwrap();
    let own = site(&nginx, "");
    fs::write(nginx.path("sites-enabled/own"), own).unwrap();
    nginx
}

/// Its settings say nothing of `nginx.include`, or `auto`.
fn host_without_include(nginx: NginxHost, auto: bool) -> Host {
    let host = Host::on(nginx, "tls: internal\n");
    assert_eq!(host.vhostd(&["setup", "--undo"]).status, 0);
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let include = format!(" include: {},", host.path("conf.d/vhostd.conf").display());
    let instead = if auto { " include: auto," } else { "" };
    let settings = settings.replace(&include, instead);
    fs::write(host.path("vhostd.yml"), settings).unwrap();
    host
}

fn line(host: &Host) -> PathBuf {
    host.path("sites-enabled/zz-vhostd.conf")
}

fn status_warnings(host: &Host) -> String {
    host.status()["warnings"].to_string()
}

/// The certificate that a client without a name is shown.
fn shown_without_name(host: &Host) -> Option<Vec<u8>> {
    let text = std::process::Command::new("sh")
        .args([
            "-c",
            "openssl s_client -noservername -connect \"$0\" </dev/null 2>/dev/null \
             | openssl x509 -outform DER 2>/dev/null",
        ])
        .arg(host.https().to_string())
        .output()
        .unwrap();
    (!text.stdout.is_empty()).then_some(text.stdout)
}

#[test]
fn the_line_goes_behind_the_hand_written_sites_whose_first_keeps_the_unknown_names() {
    for auto in [true, false] {
        let host = host_without_include(debian(), auto);
        let before = shown_without_name(&host);
        assert!(before.is_some() && own_answers(&host, UNKNOWN));
        let (exit, prepared) = host.json(&["setup"]);
        assert_eq!(exit, 0, "{prepared}");
        assert!(line(&host).exists() && !host.path("conf.d/vhostd.conf").exists());
        let place = format!(
            "{}:1, the first there",
            host.path("sites-enabled/own").display()
        );
        let done = prepared["done"].to_string();
        for port in [host.nginx.http_port, host.nginx.https_port] {
            let said = format!("0.0.0.0:{port}: {place}");
            assert!(done.contains(&said), "{done}");
        }
        let app = App::start();
        host.drop_app("hello", HELLO, &app);
        host.reload_ends(0, "activated");
        assert!(own_answers(&host, UNKNOWN) && own_answers(&host, OWN));
        assert_eq!(shown_without_name(&host), before);
        let hello = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
        assert_eq!(hello.unwrap().status, 200);
        let warnings = status_warnings(&host);
        assert!(!warnings.contains("by being the first"), "{warnings}");
        // the same again, and back
        assert_eq!(host.vhostd(&["setup"]).status, 0);
        assert_eq!(host.vhostd(&["setup", "--undo"]).status, 0);
        assert!(!line(&host).exists());
    }
}

#[test]
fn a_line_that_is_there_stays_where_it_is_and_the_displaced_site_is_named_with_the_way_out() {
    let host = host_without_include(debian(), true);
    let text = format!(
        "include {}/http.conf;\n",
        host.path("state/current").display()
    );
    let early = host.path("conf.d/vhostd.conf");
    fs::write(&early, &text).unwrap();
    let setup = host.vhostd(&["setup"]);
    assert_eq!(setup.status, 0, "{setup:?}");
    assert_eq!(fs::read_to_string(&early).unwrap(), text);
    assert!(!line(&host).exists());
    let own = format!(
        "{}:1 got the requests",
        host.path("sites-enabled/own").display()
    );
    let by = format!("{}:1", early.display());
    assert!(
        setup.stderr.contains(&own) && setup.stderr.contains(&by),
        "{setup:?}"
    );
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    host.reload_ends(0, "activated");
    let warnings = status_warnings(&host);
    assert!(warnings.contains(&own), "{warnings}");
    // the way out that it says
    assert_eq!(host.vhostd(&["setup", "--undo"]).status, 0);
    assert!(!early.exists());
    assert_eq!(host.vhostd(&["setup"]).status, 0);
    host.reload_ends(0, "activated");
    assert!(own_answers(&host, UNKNOWN));
    let warnings = status_warnings(&host);
    assert!(!warnings.contains(&own), "{warnings}");
}

#[test]
fn the_other_way_out_is_the_word_default_server() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert!(status_warnings(&host).contains("add `default_server`"));
    host.nginx
        .site("own", &site(&host.nginx, " default_server"));
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert!(own_answers(&host, UNKNOWN));
    assert!(!status_warnings(&host).contains("add `default_server`"));
}

#[test]
fn a_site_that_sorts_behind_the_line_is_told_of_too() {
    let host = host_without_include(debian(), true);
    fs::rename(
        host.path("sites-enabled/own"),
        host.path("sites-enabled/zzz"),
    )
    .unwrap();
    let setup = host.vhostd(&["setup"]);
    let own = format!(
        "{}:1 got the requests",
        host.path("sites-enabled/zzz").display()
    );
    assert!(setup.stderr.contains(&own), "{setup:?}");
}

#[test]
fn a_line_inside_a_hand_written_file_is_used_and_left_to_its_author() {
    let host = host_without_include(debian(), true);
    let main = fs::read_to_string(host.nginx.config()).unwrap();
    let entry = host.path("state/current/http.conf");
    let text = format!("include sites-enabled/*;\n    include {};", entry.display());
    let by_hand = main.replace("include sites-enabled/*;", &text);
    fs::write(host.nginx.config(), &by_hand).unwrap();
    let setup = host.vhostd(&["setup"]);
    assert_eq!(setup.status, 0, "{setup:?}");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    host.reload_ends(0, "activated");
    assert!(own_answers(&host, UNKNOWN));
    let undo = host.vhostd(&["setup", "--undo"]);
    assert_eq!(undo.status, 1, "{undo:?}");
    assert!(undo.stderr.contains("by hand"), "{undo:?}");
    assert_eq!(fs::read_to_string(host.nginx.config()).unwrap(), by_hand);
}

#[test]
fn an_address_is_not_served_over_https_where_the_first_hand_written_site_speaks_for_it() {
    let host = host_without_include(debian(), true);
    assert_eq!(host.vhostd(&["setup"]).status, 0);
    let app = App::start();
    host.drop_app("address", "127.0.0.1", &app);
    let report = host.reload_ends(3, "activated");
    let reason = report["rejected"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("the first there"), "{reason}");
}

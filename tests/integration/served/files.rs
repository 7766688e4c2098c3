//! Files from disk: which are served, which get a long life, which stay hidden.

use std::os::unix::fs::symlink;

use super::fixture::Served;
use super::{NAME, hello};
use crate::support::app::App;
use crate::support::client;

const FINGERPRINTED: &str = "/app-5d41402abc4b2a76.css";
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

fn static_site(keys: &str) -> Served {
    let served = Served::new();
    let root = served.root();
    served.serve(&[(
        "hello",
        &format!("server_name: \"{NAME}\"\nroot: \"{root}\"\n{keys}"),
    )])
}

#[test]
fn fingerprinted_assets_are_immutable_and_the_apps_answers_are_not() {
    let app = App::start();
    let served = hello(&app);
    for path in [
        FINGERPRINTED,
        "/deep/er/app.5d41402abc4b.js.map",
        "/assets/plain.css",
        "/static/x/plain.css",
    ] {
        served.file(path, "asset");
        let answer = served.get(path);
        assert_eq!((answer.status, answer.text()), (200, "asset"), "{path}");
        assert_eq!(answer.header("Cache-Control"), Some(IMMUTABLE), "{path}");
    }
    for path in ["/photo-20240101.jpg", "/plain.css", "/x/assets/plain.css"] {
        served.file(path, "other");
        let answer = served.get(path);
        assert_eq!((answer.status, answer.text()), (200, "other"), "{path}");
        assert_eq!(answer.header("Cache-Control"), None, "{path}");
    }
    for path in ["/gone-5d41402abc4b2a76.css", "/assets/gone.css", "/static/"] {
        let answer = served.get(path);
        assert!(answer.text().starts_with(&format!("GET {path} ")), "{path}");
        assert_eq!(answer.header("Cache-Control"), None, "{path}");
    }
}

#[test]
fn a_validated_asset_stays_immutable_and_a_redirect_below_assets_does_not_become_so() {
    let served = static_site("cache_assets: true\n");
    served.file("/assets/dir/index.html", "inside");
    served.file("/assets/a.css", "asset");
    let redirect = served.get("/assets/dir");
    assert_eq!(
        (redirect.status, redirect.header("Location")),
        (301, Some("/assets/dir/"))
    );
    assert_eq!(redirect.header("Cache-Control"), None);
    assert_eq!(served.get("/assets/gone.css").header("Cache-Control"), None);
    let modified = served
        .get("/assets/a.css")
        .header("Last-Modified")
        .unwrap()
        .to_owned();
    let since = [("If-Modified-Since", modified.as_str())];
    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let answer = client::exchange(stream, "GET", NAME, "/assets/a.css", &since).unwrap();
    assert_eq!(answer.status, 304);
    assert_eq!(answer.header("Cache-Control"), Some(IMMUTABLE));
}

#[test]
fn precompressed_siblings_are_used_with_cache_assets() {
    let served = static_site("cache_assets: true\n");
    served.file(FINGERPRINTED, "plain");
    served.file(&format!("{FINGERPRINTED}.gz"), "compressed");
    let accept = [("Accept-Encoding", "gzip")];
    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let answer = client::exchange(stream, "GET", NAME, FINGERPRINTED, &accept).unwrap();
    assert_eq!(answer.header("Content-Encoding"), Some("gzip"));
    assert_eq!(answer.header("Vary"), Some("Accept-Encoding"));
    assert_eq!(answer.header("Cache-Control"), Some(IMMUTABLE));
    assert_eq!(answer.text(), "compressed");
    assert_eq!(served.get(FINGERPRINTED).text(), "plain");
}

#[test]
fn a_static_site_answers_404_for_hidden_files_and_leftovers() {
    let served = static_site("cache_assets: true\n");
    for path in [
        "/.git/config",
        "/.env",
        "/sub/.htpasswd",
        "/sub/.well-known/x",
        "/.html",
        "/dump.sql",
        "/sub/DUMP.SQL",
        "/app.log",
        "/config.php.bak",
        "/config.php~",
        "/a.orig",
        "/a.swp",
        "/assets/app.js.bak",
    ] {
        served.file(path, "secret");
        served.file(&format!("{path}.gz"), "secret");
        assert_eq!(served.get(path).status, 404, "{path}");
    }
    served.file("/.well-known/security.txt", "contact");
    served.file("/.well-known/.hidden", "secret");
    served.file("/catalog", "not a log");
    assert_eq!(served.get("/.well-known/security.txt").text(), "contact");
    assert_eq!(served.get("/catalog").text(), "not a log");
    // a directory's redirect would say that it is there
    for path in [
        "/.well-known/.hidden",
        "/%2egit/config",
        "//.git/config",
        "/.git",
        "/a%0a/.env",
    ] {
        assert_eq!(served.get(path).status, 404, "{path}");
    }
    assert_ne!(served.get("/").text(), "secret");
}

#[test]
fn doubled_slashes_uncover_no_hidden_file_where_the_admin_keeps_them() {
    let served = Served::new();
    served.host().site("slashes", "merge_slashes off;\n");
    let root = served.root();
    let keys = format!("server_name: \"{NAME}\"\nroot: \"{root}\"\n");
    let served = served.serve(&[("hello", &keys)]);
    served.file("/.env", "secret");
    served.file("/sub/.env", "secret");
    for path in [
        "/.env",
        "//.env",
        "/sub//.env",
        "//sub/.env",
        "///.well-known//.x",
    ] {
        assert_eq!(served.get(path).status, 404, "{path}");
    }
}

#[test]
fn a_static_site_serves_index_and_html_files_and_404_for_the_rest() {
    let served = static_site("");
    assert_eq!(served.get("/").status, 404);
    served.file("index.html", "front");
    served.file("/about.html", "about");
    served.file("/docs/index.html", "docs");
    served.file("/empty/x", "x");
    for (path, body) in [
        ("/", "front"),
        ("/about", "about"),
        ("/about.html", "about"),
        ("/docs/", "docs"),
    ] {
        let answer = served.get(path);
        assert_eq!((answer.status, answer.text()), (200, body), "{path}");
    }
    let redirect = served.get("/docs?a=b");
    assert_eq!(
        (redirect.status, redirect.header("Location")),
        (301, Some("/docs/?a=b"))
    );
    for path in ["/empty/", "/nope", "/about.html/x"] {
        assert_eq!(served.get(path).status, 404, "{path}");
    }
}

#[test]
fn files_come_first_and_a_miss_goes_to_the_app_as_it_was_asked() {
    let app = App::start();
    let served = hello(&app);
    served.file("/docs/index.html", "docs");
    served.file("/fooindex.html", "trap");
    assert_eq!(served.get("/").text(), "front");
    assert_eq!(served.get("/docs/").text(), "docs");
    for path in ["/docs", "/foo", "/a%2Fb?x=%20y", "/foo/", "/x?a=b"] {
        let answer = served.get(path);
        assert!(
            answer.text().starts_with(&format!("GET {path} HTTP/1.1\n")),
            "{}",
            answer.text()
        );
    }
}

#[test]
fn a_symbolic_link_that_leaves_its_owner_is_not_followed() {
    let served = static_site("");
    served.file("real.html", "real");
    symlink(served.path("root/real.html"), served.path("root/same.html")).unwrap();
    symlink("/proc/self/status", served.path("root/proc.html")).unwrap();
    assert_eq!(served.get("/same.html").text(), "real");
    // a link of root's to a file of nobody's, which the worker itself is
    let status = served.get("/proc.html").status;
    assert!(
        matches!(status, 403 | 404) || !rustix::process::geteuid().is_root(),
        "{status}"
    );
}

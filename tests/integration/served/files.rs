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
fn a_part_of_an_asset_is_as_immutable_as_the_whole() {
    let served = static_site("cache_assets: true\n");
    for path in [FINGERPRINTED, "/assets/a.css", "/static/a.mjs"] {
        served.file(path, "asset");
        let range = [("Range", "bytes=1-2")];
        let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
        let answer = client::exchange(stream, "GET", NAME, path, &range).unwrap();
        assert_eq!((answer.status, answer.text()), (206, "ss"), "{path}");
        assert_eq!(answer.header("Cache-Control"), Some(IMMUTABLE), "{path}");
    }
}

#[test]
fn a_directory_of_assets_redirects_and_shows_its_index_without_a_long_life() {
    let served = static_site("cache_assets: {paths: [/a/, /a/b.md/, /.well-known/c/, /d~e/]}\n");
    for directory in ["/a/x-5d41402a", "/a/b.md", "/.well-known/c/d", "/d~e/f"] {
        served.file(&format!("{directory}/index.html"), "index");
        served.file(&format!("{directory}/file"), "asset");
        let answer = served.get(directory);
        let target = format!("{directory}/");
        let location = answer.header("Location");
        assert_eq!((answer.status, location), (301, Some(target.as_str())));
        assert_eq!(answer.header("Cache-Control"), None, "{directory}");
        let index = served.get(&target);
        assert_eq!((index.status, index.text()), (200, "index"), "{target}");
        assert_eq!(index.header("Cache-Control"), None, "{target}");
        let file = served.get(&format!("{target}file"));
        assert_eq!(file.text(), "asset", "{target}");
        assert!(file.header("Cache-Control").is_some(), "{target}");
    }
}

/// Requests below asset directories have locations of their own.
#[test]
fn each_leftover_is_hidden_and_each_type_right_wherever_the_file_lies() {
    let app = App::start();
    let (alone, beside) = (static_site("cache_assets: true\n"), hello(&app));
    let secrets = [
        ".env",
        ".git/a.js",
        "a.js~",
        "a.bak",
        "a.BAK",
        "a.log",
        "a.orig",
        "a.sql",
        "a.swp",
        "a-5d41402a.Sql",
        "x.d/.b/c.css",
    ];
    let typed = [
        ("a.geojson", "application/geo+json"),
        ("a.webmanifest", "application/manifest+json"),
        ("a.js.map", "application/json"),
        ("a.jsonld", "application/ld+json"),
        ("a.wasm", "application/wasm"),
        ("a-5d41402a.yml", "application/yaml"),
        ("a.opus", "audio/ogg"),
        ("a.m4a", "audio/mp4"),
        ("a.otf", "font/otf"),
        ("a.avif", "image/avif"),
        ("a.glb", "model/gltf-binary"),
        ("~a/a.csv", "text/csv"),
        ("a-5d41402a.mjs", "text/javascript"),
        ("a.b/c.cjs", "text/javascript"),
        ("a.md", "text/markdown"),
        ("a.css", "text/css"),
        ("~a/a.html", "text/html"),
    ];
    for directory in ["/", "/assets/", "/static/x.y/", "/.well-known/"] {
        for name in secrets {
            let path = format!("{directory}{name}");
            alone.file(&path, "secret");
            beside.file(&path, "secret");
            assert_eq!(alone.get(&path).status, 404, "{path}");
            let answer = beside.get(&path);
            assert!(answer.text().starts_with(&format!("GET {path} ")), "{path}");
        }
        for (name, expected) in typed {
            let path = format!("{directory}{name}");
            let below = ["/assets/", "/static/x.y/"].contains(&directory);
            let asset = (below || name.contains("5d41402a")).then_some(IMMUTABLE);
            for served in [&alone, &beside] {
                served.file(&path, "file");
                let answer = served.get(&path);
                assert_eq!(answer.text(), "file", "{path}");
                assert_eq!(answer.header("Content-Type"), Some(expected), "{path}");
                assert_eq!(answer.header("Cache-Control"), asset, "{path}");
            }
        }
    }
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

mod certificates;

use super::*;
use crate::vhost::AssetPath;

fn parsed_with(text: &str, default_tls: TlsMode) -> Result<App, Vec<Diagnostic>> {
    let app = "hello".parse().unwrap();
    let roots = [PathBuf::from("/srv")];
    parse(
        &app,
        Path::new("hello.yml"),
        text,
        &roots,
        &default_tls.into(),
    )
}

fn parsed(text: &str) -> App {
    parsed_with(text, TlsMode::Auto).unwrap()
}

/// Everything that is said about `text`, a line for each error.
fn refused(text: &str) -> String {
    let diagnostics = parsed_with(text, TlsMode::Auto).unwrap_err();
    let lines: Vec<String> = diagnostics
        .iter()
        .map(|diagnostic| match &diagnostic.hint {
            Some(hint) => format!("{diagnostic} ({hint})"),
            None => diagnostic.to_string(),
        })
        .collect();
    lines.join("\n")
}

fn names(names: &[Located<ServerName>]) -> Vec<&str> {
    names.iter().map(|name| name.value.as_str()).collect()
}

const FOUR_KEYS: &str = r#"server_name: "hello.example.com"
root: "/srv/hello/public"
proxy_pass_url: "http://127.0.0.1:8000"
cache_assets: true
"#;

#[test]
fn the_four_keys_are_a_vhost_named_after_its_file() {
    let app = parsed(FOUR_KEYS);
    assert_eq!(app.vhosts.len(), 1);
    let vhost = &app.vhosts[0];
    assert_eq!(vhost.name.to_string(), "hello");
    assert_eq!(vhost.canonical().as_str(), "hello.example.com");
    assert_eq!(vhost.server_names[0].at.line, 1);
    assert_eq!(
        vhost.root.as_ref().unwrap().as_path(),
        Path::new("/srv/hello/public")
    );
    assert_eq!(vhost.upstreams[0].to_string(), "http://127.0.0.1:8000");
    let assets = vhost.cache_assets.as_ref().unwrap();
    let paths: Vec<&str> = assets.paths.iter().map(AssetPath::as_str).collect();
    assert_eq!(paths, ["/assets/", "/static/"]);
    assert_eq!(assets.max_age.as_secs(), 31_536_000);
    assert_eq!(vhost.tls, TlsSpec::default());
}

#[test]
fn a_list_is_one_app_whose_vhosts_are_numbered_from_one() {
    let app = parsed(
        "- server_name: a.example\n  root: /srv/a\n- server_name: b.example\n  root: /srv/b\n",
    );
    let names: Vec<String> = app
        .vhosts
        .iter()
        .map(|vhost| vhost.name.to_string())
        .collect();
    assert_eq!(names, ["hello#1", "hello#2"]);
    assert_eq!(app.vhosts[1].at.line, 3);
}

#[test]
fn of_a_list_that_is_wrong_all_through_the_rest_is_not_looked_at() {
    let last = |text: &str| refused(text).lines().last().unwrap().to_owned();
    assert_eq!(
        last(&"- {}\n".repeat(100)),
        "hello.yml: and 150 more errors"
    );
    assert_eq!(
        last(&"- {}\n".repeat(10_000)),
        "hello.yml: and at least 950 more errors"
    );
    // what is good does not hide what is wrong behind it
    let good: String = (0..1_200)
        .map(|n| format!("- {{server_name: {n}.a.example, root: /srv/a}}\n"))
        .collect();
    let wrong = refused(&format!("{good}- {{server_name: b.example}}\n"));
    assert!(wrong.starts_with("hello.yml:1201:"), "{wrong}");
}

#[test]
fn the_form_of_ansibles_users_is_read_verbatim() {
    let app = parsed(
        r#"pki__realms:
  - domains: ["hello.example.com"]
nginx__vhosts:
  - server_name: "hello.example.com"
    root: "/srv/hello/public"
    proxy_pass_url: "http://127.0.0.1:8000"
    cache_assets: true
"#,
    );
    assert_eq!(app.vhosts[0].name.to_string(), "hello#1");
    assert_eq!(names(&app.realms[0].domains), ["hello.example.com"]);
}

#[test]
fn every_error_of_a_file_is_reported_in_its_order_at_the_wrong_scalar() {
    let text = r#"server_name: [hello.example.com, "bad name"]
proxy_pass_ulr: http://127.0.0.1:8000
root: /etc/passwd
cache_assets: maybe
tls: automatic
locations: []
"#;
    assert_eq!(
        refused(text),
        "hello.yml:1:34: `bad name`: not a host name (letters, digits and `-`, each label at most 63 characters, 253 together)\n\
         hello.yml:2:1: unknown key `proxy_pass_ulr` (did you mean `proxy_pass_url`?)\n\
         hello.yml:3:7: the root is not below /srv (move the files there, or add the directory to `roots` in vhostd's settings)\n\
         hello.yml:4:15: expected true, false or a mapping, found a string (as in cache_assets: {paths: [/assets/], max_age: 30d})\n\
         hello.yml:5:6: expected auto or internal or off, found `automatic` (did you mean `auto`?)\n\
         hello.yml:6:1: `locations` is not supported by this version"
    );
}

#[test]
fn a_wrong_type_is_refused_with_what_was_expected_and_found() {
    for (text, said) in [
        (
            "server_name: 12\nroot: /srv/a\n",
            "hello.yml:1:14: expected a string or a list of strings, found a number",
        ),
        (
            "server_name: a.example\nroot: [/srv/a]\n",
            "hello.yml:2:7: expected a string, found a list",
        ),
        (
            "server_name: a.example\nroot:\n",
            "hello.yml:2:1: expected a string, found nothing",
        ),
        (
            "server_name: [a.example, {}]\nroot: /srv/a\n",
            "hello.yml:1:26: expected a string, found a mapping",
        ),
        (
            "server_name: []\nroot: /srv/a\n",
            "hello.yml:1:14: expected a string or a list of strings, found an empty list",
        ),
        (
            "server_name: a.example\nproxy_pass_url: 8000\n",
            "hello.yml:2:17: expected a string or a list of strings, found a number",
        ),
        (
            "just text\n",
            "hello.yml:1:1: expected a vhost (a mapping), found a string",
        ),
        (
            "- a\n",
            "hello.yml:1:3: expected a vhost (a mapping), found a string",
        ),
        ("[]", "hello.yml:1:1: the list of vhosts is empty"),
        (
            "nginx__vhosts: {}\n",
            "hello.yml:1:16: expected a list of vhosts, found a mapping",
        ),
        (
            "pki__realms: []\n",
            "hello.yml:1:1: `nginx__vhosts` is missing",
        ),
        (
            "nginx__vhost:\n- server_name: a.example\n",
            "hello.yml:1:1: unknown key `nginx__vhost`",
        ),
        (
            "nginx__vhosts: []\n",
            "hello.yml:1:16: the list of vhosts is empty",
        ),
        ("{}", "hello.yml:1:1: `server_name` is missing"),
    ] {
        assert!(
            refused(text).starts_with(said),
            "{text:?}:\n{}",
            refused(text)
        );
    }
}

#[test]
fn an_empty_file_is_refused_because_an_editor_may_be_half_way() {
    for text in ["", "\n", "# soon\n", "---\n"] {
        assert!(refused(text).contains("the file is empty"), "{text:?}");
    }
}

#[test]
fn a_vhost_needs_a_name_and_something_to_serve() {
    assert!(refused("root: /srv/a\n").starts_with("hello.yml:1:1: `server_name` is missing"));
    assert!(
        refused("server_name: a.example\n")
            .starts_with("hello.yml:1:1: neither `root` nor `proxy_pass_url`")
    );
}

#[test]
fn a_misspelt_key_is_not_reported_as_missing_too() {
    assert_eq!(
        refused("server_nmae: a.example\nrooot: /srv/a\n"),
        "hello.yml:1:1: unknown key `server_nmae` (did you mean `server_name`?)\n\
         hello.yml:2:1: unknown key `rooot` (did you mean `root`?)"
    );
}

#[test]
fn a_name_twice_in_a_file_is_refused_with_its_first_line() {
    for text in [
        "server_name: [a.example, A.example]\nroot: /srv/a\n",
        "server_name: a.example\nredirect_from: a.example\nroot: /srv/a\n",
        "- {server_name: a.example, root: /srv/a}\n- {server_name: a.example, root: /srv/a}\n",
    ] {
        let said = refused(text);
        assert!(
            said.ends_with("`a.example` is already in line 1 of this file"),
            "{said}"
        );
    }
}

#[test]
fn a_redirect_leads_to_the_first_name_that_is_no_wildcard_and_needs_one() {
    let app = parsed(
        "server_name: [\"*.a.example\", a.example, b.example]\nredirect_from: old.example\nroot: /srv/a\ntls: internal\n",
    );
    assert_eq!(app.vhosts[0].canonical().as_str(), "*.a.example");
    assert_eq!(app.vhosts[0].redirect_target().as_str(), "a.example");
    let said = refused(
        "server_name: [\"*.a.example\", \"*.b.example\"]\nredirect_from: [old.example, x.example]\nroot: /srv/a\ntls: internal\n",
    );
    assert!(said.contains("hello.yml:2:17"), "{said}");
    assert!(
        said.contains("`old.example` has no name to redirect to"),
        "{said}"
    );
    assert!(said.contains("add a name without `*`"), "{said}");
    assert_eq!(said.matches("redirect to").count(), 1, "{said}");
}

#[test]
fn a_name_in_typographic_quotes_is_refused_with_what_was_meant() {
    let said = refused("server_name: “a.example.com”\nroot: /srv/a\n");
    assert!(said.contains("`“` (U+201C) is not allowed"), "{said}");
    assert!(said.contains("did you mean `a.example.com`?"), "{said}");
    let said = refused("server_name: a.example\nredirect_from: 💩.example\nroot: /srv/a\n");
    assert!(said.contains("U+1F4A9"), "{said}");
    assert!(
        said.contains("certificate authorities sign no other name"),
        "{said}"
    );
}

#[test]
fn upstreams_of_one_vhost_have_one_scheme_and_are_different() {
    let text = "server_name: a.example\nproxy_pass_url:\n- http://127.0.0.1:1\n- ";
    assert_eq!(
        parsed(&format!("{text}http://127.0.0.1:2\n")).vhosts[0]
            .upstreams
            .len(),
        2
    );
    assert!(refused(&format!("{text}https://127.0.0.1:2\n")).contains("4:3: http:// and https://"));
    assert!(
        refused(&format!("{text}http://localhost:1\n"))
            .contains("4:3: `http://127.0.0.1:1` is listed twice")
    );
}

#[test]
fn a_bare_address_is_refused_with_the_url_that_was_meant() {
    assert_eq!(
        refused("server_name: a.example\nproxy_pass_url: 127.0.0.1:8000\n"),
        "hello.yml:2:17: `127.0.0.1:8000`: http:// or https:// is missing \
         (did you mean `http://127.0.0.1:8000`?)"
    );
}

#[test]
fn cache_assets_takes_paths_and_an_age() {
    let head = "server_name: a.example\nroot: /srv/a\ncache_assets: ";
    let app = parsed(&format!("{head}{{paths: [/build/], max_age: 30d}}\n"));
    let assets = app.vhosts[0].cache_assets.as_ref().unwrap();
    assert_eq!(assets.paths[0].as_str(), "/build/");
    assert_eq!(assets.max_age.as_secs(), 2_592_000);
    assert_eq!(
        parsed(&format!("{head}false\n")).vhosts[0].cache_assets,
        None
    );
    assert!(
        parsed(&format!("{head}{{max_age: 3600}}\n")).vhosts[0]
            .cache_assets
            .is_some()
    );
    for wrong in [
        "{max_age: 0}",
        "{max_age: 366d}",
        "{max_age: -1}",
        "{max_age: soon}",
        "{max_age: [1]}",
        "{paths: [assets]}",
        "{paths: /}",
        "{age: 1}",
        "[]",
    ] {
        assert!(
            refused(&format!("{head}{wrong}\n")).starts_with("hello.yml:3:"),
            "{wrong}"
        );
    }
}

#[test]
fn a_realm_has_all_names_of_a_vhost_and_only_names_of_this_file() {
    let file = |domains: &str, vhost: &str| {
        format!(
            "pki__realms:\n- domains: {domains}\nnginx__vhosts:\n- {{root: /srv/a, {vhost}}}\n- {{root: /srv/b, server_name: b.example}}\n"
        )
    };
    assert!(
        parsed_with(
            &file("[a.example, b.example]", "server_name: a.example"),
            TlsMode::Auto
        )
        .is_ok()
    );
    let said = refused(&file(
        "[a.example]",
        "server_name: a.example, redirect_from: www.a.example",
    ));
    assert!(
        said.starts_with("hello.yml:4:57: the realm with `a.example` lacks `www.a.example`"),
        "{said}"
    );
    let said = refused(&file(
        "[a.example, other.example]",
        "server_name: a.example",
    ));
    assert!(
        said.starts_with("hello.yml:2:24: no vhost of this file answers `other.example`"),
        "{said}"
    );
    let said = refused(&file("[a.example, a.example]", "server_name: a.example"));
    assert!(
        said.starts_with("hello.yml:2:24: `a.example` is already in a realm"),
        "{said}"
    );
    let said = refused(&file(
        "[a.example, b.example]",
        "server_name: a.example, tls: internal",
    ));
    assert!(said.contains("must have the same `tls`"), "{said}");
}

#[test]
fn nothing_of_a_value_reaches_a_message_beyond_its_own_field() {
    let text = format!("server_name: \"{}\"\nroot: /srv/a\n", "x y".repeat(1000));
    assert!(refused(&text).len() < 300);
}

#[test]
fn no_damage_to_a_file_panics_and_every_error_has_a_place_that_can_be_drawn() {
    // xorshift: the same damage in every run
    let mut seed = 7_u64;
    let mut next = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % 1_000_003).unwrap() % below
    };
    let alphabet: Vec<char> = "\n :-[]{}\"'&*!|>#%@`?,ab0.~ü\t\\".chars().collect();
    for _ in 0..4000 {
        let mut text: Vec<char> = FOUR_KEYS.chars().collect();
        for _ in 0..=next(4) {
            let at = next(text.len());
            match next(3) {
                0 => text[at] = alphabet[next(alphabet.len())],
                1 => drop(text.remove(at)),
                _ => text.insert(at, alphabet[next(alphabet.len())]),
            }
        }
        let text: String = text.into_iter().collect();
        for error in parsed_with(&text, TlsMode::Auto).err().unwrap_or_default() {
            let drawn = crate::cli::diagnostic::render(&error, Some(&text), false);
            assert!(error.at.is_some(), "{text}: {error}");
            assert!(drawn.contains("--> hello.yml:"), "{text}: {drawn}");
        }
    }
}

use super::*;
use crate::render::tests::{blocks_of_everything, shipped};

/// The file of everything as it is rendered, each change of which must be found.
fn audited(change: impl Fn(&str) -> String) -> Result<(), AuditError> {
    let (file, text) = blocks_of_everything();
    let changed = change(&text);
    vhost_file(changed.as_bytes(), &file, shipped("vhost.conf"))
}

fn said(change: impl Fn(&str) -> String) -> String {
    audited(change).unwrap_err().to_string()
}

#[test]
fn what_was_meant_passes_in_any_layout_and_with_tuning() {
    assert_eq!(audited(str::to_owned), Ok(()));
    assert_eq!(audited(|text| text.replace('\n', " \n\t")), Ok(()));
    for tuning in [
        "gzip on;",
        "client_max_body_size 1g;",
        "add_header X-Frame-Options DENY;",
        "proxy_set_header X-Request-Id $request_id;",
        "error_page 502 =503 /sorry.html;",
    ] {
        let added = |text: &str| text.replace("server_tokens off;", tuning);
        assert_eq!(audited(added), Ok(()), "{tuning}");
    }
}

/// Not only some of them: whatever the blocks decide is missed where it is lost.
#[test]
fn every_decided_directive_is_missed_where_it_is_lost_and_noticed_where_it_is_doubled() {
    let (_, text) = blocks_of_everything();
    let lines: Vec<&str> = text.lines().collect();
    let mut decided = 0;
    for (index, line) in lines.iter().enumerate() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if !line.ends_with(';') || DECIDED.binary_search(&name).is_err() {
            continue;
        }
        decided += 1;
        let without = |_: &str| [&lines[..index], &lines[index + 1..]].concat().join("\n");
        let error = audited(without).unwrap_err();
        assert!(
            matches!(error, AuditError::Missing { .. }),
            "{line}: {error}"
        );
        let doubled = |_: &str| [&lines[..=index], &lines[index..]].concat().join("\n");
        assert!(audited(doubled).is_err(), "{line}");
    }
    assert!(decided > 60, "{decided}");
}

#[test]
fn every_word_of_what_the_blocks_decide_is_compared() {
    let (_, text) = blocks_of_everything();
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if DECIDED.binary_search(&name).is_err() {
            continue;
        }
        let (_, words) = line.trim_end().rsplit_once(' ').unwrap_or_default();
        for (from, to) in [(words, format!("x{words}")), ("\"", "\"x".to_owned())] {
            let changed = line.replacen(from, &to, 1);
            if changed == *line {
                continue;
            }
            let mut lines = lines.clone();
            lines[index] = &changed;
            assert!(audited(|_| lines.join("\n")).is_err(), "{changed}");
        }
    }
}

#[test]
fn what_is_moved_into_another_block_is_found_though_every_name_and_value_is_right() {
    let moved = |text: &str| {
        let root = "    root \"/srv/hello/public\";\n";
        let text = text.replacen(root, "", 1);
        text.replacen(
            "    location / {\n",
            &format!("    location / {{\n{root}"),
            1,
        )
    };
    assert!(
        said(moved).contains("`root /srv/hello/public` in location /"),
        "{}",
        said(moved)
    );
    // two server blocks that give each other their names
    let (_, text) = blocks_of_everything();
    let names: Vec<&str> = text
        .lines()
        .filter(|line| line.trim_start().starts_with("server_name"))
        .collect();
    let (first, last) = (names[0], names[names.len() - 1]);
    assert_ne!(first, last);
    let swapped = |text: &str| {
        let text = text.replacen(first, "\0", 1).replacen(last, first, 1);
        text.replacen('\0', last, 1)
    };
    assert!(said(swapped).contains("server lacks"), "{}", said(swapped));
    // locations are tried in their order
    let first_location = "    location ~ \"/$\" {";
    assert!(text.contains(first_location));
    let renamed = |text: &str| text.replacen(first_location, "    location ~ \"/\" {", 1);
    assert!(audited(renamed).is_err());
}

#[test]
fn a_foreign_directive_is_found_at_any_depth() {
    for text in [
        "include /etc/shadow;",
        "gzip on { }",
        "alias /etc/;",
        "location /a { alias /etc/; }",
        "location / { include x; }",
        "if ($host) { }",
        "proxy_pass http://169.254.169.254;",
        "proxy_pass http://unix:/run/docker.sock:;",
        "ssl_certificate_key /etc/ssl/private/other.key;",
        "access_log syslog:server=192.0.2.1;",
        "return 200 hello;",
        "root /etc;",
        "add_header Cache-Control no-store; add_header cache-control x; root /x;",
    ] {
        let added = |all: &str| all.replacen("server_tokens off;", text, 1);
        assert!(audited(added).is_err(), "{text}");
        let nested = |all: &str| all.replacen("default_type text/plain;", text, 1);
        assert!(audited(nested).is_err(), "{text}");
        let outside = |all: &str| format!("{all}\n{text}\n");
        assert!(audited(outside).is_err(), "{text}");
    }
}

/// Inside a map `include` is nginx's, and a line could name any variable.
#[test]
fn the_lines_of_a_map_are_the_ones_that_were_meant() {
    for line in [
        "include /etc/shadow;",
        "hostnames;",
        "\"x\" $http_x;",
        "default $uri;",
    ] {
        let added =
            |text: &str| text.replacen("default \"\";", &format!("default \"\"; {line}"), 1);
        assert!(said(added).contains("map"), "{line}: {}", said(added));
    }
    let instead = |text: &str| text.replacen("default \"\";", "include /etc/shadow;", 1);
    assert!(audited(instead).is_err());
}

#[test]
fn a_header_that_the_blocks_give_a_value_has_no_other_beside_it() {
    for line in [
        "proxy_set_header host $http_host;",
        "proxy_set_header X-Forwarded-Host x;",
    ] {
        let added = |text: &str| text.replacen("server_tokens off;", line, 2);
        assert!(audited(added).is_err(), "{line}");
    }
    // one in a location undoes those of the server
    let inner =
        |text: &str| text.replacen("proxy_hide_header Upgrade;", "proxy_set_header X-Y z;", 1);
    let error = audited(inner).unwrap_err();
    assert!(matches!(error, AuditError::Directive { .. }), "{error}");
}

#[test]
fn an_error_page_is_tuning_unless_it_is_a_location_of_the_blocks() {
    let ours = "error_page 418 = \"@websocket\";";
    for instead in ["", "error_page 418 = @app;", "error_page 502 = @websocket;"] {
        let changed = |text: &str| {
            assert!(text.contains(ours));
            text.replacen(ours, instead, 1)
        };
        assert!(audited(changed).is_err(), "{instead}");
    }
    let added = |text: &str| text.replacen(ours, &format!("{ours} error_page 502 /down.html;"), 1);
    assert_eq!(audited(added), Ok(()));
}

#[test]
fn a_comment_is_one_of_the_template() {
    let added = |text: &str| text.replacen("server {", "# for hello.example.com\nserver {", 1);
    assert!(matches!(
        audited(added).unwrap_err(),
        AuditError::Comment { .. }
    ));
    let behind = |text: &str| text.replacen("server {", "server { # of ours", 1);
    assert!(matches!(
        audited(behind).unwrap_err(),
        AuditError::Comment { .. }
    ));
}

#[test]
fn the_lists_are_sorted_and_nothing_is_both_decided_and_tuning() {
    for list in [DECIDED, LOCATION, SERVER, UPSTREAM] {
        assert!(list.is_sorted());
    }
    for name in LOCATION.iter().chain(SERVER).chain(UPSTREAM) {
        assert!(!DECIDED.contains(name), "{name}");
    }
}

#[test]
fn the_entry_gives_the_number_and_includes_the_files_and_nothing_else() {
    let token = |text: &str| Token::literal(text).unwrap();
    let files = [token("/a/base.conf"), token("/a/vhosts/a.conf")];
    let audited = |text: &str| entry(text.as_bytes(), &token("7"), &files, "# ours");
    let number = "map \"\" $vhostd_generation { default 7; }";
    let includes = "include /a/base.conf; include \"/a/vhosts/a.conf\";";
    assert_eq!(audited(&format!("# ours\n{number} {includes}")), Ok(()));
    for text in [
        number.to_owned(),
        includes.to_owned(),
        format!("{number} include /a/*;"),
        format!("{number} include /a/vhosts/a.conf; include /a/base.conf;"),
        format!("{number} {includes} include /etc/shadow;"),
        format!("{} {includes}", number.replace('7', "8")),
        format!("{number} {includes} server {{ }}"),
        format!("{number} {includes} # theirs"),
    ] {
        assert!(audited(&text).is_err(), "{text}");
    }
}

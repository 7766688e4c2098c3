use super::*;

fn name(text: &str) -> Result<String, NameError> {
    text.parse::<ServerName>().map(|name| name.to_string())
}

#[test]
fn a_host_name_becomes_lower_case_a_labels() {
    assert_eq!(name("Hello.Example.COM").unwrap(), "hello.example.com");
    assert_eq!(name("bücher.example").unwrap(), "xn--bcher-kva.example");
    assert_eq!(
        name("xn--bcher-kva.example").unwrap(),
        "xn--bcher-kva.example"
    );
    assert_eq!(name("*.Bücher.example").unwrap(), "*.xn--bcher-kva.example");
}

#[test]
fn what_nginx_would_read_as_more_than_a_name_is_refused() {
    for text in [
        "~^www\\.",
        "$hostname",
        "a.$host",
        "_",
        "a_b.example",
        ".example.org",
        "*.*.example",
        "a*.example.org",
        "www.*",
        "*",
        "*.com",
        "",
        " ",
        "a b.example",
        "a;b.example",
        "a.example\n",
        "a..example",
        "-a.example",
        "a-.example",
        "example.org.",
        "localhost",
        "https://a.example",
        "a.example/",
        "a.example:80",
        "a{b}.example",
        "\"a.example\"",
        "ex%61mple.org",
        "a#b.example",
        "a'b.example",
        "vhostd.invalid",
        "VHOSTD.invalid",
    ] {
        assert!(name(text).is_err(), "{text}");
    }
}

#[test]
fn a_name_has_the_characters_that_idna2008_permits() {
    for text in [
        "münchen.example",
        "MÜNCHEN.example",
        "straße.example",
        "ὀδυσσεύς.example",
        "中文.example",
        "日本語・テスト.example",
        "한국.example",
        "مثال.example",
        "نامه\u{200c}ای.example",
        "ශ්\u{200d}රී.example",
        "उदाहरण.example",
        "ตัวอย่าง.example",
        "דוגמה.example",
        "ג׳ירף.example",
        "l·l.example",
        "ا٣٤.example",
        "๓.example",
        "xn--mnchen-3ya.example",
        "*.中文.example",
    ] {
        assert!(name(text).is_ok(), "{text}: {:?}", name(text));
    }
}

#[test]
fn a_character_that_idna2008_does_not_permit_is_named_also_in_an_a_label() {
    for (text, character) in [
        ("“a.example.com”", '“'),
        ("‘a.example.com’", '‘'),
        ("„a.example.com“", '„'),
        ("«a».example.com", '«'),
        ("*.“a.example.com", '“'),
        ("i❤.example", '❤'),
        ("💩.example", '💩'),
        ("a–b.example", '–'),
        ("a—b.example", '—'),
        ("a→b.example", '→'),
        ("a·b.example", '·'),
        ("a・b.example", '・'),
        ("a€.example", '€'),
        ("a√b.example", '√'),
        ("ـا.example", 'ـ'),
        ("xn--i-7iq.example", '❤'),
        ("xn--ls8h.example", '💩'),
        ("a.xn--ls8h", '💩'),
    ] {
        assert_eq!(name(text), Err(NameError::Character(character)), "{text}");
    }
    let error = name("“a.example.com”").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`“` (U+201C) is not allowed in a host name"
    );
}

#[test]
fn a_name_in_quotes_or_with_dashes_has_a_suggestion() {
    let meant = |text: &str| ServerName::suggested_for(text).map(|name| name.to_string());
    for (text, expected) in [
        ("“a.example.com”", Some("a.example.com")),
        ("'a.example.com'", Some("a.example.com")),
        ("`a.example.com`,", Some("a.example.com")),
        ("“*.example.com”", Some("*.example.com")),
        ("my–shop.example", Some("my-shop.example")),
        ("“bücher.example”", Some("xn--bcher-kva.example")),
        ("i❤ny.example", None),
        ("💩.example", None),
        ("a.example", None),
        ("", None),
    ] {
        assert_eq!(meant(text).as_deref(), expected, "{text}");
    }
}

#[test]
fn a_name_that_was_accepted_before_a_rule_is_still_read() {
    let stored = "{\"xn--ls8h.example\": 1}";
    let read: std::collections::BTreeMap<ServerName, u8> = serde_json::from_str(stored).unwrap();
    assert_eq!(read.len(), 1);
}

#[test]
fn a_label_of_64_or_a_name_of_254_characters_is_refused() {
    let label = "a".repeat(63);
    assert!(name(&format!("{label}.example")).is_ok());
    assert!(name(&format!("{label}a.example")).is_err());
    let long = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    assert_eq!(long.len(), 253);
    assert!(name(&long).is_ok());
    assert!(name(&format!("{long}a")).is_err());
}

#[test]
fn odd_spellings_of_addresses_are_no_names() {
    for text in [
        "127.1",
        "0x7f.1",
        "a.0x7f",
        "1.2.3.4.5",
        "256.1.1.1",
        "127.0.0.01",
        "2130706433",
    ] {
        assert!(name(text).is_err(), "{text}");
    }
    assert!(name("a.0xyz").is_ok());
}

#[test]
fn an_address_is_a_name_in_nginxs_form_and_an_ip_identifier() {
    assert_eq!(name("203.0.113.7").unwrap(), "203.0.113.7");
    assert_eq!(name("2001:DB8:0:0::1").unwrap(), "[2001:db8::1]");
    let six: ServerName = "[2001:db8::1]".parse().unwrap();
    assert_eq!(
        six.to_identifier(),
        Identifier::Ip("2001:db8::1".parse().unwrap())
    );
    assert!(six.is_address() && !six.is_wildcard());
    for text in [
        "0.0.0.0",
        "169.254.1.1",
        "224.0.0.1",
        "[::]",
        "fe80::1",
        "::ffff:1.2.3.4",
    ] {
        assert!(
            matches!(name(text), Err(NameError::Address { .. })),
            "{text}"
        );
    }
}

#[test]
fn a_wildcard_is_above_every_depth_of_its_zone_and_nothing_else() {
    let parse = |text: &str| text.parse::<ServerName>().unwrap();
    let wildcard = parse("*.example.org");
    assert!(wildcard.is_above(&parse("a.example.org")));
    assert!(wildcard.is_above(&parse("a.b.example.org")));
    assert!(wildcard.is_above(&parse("*.b.example.org")));
    assert!(!wildcard.is_above(&wildcard));
    assert!(!wildcard.is_above(&parse("example.org")));
    assert!(!wildcard.is_above(&parse("badexample.org")));
    assert!(!parse("a.example.org").is_above(&parse("b.a.example.org")));
}

#[test]
fn an_app_name_is_a_safe_file_name() {
    for text in ["hello", "hello.example.com", "a_b-c.1", &"a".repeat(64)] {
        assert!(text.parse::<AppName>().is_ok(), "{text}");
    }
    for text in [
        "",
        ".a",
        "-a",
        "a..b",
        "a/b",
        "a b",
        "a\n",
        "é",
        "a#1",
        &"a".repeat(65),
    ] {
        assert!(text.parse::<AppName>().is_err(), "{text}");
    }
}

#[test]
fn a_vhost_name_has_one_spelling_and_gives_its_app() {
    let app: AppName = "hello".parse().unwrap();
    assert_eq!(VhostName::only(&app).to_string(), "hello");
    assert_eq!(VhostName::nth(&app, 1).to_string(), "hello#2");
    assert_eq!(
        "hello#2".parse::<VhostName>().unwrap(),
        VhostName::nth(&app, 1)
    );
    assert_eq!("hello#2".parse::<VhostName>().unwrap().app(), &app);
    for text in [
        "hello#", "hello#0", "hello#01", "hello#+1", "hello#a", "#1", "a#1#2",
    ] {
        assert!(text.parse::<VhostName>().is_err(), "{text}");
    }
    assert!(VhostName::nth(&app, 1) < VhostName::nth(&app, 9));
    assert!(VhostName::nth(&app, 8) < VhostName::nth(&app, 10));
}

#[test]
fn names_are_serialized_as_text_and_read_through_the_parser() {
    let name: ServerName = "*.example.org".parse().unwrap();
    let json = serde_json::to_string(&name).unwrap();
    assert_eq!(json, "\"*.example.org\"");
    assert_eq!(serde_json::from_str::<ServerName>(&json).unwrap(), name);
    assert!(serde_json::from_str::<ServerName>("\"$host\"").is_err());
    assert!(serde_json::from_str::<AppName>("\"../etc\"").is_err());
    let address: ServerName = "[::1]".parse().unwrap();
    let json = serde_json::to_string(&address).unwrap();
    assert_eq!(serde_json::from_str::<ServerName>(&json).unwrap(), address);
}

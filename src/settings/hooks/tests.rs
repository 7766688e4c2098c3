use std::path::Path;

use super::*;
use crate::settings::{Settings, parse::parse};

fn parsed(text: &str) -> HookSettings {
    parse(Path::new("vhostd.yml"), text).unwrap().hooks
}

fn refused(text: &str) -> String {
    let diagnostics = parse(Path::new("vhostd.yml"), text).unwrap_err();
    let lines: Vec<String> = diagnostics
        .iter()
        .map(|it| format!("{it} ({})", it.hint.as_deref().unwrap_or_default()))
        .collect();
    lines.join("\n")
}

#[test]
fn every_kind_of_hook_is_read() {
    let hooks = parsed(
        r#"hooks:
  on_failure:
    - slack: {url_file: /etc/vhostd/slack.url}
    - discord: {url_credential: discord-url}
    - ntfy: {url: "https://ntfy.sh/topic", token_file: /etc/vhostd/ntfy.token}
    - command: [/usr/local/bin/tell, --loud]
  on_change:
    webhook: {url: "http://127.0.0.1:9/x", secret_credential: key, ca_file: /a/ca.pem}
"#,
    );
    let kinds: Vec<_> = hooks.on_failure.iter().map(Hook::kind).collect();
    assert_eq!(kinds, ["slack", "discord", "ntfy", "command"]);
    let Hook::Command(argv) = &hooks.on_failure[3] else {
        panic!()
    };
    assert_eq!(argv.arguments, ["--loud"]);
    let webhook = hooks.on_change[0].place().unwrap();
    assert_eq!(
        webhook.secret,
        Some(SecretSource::Credential("key".to_owned()))
    );
    assert_eq!(webhook.ca_file.as_deref(), Some(Path::new("/a/ca.pem")));
    assert_eq!(hooks.secret_files().len(), 2);
    let empty = parsed("hooks:\n  on_failure:\n  on_change: []\n");
    assert!(empty.is_empty());
    assert_eq!(Settings::default().hooks, empty);
}

#[test]
fn a_url_that_is_a_secret_does_not_belong_into_the_settings() {
    let said = refused("hooks: {on_failure: [{slack: {url: \"https://hooks.slack.com/T0/B0\"}}]}");
    assert!(said.contains("this URL is a secret"), "{said}");
    assert!(!said.contains("T0/B0"), "{said}");
    // and no picture of its line is drawn
    let text = "hooks: {on_failure: [{slack: {url: \"https://hooks.slack.com/T0/B0\"}}]}";
    let errors = parse(Path::new("vhostd.yml"), text).unwrap_err();
    assert!(errors.iter().all(|error| error.at.is_none()), "{errors:?}");
}

#[test]
fn what_is_no_hook_says_what_one_is() {
    for (text, words) in [
        ("[{slak: {url_file: /x}}]", "did you mean `slack`?"),
        ("[{}]", "expected a hook"),
        ("[slack]", "expected a hook (a mapping), found"),
        ("[{slack: {}}]", "`slack` without a URL"),
        ("[{slack: {url_fil: /x}}]", "did you mean `url_file`?"),
        (
            "[{slack: {url_file: /x}, command: [/bin/true]}]",
            "one of several kinds",
        ),
        (
            "[{ntfy: {url: \"http://ntfy.sh/t\"}}]",
            "http:// only to a loopback",
        ),
        (
            "[{webhook: {url: \"https://a/\", url_file: /x}}]",
            "two URLs",
        ),
        ("[{command: [tell]}]", "the absolute path"),
        ("[{command: /bin/tell --loud}]", "are a list"),
        ("[{command: []}]", "an empty list"),
        (
            "[{discord: {url_credential: ../x}}]",
            "the name of a credential",
        ),
        ("[{slack: {url_file: slack.url}}]", "slack.url"),
    ] {
        let said = refused(&format!("hooks: {{on_failure: {text}}}"));
        assert!(said.contains(words), "{text}: {said}");
    }
    let said = refused("hooks: {on_fail: []}");
    assert!(said.contains("did you mean `on_failure`?"), "{said}");
}

#[test]
fn a_hook_in_both_lists_is_one() {
    let hooks = parsed(
        "hooks: {on_failure: [{command: [/bin/a]}], on_change: [{command: [/bin/a]}, {command: [/bin/a, b]}]}",
    );
    let all = hooks.all();
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].0, "hooks.on_failure[0] (command)");
    assert_ne!(all[0].1.id(), all[1].1.id());
}

//! Who is spoken to, and what a test message says of it.

use super::*;

#[test]
fn a_receiver_is_known_by_the_systems_roots_or_by_those_that_are_named_for_it() {
    let host = Host::new();
    let pebble = Pebble::start(host.nginx.http_port);
    // somebody who speaks TLS, and takes no such message
    let url = pebble.directory_url();
    let ca_file = pebble.ca_file();
    host.configure(&format!(
        "hooks: {{on_change: [{{webhook: {{url: \"{url}\", ca_file: {}}}}}, {{webhook: {{url: \"{url}?\"}}}}]}}\n",
        ca_file.display()
    ));
    let (status, tested) = host.json(&["hooks", "test"]);
    assert_eq!(status, 1);
    let error = |at: usize| tested["hooks"][at]["error"].as_str().unwrap().to_owned();
    assert!(error(0).contains("deliver it: HTTP 415"), "{}", error(0));
    assert!(error(1).contains("UnknownIssuer"), "{}", error(1));
}

#[test]
fn a_credential_of_systemd_is_found() {
    let receiver = Receiver::start();
    let host = Host::with_settings("hooks: {on_failure: {slack: {url_credential: slack-url}}}\n");
    fs::create_dir(host.path("credentials")).unwrap();
    secret(&host, "credentials/slack-url", &receiver.url("/slack"));
    let mut command = host.command(&["hooks", "test"]);
    command.env("CREDENTIALS_DIRECTORY", host.path("credentials"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(receiver.requests()[0].path, "/slack");
}

#[test]
fn a_test_message_tells_what_became_of_each_hook() {
    let receiver = Receiver::start();
    let host = Host::new();
    let none = host.vhostd(&["hooks", "test"]);
    assert_eq!(none.status, 1, "{none:?}");
    assert!(none.stderr.contains("there is no hook to test"), "{none:?}");
    let slack = secret(&host, "slack.url", &receiver.url("/slack"));
    let good = format!(
        "hooks:\n  on_failure:\n    - slack: {{url_file: {}}}\n    - ntfy: {{url: \"{}\"}}\n",
        slack.display(),
        receiver.url("/topic"),
    );
    host.configure(&good);
    let test = host.vhostd(&["hooks", "test"]);
    assert_eq!(test.status, 0, "{test:?}");
    assert!(
        test.stdout
            .contains("hooks.on_failure[0] (slack): delivered in"),
        "{test:?}"
    );
    let requests = receiver.requests();
    let slack_got = requests.iter().find(|it| it.path == "/slack").unwrap();
    let text = slack_got.json()["text"].clone();
    assert!(text.as_str().unwrap().contains("a test message of vhostd"));
    let ntfy_got = requests.iter().find(|it| it.path == "/topic").unwrap();
    assert!(ntfy_got.header("Title").unwrap().contains("a test message"));
    host.configure(&format!(
        "{good}    - command: [/bin/false]\n    - discord: {{url_credential: nowhere}}\n"
    ));
    fs::set_permissions(&slack, fs::Permissions::from_mode(0o644)).unwrap();
    let (status, tested) = host.json(&["hooks", "test"]);
    assert_eq!(status, 1, "{tested}");
    let delivered: Vec<_> = tested["hooks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hook| hook["delivered"].as_bool().unwrap())
        .collect();
    assert_eq!(delivered, [true, true, false, false], "{tested}");
    let error = tested["hooks"][3]["error"].as_str().unwrap();
    assert!(error.contains("find the credential `nowhere`"), "{error}");
    let test = host.vhostd(&["hooks", "test"]);
    assert!(
        test.stderr.contains("every user can read the secret"),
        "{test:?}"
    );
    receiver.answer("302 Found\r\nLocation: http://127.0.0.1:1/", "");
    let test = host.vhostd(&["hooks", "test"]);
    assert!(
        test.stderr.contains("it leads elsewhere (HTTP 302)"),
        "{test:?}"
    );
}

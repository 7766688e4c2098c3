//! `vhostd account`

use super::*;
use crate::support::mock_ca::edit;

#[test]
fn show_tells_who_we_are_and_which_caa_records_let_nobody_else_issue() {
    let nginx = NginxHost::new();
    let ca = MockCa::start(nginx.http_port);
    ca.answer_otherwise(|asked: &Asked, reply| {
        if asked.resource == Resource::Directory {
            edit(reply, |directory| {
                directory["meta"] = serde_json::json!({"caaIdentities": ["ca.example"]});
            });
        }
    });
    let (_, nobody) = nobody();
    let host = Host::on(
        nginx,
        &format!(
            "acme:\n  email: admin@example.com\n  directory:\n    - {{directory: {}, ca_file: {}}}\n    - {nobody}\n",
            ca.directory_url(),
            ca.ca_file().display()
        ),
    );
    let app = App::start();
    host.drop_file(
        "hello.yml",
        &format!(
            "server_name: [{NAME}, www.example.org]\nproxy_pass_url: {}\n",
            app.url()
        ),
    );
    let before = host.vhostd(&["account", "show"]);
    assert!(
        before.stderr.contains("made with the first order"),
        "{before:?}"
    );
    assert_eq!((before.status, before.stdout.as_str()), (0, ""));
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let (status, shown) = host.json(&["account", "show"]);
    assert_eq!(status, 0);
    let [first, second] = shown["accounts"].as_array().unwrap().as_slice() else {
        panic!("{shown}")
    };
    let url = first["url"].as_str().unwrap();
    let rest = format!("CAA 0 issue \"ca.example; accounturi={url}; validationmethods=http-01\"");
    let records = [
        format!("example.com. {rest}"),
        format!("example.org. {rest}"),
    ];
    assert_eq!(first["caa_records"], serde_json::json!(records));
    assert_eq!(first["email"], "admin@example.com");
    assert_ne!(first["thumbprint"], second["thumbprint"], "keys apart");
    assert_ne!(first["key_file"], second["key_file"]);
    assert_eq!(
        (&second["url"], &second["caa_records"]),
        (&Value::Null, &serde_json::json!([]))
    );
    assert!(
        second["error"].as_str().unwrap().contains("out of reach"),
        "{second}"
    );
    // the records alone are data
    let told = host.vhostd(&["account", "show"]);
    assert_eq!(told.stdout, format!("{}\n{}\n", records[0], records[1]));
    assert!(!told.stdout.contains("PRIVATE") && !told.stderr.contains("PRIVATE"));
}

#[test]
fn a_damaged_account_of_a_fallback_keeps_nobody_from_the_first_ca() {
    let nginx = NginxHost::new();
    let first = Pebble::start(nginx.http_port);
    let second = Pebble::start(nginx.http_port);
    let host = Host::on(nginx, &several(&of(&first), &second));
    let url = second.directory_url();
    let host_of = url.trim_start_matches("https://").trim_end_matches("/dir");
    let home = host_of.replace(':', "_");
    let accounts = host.path("state/accounts");
    let app = App::start();
    host.drop_app("hello", NAME, &app);
    assert_eq!(host.vhostd(&["reload", "--wait"]).status, 0);
    let mut homes = fs::read_dir(&accounts).unwrap().map(|it| it.unwrap());
    let home = homes.find(|it| it.file_name().to_string_lossy().starts_with(&home));
    let account = home.unwrap().path().join("account.json");
    fs::write(&account, "{").unwrap();
    host.drop_app("more", "more.example.com", &app);
    let reload = host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!(first.finalized(), 2);
    assert!(reload.stderr.contains("account.json"), "{reload:?}");
    assert_eq!(fs::read_to_string(&account).unwrap(), "{");
}

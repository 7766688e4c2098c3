//! The reader of `nginx -T` against the real thing.

use vhostd::nginx::dump::{ListenSocket, survey};

use crate::support::nginx::NginxHost;

#[test]
fn the_survey_of_a_real_dump_finds_the_hand_written_servers_and_not_ours() {
    let host = NginxHost::new();
    let (http, https) = (host.http_port, host.https_port);
    let ours = host.path("generations/1/http.conf");
    std::fs::create_dir_all(ours.parent().unwrap()).unwrap();
    std::fs::write(
        &ours,
        format!("server {{ listen {http}; server_name ours.example; }}\n"),
    )
    .unwrap();
    host.include(&ours);
    std::fs::write(host.path("names"), "server_name a.example \"b.example\";\n").unwrap();
    host.site(
        "theirs",
        &format!(
            "# theirs\nserver {{ include names; listen 127.0.0.1:{https} default_server; }}\n"
        ),
    );

    let survey = survey(&host.dump(), &host.path("generations")).unwrap();
    assert_eq!(survey.servers.len(), 1, "{survey:?}");
    let server = &survey.servers[0];
    assert_eq!(server.names, ["a.example", "b.example"]);
    assert_eq!((&server.file, server.line), (&host.path("sites/theirs"), 2));
    let socket = ListenSocket::Tcp {
        address: Some("127.0.0.1".parse().unwrap()),
        port: https,
    };
    assert_eq!(server.listens[0].socket, socket);
    assert!(server.listens[0].default_server);
    assert_eq!(survey.pid, Some(host.path("nginx.pid")));
    assert_eq!(survey.error_log, Some(host.path("logs/error.log")));
    assert!(survey.http_directives.contains("client_body_temp_path"));
    assert!(
        !survey
            .http_directives
            .contains("server_names_hash_bucket_size")
    );
    assert_eq!(survey.unreadable, []);
}

use super::*;

const DUMP: &str = "\
# configuration file /etc/nginx/nginx.conf:
user www-data;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log;
include modules/*.conf;
events { worker_connections 768; }
http {
    include mime.types;
    server_names_hash_bucket_size 64;
    include conf.d/*.conf;
    include /etc/nginx/sites-enabled/*;
}
stream {
    server { listen 9000; }
    include streams/*.conf;
}

# configuration file /etc/nginx/modules/a.conf:
load_module modules/x.so;

# configuration file /etc/nginx/mime.types:
types { text/html html; }

# configuration file /etc/nginx/conf.d/vhostd.conf:
include /var/lib/vhostd/current/http.conf;

# configuration file /var/lib/vhostd/current/http.conf:
map \"\" $vhostd_generation { default 1; }
include /var/lib/vhostd/generations/1/base.conf;

# configuration file /var/lib/vhostd/generations/1/base.conf:
server { listen 80 default_server; server_name ours.example; }

# configuration file /etc/nginx/sites-enabled/default:

server {
    listen 80 default_server;
    listen [::]:80 default_server;
    server_name _;
}
server {
    include snippets/names;
    listen 127.0.0.1:8080 ssl http2;
    listen unix:/run/x.sock;
}
server { server_name bare.example; }

# configuration file /etc/nginx/snippets/names:
server_name a.example *.b.example;

# configuration file /etc/nginx/streams/s.conf:
server { listen 9001; }
";

fn surveyed() -> Survey {
    survey(DUMP.as_bytes(), Path::new("/var/lib/vhostd")).unwrap()
}

fn tcp(address: Option<&str>, port: u16) -> ListenSocket {
    ListenSocket::Tcp {
        address: address.map(|text| text.parse().unwrap()),
        port,
    }
}

#[test]
fn hand_written_http_servers_are_found_through_includes_and_ours_are_not() {
    let servers = surveyed().servers;
    let names: Vec<&[String]> = servers.iter().map(|server| &server.names[..]).collect();
    assert_eq!(
        names,
        [&["_"][..], &["a.example", "*.b.example"], &["bare.example"]]
    );
    let sites = Path::new("/etc/nginx/sites-enabled/default");
    assert!(servers.iter().all(|server| server.file == sites));
    assert_eq!(
        servers.iter().map(|server| server.line).collect::<Vec<_>>(),
        [2, 7, 12]
    );
}

#[test]
fn listens_say_who_owns_the_unknown_names() {
    let servers = surveyed().servers;
    let all = |index: usize| -> Vec<(ListenSocket, bool)> {
        let listens = servers[index].listens.iter();
        listens
            .map(|listen| (listen.socket.clone(), listen.default_server))
            .collect()
    };
    assert_eq!(all(0), [(tcp(None, 80), true), (tcp(Some("::"), 80), true)]);
    assert_eq!(
        all(1),
        [
            (tcp(Some("127.0.0.1"), 8080), false),
            (ListenSocket::Unix("/run/x.sock".into()), false)
        ]
    );
    assert_eq!(all(2), [(tcp(None, 80), false)]);
}

#[test]
fn main_and_http_directives_are_kept_apart() {
    let survey = surveyed();
    assert_eq!(survey.pid, Some("/run/nginx.pid".into()));
    assert_eq!(survey.error_log, Some("/var/log/nginx/error.log".into()));
    assert_eq!(survey.load_modules, ["modules/x.so"]);
    let http: Vec<&String> = survey.http_directives.iter().collect();
    assert_eq!(http, ["server_names_hash_bucket_size", "types"]);
}

#[test]
fn a_file_that_does_not_parse_hides_only_itself() {
    let broken = DUMP.replace("types { text/html html; }", "types {");
    let survey = survey(broken.as_bytes(), Path::new("/var/lib/vhostd")).unwrap();
    assert_eq!(survey.servers.len(), 3);
    assert_eq!(survey.unreadable[0].0, Path::new("/etc/nginx/mime.types"));
}

#[test]
fn a_survey_survives_serialization() {
    let text = serde_json::to_string(&surveyed()).unwrap();
    assert_eq!(serde_json::from_str::<Survey>(&text).unwrap(), surveyed());
}

#[test]
fn what_is_no_dump_is_an_error() {
    assert_eq!(survey(b"", Path::new("/x")), Err(DumpError::NoFile));
    let broken = b"# configuration file /a:\nhttp {";
    assert!(matches!(
        survey(broken, Path::new("/x")),
        Err(DumpError::MainFile { .. })
    ));
}

#[test]
fn an_include_cycle_ends() {
    let cycle =
        b"# configuration file /a/a:\ninclude a;\nhttp { include a; server { include a; } }";
    assert!(survey(cycle, Path::new("/x")).is_ok());
}

#[test]
fn sockets_are_read_as_nginx_reads_them() {
    for (text, expected) in [
        ("8080", tcp(None, 8080)),
        ("*:81", tcp(None, 81)),
        ("0.0.0.0:81", tcp(None, 81)),
        ("127.0.0.1", tcp(Some("127.0.0.1"), 80)),
        ("[::1]:81", tcp(Some("::1"), 81)),
        ("[::]", tcp(Some("::"), 80)),
        ("localhost:81", tcp(Some("127.0.0.1"), 81)),
    ] {
        assert_eq!(socket_of(text), Some(expected), "{text}");
    }
}

#[test]
fn what_nginx_reads_before_our_files_is_known_with_the_line_that_includes_them() {
    let survey = surveyed();
    let line = ("/etc/nginx/conf.d/vhostd.conf".into(), 1);
    assert_eq!((survey.read_first, survey.include), (0, Some(line)));
    let last = DUMP
        .replace("include conf.d/*.conf;\n", "")
        .replace("enabled/*;\n", "enabled/*;\n include conf.d/*.conf;\n");
    let survey = super::survey(last.as_bytes(), Path::new("/var/lib/vhostd")).unwrap();
    assert_eq!(survey.read_first, 3);
    let without = DUMP.replace("include /var/lib/vhostd/current/http.conf;", "");
    let survey = super::survey(without.as_bytes(), Path::new("/var/lib/vhostd")).unwrap();
    assert_eq!(survey.include, None);
}

#[test]
fn http2_is_a_parameter_of_listen() {
    let servers = surveyed().servers;
    assert!(servers[1].listens[0].http2);
    assert!(!servers[0].listens[0].http2 && !servers[2].listens[0].http2);
}

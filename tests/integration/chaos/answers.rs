//! What a CA, or a load balancer before it, says instead of an answer, at each of its resources; and
//! then it is well again.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use vhostd::settings::AcmeSettings;

use super::*;
use crate::support::app::App;
use crate::support::host::Host;
use crate::support::mock_ca::wire::{Manner, Reply};
use crate::support::mock_ca::{Asked, MockCa, Resource};
use crate::support::nginx::NginxHost;
use crate::support::wait_for;

const NAME: &str = "a.example";

/// In the order of a first order.
const RESOURCES: [Resource; 9] = [
    Resource::Directory,
    Resource::NewNonce,
    Resource::NewAccount,
    Resource::NewOrder,
    Resource::Authorization,
    Resource::Challenge,
    Resource::Order,
    Resource::Finalize,
    Resource::Certificate,
];

type Change = Arc<dyn Fn(&mut Reply) + Send + Sync>;

/// A proper CA, and who orders from it.
struct Beside {
    fixture: Fixture,
    ca: MockCa,
    settings: AcmeSettings,
    client: AcmeClient,
}

impl Beside {
    fn new() -> Self {
        let fixture = Fixture::new();
        let ca = MockCa::start(fixture.challenges.port);
        let settings = mock_settings(&ca);
        let client = fixture.client(&settings);
        Self {
            fixture,
            ca,
            settings,
            client,
        }
    }

    /// One attempt at which the CA answers otherwise where it is asked for `resource`.
    async fn obtain(&mut self, resource: Resource, change: &Change) -> Obtained {
        match resource {
            // asked for by the first order of a process only, or of an account
            Resource::Directory | Resource::NewNonce => {
                self.client = self.fixture.client(&self.settings);
            }
            Resource::NewAccount => {
                let accounts = self.fixture.directory.path().join("accounts");
                std::fs::remove_dir_all(accounts).unwrap();
                self.client = self.fixture.client(&self.settings);
            }
            _ => {}
        }
        let change = change.clone();
        let before = self.ca.asked(resource);
        self.ca.answer_otherwise(move |asked: &Asked, reply| {
            if asked.resource == resource {
                change(reply);
            }
        });
        let obtained = self.fixture.obtain(&self.client, &[NAME]).await;
        self.ca.behave();
        assert!(self.ca.asked(resource) > before, "{resource:?}: not asked");
        obtained
    }

    /// It fails, and when it is tried next.
    async fn fails(&mut self, what: &str, resource: Resource, change: &Change) -> OffsetDateTime {
        match self.obtain(resource, change).await {
            Obtained::Failed { error, next, .. } => {
                println!("{what} at {resource:?}: {error}");
                assert!(!error.contains(['\n', '\u{1b}']), "{error:?}");
                next
            }
            other => panic!("{what} at {resource:?}: {other:?}"),
        }
    }

    /// At that time the CA is well again.
    async fn recovers(&mut self, what: &str, next: OffsetDateTime) {
        self.fixture.now.set(next);
        self.fixture.issues(&self.client, &[NAME]).await;
        assert_eq!(self.fixture.attempts(&[NAME]), None, "{what}");
    }
}

fn change(change: impl Fn(&mut Reply) + Send + Sync + 'static) -> Change {
    Arc::new(change)
}

/// Without the nonce that a load balancer knows nothing of.
fn page(status: u16) -> Reply {
    let page = "<html><head><title>Service Temporarily Unavailable</title></head></html>";
    Reply::new(status, page).with("Content-Type", "text/html")
}

fn problem(status: u16, kind: &str) -> Reply {
    let kind = format!("urn:ietf:params:acme:error:{kind}");
    let problem = json!({"type": kind, "detail": "not now", "status": status});
    Reply::new(status, problem.to_string()).with("Content-Type", "application/problem+json")
}

fn as_http_date(at: OffsetDateTime) -> String {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    at.format(format).unwrap()
}

#[tokio::test]
async fn a_page_instead_of_an_answer_is_got_over_wherever_it_comes() {
    let mut beside = Beside::new();
    beside.fixture.issues(&beside.client, &[NAME]).await;
    for resource in RESOURCES {
        for status in [500, 502, 503] {
            let what = format!("{status}");
            let answer = change(move |it| *it = page(status));
            let next = beside.fails(&what, resource, &answer).await;
            let waits = next - beside.fixture.now.get();
            assert!(
                (60..=66).contains(&waits.whole_seconds()),
                "{what}: {waits}"
            );
            beside.recovers(&what, next).await;
        }
    }
}

#[tokio::test]
async fn a_retry_after_is_kept_to_the_second_wherever_it_comes() {
    let mut beside = Beside::new();
    beside.fixture.issues(&beside.client, &[NAME]).await;
    for resource in RESOURCES {
        for (seconds, reply) in [
            (7, page(503)),
            (90, page(429)),
            (5, problem(429, "rateLimited")),
            (7200, problem(429, "rateLimited")),
        ] {
            let what = format!("{} for {seconds} s", reply.status);
            let reply = Mutex::new(reply.with("Retry-After", seconds.to_string()));
            let answer = change(move |it| {
                let reply = reply.lock().unwrap();
                *it = Reply::new(reply.status, reply.body.clone());
                it.headers.clone_from(&reply.headers);
            });
            let next = match resource {
                // the CA has validated it all the same, and says so when it is asked
                Resource::Challenge if seconds == 5 || seconds == 7200 => {
                    let obtained = beside.obtain(resource, &answer).await;
                    assert!(matches!(obtained, Obtained::Stored(_)), "{obtained:?}");
                    continue;
                }
                _ => beside.fails(&what, resource, &answer).await,
            };
            let waits = next - beside.fixture.now.get();
            let off = waits - time::Duration::seconds(seconds);
            assert!(
                off.abs() <= time::Duration::SECOND,
                "{what} at {resource:?}: {waits}"
            );
            beside.recovers(&what, next).await;
        }
    }
}

#[tokio::test]
async fn a_retry_after_may_be_a_date_on_the_cas_clock() {
    let mut beside = Beside::new();
    // which is an hour ahead
    let theirs = OffsetDateTime::now_utc() + time::Duration::HOUR;
    let date = as_http_date(theirs + time::Duration::seconds(600));
    let answer = change(move |it| {
        *it = problem(429, "rateLimited").with("Retry-After", date.clone());
        it.set("Date", as_http_date(theirs));
    });
    let next = beside.fails("a date", Resource::NewOrder, &answer).await;
    let off = next - beside.fixture.now.get() - time::Duration::seconds(600);
    assert!(off.abs() <= time::Duration::SECOND, "{off}");
    beside.recovers("a date", next).await;
}

#[tokio::test]
async fn a_conflict_is_got_over_wherever_it_comes() {
    let mut beside = Beside::new();
    beside.fixture.issues(&beside.client, &[NAME]).await;
    for resource in RESOURCES {
        for kind in ["alreadyReplaced", "conflict", "malformed", "orderNotReady"] {
            let answer = change(move |it| {
                let nonce = it.headers.iter().find(|(name, _)| name == "Replay-Nonce");
                let nonce = nonce.cloned();
                *it = problem(409, kind);
                it.headers.extend(nonce);
            });
            let what = format!("409 {kind}");
            let next = match beside.obtain(resource, &answer).await {
                Obtained::Failed { next, .. } => next,
                // the order was ready, whatever the CA said of it
                Obtained::Stored(_) => beside.fixture.now.get(),
                other => panic!("{what} at {resource:?}: {other:?}"),
            };
            beside.recovers(&what, next).await;
        }
    }
}

#[tokio::test]
async fn rubbish_is_got_over_wherever_it_comes() {
    let mut beside = Beside::new();
    beside.fixture.issues(&beside.client, &[NAME]).await;
    let rubbish: [(&str, Change); 6] = [
        (
            "truncated",
            change(|it| it.body.truncate(it.body.len() / 2)),
        ),
        ("HTML", change(|it| it.body = page(200).body)),
        ("empty", change(|it| it.body.clear())),
        (
            "a wrong content type",
            change(|it| it.set("Content-Type", "image/png")),
        ),
        ("half an answer", change(|it| it.manner = Manner::HangUp)),
        ("a reset", change(|it| it.manner = Manner::Reset)),
    ];
    for resource in RESOURCES {
        for (what, answer) in &rubbish {
            let next = match beside.obtain(resource, answer).await {
                Obtained::Failed { next, .. } => next,
                // what nobody reads, or reads no further than it goes
                Obtained::Stored(_) => {
                    println!("{what} at {resource:?} is no matter");
                    beside.fixture.now.get()
                }
                other => panic!("{what} at {resource:?}: {other:?}"),
            };
            beside.recovers(what, next).await;
        }
    }
}

#[test]
fn a_daemon_asks_again_when_the_ca_said_and_not_a_second_later() {
    let nginx = NginxHost::new();
    let ca = MockCa::start(nginx.http_port);
    let further = format!(
        "acme: {{directory: {}, ca_file: {}}}\n",
        ca.directory_url(),
        ca.ca_file().display()
    );
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = asked.clone();
    ca.answer_otherwise(move |it, reply| {
        if it.resource == Resource::NewOrder {
            let mut asked = noted.lock().unwrap();
            asked.push(Instant::now());
            if asked.len() <= 2 {
                *reply = problem(429, "rateLimited").with("Retry-After", "3");
            }
        }
    });
    let (host, app) = (Host::on(nginx, &further), App::start());
    let daemon = host.daemon();
    host.drop_app("hello", NAME, &app);
    host.wait_for_https(NAME, "/", &ca.root());
    wait_for("the record of success", || {
        (host.certificate(NAME)?["attempts"] == 0).then_some(())
    });
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 3);
    for pair in asked.windows(2) {
        let waited = pair[1] - pair[0];
        let off = waited.abs_diff(Duration::from_secs(3));
        assert!(off <= Duration::from_secs(1), "{waited:?}");
    }
    assert_eq!(daemon.stop(), 0);
}

use serde_json::Value;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::notice::{Event, Subject, SubjectKind};

const HOSTILE: &str = "<!channel> @everyone **[x](https://evil.example)** & \"ü\"";

fn notice(happened: &str) -> Notice {
    let at = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
    Notice {
        id: "0123456789abcdef".to_owned(),
        event: Event::CertificateFailing,
        weight: Weight::Failure,
        at,
        subject: Subject {
            kind: SubjectKind::Certificate,
            name: "a.example".to_owned(),
        },
        names: vec!["a.example".to_owned(), "b.example".to_owned()],
        title: "certificate a.example could not be obtained".to_owned(),
        happened: happened.to_owned(),
        next: "vhostd tries again".to_owned(),
        next_at: Some(at + Duration::MINUTE),
    }
}

fn json(message: &Message) -> Value {
    assert_eq!(message.content_type, "application/json");
    serde_json::from_slice(&message.body).unwrap()
}

#[test]
fn a_webhook_gets_every_key_under_its_stable_name() {
    let value: Value = serde_json::from_slice(&data(&notice("it failed"), "web1")).unwrap();
    assert_eq!(
        value,
        serde_json::json!({
            "version": 1, "host": "web1", "id": "0123456789abcdef",
            "event": "certificate_failing", "type": "failure", "at": "2024-10-04T00:00:00Z",
            "subject": {"kind": "certificate", "name": "a.example"},
            "names": ["a.example", "b.example"],
            "title": "certificate a.example could not be obtained",
            "message": "it failed\nNext: vhostd tries again",
            "happened": "it failed", "next": "vhostd tries again",
            "next_at": "2024-10-04T00:01:00Z",
        })
    );
}

#[test]
fn nobody_is_mentioned_in_slack() {
    let text = json(&slack(&notice(HOSTILE), "web1"))["text"].clone();
    let text = text.as_str().unwrap();
    assert!(text.contains("&lt;!channel&gt;") && text.contains("&amp;"));
    assert!(!text.contains('<'), "{text}");
    assert!(
        text.contains("*web1: certificate a.example could not be obtained*"),
        "{text}"
    );
}

#[test]
fn nobody_is_mentioned_in_discord_and_a_long_message_is_cut() {
    let value = json(&discord(&notice(HOSTILE), "web1"));
    assert_eq!(value["allowed_mentions"], serde_json::json!({"parse": []}));
    let content = value["content"].as_str().unwrap();
    assert!(
        content.contains(r"\*\*\[x\]\(https\://evil.example\)"),
        "{content}"
    );
    for long in ["*".repeat(9000), "\u{1f534}".repeat(9000)] {
        let value = json(&discord(&notice(&long), "web1"));
        let units = value["content"].as_str().unwrap().encode_utf16().count();
        assert!((1900..=2000).contains(&units), "{units}");
    }
}

#[test]
fn a_title_adds_no_header_to_ntfy_and_a_long_body_is_no_attachment() {
    let mut notice = notice(&"ü".repeat(9000));
    notice.title = "a\r\nActions: view".to_owned();
    let message = ntfy(&notice, "web1");
    assert!(message.body.len() <= 4096 && message.body.len() > 3900);
    assert!(std::str::from_utf8(&message.body).is_ok());
    let title = &message.headers[0];
    assert!(title.1.starts_with("=?UTF-8?B?") && title.1.is_ascii());
    assert!(!title.1.contains('\n'));
    assert_eq!(header("plain words"), "plain words");
}

#[test]
fn a_command_finds_all_of_it_in_its_environment() {
    let environment = environment(&notice("it\0failed"), "web1");
    let value = |key: &str| {
        let found = environment.iter().find(|(known, _)| *known == key);
        found.unwrap().1.as_str()
    };
    assert_eq!(value("VHOSTD_EVENT"), "certificate_failing");
    assert_eq!(value("VHOSTD_NAMES"), "a.example b.example");
    assert_eq!(value("VHOSTD_NEXT_AT"), "2024-10-04T00:01:00Z");
    assert!(
        value("VHOSTD_MESSAGE").starts_with("it\u{fffd}failed"),
        "{environment:?}"
    );
}

#[test]
fn a_thousand_renewals_are_one_message_in_a_chat() {
    let mut notices: Vec<Notice> = (0..1000)
        .map(|n| {
            let mut notice = notice("it failed");
            notice.subject.name = format!("{n}.example");
            notice
        })
        .collect();
    notices[7].event = Event::NginxDown;
    let all: Vec<&Notice> = notices.iter().collect();
    let messages = digest(&all);
    let counts: Vec<usize> = messages.iter().map(|(_, stands)| stands.len()).collect();
    assert_eq!(counts, [1, 999]);
    assert_eq!(messages[1].0.title, "999 × certificate failing");
    let said = &messages[1].0.happened;
    assert!(
        said.starts_with("0.example, 1.example") && said.contains("and 991 more; of the first"),
        "{said}"
    );
    assert_eq!(digest(&all[..3]).len(), 3);
}

#[test]
fn what_happened_last_is_read_last() {
    let of = |(index, event): (usize, &Event)| Notice {
        id: index.to_string(),
        event: *event,
        ..notice("it failed")
    };
    let (down, up) = (Event::NginxDown, Event::NginxRecovered);
    let read = |events: &[Event]| {
        let notices: Vec<Notice> = events.iter().enumerate().map(of).collect();
        let messages = digest(&notices.iter().collect::<Vec<_>>());
        messages
            .into_iter()
            .map(|it| it.0.event)
            .collect::<Vec<_>>()
    };
    assert_eq!(read(&[down, up, down]), [down, up, down]);
    let flapping = [down, up].repeat(4);
    assert_eq!(read(&flapping), [down, up]);
    assert_eq!(read(&flapping[1..]), [down, down, down, up]);
}

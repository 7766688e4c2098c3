//! P: a notice → what a receiver of each kind wants to read.
//!
//! Names, files and a CA's words are a stranger's: in a chat they mention nobody, link to nothing
//! and are no longer than the chat takes.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;
use time::format_description::well_known::Rfc3339;

use super::{Event, Notice, Weight};
use crate::settings::hooks::Hook;

/// What is sent by HTTP POST.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// What programs get; keys are added, none is renamed (docs/hooks.md).
#[derive(Debug, Serialize)]
struct Data<'a> {
    version: u32,
    host: &'a str,
    /// Title and message of a notice in the form that Apprise takes, too.
    message: String,
    #[serde(flatten)]
    notice: &'a Notice,
}

/// As JSON: to a webhook, and to a command's standard input.
pub fn data(notice: &Notice, host: &str) -> Vec<u8> {
    let data = Data {
        version: 1,
        host,
        message: notice.message(),
        notice,
    };
    // numbers, texts and times: nothing of it can fail
    serde_json::to_vec(&data).unwrap_or_default()
}

/// For the kinds that are spoken to by HTTP; a command is not.
pub fn message(hook: &Hook, notice: &Notice, host: &str) -> Message {
    match hook {
        Hook::Discord(_) => discord(notice, host),
        Hook::Ntfy(_) => ntfy(notice, host),
        Hook::Slack(_) => slack(notice, host),
        Hook::Command(_) | Hook::Webhook(_) => Message {
            content_type: JSON,
            headers: vec![("x-vhostd-event", notice.event.word().to_owned())],
            body: data(notice, host),
        },
    }
}

/// What a command finds in its environment.
pub fn environment(notice: &Notice, host: &str) -> BTreeMap<String, String> {
    let next_at = notice.next_at.and_then(|at| at.format(&Rfc3339).ok());
    let environment = [
        ("VHOSTD_AT", notice.at.format(&Rfc3339).unwrap_or_default()),
        ("VHOSTD_EVENT", notice.event.word().to_owned()),
        ("VHOSTD_HOST", host.to_owned()),
        ("VHOSTD_ID", notice.id.clone()),
        ("VHOSTD_MESSAGE", notice.message()),
        ("VHOSTD_NAMES", notice.names.join(" ")),
        ("VHOSTD_NEXT_AT", next_at.unwrap_or_default()),
        ("VHOSTD_SUBJECT", notice.subject.name.clone()),
        ("VHOSTD_SUBJECT_KIND", notice.subject.kind.word().to_owned()),
        ("VHOSTD_TITLE", notice.title.clone()),
        ("VHOSTD_TYPE", notice.weight.word().to_owned()),
    ];
    // execve(2) takes none
    let clean = |(key, value): (&str, String)| (key.to_owned(), value.replace('\0', "\u{fffd}"));
    environment.into_iter().map(clean).collect()
}

/// Many notices of one kind that would be as many messages in a chat: the first ones, and one that
/// says how many more there are, in the place of the last: what came after the others is read after
/// them. Returns each with the notices that it stands for.
pub fn digest<'a>(notices: &[&'a Notice]) -> Vec<(Notice, Vec<&'a Notice>)> {
    let mut messages = Vec::new();
    let mut kinds: BTreeMap<Event, Vec<&Notice>> = BTreeMap::new();
    for notice in notices {
        kinds.entry(notice.event).or_default().push(notice);
    }
    for notice in notices {
        let Some(alike) = kinds.get(&notice.event) else {
            continue;
        };
        if alike.len() <= SEPARATE {
            messages.push(((*notice).clone(), vec![*notice]));
            continue;
        }
        let (Some(first), Some(last)) = (alike.first(), alike.last()) else {
            continue;
        };
        if !std::ptr::eq(*last, *notice) {
            continue;
        }
        let names: Vec<&str> = alike.iter().map(|it| it.subject.name.as_str()).collect();
        let shown = names[..SHOWN.min(names.len())].join(", ");
        let more = match names.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let together = Notice {
            title: format!("{} × {}", alike.len(), first.event.word().replace('_', " ")),
            happened: format!("{shown}{more}; of the first: {}", first.happened),
            ..(*first).clone()
        };
        messages.push((together, alike.clone()));
    }
    messages
}

/// Slack: only these three characters mean something in a text
/// (<https://docs.slack.dev/messaging/formatting-message-text/>).
fn slack(notice: &Notice, host: &str) -> Message {
    let escaped = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    let text = format!(
        "{} *{}*\n{}",
        sign(notice.weight),
        escaped(&title(notice, host)),
        escaped(&cut(&notice.message(), SLACK_CHARACTERS))
    );
    json_message(&json!({"text": text, "unfurl_links": false, "unfurl_media": false}))
}

/// Discord: at most 2000 UTF-16 units; `allowed_mentions` without any mentions nobody, and flag 4
/// shows no previews (<https://docs.discord.com/developers/resources/webhook>).
fn discord(notice: &Notice, host: &str) -> Message {
    let escaped = |text: &str| {
        let mut escaped = String::new();
        for c in text.chars() {
            if r"\*_~`|<>#[]()-:@".contains(c) {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        escaped
    };
    let title = escaped(&cut(&title(notice, host), 200));
    let mut content = format!("{} **{title}**\n", sign(notice.weight));
    let mut left = DISCORD_UNITS.saturating_sub(content.encode_utf16().count());
    for c in notice.message().chars() {
        let part = match c {
            '\n' => "\n".to_owned(),
            c => escaped(c.encode_utf8(&mut [0; 4])),
        };
        let length = part.encode_utf16().count();
        if length > left {
            content.push('…');
            break;
        }
        left -= length;
        content.push_str(&part);
    }
    json_message(&json!({
        "content": content,
        "allowed_mentions": {"parse": []},
        "flags": 4,
    }))
}

/// ntfy: a body of more than 4096 bytes would become an attachment; headers that are not ASCII are
/// encoded as RFC 2047 says (<https://docs.ntfy.sh/publish/>).
fn ntfy(notice: &Notice, host: &str) -> Message {
    let (priority, tag) = match notice.weight {
        Weight::Failure => ("4", "rotating_light"),
        Weight::Info => ("3", "information_source"),
        Weight::Success => ("3", "white_check_mark"),
        Weight::Warning => ("3", "warning"),
    };
    Message {
        content_type: "text/plain; charset=utf-8",
        headers: vec![
            ("title", header(&cut(&title(notice, host), 200))),
            ("priority", priority.to_owned()),
            ("tags", tag.to_owned()),
        ],
        body: cut_bytes(&notice.message(), NTFY_BYTES).into_bytes(),
    }
}

fn header(text: &str) -> String {
    let plain = |c: char| c == ' ' || c.is_ascii_graphic();
    match text.chars().all(plain) && !text.contains("=?") {
        true => text.to_owned(),
        false => format!("=?UTF-8?B?{}?=", STANDARD.encode(text)),
    }
}

fn json_message(value: &serde_json::Value) -> Message {
    Message {
        content_type: JSON,
        headers: Vec::new(),
        body: value.to_string().into_bytes(),
    }
}

fn title(notice: &Notice, host: &str) -> String {
    format!("{host}: {}", notice.title)
}

fn sign(weight: Weight) -> &'static str {
    match weight {
        Weight::Failure => "\u{1f534}",
        Weight::Info => "\u{2139}\u{fe0f}",
        Weight::Success => "\u{2705}",
        Weight::Warning => "\u{26a0}\u{fe0f}",
    }
}

/// At most so many characters.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn cut_bytes(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

const JSON: &str = "application/json";
/// Notices of one event that are messages of their own.
const SEPARATE: usize = 3;
const SHOWN: usize = 8;
/// Slack advises 4000, escapes not counted.
const SLACK_CHARACTERS: usize = 3000;
const DISCORD_UNITS: usize = 1950;
const NTFY_BYTES: usize = 4000;

#[cfg(test)]
mod tests;

//! P: questions and replies, as bytes and as what they mean.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};

use super::{Caa, Lookup, NoAnswer};
use crate::certificate::words::one_line;

/// One question, and how its reply is known.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: RecordType,
    id: u16,
    pub(super) bytes: Vec<u8>,
}

impl Question {
    /// `recursive`: to a resolver; to an authoritative server it is not.
    pub(super) fn new(name: &Name, kind: RecordType, recursive: bool) -> Lookup<Self> {
        let mut message = Message::query();
        message.metadata.recursion_desired = recursive;
        message.add_query(Query::query(name.clone(), kind));
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        message.set_edns(edns);
        let bytes = message
            .to_vec()
            .map_err(|_| NoAnswer::BadName(name.to_ascii()))?;
        Ok(Self {
            name: name.clone(),
            kind,
            id: message.metadata.id,
            bytes,
        })
    }

    /// `None`: not the reply to this question, so perhaps somebody else's idea of one (RFC 5452
    /// §9.1).
    pub(super) fn reply(&self, bytes: &[u8]) -> Option<Message> {
        let message = Message::from_vec(bytes).ok()?;
        let ours = message.metadata.id == self.id
            && message.metadata.message_type == MessageType::Response
            && message.metadata.op_code == OpCode::Query;
        // a server that could not read the question need not repeat it
        let repeated = match message.queries.as_slice() {
            [] => message.metadata.response_code == ResponseCode::FormErr,
            [query] => query.name() == &self.name && query.query_type() == self.kind,
            _ => false,
        };
        (ours && repeated).then_some(message)
    }
}

/// What a reply says of a question.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Said<T> {
    Answer(Vec<T>),
    /// The name is another one, of which the reply tells nothing more.
    Elsewhere(Name),
}

/// The records of the question's type that `pick` takes, at the name where its CNAMEs lead.
pub(super) fn read<T>(
    question: &Question,
    reply: &Message,
    server: SocketAddr,
    pick: impl Fn(&RData) -> Option<T>,
) -> Lookup<Said<T>> {
    let (owner, led) = follow(question, reply);
    match reply.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Err(NoAnswer::NoSuchName),
        code => {
            return Err(NoAnswer::ServerFailure {
                code: code.to_string(),
                server,
                why: extended_error(reply),
            });
        }
    }
    let here = reply.answers.iter().filter(|record| record.name == owner);
    let picked: Vec<T> = here.filter_map(|record| pick(&record.data)).collect();
    let settled = reply
        .authorities
        .iter()
        .any(|record| record.record_type() == RecordType::SOA);
    match picked.is_empty() {
        false => Ok(Said::Answer(picked)),
        true if led && !settled => Ok(Said::Elsewhere(owner)),
        true => Err(NoAnswer::NoData),
    }
}

/// Where the reply's own CNAMEs lead from the name that was asked for.
fn follow(question: &Question, reply: &Message) -> (Name, bool) {
    let mut owner = question.name.clone();
    let mut led = false;
    if question.kind == RecordType::CNAME {
        return (owner, led);
    }
    for _ in 0..MAXIMUM_ALIASES {
        let next = reply.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == owner => Some(target.0.clone()),
            _ => None,
        });
        match next {
            Some(next) => (owner, led) = (next, true),
            None => break,
        }
    }
    (owner, led)
}

/// Of the zone that a name is in, as a reply about it names it (RFC 2308 §2).
pub(super) fn zone(name: &Name, reply: &Message) -> Option<Name> {
    reply
        .answers
        .iter()
        .chain(&reply.authorities)
        .filter(|record| record.record_type() == RecordType::SOA)
        .map(|record| &record.name)
        .find(|zone| zone.zone_of(name))
        .cloned()
}

pub(super) fn ipv4(data: &RData) -> Option<Ipv4Addr> {
    match data {
        RData::A(address) => Some(address.0),
        _ => None,
    }
}

pub(super) fn ipv6(data: &RData) -> Option<Ipv6Addr> {
    match data {
        RData::AAAA(address) => Some(address.0),
        _ => None,
    }
}

pub(super) fn alias(data: &RData) -> Option<Name> {
    match data {
        RData::CNAME(target) => Some(target.0.clone()),
        _ => None,
    }
}

pub(super) fn name_server(data: &RData) -> Option<Name> {
    match data {
        RData::NS(server) => Some(server.0.clone()),
        _ => None,
    }
}

/// A record's strings are one value (RFC 8555 §8.4 has it in one).
pub(super) fn text(data: &RData) -> Option<String> {
    match data {
        RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
        _ => None,
    }
}

pub(super) fn caa(data: &RData) -> Option<Caa> {
    match data {
        RData::CAA(caa) => Some(Caa {
            critical: caa.issuer_critical,
            tag: caa.tag.to_ascii_lowercase(),
            value: String::from_utf8_lossy(&caa.value).into_owned(),
        }),
        _ => None,
    }
}

/// An absolute name of ASCII labels; `*` and `_acme-challenge` are labels, too.
pub(super) fn absolute(name: &str) -> Lookup<Name> {
    let mut parsed = Name::from_ascii(name).map_err(|_| NoAnswer::BadName(name.to_owned()))?;
    parsed.set_fqdn(true);
    Ok(parsed)
}

/// As it is written everywhere else: lower case, without the last dot.
pub(super) fn written(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    match text.strip_suffix('.') {
        Some("") | None => text,
        Some(text) => text.to_owned(),
    }
}

/// RFC 8914: why a resolver failed.
fn extended_error(reply: &Message) -> Option<String> {
    let option = reply.edns.as_ref()?.option(EdnsCode::Unknown(15))?;
    let EdnsOption::Unknown(_, bytes) = option else {
        return None;
    };
    let (code, text) = bytes.split_first_chunk::<2>()?;
    let known = match u16::from_be_bytes(*code) {
        1 | 2 | 5..=12 => "DNSSEC validation failed",
        3 | 19 => "a stale answer",
        15..=18 => "blocked or filtered",
        20 => "not authoritative",
        22 => "no authoritative server is reachable",
        23 => "network error",
        _ => "",
    };
    let text = one_line(text);
    match (known, text.as_str()) {
        ("", "") => None,
        ("", text) => Some(text.to_owned()),
        (known, "") => Some(known.to_owned()),
        (known, text) => Some(format!("{known}: {text}")),
    }
}

/// Fits every path without fragments (the DNS flag day of 2020).
const PAYLOAD: u16 = 1232;
/// Of one chain: resolvers follow some ten.
pub(super) const MAXIMUM_ALIASES: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

    fn name(text: &str) -> Name {
        absolute(text).unwrap()
    }

    fn asked() -> (Question, Message) {
        let question = Question::new(&name("www.example"), RecordType::A, true).unwrap();
        let mut reply = Message::response(question.id, OpCode::Query);
        reply.add_query(Query::query(question.name.clone(), question.kind));
        (question, reply)
    }

    fn alias_of(from: &str, to: &str) -> Record {
        Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to))))
    }

    fn address_of(of: &str, last: u8) -> Record {
        let address = Ipv4Addr::new(192, 0, 2, last);
        Record::from_rdata(name(of), 60, RData::A(A(address)))
    }

    fn said(question: &Question, reply: &Message) -> Lookup<Said<Ipv4Addr>> {
        read(question, reply, SERVER, ipv4)
    }

    #[test]
    fn only_records_at_the_end_of_the_aliases_are_an_answer() {
        let (question, mut reply) = asked();
        reply.add_answer(alias_of("www.example", "a.cdn.example"));
        reply.add_answer(address_of("evil.example", 66));
        reply.add_answer(address_of("a.cdn.example", 1));
        let expected = Said::Answer(vec![Ipv4Addr::new(192, 0, 2, 1)]);
        assert_eq!(said(&question, &reply), Ok(expected));
    }

    #[test]
    fn aliases_that_go_in_circles_are_followed_to_an_end() {
        let (question, mut reply) = asked();
        reply.add_answer(alias_of("www.example", "b.example"));
        reply.add_answer(alias_of("b.example", "www.example"));
        assert!(matches!(said(&question, &reply), Ok(Said::Elsewhere(_))));
    }

    #[test]
    fn no_name_no_data_and_a_failure_are_three_things() {
        let (question, mut reply) = asked();
        assert_eq!(said(&question, &reply), Err(NoAnswer::NoData));
        reply.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(said(&question, &reply), Err(NoAnswer::NoSuchName));
        reply.metadata.response_code = ResponseCode::ServFail;
        let mut edns = Edns::new();
        let option = EdnsOption::Unknown(15, b"\x00\x07expired\x1b[31m".to_vec());
        edns.options_mut().insert(option);
        reply.set_edns(edns);
        let told = said(&question, &reply).unwrap_err().to_string();
        assert_eq!(
            told,
            "127.0.0.1:53 answers Server Failure (DNSSEC validation failed: expired [31m)"
        );
    }

    #[test]
    fn a_reply_to_another_question_is_none() {
        let (question, reply) = asked();
        assert!(question.reply(&reply.to_vec().unwrap()).is_some());
        let other = Question::new(&name("www.example"), RecordType::AAAA, true).unwrap();
        assert!(other.reply(&reply.to_vec().unwrap()).is_none());
        let mut foreign = reply.clone();
        foreign.metadata.id = question.id.wrapping_add(1);
        assert!(question.reply(&foreign.to_vec().unwrap()).is_none());
        assert!(question.reply(&question.bytes).is_none());
        assert!(question.reply(b"\x00").is_none());
    }

    #[test]
    fn names_are_written_without_the_last_dot() {
        assert_eq!(
            written(&name("_Acme-challenge.Example.com")),
            "_acme-challenge.example.com"
        );
        assert_eq!(written(&name("*.example.com")), "*.example.com");
        assert_eq!(written(&Name::root()), ".");
        assert!(absolute(&"a".repeat(64)).is_err());
    }
}

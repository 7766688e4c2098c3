//! What Pebble asks: it follows CNAMEs from one zone to another, as every resolver does and a name
//! server does not.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Asks `authority` about everything. It ends with the tests' process.
pub fn start(authority: SocketAddr) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Ok(question) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            let reply = answer(authority, &question);
            let _ = socket.send_to(&reply.to_vec().unwrap(), from);
        }
    });
    address
}

fn answer(authority: SocketAddr, question: &Message) -> Message {
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    let query = &question.queries[0];
    reply.add_query(query.clone());
    let mut name = query.name().clone();
    for _ in 0..8 {
        let Some(said) = ask(authority, &name, query.query_type()) else {
            break;
        };
        reply.metadata.response_code = said.metadata.response_code;
        let records: Vec<Record> = said.answers.clone();
        let end = records.iter().rev().find_map(|record| match &record.data {
            RData::CNAME(target) => Some(target.0.clone()),
            _ => None,
        });
        let settled = records
            .iter()
            .any(|record| record.record_type() == query.query_type());
        reply.add_answers(records);
        match end {
            Some(end) if !settled => name = end,
            _ => break,
        }
    }
    reply
}

fn ask(authority: SocketAddr, name: &Name, kind: RecordType) -> Option<Message> {
    let mut question = Message::query();
    question.add_query(Query::query(name.clone(), kind));
    let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    socket.connect(authority).ok()?;
    socket.send(&question.to_vec().ok()?).ok()?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    Message::from_vec(&buffer[..length]).ok()
}

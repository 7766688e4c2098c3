//! N: one message to one name server, and the reply: UDP first, TCP where that is cut off.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::Question;
use super::{Lookup, NoAnswer};

/// The reply of `server` within `limit`.
pub(super) async fn ask(
    server: SocketAddr,
    question: &Question,
    limit: Duration,
) -> Lookup<Message> {
    let whole = async {
        let reply = over_udp(server, question).await?;
        match reply.metadata.truncation {
            true => over_tcp(server, question).await,
            false => Ok(reply),
        }
    };
    match timeout(limit, whole).await {
        Ok(reply) => reply.map_err(|source| NoAnswer::Unreachable {
            server,
            reason: source.to_string(),
        }),
        Err(_) => Err(NoAnswer::TimedOut { server }),
    }
}

/// From a port that the system draws, to a socket that hears nobody else (RFC 5452 §9.2).
async fn over_udp(server: SocketAddr, question: &Question) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&question.bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = buffer.get(..length).and_then(|bytes| question.reply(bytes)) {
            return Ok(reply);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Question) -> io::Result<Message> {
    let bytes = send_tcp(server, &question.bytes).await?;
    question
        .reply(&bytes)
        .ok_or_else(|| io::Error::other("the reply is to another question"))
}

/// Any message, as bytes (RFC 1035 §4.2.2): its signature is over them. The caller limits the time.
pub(crate) async fn send_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    // one segment: some servers read the length and the message in one go
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

//! N: asks as a browser would: by name, over TLS that must verify against the given root.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Trusts one root, and nobody else.
#[derive(Clone, Debug)]
pub struct Browser {
    tls: Arc<ClientConfig>,
}

/// One answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Browser {
    /// `root` is a PEM file.
    pub fn trusting(root: &Path) -> io::Result<Self> {
        let root = CertificateDer::from_pem_file(root).map_err(io::Error::other)?;
        let mut roots = RootCertStore::empty();
        roots.add(root).map_err(io::Error::other)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    /// GET over TLS; `name` is the SNI, and what the certificate must be for. `headers` are whole
    /// lines.
    pub fn get(
        &self,
        address: SocketAddr,
        name: &str,
        path: &str,
        headers: &[&str],
    ) -> io::Result<Answer> {
        let server = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connection =
            ClientConnection::new(self.tls.clone(), server).map_err(io::Error::other)?;
        let stream = StreamOwned::new(connection, connect(address)?);
        exchange(stream, &authority(name, address), path, headers)
    }
}

/// GET over plain HTTP.
pub fn get_plain(address: SocketAddr, name: &str, path: &str) -> io::Result<Answer> {
    exchange(connect(address)?, &authority(name, address), path, &[])
}

impl Answer {
    /// `name` in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn authority(name: &str, address: SocketAddr) -> String {
    format!("{name}:{}", address.port())
}

fn exchange(
    mut stream: impl Read + Write,
    host: &str,
    path: &str,
    headers: &[&str],
) -> io::Result<Answer> {
    let further: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: vhostd-demo\r\n{further}\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut bytes = Vec::new();
    match stream.take(SIZE_LIMIT).read_to_end(&mut bytes) {
        // a server may close without TLS's close_notify; what was read still counts
        Err(error) if bytes.is_empty() => return Err(error),
        _ => {}
    }
    parse(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

/// The body is what follows the head: with `Connection: close`, and from servers that know its
/// length, there are no chunks.
fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    Some(Answer {
        status: status.parse().ok()?,
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        body: body.to_owned(),
    })
}

const LIMIT: Duration = Duration::from_secs(5);
const SIZE_LIMIT: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_half_a_one_is_not() {
        let text = "HTTP/1.1 301 Moved\r\nLocation: https://a/\r\n\r\nbody";
        let answer = parse(text).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (301, "body"));
        assert_eq!(answer.header("location"), Some("https://a/"));
        assert_eq!(parse("HTTP/1.1 200 OK\r\nServer: x\r\n"), None);
        assert_eq!(parse("SSH-2.0\r\n\r\n"), None);
    }
}

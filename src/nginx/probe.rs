//! N: which generation answers, asked on nginx's ordinary listeners like any client would.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// One question: who answers this name here?
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    pub address: SocketAddr,
    /// The Host header and, with TLS, the SNI, unless it is an address.
    pub host: String,
    pub tls: bool,
}

/// What our location answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    pub generation: u64,
    /// The vhost whose block answered; the reserved block calls itself [`RESERVED_NAME`].
    ///
    /// [`RESERVED_NAME`]: crate::desired::RESERVED_NAME
    pub vhost: String,
    /// DER of the leaf that was served; `None` without TLS.
    pub leaf: Option<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    /// Somebody else's server block, or an older generation without this vhost.
    #[error("another server block answers ({0})")]
    Foreign(String),
    #[error("{0}")]
    Talk(#[source] io::Error),
}

/// Asks with a fixed time limit; holds the secret and the TLS client.
#[derive(Clone, Debug)]
pub struct Prober {
    path: String,
    tls: Arc<ClientConfig>,
    ecdsa: Arc<ClientConfig>,
    rsa: Arc<ClientConfig>,
}

/// What a client can verify: by that a server with two types of key chooses (RFC 8446 §4.2.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Knows {
    All,
    EcdsaAlone,
    RsaAlone,
}

impl Knows {
    fn takes(self, scheme: SignatureScheme) -> bool {
        use SignatureScheme as Of;
        let ecdsa = matches!(
            scheme,
            Of::ECDSA_NISTP256_SHA256 | Of::ECDSA_NISTP384_SHA384 | Of::ECDSA_NISTP521_SHA512
        );
        let rsa = matches!(
            scheme,
            Of::RSA_PKCS1_SHA256
                | Of::RSA_PKCS1_SHA384
                | Of::RSA_PKCS1_SHA512
                | Of::RSA_PSS_SHA256
                | Of::RSA_PSS_SHA384
                | Of::RSA_PSS_SHA512
        );
        match self {
            Self::All => true,
            Self::EcdsaAlone => ecdsa,
            Self::RsaAlone => rsa,
        }
    }
}

/// On loopback a listener answers in under a millisecond or is not there.
const LIMIT: Duration = Duration::from_secs(2);

impl Prober {
    pub fn new(secret: &str) -> Result<Self, rustls::Error> {
        let client = |knows| accepting_any_certificate(knows).map(Arc::new);
        Ok(Self {
            path: format!("/.well-known/vhostd/{secret}"),
            tls: client(Knows::All)?,
            ecdsa: client(Knows::EcdsaAlone)?,
            rsa: client(Knows::RsaAlone)?,
        })
    }

    pub fn ask(&self, question: &Question) -> Result<Answer, ProbeError> {
        let stream = connect(question.address)?;
        if !question.tls {
            let reply = self
                .exchange(stream, &question.host)
                .map_err(ProbeError::Talk)?;
            return answer(&reply, None);
        }
        let mut stream = StreamOwned::new(self.tls_to(&question.host, Knows::All)?, stream);
        let reply = self
            .exchange(&mut stream, &question.host)
            .map_err(ProbeError::Talk)?;
        let leaf = stream
            .conn
            .peer_certificates()
            .and_then(|chain| chain.first());
        answer(&reply, leaf.map(|leaf| leaf.as_ref().to_vec()))
    }

    /// The certificate that a visitor of `host` is shown, DER, by a handshake and no request.
    /// [`ProbeError::Foreign`]: a TLS server that shows none for this name.
    pub fn show(
        &self,
        address: SocketAddr,
        host: &str,
        knows: Knows,
    ) -> Result<Vec<u8>, ProbeError> {
        let mut stream = connect(address)?;
        let mut connection = self.tls_to(host, knows)?;
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut stream) {
                return Err(refused(error));
            }
        }
        let leaf = connection
            .peer_certificates()
            .and_then(|chain| chain.first());
        let leaf = leaf.map(|leaf| leaf.as_ref().to_vec());
        connection.send_close_notify();
        let _ = connection.complete_io(&mut stream);
        leaf.ok_or_else(|| ProbeError::Foreign("an empty chain".to_owned()))
    }

    /// For an address no name is sent (RFC 6066 §3).
    fn tls_to(&self, host: &str, knows: Knows) -> Result<ClientConnection, ProbeError> {
        let other = |error: Box<dyn std::error::Error + Send + Sync>| {
            ProbeError::Talk(io::Error::other(error))
        };
        let name = ServerName::try_from(unbracketed(host).to_owned())
            .map_err(|error| other(error.into()))?;
        let tls = match knows {
            Knows::All => &self.tls,
            Knows::EcdsaAlone => &self.ecdsa,
            Knows::RsaAlone => &self.rsa,
        };
        ClientConnection::new(tls.clone(), name).map_err(|error| other(error.into()))
    }

    fn exchange(&self, mut stream: impl Read + Write, host: &str) -> io::Result<String> {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
            self.path
        );
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        let mut reply = Vec::new();
        match stream.take(4096).read_to_end(&mut reply) {
            // nginx may close without TLS's close_notify; what was read still counts
            Err(error) if reply.is_empty() => return Err(error),
            _ => {}
        }
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }
}

/// A TLS client that accepts every certificate whose key the server holds. For the few questions
/// that trust nothing they are answered.
pub(crate) fn accepting_any_certificate(knows: Knows) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Whatever(provider.clone(), knows);
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // each question must reach the worker afresh: a resumed session shows no certificate
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(tls)
}

fn connect(address: SocketAddr) -> Result<TcpStream, ProbeError> {
    let stream = TcpStream::connect_timeout(&address, LIMIT).map_err(ProbeError::Connect)?;
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(LIMIT)))
        .and_then(|()| stream.set_write_timeout(Some(LIMIT)))
        .map_err(ProbeError::Connect)?;
    Ok(stream)
}

/// An alert or nonsense is an answer; silence and a broken connection are none.
fn refused(error: io::Error) -> ProbeError {
    let tls = error.get_ref().and_then(|it| it.downcast_ref());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => {
            ProbeError::Foreign(format!("TLS alert {alert:?}"))
        }
        Some(tls) => ProbeError::Foreign(tls.to_string()),
        None => ProbeError::Talk(error),
    }
}

/// `[::1]`, as a Host header has it (RFC 3986 §3.2.2) → `::1`.
fn unbracketed(host: &str) -> &str {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host)
}

/// The address at which a listener of ours is asked: loopback for the wildcards.
pub fn reachable(listener: SocketAddr) -> SocketAddr {
    let address = match listener.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, listener.port())
}

fn answer(reply: &str, leaf: Option<Vec<u8>>) -> Result<Answer, ProbeError> {
    let status = reply
        .lines()
        .next()
        .unwrap_or("no answer")
        .trim()
        .to_owned();
    let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let ours = body.trim().split_once(' ').and_then(|(number, vhost)| {
        Some(Answer {
            generation: number.parse().ok()?,
            vhost: vhost.to_owned(),
            leaf: leaf.clone(),
        })
    });
    match ours {
        Some(answer) if status.starts_with("HTTP/1.1 200") => Ok(answer),
        _ => Err(ProbeError::Foreign(status)),
    }
}

/// We compare the served leaf with the stored one byte for byte, which is stricter than a chain
/// check and works for placeholders too. The handshake's signature is still verified: the server
/// must hold the key.
#[derive(Debug)]
struct Whatever(Arc<CryptoProvider>, Knows);

impl ServerCertVerifier for Whatever {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            leaf,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            leaf,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.0.signature_verification_algorithms.supported_schemes();
        schemes.retain(|scheme| self.1.takes(*scheme));
        schemes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_location_counts_as_an_answer() {
        let ours = "HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n12 hello#2";
        let got = answer(ours, None).unwrap();
        assert_eq!((got.generation, got.vhost.as_str()), (12, "hello#2"));
        for foreign in [
            "HTTP/1.1 404 Not Found\r\n\r\n12 hello",
            "HTTP/1.1 200 OK\r\n\r\n<html>welcome</html>",
            "",
        ] {
            assert!(
                matches!(answer(foreign, None), Err(ProbeError::Foreign(_))),
                "{foreign:?}"
            );
        }
    }

    #[test]
    fn wildcard_listeners_are_asked_on_loopback() {
        let ask = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(ask("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(ask("[::]:443"), "[::1]:443");
        assert_eq!(ask("192.0.2.1:80"), "192.0.2.1:80");
    }
}

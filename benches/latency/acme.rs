//! The fewest requests that a certificate costs (RFC 8555): an account that is known, a nonce that
//! is kept, a connection that is open, no storage, no checks, no retries. A floor, not a client.

use std::fs;
use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::support::client::{self, Response, TlsStream, Trust};

pub struct Minimal {
    stream: BufReader<TlsStream>,
    authority: String,
    trust: Trust,
    pkcs8: Vec<u8>,
    key: EcdsaKeyPair,
    nonce: String,
    directory: Value,
    /// Empty until registered.
    account: String,
}

impl Minimal {
    pub fn register(directory: &str, ca_file: &Path) -> Self {
        let authority = directory.split('/').nth(2).unwrap().to_owned();
        let address: SocketAddr = authority.parse().unwrap();
        let trust = Trust::pem(&fs::read_to_string(ca_file).unwrap());
        let stream = client::connect_tls(address, "127.0.0.1", &trust, &[]).unwrap();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .unwrap();
        let mut me = Self {
            stream: BufReader::new(stream),
            authority,
            trust,
            pkcs8: pkcs8.as_ref().to_vec(),
            key: pair(pkcs8.as_ref()),
            nonce: String::new(),
            directory: Value::Null,
            account: String::new(),
        };
        me.directory = serde_json::from_slice(&me.get(directory).body).unwrap();
        let new_nonce = me.url("newNonce");
        me.get(&new_nonce);
        let new_account = me.url("newAccount");
        let account = me.post(
            &new_account,
            &json!({"termsOfServiceAgreed": true}).to_string(),
        );
        me.account = account.header("Location").unwrap().to_owned();
        me
    }

    /// The same account by a connection of its own.
    pub fn twin(&self) -> Self {
        let address: SocketAddr = self.authority.parse().unwrap();
        let stream = client::connect_tls(address, "127.0.0.1", &self.trust, &[]).unwrap();
        let mut twin = Self {
            stream: BufReader::new(stream),
            authority: self.authority.clone(),
            trust: self.trust.clone(),
            pkcs8: self.pkcs8.clone(),
            key: pair(&self.pkcs8),
            nonce: String::new(),
            directory: self.directory.clone(),
            account: self.account.clone(),
        };
        let new_nonce = twin.url("newNonce");
        twin.get(&new_nonce);
        twin
    }

    /// RFC 7638.
    pub fn thumbprint(&self) -> String {
        let jwk = self.jwk();
        let canonical = format!(
            "{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":{},\"y\":{}}}",
            jwk["x"], jwk["y"]
        );
        encode(Sha256::digest(canonical))
    }

    /// Chain and key, PEM.
    pub fn order(&mut self, name: &str) -> (String, String) {
        let new_order = self.url("newOrder");
        let wish = json!({"identifiers": [{"type": "dns", "value": name}]});
        let answer = self.post(&new_order, &wish.to_string());
        let order_url = answer.header("Location").unwrap().to_owned();
        let order: Value = serde_json::from_slice(&answer.body).unwrap();
        let authorization = self.post(order["authorizations"][0].as_str().unwrap(), "");
        let authorization: Value = serde_json::from_slice(&authorization.body).unwrap();
        let challenges = authorization["challenges"].as_array().unwrap();
        let challenge = challenges
            .iter()
            .find(|challenge| challenge["type"] == "http-01")
            .unwrap();
        self.post(challenge["url"].as_str().unwrap(), "{}");
        // while the CA looks: the key and the request
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let request = parameters.serialize_request(&key).unwrap();
        self.poll(&order_url, "ready");
        let finalize = json!({"csr": encode(request.der())});
        self.post(order["finalize"].as_str().unwrap(), &finalize.to_string());
        let valid = self.poll(&order_url, "valid");
        let chain = self.post(valid["certificate"].as_str().unwrap(), "");
        (chain.text().to_owned(), key.serialize_pem())
    }

    fn poll(&mut self, order: &str, status: &str) -> Value {
        loop {
            let answer: Value = serde_json::from_slice(&self.post(order, "").body).unwrap();
            assert_ne!(answer["status"], "invalid", "{answer}");
            if answer["status"] == status {
                return answer;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn url(&self, resource: &str) -> String {
        self.directory[resource].as_str().unwrap().to_owned()
    }

    fn jwk(&self) -> Value {
        let point = self.key.public_key().as_ref();
        json!({"crv": "P-256", "kty": "EC", "x": encode(&point[1..33]), "y": encode(&point[33..])})
    }

    /// A signed request (RFC 8555 §6.2); a refused nonce is the one thing that is tried again.
    fn post(&mut self, url: &str, payload: &str) -> Response {
        loop {
            let mut header = json!({"alg": "ES256", "nonce": self.nonce, "url": url});
            match self.account.is_empty() {
                true => header["jwk"] = self.jwk(),
                false => header["kid"] = self.account.clone().into(),
            }
            let (protected, payload) = (encode(header.to_string()), encode(payload));
            let signature = self
                .key
                .sign(
                    &SystemRandom::new(),
                    format!("{protected}.{payload}").as_bytes(),
                )
                .unwrap();
            let body =
                json!({"protected": protected, "payload": payload, "signature": encode(signature)})
                    .to_string();
            let answer = self.exchange("POST", url, &body);
            if answer.status < 400 {
                return answer;
            }
            assert!(
                answer.text().contains("badNonce"),
                "{url}: {}",
                answer.text()
            );
        }
    }

    fn get(&mut self, url: &str) -> Response {
        self.exchange("GET", url, "")
    }

    fn exchange(&mut self, method: &str, url: &str, body: &str) -> Response {
        let path = url.split_once(&self.authority).unwrap().1;
        let message = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: floor\r\nContent-Type: application/jose+json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.authority,
            body.len()
        );
        self.stream.get_mut().write_all(message.as_bytes()).unwrap();
        self.stream.get_mut().flush().unwrap();
        let answer = client::response(&mut self.stream, method).unwrap();
        if let Some(nonce) = answer.header("Replay-Nonce") {
            self.nonce = nonce.to_owned();
        }
        answer
    }
}

fn pair(pkcs8: &[u8]) -> EcdsaKeyPair {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).unwrap()
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

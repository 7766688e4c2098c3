//! The resources of RFC 8555 §7.1, properly.

use std::collections::BTreeSet;

use rcgen::{CertificateParams, CertificateSigningRequestParams, SerialNumber};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::jws::{Key, Signed, decode};
use super::wire::{Reply, Request};
use super::{Asked, Shared};
use crate::support::client;

/// RFC 8555 §7.1.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Resource {
    Directory,
    NewNonce,
    NewAccount,
    Account,
    NewOrder,
    Order,
    Authorization,
    Challenge,
    Finalize,
    Certificate,
    Nothing,
}

#[derive(Default)]
pub struct Orders {
    nonces: BTreeSet<String>,
    given: u64,
    accounts: Vec<Key>,
    orders: Vec<Order>,
}

#[derive(Clone, Default)]
struct Order {
    names: Vec<String>,
    /// By identifier.
    validated: Vec<Option<Result<(), String>>>,
    certificate: Option<String>,
}

/// A problem document's status, kind and detail.
type Refusal = (u16, &'static str, String);

impl Shared {
    /// What a proper CA answers, and about what.
    pub fn proper(&self, request: &Request) -> (Asked, Reply) {
        let mut segments = request.path.trim_start_matches('/').split('/');
        let kind = segments.next().unwrap_or_default();
        let numbers: Vec<usize> = segments.filter_map(|text| text.parse().ok()).collect();
        let resource = resource(kind, numbers.len());
        let mut orders = self.orders.lock().unwrap();
        let names = |orders: &Orders| {
            let order = numbers
                .first()
                .and_then(|number| orders.orders.get(*number));
            order.map_or_else(Vec::new, |order| order.names.clone())
        };
        let reply = match resource {
            Resource::Directory => Ok(self.directory()),
            Resource::NewNonce => Ok(Reply::new(200, "")),
            Resource::Nothing => Err((404, "malformed", "no such resource".to_owned())),
            _ => self.signed(resource, &numbers, request, &mut orders),
        };
        let mut reply = reply.unwrap_or_else(|(status, kind, detail)| {
            let kind = format!("urn:ietf:params:acme:error:{kind}");
            let problem = json!({"type": kind, "detail": detail, "status": status});
            Reply::new(status, problem.to_string()).with("Content-Type", "application/problem+json")
        });
        reply.set("Replay-Nonce", orders.nonce());
        let names = match resource {
            Resource::NewOrder => orders
                .orders
                .last()
                .map_or(Vec::new(), |it| it.names.clone()),
            _ => names(&orders),
        };
        (Asked { resource, names }, reply)
    }

    fn directory(&self) -> Reply {
        let at = |path: &str| format!("{}/{path}", self.origin);
        json_reply(
            200,
            &json!({"newNonce": at("nonce"), "newAccount": at("account"), "newOrder": at("order"),
                    "meta": {"termsOfService": at("terms")}}),
        )
    }

    fn signed(
        &self,
        resource: Resource,
        numbers: &[usize],
        request: &Request,
        orders: &mut Orders,
    ) -> Result<Reply, Refusal> {
        let malformed = |why: &str| (400, "malformed", why.to_owned());
        let signed = Signed::parse(&request.body).ok_or(malformed("no JWS"))?;
        if signed.url != format!("{}{}", self.origin, request.path) {
            return Err((401, "unauthorized", "another URL was signed".into()));
        }
        if !orders.nonces.remove(&signed.nonce) {
            return Err((400, "badNonce", "used, or never given".into()));
        }
        let key = match resource {
            Resource::NewAccount => signed.jwk.clone().ok_or(malformed("no key"))?,
            _ => self.account(&signed, orders)?,
        };
        if !signed.is_signed_by(&key) {
            return Err(malformed("a bad signature"));
        }
        if resource == Resource::NewAccount {
            return Ok(self.new_account(key, orders));
        }
        if resource == Resource::Account {
            return Ok(json_reply(200, &json!({"status": "valid"})));
        }
        if resource == Resource::NewOrder {
            return self.new_order(&signed.payload, orders);
        }
        let number = *numbers.first().ok_or(malformed("no number"))?;
        let order = orders
            .orders
            .get_mut(number)
            .ok_or(malformed("no such order"))?;
        self.of_order(
            resource,
            number,
            numbers.get(1).copied(),
            &signed.payload,
            &key,
            order,
        )
    }

    fn account(&self, signed: &Signed, orders: &Orders) -> Result<Key, Refusal> {
        let prefix = format!("{}/account/", self.origin);
        let number = signed
            .kid
            .as_ref()
            .and_then(|kid| kid.strip_prefix(&prefix));
        let number: Option<usize> = number.and_then(|number| number.parse().ok());
        let key = number.and_then(|number| orders.accounts.get(number));
        key.cloned()
            .ok_or((400, "accountDoesNotExist", "who?".into()))
    }

    fn new_account(&self, key: Key, orders: &mut Orders) -> Reply {
        let known = orders.accounts.iter().position(|known| *known == key);
        let number = known.unwrap_or_else(|| {
            orders.accounts.push(key);
            orders.accounts.len() - 1
        });
        let status = if known.is_some() { 200 } else { 201 };
        json_reply(status, &json!({"status": "valid"}))
            .with("Location", format!("{}/account/{number}", self.origin))
    }

    fn new_order(&self, payload: &Value, orders: &mut Orders) -> Result<Reply, Refusal> {
        let identifiers = payload["identifiers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let names: Option<Vec<String>> = identifiers
            .iter()
            .map(|identifier| identifier["value"].as_str().map(str::to_owned))
            .collect();
        let names = names.filter(|names| !names.is_empty());
        let names = names.ok_or((400, "malformed", "no identifiers".to_owned()))?;
        let order = Order {
            validated: vec![None; names.len()],
            names,
            certificate: None,
        };
        let number = orders.orders.len();
        let reply = self.order_reply(201, number, &order);
        orders.orders.push(order);
        Ok(reply)
    }

    fn of_order(
        &self,
        resource: Resource,
        number: usize,
        part: Option<usize>,
        payload: &Value,
        key: &Key,
        order: &mut Order,
    ) -> Result<Reply, Refusal> {
        let part = part.filter(|part| *part < order.names.len());
        let nth = part.ok_or((404, "malformed", "no such authorization".to_owned()));
        match resource {
            Resource::Authorization => {
                Ok(json_reply(200, &self.authorization(number, nth?, order)))
            }
            Resource::Challenge => {
                let nth = nth?;
                if order.validated[nth].is_none() {
                    order.validated[nth] = Some(self.validate(number, nth, order, key));
                }
                Ok(json_reply(200, &self.challenge(number, nth, order)))
            }
            Resource::Finalize => {
                if order.status() != "ready" {
                    return Err((403, "orderNotReady", "prove control first".into()));
                }
                let csr = payload["csr"].as_str().and_then(decode);
                let csr = csr.ok_or((400, "badCSR", "no CSR".to_owned()))?;
                order.certificate = Some(self.sign(&csr, order)?);
                Ok(self.order_reply(200, number, order))
            }
            Resource::Certificate => {
                let chain = order.certificate.clone();
                let chain = chain.ok_or((404, "malformed", "not yet".to_owned()))?;
                Ok(
                    Reply::new(200, chain)
                        .with("Content-Type", "application/pem-certificate-chain"),
                )
            }
            _ => Ok(self.order_reply(200, number, order)),
        }
    }

    fn order_reply(&self, status: u16, number: usize, order: &Order) -> Reply {
        let at = |path: String| format!("{}/{path}", self.origin);
        let authorizations: Vec<_> = (0..order.names.len())
            .map(|nth| at(format!("authorization/{number}/{nth}")))
            .collect();
        let identifiers: Vec<_> = order.names.iter().map(|name| identifier(name)).collect();
        let mut value = json!({"status": order.status(), "identifiers": identifiers,
            "authorizations": authorizations, "finalize": at(format!("finalize/{number}"))});
        if order.certificate.is_some() {
            value["certificate"] = at(format!("certificate/{number}")).into();
        }
        json_reply(status, &value).with("Location", at(format!("order/{number}")))
    }

    fn authorization(&self, number: usize, nth: usize, order: &Order) -> Value {
        let status = match &order.validated[nth] {
            None => "pending",
            Some(Ok(())) => "valid",
            Some(Err(_)) => "invalid",
        };
        json!({"status": status, "identifier": identifier(&order.names[nth]),
               "challenges": [self.challenge(number, nth, order)]})
    }

    fn challenge(&self, number: usize, nth: usize, order: &Order) -> Value {
        let url = format!("{}/challenge/{number}/{nth}", self.origin);
        let mut value = json!({"type": "http-01", "url": url, "status": "pending", "token": token(number, nth)});
        match &order.validated[nth] {
            None => {}
            Some(Ok(())) => value["status"] = "valid".into(),
            Some(Err(why)) => {
                value["status"] = "invalid".into();
                value["error"] =
                    json!({"type": "urn:ietf:params:acme:error:unauthorized", "detail": why});
            }
        }
        value
    }

    /// RFC 8555 §8.3.
    fn validate(&self, number: usize, nth: usize, order: &Order, key: &Key) -> Result<(), String> {
        let token = token(number, nth);
        let address = ([127, 0, 0, 1], self.http01_port).into();
        let path = format!("/.well-known/acme-challenge/{token}");
        let answer = client::get(address, &order.names[nth], &path).map_err(|it| it.to_string())?;
        let wanted = format!("{token}.{}", key.thumbprint());
        match String::from_utf8_lossy(&answer.body).trim() == wanted {
            true => Ok(()),
            false => Err(format!("another answer ({})", answer.status)),
        }
    }

    fn sign(&self, csr: &[u8], order: &Order) -> Result<String, Refusal> {
        let bad = |why: String| (400, "badCSR", why);
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into())
            .map_err(|error| bad(error.to_string()))?;
        let mut parameters: CertificateParams = csr.params;
        let asked: BTreeSet<String> = parameters.subject_alt_names.iter().map(name_of).collect();
        if asked != order.names.iter().cloned().collect() {
            return Err(bad(format!("for {asked:?}")));
        }
        let now = OffsetDateTime::now_utc();
        parameters.not_before = now - time::Duration::HOUR;
        parameters.not_after = now + time::Duration::days(90);
        parameters.use_authority_key_identifier_extension = true;
        parameters.serial_number = Some(SerialNumber::from(rand_serial()));
        if let Some(change) = &*self.issuing.lock().unwrap() {
            change(&mut parameters);
        }
        let leaf = parameters.signed_by(&csr.public_key, &self.signer.issuer);
        let leaf = leaf.map_err(|error| bad(error.to_string()))?;
        Ok(format!("{}{}", leaf.pem(), self.signer.intermediate))
    }
}

impl Orders {
    pub fn forget_nonces(&mut self) {
        self.nonces.clear();
    }

    fn nonce(&mut self) -> String {
        self.given += 1;
        let nonce = format!("nonce-{}", self.given);
        self.nonces.insert(nonce.clone());
        nonce
    }
}

impl Order {
    fn status(&self) -> &'static str {
        let any_failed = self.validated.iter().any(|it| matches!(it, Some(Err(_))));
        match () {
            () if any_failed => "invalid",
            () if self.certificate.is_some() => "valid",
            () if self.validated.iter().all(Option::is_some) => "ready",
            () => "pending",
        }
    }
}

fn resource(kind: &str, numbers: usize) -> Resource {
    match (kind, numbers) {
        ("directory", _) => Resource::Directory,
        ("nonce", _) => Resource::NewNonce,
        ("account", 0) => Resource::NewAccount,
        ("account", _) => Resource::Account,
        ("order", 0) => Resource::NewOrder,
        ("order", _) => Resource::Order,
        ("authorization", _) => Resource::Authorization,
        ("challenge", _) => Resource::Challenge,
        ("finalize", _) => Resource::Finalize,
        ("certificate", _) => Resource::Certificate,
        _ => Resource::Nothing,
    }
}

fn identifier(name: &str) -> Value {
    let kind = match name.parse::<std::net::IpAddr>() {
        Ok(_) => "ip",
        Err(_) => "dns",
    };
    json!({"type": kind, "value": name})
}

fn name_of(name: &rcgen::SanType) -> String {
    match name {
        rcgen::SanType::DnsName(name) => name.as_str().to_owned(),
        rcgen::SanType::IpAddress(address) => address.to_string(),
        other => format!("{other:?}"),
    }
}

fn token(number: usize, nth: usize) -> String {
    format!("token-{number:020}-{nth}")
}

fn json_reply(status: u16, value: &Value) -> Reply {
    Reply::new(status, value.to_string()).with("Content-Type", "application/json")
}

fn rand_serial() -> Vec<u8> {
    let mut serial = vec![0; 16];
    aws_lc_rs::rand::fill(&mut serial).unwrap();
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

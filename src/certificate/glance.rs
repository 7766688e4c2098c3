//! P: a certificate of whoever, in words.

use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::words::{first_few, one_line};

/// Whose it is and until when: `a certificate for a.example, valid until 2027-02-21`. It may be
/// anything: nothing of it is trusted.
pub fn glance(der: &[u8], now: OffsetDateTime) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return "something that is no certificate".to_owned();
    };
    let end = certificate.validity().not_after.to_datetime();
    let ends = match end < now {
        true => "which ended on",
        false => "valid until",
    };
    let names = names(&certificate);
    let names = match names.is_empty() {
        true => "no name".to_owned(),
        false => one_line(first_few(&names, ", ").as_bytes()),
    };
    format!("a certificate for {names}, {ends} {}", end.date())
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|it| &it.value.general_names);
    let names: Vec<String> = names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 =
                    <[u8; 4]>::try_from(*bytes).map(|it| std::net::IpAddr::from(it).to_string());
                let v6 = <[u8; 16]>::try_from(*bytes);
                v4.or_else(|_| v6.map(|it| std::net::IpAddr::from(it).to_string()))
                    .ok()
            }
            _ => None,
        })
        .collect();
    let common = certificate.subject().iter_common_name();
    match names.is_empty() {
        true => common
            .filter_map(|name| name.as_str().ok().map(str::to_owned))
            .collect(),
        false => names,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn names_and_end_are_told_and_nonsense_is_none() {
        let key = KeyPair::generate().unwrap();
        let names = vec!["a.example".to_owned(), "127.0.0.1".to_owned()];
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.not_after = date_time_ymd(2027, 2, 21);
        let der = parameters.self_signed(&key).unwrap().der().to_vec();
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
        assert_eq!(
            glance(&der, now),
            "a certificate for a.example, 127.0.0.1, valid until 2027-02-21"
        );
        let mut parameters = CertificateParams::default();
        parameters
            .distinguished_name
            .push(DnType::CommonName, "only\nhere");
        parameters.not_after = date_time_ymd(2020, 1, 2);
        let der = parameters.self_signed(&key).unwrap().der().to_vec();
        assert!(
            glance(&der, now).ends_with("only here, which ended on 2020-01-02"),
            "{}",
            glance(&der, now)
        );
        assert_eq!(glance(b"x", now), "something that is no certificate");
    }
}

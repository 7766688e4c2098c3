use super::*;
use crate::settings::AcmeSettings;

#[test]
fn a_wildcard_is_refused_without_the_network() {
    let directory = tempfile::tempdir().unwrap();
    let settings = AcmeSettings {
        directory: "https://ca.invalid/directory".into(),
        ..AcmeSettings::default()
    };
    let client = AcmeClient::new(&settings, directory.path()).unwrap();
    let wanted = crate::certificate::WantedCertificate::new(
        vec![Identifier::Dns("*.a.example".into())],
        crate::certificate::Issuer::Acme,
    );
    let request = CertificateRequest::new(&wanted.unwrap(), None, None);
    let ledger = Ledger::new(directory.path());
    let lock = ledger.try_lock(&request.name).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let error = runtime
        .block_on(client.order(&request, &ledger, &lock))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "order *.a.example: a wildcard needs dns-01"
    );
}

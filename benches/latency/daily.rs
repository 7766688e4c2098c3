//! The daily look at very many certificates: what is due, whom to ask about, when to look again.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use time::OffsetDateTime;
use vhostd::certificate::internal::InternalCa;
use vhostd::certificate::ledger::Ledger;
use vhostd::certificate::renewal_info::{Inquiry, RenewalInfo, Reply, Window};
use vhostd::certificate::schedule::due;
use vhostd::certificate::store::CertificateStore;
use vhostd::certificate::{
    CertificateRequest, Identifier, IssuedCertificate, Issuer, Origin, Terms, WantedCertificate,
};
use vhostd::settings::AcmeSettings;

use super::median;

const LIMIT: Duration = Duration::from_millis(50);
const RUNS: usize = 15;

pub fn run(certificates: usize) {
    let mut directory = tempfile::tempdir().unwrap();
    directory.disable_cleanup(true);
    let terms = Terms::from(&AcmeSettings::default());
    let now = OffsetDateTime::now_utc();
    let wanted = fill(directory.path(), certificates, &terms, now);
    let look = |store: &CertificateStore, ledger: &Ledger| {
        let before = cpu();
        let (inventory, _) = store.inventory().unwrap();
        let schedule = due(
            &wanted,
            &inventory,
            &ledger.memories().unwrap(),
            &terms,
            now,
        );
        assert_eq!((schedule.due.len(), schedule.inquiries.len()), (0, 0));
        cpu() - before
    };
    let (store, ledger) = (
        CertificateStore::new(directory.path()),
        Ledger::new(directory.path()),
    );
    let first = look(&store, &ledger);
    let runs: Vec<_> = (0..RUNS).map(|_| look(&store, &ledger)).collect();
    let usual = median(&runs);
    let held = if usual <= LIMIT { "held" } else { "MISSED" };
    println!(
        "{:<52} {:>6.1} ms of CPU, {:.1} ms at a process's first; at most {} ms: {held}",
        format!("a look at {certificates} certificates"),
        usual.as_secs_f64() * 1000.0,
        first.as_secs_f64() * 1000.0,
        LIMIT.as_millis(),
    );
}

/// Certificates that are good, and about which a CA was asked.
fn fill(
    state_dir: &std::path::Path,
    certificates: usize,
    terms: &Terms,
    now: OffsetDateTime,
) -> Vec<WantedCertificate> {
    let (store, ledger) = (CertificateStore::new(state_dir), Ledger::new(state_dir));
    let internal = InternalCa::new(state_dir);
    let reply = Reply {
        window: Ok(Window {
            start: now + time::Duration::days(2),
            end: now + time::Duration::days(3),
            explanation_url: None,
        }),
        retry_after: None,
    };
    (0..certificates)
        .map(|number| {
            let name = Identifier::Dns(format!("n{number}.example.com"));
            let wanted = WantedCertificate::new(vec![name], Issuer::Acme).unwrap();
            let request = CertificateRequest::new(&wanted, None, None);
            let issued = IssuedCertificate {
                origin: Some(Origin {
                    directory: terms.directory.clone(),
                    profile: None,
                }),
                ..internal.issue(&request, now).unwrap()
            };
            let stored = store.store(&issued, &request, now).unwrap();
            let inquiry = Inquiry::about(&stored, &terms.directory).unwrap();
            let info = RenewalInfo::after(None, &inquiry, &reply, now, 0.5);
            ledger.record_renewal_info(&wanted.name, &info).unwrap();
            wanted
        })
        .collect()
}

/// Of this process, in user mode and in the kernel.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let spent = usage.user_time() + usage.system_time();
    Duration::from_micros(spent.num_microseconds().try_into().unwrap())
}

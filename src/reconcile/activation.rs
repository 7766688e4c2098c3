//! A tested generation → served and proven, or rolled back.

use std::time::{Duration, Instant};

use super::plan::{Serving, changes, names_to_prove};
use super::proof::{ProofError, answering, prove};
use super::report::{Outcome, Report, StepName};
use super::{Progress, ReconcileError, Request, base_report, neighbours};
use crate::generation::history::{HistoryEntry, Proof};
use crate::generation::manifest::Manifest;
use crate::generation::{Activation, LockedStore, TestedGeneration};
use crate::installation::Installation;
use crate::nginx::ReloadError;
use crate::nginx::process::NoMaster;

/// What `prove` may take beyond twice the time of the test: nginx retries a taken port for 2.5 s.
const PROOF_LIMIT: Duration = Duration::from_secs(5);

/// Who answers on the listeners of the active generation.
pub(crate) fn serving(installation: &Installation, active: &Manifest) -> Serving {
    // a worker may outlive its master and answer: it never reads anything again
    if installation.nginx_is_down(&active.survey) {
        return Serving::NginxDown;
    }
    match answering(installation.nginx(), active) {
        Some(number) => Serving::Generation(number),
        None => Serving::Unknown,
    }
}

/// `current` moves, nginx is told, the effect is seen; or all of it is taken back.
pub(crate) fn activate(
    installation: &Installation,
    locked: &LockedStore,
    tested: TestedGeneration,
    request: &Request,
    progress: &mut Progress<'_>,
) -> Result<Report, ReconcileError> {
    let test_ms = progress.spent(StepName::Test);
    let old = installation.generations.active()?.manifest;
    let activation = locked.activate(tested)?;
    let step = format!("{} → {}", old.number, activation.manifest().number);
    progress.finished(StepName::Activate, step);
    settle(
        installation,
        locked,
        activation,
        &old,
        request,
        test_ms,
        progress,
    )
}

/// `current` is right already, but who answers is not, or nobody ever looked.
pub(crate) fn prove_again(
    installation: &Installation,
    locked: &LockedStore,
    active: Manifest,
    request: &Request,
    progress: &mut Progress<'_>,
) -> Result<Report, ReconcileError> {
    let last = installation
        .generations
        .history()
        .last(active.number)
        .map(|e| e.result);
    let fallback = match last {
        // it served: an older generation would serve no better, and is not what was asked for
        Some(Proof::Proven) => active.number,
        _ => locked.newest_proven_before(active.number),
    };
    let old = installation.generations.manifest(fallback)?;
    let activation = locked.resume(installation.generations.active()?, fallback);
    settle(
        installation,
        locked,
        activation,
        &old,
        request,
        Duration::ZERO,
        progress,
    )
}

fn settle(
    installation: &Installation,
    locked: &LockedStore,
    activation: Activation,
    old: &Manifest,
    request: &Request,
    test_time: Duration,
    progress: &mut Progress<'_>,
) -> Result<Report, ReconcileError> {
    let new = activation.manifest().clone();
    let reloading = match installation.nginx().reload(&new.survey) {
        Ok(reloading) => reloading,
        Err(ReloadError::NoMaster(NoMaster::NotRunning { .. })) => {
            progress.finished(StepName::Reload, "nginx is not running");
            return keep_for_later(installation, activation, old, request);
        }
        Err(error) => {
            progress.finished(StepName::Reload, "nothing was signalled");
            return back(
                installation,
                locked,
                activation,
                old,
                request,
                error.to_string(),
                None,
                progress,
            );
        }
    };
    progress.finished(StepName::Reload, "nginx's master was told");
    let names = names_to_prove(&new, old);
    let limit = PROOF_LIMIT + test_time * 2;
    let proof = prove(
        installation.nginx(),
        reloading.as_ref(),
        &new,
        &names,
        limit,
    );
    match proof {
        Ok(()) => {
            let sockets = new.http.len() + new.https.len();
            progress.finished(
                StepName::Verify,
                format!(
                    "generation {} answers on {sockets} sockets, {} name{} by our blocks",
                    new.number,
                    names.len(),
                    if names.len() == 1 { "" } else { "s" }
                ),
            );
            let active = activation.commit();
            record(installation, &new, old, request, Proof::Proven, None)?;
            Ok(Report {
                outcome: Outcome::Activated,
                ..base_report(active.manifest.number)
            })
        }
        Err(_) if installation.nginx_is_down(&new.survey) => {
            progress.finished(StepName::Verify, "nginx ended meanwhile");
            keep_for_later(installation, activation, old, request)
        }
        Err(error) => {
            progress.finished(StepName::Verify, "the new generation does not serve");
            let hint = hint(installation, &error, &new);
            back(
                installation,
                locked,
                activation,
                old,
                request,
                error.to_string(),
                hint,
                progress,
            )
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call site's context, taken apart once"
)]
fn back(
    installation: &Installation,
    locked: &LockedStore,
    activation: Activation,
    old: &Manifest,
    request: &Request,
    why: String,
    hint: Option<String>,
    progress: &mut Progress<'_>,
) -> Result<Report, ReconcileError> {
    let failed = activation.manifest().clone();
    if activation.previous() == failed.number {
        return Ok(Report {
            error: Some(why),
            hint,
            ..base_report(failed.number)
        });
    }
    let active = activation.roll_back(locked)?.manifest;
    let mut error = why.clone();
    if let Err(still) = restore(installation, &active) {
        error = format!(
            "{error}; generation {} is back on disk, but {still}",
            active.number
        );
    }
    record(
        installation,
        &failed,
        old,
        request,
        Proof::RolledBack,
        Some(why),
    )?;
    progress.finished(
        StepName::Activate,
        format!("{} → {}", failed.number, active.number),
    );
    Ok(Report {
        outcome: Outcome::RolledBack,
        error: Some(error),
        hint,
        ..base_report(active.number)
    })
}

/// After a refused reload the old workers never stopped; only where the failed generation did
/// answer is nginx told once more.
fn restore(installation: &Installation, active: &Manifest) -> Result<(), String> {
    let nginx = installation.nginx();
    if active.http.is_empty() {
        // generation 0 has no listeners that could tell; reading it again drops ours
        return match nginx.reload(&active.survey) {
            Ok(_) | Err(ReloadError::NoMaster(NoMaster::NotRunning { .. })) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
    }
    let settled = Instant::now() + Duration::from_millis(300);
    while Instant::now() < settled {
        if answering(nginx, active) == Some(active.number) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match nginx.reload(&active.survey) {
        Ok(reloading) => prove(nginx, reloading.as_ref(), active, &[], PROOF_LIMIT)
            .map_err(|error| error.to_string()),
        Err(ReloadError::NoMaster(NoMaster::NotRunning { .. })) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// There is nobody to tell: what nginx accepted in its test is what it will start with.
fn keep_for_later(
    installation: &Installation,
    activation: Activation,
    old: &Manifest,
    request: &Request,
) -> Result<Report, ReconcileError> {
    let new = activation.commit().manifest;
    record(installation, &new, old, request, Proof::NginxDown, None)?;
    let mut report = base_report(new.number);
    report.outcome = Outcome::Activated;
    say_nginx_is_down(installation, &mut report, old);
    Ok(report)
}

/// `before`: what may still be answered by workers that outlived their master.
pub(crate) fn say_nginx_is_down(
    installation: &Installation,
    report: &mut Report,
    before: &Manifest,
) {
    report.nginx_running = false;
    report.error = Some(format!(
        "nginx is not running; generation {} is on disk and valid, and serves when nginx starts",
        report.generation
    ));
    let orphans = answering(installation.nginx(), before).is_some();
    report.hint = Some(match orphans {
        true => "a worker that outlived its master still answers, and keeps a new nginx from its ports: \
                 end it (`ss -ltnp` shows it), then start nginx"
            .into(),
        false => "start nginx, for example with `systemctl start nginx`".into(),
    });
}

fn record(
    installation: &Installation,
    new: &Manifest,
    old: &Manifest,
    request: &Request,
    result: Proof,
    why: Option<String>,
) -> Result<(), ReconcileError> {
    let entry = HistoryEntry {
        generation: new.number,
        at: request.now,
        reason: request.reason,
        result,
        changes: changes(new, old),
        why,
    };
    Ok(installation.generations.history().record(entry)?)
}

fn hint(installation: &Installation, error: &ProofError, new: &Manifest) -> Option<String> {
    match error {
        ProofError::NotOurs { address, .. } => {
            let ours: Vec<_> = new.http.iter().chain(&new.https).copied().collect();
            let survey = installation.fresh_survey().unwrap_or(new.survey.clone());
            let takers = neighbours::takers(&survey, &ours);
            let taker = takers.iter().find(|(socket, _)| socket == address);
            Some(match taker {
                Some((socket, at)) => format!(
                    "{at} listens on {socket} itself, so nginx gives it every request for that address; \
                     remove the address there, or list the addresses that vhostd should use under `nginx.listen`"
                ),
                None => {
                    "look for another server block with this name: `nginx -T | grep server_name`"
                        .into()
                }
            })
        }
        ProofError::Refused { lines } => Some(refusal_hint(lines)),
        ProofError::TimedOut { .. } => Some(format!(
            "look at nginx's error log and at `{} -t`, then run `vhostd reload`",
            installation.settings.nginx.binary.display()
        )),
    }
}

fn refusal_hint(lines: &[String]) -> String {
    let any = |needle: &str| lines.iter().any(|line| line.contains(needle));
    if any("Address already in use") {
        "another program (or another listen address of nginx itself) holds the port: `ss -ltnp` shows it; \
         nginx takes a changed listen address only by a restart"
            .into()
    } else if any("Too many open files") {
        "raise the running nginx's limit (`LimitNOFILE=` of its unit, or `worker_rlimit_nofile`) and restart it".into()
    } else if any("unknown directive") || any("invalid parameter") {
        "the running nginx is older than the one on disk: restart it".into()
    } else if let Some(zone) = lines.iter().find_map(|line| kept_zone(line)) {
        format!(
            "nginx keeps shared memory zones over a reload, and a hand-written file changed what `{zone}` is: \
             take that back, give the zone another name, or restart nginx"
        )
    } else if let Some((path, line)) = lines.iter().find_map(|line| crate::nginx::place(line)) {
        format!("see {}:{line}, then run `vhostd reload`", path.display())
    } else {
        "nginx's error log has the details; then run `vhostd reload`".into()
    }
}

/// `limit_req "ZONE" uses the "…" key while previously it used the "…" key`, and its like for
/// caches. vhostd defines no such zone.
fn kept_zone(line: &str) -> Option<&str> {
    let about_zone = line.contains("while previously it used") || line.contains("had previously");
    line.split('"').nth(1).filter(|_| about_zone)
}

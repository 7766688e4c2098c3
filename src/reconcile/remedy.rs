//! R: what a person can do about a generation that does not serve.

use super::neighbours;
use super::proof::ProofError;
use crate::generation::manifest::Manifest;
use crate::installation::Installation;
use crate::nginx::ReloadError;
use crate::nginx::process::NoMaster;

/// The next step, and where to look, as far as `error` tells.
pub(crate) fn of(
    installation: &Installation,
    error: &ProofError,
    new: &Manifest,
) -> Option<String> {
    match error {
        ProofError::NotOurs(names) => {
            let address = &names.first()?.address;
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

/// The next step where nobody could be told to reload.
pub(crate) fn of_reload(error: &ReloadError) -> Option<String> {
    let ReloadError::NoMaster(NoMaster::Upgrading { old, new }) = error else {
        return None;
    };
    let finish = format!("`kill -QUIT {old}` finishes the upgrade");
    Some(match new {
        Some(new) => format!("{finish}, `kill -QUIT {new}` takes it back"),
        None => finish,
    })
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

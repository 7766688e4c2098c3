//! R: what is odd about nginx's running master, though it reloads: its pid file does not lead to it,
//! its binary is being upgraded, or many old workers still hold connections.
//!
//! An old worker keeps its whole configuration in memory, and only nginx's main file can bound how
//! long (`worker_shutdown_timeout`, nginx's core module).

use super::report::Report;
use crate::installation::Installation;
use crate::nginx::dump::Survey;
use crate::nginx::process::{Master, NoMaster};

/// What setup says where nothing bounds them.
pub fn advice(survey: &Survey) -> Option<String> {
    survey.worker_shutdown_timeout.is_none().then(|| {
        "nginx's main file has no `worker_shutdown_timeout`: after a reload an old worker stays as long as \
         one of its connections is open, a websocket's for days; `worker_shutdown_timeout 10m;` at the top \
         level (on Debian, a file in /etc/nginx/modules-enabled) bounds that"
            .to_owned()
    })
}

/// Adds it to `report`.
pub(crate) fn observe(installation: &Installation, survey: &Survey, report: &mut Report) {
    match installation.host_nginx.master(survey) {
        Ok(master) => {
            report.warnings.extend(unnamed(&master));
            report.warnings.extend(draining(&master, survey));
        }
        Err(NoMaster::Upgrading { .. }) => report.nginx_upgrading = true,
        Err(NoMaster::NotRunning { .. } | NoMaster::Stranger { .. }) => {}
    }
}

fn unnamed(master: &Master) -> Option<String> {
    let (why, pid) = (master.found_without.as_ref()?, master.pid);
    Some(format!(
        "nginx's pid file does not lead to its master, process {pid}, so `nginx -s`, logrotate and systemd do not find it: {why}"
    ))
}

/// Once the workers of many earlier configurations are left.
fn draining(master: &Master, survey: &Survey) -> Option<String> {
    let draining = master.draining_workers().len();
    let level = level(draining, master.accepting_workers().len())?;
    let until = match &survey.worker_shutdown_timeout {
        Some(timeout) => format!("`worker_shutdown_timeout {timeout};` ends them"),
        None => "set `worker_shutdown_timeout` at the top level of nginx's main file to bound that"
            .to_owned(),
    };
    Some(format!(
        "nginx's workers of {level} or more earlier configurations still hold connections open, and memory: {until}"
    ))
}

/// In powers of two: each is worth one line in the log, not each worker.
fn level(draining: usize, accepting: usize) -> Option<usize> {
    let reloads = draining / accepting.max(1);
    (reloads >= MANY).then(|| 1 << reloads.ilog2())
}

/// At 1,000 vhosts, more than a gigabyte.
const MANY: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_counts_reloads_and_not_workers() {
        assert_eq!(level(7, 1), None);
        assert_eq!(level(9, 1), Some(8));
        assert_eq!(level(31, 1), Some(16));
        assert_eq!(level(63, 8), None);
        assert_eq!(level(64, 8), Some(8));
        assert_eq!(level(9, 0), Some(8));
    }
}

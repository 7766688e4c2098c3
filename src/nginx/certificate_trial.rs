//! X: nginx itself, as the judge of what a CA has sent.
//!
//! It refuses its whole configuration for one certificate that OpenSSL does not take, and OpenSSL
//! does not read DER as we do. Whatever else the bytes do to OpenSSL, they do behind walls.
//!
//! A hundred certificates that come together are not tried by a hundred processes: what is handed
//! in while one nginx runs is tried by the next one, all at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Logs;
use super::candidate::CandidateError;
use super::sandbox::Sandbox;
use super::trial::{self, Trial};
use crate::certificate::store::Judge;

#[derive(Debug)]
pub struct CertificateTrial {
    binary: PathBuf,
    sandbox: Arc<Sandbox>,
    /// The directives that name nginx's temporary directories.
    temp_paths: Vec<String>,
    queue: Mutex<Queue>,
    /// A run has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: Vec<Pair>,
    running: bool,
    /// Of runs that have ended, until each is fetched.
    verdicts: BTreeMap<u64, Verdict>,
}

#[derive(Clone, Debug)]
struct Pair {
    id: u64,
    chain: PathBuf,
    key: PathBuf,
}

/// What nginx says against a certificate; `None`: nothing.
type Verdict = Option<String>;

/// What nginx's complaint is about.
enum Complaint {
    /// That one's chain or key, in these words.
    Pair(u64, String),
    /// The trial's user may not read that one's key.
    Unreadable(u64),
    Other,
}

impl Judge for CertificateTrial {
    fn refusal(&self, chain: &Path, key: &Path, scratch: &Path) -> Option<String> {
        let mut queue = self.queue();
        let id = queue.next;
        queue.next += 1;
        queue.waiting.push(Pair {
            id,
            chain: chain.to_path_buf(),
            key: key.to_path_buf(),
        });
        loop {
            if let Some(verdict) = queue.verdicts.remove(&id) {
                return verdict;
            }
            if queue.running {
                let waited = self.ended.wait(queue);
                queue = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.running = true;
            let pairs = std::mem::take(&mut queue.waiting);
            drop(queue);
            let run = Run {
                trial: self,
                verdicts: pairs.iter().map(|pair| (pair.id, None)).collect(),
            };
            run.judge(pairs, scratch);
            queue = self.queue();
        }
    }
}

impl CertificateTrial {
    pub(super) fn new(binary: PathBuf, sandbox: Arc<Sandbox>, temp_paths: Vec<String>) -> Self {
        Self {
            binary,
            sandbox,
            temp_paths,
            queue: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one nginx says of all of them.
    fn run(&self, pairs: &[Pair], scratch: &Path) -> Result<String, CandidateError> {
        let servers: String = pairs
            .iter()
            .enumerate()
            .map(|(nth, pair)| {
                // a short path: nginx listens on it (unix(7): 107 bytes)
                let socket = scratch.join(format!("{nth}"));
                format!(
                    "server {{ listen unix:{} ssl; ssl_certificate {}; ssl_certificate_key {}; }}\n",
                    socket.display(),
                    pair.chain.display(),
                    pair.key.display()
                )
            })
            .collect();
        let trial = Trial {
            files: vec![(Path::new("http.conf"), servers.as_bytes())],
            modules: &[],
            log_dir: scratch,
            logs: &Logs::default(),
        };
        let main = trial.main_file(scratch, &self.temp_paths);
        let finished = match self.sandbox.run(scratch, &main, &trial)? {
            Some(finished) => finished,
            None => trial::run_in_directory(&self.binary, scratch, &main, &trial)?,
        };
        Ok(finished.stderr)
    }
}

/// The verdicts of one run; whoever waits for them is told when it is dropped, however it ends.
struct Run<'a> {
    trial: &'a CertificateTrial,
    verdicts: BTreeMap<u64, Verdict>,
}

impl Run<'_> {
    /// nginx stops at the first certificate that it does not take: the others are tried again
    /// without it.
    fn judge(mut self, mut pairs: Vec<Pair>, scratch: &Path) {
        while !pairs.is_empty() {
            let stderr = match self.trial.run(&pairs, scratch) {
                Ok(stderr) => stderr,
                // its own test, later, says the same where nginx does not run at all
                Err(error) => {
                    tracing::debug!("certificates are not tried out: {error}");
                    return;
                }
            };
            let culprit = match complaint(&stderr, &pairs) {
                None | Some(Complaint::Other) => return,
                Some(Complaint::Unreadable(culprit)) => culprit,
                Some(Complaint::Pair(culprit, words)) => {
                    self.verdicts.insert(culprit, Some(words));
                    culprit
                }
            };
            pairs.retain(|pair| pair.id != culprit);
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut queue = self.trial.queue();
        queue.verdicts.append(&mut self.verdicts);
        queue.running = false;
        self.trial.ended.notify_all();
    }
}

/// Only a complaint about a certificate or its key refuses it: an unprivileged user's trial fails otherwise.
fn complaint(stderr: &str, pairs: &[Pair]) -> Option<Complaint> {
    let line = stderr.lines().find(|line| line.contains("[emerg]"))?;
    let quoted = |path: &Path| format!("\"{}\"", path.display());
    for pair in pairs {
        let (chain, key) = (quoted(&pair.chain), quoted(&pair.key));
        let (found, name) = match (line.contains(&chain), line.contains(&key)) {
            (true, _) => (chain, "it"),
            (_, true) if line.contains("BIO_new_file() failed") => {
                return Some(Complaint::Unreadable(pair.id));
            }
            (_, true) => (key, "its key"),
            _ => continue,
        };
        let words = line.replace(&found, name);
        let words = match words.split_once(": ") {
            Some((_, rest)) => rest.to_owned(),
            None => words,
        };
        return Some(Complaint::Pair(pair.id, words));
    }
    Some(Complaint::Other)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use super::*;
    use crate::settings::Settings;

    fn script(directory: &Path, text: &str) -> CertificateTrial {
        let binary = directory.join("programs/nginx");
        fs::create_dir(directory.join("programs")).unwrap();
        fs::write(&binary, text).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        let settings = Settings {
            state_dir: directory.join("state"),
            ..Settings::default()
        };
        fs::create_dir_all(trial::scratch(&settings.state_dir)).unwrap();
        let sandbox = Sandbox::new(&settings, &binary, Path::new("/"));
        CertificateTrial::new(binary, Arc::new(sandbox), vec!["body_temp_path".into()])
    }

    #[test]
    fn a_certificate_is_tried_behind_walls_and_leaves_nothing_behind() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a sandbox needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let at = |name: &str| state.join(name);
        fs::create_dir(&state).unwrap();
        for name in ["chain", "key"] {
            fs::write(at(name), name).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::create_dir(at("trial")).unwrap();
        // an nginx that does what it can, and complains of the certificate
        let text = format!(
            "#!/bin/sh\ncd {}\ndone=$(cat chain key)\n\
             touch escaped chain && done=\"$done wrote\"\n\
             done=\"$done $(id -u)\"\n\
             kill -0 {} && done=\"$done saw\"\n\
             touch trial/left\n\
             echo \"[emerg] 7#7: \\\"$PWD/chain\\\": $done $(grep -o 'body_temp_path.*' $3)\" >&2\n",
            state.display(),
            std::process::id()
        );
        let trial = script(directory.path(), &text);
        let refused = trial.refusal(&at("chain"), &at("key"), &at("trial"));
        let temporary = at("trial/body_temp_path");
        let expected = format!("it: chainkey 65533 body_temp_path {};", temporary.display());
        assert_eq!(refused.unwrap(), expected);
        assert!(!at("escaped").exists());
        assert_eq!(fs::read_dir(at("trial")).unwrap().count(), 0);
    }

    #[test]
    fn certificates_that_come_together_share_a_trial_and_each_has_its_own_verdict() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // a slow nginx that refuses the first chain named `bad`, as nginx does, and tells how many
        // certificates it was given
        let text = "#!/bin/sh\nsleep 0.1\nhttp=${3%/*}/http.conf\n\
             bad=$(grep -o 'ssl_certificate [^;]*bad[^;]*' $http | head -n 1)\n\
             test -z \"$bad\" || \
             echo \"x [emerg] 7#7: cannot load \\\"${bad#* }\\\": $(grep -c server $http)\" >&2\n";
        let trial = script(directory.path(), text);
        let pairs: Vec<Pair> = (0..20)
            .map(|id| Pair {
                id,
                chain: at(&format!(
                    "{}{id}",
                    if id % 10 == 3 { "bad" } else { "good" }
                )),
                key: at("key"),
            })
            .collect();
        let verdicts = thread::scope(|scope| {
            let judged = pairs.iter().map(|pair| {
                let scratch = at(&format!("scratch{}", pair.id));
                fs::create_dir(&scratch).unwrap();
                let trial = &trial;
                scope.spawn(move || trial.refusal(&pair.chain, &pair.key, &scratch))
            });
            let judged: Vec<_> = judged.collect();
            let verdicts = judged.into_iter().map(|judged| judged.join().unwrap());
            verdicts.collect::<Vec<_>>()
        });
        let mut together = Vec::new();
        for (id, verdict) in verdicts.iter().enumerate() {
            assert_eq!(verdict.is_some(), id % 10 == 3, "{id}: {verdict:?}");
            let words = verdict.as_deref().unwrap_or("cannot load it: 0");
            let given = words.strip_prefix("cannot load it: ").unwrap();
            together.push(given.parse::<usize>().unwrap());
        }
        assert!(together.iter().any(|given| *given > 4), "{together:?}");
        assert!(trial.queue().verdicts.is_empty());
    }

    #[test]
    fn only_a_complaint_about_the_certificate_refuses_it() {
        let pair = |chain: &str| {
            vec![Pair {
                id: 0,
                chain: chain.into(),
                key: "/s/k.pem".into(),
            }]
        };
        let words = |said: &str, chain: &str| match complaint(said, &pair(chain)) {
            Some(Complaint::Pair(0, words)) => Some(words),
            _ => None,
        };
        let said =
            "2026/11/23 15:05:18 [emerg] 7#7: cannot load certificate \"/s/c.pem\": no (SSL: x)\n";
        let refused = words(said, "/s/c.pem");
        assert_eq!(refused.unwrap(), "cannot load certificate it: no (SSL: x)");
        assert_eq!(words(said, "/s/d.pem"), None);
        let key = "x [emerg] 7#7: SSL_CTX_use_PrivateKey(\"/s/k.pem\") failed (SSL: mismatch)\n";
        let refused = words(key, "/s/c.pem");
        assert_eq!(
            refused.unwrap(),
            "SSL_CTX_use_PrivateKey(its key) failed (SSL: mismatch)"
        );
        let closed = "x [emerg] 7#7: cannot load certificate key \"/s/k.pem\": BIO_new_file() failed (SSL: x)\n";
        assert_eq!(words(closed, "/s/c.pem"), None);
        let other = "x [emerg] 7#7: mkdir() \"/var/lib/nginx/body\" failed\n";
        assert_eq!(words(other, "/s/c.pem"), None);
        assert!(complaint("x [warn] 7#7: \"/s/c.pem\"\n", &pair("/s/c.pem")).is_none());
    }
}

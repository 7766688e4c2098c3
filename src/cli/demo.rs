//! `vhostd demo`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Exit, output, status, verdict};
use crate::demo::{self, Chapter, DemoError, NAME, Scene, Stage};
use crate::reconcile::report::{Outcome, Report};

#[derive(Args, Debug)]
pub(super) struct Demo {
    /// Prove everything, clean up and exit; 1 if a proof fails
    #[arg(long)]
    once: bool,
    /// Print data for programs at the end
    #[arg(long, requires = "once")]
    json: bool,
}

/// What `--json` shows.
#[derive(Default, Serialize)]
struct Proofs {
    proven: Vec<ProvenClaim>,
    error: Option<String>,
    hint: Option<String>,
}

#[derive(Serialize)]
struct ProvenClaim {
    claim: String,
    /// Since the file was saved, where the claim is about that.
    ms: Option<u64>,
}

impl Demo {
    pub(super) fn run(self, nginx_binary: PathBuf) -> Exit {
        if self.json {
            return prove(&nginx_binary);
        }
        match demo::run(self.once, &nginx_binary, &mut |scene| show(&scene)) {
            Ok(()) if self.once => {
                output::line("");
                output::success("every claim was proven; nothing of the demo is left");
                Exit::Done
            }
            Ok(()) => {
                output::line("");
                output::success("nginx is stopped and the directory removed");
                Exit::Done
            }
            Err(error) => {
                output::error(&format!("failed to {error}"));
                output::hint(hint(&error).as_deref());
                Exit::Failed
            }
        }
    }
}

fn prove(nginx_binary: &Path) -> Exit {
    let mut proofs = Proofs::default();
    let ended = demo::run(true, nginx_binary, &mut |scene| {
        if let Scene::Proved { claim, after } = scene {
            let ms = after.and_then(|after| after.as_millis().try_into().ok());
            let claim = claim.to_owned();
            proofs.proven.push(ProvenClaim { claim, ms });
        }
    });
    if let Err(error) = &ended {
        proofs.error = Some(format!("failed to {error}"));
        proofs.hint = hint(error);
    }
    output::json(&proofs);
    match ended {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Failed,
    }
}

fn hint(error: &DemoError) -> Option<String> {
    match error {
        DemoError::Open(error) => error.hint().map(str::to_owned),
        DemoError::Prepare(error) => error.hint(),
        _ => None,
    }
}

fn show(scene: &Scene<'_>) {
    match scene {
        Scene::Ready {
            stage,
            nginx_version,
        } => ready(stage, nginx_version),
        Scene::Chapter(chapter) => title(*chapter),
        Scene::Saved {
            file,
            text,
            changed,
        } => saved(file, text, *changed),
        Scene::Reconciled(report) => reconciled(report),
        Scene::Page(text) => {
            for line in text.lines().filter(|line| !line.is_empty()) {
                output::line(&format!("    {}", output::faint(line)));
            }
        }
        Scene::Proved { claim, after } => proved(claim, *after),
        Scene::Status(stage) => {
            output::line("");
            output::line(&command("vhostd status"));
            status::show(&stage.settings);
        }
        Scene::Invitation(stage) => invitation(stage),
        Scene::Staying(stage) => staying(stage),
    }
}

fn ready(stage: &Stage, nginx_version: &str) {
    output::line(&format!(
        "{} a private host in {}: it listens on loopback only, and is removed at the end",
        output::strong("vhostd demo"),
        stage.directory.display()
    ));
    let facts = [
        (
            "nginx",
            format!(
                "{nginx_version}, with ports {} and {} for HTTP and HTTPS",
                stage.http.port(),
                stage.https.port()
            ),
        ),
        ("CA", "vhostd's own (`tls: internal`)".into()),
        (
            "app",
            "an example, in two versions on two ports: blue and green".into(),
        ),
        (
            "daemon",
            format!("watches {}", stage.settings.vhosts_dir.display()),
        ),
    ];
    for (name, fact) in facts {
        output::line(&format!("  {name:<8} {fact}"));
    }
}

fn title(chapter: Chapter) {
    let (number, text) = match chapter {
        Chapter::Drop => (1, "A vhost file is dropped"),
        Chapter::Change => (2, "The app moves to another port"),
        Chapter::Break => (3, "A broken file arrives"),
        Chapter::Mend => (4, "The file is mended"),
    };
    output::line("");
    output::line(&output::strong(&format!("{number}. {text}")));
}

fn saved(file: &Path, text: &str, changed: Option<usize>) {
    output::line(&format!("  {}", output::faint(&file.display().to_string())));
    for (index, line) in text.lines().enumerate() {
        match changed {
            Some(changed) if changed == index => {
                output::line(&format!("  {} {}", output::doubtful(">"), line));
            }
            _ => output::line(&format!("  {} {line}", output::faint("|"))),
        }
    }
    output::line("");
}

/// The daemon's steps where it changed something, and what it rejects.
fn reconciled(report: &Report) {
    for rejected in &report.rejected {
        let text = verdict::text_of(&rejected.file);
        output::picture(rejected, text.as_deref());
        output::line("");
    }
    if report.outcome == Outcome::Activated {
        report.steps.iter().for_each(output::step);
        let ms: f64 = report.steps.iter().map(|step| step.ms).sum();
        let number = report.generation;
        output::line(&format!("  generation {number} serves, after {ms:.0} ms\n"));
    }
    if let Some(error) = &report.error {
        output::error(error);
        output::hint(report.hint.as_deref());
    }
}

fn proved(claim: &str, after: Option<Duration>) {
    let after = after.map_or_else(String::new, |after| {
        let ms = after.as_millis();
        output::faint(&format!("  {ms} ms after it was saved"))
    });
    output::line(&format!("  {} {claim}{after}", output::good("proven:")));
}

fn invitation(stage: &Stage) {
    let (https, root) = (stage.https, stage.root_certificate());
    output::line("");
    output::line("Try it from another terminal:");
    output::line(&command(&format!(
        "curl --cacert {} --resolve {NAME}:{}:{} https://{NAME}:{}/",
        root.display(),
        https.port(),
        https.ip(),
        https.port(),
    )));
}

fn staying(stage: &Stage) {
    let config = stage.config();
    output::line("");
    output::line(&format!(
        "{} Edit {}, or drop another file beside it: what the daemon does appears here.",
        output::strong("It stays until Ctrl-C."),
        stage.vhost_file().display()
    ));
    output::line("Also worth a try, from another terminal:");
    for what in ["status", "history", "rollback"] {
        let line = format!("vhostd --config {} {what}", config.display());
        output::line(&command(&line));
    }
    output::line("");
}

fn command(line: &str) -> String {
    format!("  {} {}", output::faint("$"), output::strong(line))
}

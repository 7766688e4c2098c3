//! X: changed apps are tried by themselves, in case nginx refuses all together.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::generation::manifest::Manifest;
use crate::installation::Installation;
use crate::nginx::{Logs, TestError, Trial, scratch};
use crate::render::{RenderedConfig, entry};
use crate::vhost::AppName;

/// What nginx says of one app, without any other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refused {
    pub(super) app: AppName,
    pub(super) message: String,
    /// The line of the app's file that nginx names; `None`: it may be the sandbox's fault, and is a
    /// suspicion only.
    pub(super) line: Option<usize>,
}

/// An app and its file in the rendered configuration.
pub(super) type Changed<'a> = (&'a AppName, &'a Path);

/// Tries `changed` together, and as long as nginx refuses one, the others without it; begins no
/// further trial once `needed` is lowered.
pub(super) fn refused(
    installation: &Installation,
    active: &Manifest,
    rendered: &RenderedConfig,
    draft: &Manifest,
    changed: &[Changed<'_>],
    needed: &AtomicBool,
) -> Vec<Refused> {
    let logs = &installation.settings.log_dir;
    let mut refused = Vec::new();
    // the test of the whole says so
    if changed.is_empty() || !logs.is_dir() {
        return refused;
    }
    let attempt = Attempt {
        installation,
        modules: &draft.survey.load_modules,
        rendered,
        logs: draft.logs_beside(active),
    };
    let mut groups = vec![changed];
    // whether nginx takes the sandbox without any of them
    let mut takes_none = None;
    let begin = Instant::now();
    while let Some(group) = groups.pop() {
        if begin.elapsed() > LIMIT || !needed.load(Ordering::Relaxed) {
            break;
        }
        let Some(Complaint { message, place }) = attempt.complaint_about(group) else {
            continue;
        };
        let index = place.as_ref().map(|(file, _)| position(group, file));
        match (index, group) {
            // nginx has read the files before it
            (Some(Some(index)), _) => {
                refused.push(Refused {
                    app: group[index].0.clone(),
                    message,
                    line: place.map(|(_, line)| line),
                });
                groups.push(&group[index + 1..]);
            }
            // the fault is in none of them
            (Some(None), _) | (None, []) => return refused,
            (None, _)
                if !*takes_none.get_or_insert_with(|| attempt.complaint_about(&[]).is_none()) =>
            {
                return refused;
            }
            (None, [one]) => refused.push(Refused {
                app: one.0.clone(),
                message,
                line: None,
            }),
            (None, _) => {
                let (left, right) = group.split_at(group.len() / 2);
                groups.extend([right, left]);
            }
        }
    }
    // what is wrong with everybody is nobody's fault
    let all = refused.len() > 1 && refused.len() == changed.len();
    if all && refused.iter().all(|one| one.line.is_none()) {
        refused.clear();
    }
    refused
}

/// What was not tried by then is found by other means.
const LIMIT: Duration = Duration::from_secs(30);

struct Attempt<'a> {
    installation: &'a Installation,
    modules: &'a [String],
    rendered: &'a RenderedConfig,
    logs: Logs,
}

struct Complaint {
    message: String,
    /// The file, relative, and its line.
    place: Option<(PathBuf, usize)>,
}

impl Attempt<'_> {
    fn complaint_about(&self, group: &[Changed<'_>]) -> Option<Complaint> {
        let apps: Vec<&AppName> = group.iter().map(|(app, _)| *app).collect();
        let files = self.rendered.only(&apps);
        let scratch = scratch(&self.installation.settings.state_dir);
        let entry = entry(&files, 0, &scratch).ok()?;
        let files = files.files.iter();
        let files = files.map(|(path, bytes)| (path.as_path(), bytes.as_slice()));
        let log_dir = &self.installation.settings.log_dir;
        let trial = Trial {
            files: files
                .chain([(Path::new("http.conf"), entry.as_slice())])
                .collect(),
            modules: self.modules,
            log_dir,
            logs: &self.logs,
        };
        match self.installation.nginx().try_alone(&trial) {
            Ok(()) => None,
            Err(TestError::Refused { messages, place }) => Some(Complaint {
                message: messages.into_iter().next().unwrap_or_default(),
                place: place.map(|(path, line)| {
                    let relative = path.strip_prefix(&scratch).unwrap_or(&path);
                    (relative.to_path_buf(), line)
                }),
            }),
            // the test of the whole decides
            Err(error) => {
                tracing::info!("failed to try changed vhosts alone: {error}");
                None
            }
        }
    }
}

fn position(group: &[Changed<'_>], file: &Path) -> Option<usize> {
    group.iter().position(|(_, path)| *path == file)
}

//! R: the vhosts directory (or a pinned generation) → candidates, each with its last good version.

mod pinned; // P apps that a rollback holds

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::grace::Absences;
use super::pin::{Pin, Reload, Requester};
use super::{Installation, ReconcileError};
use crate::certificate::anchors::Anchors;
use crate::certificate::chain::Chain;
use crate::certificate::{Identifier, IssuedCertificate, Issuer, PemFiles, pem_files};
use crate::desired::{Candidate, Given, Owners, Rejection, Taken};
use crate::diagnostic::Diagnostic;
use crate::generation::manifest::{AppSource, Manifest};
use crate::policy::Policy;
use crate::settings::Settings;
use crate::vhost::identity::FileIdentity;
use crate::vhost::source::VhostFile;
use crate::vhost::{App, AppName, LocalUser, NO_OWNER, ServerName, parse, source};

/// What the files ask for, before conflicts between apps are decided.
#[derive(Debug)]
pub struct Intent {
    pub candidates: Vec<Candidate>,
    /// Files that could not become a candidate of their own; `stale` where the last good version
    /// is one instead.
    pub refused: Vec<Rejection>,
    /// Files whose names no app can have.
    pub misnamed: Vec<Diagnostic>,
    pub warnings: Vec<String>,
    /// The text of each candidate as its file has it now.
    pub sources: BTreeMap<AppName, AppSource>,
    /// The text of each last good version.
    pub last_good: BTreeMap<AppName, AppSource>,
    /// Apps whose files got another name: the old → the new.
    pub moved: BTreeMap<AppName, AppName>,
    /// Apps whose very file another user owned before → that user.
    pub chowned: BTreeMap<AppName, u32>,
    /// Names that apps gave up are free: root reloads.
    pub frees_names: bool,
    /// The files that are there.
    files: BTreeMap<AppName, FileIdentity>,
    /// The files of apps when their names were last claimed.
    claimed_by: BTreeMap<AppName, FileIdentity>,
    /// Apps that serve, and of which no text can be parsed any more.
    pub frozen: BTreeSet<AppName>,
    /// Whether the vhost files were read: what a generation holds says nothing about them.
    pub of_files: bool,
    /// The apps that a rollback holds → their files. They keep what they own.
    pub held: BTreeMap<AppName, PathBuf>,
    /// The pin that is in force.
    pub pin: Option<Pin>,
    /// The one that a rollback replaces, and that comes back if it fails.
    pub pin_before: Option<Pin>,
    /// When an absent file becomes a removed one.
    pub next_removal: Option<Instant>,
    /// How long the reading took.
    pub took: Duration,
}

impl Intent {
    /// Whether another text of some app is to serve than does.
    pub fn changes_files(&self) -> bool {
        let text = |source: &AppSource| source.text.clone();
        let texts = |sources: &BTreeMap<AppName, AppSource>| -> BTreeMap<AppName, String> {
            let sources = sources.iter();
            sources
                .map(|(app, source)| (app.clone(), text(source)))
                .collect()
        };
        texts(&self.sources) != texts(&self.last_good)
    }

    /// What the vhosts name outside of their directory: certificates and their keys.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let candidates = self.candidates.iter();
        let apps = candidates.flat_map(|it| std::iter::once(&it.app).chain(&it.fallback));
        let vhosts = apps.flat_map(|app| &app.vhosts);
        let pairs = vhosts.filter_map(|vhost| vhost.tls.files.as_ref());
        pairs
            .flat_map(|pair| [pair.chain.clone(), pair.key.clone()])
            .collect()
    }
}

/// How to read.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The daemon's memory of missing files; a command acts on a removal at once.
    pub absences: Option<&'a mut Absences>,
    /// The manual reloads that it is done for: they end pins.
    pub reloads: Vec<Reload>,
}

/// Reads and parses every vhost file.
pub fn read(
    installation: &Installation,
    mut reading: Reading<'_>,
) -> Result<Intent, ReconcileError> {
    let begin = Instant::now();
    let active = installation.generations.active()?.manifest;
    let listing = source::read(&installation.settings.vhosts_dir).inspect_err(|_| {
        if let Some(absences) = &mut reading.absences {
            absences.forget();
        }
    })?;
    let mut intent = Intent::empty();
    let owners = installation.owners()?;
    let files = listing.files.iter();
    let seen = files.filter(|it| it.identity.inode().is_some());
    intent.files = seen.map(|it| (it.app.clone(), it.identity)).collect();
    intent.claimed_by = owners.files().clone();
    // what is reserved from when on does not matter here
    let (_, moves) = owners
        .clone()
        .follow(&intent.files, OffsetDateTime::UNIX_EPOCH);
    (intent.moved, intent.chowned) = (moves.renamed, moves.chowned);
    let mut reloads = reading.reloads.iter();
    intent.frees_names = reloads.any(|reload| reload.by == Requester::Admin);
    let pin = installation.pin(&listing.files)?;
    let mut present: BTreeSet<AppName> =
        listing.files.iter().map(|file| file.app.clone()).collect();
    present.extend(pin.iter().flat_map(Pin::without_file).cloned());
    let kept = keep_absent(reading.absences, &active, &present, &mut intent);
    let pin = pin.and_then(|pin| pin.remaining(&listing.files, &kept, &reading.reloads, &active));
    let is_pinned = |app: &AppName| pin.as_ref().is_some_and(|pin| pin.has(app));
    present.extend(pin.iter().flat_map(Pin::apps).map(|(app, _)| app.clone()));
    let (held, files): (Vec<_>, Vec<_>) = listing
        .files
        .into_iter()
        .partition(|file| is_pinned(&file.app));
    intent.last_good = active.apps.clone();
    let worker = LocalUser::named(&active.survey.user);
    let mut policy = Policy::new(&installation.settings, &worker, installation.has_ipv6);
    for file in files {
        intent.take(file, &mut policy);
    }
    // a file that is missing for less than a second keeps serving
    for app in kept
        .iter()
        .filter(|app| !intent.moved.contains_key(*app) && !is_pinned(app))
        .cloned()
        .collect::<Vec<_>>()
    {
        intent.keep(&app, &mut policy);
    }
    if let Some(pin) = pin {
        let taken = Taken::new(&owners, active.served());
        intent.take_pinned(pin, &held, &mut policy, &taken);
    }
    intent.misnamed = listing.refused;
    intent.took = begin.elapsed();
    Ok(intent)
}

fn keep_absent(
    absences: Option<&mut Absences>,
    active: &Manifest,
    present: &BTreeSet<AppName>,
    intent: &mut Intent,
) -> BTreeSet<AppName> {
    let Some(absences) = absences else {
        return BTreeSet::new();
    };
    let serving = active.apps.keys().cloned().collect();
    let now = Instant::now();
    let kept = absences.observe(&serving, present, now);
    intent.next_removal = absences.next(now);
    kept
}

impl Intent {
    fn empty() -> Self {
        Self {
            candidates: Vec::new(),
            refused: Vec::new(),
            misnamed: Vec::new(),
            warnings: Vec::new(),
            sources: BTreeMap::new(),
            last_good: BTreeMap::new(),
            moved: BTreeMap::new(),
            chowned: BTreeMap::new(),
            frees_names: false,
            files: BTreeMap::new(),
            claimed_by: BTreeMap::new(),
            frozen: BTreeSet::new(),
            of_files: true,
            held: BTreeMap::new(),
            pin: None,
            pin_before: None,
            next_removal: None,
            took: Duration::ZERO,
        }
    }

    fn take(&mut self, file: VhostFile, policy: &mut Policy<'_>) {
        // a file that cannot be looked at for a moment has the owner that it had
        let uid = self.identity(&file.app).map_or(NO_OWNER, |file| file.uid);
        match parsed(&file, policy) {
            Ok((app, text, warnings)) => {
                self.warnings.extend(warnings);
                // the same text is no other version to fall back to
                let good = self.last_good.get(&file.app);
                let fallback = good
                    .filter(|good| good.text != text)
                    .and_then(|_| self.last_good_version(&file.app, uid, policy));
                let source = AppSource {
                    file: file.path,
                    text,
                    stale: false,
                };
                self.sources.insert(file.app, source);
                self.candidates.push(Candidate {
                    app,
                    modified: file.modified,
                    fallback: fallback.and_then(Result::ok),
                });
            }
            Err(diagnostics) => {
                let stale = match self.last_good_version(&file.app, uid, policy) {
                    Some(Ok(app)) => {
                        self.push_last_good(app, file.modified, true);
                        true
                    }
                    // bytes whose text cannot be read may name anything
                    Some(Err(errors)) => {
                        let mut all = errors.iter().chain(&diagnostics);
                        all.all(|it| !it.not_permitted) && self.freeze(&file.app)
                    }
                    None => false,
                };
                self.refused.push(Rejection {
                    app: file.app,
                    diagnostics,
                    stale,
                });
            }
        }
    }

    /// What holds before the candidates are asked. Files that gave no candidate still have what they
    /// own.
    pub fn given(
        &self,
        owners: Owners,
        hand_written: BTreeMap<ServerName, String>,
        now: OffsetDateTime,
    ) -> Given {
        let silent = self.refused.iter();
        let silent = silent.filter(|refused| !self.asks(&refused.app));
        let silent = silent.filter_map(|refused| {
            let file = refused.diagnostics.first()?.file.clone();
            Some((refused.app.clone(), file))
        });
        let silent: BTreeMap<_, _> = silent.chain(self.held.clone()).collect();
        let candidates = self.candidates.iter().map(|it| &it.app.name);
        let present = candidates.chain(silent.keys()).cloned().collect();
        let (owners, _) = owners.follow(&self.files, now);
        let owners = owners.without_absent(&present, now);
        Given {
            owners: match self.frees_names {
                true => owners.without_reservations(),
                false => owners,
            },
            hand_written,
            silent,
            held: self.held.keys().cloned().collect(),
            patterns: Vec::new(),
            entrances: None,
        }
    }

    /// The file of an app: as it is, else as it was when the app's names were last claimed.
    fn identity(&self, app: &AppName) -> Option<&FileIdentity> {
        self.files.get(app).or(self.claimed_by.get(app))
    }

    /// The files of the candidates, for [`Owners::succeeded_by`].
    pub fn identities(&self) -> BTreeMap<AppName, FileIdentity> {
        let apps = self.candidates.iter().map(|it| &it.app.name);
        let known = apps.filter_map(|app| Some((app.clone(), *self.identity(app)?)));
        known.collect()
    }

    fn asks(&self, app: &AppName) -> bool {
        let mut candidates = self.candidates.iter();
        candidates.any(|candidate| candidate.app.name == *app)
    }

    /// The last good version of an app whose file is absent or not read, as it serves.
    fn keep(&mut self, name: &AppName, policy: &mut Policy<'_>) {
        let uid = self.identity(name).map_or(0, |file| file.uid);
        match self.last_good_version(name, uid, policy) {
            Some(Ok(app)) => self.push_last_good(app, OffsetDateTime::UNIX_EPOCH, false),
            Some(Err(diagnostics)) => {
                let permitted = diagnostics.iter().all(|it| !it.not_permitted);
                let stale = permitted && self.freeze(name);
                self.refused.push(Rejection {
                    app: name.clone(),
                    diagnostics,
                    stale,
                });
            }
            None => {}
        }
    }

    /// What serves of an app of which no text is a vhost file any more (the settings or vhostd were
    /// changed) serves on as it does. Whether anything does.
    fn freeze(&mut self, name: &AppName) -> bool {
        let Some(source) = self.last_good.get(name).cloned() else {
            return false;
        };
        let stale = AppSource {
            stale: true,
            ..source
        };
        self.sources.insert(name.clone(), stale);
        self.frozen.insert(name.clone())
    }

    fn push_last_good(&mut self, app: App, modified: OffsetDateTime, stale: bool) {
        // once, also where two files say that they are the app's
        if self.asks(&app.name) {
            return;
        }
        if let Some(source) = self.last_good.get(&app.name) {
            let stale = stale || source.stale;
            let source = AppSource {
                stale,
                ..source.clone()
            };
            self.sources.insert(app.name.clone(), source);
            self.candidates.push(Candidate {
                app,
                modified,
                fallback: None,
            });
        }
    }

    /// Whether another user's file has taken the place of the one that the last good version is from.
    fn is_of_another_user(&self, app: &AppName, uid: u32) -> bool {
        let before = self.claimed_by.get(app).filter(|before| before.uid != uid);
        let now = self.files.get(app);
        before.is_some_and(|before| now.is_none_or(|now| !now.is_same_file(before)))
    }

    /// As the vhost file of `uid`. An error: what is not permitted, or why the text is malformed;
    /// a root that leads nowhere serves on without its files.
    fn last_good_version(
        &self,
        name: &AppName,
        uid: u32,
        policy: &mut Policy<'_>,
    ) -> Option<Result<App, Vec<Diagnostic>>> {
        let source = self.last_good.get(name)?;
        if self.is_of_another_user(name, uid) {
            return None;
        }
        let app = match parse_text(name, &source.file, &source.text, policy.settings()) {
            Ok(app) => app.owned_by(uid),
            Err(errors) => return Some(Err(errors)),
        };
        let mut decision = policy.decide(app);
        decision.errors.retain(|error| error.not_permitted);
        Some(match decision.errors.is_empty() {
            true => Ok(decision.app),
            false => Err(decision.errors),
        })
    }
}

type Parsed = (App, String, Vec<String>);

fn parsed(file: &VhostFile, policy: &mut Policy<'_>) -> Result<Parsed, Vec<Diagnostic>> {
    let text = file.text.clone().map_err(|diagnostic| vec![diagnostic])?;
    let app = parse_text(&file.app, &file.path, &text, policy.settings())?;
    let decision = policy.decide(app.owned_by(file.identity.uid));
    if !decision.errors.is_empty() {
        return Err(decision.errors);
    }
    let warnings = decision.warnings.iter().map(with_hint).collect();
    Ok((decision.app, text, warnings))
}

fn parse_text(
    app: &AppName,
    file: &Path,
    text: &str,
    settings: &Settings,
) -> Result<App, Vec<Diagnostic>> {
    parse::parse(app, file, text, &settings.roots, &settings.tls_defaults())
}

/// On one line: what is odd, and what to do.
fn with_hint(warning: &Diagnostic) -> String {
    match &warning.hint {
        Some(hint) => format!("{warning} ({hint})"),
        None => warning.to_string(),
    }
}

/// The parsed form of one file that may be anywhere (`check FILE`), and what looks odd.
pub fn parse_alone(
    file: &VhostFile,
    policy: &mut Policy<'_>,
    now: OffsetDateTime,
) -> Result<(App, Vec<String>), Vec<Diagnostic>> {
    let (app, _, mut warnings) = parsed(file, policy)?;
    let settings = policy.settings();
    for vhost in &app.vhosts {
        let names = vhost.all_names().map(|name| name.value.to_identifier());
        let names: Vec<_> = names.collect();
        let Some(files) = &vhost.tls.files else {
            continue;
        };
        let about = |reason: String| {
            let warning = Diagnostic::new(&app.file, reason).at(vhost.at);
            warning.to_string()
        };
        match pem_files::read(files, &names, now) {
            Ok(pair) => {
                warnings.extend(chain_warnings(&pair, files, &names, settings, now).map(about))
            }
            Err(error) => warnings.push(about(format!("failed to {error}"))),
        }
    }
    Ok((app, warnings))
}

/// What clients will not like about the chain; nothing where this system's roots cannot be read.
fn chain_warnings(
    pair: &IssuedCertificate,
    files: &PemFiles,
    names: &[Identifier],
    settings: &Settings,
    now: OffsetDateTime,
) -> impl Iterator<Item = String> {
    let chain = Chain::parse_of(Issuer::File, &pair.chain_pem).ok();
    let anchors = Anchors::load(settings.acme.ca_file.as_deref()).ok();
    let judged = chain.zip(anchors).zip(names.first());
    judged
        .into_iter()
        .flat_map(move |((chain, anchors), first)| {
            anchors.warnings(&chain, first, &files.chain, now)
        })
}

//! Candidates → a tested generation: accept, render, stage, let nginx judge, and learn from a no.

mod lesson; // X what a refusal of nginx's teaches

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::intent::Intent;
use super::plan::{Plan, plan};
use super::proof::fingerprint;
use super::report::StepName;
use super::setback::Setback;
use super::{Progress, ReconcileError, Request, activation, neighbours};
use crate::certificate::{
    CertificateInventory, CertificateRequest, Issuer, StoredCertificate, WantedCertificate,
};
use crate::desired::{self, Accepted, DesiredState, DesiredTls, HostFacts, Owners, Rejection};
use crate::diagnostic::Diagnostic;
use crate::generation::manifest::{AppSource, Manifest, ServedName};
use crate::generation::{LockedStore, TestedGeneration};
use crate::installation::Installation;
use crate::nginx::dump::Survey;
use crate::render::{RenderedConfig, render};
use crate::vhost::{App, AppName, ServerName, TlsMode};

use lesson::Lesson;

/// Everything that a reconcile knows while it decides.
pub(crate) struct Candidate<'a> {
    installation: &'a Installation,
    request: &'a Request,
    active: &'a Manifest,
    intent: Intent,
    pub(crate) apps: Vec<App>,
    owners: Owners,
    pub(crate) rejections: Vec<Rejection>,
    /// Apps that nginx refused in this run.
    quarantined: BTreeMap<AppName, Diagnostic>,
    pub(crate) wanted: Vec<WantedCertificate>,
    pub(crate) inventory: CertificateInventory,
    pub(crate) warnings: Vec<String>,
    survey: Survey,
    /// What failed last.
    pub(crate) setback: Option<Setback>,
}

/// What the candidate came to.
pub(crate) enum Judgement {
    Unchanged,
    /// `current` holds these bytes already, but they are not proven to serve.
    Prove(Box<Manifest>),
    Tested(Box<TestedGeneration>),
    /// It failed a moment ago.
    Wait(Setback),
    Refused {
        error: String,
        hint: Option<String>,
    },
}

impl Judgement {
    /// What nginx is about to be told to serve.
    pub(crate) fn attempted(&self) -> Option<&Manifest> {
        match self {
            Self::Prove(manifest) => Some(manifest),
            Self::Tested(tested) => Some(tested.manifest()),
            Self::Refused { .. } | Self::Unchanged | Self::Wait(_) => None,
        }
    }
}

/// Each attempt quarantines an app or learns what changed in the hand-written files.
const ATTEMPTS: usize = 12;

impl<'a> Candidate<'a> {
    pub(crate) fn new(
        installation: &'a Installation,
        intent: Intent,
        request: &'a Request,
        active: &'a Manifest,
    ) -> Result<Self, ReconcileError> {
        let (inventory, problems) = installation.certificates.inventory()?;
        let mut warnings = intent.warnings.clone();
        warnings.extend(problems.iter().map(ToString::to_string));
        Ok(Self {
            installation,
            request,
            active,
            apps: Vec::new(),
            owners: Owners::default(),
            rejections: Vec::new(),
            quarantined: BTreeMap::new(),
            wanted: Vec::new(),
            inventory,
            warnings,
            survey: active.survey.clone(),
            setback: Setback::read(&installation.settings.state_dir),
            intent,
        })
    }

    pub(crate) fn judge(
        &mut self,
        locked: &LockedStore,
        progress: &mut Progress<'_>,
    ) -> Result<Judgement, ReconcileError> {
        // a person asked: the hand-written files may have changed too
        let blind = self.request.is_manual() || self.active.number == 0;
        if blind && let Lesson::GiveUp { error, hint } = self.survey_again(locked) {
            // what is accepted, and what certificates it needs, does not depend on the admin's files
            self.render()?;
            progress.finished(
                StepName::Test,
                "nginx does not take the configuration even without vhostd's files",
            );
            return Ok(Judgement::Refused { error, hint });
        }
        progress.ahead_of(StepName::Test);
        for _ in 0..ATTEMPTS {
            let (rendered, draft) = self.render()?;
            let count = self.apps.iter().map(|app| app.vhosts.len()).sum::<usize>();
            progress.finished(
                StepName::Render,
                format!("{count} {}", if count == 1 { "vhost" } else { "vhosts" }),
            );
            let plan = self.plan(&rendered.digest)?;
            if blind && plan != Plan::Activate {
                let words = "nginx accepts the hand-written configuration";
                progress.finished(StepName::Test, words);
            }
            match plan {
                Plan::Unchanged => return self.settled(Judgement::Unchanged),
                Plan::Prove => {
                    return self.settled(Judgement::Prove(Box::new(self.active.clone())));
                }
                Plan::Wait => match self.setback.take() {
                    Some(setback) => return self.settled(Judgement::Wait(setback)),
                    None => continue,
                },
                Plan::Activate => {}
            }
            let staged = locked.stage(&rendered, draft)?;
            let number = staged.manifest().number;
            let lesson = match locked.test(staged, self.installation.nginx()) {
                Ok((tested, accepted)) if accepted.survey == self.survey => {
                    progress.finished(StepName::Test, format!("nginx accepts generation {number}"));
                    self.warnings.extend(accepted.warnings);
                    return self.settled(Judgement::Tested(Box::new(tested)));
                }
                Ok((tested, accepted)) => {
                    self.survey = accepted.survey;
                    locked.discard_tested(tested)?;
                    Lesson::TryAgain
                }
                Err(refused) => {
                    let (staged, error) = *refused;
                    let lesson = self.learn(locked, &staged, error);
                    locked.discard(staged)?;
                    lesson
                }
            };
            progress.finished(StepName::Test, format!("nginx refuses generation {number}"));
            if let Lesson::GiveUp { error, hint } = lesson {
                return Ok(Judgement::Refused { error, hint });
            }
        }
        Ok(Judgement::Refused {
            error: format!("no acceptable configuration was found in {ATTEMPTS} attempts"),
            hint: Some("run `vhostd reload` to try again".into()),
        })
    }

    /// Whether challenges for names without a vhost are answered by the active generation.
    pub(crate) fn answers_early_challenges(&self) -> bool {
        let settings = &self.installation.settings.nginx;
        let ours = neighbours::listeners(
            settings,
            &self.survey,
            self.installation.has_ipv6,
            settings.http_port,
        );
        ours.iter().all(|listener| listener.default_server)
    }

    fn plan(&self, digest: &str) -> Result<Plan, ReconcileError> {
        let history = self.installation.generations.history()?;
        let number = self.active.number;
        // an activation without an entry is one whose proof was interrupted
        let proof = history.last(number).map(|entry| entry.result);
        let held = !self.request.is_manual()
            && self.setback.as_ref().is_some_and(|setback| {
                let master = self.installation.master(&self.active.survey);
                setback.holds(digest, master, self.request.now)
            });
        Ok(plan(digest, self.active, proof, held, || {
            activation::serving(self.installation, self.active)
        }))
    }

    /// Claims are written before anything serves: a name once served has an owner.
    fn settled(&self, judgement: Judgement) -> Result<Judgement, ReconcileError> {
        if self.intent.of_files && self.intent.pin.is_none() {
            self.installation.save_owners(&self.owners)?;
        }
        Ok(judgement)
    }

    /// Who serves what, and which certificates that takes.
    fn resolve(&mut self) -> Result<(), ReconcileError> {
        let Accepted {
            apps,
            rejections,
            owners,
        } = self.accept()?;
        self.apps = apps;
        self.owners = owners;
        self.rejections = self.intent.refused.clone();
        self.rejections.extend(rejections);
        self.rejections
            .extend(self.quarantined.iter().map(|(app, diagnostic)| Rejection {
                app: app.clone(),
                diagnostics: vec![diagnostic.clone()],
                stale: self.apps.iter().any(|accepted| accepted.name == *app),
            }));
        let default_tls = self.installation.settings.tls;
        let wanted = self
            .apps
            .iter()
            .flat_map(|app| desired::wanted(app, default_tls));
        self.wanted = wanted.flatten().fold(Vec::new(), |mut all, one| {
            if !all.contains(&one) {
                all.push(one);
            }
            all
        });
        Ok(())
    }

    fn render(&mut self) -> Result<(RenderedConfig, Manifest), ReconcileError> {
        self.resolve()?;
        self.provide_certificates()?;
        let host = self.host()?;
        let default_tls = self.default_tls();
        let state = desired::desired(
            &self.apps,
            host,
            default_tls,
            &self.inventory,
            self.request.now,
        )?;
        let rendered = render(&state, &self.installation.templates)?;
        let draft = self.draft(&state, &rendered);
        Ok((rendered, draft))
    }

    fn taken_names(&self) -> BTreeMap<ServerName, String> {
        neighbours::names(&self.survey, &self.installation.settings.nginx)
    }

    pub(crate) fn default_tls(&self) -> TlsMode {
        self.installation.settings.tls
    }

    /// The text that an accepted app was made from.
    pub(crate) fn source(&self, app: &AppName) -> Option<AppSource> {
        let fell_back = self
            .rejections
            .iter()
            .any(|rejection| rejection.app == *app);
        let texts = match fell_back {
            true => &self.intent.last_good,
            false => &self.intent.sources,
        };
        let mut source = texts.get(app)?.clone();
        source.stale |= fell_back;
        Some(source)
    }

    fn accept(&self) -> Result<Accepted, ReconcileError> {
        let mut candidates = Vec::new();
        for candidate in &self.intent.candidates {
            let mut candidate = candidate.clone();
            if self.quarantined.contains_key(&candidate.app.name) {
                let Some(fallback) = candidate.fallback.take() else {
                    continue;
                };
                candidate.app = fallback;
            }
            candidates.push(candidate);
        }
        let owners = self.installation.owners()?;
        Ok(desired::accept(candidates, &owners, &self.taken_names()))
    }

    /// Every vhost with TLS has something to serve: from our own CA at once, else a placeholder.
    fn provide_certificates(&mut self) -> Result<(), ReconcileError> {
        let (store, now) = (&self.installation.certificates, self.request.now);
        for wanted in &self.wanted {
            let served = self.inventory.serving(wanted, now);
            let internal = wanted.issuer == Issuer::Internal;
            let right = served.is_some_and(|served| !internal || served.issuer == Issuer::Internal);
            if right {
                continue;
            }
            // whoever holds the lock is about to store one
            let lock = match internal {
                true => self.installation.ledger.try_lock(&wanted.name)?,
                false => None,
            };
            if let Some(_lock) = lock {
                let request = CertificateRequest {
                    key_type: Some(self.installation.settings.acme.key_type),
                    ..CertificateRequest::new(wanted, served, None)
                };
                match self.issue(&request) {
                    Ok(stored) => {
                        let name = wanted.name.clone();
                        self.inventory.certificates.insert(name, stored);
                        continue;
                    }
                    // it is tried again as any certificate is; the others are not concerned
                    Err(error) => self
                        .warnings
                        .push(format!("{}: failed to {error}", wanted.name)),
                }
            }
            if self.inventory.serving(wanted, now).is_none() {
                let placeholder = store.ensure_placeholder(wanted, now)?;
                self.inventory
                    .placeholders
                    .insert(wanted.name.clone(), placeholder);
            }
        }
        Ok(())
    }

    fn issue(&self, request: &CertificateRequest) -> Result<StoredCertificate, ReconcileError> {
        let (installation, now) = (self.installation, self.request.now);
        let issued = installation.internal_ca.issue(request, now)?;
        Ok(installation.certificates.store(&issued, request, now)?)
    }

    fn host(&self) -> Result<HostFacts, ReconcileError> {
        let installation = self.installation;
        let settings = &installation.settings.nginx;
        let at = |port| neighbours::listeners(settings, &self.survey, installation.has_ipv6, port);
        let probe = installation.probe(self.request.now)?;
        Ok(HostFacts {
            http: at(settings.http_port),
            https: at(settings.https_port),
            features: installation.features(&self.survey.load_modules, &probe)?,
            thumbprint: Some(installation.thumbprint.clone()),
            probe,
            log_dir: installation.settings.log_dir.clone(),
            unset_http_directives: neighbours::unset_http_directives(&self.survey),
        })
    }

    fn draft(&self, state: &DesiredState, rendered: &RenderedConfig) -> Manifest {
        let now: OffsetDateTime = self.request.now;
        let mut manifest = Manifest::draft(now, self.request.reason, self.survey.clone());
        manifest.http = state
            .host
            .http
            .iter()
            .map(|listener| listener.address)
            .collect();
        manifest.https = state
            .host
            .https
            .iter()
            .map(|listener| listener.address)
            .collect();
        for app in &self.apps {
            if let Some(source) = self.source(&app.name) {
                manifest.apps.insert(app.name.clone(), source);
            }
        }
        manifest.names = self.served_names(state, rendered);
        manifest.certificates = version_directories(state);
        manifest
    }

    fn served_names(&self, state: &DesiredState, rendered: &RenderedConfig) -> Vec<ServedName> {
        let configs: BTreeMap<&AppName, String> = rendered
            .apps
            .iter()
            .filter_map(|(path, app)| Some((app, hex(&Sha256::digest(rendered.files.get(path)?)))))
            .collect();
        let mut names = Vec::new();
        for vhost in &state.vhosts {
            let leaf = match &vhost.tls {
                DesiredTls::Off => None,
                DesiredTls::On { wanted, .. } => self.inventory.serving(wanted, self.request.now),
            };
            let leaf = leaf.map(|stored| fingerprint(&stored.leaf));
            for name in vhost.spec.all_names() {
                let host = name.value.as_str();
                names.push(ServedName {
                    vhost: vhost.spec.name.clone(),
                    host: host.replacen('*', "vhostd-probe", 1),
                    leaf: leaf.clone(),
                    config: configs
                        .get(vhost.spec.name.app())
                        .cloned()
                        .unwrap_or_default(),
                });
            }
        }
        names
    }
}

fn version_directories(state: &DesiredState) -> Vec<PathBuf> {
    let vhosts = state.vhosts.iter().filter_map(|vhost| match &vhost.tls {
        DesiredTls::Off => None,
        DesiredTls::On { files, .. } => Some(&files.chain),
    });
    let mut directories: Vec<PathBuf> = vhosts
        .chain([&state.host.probe.certificate.chain])
        .filter_map(|chain| chain.parent().map(Path::to_path_buf))
        .collect();
    directories.sort();
    directories.dedup();
    directories
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

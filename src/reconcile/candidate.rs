//! Candidates → a tested generation: accept, render, stage, let nginx judge, and learn from a no.

mod alone; // X changed apps are tried by themselves
mod blame; // P what nginx said of a rendered file → the vhost file's line and key
mod certificates; // W what every vhost with TLS has to serve at once
mod frozen; // R apps whose very bytes are kept
mod judge; // X the attempts, until nginx accepts one
mod lesson; // X what a refusal of nginx's teaches
mod withhold; // P versions of apps that are not served, and why

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use time::OffsetDateTime;

use super::intent::Intent;
use super::last_look::LastLook;
use super::proof::fingerprint;
use super::quarantine::Quarantine;
use super::setback::Setback;
use super::{ReconcileError, Request, neighbours};
use crate::certificate::{CertificateInventory, WantedCertificate};
use crate::desired::{
    self, Accepted, DesiredState, DesiredTls, Entrances, HostFacts, Owners, Rejection,
};
use crate::generation::TestedGeneration;
use crate::generation::manifest::{AppSource, Manifest, ServedName};
use crate::installation::Installation;
use crate::nginx::TestError;
use crate::nginx::dump::Survey;
use crate::nginx::included::IncludedFiles;
use crate::render::{RenderedConfig, render};
use crate::vhost::{App, AppName, ServerName, TlsDefaults, root};

use alone::Refused;
use withhold::Withheld;

/// Everything that a reconcile knows while it decides.
pub(crate) struct Candidate<'a> {
    installation: &'a Installation,
    request: &'a Request,
    active: &'a Manifest,
    intent: Intent,
    pub(crate) apps: Vec<App>,
    owners: Owners,
    pub(crate) rejections: Vec<Rejection>,
    /// Apps whose newest version is not served.
    withheld: BTreeMap<AppName, Withheld>,
    /// What earlier runs found out; nothing where a person asked.
    known: Quarantine,
    /// What the next run should know.
    found: Quarantine,
    /// Apps that are left out for the moment, to see who is to blame.
    left_out: BTreeSet<AppName>,
    /// What was rendered last.
    versions: BTreeMap<AppName, String>,
    /// What nginx said of the whole last, if it refused it in this run.
    refused: Option<String>,
    /// Apps that nginx refused alone, without naming a line.
    suspected: Vec<Refused>,
    pub(crate) wanted: Vec<WantedCertificate>,
    pub(crate) inventory: CertificateInventory,
    pub(crate) warnings: Vec<String>,
    /// Further warnings, of the apps as they were resolved last.
    pub(crate) shared: Vec<String>,
    survey: Survey,
    /// Why nginx does not take the active generation beside the hand-written files as they are now.
    refused_active: Option<TestError>,
    /// The hand-written files before nginx was asked about them in this run.
    looked_at: Option<IncludedFiles>,
    /// Until when certificates and placeholders are made in this run, under the lock; `None`: none
    /// was asked for yet.
    making_ends: Option<Instant>,
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
            withheld: BTreeMap::new(),
            known: match request.is_manual() {
                true => Quarantine::default(),
                false => Quarantine::read(&installation.settings.state_dir),
            },
            found: Quarantine::default(),
            left_out: BTreeSet::new(),
            versions: BTreeMap::new(),
            refused: None,
            suspected: Vec::new(),
            wanted: Vec::new(),
            inventory,
            warnings,
            shared: Vec::new(),
            survey: LastLook::read(&installation.settings.state_dir)
                .map_or_else(|| active.survey.clone(), |look| look.survey),
            refused_active: None,
            looked_at: None,
            making_ends: None,
            setback: Setback::read(&installation.settings.state_dir),
            intent,
        })
    }

    /// The hand-written configuration, as far as it is known.
    pub(crate) fn survey(&self) -> &Survey {
        &self.survey
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

    /// Claims are written before anything serves: a name once served has an owner.
    fn settled(&self, judgement: Judgement) -> Result<Judgement, ReconcileError> {
        if self.intent.of_files {
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
            shared,
        } = self.accept()?;
        self.apps = apps;
        self.shared = shared.iter().map(ToString::to_string).collect();
        self.owners = owners;
        self.rejections = self.intent.refused.clone();
        for rejection in &mut self.rejections {
            // of a generation that is returned to, it may be gone
            let unparsed = self.intent.frozen.contains(&rejection.app);
            rejection.stale &= !unparsed || self.active.apps.contains_key(&rejection.app);
        }
        self.rejections.extend(rejections);
        let withheld = self.withheld.iter().map(|(app, withheld)| Rejection {
            app: app.clone(),
            diagnostics: vec![withheld.diagnostic.clone()],
            stale: self.apps.iter().any(|accepted| accepted.name == *app),
        });
        self.rejections.extend(withheld);
        let default_tls = self.default_tls();
        let wanted = self
            .apps
            .iter()
            .flat_map(|app| desired::wanted(app, &default_tls));
        self.wanted = wanted.flatten().fold(Vec::new(), |mut all, one| {
            if !all.contains(&one) {
                all.push(one);
            }
            all
        });
        Ok(())
    }

    /// What is withheld already is rendered by its last good version, or not at all.
    fn render(&mut self) -> Result<(RenderedConfig, Manifest), ReconcileError> {
        loop {
            self.resolve()?;
            self.provide_certificates()?;
            let frozen = self.frozen();
            let rendered = self.apps.iter().filter(|app| !frozen.contains(&app.name));
            let rendered: Vec<App> = rendered.cloned().collect();
            let mut state = desired::desired(
                &rendered,
                self.host(&frozen)?,
                &root::links_checked_below(&rendered),
                &self.default_tls(),
                &self.inventory,
                self.request.now,
            )?;
            state.kept = self.kept_addresses(&frozen);
            let Some(frozen_files) = self.frozen_files(&frozen)? else {
                continue;
            };
            let rendered = match render(&state, &self.installation.templates) {
                Ok(rendered) => rendered.with(frozen_files),
                Err(error) if self.withhold_unrendered(&error) => continue,
                Err(error) => return Err(error.into()),
            };
            self.versions = rendered.versions();
            if !self.withhold_known() {
                let draft = self.draft(&state, &frozen);
                return Ok((rendered, draft));
            }
        }
    }

    fn taken_names(&self) -> BTreeMap<ServerName, String> {
        neighbours::names(&self.survey, &self.installation.settings.nginx)
    }

    pub(crate) fn default_tls(&self) -> TlsDefaults {
        self.installation.settings.tls_defaults()
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
        let owners = self.installation.owners()?;
        let mut given = self
            .intent
            .given(owners, self.taken_names(), self.request.now);
        let settings = &self.installation.settings.nginx;
        given.patterns = neighbours::name_patterns(&self.survey, settings);
        given.entrances = Some(Entrances {
            kept: self.addresses_of(&self.intent.frozen),
            ..neighbours::entrances(
                &self.installation.settings,
                &self.survey,
                self.installation.has_ipv6,
            )
        });
        let mut candidates = Vec::new();
        for candidate in &self.intent.candidates {
            match self.served_version(candidate) {
                Some(version) => candidates.push(version),
                None => {
                    let App { name, file, .. } = &candidate.app;
                    given.silent.insert(name.clone(), file.clone());
                }
            }
        }
        let accepted = desired::accept(candidates, &given);
        let files = self.intent.identities();
        let owners = given.owners;
        Ok(Accepted {
            owners: owners.succeeded_by(accepted.owners, &files, self.request.now),
            ..accepted
        })
    }

    fn host(&self, frozen: &BTreeSet<AppName>) -> Result<HostFacts, ReconcileError> {
        let installation = self.installation;
        let settings = &installation.settings.nginx;
        let at = |port| neighbours::listeners(settings, &self.survey, installation.has_ipv6, port);
        let probe = installation.probe(self.request.now)?;
        Ok(HostFacts {
            http: at(settings.http_port),
            https: at(settings.https_port),
            features: installation.features(&self.survey.load_modules, &probe)?,
            thumbprint: Some(installation.account().thumbprint().to_owned()),
            challenge_files: installation.challenge_files(),
            probe,
            real_ip: installation.settings.real_ip.clone(),
            log_dir: installation.settings.log_dir.clone(),
            names_hash_bucket_size: self.names_hash_bucket_size(frozen),
        })
    }

    fn names_hash_bucket_size(&self, frozen: &BTreeSet<AppName>) -> Option<usize> {
        let vhosts = self.apps.iter().flat_map(|app| &app.vhosts);
        let accepted = vhosts.flat_map(|vhost| vhost.all_names().map(|name| &name.value));
        let served = self.active.names.iter();
        let kept: Vec<ServerName> = served
            .filter(|name| frozen.contains(name.vhost.app()))
            .filter_map(ServedName::name)
            .collect();
        let names = accepted.chain(&kept).map(ServerName::as_str);
        let settings = &self.installation.settings.nginx;
        neighbours::names_hash_bucket_size(&self.survey, settings, names)
    }

    fn draft(&self, state: &DesiredState, frozen: &BTreeSet<AppName>) -> Manifest {
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
        for name in self.apps.iter().map(|app| &app.name).chain(frozen) {
            if let Some(source) = self.source(name) {
                manifest.apps.insert(name.clone(), source);
            }
        }
        manifest.names = self.served_names(state);
        manifest.certificates = version_directories(state);
        let vhosts = state.vhosts.iter();
        manifest.logs = vhosts
            .map(|vhost| state.host.access_log(&vhost.spec.name))
            .collect();
        if !frozen.is_empty() {
            self.keep_frozen(&mut manifest, frozen);
        }
        manifest
    }

    fn served_names(&self, state: &DesiredState) -> Vec<ServedName> {
        let mut names = Vec::new();
        for vhost in &state.vhosts {
            let served = match &vhost.tls {
                DesiredTls::Off => Vec::new(),
                DesiredTls::On { wanted, .. } => self.inventory.served(wanted, self.request.now),
            };
            let mut leaves = served.iter().map(|stored| fingerprint(&stored.leaf));
            let (leaf, further_leaves) = (leaves.next(), leaves.collect::<Vec<_>>());
            for name in vhost.spec.all_names() {
                names.push(ServedName {
                    vhost: vhost.spec.name.clone(),
                    host: ServedName::host(&name.value),
                    leaf: leaf.clone(),
                    further_leaves: further_leaves.clone(),
                    config: self
                        .versions
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
    let vhosts = state.vhosts.iter().flat_map(|vhost| match &vhost.tls {
        DesiredTls::Off => &[],
        DesiredTls::On { files, .. } => files.as_slice(),
    });
    let mut directories: Vec<PathBuf> = vhosts
        .chain([&state.host.probe.certificate])
        .filter_map(|files| files.chain.parent().map(Path::to_path_buf))
        .collect();
    directories.sort();
    directories.dedup();
    directories
}

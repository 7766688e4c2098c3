//! P: desired state → the bytes of one generation.
//!
//! Tera does layout only. `block` holds the structs that templates see, `token` the one quoter.

pub mod audit; // P re-reads the rendered bytes: the tree that was meant, and nothing else
pub mod block; // P ServerBlock, Upstream, Location, Tls: the structs that the templates see
pub mod token; // P the one place that turns a value into an nginx token

mod template; // P the shipped templates and what may override them

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::desired::{DesiredState, DesiredTls, DesiredVhost};
use crate::vhost::{AppName, VhostName};
use audit::AuditError;
use block::{Base, VhostFile};
pub(crate) use template::{BASE, ENTRY};
use template::{SHIPPED_ENTRY, VHOST};
pub use template::{TemplateError, Templates};
use token::{Token, TokenError};

/// The files of a generation, without its number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RenderedConfig {
    /// Relative file name (`base.conf`, `vhosts/hello.conf`) → bytes. The entry, `http.conf`, is
    /// not among them: it names the generation, see [`entry`].
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// Which app each vhost file is of.
    pub apps: BTreeMap<PathBuf, AppName>,
    /// SHA-256 in hex over names and bytes; equal digests mean that nothing is to be done.
    pub digest: String,
}

impl RenderedConfig {
    /// SHA-256 of each app's file, hex: which version of the app it is.
    pub fn versions(&self) -> BTreeMap<AppName, String> {
        let version = |(path, app): (&PathBuf, &AppName)| {
            let bytes = self.files.get(path)?;
            Some((app.clone(), digest_of(bytes)))
        };
        self.apps.iter().filter_map(version).collect()
    }

    /// The same with further files of apps, which were audited when they were rendered.
    pub fn with(mut self, files: Vec<(PathBuf, AppName, Vec<u8>)>) -> Self {
        for (path, app, bytes) in files {
            self.files.insert(path.clone(), bytes);
            self.apps.insert(path, app);
        }
        self.digest = digest(&self.files);
        self
    }

    /// The files of all apps, and of `apps` alone.
    pub fn only(&self, apps: &[&AppName]) -> Self {
        let files = self.files.iter().filter(|(path, _)| {
            let app = self.apps.get(*path);
            app.is_none_or(|app| apps.contains(&app))
        });
        Self {
            files: files
                .map(|(path, bytes)| (path.clone(), bytes.clone()))
                .collect(),
            apps: self.apps.clone(),
            digest: String::new(),
        }
    }
}

/// Why there are no files. Retrying is useless until the vhost, the settings or a template change.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The rendered bytes are not what was meant; nothing of it may reach nginx.
    #[error("render {}: {source}", file.display())]
    Audit {
        file: PathBuf,
        app: Option<AppName>,
        #[source]
        source: Box<AuditError>,
    },
    #[error("render the entry: {} would be a pattern for nginx's include", .0.display())]
    Pattern(PathBuf),
    #[error("render {}: {source}", file.display())]
    Template {
        file: PathBuf,
        app: Option<AppName>,
        #[source]
        source: Box<TemplateError>,
    },
    #[error("render {}: {source}", file.display())]
    Token {
        file: PathBuf,
        app: Option<AppName>,
        #[source]
        source: TokenError,
    },
    /// An inconsistent [`DesiredState`].
    #[error("render {}: it has TLS, but nothing listens for HTTPS", .0)]
    WithoutListener(VhostName),
}

impl RenderError {
    /// The app without which the rest would render.
    pub fn app(&self) -> Option<&AppName> {
        match self {
            Self::Audit { app, .. } | Self::Template { app, .. } | Self::Token { app, .. } => {
                app.as_ref()
            }
            Self::WithoutListener(vhost) => Some(vhost.app()),
            Self::Pattern(_) => None,
        }
    }
}

/// The files of the generation that serves `desired`. Equal inputs give equal bytes, and an app's
/// file depends on that app and the host alone.
pub fn render(
    desired: &DesiredState,
    templates: &Templates,
) -> Result<RenderedConfig, RenderError> {
    let mut files = BTreeMap::new();
    let mut apps = BTreeMap::new();
    files.insert(PathBuf::from(BASE), base_file(desired, templates)?);
    for (app, vhosts) in by_app(&desired.vhosts) {
        let file = PathBuf::from(format!("vhosts/{}.conf", app.as_str()));
        let place = Place {
            file: &file,
            app: Some(app),
        };
        let bytes = vhost_file(desired, place, &vhosts, templates)?;
        files.insert(file.clone(), bytes);
        apps.insert(file, app.clone());
    }
    let digest = digest(&files);
    Ok(RenderedConfig {
        files,
        apps,
        digest,
    })
}

/// `http.conf` of generation `number`, whose files are in `directory` (absolute): the number that
/// the probe answers, then one literal include per file. Never a pattern: nginx accepts one that
/// matches nothing, and would drop every site.
pub fn entry(
    rendered: &RenderedConfig,
    number: u64,
    directory: &Path,
) -> Result<Vec<u8>, RenderError> {
    #[derive(Serialize)]
    struct Entry {
        generation: Token,
        files: Vec<Token>,
    }
    let place = Place {
        file: Path::new(ENTRY),
        app: None,
    };
    let paths: Vec<PathBuf> = rendered
        .files
        .keys()
        .map(|name| directory.join(name))
        .collect();
    let is_pattern = |path: &&PathBuf| path.to_string_lossy().contains(['*', '?', '[']);
    if let Some(pattern) = paths.iter().find(is_pattern) {
        return Err(RenderError::Pattern(pattern.clone()));
    }
    let entry = Entry {
        generation: Token::literal(&number.to_string()).map_err(|error| place.token(error))?,
        files: paths
            .iter()
            .map(|path| block::path_token(path))
            .collect::<Result<_, _>>()
            .map_err(|error| place.token(error))?,
    };
    let bytes = template::entry(&entry).map_err(|error| place.template(error))?;
    audit::entry(&bytes, &entry.generation, &entry.files, SHIPPED_ENTRY)
        .map_err(|error| place.audit(error))?;
    Ok(bytes)
}

fn base_file(desired: &DesiredState, templates: &Templates) -> Result<Vec<u8>, RenderError> {
    let place = Place {
        file: Path::new(BASE),
        app: None,
    };
    let base = Base::new(desired).map_err(|error| place.token(error))?;
    let bytes = templates
        .fill(BASE, &base)
        .map_err(|error| place.template(error))?;
    audit::base_file(&bytes, &base, templates.text(BASE)).map_err(|error| place.audit(error))?;
    Ok(bytes)
}

fn vhost_file(
    desired: &DesiredState,
    place: Place<'_>,
    vhosts: &[&DesiredVhost],
    templates: &Templates,
) -> Result<Vec<u8>, RenderError> {
    for vhost in vhosts {
        if matches!(vhost.tls, DesiredTls::On { .. }) && desired.host.https.is_empty() {
            return Err(RenderError::WithoutListener(vhost.spec.name.clone()));
        }
    }
    let blocks = VhostFile::new(&desired.host, vhosts).map_err(|error| place.token(error))?;
    let bytes = templates
        .fill(VHOST, &blocks)
        .map_err(|error| place.template(error))?;
    audit::vhost_file(&bytes, &blocks, templates.text(VHOST))
        .map_err(|error| place.audit(error))?;
    Ok(bytes)
}

/// What is being rendered, for errors.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a Path,
    app: Option<&'a AppName>,
}

impl Place<'_> {
    fn audit(self, source: AuditError) -> RenderError {
        RenderError::Audit {
            file: self.file.to_path_buf(),
            app: self.app.cloned(),
            source: Box::new(source),
        }
    }

    fn template(self, source: TemplateError) -> RenderError {
        RenderError::Template {
            file: self.file.to_path_buf(),
            app: self.app.cloned(),
            source: Box::new(source),
        }
    }

    fn token(self, source: TokenError) -> RenderError {
        RenderError::Token {
            file: self.file.to_path_buf(),
            app: self.app.cloned(),
            source,
        }
    }
}

/// In the order of the vhosts' names within an app, whatever the order of `vhosts`.
fn by_app(vhosts: &[DesiredVhost]) -> BTreeMap<&AppName, Vec<&DesiredVhost>> {
    let mut apps: BTreeMap<&AppName, Vec<&DesiredVhost>> = BTreeMap::new();
    for vhost in vhosts {
        apps.entry(vhost.spec.name.app()).or_default().push(vhost);
    }
    for vhosts in apps.values_mut() {
        vhosts.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    }
    apps
}

/// Lengths are part of it, so that no two sets of files read as the same bytes.
pub(crate) fn digest(files: &BTreeMap<PathBuf, Vec<u8>>) -> String {
    let mut hasher = Sha256::new();
    for (name, bytes) in files {
        for part in [name.as_os_str().as_encoded_bytes(), bytes.as_slice()] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
    hex(&hasher.finalize())
}

/// SHA-256 of one file, in hex.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;

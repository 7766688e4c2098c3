//! P: what `nginx -V` tells.

use std::path::{Path, PathBuf};

/// Paths that `nginx -V` shows.
#[derive(Debug)]
pub(super) struct BuiltIn {
    pub(super) prefix: PathBuf,
    pub(super) config: PathBuf,
    pub(super) pid: PathBuf,
    pub(super) error_log: PathBuf,
    /// The directives that have a path of their own: `client_body_temp_path`.
    pub(super) temp_paths: Vec<String>,
}

/// As nginx says it: `1.22.1`.
pub(super) fn version(shown: &str) -> String {
    shown
        .lines()
        .find_map(|line| line.strip_prefix("nginx version: nginx/"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("unknown")
        .to_owned()
}

impl BuiltIn {
    pub(super) fn from_v(shown: &str) -> Self {
        let prefix = argument(shown, "--prefix=").unwrap_or("/usr/local/nginx");
        let path = |flag: &str, default: &str| {
            let value = argument(shown, flag).unwrap_or(default);
            Path::new(prefix).join(value)
        };
        Self {
            prefix: prefix.into(),
            temp_paths: temp_paths(shown),
            // joined by nginx, which may be given another prefix
            config: argument(shown, "--conf-path=")
                .unwrap_or("conf/nginx.conf")
                .into(),
            pid: path("--pid-path=", "logs/nginx.pid"),
            // Debian builds with `stderr` here, which is no file
            error_log: match argument(shown, "--error-log-path=") {
                Some("stderr") => PathBuf::from("stderr"),
                _ => path("--error-log-path=", "logs/error.log"),
            },
        }
    }
}

/// `--http-client-body-temp-path=…` → `client_body_temp_path`.
fn temp_paths(shown: &str) -> Vec<String> {
    let names = shown.split_whitespace().filter_map(|word| {
        let name = word.strip_prefix("--http-")?.split_once("-temp-path=")?.0;
        Some(format!("{}_temp_path", name.replace('-', "_")))
    });
    names.collect()
}

fn argument<'a>(shown: &'a str, flag: &str) -> Option<&'a str> {
    let (_, rest) = shown.split_once(flag)?;
    rest.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_built_in_paths_are_read() {
        let shown = "nginx version: nginx/1.22.1 (Debian)\nconfigure arguments: --prefix=/usr/share/nginx \
             --conf-path=/etc/nginx/nginx.conf --error-log-path=stderr --pid-path=/run/nginx.pid --x";
        let built = BuiltIn::from_v(shown);
        assert_eq!(version(shown), "1.22.1");
        assert_eq!(built.pid, Path::new("/run/nginx.pid"));
        assert_eq!(built.config, Path::new("/etc/nginx/nginx.conf"));
        assert!(!built.error_log.is_absolute());
    }
}

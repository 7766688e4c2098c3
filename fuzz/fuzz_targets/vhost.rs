//! Any text is refused as a vhost file, or rendered into what the audit takes for what was meant.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vhostd::certificate::{Identifier, Issuer, WantedCertificate};
use vhostd::desired::{
    CertificateFiles, DesiredState, DesiredTls, DesiredVhost, Features, HostFacts, Listener, Probe,
};
use vhostd::render::{Templates, render};
use vhostd::vhost::parse::parse;
use vhostd::vhost::{App, AppName, TlsMode, VhostSpec};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let app: AppName = "fuzz".parse().expect("a name");
    match parse(
        &app,
        Path::new("f"),
        text,
        &[PathBuf::from("/srv")],
        &TlsMode::Internal.into(),
    ) {
        Ok(app) => {
            let state = desired(&app);
            let rendered = render(&state, &TEMPLATES).expect("what is accepted can be rendered");
            let file = &rendered.files[Path::new("vhosts/fuzz.conf")];
            assert!(
                !file
                    .iter()
                    .any(|byte| byte.is_ascii_control() && *byte != b'\n')
            );
        }
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            for it in diagnostics {
                let said = format!("{it} {:?}", it.hint.as_deref().unwrap_or_default());
                assert!(!said.contains(char::is_control), "{said:?}");
                assert!(it.at.is_none_or(|at| at.offset <= text.len()), "{said}");
            }
        }
    }
});

static TEMPLATES: LazyLock<Templates> =
    LazyLock::new(|| Templates::shipped().expect("the shipped templates"));

/// A part of the root's path.
fn parent(spec: &VhostSpec) -> Option<PathBuf> {
    let parent = spec.root.as_ref()?.as_path().parent()?;
    Some(parent.to_path_buf())
}

fn desired(app: &App) -> DesiredState {
    let vhost = |spec: &VhostSpec| DesiredVhost {
        spec: spec.clone(),
        links_checked_below: parent(spec),
        tls: match spec.tls.mode {
            Some(TlsMode::Off) => DesiredTls::Off,
            _ => DesiredTls::On {
                wanted: vec![wanted(spec)],
                files: vec![files()],
                covered: wanted(spec).identifiers,
                trusted: true,
                uncovered: Vec::new(),
            },
        },
    };
    let listener = |port| Listener {
        address: ([0, 0, 0, 0], port).into(),
        default_server: true,
        http2: true,
    };
    DesiredState {
        kept: Vec::new(),
        vhosts: app.vhosts.iter().map(vhost).collect(),
        host: HostFacts {
            http: vec![listener(80)],
            https: vec![listener(443)],
            features: Features::default(),
            thumbprint: Some("thumbprint".into()),
            challenge_files: None,
            probe: Probe {
                secret: "c2VjcmV0".into(),
                certificate: files(),
            },
            real_ip: None,
            log_dir: "/var/log/nginx".into(),
            names_hash_bucket_size: None,
        },
    }
}

fn wanted(spec: &VhostSpec) -> WantedCertificate {
    let names = spec.all_names().map(|name| name.value.to_identifier());
    let identifiers: Vec<Identifier> = names.collect();
    WantedCertificate::new(identifiers, Issuer::Internal).expect("at least one name")
}

fn files() -> CertificateFiles {
    CertificateFiles {
        chain: "/certificates/f/1/fullchain.pem".into(),
        key: "/certificates/f/1/privkey.pem".into(),
    }
}

//! P: what the admin is to know or to change about the hand-written files beside vhostd's.

use std::net::SocketAddr;

use super::{
    HASH_BUCKET_SIZE, default_site, listeners, names_hash_bucket_size, patterns, without_http2,
};
use crate::desired::Listener;
use crate::generation::manifest::{Manifest, ServedName};
use crate::nginx::dump::Survey;
use crate::settings::{DefaultServer, NginxSettings};
use crate::vhost::ServerName;

/// About the hand-written files beside the vhosts of `served`. `http2_in_listen`: this nginx has `http2`
/// as a parameter of `listen` alone.
pub fn of(
    settings: &NginxSettings,
    survey: &Survey,
    served: &Manifest,
    http2_in_listen: bool,
) -> Vec<String> {
    let names: Vec<ServerName> = served.names.iter().filter_map(ServedName::name).collect();
    let size = names_hash_bucket_size(survey, settings, names.iter().map(ServerName::as_str));
    let sockets = served.http.iter().chain(&served.https);
    let displaced = sockets.filter_map(|socket| displaced(settings, survey, *socket));
    let https = served.https.iter().filter(|_| http2_in_listen);
    let without = https.filter_map(|socket| no_http2(survey, *socket));
    let unreadable = survey.unreadable.iter().map(|(path, why)| {
        format!(
            "{} cannot be read as nginx reads it ({why}): names that it has are not protected from vhost files",
            path.display()
        )
    });
    let unknown = patterns(survey, settings).filter_map(Result::err);
    let size = size.map(|size| hash_bucket_size(size, settings));
    size.into_iter()
        .chain(displaced)
        .chain(without)
        .chain(unreadable)
        .chain(unknown)
        .collect()
}

/// certbot's nginx plugin looks for the directive in nginx's main file alone, and adds one of its own
/// there (certbot#5199).
pub fn hash_bucket_size(size: usize, settings: &NginxSettings) -> String {
    let main = settings.config.display();
    format!(
        "a server name is longer than nginx's default `{HASH_BUCKET_SIZE}` holds, so vhostd sets it, which makes \
         `certbot --nginx` fail: put `{HASH_BUCKET_SIZE} {size};` into `http {{ }}` of {main}, and vhostd's \
         own goes"
    )
}

/// A hand-written site that got the unknown names of `socket` by being the first, and does not any more.
pub fn displaced(settings: &NginxSettings, survey: &Survey, socket: SocketAddr) -> Option<String> {
    let site = default_site(survey, socket).filter(|site| !site.stays())?;
    let (file, line) = survey.include.as_ref()?;
    (settings.default_server != DefaultServer::On).then(|| {
        format!(
            "{} got the requests for unknown names at {socket} by being the first, and nginx now reads \
             vhostd's line before it, at {}:{line}: add `default_server` to its `listen`, or move the line behind \
             it (with `nginx.include: auto`, `vhostd setup --undo` and `vhostd setup`)",
            site.place,
            file.display()
        )
    })
}

/// Why vhosts have no HTTP/2 at `socket`.
pub fn no_http2(survey: &Survey, socket: SocketAddr) -> Option<String> {
    let place = without_http2(survey, socket)?;
    Some(format!(
        "vhosts are served without HTTP/2 at {socket}: {place} has no `http2` in its `listen`, and with this \
         nginx vhostd's would switch it on for that site, too; add it there if the site may have it"
    ))
}

/// Who gets the requests for unknown names, of each socket: `SOCKET: WHO`.
pub fn unknown_names(settings: &NginxSettings, survey: &Survey, has_ipv6: bool) -> Vec<String> {
    let ports = [settings.http_port, settings.https_port];
    let ours = ports
        .into_iter()
        .flat_map(|port| listeners(settings, survey, has_ipv6, port));
    let who = |listener: &Listener| {
        let site = default_site(survey, listener.address).filter(|site| site.stays());
        match (listener.default_server, site) {
            (false, Some(site)) if site.explicit => site.place,
            (false, Some(site)) => format!("{}, the first there", site.place),
            (true, _) | (false, None) => "vhostd, which refuses them".to_owned(),
        }
    };
    ours.map(|listener| format!("{}: {}", listener.address, who(&listener)))
        .collect()
}

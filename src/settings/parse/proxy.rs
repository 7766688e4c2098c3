//! P: `acme.proxy`.

use crate::settings::proxy::{ProxyChoice, ProxyUrl};
use crate::yaml::{self, Node, Problems, Value};

/// A URL; or `off` or nothing, which turns the environment's off. The value may have a password, so
/// no message quotes it.
pub(super) fn choice(node: Node, problems: &mut Problems) -> Option<ProxyChoice> {
    // YAML 1.1: `off` is a boolean
    if matches!(node.value, Value::Bool(false) | Value::Null) {
        return Some(ProxyChoice::Off);
    }
    let text = yaml::string(node, "the URL of a proxy, or off", problems)?;
    if ["", "off"].contains(&text.value.as_str()) {
        return Some(ProxyChoice::Off);
    }
    match ProxyUrl::parse(&text.value) {
        Ok(url) => Some(ProxyChoice::Through(url)),
        Err(error) => {
            let reason = format!("`proxy`: {error}");
            let hint = "as in http://proxy.internal:3128 or http://USER:PASSWORD@HOST:PORT, or off";
            problems.add_unshown(text.at, &reason, hint);
            None
        }
    }
}

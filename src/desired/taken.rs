//! P: names that other apps have got since an earlier text of an app was written.

use std::collections::BTreeMap;

use super::Owners;
use super::owners::overlapping;
use crate::vhost::{App, AppName, Realm, ServerName};

/// Who has which name now.
#[derive(Clone, Debug, Default)]
pub struct Taken(BTreeMap<ServerName, AppName>);

/// A name that an app does without, because it is another app's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeftOut {
    pub name: ServerName,
    pub owner: AppName,
}

impl Taken {
    /// `served`: the names that apps serve without owning them.
    pub fn new(owners: &Owners, served: impl IntoIterator<Item = (ServerName, AppName)>) -> Self {
        let owned = owners.iter().map(|(name, app)| (name.clone(), app.clone()));
        Self(served.into_iter().chain(owned).collect())
    }

    /// The app that keeps `app` from `name`: it has that name, or one above or below it.
    fn owner(&self, app: &AppName, name: &ServerName) -> Option<&AppName> {
        let (_, owner) = overlapping(&self.0, name, |owner| owner != app)?;
        Some(owner)
    }

    /// `app` without the names that are other apps'. A vhost of which no `server_name` is left goes, and
    /// with the last one the app.
    pub fn leave_out(&self, mut app: App) -> (Option<App>, Vec<LeftOut>) {
        let mut left_out = Vec::new();
        let name = app.name.clone();
        let is_free = |candidate: &ServerName| self.owner(&name, candidate).is_none();
        for vhost in &mut app.vhosts {
            left_out.extend(vhost.all_names().filter_map(|located| {
                let owner = self.owner(&name, &located.value)?.clone();
                let name = located.value.clone();
                Some(LeftOut { name, owner })
            }));
            vhost.server_names.retain(|located| is_free(&located.value));
            vhost
                .redirect_from
                .retain(|located| is_free(&located.value));
        }
        if left_out.is_empty() {
            return (Some(app), left_out);
        }
        app.vhosts.retain(|vhost| !vhost.server_names.is_empty());
        for vhost in &mut app.vhosts {
            let mut names = vhost.server_names.iter();
            if names.all(|located| located.value.is_wildcard()) {
                // a redirect needs a name that it can lead to
                vhost.redirect_from.clear();
            }
        }
        let answered: Vec<ServerName> = app
            .vhosts
            .iter()
            .flat_map(|vhost| vhost.all_names().map(|located| located.value.clone()))
            .collect();
        app.realms.retain_mut(|Realm { domains }| {
            domains.retain(|domain| answered.contains(&domain.value));
            !domains.is_empty()
        });
        ((!app.vhosts.is_empty()).then_some(app), left_out)
    }
}

#[cfg(test)]
mod tests;

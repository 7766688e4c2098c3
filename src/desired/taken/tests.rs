use super::*;
use crate::vhost::{TlsDefaults, TlsMode, parse};

fn app(text: &str) -> App {
    let (name, file) = ("old".parse().unwrap(), "old.yml".as_ref());
    let defaults = TlsDefaults::from(TlsMode::Internal);
    parse::parse(&name, file, text, &["/srv".into()], &defaults).unwrap()
}

fn taken(owned: &[(&str, &str)], served: &[(&str, &str)]) -> Taken {
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<ServerName, AppName> {
        let pair = |(name, app): &(&str, &str)| (name.parse().unwrap(), app.parse().unwrap());
        pairs.iter().map(pair).collect()
    };
    Taken::new(&Owners::from(pairs(owned)), pairs(served))
}

/// The names that are left, of each vhost, and those that were left out, with their owners.
fn left(taken: &Taken, text: &str) -> (Vec<String>, Vec<String>) {
    let (app, left_out) = taken.leave_out(app(text));
    let vhosts = app.into_iter().flat_map(|app| app.vhosts);
    let names = vhosts.map(|vhost| {
        let names = vhost.all_names().map(|name| name.value.to_string());
        names.collect::<Vec<_>>().join(" ")
    });
    let left_out = left_out
        .iter()
        .map(|it| format!("{} {}", it.name, it.owner));
    (names.collect(), left_out.collect())
}

#[test]
fn a_name_that_another_app_has_or_that_is_above_or_below_one_of_its_names_is_left_out() {
    let text = "server_name: [a.z.example, '*.b.z.example']\n\
                redirect_from: www.a.z.example\nroot: /srv/a\n";
    let all = "a.z.example *.b.z.example www.a.z.example";
    let [a, wildcard] = ["a.z.example new", "*.b.z.example new"];
    for (owned, served, names, left_out) in [
        (&[][..], &[][..], all, &[][..]),
        (&[("a.z.example", "old")], &[], all, &[]),
        // of a wildcard alone, a redirect has no name that it can lead to
        (&[("a.z.example", "new")], &[], "*.b.z.example", &[a]),
        (
            &[("x.b.z.example", "new")],
            &[],
            "a.z.example www.a.z.example",
            &[wildcard],
        ),
        (
            &[("*.z.example", "new")],
            &[],
            "",
            &[a, wildcard, "www.a.z.example new"],
        ),
        (
            &[("www.a.z.example", "new")],
            &[],
            "a.z.example *.b.z.example",
            &["www.a.z.example new"],
        ),
        (&[], &[("a.z.example", "new")], "*.b.z.example", &[a]),
        // the owner decides, whoever serves it
        (
            &[("a.z.example", "old")],
            &[("a.z.example", "new")],
            all,
            &[],
        ),
    ] {
        let (found, out) = left(&taken(owned, served), text);
        assert_eq!(found.join(" | "), names, "{owned:?} {served:?}");
        assert_eq!(out, left_out, "{owned:?} {served:?}");
    }
}

#[test]
fn a_vhost_without_a_name_is_left_out_and_so_is_an_app_without_a_vhost() {
    let text = "- {server_name: a.example, redirect_from: www.a.example, root: /srv/a}\n\
                - {server_name: b.example, root: /srv/b}\n";
    let (names, _) = left(&taken(&[("a.example", "new")], &[]), text);
    assert_eq!(names, ["b.example"]);
    let both = taken(&[("a.example", "new"), ("b.example", "new")], &[]);
    assert_eq!(both.leave_out(app(text)).0, None);
}

#[test]
fn no_certificate_is_wanted_for_a_name_that_was_left_out() {
    let text = "pki__realms: [{domains: [a.example, b.example]}]\nnginx__vhosts:\n\
                - {server_name: a.example, root: /srv/a}\n\
                - {server_name: b.example, root: /srv/b}\n";
    let (app, _) = taken(&[("a.example", "new")], &[]).leave_out(app(text));
    let app = app.unwrap();
    let domains = app.realms.iter().flat_map(|realm| &realm.domains);
    let domains: Vec<_> = domains.map(|domain| domain.value.as_str()).collect();
    assert_eq!(domains, ["b.example"]);
}

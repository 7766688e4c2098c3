//! P: the text of certbot's `renewal/NAME.conf`: what it says, and the same with renewal turned off
//! or on again.
//!
//! certbot reads it with ConfigObj, and writes it again whenever it renews: comments and the order of
//! lines survive that. `autorenew = False` below `[renewalparams]` keeps `certbot renew` from it since
//! certbot 1.3 (`RenewableCert.autorenewal_is_enabled`); `certbot certificates` lists it all the same.

/// A renewal configuration that certbot could read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RenewalConf {
    text: String,
    entries: Vec<Entry>,
    /// Index of the line `[renewalparams]`.
    header: usize,
    autorenew: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Entry {
    /// Indices of its first line and of the one after its last.
    lines: (usize, usize),
    /// Empty at the top; with all its parents below a section of a section.
    section: String,
    key: String,
    value: String,
}

/// Why it is not a renewal configuration.
#[derive(Debug, Eq, thiserror::Error, PartialEq)]
pub enum ConfError {
    #[error("`autorenew` in line {line} is neither true nor false")]
    Autorenew { line: usize },
    #[error("line {line} sets `{key}` again")]
    Duplicate { line: usize, key: String },
    #[error("it has no [renewalparams]: certbot does not renew it")]
    NoParameters,
    #[error("line {line} is neither a section nor `key = value`")]
    Syntax { line: usize },
    #[error("the quotes of line {line} have no end")]
    Unterminated { line: usize },
}

impl RenewalConf {
    pub fn parse(text: &str) -> Result<Self, ConfError> {
        let (entries, header) = entries(text)?;
        let header = header.ok_or(ConfError::NoParameters)?;
        let known = entries.iter().find(|it| it.is(PARAMETERS, AUTORENEW));
        let autorenew = match known {
            None => true,
            Some(entry) => truth(&entry.value).ok_or(ConfError::Autorenew {
                line: entry.lines.0 + 1,
            })?,
        };
        Ok(Self {
            text: text.to_owned(),
            entries,
            header,
            autorenew,
        })
    }

    /// Whether `certbot renew` renews it.
    pub fn renews(&self) -> bool {
        self.autorenew
    }

    /// Whether we have turned that off.
    pub fn is_marked(&self) -> bool {
        self.text.lines().any(|line| line.starts_with(MARK))
    }

    /// The URL of the ACME directory.
    pub fn server(&self) -> Option<&str> {
        self.value(PARAMETERS, "server")
    }

    /// A value before the first section.
    pub fn top(&self, key: &str) -> Option<&str> {
        self.value("", key)
    }

    /// What certbot runs around a renewal of this one: what kind, and the command.
    pub fn hooks(&self) -> Vec<(&'static str, &str)> {
        let kinds = [
            ("pre_hook", "pre hook"),
            ("renew_hook", "deploy hook"),
            ("deploy_hook", "deploy hook"),
            ("post_hook", "post hook"),
        ];
        let hooks = kinds.into_iter().filter_map(|(key, kind)| {
            let command = self.value(PARAMETERS, key)?;
            (!matches!(command, "" | "None")).then_some((kind, command))
        });
        hooks.collect()
    }

    /// The text with renewal turned off, and a comment that says by whom. `undo` is the command that
    /// takes it back.
    pub fn turned_off(&self, undo: &str) -> String {
        let mut lines: Vec<String> = self.lines();
        let known = self.entries.iter().find(|it| it.is(PARAMETERS, AUTORENEW));
        // a comment ends with its line
        let undo = undo.replace(char::is_control, "?");
        let mut ours = vec![format!(
            "{MARK} vhostd renews this certificate; to undo: {undo}\n"
        )];
        let (from, to) = known.map_or((self.header + 1, self.header + 1), |entry| entry.lines);
        let before = lines[from..to].iter();
        let before = before.map(|line| line.strip_suffix('\n').unwrap_or(line));
        ours.extend(before.map(|line| format!("{MARK}{WAS}{line}\n")));
        ours.push(format!("{AUTORENEW} = False\n"));
        lines.splice(from..to, ours);
        lines.concat()
    }

    /// The text as it was before [`RenewalConf::turned_off`], whatever certbot changed of it since;
    /// `None`: we have not turned it off.
    pub fn turned_on(&self) -> Option<String> {
        if !self.is_marked() {
            return None;
        }
        let off = self.entries.iter().find(|it| it.is(PARAMETERS, AUTORENEW));
        let is_off = |at: usize| off.is_some_and(|it| (it.lines.0..it.lines.1).contains(&at));
        let lines = self.lines().into_iter().enumerate();
        let kept = lines.filter_map(|(at, line)| match line.strip_prefix(MARK) {
            Some(ours) => ours.strip_prefix(WAS).map(str::to_owned),
            None => (!is_off(at)).then_some(line),
        });
        Some(kept.collect())
    }

    fn value(&self, section: &str, key: &str) -> Option<&str> {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.is(section, key))?;
        Some(&entry.value)
    }

    /// Each with its end.
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.text.split_inclusive('\n').map(str::to_owned).collect();
        if let Some(last) = lines.last_mut().filter(|last| !last.ends_with('\n')) {
            last.push('\n');
        }
        lines
    }
}

impl Entry {
    fn is(&self, section: &str, key: &str) -> bool {
        self.section == section && self.key == key
    }
}

/// And where `[renewalparams]` is.
fn entries(text: &str) -> Result<(Vec<Entry>, Option<usize>), ConfError> {
    let lines: Vec<&str> = text.lines().collect();
    let (mut entries, mut header) = (Vec::<Entry>::new(), None);
    let mut path: Vec<&str> = Vec::new();
    let mut at = 0;
    while let Some(line) = lines.get(at).map(|line| line.trim()) {
        let number = at + 1;
        let mut end = at + 1;
        if line.starts_with('[') {
            let (depth, name) = section(line).ok_or(ConfError::Syntax { line: number })?;
            path.truncate(depth - 1);
            path.push(name);
            if path == [PARAMETERS] {
                header = header.or(Some(at));
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            let (key, written) = line
                .split_once('=')
                .ok_or(ConfError::Syntax { line: number })?;
            let (value, further) = value(written.trim(), &lines[at + 1..])
                .ok_or(ConfError::Unterminated { line: number })?;
            end += further;
            let key = unquoted(key.trim()).unwrap_or(key.trim()).to_owned();
            let section = path.join("/");
            if entries.iter().any(|entry| entry.is(&section, &key)) {
                return Err(ConfError::Duplicate { line: number, key });
            }
            entries.push(Entry {
                lines: (at, end),
                section,
                key,
                value,
            });
        }
        at = end;
    }
    Ok((entries, header))
}

/// How deep, and its name.
fn section(line: &str) -> Option<(usize, &str)> {
    let depth = line.chars().take_while(|c| *c == '[').count();
    let (name, _) = line[depth..].split_once(']')?;
    let name = name.trim();
    Some((depth, unquoted(name).unwrap_or(name)))
}

/// And how many of the lines after it belong to it. `None`: it has no end.
fn value(written: &str, after: &[&str]) -> Option<(String, usize)> {
    for quotes in ["\"\"\"", "'''"] {
        let Some(begin) = written.strip_prefix(quotes) else {
            continue;
        };
        if let Some((value, _)) = begin.split_once(quotes) {
            return Some((value.to_owned(), 0));
        }
        let mut value = begin.to_owned();
        for (index, line) in after.iter().enumerate() {
            value.push('\n');
            if let Some((end, _)) = line.split_once(quotes) {
                return Some((value + end, index + 1));
            }
            value.push_str(line);
        }
        return None;
    }
    if written.starts_with(['"', '\'']) {
        return Some((unquoted(written)?.to_owned(), 0));
    }
    let value = written.split('#').next().unwrap_or_default();
    Some((value.trim_end().to_owned(), 0))
}

/// What stands between the quotes at the beginning.
fn unquoted(written: &str) -> Option<&str> {
    let quote = written.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (inside, _) = written[1..].split_once(quote)?;
    Some(inside)
}

/// As ConfigObj's `as_bool`.
fn truth(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

const AUTORENEW: &str = "autorenew";
const MARK: &str = "# vhostd adopt:";
const PARAMETERS: &str = "renewalparams";
const WAS: &str = " was: ";

#[cfg(test)]
mod tests {
    use super::*;

    /// As certbot 2.1 of Debian 12 writes it.
    const TEXT: &str = "\
# renew_before_expiry = 30 days
version = 2.1.0
archive_dir = /etc/letsencrypt/archive/a.example
fullchain = /etc/letsencrypt/live/a.example/fullchain.pem

# Options used in the renewal process
[renewalparams]
account = 6b52e1eaa6d500e304a3eb8b4fc4fbbf
renew_hook = systemctl reload nginx # and more
pre_hook = \"echo '#1'\"
post_hook = '''first
second # no comment'''
server = https://acme-v02.api.letsencrypt.org/directory
authenticator = webroot
[[webroot_map]]
server = /var/www
";

    fn conf(text: &str) -> RenewalConf {
        RenewalConf::parse(text).unwrap()
    }

    #[test]
    fn what_certbot_wrote_is_read() {
        let conf = conf(TEXT);
        assert!(conf.renews() && !conf.is_marked());
        let server = "https://acme-v02.api.letsencrypt.org/directory";
        assert_eq!(conf.server(), Some(server));
        let archive = "/etc/letsencrypt/archive/a.example";
        assert_eq!(conf.top("archive_dir"), Some(archive));
        let hooks = [
            ("pre hook", "echo '#1'"),
            ("deploy hook", "systemctl reload nginx"),
            ("post hook", "first\nsecond # no comment"),
        ];
        assert_eq!(conf.hooks(), hooks);
    }

    #[test]
    fn renewal_is_turned_off_and_on_again_to_the_byte() {
        for before in [
            "",
            "autorenew = True\n",
            "\"autorenew\" = yes  # please\n",
            "autorenew = on \t \n",
            "autorenew = True\r\n",
        ] {
            let text = TEXT.replace("authenticator", &format!("{before}authenticator"));
            let off = conf(&text).turned_off("vhostd adopt --undo a.example");
            let parsed = conf(&off);
            assert!(!parsed.renews() && parsed.is_marked(), "{off}");
            assert!(off.contains("vhostd adopt --undo a.example\n"), "{off}");
            assert_eq!(parsed.hooks(), conf(&text).hooks());
            assert_eq!(parsed.turned_on().unwrap(), text);
        }
    }

    #[test]
    fn what_is_in_a_path_adds_no_line() {
        let off = conf(TEXT).turned_off("vhostd adopt --undo 'a\nserver = x'");
        assert_eq!(off.lines().count(), TEXT.lines().count() + 2);
        assert_eq!(conf(&off).turned_on().unwrap(), TEXT);
    }

    #[test]
    fn what_certbot_changed_meanwhile_stays_when_renewal_is_turned_on() {
        let off = conf(TEXT).turned_off("undo").replace("2.1.0", "4.0.0");
        let on = conf(&off).turned_on().unwrap();
        assert_eq!(on, TEXT.replace("2.1.0", "4.0.0"));
    }

    #[test]
    fn what_somebody_else_turned_off_is_not_ours_to_turn_on() {
        let text = TEXT.replace("authenticator", "autorenew = False\nauthenticator");
        let conf = conf(&text);
        assert!(!conf.renews());
        assert_eq!(conf.turned_on(), None);
    }

    #[test]
    fn what_certbot_could_not_read_is_an_error_with_its_line() {
        let error = |text: &str| RenewalConf::parse(text).unwrap_err();
        let syntax = ConfError::Syntax { line: 2 };
        assert_eq!(error("a = b\nwords\n[renewalparams]\n"), syntax);
        assert_eq!(error("a = b\n"), ConfError::NoParameters);
        let open = ConfError::Unterminated { line: 1 };
        assert_eq!(error("a = '''b\n[renewalparams]\n"), open);
        assert_eq!(error("a = 'b\n[renewalparams]\n"), open);
        let maybe = ConfError::Autorenew { line: 2 };
        assert_eq!(error("[renewalparams]\nautorenew = maybe\n"), maybe);
        let key = "a".to_owned();
        let again = ConfError::Duplicate { line: 2, key };
        assert_eq!(error("a = b\na = c\n[renewalparams]\n"), again);
        assert_eq!(error("[renewalparams\n"), ConfError::Syntax { line: 1 });
    }

    #[test]
    fn a_last_line_without_an_end_gets_one() {
        let off = conf("[renewalparams]").turned_off("undo");
        assert!(off.starts_with("[renewalparams]\n# vhostd"), "{off}");
        assert!(off.ends_with("autorenew = False\n"), "{off}");
    }
}

//! Every form of PEM is given to plain nginx and to vhostd: what nginx takes is taken.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rustls::pki_types::CertificateDer;

use super::super::support::app::App;
use super::super::support::client::{self, Trust};
use super::super::support::host::Host;
use super::{Authority, der};

/// What both say.
#[derive(Clone, Copy)]
enum Expected {
    /// The served chain has so many certificates.
    Taken(usize),
    /// vhostd says these words.
    Refused(&'static str),
    /// nginx takes it, and no browser; vhostd says these words.
    Useless(&'static str),
}
use Expected::{Refused, Taken, Useless};

struct Form {
    what: &'static str,
    chain: Vec<u8>,
    key: Vec<u8>,
    expected: Expected,
}

struct Material {
    leaf: String,
    key: String,
    ca: String,
    other: String,
    other_key: String,
}

impl Material {
    fn new() -> Self {
        let ca = Authority::new();
        let [pair, other] = ["*.example.com", "other.example.org"].map(|it| ca.pair(&[it], 90));
        Self {
            leaf: pair.leaf,
            key: pair.key,
            ca: ca.pem,
            other: other.leaf,
            other_key: other.key,
        }
    }
}

/// What it writes to its standard output.
fn openssl(arguments: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments}");
    output.stdout
}

fn cat<const N: usize>(parts: [&[u8]; N]) -> Vec<u8> {
    parts.concat()
}

fn lines(pem: &str, edit: impl Fn(usize, &str) -> String) -> Vec<u8> {
    let all = pem.lines().enumerate();
    let edited: String = all.map(|(nth, line)| edit(nth, line)).collect();
    edited.into_bytes()
}

fn base64_in_one_line(pem: &str) -> Vec<u8> {
    lines(pem, |_, line| match line.starts_with("-----") {
        true if line.contains("END") => format!("\n{line}\n"),
        true => format!("{line}\n"),
        false => line.to_owned(),
    })
}

fn chains(it: &Material) -> Vec<(&'static str, Vec<u8>, Expected)> {
    let (leaf, ca, key) = (it.leaf.as_bytes(), it.ca.as_bytes(), it.key.as_bytes());
    let dh: &[u8] = DH_PARAMETERS.as_bytes();
    let request = openssl("req -new -key /dev/stdin -subj /CN=a", key);
    let blank_in_the_body = |pem: &str| {
        lines(pem, |nth, line| {
            format!("{line}\n{}", if nth == 3 { "\n" } else { "" })
        })
    };
    vec![
        ("leaf alone", cat([leaf]), Taken(1)),
        ("leaf and issuer", cat([leaf, ca]), Taken(2)),
        ("issuer twice", cat([leaf, ca, ca]), Taken(2)),
        ("leaf twice", cat([leaf, leaf, ca]), Taken(2)),
        (
            "a stranger in between",
            cat([leaf, it.other.as_bytes(), ca]),
            Taken(3),
        ),
        ("DH PARAMETERS first", cat([dh, leaf, ca]), Taken(2)),
        ("DH PARAMETERS between", cat([leaf, dh, ca]), Taken(2)),
        ("DH PARAMETERS last", cat([leaf, ca, dh]), Taken(2)),
        ("a request first", cat([&request, leaf, ca]), Taken(2)),
        ("key, leaf, issuer", cat([key, leaf, ca]), Taken(2)),
        ("leaf, key, issuer", cat([leaf, key, ca]), Taken(2)),
        ("leaf, issuer, key", cat([leaf, ca, key]), Taken(2)),
        ("byte order mark", cat([b"\xef\xbb\xbf", leaf]), Taken(1)),
        (
            "CRLF",
            lines(&it.leaf, |_, line| format!("{line}\r\n")),
            Taken(1),
        ),
        (
            "white space at the ends",
            lines(&it.leaf, |_, line| format!("{line} \t\n")),
            Taken(1),
        ),
        (
            "no line feed at the end",
            it.leaf.trim_end().into(),
            Taken(1),
        ),
        ("base64 in one line", base64_in_one_line(&it.leaf), Taken(1)),
        (
            "Latin-1 and zero bytes between",
            cat([leaf, b"caf\xe9 \0\n", ca]),
            Taken(2),
        ),
        ("-text", openssl("x509 -text", leaf), Taken(1)),
        ("-trustout", openssl("x509 -trustout", leaf), Taken(1)),
        (
            "bag attributes",
            cat([
                b"Bag Attributes\n  friendlyName: b\xc3\xbccher\nsubject=CN = x\n",
                leaf,
            ]),
            Taken(1),
        ),
        (
            "an old label",
            it.leaf.replace("CERT", "X509 CERT").into(),
            Taken(1),
        ),
        (
            "issuer first",
            cat([ca, leaf]),
            Refused("the key is that of certificate 2"),
        ),
        (
            "empty",
            Vec::new(),
            Refused("no certificate in PEM: it is empty"),
        ),
        (
            "DER",
            openssl("x509 -outform DER", leaf),
            Refused("convert it with `openssl x509`"),
        ),
        (
            "key alone",
            cat([key]),
            Refused("no certificate in PEM: only PRIVATE KEY"),
        ),
        (
            "PKCS #7",
            openssl("crl2pkcs7 -nocrl -certfile /dev/stdin", leaf),
            Refused("only PKCS7"),
        ),
        (
            "indented",
            lines(&it.leaf, |_, line| format!("  {line}\n")),
            Refused("no line begins with -----BEGIN"),
        ),
        (
            "cut off",
            cat([leaf, &ca[..ca.len() / 2]]),
            Refused("block 2 of the file"),
        ),
        (
            "an empty line in the base64",
            blank_in_the_body(&it.leaf),
            Refused("block 1 of the file"),
        ),
        (
            "no line feed between",
            cat([it.leaf.trim_end().as_bytes(), ca]),
            Refused("block 1 of the file"),
        ),
    ]
}

fn keys(it: &Material) -> Vec<(&'static str, Vec<u8>, Expected)> {
    let (leaf, key, other) = (
        it.leaf.as_bytes(),
        it.key.as_bytes(),
        it.other_key.as_bytes(),
    );
    let sec_1 = openssl("ec", key);
    let ec = openssl("ecparam -name prime256v1", b"");
    vec![
        ("SEC 1", sec_1.clone(), Taken(1)),
        ("EC PARAMETERS first", cat([&ec, &sec_1]), Taken(1)),
        ("EC PARAMETERS last", cat([&sec_1, &ec]), Taken(1)),
        (
            "DH PARAMETERS before the key",
            cat([DH_PARAMETERS.as_bytes(), key]),
            Taken(1),
        ),
        ("certificate before the key", cat([leaf, key]), Taken(1)),
        (
            "public key before the key",
            cat([&openssl("pkey -pubout", key), key]),
            Taken(1),
        ),
        ("another key behind", cat([key, other]), Taken(1)),
        (
            "byte order mark before the key",
            cat([b"\xef\xbb\xbf", key]),
            Taken(1),
        ),
        (
            "key with CRLF",
            lines(&it.key, |_, line| format!("{line}\r\n")),
            Taken(1),
        ),
        ("key in one line", base64_in_one_line(&it.key), Taken(1)),
        (
            "attributes of a key",
            cat([
                b"Bag Attributes\n  x: y\nKey Attributes: <No Attributes>\n",
                key,
            ]),
            Taken(1),
        ),
        (
            "another key first",
            cat([other, key]),
            Refused("not a pair"),
        ),
        (
            "with a passphrase",
            openssl("pkcs8 -topk8 -passout pass:x", key),
            Refused("its private key has a passphrase"),
        ),
        (
            "with a passphrase, as of old",
            openssl("ec -aes128 -passout pass:x", key),
            Refused("its private key has a passphrase"),
        ),
        (
            "no key",
            cat([leaf]),
            Refused("no private key in PEM: only CERTIFICATE"),
        ),
        (
            "public key alone",
            openssl("pkey -pubout", key),
            Refused("only PUBLIC KEY"),
        ),
        (
            "key in DER",
            openssl("pkey -outform DER", key),
            Refused("convert it with"),
        ),
        (
            "key cut off",
            key[..key.len() / 2].into(),
            Refused("its private key is cut off"),
        ),
    ]
}

fn self_signed(key: &[u8], arguments: &str) -> Vec<u8> {
    openssl(&format!("req -x509 -key /dev/stdin {arguments}"), key)
}

/// Self-signed, with keys of every kind.
fn kinds_of_keys() -> Vec<(&'static str, Vec<u8>, Vec<u8>, Expected)> {
    let rare = Useless("browsers do not know its kind of key");
    let of = |(what, command, expected): (&'static str, &str, Expected)| {
        let key = openssl(command, b"");
        (what, self_signed(&key, USUAL), key, expected)
    };
    let kinds = [
        ("RSA", RSA, Taken(1)),
        ("Ed25519", "genpkey -algorithm ed25519", Taken(1)),
        ("P-384", "ecparam -name secp384r1 -genkey -noout", Taken(1)),
        ("P-521", "ecparam -name secp521r1 -genkey -noout", Taken(1)),
        (
            "RSA-PSS",
            "genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048",
            rare,
        ),
        ("Ed448", "genpkey -algorithm ed448", rare),
        ("secp256k1", "ecparam -name secp256k1 -genkey -noout", rare),
        (
            "a curve by its parameters",
            "ecparam -name prime256v1 -genkey -noout -param_enc explicit",
            rare,
        ),
        (
            "1024 bits",
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024",
            Refused("fewer than 2048 bits"),
        ),
    ];
    kinds.map(of).into()
}

/// Self-signed, with one key.
fn kinds_of_leaves() -> Vec<(&'static str, Vec<u8>, Vec<u8>, Expected)> {
    let key = openssl(RSA, b"");
    let pkcs_1 = openssl("rsa -traditional", &key);
    let usual = self_signed(&key, USUAL);
    let ec = openssl(
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        b"",
    );
    let text = String::from_utf8(ec.clone()).unwrap();
    let mislabelled = text.replace("PRIVATE KEY", "RSA PRIVATE KEY").into_bytes();
    let words = Refused("cannot load certificate key its key");
    let mut kinds = vec![
        // nginx does not compare keys of two kinds
        (
            "a key of another kind",
            usual.clone(),
            ec.clone(),
            Useless("not a pair"),
        ),
        ("PKCS #1", usual, pkcs_1, Taken(1)),
        ("a wrong label", self_signed(&ec, USUAL), mislabelled, words),
    ];
    for (what, arguments) in [
        (
            "1 day",
            "-subj /CN=x -days 1 -addext subjectAltName=DNS:*.example.com",
        ),
        (
            "15 years",
            "-subj /CN=x -days 5475 -addext subjectAltName=DNS:*.example.com",
        ),
        (
            "1000 years",
            "-subj /CN=x -days 365000 -addext subjectAltName=DNS:*.example.com",
        ),
        (
            "for clients only",
            "-subj /CN=x -days 90 -addext subjectAltName=DNS:*.example.com -addext extendedKeyUsage=clientAuth",
        ),
        (
            "further kinds of names",
            "-subj /CN=x -days 90 -addext subjectAltName=DNS:*.example.com,email:x@example.com,URI:http://x/",
        ),
        ("no alternative name", "-subj /CN=*.example.com -days 90"),
    ] {
        kinds.push((what, self_signed(&key, arguments), key.clone(), Taken(1)));
    }
    kinds
}

fn forms() -> Vec<Form> {
    let it = Material::new();
    let (leaf, key) = (it.leaf.as_bytes(), it.key.as_bytes());
    let form = |(what, chain, key, expected)| Form {
        what,
        chain,
        key,
        expected,
    };
    let of_chain = |(what, chain, expected)| form((what, chain, key.to_vec(), expected));
    let of_key = |(what, key, expected)| form((what, leaf.to_vec(), key, expected));
    let mut forms: Vec<Form> = chains(&it).into_iter().map(of_chain).collect();
    forms.extend(keys(&it).into_iter().map(of_key));
    forms.extend(
        kinds_of_keys()
            .into_iter()
            .chain(kinds_of_leaves())
            .map(form),
    );
    let ca = it.ca.as_bytes();
    for (what, file) in [
        ("one file, key first", cat([key, leaf, ca])),
        ("one file, key last", cat([leaf, ca, key])),
        (
            "one file of all that HAProxy takes",
            cat([leaf, ca, key, DH_PARAMETERS.as_bytes()]),
        ),
    ] {
        forms.push(form((what, file.clone(), file, Taken(2))));
    }
    forms
}

/// Whether nginx takes the files as they are.
fn plain_nginx_takes(host: &Host, chain: &Path, key: &Path) -> bool {
    let (config, pid) = (host.path("plain.conf"), host.path("plain.pid"));
    let text = format!(
        "pid {}; error_log stderr; events {{}}\nhttp {{ access_log off; server {{ listen unix:{} ssl;\n\
         ssl_certificate {}; ssl_certificate_key {}; }} }}\n",
        pid.display(),
        host.path("plain.sock").display(),
        chain.display(),
        key.display()
    );
    fs::write(&config, text).unwrap();
    let mut test = Command::new(host.nginx.binary());
    let tested = test.arg("-t").arg("-c").arg(&config).output().unwrap();
    tested.status.success()
}

#[test]
fn what_nginx_takes_of_files_is_taken_and_what_it_refuses_is_refused_in_words() {
    let (host, app) = (super::host(), App::start());
    let forms = forms();
    let name = |nth: usize| format!("f{nth}.example.com");
    let mut odd = Vec::new();
    for (nth, form) in forms.iter().enumerate() {
        let [chain, key] = ["chain", "key"].map(|it| host.path(&format!("{it}{nth}.pem")));
        fs::write(&chain, &form.chain).unwrap();
        fs::write(&key, &form.key).unwrap();
        let vhost = super::vhost(&app, &chain, &key).replace(super::HELLO, &name(nth));
        host.drop_file(&format!("f{nth}.yml"), &vhost);
        if plain_nginx_takes(&host, &chain, &key) != !matches!(form.expected, Refused(_)) {
            odd.push(format!("{}: plain nginx says otherwise", form.what));
        }
    }
    host.reload_ends(0, "activated");
    let (_, status) = host.json(&["status"]);
    let certificates = status["certificates"].as_array().unwrap();
    for (nth, form) in forms.iter().enumerate() {
        let mut all = certificates.iter();
        let shown = all.find(|it| it["name"] == name(nth).as_str()).unwrap();
        let error = shown["last_error"].as_str();
        let said = match form.expected {
            Refused(words) | Useless(words) => error.is_some_and(|error| error.contains(words)),
            Taken(_) => error.is_none() && shown["state"] == "valid",
        };
        if !said {
            odd.push(format!("{}: {} {error:?}", form.what, shown["state"]));
        } else if let Taken(count) = form.expected {
            odd.extend(wrongly_served(&host, &name(nth), form, count));
        }
    }
    assert!(odd.is_empty(), "{odd:#?}");
}

/// What visitors get instead of the form's leaf and its chain.
fn wrongly_served(host: &Host, name: &str, form: &Form, count: usize) -> Option<String> {
    let text = String::from_utf8_lossy(&openssl("x509", &form.chain)).into_owned();
    let leaf: CertificateDer<'static> = der(&text);
    let stream = client::connect_tls(host.https(), name, &Trust::Anyone, &[]);
    let served = stream.ok().and_then(|stream| {
        let served = stream.conn.peer_certificates()?;
        Some((served.first()?.clone().into_owned(), served.len()))
    });
    match served {
        Some(served) if served == (leaf, count) => None,
        Some((_, served)) => Some(format!("{}: {served} certificates", form.what)),
        None => Some(format!("{}: no handshake", form.what)),
    }
}

const RSA: &str = "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048";
const USUAL: &str = "-subj /CN=x -days 90 -addext subjectAltName=DNS:*.example.com";
const DH_PARAMETERS: &str = "\
-----BEGIN X9.42 DH PARAMETERS-----\n\
MIIBJgKBgQDvGTLSTI0dmH3ywSUkOk5dgZ6D8cvRGukUccjaE7Xd4aCRvQwAMOrh\n\
GCMelh3LMUO+eBSHGYoYtE7L0CqzUEWzCLntwWWe/t+ZLmzfQZnZBbpex+DC13AE\n\
LV+yarUE3lzM6JITvMe3Z8lAj5pSoAuyQCSEfHWGHihPL1MRczco1wKBgEFhfldX\n\
VyoXE7ciw2VxMSAZ0PuiL01fpEzadPkEIaLNxdfxMqR0vDzREWW1WWLxjY9clWhx\n\
RihjoQXgm8p8Fcgf3glNTAm3D0tMTW2NQdoyh1BIlGW9DQVVGwbW9bnp+m1jhSkY\n\
EiJ8dYqUnaoR+2I1TLdHa9FbpzkcQOYtaArMAh0Ay/l7fe8q6AA/ODCC/PwrAg7S\n\
MGQFmnq7UDFGuQ==\n\
-----END X9.42 DH PARAMETERS-----\n";

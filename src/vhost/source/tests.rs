use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use super::*;

const GOOD: &str = "server_name: a.example\n";

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn apps(listing: &Listing) -> Vec<&str> {
    listing.files.iter().map(|file| file.app.as_str()).collect()
}

/// Reads a directory that has one file, which must be refused, quickly.
fn reason(directory: &Path) -> String {
    let start = Instant::now();
    let listing = read(directory).unwrap();
    assert!(start.elapsed() < Duration::from_millis(50));
    assert_eq!(listing.files.len(), 1);
    listing.files[0].text.clone().unwrap_err().reason
}

#[test]
fn yml_and_yaml_files_are_read_sorted_by_app_and_all_else_is_ignored() {
    let directory = directory(&[
        ("b.yml", GOOD),
        ("a.yaml", GOOD),
        (".hidden.yml", GOOD),
        (".b.yml.swp", GOOD),
        ("b.yml~", GOOD),
        ("#b.yml#", GOOD),
        (".#b.yml", GOOD),
        ("4913", GOOD),
        ("b.yml.bak", GOOD),
        ("b.yml.dpkg-new", GOOD),
        ("b.yml.rpmsave", GOOD),
        ("README", GOOD),
        ("c.json", GOOD),
        (".yml", GOOD),
        ("b.YML", GOOD),
    ]);
    let listing = read(directory.path()).unwrap();
    assert_eq!(apps(&listing), ["a", "b"]);
    assert!(listing.refused.is_empty());
    assert_eq!(listing.files[0].text.as_deref(), Ok(GOOD));
    assert!(listing.files[0].modified > OffsetDateTime::UNIX_EPOCH);
}

#[test]
fn a_name_that_cannot_be_an_apps_is_refused_and_reported() {
    let directory = directory(&[
        ("a b.yml", GOOD),
        ("-x.yml", GOOD),
        ("ok.yml", GOOD),
        ("a$b.yaml", GOOD),
    ]);
    let listing = read(directory.path()).unwrap();
    assert_eq!(apps(&listing), ["ok"]);
    assert_eq!(listing.refused.len(), 3);
    assert_eq!(listing.refused[0].file, directory.path().join("-x.yml"));
}

#[test]
fn the_same_app_in_both_endings_is_a_conflict_that_both_files_report() {
    let directory = directory(&[("a.yml", GOOD), ("a.yaml", GOOD), ("b.yml", GOOD)]);
    let listing = read(directory.path()).unwrap();
    assert_eq!(apps(&listing), ["a", "a", "b"]);
    assert_eq!(
        listing.files[0].text.as_ref().unwrap_err().reason,
        "a.yml beside it is `a` too"
    );
    assert_eq!(
        listing.files[1].text.as_ref().unwrap_err().reason,
        "a.yaml beside it is `a` too"
    );
    assert!(listing.files[2].text.is_ok());
}

#[test]
fn a_symbolic_link_is_refused_without_a_byte_of_what_it_leads_to() {
    let directory = directory(&[("secret", "s3cret")]);
    symlink(
        directory.path().join("secret"),
        directory.path().join("a.yml"),
    )
    .unwrap();
    assert_eq!(reason(directory.path()), "a symbolic link is not read");
}

#[test]
fn a_hard_link_is_refused() {
    let directory = directory(&[("secret", "s3cret")]);
    fs::hard_link(
        directory.path().join("secret"),
        directory.path().join("a.yml"),
    )
    .unwrap();
    assert_eq!(
        reason(directory.path()),
        "the file has a second name (a hard link)"
    );
}

#[test]
fn a_pipe_a_socket_and_a_directory_are_refused_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yml");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(reason(directory.path()), "not a regular file");
    fs::remove_file(&path).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(reason(directory.path()), "not a regular file");
    drop(socket);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(reason(directory.path()), "not a regular file");
}

#[test]
fn an_empty_a_large_and_a_binary_file_are_refused() {
    let empty = directory(&[("a.yml", "")]);
    assert_eq!(reason(empty.path()), "the file is empty");
    let whole = directory(&[("a.yml", &"#".repeat(64 * 1024))]);
    assert!(read(whole.path()).unwrap().files[0].text.is_ok());
    let large = directory(&[("a.yml", &"#".repeat(64 * 1024 + 1))]);
    assert_eq!(reason(large.path()), "the file is larger than 64 KiB");
    let binary = tempfile::tempdir().unwrap();
    fs::write(binary.path().join("a.yml"), b"a: 1\nb: \xff\n").unwrap();
    let refused = read(binary.path()).unwrap().files[0].text.clone();
    let diagnostic = refused.unwrap_err();
    assert_eq!(diagnostic.reason, "not UTF-8");
    let at = diagnostic.at.unwrap();
    assert_eq!((at.line, at.column, at.offset), (2, 4, 8));
}

#[test]
fn a_file_that_changed_meanwhile_is_refused() {
    let directory = directory(&[("a.yml", GOOD), ("b.yml", "longer than the other file")]);
    let of = |name: &str| fs::metadata(directory.path().join(name)).unwrap();
    let path = Path::new("a.yml");
    assert!(refuse_torn(path, &of("a.yml"), &of("a.yml"), GOOD.len()).is_ok());
    assert!(refuse_torn(path, &of("a.yml"), &of("a.yml"), GOOD.len() - 1).is_err());
    assert!(refuse_torn(path, &of("a.yml"), &of("b.yml"), GOOD.len()).is_err());
}

#[test]
fn a_missing_directory_is_an_error_of_its_own_kind() {
    let directory = tempfile::tempdir().unwrap();
    let error = read(&directory.path().join("vhosts.d")).unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }));
    let error = read_one(&directory.path().join("a.yml")).unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }));
}

#[test]
fn one_file_may_have_any_name_and_be_a_link() {
    let directory = directory(&[(".ansible_tmp1 hello.yml", GOOD), ("shop.yml", GOOD)]);
    let file = read_one(&directory.path().join(".ansible_tmp1 hello.yml")).unwrap();
    assert_eq!(
        (file.app.as_str(), file.text.as_deref()),
        ("vhost", Ok(GOOD))
    );
    let link = directory.path().join("linked.yml");
    symlink(directory.path().join("shop.yml"), &link).unwrap();
    let file = read_one(&link).unwrap();
    assert_eq!(
        (file.app.as_str(), file.text.as_deref()),
        ("linked", Ok(GOOD))
    );
}

#[test]
fn a_rename_and_a_chown_keep_a_files_identity_and_a_copy_and_a_new_file_do_not() {
    let directory = directory(&[("a.yml", GOOD)]);
    let path = |name: &str| directory.path().join(name);
    let only = || read(directory.path()).unwrap().files[0].identity;
    let before = only();
    assert_eq!(before.uid, nix::unistd::geteuid().as_raw());
    fs::rename(path("a.yml"), path("b.yml")).unwrap();
    assert!(only().is_same_file(&before));
    if before.uid == 0 {
        std::os::unix::fs::chown(path("b.yml"), Some(34), None).unwrap();
        assert_eq!((only().uid, only().is_same_file(&before)), (34, true));
    }
    fs::remove_file(path("b.yml")).unwrap();
    // a file system gives the inode of the removed file to the next one
    fs::write(path("a.yml"), GOOD).unwrap();
    assert!(!only().is_same_file(&before));
    let caller = FileIdentity::without_file(0);
    assert!(!caller.is_same_file(&caller));
}

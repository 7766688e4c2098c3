//! P: how large the buckets of nginx's hash of server names must be (ngx_hash.c, ngx_hash_init).
//!
//! A name that does not fit makes nginx refuse the whole configuration. How many names there are
//! costs a warning at most, so `server_names_hash_max_size` is never asked for.

/// The value that `server_names_hash_bucket_size` needs for `names`, as `server_name` has them;
/// `None` where nginx's own default suffices.
pub fn bucket_size<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<usize> {
    let longest = names.into_iter().map(key_length).max()?;
    // ngx_hash.c: bucket_size must hold NGX_HASH_ELT_SIZE and the pointer that ends the bucket
    let element = POINTER + (longest + 2).next_multiple_of(POINTER);
    let needed = element + POINTER;
    (needed > DEFAULT).then(|| needed.next_power_of_two())
}

/// The length of the longest key of a name: a wildcard is hashed label by label, a regular expression
/// not at all.
fn key_length(name: &str) -> usize {
    let is_wildcard = name.starts_with("*.") || name.starts_with('.') || name.ends_with(".*");
    let labels = || name.split('.').map(str::len).max().unwrap_or(0);
    match name.as_bytes().first() {
        Some(b'~') => 0,
        // `.zone` is `zone` and `*.zone`
        Some(b'.') => name.len() - 1,
        _ if is_wildcard => labels(),
        _ => name.len(),
    }
}

/// `sizeof(void *)`
const POINTER: usize = size_of::<usize>();
/// One line of the processor's cache: 64 bytes where nginx is built for x86_64 and arm64.
const DEFAULT: usize = 8 * POINTER;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_size_is_the_one_that_nginx_computes() {
        let name = |length: usize| "a".repeat(length);
        let wildcard = |length: usize| format!("*.{}.example", name(length));
        let regex = format!("~{}", name(200));
        for (names, expected) in [
            (vec![], None),
            (vec!["a.example".to_owned(), name(46)], None),
            (vec![name(47)], Some(128)),
            (vec![name(110), "b.example".into()], Some(128)),
            (vec![name(111)], Some(256)),
            (vec![name(238)], Some(256)),
            (vec![name(239)], Some(512)),
            (vec![name(253)], Some(512)),
            // label by label
            (vec![wildcard(46)], None),
            (vec![wildcard(63)], Some(128)),
            (vec![format!("{}.*", name(47))], Some(128)),
            (vec![format!(".{}", name(46))], None),
            (vec![format!(".{}", name(47))], Some(128)),
            (vec![regex], None),
        ] {
            let size = bucket_size(names.iter().map(String::as_str));
            assert_eq!(size, expected, "{names:?}");
        }
    }
}

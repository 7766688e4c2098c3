//! P: the patterns of `include`.

/// glob(7) as nginx calls it: `*` and `?` match no `/`, and no dot at the beginning of a name.
pub(super) fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        ([b'/', b'*' | b'?' | b'[', ..], [b'/', b'.', ..]) => false,
        ([b'*', rest @ ..], _) => {
            matches(rest, path)
                || matches!(path, [byte, tail @ ..] if *byte != b'/' && matches(pattern, tail))
        }
        ([b'?', rest @ ..], [byte, tail @ ..]) => *byte != b'/' && matches(rest, tail),
        ([b'[', rest @ ..], [byte, tail @ ..]) => match class(rest, *byte) {
            Some((true, rest)) => matches(rest, tail),
            Some((false, _)) => false,
            None => *byte == b'[' && matches(rest, tail),
        },
        ([b'\\', wanted, rest @ ..], [byte, tail @ ..])
        | ([wanted, rest @ ..], [byte, tail @ ..]) => wanted == byte && matches(rest, tail),
        _ => false,
    }
}

/// Whether `byte` is in the class that begins behind `[`, and what follows the class.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let members = &pattern[usize::from(negated)..];
    // a `]` in the first place is a member
    let end = 1 + members.iter().skip(1).position(|byte| *byte == b']')?;
    let (mut list, mut found) = (&members[..end], false);
    while let [first, tail @ ..] = list {
        list = match tail {
            [b'-', last, rest @ ..] => {
                found |= (*first..=*last).contains(&byte);
                rest
            }
            _ => {
                found |= *first == byte;
                tail
            }
        };
    }
    Some((found != negated, &members[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_glob_does() {
        for (pattern, path, expected) in [
            ("/a/*.conf", "/a/b.conf", true),
            ("/a/*.conf", "/a/b/c.conf", false),
            ("/a/*", "/a/.hidden", false),
            ("/a/.h*", "/a/.hidden", true),
            ("/a/x*", "/a/x.y", true),
            ("/a/*/c", "/a/b/c", true),
            ("/a/?b", "/a/ab", true),
            ("/a/[a-c]b", "/a/bb", true),
            ("/a/[!a-c]b", "/a/bb", false),
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/bc", false),
        ] {
            let found = matches(pattern.as_bytes(), path.as_bytes());
            assert_eq!(found, expected, "{pattern} {path}");
        }
    }
}

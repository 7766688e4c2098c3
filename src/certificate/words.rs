//! P: a stranger's words, fit for a terminal, a log and a status file.

/// One line, not endless, without what a terminal would obey: control characters (ECMA-48), and
/// the format characters that change the order of what follows (Unicode TR 36 §3.6).
pub(crate) fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAXIMUM_WORDS)]);
    let clean: String = text
        .chars()
        .map(|c| if is_obeyed(c) { ' ' } else { c })
        .collect();
    let mut line = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    let whole = bytes.len() <= 4 * MAXIMUM_WORDS;
    match line.char_indices().nth(MAXIMUM_WORDS) {
        Some((cut, _)) => line.truncate(cut),
        None if whole => return line,
        None => {}
    }
    line.push('…');
    line
}

/// The first of `all`, and how many more there are.
pub(crate) fn first_few(all: &[String], separator: &str) -> String {
    let shown = all.get(..MOST_PARTS).unwrap_or(all).join(separator);
    match all.len().saturating_sub(MOST_PARTS) {
        0 => shown,
        more => format!("{shown}{separator}and {more} more"),
    }
}

fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// In characters.
const MAXIMUM_WORDS: usize = 400;
/// Of a list: a certificate may have a hundred names.
const MOST_PARTS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_cut() {
        let line = one_line("ä".repeat(2000).as_bytes());
        assert_eq!(line.chars().count(), MAXIMUM_WORDS + 1);
        let blank = one_line(format!("a{}", " ".repeat(5000)).as_bytes());
        assert_eq!(blank, "a…");
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let line = one_line("a\u{1b}[31mb\u{202e}c\u{9b}d\r\ne\u{7f}\0f".as_bytes());
        assert_eq!(line, "a [31mb c d e f");
    }

    #[test]
    fn a_long_list_is_counted() {
        let all: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        assert_eq!(first_few(&all, ", "), "0, 1, 2, 3, 4, 5, 6, 7, and 2 more");
        assert_eq!(first_few(&all[..2], ", "), "0, 1");
    }
}

//! P: configuration text → directives, by nginx's own rules.
//!
//! Written from the behaviour of `ngx_conf_read_token` (src/core/ngx_conf_file.c), and used as the
//! second opinion on what we render and as the reader of what the admin wrote. It shares nothing
//! with the quoter in `render::token`.

/// One directive, simple or with a block.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Directive {
    pub name: String,
    /// Without quotes and escapes. Bytes that are not UTF-8 become U+FFFD.
    pub args: Vec<String>,
    /// Of the name, from 1.
    pub line: usize,
    /// `None` where the directive ends with `;`.
    pub block: Option<Vec<Directive>>,
}

impl Directive {
    /// The directives of the block; none where there is no block.
    pub fn children(&self) -> &[Directive] {
        self.block.as_deref().unwrap_or_default()
    }
}

/// Why a text is not nginx configuration. Lines from 1.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SyntaxError {
    #[error("line {line}: blocks are nested deeper than {MAX_DEPTH}")]
    TooDeep { line: usize },
    #[error("line {line}: unexpected {byte:?}")]
    Unexpected { line: usize, byte: char },
    #[error("line {line}: unexpected end of file, expecting {expected}")]
    UnexpectedEnd { line: usize, expected: &'static str },
}

/// Deeper than any configuration; keeps recursion bounded for any input.
const MAX_DEPTH: usize = 64;

/// A comment, from its `#` to the end of its line, without white space there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Comment {
    /// From 1.
    pub line: usize,
    /// Bytes that are not UTF-8 become U+FFFD.
    pub text: String,
}

/// Parses a whole file.
pub fn parse(text: &[u8]) -> Result<Vec<Directive>, SyntaxError> {
    block(&mut Reader::of(text), 0)
}

/// Parses a whole file, and says what its comments are.
pub fn parse_with_comments(text: &[u8]) -> Result<(Vec<Directive>, Vec<Comment>), SyntaxError> {
    let mut reader = Reader::of(text);
    let tree = block(&mut reader, 0)?;
    Ok((tree, reader.comments))
}

fn block(reader: &mut Reader<'_>, depth: usize) -> Result<Vec<Directive>, SyntaxError> {
    let mut directives = Vec::new();
    loop {
        let (mut words, line, end) = reader.statement()?;
        match end {
            End::Close if depth == 0 => {
                return Err(SyntaxError::Unexpected { line, byte: '}' });
            }
            End::Close => return Ok(directives),
            End::File if depth > 0 => {
                return Err(SyntaxError::UnexpectedEnd {
                    line,
                    expected: "\"}\"",
                });
            }
            End::File => return Ok(directives),
            End::Open | End::Semicolon => {}
        }
        let name = words.remove(0);
        let block = match end {
            End::Open if depth >= MAX_DEPTH => return Err(SyntaxError::TooDeep { line }),
            // the code of the Lua module follows Lua's rules
            End::Open if name.ends_with("_by_lua_block") => {
                reader.skip_foreign_block()?;
                Some(Vec::new())
            }
            End::Open => Some(block(reader, depth + 1)?),
            _ => None,
        };
        directives.push(Directive {
            name,
            args: words,
            line,
            block,
        });
    }
}

/// How a statement ended; `Open` and `Semicolon` come with at least one word.
#[derive(Clone, Copy, Eq, PartialEq)]
enum End {
    Close,
    File,
    Open,
    Semicolon,
}

struct Reader<'a> {
    text: &'a [u8],
    position: usize,
    line: usize,
    comments: Vec<Comment>,
}

impl<'a> Reader<'a> {
    fn of(text: &'a [u8]) -> Self {
        Self {
            text,
            position: 0,
            line: 1,
            comments: Vec::new(),
        }
    }

    fn next(&mut self) -> Option<u8> {
        let byte = *self.text.get(self.position)?;
        self.position += 1;
        self.line += usize::from(byte == b'\n');
        Some(byte)
    }

    fn back(&mut self) {
        self.position -= 1;
        self.line -= usize::from(self.text[self.position] == b'\n');
    }

    /// Words up to `;`, `{`, `}` or the end, and the line of the first of them.
    fn statement(&mut self) -> Result<(Vec<String>, usize, End), SyntaxError> {
        let mut words = Vec::new();
        let mut first_line = None;
        loop {
            let Some(byte) = self.next() else {
                return match first_line {
                    None => Ok((words, self.line, End::File)),
                    Some(_) => Err(SyntaxError::UnexpectedEnd {
                        line: self.line,
                        expected: "\";\" or \"}\"",
                    }),
                };
            };
            let line = first_line.unwrap_or(self.line);
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => {}
                b'#' => self.comment(),
                b';' | b'{' | b'}' if words.is_empty() != (byte == b'}') => {
                    return Err(self.unexpected(byte));
                }
                b';' => return Ok((words, line, End::Semicolon)),
                b'{' => return Ok((words, line, End::Open)),
                b'}' => return Ok((words, line, End::Close)),
                _ => {
                    first_line = Some(line);
                    self.back();
                    words.push(self.word()?);
                }
            }
        }
    }

    /// A comment, whose `#` was just read, ends at LF; CR is part of it.
    fn comment(&mut self) {
        let (start, line) = (self.position - 1, self.line);
        while self.next().is_some_and(|byte| byte != b'\n') {}
        let text = String::from_utf8_lossy(&self.text[start..self.position]);
        self.comments.push(Comment {
            line,
            text: text.trim_end().to_owned(),
        });
    }

    fn word(&mut self) -> Result<String, SyntaxError> {
        match self.text.get(self.position) {
            Some(&quote @ (b'"' | b'\'')) => self.quoted(quote),
            _ => self.bare(),
        }
    }

    fn quoted(&mut self, quote: u8) -> Result<String, SyntaxError> {
        self.next();
        let start = self.position;
        loop {
            match self.next() {
                None => return Err(self.end_in_word()),
                Some(b'\\') => {
                    self.next();
                }
                Some(byte) if byte == quote => break,
                Some(_) => {}
            }
        }
        let word = unescaped(&self.text[start..self.position - 1]);
        // something must separate a closing quote from the next word; `)` may follow it
        match self.next() {
            None => {}
            Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b')') => self.back(),
            Some(byte) => return Err(self.unexpected(byte)),
        }
        Ok(word)
    }

    /// Quotes, `}` and `#` are ordinary inside; `{` is so directly after `$`.
    fn bare(&mut self) -> Result<String, SyntaxError> {
        let start = self.position;
        let mut variable = false;
        loop {
            match self.next() {
                None => return Err(self.end_in_word()),
                Some(b'{') if variable => continue,
                Some(b'\\') => {
                    self.next();
                }
                Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{') => {
                    self.back();
                    return Ok(unescaped(&self.text[start..self.position]));
                }
                Some(b'$') => {
                    variable = true;
                    continue;
                }
                Some(_) => {}
            }
            variable = false;
        }
    }

    /// Up to the `}` of a `{` that was just read, quoted strings left alone.
    fn skip_foreign_block(&mut self) -> Result<(), SyntaxError> {
        let mut depth = 1;
        let mut string = None;
        while depth > 0 {
            match (self.next(), string) {
                (None, _) => {
                    return Err(SyntaxError::UnexpectedEnd {
                        line: self.line,
                        expected: "\"}\"",
                    });
                }
                (Some(b'\\'), Some(_)) => {
                    self.next();
                }
                (Some(b'\n'), Some(_)) => string = None,
                (Some(byte), Some(open)) if byte == open => string = None,
                (Some(byte @ (b'"' | b'\'')), None) => string = Some(byte),
                (Some(b'{'), None) => depth += 1,
                (Some(b'}'), None) => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn unexpected(&self, byte: u8) -> SyntaxError {
        SyntaxError::Unexpected {
            line: self.line,
            byte: char::from(byte),
        }
    }

    fn end_in_word(&self) -> SyntaxError {
        SyntaxError::UnexpectedEnd {
            line: self.line,
            expected: "the end of a word",
        }
    }
}

/// Only these six escapes exist; any other backslash stays.
fn unescaped(raw: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [first, tail @ ..] = rest {
        let (byte, used) = match (first, tail.first()) {
            (b'\\', Some(&byte @ (b'"' | b'\'' | b'\\'))) => (byte, 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b'n')) => (b'\n', 2),
            _ => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[used..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Deterministic strings of nginx's special characters, without those that a token refuses.
    pub(crate) fn special_strings(count: usize) -> Vec<String> {
        const ALPHABET: [&str; 24] = [
            "\\", "\"", "'", ";", "{", "}", "#", " ", "(", ")", "n", "t", "r", "a", "=", "~", "*",
            "/", "é", "%", "&", "<", "^", "|",
        ];
        let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        (0..count)
            .map(|_| (0..random(12)).map(|_| ALPHABET[random(24)]).collect())
            .collect()
    }

    fn words(text: &str) -> Vec<String> {
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.len(), 1, "{text}");
        std::iter::once(parsed[0].name.clone())
            .chain(parsed[0].args.clone())
            .collect()
    }

    #[test]
    fn words_end_where_nginx_ends_them() {
        for (text, expected) in [
            ("a b;", &["a", "b"][..]),
            ("a\tb\r\nc;", &["a", "b", "c"]),
            ("a b}c\"d'e#f;", &["a", "b}c\"d'e#f"]),
            ("a ${b}c;", &["a", "${b}c"]),
            ("a $b;", &["a", "$b"]),
            (r#"a "b;{}#\" c" 'd"';"#, &["a", "b;{}#\" c", "d\""]),
            (r#"a "\t\r\n\x\\";"#, &["a", "\t\r\n\\x\\"]),
            (r"a b\ c\;d;", &["a", r"b\ c\;d"]),
            (r#"a "" '';"#, &["a", "", ""]),
            ("# comment \r still; {\na b;", &["a", "b"]),
            ("a b # comment;\n c;", &["a", "b", "c"]),
            (r#""a" b;"#, &["a", "b"]),
        ] {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }

    #[test]
    fn comments_are_those_that_nginx_skips() {
        let text = b"# a # b\nc \"# d\" e#f; # g\rh\n# i";
        let (_, found) = parse_with_comments(text).unwrap();
        let texts: Vec<(usize, &str)> = found.iter().map(|it| (it.line, &*it.text)).collect();
        assert_eq!(texts, [(1, "# a # b"), (2, "# g\rh"), (3, "# i")]);
    }

    #[test]
    fn blocks_nest_and_lines_are_those_of_the_names() {
        let parsed = parse(b"\nhttp {\n  server {\n listen\n 80; }\n}\nend;").unwrap();
        let listen = &parsed[0].children()[0].children()[0];
        assert_eq!((listen.name.as_str(), listen.line), ("listen", 4));
        assert_eq!(listen.args, ["80"]);
        assert_eq!((parsed[1].name.as_str(), parsed[1].line), ("end", 7));
        assert_eq!(parsed[1].block, None);
    }

    #[test]
    fn what_nginx_refuses_is_refused_with_its_line() {
        for (text, expected) in [
            ("a {", "line 1: unexpected end of file, expecting \"}\""),
            (
                "a\nb",
                "line 2: unexpected end of file, expecting the end of a word",
            ),
            (
                "a b ",
                "line 1: unexpected end of file, expecting \";\" or \"}\"",
            ),
            ("\n}", "line 2: unexpected '}'"),
            (";", "line 1: unexpected ';'"),
            ("{", "line 1: unexpected '{'"),
            ("a { b }", "line 1: unexpected '}'"),
            ("a \"b\"c;", "line 1: unexpected 'c'"),
            (
                "a \"b",
                "line 1: unexpected end of file, expecting the end of a word",
            ),
        ] {
            assert_eq!(
                parse(text.as_bytes()).unwrap_err().to_string(),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn any_bytes_end_in_a_tree_or_an_error() {
        for text in special_strings(5_000) {
            let _ = parse(text.as_bytes());
        }
        let _ = parse(&[0xff, 0, b' ', 0xfe, b';']);
        assert!(parse("a{".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn lua_code_is_passed_over() {
        let parsed = parse(b"x_by_lua_block { if a then t = { \"}\" } end }\nb;").unwrap();
        assert_eq!(parsed.len(), 2);
        assert_eq!(parsed[1].line, 2);
    }
}

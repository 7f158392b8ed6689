//! Cuts a configuration line into words: quotes, escapes, comments and environment variables
//! (manual sections 2.2 and 2.3).
//!
//! Works on bytes, since a comment may hold anything; only words must be UTF-8. Every word keeps the
//! byte offset where it began, so that a later complaint can point at it.

/// One word of a line, with quotes and escapes resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// The text as the keyword sees it.
    pub(crate) text: String,
    /// Byte offset in the line where it begins.
    pub(crate) at: usize,
}

/// Why a line cannot be cut into words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Byte offset of the culprit.
    pub(crate) at: usize,
    /// What is wrong.
    pub(crate) message: String,
}

/// Longest list of words on a line, as in HAProxy.
pub(crate) const MAX_WORDS: usize = 64;

/// Cuts `line` (without its line feed) into words. `var` answers for `$NAME` in double quotes.
pub(crate) fn split(line: &[u8], var: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Word>, Fault> {
    let mut cutter = Cutter { line, at: 0, words: Vec::new(), word: None, var };
    cutter.run()?;
    Ok(cutter.words)
}

struct Cutter<'a> {
    line: &'a [u8],
    at: usize,
    words: Vec<Word>,
    /// The word being built and where it began.
    word: Option<(Vec<u8>, usize)>,
    var: &'a dyn Fn(&str) -> Option<String>,
}

impl Cutter<'_> {
    fn run(&mut self) -> Result<(), Fault> {
        let mut in_double: Option<usize> = None;
        while let Some(&byte) = self.line.get(self.at) {
            match byte {
                0 => return Err(self.fault(self.at, "stray NUL character")),
                b'"' => {
                    in_double = if in_double.is_some() { None } else { Some(self.at) };
                    self.begin();
                    self.at += 1;
                }
                b'\'' if in_double.is_none() => self.strong_quotes()?,
                b'\\' => self.escape(in_double.is_some())?,
                b'$' if in_double.is_some() => self.variable()?,
                b'#' if in_double.is_none() => break,
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c if in_double.is_none() => {
                    self.end()?;
                    self.at += 1;
                }
                _ => {
                    self.begin().push(byte);
                    self.at += 1;
                }
            }
        }
        if let Some(open) = in_double {
            return Err(self.fault(open, "unmatched quote"));
        }
        self.end()
    }

    /// The word being built, begun here if there is none.
    fn begin(&mut self) -> &mut Vec<u8> {
        let at = self.at;
        &mut self.word.get_or_insert_with(|| (Vec::new(), at)).0
    }

    fn end(&mut self) -> Result<(), Fault> {
        let Some((bytes, at)) = self.word.take() else { return Ok(()) };
        if self.words.len() == MAX_WORDS {
            return Err(self.fault(at, &format!("too many words on the line (at most {MAX_WORDS})")));
        }
        if let Some(nul) = bytes.iter().position(|&b| b == 0) {
            return Err(self.fault(at + nul, "NUL character in a word"));
        }
        let text = String::from_utf8(bytes).map_err(|_| self.fault(at, "word is not valid UTF-8"))?;
        self.words.push(Word { text, at });
        Ok(())
    }

    fn fault(&self, at: usize, message: &str) -> Fault {
        Fault { at, message: message.to_owned() }
    }

    fn strong_quotes(&mut self) -> Result<(), Fault> {
        let open = self.at;
        self.begin();
        let rest = &self.line[open + 1..];
        let Some(len) = rest.iter().position(|&b| b == b'\'') else {
            return Err(self.fault(open, "unmatched quote"));
        };
        if rest[..len].contains(&0) {
            return Err(self.fault(open, "stray NUL character"));
        }
        self.begin().extend_from_slice(&rest[..len]);
        self.at = open + len + 2;
        Ok(())
    }

    fn escape(&mut self, in_double: bool) -> Result<(), Fault> {
        let at = self.at;
        let (byte, len) = match self.line.get(at + 1) {
            Some(b'n') => (b'\n', 2),
            Some(b'r') => (b'\r', 2),
            Some(b't') => (b'\t', 2),
            Some(b'x') => {
                let digits = self.line.get(at + 2..at + 4).and_then(|d| std::str::from_utf8(d).ok());
                // `from_str_radix` would take a sign.
                let value = digits
                    .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
                    .and_then(|d| u8::from_str_radix(d, 16).ok());
                let Some(value) = value else {
                    return Err(self.fault(at, "truncated or invalid hexadecimal sequence"));
                };
                (value, 4)
            }
            Some(&c @ (b' ' | b'\t' | b'\\' | b'#' | b'\'' | b'"')) => (c, 2),
            Some(b'$') if in_double => (b'$', 2),
            // Any other character keeps its backslash: regular expressions rely on it.
            _ => (b'\\', 1),
        };
        self.begin().push(byte);
        self.at += len;
        Ok(())
    }

    /// `$NAME`, `${NAME}`, `${NAME-default}`, `${NAME[*]}`; the caller is inside double quotes.
    fn variable(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.begin();
        let braced = self.line.get(start + 1) == Some(&b'{');
        let name_at = start + 1 + usize::from(braced);
        let mut end = name_at;
        // Pseudo-variables start with a dot, and only they may hold one.
        let dotted = self.line.get(name_at) == Some(&b'.');
        let first = self.line.get(name_at + usize::from(dotted)).copied().unwrap_or(0);
        if !(first.is_ascii_alphabetic() || first == b'_') {
            return Err(self.fault(name_at, "forbidden first char in environment variable name"));
        }
        let name_byte = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (dotted && b == b'.');
        while self.line.get(end).is_some_and(|&b| name_byte(b)) {
            end += 1;
        }
        let name = String::from_utf8_lossy(&self.line[name_at..end]).into_owned();
        let mut default = None;
        let mut list = false;
        if braced {
            let rest = &self.line[end..];
            let Some(close) = rest.iter().position(|&b| b == b'}') else {
                return Err(self.fault(name_at, "unmatched brace in environment variable name"));
            };
            let mut inside = &rest[..close];
            if let Some(cut) = inside.strip_prefix(b"[*]") {
                (list, inside) = (true, cut);
            }
            match inside.split_first() {
                None => {}
                Some((b'-', text)) => default = Some(text.to_vec()),
                Some(_) => {
                    return Err(self.fault(end, "forbidden character in environment variable name"));
                }
            }
            end += close + 1;
        }
        let value = (self.var)(&name).map(String::into_bytes).or(default).unwrap_or_default();
        if list {
            self.push_list(&value)?
        } else {
            self.begin().extend_from_slice(&value)
        }
        self.at = end;
        Ok(())
    }

    /// A list value: each item a word of its own; the first and last join what surrounds them.
    fn push_list(&mut self, value: &[u8]) -> Result<(), Fault> {
        let mut items = value.split(u8::is_ascii_whitespace).filter(|item| !item.is_empty());
        if let Some(first) = items.next() {
            self.begin().extend_from_slice(first);
        }
        for item in items {
            self.end()?;
            self.begin().extend_from_slice(item);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".into()),
            "EMPTY" => Some(String::new()),
            "LIST" => Some("a b  c".into()),
            "QUOTES" => Some("x' \"#y".into()),
            ".LINE" => Some("7".into()),
            _ => None,
        }
    }

    fn words(line: &str) -> Vec<String> {
        split(line.as_bytes(), &var).expect(line).into_iter().map(|w| w.text).collect()
    }

    fn fault(line: &[u8]) -> (usize, String) {
        let fault = split(line, &var).expect_err("must be refused");
        (fault.at, fault.message)
    }

    #[test]
    fn quoting_and_escapes_follow_the_manual() {
        // The five equivalent lines of section 2.2.
        let same = [
            r"log-format %{+Q}o\ %t\ %s\ %{-Q}r",
            r#"log-format "%{+Q}o %t %s %{-Q}r""#,
            r"log-format '%{+Q}o %t %s %{-Q}r'",
            r#"log-format "%{+Q}o %t"' %s %{-Q}r'"#,
            r#"log-format "%{+Q}o %t"' %s'\ %{-Q}r"#,
        ];
        for line in same {
            assert_eq!(words(line), ["log-format", "%{+Q}o %t %s %{-Q}r"], "{line}");
        }
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            ("  \t # only a comment 'x", &[]),
            ("a b#c d", &["a", "b"]),
            (r"a\#b c", &["a#b", "c"]),
            (r"a\x41\x0a b", &["aA\n", "b"]),
            (r#"a "" b"#, &["a", "", "b"]),
            (r"a '\n$A' b", &["a", r"\n$A", "b"]),
            (r"path_reg \.js$ \(x\)", &["path_reg", r"\.js$", r"\(x\)"]),
            (r#""a'b" 'c"d'"#, &["a'b", "c\"d"]),
            (r#"\" \' \\"#, &["\"", "'", "\\"]),
            (r"ends\", &["ends\\"]),
            (r"$A \$A", &["$A", r"\$A"]),
            ("caf\u{e9}  \u{4f60}", &["caf\u{e9}", "\u{4f60}"]),
        ];
        for (line, expected) in table {
            assert_eq!(&words(line), expected, "{line}");
        }
    }

    #[test]
    fn variables_expand_in_double_quotes_only() {
        let table: &[(&str, &[&str])] = &[
            (r#""$A" "${A}b" x"$A"y"#, &["one", "oneb", "xoney"]),
            (r#"'$A' $A ${A}"#, &["$A", "$A", "${A}"]),
            (r#""${NONE}" "${NONE-d e}" "${EMPTY-d}""#, &["", "d e", ""]),
            (r#""\$A""#, &["$A"]),
            (r#"a "${LIST[*]}" b"#, &["a", "a", "b", "c", "b"]),
            (r#""<${LIST[*]}>""#, &["<a", "b", "c>"]),
            (r#""${NONE[*]-x y}""#, &["x", "y"]),
            (r#""${NONE-x y[*]}""#, &["x y[*]"]),
            (r#""$QUOTES""#, &["x' \"#y"]),
            (r#""${.LINE}""#, &["7"]),
        ];
        for (line, expected) in table {
            assert_eq!(&words(line), expected, "{line}");
        }
    }

    #[test]
    fn faults_point_at_their_place() {
        assert_eq!(fault(b"a 'bc"), (2, "unmatched quote".into()));
        assert_eq!(fault(b"a b\"c"), (3, "unmatched quote".into()));
        assert_eq!(fault(b"a \\xzz"), (2, "truncated or invalid hexadecimal sequence".into()));
        assert_eq!(fault(b"a \\x+1"), (2, "truncated or invalid hexadecimal sequence".into()));
        assert_eq!(fault(b"a \"${A\""), (5, "unmatched brace in environment variable name".into()));
        assert_eq!(fault(b"\"$1\""), (2, "forbidden first char in environment variable name".into()));
        assert_eq!(fault(b"\"${A+x}\"").0, 4);
        assert_eq!(fault(b"a\0"), (1, "stray NUL character".into()));
        assert_eq!(fault(b"a \\x00").1, "NUL character in a word");
        assert_eq!(fault(b"a \xff"), (2, "word is not valid UTF-8".into()));
        assert!(split(b"a # \xff", &var).is_ok());
        assert_eq!(fault("a ".repeat(65).as_bytes()).1, "too many words on the line (at most 64)");
    }

    #[test]
    fn words_know_where_they_begin() {
        let words = split(b"  ab 'c d'\"e\" f", &var).unwrap();
        let at: Vec<usize> = words.iter().map(|w| w.at).collect();
        assert_eq!(at, [2, 5, 14]);
    }
}

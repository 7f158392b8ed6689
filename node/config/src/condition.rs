//! The conditions of `.if` and `-cc` (manual section 2.4).

use crate::known;

/// The HAProxy whose language this is: what `version_atleast()` compares with.
pub(crate) const COMPATIBLE_WITH: &str = "3.5";

/// What `feature()` answers yes to.
const FEATURES: &[&str] =
    &["ACCEPT4", "EPOLL", "NETFILTER", "NS", "PRCTL", "THREAD", "TPROXY", "GETADDRINFO"];

/// Deepest nesting of parentheses and negations.
const MAX_DEPTH: usize = 64;

/// Evaluates a condition; `defined` tells whether an environment variable exists.
pub(crate) fn evaluate(text: &str, defined: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    if text.trim().is_empty() {
        return Ok(false);
    }
    let mut reader = Reader { rest: text, defined, depth: 0 };
    let value = reader.or()?;
    match reader.rest.trim_start() {
        "" => Ok(value),
        rest => Err(format!("unexpected '{rest}' after the condition")),
    }
}

struct Reader<'a> {
    rest: &'a str,
    defined: &'a dyn Fn(&str) -> bool,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn or(&mut self) -> Result<bool, String> {
        let mut value = self.and()?;
        while self.take("||") {
            value |= self.and()?;
        }
        Ok(value)
    }

    fn and(&mut self) -> Result<bool, String> {
        let mut value = self.term()?;
        while self.take("&&") {
            value &= self.term()?;
        }
        Ok(value)
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn term(&mut self) -> Result<bool, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("condition is nested too deeply".to_owned());
        }
        let value = if self.take("!") {
            !self.term()?
        } else if self.take("(") {
            let value = self.or()?;
            if !self.take(")") {
                return Err("missing closing parenthesis".to_owned());
            }
            value
        } else {
            self.predicate()?
        };
        self.depth -= 1;
        Ok(value)
    }

    fn predicate(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return Err(match rest.chars().next() {
                None => "a condition is missing".to_owned(),
                Some(c) => format!("unexpected '{c}' in the condition"),
            });
        }
        if name.bytes().all(|b| b.is_ascii_digit()) {
            self.rest = rest;
            return Ok(name.bytes().any(|b| b != b'0'));
        }
        let Some(open) = rest.strip_prefix('(') else {
            return Err(unknown_predicate(name));
        };
        let (args, rest) = arguments(open)?;
        self.rest = rest;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match (name, args.as_slice()) {
            ("defined", [name]) => Ok((self.defined)(name)),
            ("streq", [a, b]) => Ok(a == b),
            ("strneq", [a, b]) => Ok(a != b),
            ("strstr", [a, b]) => Ok(a.contains(b)),
            ("feature", [name]) => Ok(FEATURES.contains(name)),
            ("enabled", [name]) => Ok(matches!(*name, "POLL" | "EPOLL" | "GETADDRINFO" | "REUSEPORT")),
            ("version_atleast", [version]) => Ok(parse_version(COMPATIBLE_WITH)? >= parse_version(version)?),
            ("version_before", [version]) => Ok(parse_version(COMPATIBLE_WITH)? < parse_version(version)?),
            // No such library is linked.
            ("ssllib_name_startswith" | "openssl_version_atleast" | "openssl_version_before", [_])
            | ("awslc_api_atleast" | "awslc_api_before", [_])
            | ("fips_mode", [""]) => Ok(false),
            _ if PREDICATES.contains(&name) => Err(format!("wrong number of arguments for '{name}()'")),
            _ => Err(unknown_predicate(name)),
        }
    }
}

const PREDICATES: &[&str] = &[
    "awslc_api_atleast",
    "awslc_api_before",
    "defined",
    "enabled",
    "feature",
    "fips_mode",
    "openssl_version_atleast",
    "openssl_version_before",
    "ssllib_name_startswith",
    "streq",
    "strneq",
    "strstr",
    "version_atleast",
    "version_before",
];

fn unknown_predicate(name: &str) -> String {
    let text = format!("unknown predicate '{name}'");
    match known::nearest(name, PREDICATES.iter().copied()) {
        Some(near) => format!("{text}; {}", known::did_you_mean(near)),
        None => text,
    }
}

/// Arguments up to the closing parenthesis: a second level of quotes, as for every argument list.
pub(crate) fn arguments(text: &str) -> Result<(Vec<String>, &str), String> {
    let mut args = vec![String::new()];
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        let current = args.last_mut().expect("never empty");
        match (c, quote) {
            (_, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => quote = Some(c),
            ('\\', None | Some('"')) => match chars.next() {
                Some((_, 'n')) => current.push('\n'),
                Some((_, 'r')) => current.push('\r'),
                Some((_, 't')) => current.push('\t'),
                Some((_, c @ (' ' | '\\' | '\'' | '"' | ',' | ')'))) => current.push(c),
                Some((_, c)) => current.extend(['\\', c]),
                None => current.push('\\'),
            },
            (')', None) => return Ok((args, &text[at + 1..])),
            (',', None) => args.push(String::new()),
            _ => current.push(c),
        }
    }
    Err(match quote {
        Some(_) => "unmatched quote in the arguments".to_owned(),
        None => "missing closing parenthesis".to_owned(),
    })
}

/// Major, minor, patch, and development step; a release comes after its development versions.
fn parse_version(text: &str) -> Result<(u32, u32, u32, u32), String> {
    let bad = || format!("invalid version '{text}'");
    let (numbers, step) = match text.split_once("-dev") {
        Some((numbers, step)) => (numbers, step.split('-').next().unwrap_or("").parse().map_err(|_| bad())?),
        None => (text.split('-').next().unwrap_or(""), u32::MAX),
    };
    let mut parts = [0u32; 3];
    for (index, part) in numbers.split('.').enumerate() {
        *parts.get_mut(index).ok_or_else(bad)? = part.parse().map_err(|_| bad())?;
    }
    Ok((parts[0], parts[1], parts[2], step))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<bool, String> {
        evaluate(text, &|name| name == "SET")
    }

    #[test]
    fn conditions() {
        let yes = [
            "1",
            "10",
            "!0",
            "defined(SET)",
            "streq(a,a)",
            "strneq(a,b)",
            "strstr(abc,b)",
            "(1)",
            "0 || 1",
            "1 && !0",
            "0 && 0 || 1",
            "1 || 0 && 0",
            "version_atleast(2.4-dev19)",
            "version_atleast(3.5)",
            "version_before(3.6)",
            "feature(THREAD)",
            "!feature(OPENSSL)",
            "streq(\"a,b\",'a,b')",
            "streq(0, 1) || streq(0,0)",
            "((1) && (!(0)))",
        ];
        for text in yes {
            assert_eq!(value(text), Ok(true), "{text}");
        }
        for text in
            ["", " ", "0", "00", "!1", "defined(UNSET)", "streq(0, 0)", "version_before(3.5)", "1 && 0"]
        {
            assert_eq!(value(text), Ok(false), "{text}");
        }
        let bad = [
            "foo",
            "foo(1)",
            "define(SET)",
            "(1",
            "1)",
            "1 &&",
            "streq(a)",
            "streq(a,b",
            "&& 1",
            "1 1",
            "version_atleast(x)",
            "version_atleast(1.2.3.4)",
            "streq('a,b)",
        ];
        for text in bad {
            assert!(value(text).is_err(), "{text}");
        }
        assert!(value("define(SET)").unwrap_err().contains("did you mean 'defined'"));
        assert!(value(&"(".repeat(100_000)).is_err());
    }
}

//! Patterns: what ACLs and maps compare samples with (manual section 7.1), and the files they lie in.
//!
//! Checks and parses the text of one pattern ([`parse`]), cuts files into entries, and collects, while
//! a configuration is read, the sets that its ACLs and maps refer to ([`Patterns`]): a file that is
//! used several times is one set. Pure: files are read through [`Env`]. The sets at run time are the
//! engine's.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use crate::env::Env;
use crate::model::{PatternEntry, PatternSource, PatternUse};

/// Longest file of patterns, in bytes.
pub const MAX_FILE: u64 = 256 << 20;

/// How a sample is compared with a pattern: what follows `-m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// The sample exists.
    Found,
    /// The sample is true.
    Bool,
    /// A number or a range of numbers.
    Int,
    /// An address or a network.
    Ip,
    /// Bytes, written in hexadecimal.
    Bin,
    /// The length of the sample.
    Len,
    /// The whole text.
    Str,
    /// How the text begins.
    Beg,
    /// A part of the text.
    Sub,
    /// A part of the text between slashes.
    Dir,
    /// A part of the text between dots, colons, slashes and question marks.
    Dom,
    /// How the text ends.
    End,
    /// A regular expression.
    Reg,
}

/// The methods with their names.
pub const METHODS: &[(&str, Method)] = &[
    ("found", Method::Found),
    ("bool", Method::Bool),
    ("int", Method::Int),
    ("ip", Method::Ip),
    ("bin", Method::Bin),
    ("len", Method::Len),
    ("str", Method::Str),
    ("beg", Method::Beg),
    ("sub", Method::Sub),
    ("dir", Method::Dir),
    ("dom", Method::Dom),
    ("end", Method::End),
    ("reg", Method::Reg),
];

impl Method {
    /// The method that a word after `-m` names.
    pub fn named(word: &str) -> Option<Method> {
        METHODS.iter().find(|(name, _)| *name == word).map(|(_, method)| *method)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        METHODS.iter().find(|(_, method)| *method == self).map_or("", |(name, _)| name)
    }

    /// Whether it compares with patterns at all.
    pub fn takes_patterns(self) -> bool {
        !matches!(self, Method::Found | Method::Bool)
    }
}

/// What the value of a map entry is converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// As it stands.
    Str,
    /// A number.
    Int,
    /// An address.
    Ip,
    /// The key that matched.
    Key,
    /// As it stands, with `\1` and so on replaced by what the groups of the expression matched.
    Regm,
}

impl Output {
    /// Its name, as in `map_str_int`.
    pub fn name(self) -> &'static str {
        match self {
            Output::Str | Output::Regm => "str",
            Output::Int => "int",
            Output::Ip => "ip",
            Output::Key => "key",
        }
    }

    /// Whether `value` can be converted.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(self, value: &str) -> Result<(), String> {
        let good = match self {
            Output::Str | Output::Key | Output::Regm => true,
            Output::Int => integer(value).is_some(),
            Output::Ip => value.parse::<IpAddr>().is_ok(),
        };
        if good { Ok(()) } else { Err(format!("unable to parse '{value}'")) }
    }
}

/// A number as patterns and map values have it.
pub fn integer(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// A pattern, ready to be compared with.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Numbers from the first to the second.
    Range(i64, i64),
    /// An IPv4 network: address and mask; the address has no bits outside the mask.
    Net4(u32, u32),
    /// An IPv6 network: address and length of the prefix; the address has no bits after it.
    Net6(u128, u8),
    /// The bytes of a `bin` pattern.
    Bytes(Vec<u8>),
    /// A text.
    Text(String),
    /// An expression.
    Regex(Regex),
}

/// Whether `text` is a pattern for `method`.
///
/// # Errors
/// What is wrong with it.
pub fn check(method: Method, ignore_case: bool, text: &str) -> Result<(), String> {
    parse(method, ignore_case, text).map(|_| ())
}

/// Reads the pattern `text` for `method`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(method: Method, ignore_case: bool, text: &str) -> Result<Pattern, String> {
    Ok(match method {
        Method::Int | Method::Len => {
            let (from, to) = range(text).ok_or_else(|| format!("'{text}' is not a number"))?;
            Pattern::Range(from, to)
        }
        Method::Ip => network(text).ok_or_else(|| format!("'{text}' is not a valid IPv4 or IPv6 address"))?,
        Method::Bin => Pattern::Bytes(hexadecimal(text)?),
        Method::Reg => Pattern::Regex(regex(text, ignore_case)?),
        Method::Found | Method::Bool => Pattern::Text(String::new()),
        Method::Str | Method::Beg | Method::Sub | Method::Dir | Method::Dom | Method::End => {
            Pattern::Text(text.to_owned())
        }
    })
}

/// Compiles an expression as `-m reg` and the `map_reg` converters use it.
///
/// # Errors
/// Why it can't be compiled.
pub fn regex(text: &str, ignore_case: bool) -> Result<Regex, String> {
    // Like PCRE without its UTF mode: bytes, and ASCII classes.
    let built = RegexBuilder::new(text).unicode(false).case_insensitive(ignore_case).build();
    built.map_err(|e| {
        let text_of = e.to_string();
        let reason = text_of.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("regex '{text}' is invalid: {reason}")
    })
}

/// `5`, `5:`, `:5`, `5:7`, each end also as `3.1`.
fn range(text: &str) -> Option<(i64, i64)> {
    let Some((from, to)) = text.split_once(':') else {
        let number = integer(text)?;
        return Some((number, number));
    };
    let end = |text: &str, open: i64| if text.is_empty() { Some(open) } else { integer(text) };
    let (from, to) = (end(from, i64::MIN)?, end(to, i64::MAX)?);
    (from <= to).then_some((from, to))
}

/// The pattern that a number stands for after one of the operators `eq`, `ge`, `gt`, `le`, `lt`;
/// `None` = it is no such word.
///
/// # Errors
/// The text is not a number or a range that the operator can take.
pub fn with_operator(operator: &str, text: &str) -> Option<Result<String, String>> {
    let form: fn(i64, i64) -> Option<String> = match operator {
        "eq" => |from, to| {
            Some(if from == to { from.to_string() } else { format!("{}:{}", lower(from), upper(to)) })
        },
        "ge" => |from, _| Some(format!("{from}:")),
        "gt" => |from, _| Some(format!("{}:", from.checked_add(1)?)),
        "le" => |from, _| Some(format!(":{from}")),
        "lt" => |from, _| Some(format!(":{}", from.checked_sub(1)?)),
        _ => return None,
    };
    let Some((from, to)) = range(text) else { return Some(Err(format!("'{text}' is not a number"))) };
    if operator != "eq" && from != to {
        return Some(Err(format!("'{text}' is a range, which '{operator}' does not take")));
    }
    Some(form(from, to).ok_or_else(|| format!("'{text}' is too large")))
}

fn lower(from: i64) -> String {
    if from == i64::MIN { String::new() } else { from.to_string() }
}

fn upper(to: i64) -> String {
    if to == i64::MAX { String::new() } else { to.to_string() }
}

/// The number that a version as `3.1` stands for, for the fetches that give one.
pub fn dotted(text: &str) -> Option<i64> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    let number = |text: &str| text.parse::<u16>().ok().map(i64::from);
    Some((number(major)? << 16) + number(minor)?)
}

/// An address or network: `10.0.0.1`, `10.1`, `10.0.0.0/8`, `10.0.0.0/255.0.0.0`, `::1`, `fe80::/10`.
fn network(text: &str) -> Option<Pattern> {
    let (addr, mask) = match text.split_once('/') {
        Some((addr, mask)) => (addr, Some(mask)),
        None => (text, None),
    };
    if addr.contains(':') {
        let addr = u128::from(addr.parse::<Ipv6Addr>().ok()?);
        let len = mask.map_or(Some(128), |m| digits(m)?.parse().ok().filter(|n| *n <= 128))?;
        return Some(Pattern::Net6(addr & prefix6(len), len));
    }
    let addr = u32::from(abbreviated(addr)?);
    let mask = match mask {
        None => u32::MAX,
        Some(mask) if mask.contains('.') => u32::from(mask.parse::<Ipv4Addr>().ok()?),
        Some(mask) => prefix4(digits(mask)?.parse().ok().filter(|n| *n <= 32)?),
    };
    Some(Pattern::Net4(addr & mask, mask))
}

/// The text, if it is all digits: `parse` would also take a sign.
fn digits(text: &str) -> Option<&str> {
    text.bytes().all(|b| b.is_ascii_digit()).then_some(text)
}

/// The mask of an IPv4 prefix.
pub fn prefix4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

/// The mask of an IPv6 prefix.
pub fn prefix6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// An IPv4 address, also with octets of zero left out before the last one: `10.1` is `10.0.0.1`.
fn abbreviated(text: &str) -> Option<Ipv4Addr> {
    if let Ok(addr) = text.parse() {
        return Some(addr);
    }
    let parts: Vec<u8> = text.split('.').map(|p| digits(p)?.parse().ok()).collect::<Option<Vec<u8>>>()?;
    let (last, first) = parts.split_last()?;
    if first.is_empty() || first.len() > 3 {
        return None;
    }
    let mut octets = [0; 4];
    octets[..first.len()].copy_from_slice(first);
    octets[3] = *last;
    Some(octets.into())
}

fn hexadecimal(text: &str) -> Result<Vec<u8>, String> {
    if !text.len().is_multiple_of(2) {
        return Err(format!("an even number of hex digits is expected, but got '{text}'"));
    }
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    let bytes = text.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>();
    bytes.ok_or_else(|| format!("an hex digit is expected, but got '{text}'"))
}

/// Columns of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Every line is a pattern.
    One,
    /// The first word of a line is the key, the rest its value.
    Two,
}

/// Cuts a file into entries. Lines that are empty or begin with `#` are none.
///
/// # Errors
/// Which line is not text.
pub fn entries(text: &[u8], columns: Columns) -> Result<Vec<PatternEntry>, String> {
    let blank = |c: char| c == ' ' || c == '\t';
    let mut entries = Vec::new();
    for (index, line) in text.split(|b| *b == b'\n').enumerate() {
        let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        // A line ends at its first CR, too.
        let line = line.split(|b| *b == b'\r').next().unwrap_or_default();
        if line.first() == Some(&b'#') {
            continue;
        }
        let line = std::str::from_utf8(line).map_err(|_| format!("line {number} is not UTF-8 text"))?;
        if line.contains('\0') {
            return Err(format!("line {number} contains a null byte"));
        }
        let line = line.trim_start_matches(blank);
        if line.is_empty() {
            continue;
        }
        let (key, value) = match columns {
            Columns::One => (line, None),
            Columns::Two => {
                let (key, rest) = line.split_at(line.find(blank).unwrap_or(line.len()));
                (key, Some(rest.trim_matches(blank)))
            }
        };
        entries.push(PatternEntry { key: key.into(), value: value.map(Into::into), line: number });
    }
    Ok(entries)
}

/// A line of the configuration, for messages and descriptions.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// Name of the file.
    pub file: &'a str,
    /// Number of the line.
    pub line: u32,
}

/// How an ACL or a map uses a file.
#[derive(Clone, Copy, Debug)]
pub struct FileUse<'a> {
    /// Name of the file.
    pub name: &'a str,
    /// `Two` for maps and `-M`.
    pub columns: Columns,
    /// How samples are compared.
    pub method: Method,
    /// `-i`.
    pub ignore_case: bool,
    /// What a map converts values to; `None` for ACLs.
    pub output: Option<Output>,
    /// Whether host names are resolved: not with `-n`.
    pub resolve: bool,
}

/// The sets that a configuration refers to, while it is read.
#[derive(Debug, Default)]
pub struct Patterns {
    sets: Vec<Draft>,
    files: HashMap<String, usize>,
    inline: HashMap<String, u32>,
}

#[derive(Debug)]
struct Draft {
    source: PatternSource,
    columns: Columns,
    /// `-u`.
    wanted_id: Option<u32>,
}

impl Patterns {
    /// The set of a file, which is read when it is first named.
    ///
    /// # Errors
    /// It can't be read, an entry is wrong, or it is used with another number of columns elsewhere.
    pub fn file(&mut self, env: &dyn Env, file: &FileUse<'_>, at: At<'_>) -> Result<PatternUse, String> {
        let name = file.name;
        let role = if file.columns == Columns::Two { "map" } else { "acl" };
        let used = format!("by {role} at file '{}' line {}", at.file, at.line);
        let index = match self.files.get(name) {
            Some(&index) => index,
            None => {
                let text = env
                    .read(name, MAX_FILE)
                    .map_err(|e| format!("failed to open pattern file <{name}>: {e}"))?;
                let entries =
                    entries(&text, file.columns).map_err(|e| format!("pattern file '{name}': {e}"))?;
                let description = format!("pattern loaded from file '{name}' used");
                self.push(
                    name,
                    PatternSource {
                        id: 0,
                        file: Some(name.to_owned()),
                        identity: name.to_owned(),
                        description,
                        is_map: file.columns == Columns::Two,
                        entries: Arc::new(entries),
                        uses: Vec::new(),
                    },
                    file.columns,
                )
            }
        };
        let draft = &mut self.sets[index];
        if draft.columns != file.columns {
            let (is, wanted) = match draft.columns {
                Columns::One => ("one", "two"),
                Columns::Two => ("two", "one"),
            };
            return Err(format!(
                "the file '{name}' is already used as {is} column file and cannot be used as {wanted} column file"
            ));
        }
        let first = draft.source.uses.is_empty();
        let usage = PatternUse {
            set: index,
            method: file.method,
            ignore_case: file.ignore_case,
            output: file.output,
        };
        let checked = draft.source.uses.iter().any(|u| {
            u.method == usage.method && u.ignore_case == usage.ignore_case && u.output == usage.output
        });
        if !checked {
            let entries = Arc::make_mut(&mut draft.source.entries);
            for entry in entries.iter_mut() {
                let problem = settle(entry, file, env).err();
                if let Some(problem) = problem {
                    return Err(format!("{problem} at line {} of file '{name}'", entry.line));
                }
            }
        }
        draft.source.description.push_str(if first { " " } else { ", " });
        draft.source.description.push_str(&used);
        draft.source.uses.push(usage.clone());
        Ok(usage)
    }

    /// The set of the patterns that stand in an ACL itself. `scope` and `keyword` (section and sample
    /// expression) tell it from others, also after the configuration has grown.
    ///
    /// # Errors
    /// A pattern is wrong, or the `-u` id is taken.
    pub fn inline(&mut self, env: &dyn Env, inline: &Inline<'_>, at: At<'_>) -> Result<PatternUse, String> {
        let &Inline { scope, keyword, patterns, method, ignore_case, id, resolve } = inline;
        if let Some(id) = id
            && self.sets.iter().any(|s| s.wanted_id == Some(id))
        {
            return Err(format!("the unique id {id} is already used"));
        }
        let file = FileUse { name: "", columns: Columns::One, method, ignore_case, output: None, resolve };
        let mut entries = Vec::with_capacity(patterns.len());
        for text in patterns {
            let mut entry = PatternEntry { key: text.as_str().into(), value: None, line: at.line };
            settle(&mut entry, &file, env)?;
            entries.push(entry);
        }
        // Counted apart, so that one without patterns does not rename those with some.
        let kind = if patterns.is_empty() { "empty " } else { "" };
        let number = self.inline.entry(format!("{kind}{scope} {keyword}")).or_default();
        *number += 1;
        let identity = format!("{scope} acl '{keyword}' {kind}{number}");
        let name = keyword.split(['(', ',']).next().unwrap_or_default();
        let index = self.sets.len();
        let usage = PatternUse { set: index, method, ignore_case, output: None };
        self.sets.push(Draft {
            source: PatternSource {
                id: 0,
                file: None,
                identity,
                description: format!("acl '{name}' file '{}' line {}", at.file, at.line),
                is_map: false,
                entries: Arc::new(entries),
                uses: vec![usage.clone()],
            },
            columns: Columns::One,
            wanted_id: id,
        });
        Ok(usage)
    }

    /// Whether a file is used with so many columns: what rules edit must be looked into by something.
    pub fn has_file(&self, name: &str, columns: Columns) -> bool {
        self.files.get(name).is_some_and(|&index| self.sets[index].columns == columns)
    }

    fn push(&mut self, name: &str, source: PatternSource, columns: Columns) -> usize {
        let index = self.sets.len();
        self.files.insert(name.to_owned(), index);
        self.sets.push(Draft { source, columns, wanted_id: None });
        index
    }

    /// The sets, each with an id of its own: those of `-u`, the others numbered from 0.
    pub fn finish(self) -> Vec<Arc<PatternSource>> {
        let taken: Vec<u32> = self.sets.iter().filter_map(|s| s.wanted_id).collect();
        let mut free = (0..).filter(|id| !taken.contains(id));
        let numbered = self.sets.into_iter().map(|draft| {
            let id = draft.wanted_id.or_else(|| free.next()).unwrap_or_default();
            Arc::new(PatternSource { id, ..draft.source })
        });
        numbered.collect()
    }
}

/// Patterns that stand in an ACL itself.
#[derive(Clone, Copy, Debug)]
pub struct Inline<'a> {
    /// The section, as in `frontend 'web'`.
    pub scope: &'a str,
    /// The sample expression.
    pub keyword: &'a str,
    /// The patterns, operators resolved by [`with_operator`].
    pub patterns: &'a [String],
    /// How samples are compared.
    pub method: Method,
    /// `-i`.
    pub ignore_case: bool,
    /// `-u`.
    pub id: Option<u32>,
    /// Whether host names are resolved: not with `-n`.
    pub resolve: bool,
}

/// Checks an entry, and puts the address in place of a host name.
fn settle(entry: &mut PatternEntry, file: &FileUse<'_>, env: &dyn Env) -> Result<(), String> {
    if let Err(problem) = check(file.method, file.ignore_case, &entry.key) {
        let host = file.method == Method::Ip
            && file.resolve
            && entry.key.bytes().any(|b| b.is_ascii_alphabetic())
            && !entry.key.contains([':', '/', ' ']);
        let Some(addr) = host.then(|| env.resolve(&entry.key).ok()).flatten() else { return Err(problem) };
        entry.key = addr.to_string().into();
    }
    match (file.output, &entry.value) {
        (Some(output), Some(value)) => output.check(value),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

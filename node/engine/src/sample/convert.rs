//! Converters (manual section 7.3.1). Each takes what its type says and finds nothing in anything else.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Local, Utc};
use phalanx_config::pattern::Output;
use phalanx_config::{Arithmetic, Converter, HashFunction, HashKind, Map, Operand};

use super::value::{hexadecimal, input_for};
use super::{Context, Value, counter};
use crate::hash;

/// Longest text that a converter makes, as a bound of what a client can make the proxy build.
const MAX_TEXT: usize = 64 << 10;

/// Applies converters one after the other.
pub(super) fn all<'a>(
    converters: &'a [Converter],
    mut value: Value<'a>,
    at: &Context<'a>,
) -> Option<Value<'a>> {
    for converter in converters {
        value = one(converter, value, at)?;
    }
    Some(value)
}

fn one<'a>(converter: &'a Converter, value: Value<'a>, at: &Context<'a>) -> Option<Value<'a>> {
    use Converter::*;
    Some(match converter {
        Lower => text(value, u8::is_ascii_uppercase, <[u8]>::make_ascii_lowercase),
        Upper => text(value, u8::is_ascii_lowercase, <[u8]>::make_ascii_uppercase),
        Length => Value::Int(value.into_bytes().len() as i64),
        Ltrim(set) => cut(value.into_text(), |t| &t[t.iter().take_while(|b| set.contains(b)).count()..]),
        Rtrim(set) => {
            cut(value.into_text(), |t| &t[..t.len() - t.iter().rev().take_while(|b| set.contains(b)).count()])
        }
        Bytes(offset, length) => {
            let range = |t: &[u8]| {
                let start = (*offset).min(t.len());
                start..length.map_or(t.len(), |length| start.saturating_add(length).min(t.len()))
            };
            // Text stays text, as in HAProxy.
            let is_text = matches!(value, Value::Str(_));
            let part = match value.into_bytes() {
                Cow::Borrowed(t) => Cow::Borrowed(&t[range(t)]),
                Cow::Owned(t) => Cow::Owned(t[range(&t)].to_vec()),
            };
            if is_text { Value::Str(part) } else { Value::Bin(part) }
        }
        Field(index, by, count) => part(value.into_text(), |t| field(t, *index, by, *count, false))?,
        Word(index, by, count) => part(value.into_text(), |t| field(t, *index, by, *count, true))?,
        Regsub(regex, with, all) => Value::owned(regsub(&value.into_text(), &regex.0, with.as_bytes(), *all)),
        Concat(before, variable, after) => {
            let mut out = value.into_text().into_owned();
            out.extend_from_slice(before.as_bytes());
            if let Some(found) = variable.as_ref().and_then(|name| at.memory_of(name).variable(name)) {
                out.extend_from_slice(&found.to_text());
            }
            out.extend_from_slice(after.as_bytes());
            out.truncate(MAX_TEXT);
            Value::owned(out)
        }
        Strcmp(name) => {
            let (ours, theirs) = (value.into_text(), at.memory_of(name).variable(name)?);
            Value::Int(strcmp(&ours, &theirs.to_text()))
        }
        Iif(yes, no) => Value::text(if value.to_bool()? { yes.as_bytes() } else { no.as_bytes() }),
        Hex => Value::owned(hexadecimal(&value.into_bytes())),
        Hex2i => Value::Int(i64::from_str_radix(std::str::from_utf8(&value.into_text()).ok()?, 16).ok()?),
        Base64 => Value::owned(STANDARD.encode(value.into_bytes()).into_bytes()),
        Base64Decode => Value::Bin(Cow::Owned(STANDARD.decode(value.into_text()).ok()?)),
        UrlDecode(plus) => Value::owned(url_decode(&value.into_text(), *plus)?),
        UrlEncode => Value::owned(url_encode(&value.into_text())),
        Param(name, by) => part(value.into_text(), |t| param(t, name.as_bytes(), by))?,
        HostOnly => cut(value.into_text(), host_only),
        PortOnly => {
            let text = value.into_text();
            let digits = text[host_only(&text).len()..].strip_prefix(b":").unwrap_or(b"");
            Value::Int(std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).unwrap_or(0))
        }
        Ipmask(v4, v6) => Value::Ip(mask(value.to_ip()?, *v4, *v6)),
        Math(operation, operand) => Value::Int(math(*operation, value.to_int()?, operand, at)?),
        Neg => Value::Int(value.to_int()?.wrapping_neg()),
        Cpl => Value::Int(!value.to_int()?),
        Not => Value::Bool(value.to_int()? == 0),
        Bool => Value::Bool(value.to_int()? != 0),
        Even => Value::Bool(value.to_int()? & 1 == 0),
        Odd => Value::Bool(value.to_int()? & 1 == 1),
        Hash(kind, avalanche) => {
            let function = match kind {
                HashKind::Crc32 => HashFunction::Crc32,
                HashKind::Djb2 => HashFunction::Djb2,
                HashKind::Sdbm => HashFunction::Sdbm,
            };
            let sum = hash::hash(function, &value.into_bytes());
            Value::Int(i64::from(if *avalanche { hash::avalanche(sum) } else { sum }))
        }
        HttpDate(offset) => {
            let when = DateTime::from_timestamp(value.to_int()?.checked_add(*offset)?, 0)?;
            Value::owned(when.format("%a, %d %b %Y %H:%M:%S GMT").to_string().into_bytes())
        }
        Time(format, offset, local) => time(value.to_int()?.checked_add(*offset)?, format, *local)?,
        SetVar(name) => {
            at.memory_of(name).set(name, value.clone());
            value
        }
        UnsetVar(name) => {
            at.memory_of(name).unset(name);
            value
        }
        InTable(link) => {
            let table = counter::table(at, link.as_ref())?;
            Value::Bool(counter::contains(&value, table, at.now))
        }
        TableValue(link, what, default) => {
            counter::of_key(&value, counter::table(at, link.as_ref())?, *what, *default, at.now)?
        }
        Map(map) => look_up(map, &value, at)?,
    })
}

/// A text changed where it has bytes that are `wrong`: most have none.
fn text<'a>(value: Value<'a>, wrong: impl Fn(&u8) -> bool, change: fn(&mut [u8])) -> Value<'a> {
    let mut text = value.into_text();
    if text.iter().any(wrong) {
        change(text.to_mut());
    }
    Value::Str(text)
}

/// A part of a text that is always there.
fn cut<'a>(text: Cow<'a, [u8]>, f: impl Fn(&[u8]) -> &[u8]) -> Value<'a> {
    Value::Str(match text {
        Cow::Borrowed(text) => Cow::Borrowed(f(text)),
        Cow::Owned(text) => Cow::Owned(f(&text).to_vec()),
    })
}

/// A part of a text that may not be there.
fn part<'a>(text: Cow<'a, [u8]>, f: impl Fn(&[u8]) -> Option<&[u8]>) -> Option<Value<'a>> {
    Some(Value::Str(match text {
        Cow::Borrowed(text) => Cow::Borrowed(f(text)?),
        Cow::Owned(text) => Cow::Owned(f(&text)?.to_vec()),
    }))
}

/// Part number `index` of those between delimiters, and what follows it up to `count` parts (0 = all);
/// negative indices count from the end. A `word` is never empty. Empty when there is no such field.
fn field<'t>(text: &'t [u8], index: i64, by: &[u8], count: i64, words: bool) -> Option<&'t [u8]> {
    let mut parts = smallvec::SmallVec::<[(usize, usize); 16]>::new();
    let mut start = 0;
    for at in 0..=text.len() {
        if text.get(at).is_none_or(|b| by.contains(b)) {
            if !words || at > start {
                parts.push((start, at));
            }
            start = at + 1;
        }
    }
    let count = usize::try_from(count).unwrap_or(0);
    let empty = Some(&text[..0]);
    let (first, last) = if index > 0 {
        let first = index as usize - 1;
        (first, if count == 0 { parts.len() } else { first.saturating_add(count).min(parts.len()) })
    } else {
        let Some(last) = parts.len().checked_sub(index.unsigned_abs() as usize - 1) else { return empty };
        (if count == 0 { 0 } else { last.saturating_sub(count) }, last)
    };
    if first >= last || first >= parts.len() {
        return empty;
    }
    Some(&text[parts[first].0..parts[last - 1].1])
}

/// Replaces what matches by `with`, in which `\0` to `\9` stand for groups.
fn regsub(text: &[u8], regex: &regex::bytes::Regex, with: &[u8], all: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut from = 0;
    for groups in regex.captures_iter(text).take(if all { usize::MAX } else { 1 }) {
        let Some(whole) = groups.get(0) else { break };
        out.extend_from_slice(&text[from..whole.start()]);
        expand(with, &groups, &mut out);
        from = whole.end();
        if out.len() > MAX_TEXT {
            break;
        }
    }
    out.extend_from_slice(&text[from..]);
    out.truncate(MAX_TEXT);
    out
}

/// `with`, with groups in it, in place of the whole text if it matches.
pub(crate) fn regsub_whole(text: &[u8], regex: &regex::bytes::Regex, with: &[u8]) -> Option<Vec<u8>> {
    let groups = regex.captures(text)?;
    let mut out = Vec::new();
    expand(with, &groups, &mut out);
    out.truncate(MAX_TEXT);
    Some(out)
}

/// Appends `with`, with groups in the place of `\0` to `\9`.
fn expand(with: &[u8], groups: &regex::bytes::Captures<'_>, out: &mut Vec<u8>) {
    let mut bytes = with.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(digit @ b'0'..=b'9') => {
                    out.extend_from_slice(
                        groups.get(usize::from(digit - b'0')).map_or(b"", |g| g.as_bytes()),
                    );
                }
                Some(other) => out.push(other),
                None => out.push(b'\\'),
            },
            byte => out.push(byte),
        }
    }
}

/// As C compares: the difference of lengths where one is the beginning of the other.
fn strcmp(ours: &[u8], theirs: &[u8]) -> i64 {
    let common = ours.len().min(theirs.len());
    match ours[..common].cmp(&theirs[..common]) {
        std::cmp::Ordering::Less => -1,
        std::cmp::Ordering::Greater => 1,
        std::cmp::Ordering::Equal => ours.len() as i64 - theirs.len() as i64,
    }
}

/// `+` is a space in the query, or everywhere with `plus`.
fn url_decode(text: &[u8], plus: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut in_query = plus;
    let mut at = 0;
    while let Some(&b) = text.get(at) {
        match b {
            b'+' if in_query => out.push(b' '),
            b'?' => {
                in_query = true;
                out.push(b);
            }
            b'%' => {
                let digits = text.get(at + 1..at + 3).filter(|d| d.iter().all(u8::is_ascii_hexdigit))?;
                out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                at += 2;
            }
            _ => out.push(b),
        }
        at += 1;
    }
    Some(out)
}

fn url_encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &b in text {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(b);
        } else {
            out.push(b'%');
            out.extend(hexadecimal(&[b]));
        }
    }
    out
}

/// The value of a parameter in text such as `a=1&b=2`.
fn param<'t>(text: &'t [u8], name: &[u8], by: &[u8]) -> Option<&'t [u8]> {
    text.split(|b| by.contains(b)).find_map(|pair| {
        let rest = pair.strip_prefix(name)?;
        match rest.first() {
            None => Some(rest),
            Some(b'=') => Some(&rest[1..]),
            Some(_) => None,
        }
    })
}

/// A host without its port.
fn host_only(text: &[u8]) -> &[u8] {
    let after_bracket = memchr::memrchr(b']', text).map_or(0, |n| n + 1);
    match memchr::memchr(b':', &text[after_bracket..]) {
        Some(n) => &text[..after_bracket + n],
        None => text,
    }
}

fn mask(ip: IpAddr, v4: u8, v6: u8) -> IpAddr {
    use phalanx_config::pattern::{prefix4, prefix6};
    match ip {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & prefix4(v4)).into()),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & prefix6(v6)).into()),
    }
}

/// Results that do not fit stay at the limit, as in HAProxy; dividing by 0 gives the greatest number.
fn math(operation: Arithmetic, a: i64, operand: &Operand, at: &Context<'_>) -> Option<i64> {
    let b = match operand {
        Operand::Int(n) => *n,
        Operand::Var(name) => at.memory_of(name).variable(name)?.to_int()?,
    };
    Some(match operation {
        Arithmetic::Add => a.saturating_add(b),
        Arithmetic::Sub => a.saturating_sub(b),
        Arithmetic::Mul => a.saturating_mul(b),
        Arithmetic::Div => a.checked_div(b).unwrap_or(i64::MAX),
        Arithmetic::Mod => a.checked_rem(b).unwrap_or(0),
        Arithmetic::And => a & b,
        Arithmetic::Or => a | b,
        Arithmetic::Xor => a ^ b,
    })
}

fn time<'a>(seconds: i64, format: &str, local: bool) -> Option<Value<'a>> {
    use std::fmt::Write;
    let when = DateTime::<Utc>::from_timestamp(seconds, 0)?;
    let mut out = String::new();
    // A format that chrono does not know writes nothing rather than panics.
    let written = match local {
        true => write!(out, "{}", when.with_timezone(&Local).format(format)),
        false => write!(out, "{}", when.format(format)),
    };
    written.ok()?;
    Some(Value::owned(out.into_bytes()))
}

/// What a map gives for a value.
fn look_up<'a>(map: &'a Map, value: &Value<'a>, at: &Context<'a>) -> Option<Value<'a>> {
    let usage = &map.patterns;
    let input = input_for(usage.method, value)?;
    let of = |text: &[u8]| match usage.output {
        Some(Output::Int) => Value::text(text).to_int().map(Value::Int),
        Some(Output::Ip) => Value::text(text).to_ip().map(Value::Ip),
        _ => Some(Value::owned(text.to_vec())),
    };
    let found = at.world?.plan.matcher(usage).and_then(|matcher| match usage.output {
        Some(Output::Regm) => matcher.expand(&input).map(Value::owned),
        Some(Output::Key) => matcher.find(&input, |entry| Some(Value::owned(entry.key_bytes().into())))?,
        Some(Output::Int) => matcher.find(&input, |entry| entry.int().map(Value::Int))?,
        Some(Output::Ip) => matcher.find(&input, |entry| entry.ip().map(Value::Ip))?,
        Some(Output::Str) | None => matcher.find(&input, |entry| of(entry.value_bytes()?))?,
    });
    found.or_else(|| of(map.default.as_ref()?.as_bytes()))
}

//! Fetches from the heads of requests and responses (manual section 7.3.6).

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use phalanx_config::{Fetch, Named};

use super::{Context, Message, Value};
use crate::h1::Head;
use crate::hash;

/// The last value of header `name` (lower case): the last element of its comma-separated list.
pub fn last_value<'a>(buf: &'a [u8], head: &'a Head, name: &[u8]) -> Option<&'a [u8]> {
    elements(head.last(buf, name)?).last()
}

/// The path of a request target, without query; `None` for `*` and an authority.
pub fn path(target: &[u8]) -> Option<&[u8]> {
    let rest = path_and_query(target)?;
    Some(&rest[..memchr::memchr(b'?', rest).unwrap_or(rest.len())])
}

/// The path with the query.
pub(crate) fn path_and_query(target: &[u8]) -> Option<&[u8]> {
    let from = match target.first()? {
        b'/' => 0,
        _ => {
            let scheme = memchr::memmem::find(target, b"://")? + 3;
            scheme + memchr::memchr(b'/', &target[scheme..])?
        }
    };
    Some(&target[from..])
}

/// The query of a request target.
pub fn query(target: &[u8]) -> Option<&[u8]> {
    memchr::memchr(b'?', target).map(|n| &target[n + 1..])
}

/// The first parameter `name` of the query.
pub fn url_param<'a>(target: &'a [u8], name: &'a [u8]) -> Option<&'a [u8]> {
    params(target, Some(name)).next()
}

/// The values of the parameters `name`, or of all.
fn params<'a>(target: &'a [u8], name: Option<&'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    query(target).into_iter().flat_map(|query| query.split(|b| *b == b'&')).filter_map(move |pair| {
        let equals = memchr::memchr(b'=', pair)?;
        name.is_none_or(|name| &pair[..equals] == name).then(|| &pair[equals + 1..])
    })
}

/// The elements of a comma-separated list without the white space around them.
fn elements(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    split_list(line).map(<[u8]>::trim_ascii)
}

/// The elements of a comma-separated list; commas in quotes do not count.
pub(crate) fn split_list(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    let mut ends = smallvec::SmallVec::<[usize; 8]>::new();
    for (at, b) in line.iter().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => ends.push(at),
            _ => {}
        }
    }
    ends.push(line.len());
    let mut starts: smallvec::SmallVec<[usize; 8]> = smallvec::smallvec![0];
    starts.extend(ends.iter().take(ends.len() - 1).map(|end| end + 1));
    (0..ends.len()).map(move |n| &line[starts[n]..ends[n]])
}

/// Calls `f` with each value of a header until it says to stop; whether it did.
fn each_value<'a>(
    (buf, head): Message<'a>,
    named: &'a Named,
    full: bool,
    f: &mut dyn FnMut(&'a [u8]) -> bool,
) -> bool {
    let name = named.name.as_deref().map(str::as_bytes);
    let lines = head.fields.iter().filter(|field| name.is_none_or(|name| field.name.of(buf) == name));
    for line in lines.map(|field| field.value.of(buf)) {
        if full || memchr::memchr(b',', line).is_none() {
            if f(line) {
                return true;
            }
        } else if elements(line).any(&mut *f) {
            return true;
        }
    }
    false
}

/// The occurrence that is asked for; the last for 0.
fn occurrence<'a>(message: Message<'a>, named: &'a Named, full: bool) -> Option<&'a [u8]> {
    if named.occurrence == 0 {
        let mut last = None;
        each_value(message, named, full, &mut |value| {
            last = Some(value);
            false
        });
        return last;
    }
    let mut count = 0usize;
    each_value(message, named, full, &mut |_| {
        count += 1;
        false
    });
    let wanted = match named.occurrence {
        n @ 1.. => n as usize - 1,
        n => count.checked_sub(n.unsigned_abs() as usize)?,
    };
    let (mut at, mut found) = (0, None);
    each_value(message, named, full, &mut |value| {
        if at == wanted {
            found = Some(value);
        }
        at += 1;
        found.is_some()
    });
    found
}

fn message<'a>(named: &Named, at: &Context<'a>) -> Option<Message<'a>> {
    if named.response { at.response } else { at.request }
}

/// Cookies called `name`, or all; those of a response are in `Set-Cookie`.
fn each_cookie<'a>((buf, head): Message<'a>, named: &'a Named, f: &mut dyn FnMut(&'a [u8]) -> bool) -> bool {
    let header: &[u8] = if named.response { b"set-cookie" } else { b"cookie" };
    let name = named.name.as_deref().map(str::as_bytes);
    let lines = head.fields.iter().filter(|field| field.name.of(buf) == header);
    for line in lines.map(|field| field.value.of(buf)) {
        // What follows the first pair of `Set-Cookie` are attributes.
        let most = if named.response { 1 } else { usize::MAX };
        for pair in line.split(|b| *b == b';').take(most) {
            let Some(equals) = memchr::memchr(b'=', pair) else { continue };
            let fits = name.is_none_or(|name| pair[..equals].trim_ascii() == name);
            if fits && f(pair[equals + 1..].trim_ascii()) {
                return true;
            }
        }
    }
    false
}

/// Calls `f` with each value of a fetch that may have several, until it says to stop; `None` when the
/// fetch is not of that kind.
pub(super) fn each<'a>(
    fetch: &'a Fetch,
    at: &Context<'a>,
    f: &mut dyn FnMut(Value<'a>) -> bool,
) -> Option<bool> {
    Some(match fetch {
        Fetch::Hdr(named) if named.occurrence == 0 => {
            each_value(message(named, at)?, named, false, &mut |value| f(Value::text(value)))
        }
        Fetch::FullHdr(named) if named.occurrence == 0 => {
            each_value(message(named, at)?, named, true, &mut |value| f(Value::text(value)))
        }
        Fetch::HdrVal(named) if named.occurrence == 0 => {
            each_value(message(named, at)?, named, false, &mut |value| number(value).is_some_and(&mut *f))
        }
        Fetch::HdrIp(named) if named.occurrence == 0 => {
            each_value(message(named, at)?, named, false, &mut |value| address(value).is_some_and(&mut *f))
        }
        Fetch::Cook(named) => each_cookie(message(named, at)?, named, &mut |value| f(Value::text(value))),
        Fetch::CookVal(named) => {
            each_cookie(message(named, at)?, named, &mut |value| number(value).is_some_and(&mut *f))
        }
        Fetch::UrlParam(name) => {
            let (buf, head) = at.request?;
            params(head.target(buf), name.as_deref().map(str::as_bytes)).any(|value| f(Value::text(value)))
        }
        _ => return None,
    })
}

/// One value of a fetch from a head.
pub(super) fn fetch<'a>(fetch: &'a Fetch, at: &Context<'a>) -> Option<Value<'a>> {
    Some(match fetch {
        Fetch::Hdr(named) => Value::text(occurrence(message(named, at)?, named, false)?),
        Fetch::FullHdr(named) => Value::text(occurrence(message(named, at)?, named, true)?),
        Fetch::HdrIp(named) => address(occurrence(message(named, at)?, named, false)?)?,
        Fetch::HdrVal(named) => number(occurrence(message(named, at)?, named, false)?)?,
        Fetch::HdrCount(named) => count(|f| each_value(message(named, at)?, named, false, f).into()),
        Fetch::FullHdrCount(named) => count(|f| each_value(message(named, at)?, named, true, f).into()),
        Fetch::HdrNames { response, delimiter } => {
            let (buf, head) = if *response { at.response? } else { at.request? };
            let names: Vec<&[u8]> = head.fields.iter().map(|field| field.name.of(buf)).collect();
            Value::owned(names.join(delimiter.as_bytes()))
        }
        Fetch::Cook(named) => {
            let mut found = None;
            each_cookie(message(named, at)?, named, &mut |value| {
                found = Some(value);
                // That of a request is the last, that of a response the first, as before.
                named.response
            });
            Value::text(found?)
        }
        Fetch::CookVal(named) => {
            let mut found = None;
            each_cookie(message(named, at)?, named, &mut |value| {
                found = number(value);
                named.response
            });
            found?
        }
        Fetch::CookCount(named) => count(|f| each_cookie(message(named, at)?, named, f).into()),
        Fetch::Status => Value::Int(i64::from(at.response?.1.start.status)),
        Fetch::Version { response } => {
            let (_, head) = if *response { at.response? } else { at.request? };
            match head.start.version {
                10 => Value::text(b"1.0"),
                11 => Value::text(b"1.1"),
                other => Value::owned(format!("{}.{}", other / 10, other % 10).into_bytes()),
            }
        }
        _ => return request(fetch, at),
    })
}

fn request<'a>(fetch: &'a Fetch, at: &Context<'a>) -> Option<Value<'a>> {
    let (buf, head) = at.request?;
    let target = head.target(buf);
    Some(match fetch {
        Fetch::Path => Value::text(path(target)?),
        Fetch::PathQuery => Value::text(path_and_query(target)?),
        Fetch::Url => Value::text(target),
        Fetch::Query => Value::text(query(target).unwrap_or(b"")),
        Fetch::Method => Value::text(head.method(buf)),
        Fetch::UrlParam(name) => Value::text(params(target, name.as_deref().map(str::as_bytes)).next()?),
        Fetch::UrlParamVal(name) => number(params(target, name.as_deref().map(str::as_bytes)).next()?)?,
        Fetch::Base => Value::owned(base(buf, head)?),
        Fetch::Base32 { with_src } => {
            let sum = sdbm(&base(buf, head)?);
            if !with_src {
                return Some(Value::Int(i64::from(sum)));
            }
            let mut bytes = sum.to_be_bytes().to_vec();
            match at.src.ip().to_canonical() {
                IpAddr::V4(ip) => bytes.extend(ip.octets()),
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
            Value::Bin(Cow::Owned(bytes))
        }
        Fetch::ProtoHttp => Value::Bool(true),
        Fetch::BodySize => {
            let length = head.last(buf, b"content-length").and_then(number);
            length.unwrap_or(Value::Int(0))
        }
        Fetch::AuthType | Fetch::AuthUser | Fetch::AuthPass => {
            let line = head.last(buf, b"authorization")?;
            let space = memchr::memchr(b' ', line)?;
            let (kind, rest) = (&line[..space], line[space..].trim_ascii());
            if *fetch == Fetch::AuthType {
                return Some(Value::text(kind));
            }
            if !kind.eq_ignore_ascii_case(b"basic") {
                return None;
            }
            let both = STANDARD.decode(rest).ok()?;
            let colon = memchr::memchr(b':', &both)?;
            let part = if *fetch == Fetch::AuthUser { &both[..colon] } else { &both[colon + 1..] };
            Value::owned(part.to_vec())
        }
        _ => return None,
    })
}

/// How often a walk calls back; nothing to walk over counts as none.
fn count<'a>(walk: impl FnOnce(&mut dyn FnMut(&'a [u8]) -> bool) -> Option<bool>) -> Value<'a> {
    let mut n = 0;
    let _ = walk(&mut |_| {
        n += 1;
        false
    });
    Value::Int(n)
}

/// `Host` and path, as they identify a resource.
fn base(buf: &[u8], head: &Head) -> Option<Vec<u8>> {
    let mut base = last_value(buf, head, b"host").unwrap_or(b"").to_vec();
    base.extend_from_slice(path(head.target(buf))?);
    Some(base)
}

fn sdbm(bytes: &[u8]) -> u32 {
    hash::avalanche(hash::hash(phalanx_config::HashFunction::Sdbm, bytes))
}

fn number<'a>(text: &[u8]) -> Option<Value<'a>> {
    Value::text(text).to_int().map(Value::Int)
}

/// An address, also with a port behind it, as proxies write it.
fn address<'a>(text: &[u8]) -> Option<Value<'a>> {
    let text = std::str::from_utf8(text).ok()?;
    let plain = text.parse().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|addr| addr.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    plain.or_else(with_port).or_else(bracketed).map(Value::Ip)
}

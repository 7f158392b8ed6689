//! The persistence cookie (`cookie` of a backend, manual section 4.2).
//!
//! The proxy asks which values the client presented, finds the server itself, has the request
//! cleaned before it is sent on, and has the response's `Set-Cookie` fields treated by mode. Dates
//! are seconds since the epoch, given as arguments; on the wire they are HAProxy's: a quarter of the
//! seconds in five base64 digits, so that its cookies stay valid when a node replaces it.

use phalanx_config::{Cookie, CookieMode};

use crate::end::ResponseCookie;
use crate::h1::{Edits, Head};

/// A value that the client presented under the cookie's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presented<'a> {
    /// The part that names the server.
    pub key: &'a [u8],
    /// Whether it may still be used.
    pub age: Age,
    /// When it was last sent to the client.
    pub last: Option<u64>,
    /// When the client first got it.
    pub first: Option<u64>,
}

/// What `maxidle` and `maxlife` say about a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It may be used.
    Fresh,
    /// Unused for longer than `maxidle`.
    Expired,
    /// Older than `maxlife`.
    Old,
}

/// What the answer to the client depends on besides the response.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer<'a> {
    /// The `cookie` of the server that answered.
    pub key: Option<&'a str>,
    /// Whether the client's cookie led to this server.
    pub direct: bool,
    /// [`Presented::last`] of that cookie.
    pub last: Option<u64>,
    /// [`Presented::first`] of that cookie.
    pub first: Option<u64>,
    /// Whether the request was a POST.
    pub post: bool,
    /// The current time in seconds since the epoch.
    pub now: u64,
}

/// The values that the request presents, in order; the first that leads to a server counts.
pub fn presented<'a>(
    cookie: &'a Cookie,
    buf: &'a [u8],
    head: &'a Head,
    now: u64,
) -> impl Iterator<Item = Presented<'a>> + 'a {
    head.values(buf, b"cookie")
        .flat_map(|line| line.split(|b| *b == b';'))
        .filter_map(|pair| value_of(pair, cookie.name.as_bytes()))
        .map(move |value| present(cookie, value, now))
}

/// Takes out of the request what the server is not to see.
pub fn clean(cookie: &Cookie, buf: &[u8], head: &Head, edits: &mut Edits) {
    let strip = cookie.mode == CookieMode::Insert && cookie.indirect;
    if !strip && cookie.mode != CookieMode::Prefix {
        return;
    }
    let name = cookie.name.as_bytes();
    for (index, field) in head.fields.iter().enumerate() {
        if field.name.of(buf) != b"cookie" {
            continue;
        }
        let line = field.value.of(buf);
        if !line.split(|b| *b == b';').any(|pair| value_of(pair, name).is_some()) {
            continue;
        }
        let mut kept = Vec::with_capacity(line.len());
        for pair in line.split(|b| *b == b';').map(<[u8]>::trim_ascii) {
            let value = value_of(pair, name);
            if pair.is_empty() || strip && value.is_some() {
                continue;
            }
            if !kept.is_empty() {
                kept.extend_from_slice(b"; ");
            }
            match value.and_then(|v| Some((v, memchr::memchr(b'~', v)?))) {
                Some((value, delimiter)) => {
                    kept.extend_from_slice(name);
                    kept.push(b'=');
                    kept.extend_from_slice(&value[delimiter + 1..]);
                }
                None => kept.extend_from_slice(pair),
            }
        }
        if kept.is_empty() {
            edits.drop_field(index);
        } else {
            edits.replace(index, &kept);
        }
    }
}

/// Treats the response and says what was done.
pub fn answer(
    cookie: &Cookie,
    buf: &[u8],
    head: &Head,
    with: &Answer<'_>,
    edits: &mut Edits,
) -> ResponseCookie {
    if cookie.mode == CookieMode::Passive && !cookie.indirect {
        return ResponseCookie::None;
    }
    let mut done = server_cookie(cookie, buf, head, with, edits);
    let provided = done == ResponseCookie::Provided;
    if cookie.mode == CookieMode::Insert
        && !provided
        && (!cookie.postonly || with.post)
        && let Some(what) = insertion(cookie, with)
    {
        insert(cookie, with, edits);
        done = what;
    }
    let set = matches!(done, ResponseCookie::Inserted | ResponseCookie::Updated | ResponseCookie::Rewritten);
    if set && cookie.nocache && is_cacheable(buf, head) {
        edits.add(b"cache-control", &[b"private"]);
    }
    done
}

/// Deletes, rewrites or passes the `Set-Cookie` fields that the server sent under our name.
fn server_cookie(
    cookie: &Cookie,
    buf: &[u8],
    head: &Head,
    with: &Answer<'_>,
    edits: &mut Edits,
) -> ResponseCookie {
    let mut done = ResponseCookie::Absent;
    for (index, field) in head.fields.iter().enumerate() {
        if field.name.of(buf) != b"set-cookie" {
            continue;
        }
        let line = field.value.of(buf);
        let end = memchr::memchr(b';', line).unwrap_or(line.len());
        let Some(value) = value_of(&line[..end], cookie.name.as_bytes()) else { continue };
        let attributes = &line[end..];
        done = match (cookie.mode, with.key) {
            _ if cookie.preserve => ResponseCookie::Provided,
            (CookieMode::Insert, _) => {
                edits.drop_field(index);
                ResponseCookie::Deleted
            }
            _ if cookie.indirect && with.direct => {
                edits.drop_field(index);
                ResponseCookie::Deleted
            }
            (CookieMode::Rewrite, Some(key)) => {
                let text = [cookie.name.as_bytes(), b"=", key.as_bytes(), attributes].concat();
                edits.replace(index, &text);
                ResponseCookie::Rewritten
            }
            (CookieMode::Prefix, Some(key)) => {
                let text = [cookie.name.as_bytes(), b"=", key.as_bytes(), b"~", value, attributes].concat();
                edits.replace(index, &text);
                ResponseCookie::Rewritten
            }
            _ => ResponseCookie::Provided,
        };
    }
    done
}

/// Whether a cookie is to be set, and what that is called.
fn insertion(cookie: &Cookie, with: &Answer<'_>) -> Option<ResponseCookie> {
    if !with.direct {
        return Some(ResponseCookie::Inserted);
    }
    let stale = |date: Option<u64>| date.is_none_or(|d| d < quarter(with.now) << 2);
    let renew = cookie.maxidle.is_some() && stale(with.last)
        || cookie.maxidle.is_none() && cookie.maxlife.is_none() && with.last.is_some()
        || cookie.maxlife.is_some() != with.first.is_some();
    renew.then_some(ResponseCookie::Updated)
}

fn insert(cookie: &Cookie, with: &Answer<'_>, edits: &mut Edits) {
    let mut text = Vec::with_capacity(64);
    text.extend_from_slice(cookie.name.as_bytes());
    text.push(b'=');
    match with.key {
        Some(key) => {
            text.extend_from_slice(key.as_bytes());
            if cookie.maxidle.is_some() || cookie.maxlife.is_some() {
                text.push(b'|');
                push_date(with.now, &mut text);
            }
            if cookie.maxlife.is_some() {
                text.push(b'|');
                let first = if with.direct { with.first } else { None };
                push_date(first.unwrap_or(with.now), &mut text);
            }
        }
        // A server without a `cookie`: the client is to forget the one it may have.
        None => text.extend_from_slice(b"; Expires=Thu, 01-Jan-1970 00:00:01 GMT"),
    }
    text.extend_from_slice(b"; path=/");
    for domain in &cookie.domains {
        text.extend_from_slice(b"; domain=");
        text.extend_from_slice(domain.as_bytes());
    }
    if cookie.httponly {
        text.extend_from_slice(b"; HttpOnly");
    }
    if cookie.secure {
        text.extend_from_slice(b"; Secure");
    }
    for attr in &cookie.attrs {
        text.extend_from_slice(b"; ");
        text.extend_from_slice(attr.as_bytes());
    }
    edits.add(b"set-cookie", &[&text]);
}

/// The value of `pair` if its name is `name`.
fn value_of<'a>(pair: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let equals = memchr::memchr(b'=', pair)?;
    (pair[..equals].trim_ascii() == name).then(|| pair[equals + 1..].trim_ascii())
}

fn present<'a>(cookie: &Cookie, value: &'a [u8], now: u64) -> Presented<'a> {
    let mut found = Presented { key: value, age: Age::Fresh, last: None, first: None };
    match cookie.mode {
        CookieMode::Prefix => {
            found.key = memchr::memchr(b'~', value).map_or(&[][..], |n| &value[..n]);
        }
        CookieMode::Insert => {
            let mut parts = value.splitn(3, |b| *b == b'|');
            found.key = parts.next().unwrap_or(value);
            found.last = parts.next().and_then(date);
            found.first = parts.next().and_then(date);
            let beyond = |date: Option<u64>, limit: Option<std::time::Duration>| match (date, limit) {
                (Some(d), Some(limit)) => d + limit.as_secs() < now || d > now + 86_400,
                _ => false,
            };
            if beyond(found.first, cookie.maxlife) {
                found.age = Age::Old;
            } else if beyond(found.last, cookie.maxidle) {
                found.age = Age::Expired;
            }
        }
        CookieMode::Passive | CookieMode::Rewrite => {}
    }
    found
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn quarter(seconds: u64) -> u64 {
    seconds.saturating_add(3) >> 2 & 0x3fff_ffff
}

fn push_date(seconds: u64, out: &mut Vec<u8>) {
    let n = quarter(seconds);
    for shift in [24, 18, 12, 6, 0] {
        out.push(DIGITS[(n >> shift & 63) as usize]);
    }
}

/// A date, unless it is malformed or zero, which stands for none.
fn date(text: &[u8]) -> Option<u64> {
    if text.len() != 5 {
        return None;
    }
    let n = text.iter().try_fold(0u64, |n, b| Some(n << 6 | DIGITS.iter().position(|d| d == b)? as u64))?;
    (n > 0).then_some(n << 2)
}

/// Whether a shared cache could store the response as it stands.
fn is_cacheable(buf: &[u8], head: &Head) -> bool {
    let mut reason = false;
    for field in &head.fields {
        match field.name.of(buf) {
            b"etag" | b"last-modified" | b"expires" => reason = true,
            b"cache-control" => {
                for directive in field.value.of(buf).split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    let name = directive.split(|b| *b == b'=').next().unwrap_or(directive);
                    if [&b"no-cache"[..], b"no-store", b"private"]
                        .iter()
                        .any(|n| name.eq_ignore_ascii_case(n))
                    {
                        return false;
                    }
                    reason |= name.eq_ignore_ascii_case(b"max-age") || name.eq_ignore_ascii_case(b"s-maxage");
                }
            }
            b"pragma" if field.value.of(buf).eq_ignore_ascii_case(b"no-cache") => return false,
            _ => {}
        }
    }
    reason
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::h1::{self, Parsed};

    fn cookie(mode: CookieMode) -> Cookie {
        Cookie {
            name: "SRV".into(),
            mode,
            indirect: false,
            nocache: false,
            postonly: false,
            preserve: false,
            httponly: false,
            secure: false,
            domains: vec![],
            attrs: vec![],
            maxidle: None,
            maxlife: None,
        }
    }

    fn insert_indirect() -> Cookie {
        Cookie { indirect: true, nocache: true, ..cookie(CookieMode::Insert) }
    }

    fn request(fields: &str) -> (Vec<u8>, Head) {
        let (mut buf, mut head) = (format!("GET / HTTP/1.1\r\n{fields}\r\n").into_bytes(), Head::default());
        assert!(matches!(h1::request(&mut buf, &mut head), Ok(Parsed::Complete(_))));
        (buf, head)
    }

    fn cleaned(cookie: &Cookie, fields: &str) -> String {
        let (buf, head) = request(fields);
        let (mut edits, mut out) = (Edits::default(), Vec::new());
        clean(cookie, &buf, &head, &mut edits);
        h1::write_request(&buf, &head, &edits, &mut out);
        String::from_utf8(out).unwrap().strip_prefix("GET / HTTP/1.1\r\n").unwrap().trim_end().to_string()
    }

    fn answered(cookie: &Cookie, with: Answer<'_>, fields: &str) -> (ResponseCookie, String) {
        let (mut buf, mut head) = (format!("HTTP/1.1 200 OK\r\n{fields}\r\n").into_bytes(), Head::default());
        assert!(matches!(h1::response(&mut buf, &mut head), Ok(Parsed::Complete(_))));
        let (mut edits, mut out) = (Edits::default(), Vec::new());
        let done = answer(cookie, &buf, &head, &with, &mut edits);
        h1::write_response(&buf, &head, &edits, &mut out);
        let text = String::from_utf8(out).unwrap();
        (done, text.strip_prefix("HTTP/1.1 200 OK\r\n").unwrap().trim_end().to_string())
    }

    #[test]
    fn values_are_found_in_any_cookie_field() {
        let cookie = insert_indirect();
        let keys = |fields: &str| {
            let (buf, head) = request(fields);
            presented(&cookie, &buf, &head, 0)
                .map(|p| String::from_utf8_lossy(p.key).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(keys("Cookie:a=b;SRV=s1 ; c=d;SRV=s2;\r\n"), ["s1", "s2"]);
        assert_eq!(keys("Cookie: z=1\r\nCookie: SRV = s1\r\n"), ["s1"]);
        assert_eq!(keys("Cookie: xSRV=s1; srv=s1; SRV\r\n"), [""; 0]);
        assert_eq!(keys("Cookie: SRV=\r\n"), [""]);
    }

    #[test]
    fn an_indirect_cookie_is_hidden_from_the_server() {
        let cookie = insert_indirect();
        assert_eq!(cleaned(&cookie, "Cookie: a=b; SRV=s1; c=d\r\n"), "cookie: a=b; c=d");
        assert_eq!(cleaned(&cookie, "Cookie: SRV=s1\r\nCookie: z=1; SRV=s1\r\n"), "cookie: z=1");
        assert_eq!(cleaned(&cookie, "Cookie: SRV\r\n"), "cookie: SRV");
        let direct = super::tests::cookie(CookieMode::Insert);
        assert_eq!(cleaned(&direct, "Cookie: SRV=s1\r\n"), "cookie: SRV=s1");
    }

    #[test]
    fn a_prefix_is_taken_off_and_put_back() {
        let cookie = cookie(CookieMode::Prefix);
        assert_eq!(cleaned(&cookie, "Cookie: q=1; SRV=s1~abc\r\n"), "cookie: q=1; SRV=abc");
        assert_eq!(cleaned(&cookie, "Cookie: SRV=abc\r\n"), "cookie: SRV=abc");
        let with = Answer { key: Some("s1"), ..Answer::default() };
        let done = answered(&cookie, with, "Set-Cookie: SRV=abc; path=/x\r\n");
        assert_eq!(done, (ResponseCookie::Rewritten, "set-cookie: SRV=s1~abc; path=/x".into()));
    }

    #[test]
    fn insertion_follows_the_modes_as_haproxy_does() {
        use ResponseCookie::*;
        let fresh = Answer { key: Some("s1"), ..Answer::default() };
        let direct = Answer { direct: true, ..fresh };
        let preserve = Cookie { preserve: true, ..insert_indirect() };
        let private = "etag: \"x\"\r\nset-cookie: SRV=s1; path=/\r\ncache-control: private";
        let cases = [
            (insert_indirect(), fresh, "", Inserted, "set-cookie: SRV=s1; path=/"),
            (insert_indirect(), direct, "", Absent, ""),
            (insert_indirect(), direct, "Set-Cookie: SRV=foo\r\n", Deleted, ""),
            (insert_indirect(), fresh, "Set-Cookie: SRV=foo\r\n", Inserted, "set-cookie: SRV=s1; path=/"),
            (insert_indirect(), fresh, "ETag: \"x\"\r\n", Inserted, private),
            (
                insert_indirect(),
                fresh,
                "Cache-Control: no-cache\r\n",
                Inserted,
                "cache-control: no-cache\r\nset-cookie: SRV=s1; path=/",
            ),
            (preserve, fresh, "Set-Cookie: SRV=foo\r\n", Provided, "set-cookie: SRV=foo"),
            (cookie(CookieMode::Rewrite), fresh, "Set-Cookie: SRV=\r\n", Rewritten, "set-cookie: SRV=s1"),
            (cookie(CookieMode::Rewrite), fresh, "", Absent, ""),
            (cookie(CookieMode::Passive), fresh, "Set-Cookie: SRV=x\r\n", None, "set-cookie: SRV=x"),
            (
                insert_indirect(),
                Answer::default(),
                "",
                Inserted,
                "set-cookie: SRV=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/",
            ),
        ];
        for (cookie, with, fields, done, text) in cases {
            assert_eq!(answered(&cookie, with, fields), (done, text.to_string()), "{cookie:?} {with:?}");
        }
        let postonly = Cookie { postonly: true, ..insert_indirect() };
        assert_eq!(answered(&postonly, fresh, "").0, Absent);
        assert_eq!(answered(&postonly, Answer { post: true, ..fresh }, "").0, Inserted);
    }

    #[test]
    fn dates_are_those_of_haproxy() {
        let hours = |h: u64| Some(Duration::from_secs(h * 3600));
        let cookie = Cookie {
            maxidle: hours(1),
            maxlife: hours(8),
            httponly: true,
            secure: true,
            domains: vec![".a.b".into()],
            attrs: vec!["SameSite=None".into()],
            ..insert_indirect()
        };
        let now = 1_795_235_720;
        let with = Answer { key: Some("s1"), now, ..Answer::default() };
        // Seen from HAProxy 2.6 at that second.
        let text = "set-cookie: SRV=s1|awEfi|awEfi; path=/; domain=.a.b; HttpOnly; Secure; SameSite=None"
            .to_string();
        assert_eq!(answered(&cookie, with, ""), (ResponseCookie::Inserted, text));
        let (buf, head) = request("Cookie: SRV=s1|awEfi|awEfi\r\n");
        let age = |now| presented(&cookie, &buf, &head, now).next().unwrap().age;
        assert_eq!(age(now), Age::Fresh);
        assert_eq!(age(now + 3601), Age::Expired);
        assert_eq!(age(now + 8 * 3600 + 1), Age::Old);
        assert_eq!(age(now - 90_000), Age::Old);
        let found = presented(&cookie, &buf, &head, now).next().unwrap();
        let later = Answer { direct: true, last: found.last, first: found.first, now: now + 400, ..with };
        let (done, text) = answered(&cookie, later, "");
        assert_eq!(done, ResponseCookie::Updated);
        assert!(text.contains("SRV=s1|awEhG|awEfi"), "{text}");
    }
}

//! Sample expressions: a fetch and its converters, evaluated on borrowed bytes (manual section 7).
//!
//! The configuration was checked when it was read, so evaluation cannot fail, only find nothing.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use phalanx_config::{Converter, Expr, Fetch};

use crate::h1::Head;

/// What an expression may look at.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The client.
    pub src: SocketAddr,
    /// Where it connected to.
    pub dst: SocketAddr,
    /// The request's bytes and parsed head; `None` before there is one.
    pub request: Option<(&'a [u8], &'a Head)>,
}

/// The result of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An address.
    Ip(IpAddr),
    /// A number.
    Int(i64),
    /// Text.
    Str(Cow<'a, [u8]>),
}

impl Value<'_> {
    /// As text, the way HAProxy casts it to a string.
    pub fn to_text(&self) -> Cow<'_, [u8]> {
        match self {
            Value::Ip(ip) => Cow::Owned(ip.to_string().into_bytes()),
            Value::Int(n) => Cow::Owned(n.to_string().into_bytes()),
            Value::Str(text) => Cow::Borrowed(text),
        }
    }
}

/// Evaluates `expr`; `None` = the sample does not exist.
pub fn evaluate<'a>(expr: &'a Expr, at: &Context<'a>) -> Option<Value<'a>> {
    let value = fetch(&expr.fetch, at)?;
    Some(expr.converters.iter().fold(value, convert))
}

/// The last value of header `name` (lower case): the last element of its comma-separated list.
pub fn last_value<'a>(buf: &'a [u8], head: &'a Head, name: &[u8]) -> Option<&'a [u8]> {
    let line = head.last(buf, name)?;
    let mut quoted = false;
    let mut start = 0;
    for (i, b) in line.iter().enumerate() {
        match b {
            b'"' => quoted = !quoted,
            b',' if !quoted => start = i + 1,
            _ => {}
        }
    }
    Some(line[start..].trim_ascii())
}

/// The path of a request target, without query; `None` for `*` and an authority.
pub fn path(target: &[u8]) -> Option<&[u8]> {
    let from = match target.first()? {
        b'/' => 0,
        _ => {
            let scheme = memchr::memmem::find(target, b"://")? + 3;
            scheme + memchr::memchr(b'/', &target[scheme..])?
        }
    };
    let rest = &target[from..];
    Some(&rest[..memchr::memchr(b'?', rest).unwrap_or(rest.len())])
}

/// The query of a request target.
pub fn query(target: &[u8]) -> Option<&[u8]> {
    memchr::memchr(b'?', target).map(|n| &target[n + 1..])
}

/// The first parameter `name` of the query.
pub fn url_param<'a>(target: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    query(target)?.split(|b| *b == b'&').find_map(|pair| {
        let equals = memchr::memchr(b'=', pair)?;
        (&pair[..equals] == name).then(|| &pair[equals + 1..])
    })
}

fn fetch<'a>(fetch: &'a Fetch, at: &Context<'a>) -> Option<Value<'a>> {
    let text = |bytes: &'a [u8]| Value::Str(Cow::Borrowed(bytes));
    Some(match fetch {
        Fetch::Src => Value::Ip(at.src.ip().to_canonical()),
        Fetch::SrcPort => Value::Int(i64::from(at.src.port())),
        Fetch::Dst => Value::Ip(at.dst.ip().to_canonical()),
        Fetch::DstPort => Value::Int(i64::from(at.dst.port())),
        Fetch::Str(s) => text(s.as_bytes()),
        Fetch::Int(n) => Value::Int(*n),
        http => {
            let (buf, head) = at.request?;
            let target = head.target(buf);
            text(match http {
                Fetch::ReqHdr(name) => last_value(buf, head, name.as_bytes())?,
                Fetch::ReqCook(name) => request_cookie(buf, head, name.as_bytes())?,
                Fetch::Path => path(target)?,
                Fetch::Url => target,
                Fetch::Query => query(target).unwrap_or(b""),
                Fetch::Method => head.method(buf),
                Fetch::UrlParam(name) => url_param(target, name.as_bytes())?,
                _ => return None,
            })
        }
    })
}

/// The value of the last cookie `name` of the request.
fn request_cookie<'a>(buf: &'a [u8], head: &'a Head, name: &'a [u8]) -> Option<&'a [u8]> {
    head.values(buf, b"cookie")
        .flat_map(|line| line.split(|b| *b == b';'))
        .filter_map(|pair| {
            let equals = memchr::memchr(b'=', pair)?;
            (pair[..equals].trim_ascii() == name).then(|| pair[equals + 1..].trim_ascii())
        })
        .last()
}

fn convert<'a>(value: Value<'a>, converter: &Converter) -> Value<'a> {
    let mut text = value.to_text().into_owned();
    match converter {
        Converter::Lower => text.make_ascii_lowercase(),
        Converter::Upper => text.make_ascii_uppercase(),
    }
    Value::Str(Cow::Owned(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h1::{self, Parsed};

    fn eval(fetch: Fetch, converters: Vec<Converter>, request: &str) -> Option<String> {
        let (mut buf, mut head) = (request.as_bytes().to_vec(), Head::default());
        assert!(matches!(h1::request(&mut buf, &mut head), Ok(Parsed::Complete(_))));
        let expr = Expr { fetch, converters, text: String::new() };
        let at = Context {
            src: "[::ffff:192.0.2.1]:1000".parse().unwrap(),
            dst: "127.0.0.1:80".parse().unwrap(),
            request: Some((&buf, &head)),
        };
        evaluate(&expr, &at).map(|v| String::from_utf8(v.to_text().into_owned()).unwrap())
    }

    #[test]
    fn fetches_find_their_part_of_the_request() {
        let request = "GET /a/b?x=1&y=Two&x=3 HTTP/1.1\r\nX-S: a, \"b,c\" , D\r\nX-S: last, Er\r\n\
                       Cookie: k=1; n=2\r\nCookie: k=3\r\n\r\n";
        let name = |s: &str| s.to_string();
        let cases = [
            (Fetch::Src, Some("192.0.2.1")),
            (Fetch::SrcPort, Some("1000")),
            (Fetch::DstPort, Some("80")),
            (Fetch::ReqHdr(name("x-s")), Some("Er")),
            (Fetch::ReqHdr(name("nope")), None),
            (Fetch::ReqCook(name("k")), Some("3")),
            (Fetch::Path, Some("/a/b")),
            (Fetch::Url, Some("/a/b?x=1&y=Two&x=3")),
            (Fetch::Query, Some("x=1&y=Two&x=3")),
            (Fetch::Method, Some("GET")),
            (Fetch::UrlParam(name("x")), Some("1")),
            (Fetch::UrlParam(name("z")), None),
            (Fetch::Int(-4), Some("-4")),
        ];
        for (fetch, expected) in cases {
            let got = eval(fetch.clone(), vec![], request);
            assert_eq!(got.as_deref(), expected, "{fetch:?}");
        }
        let upper = eval(Fetch::UrlParam(name("y")), vec![Converter::Upper], request);
        assert_eq!(upper.as_deref(), Some("TWO"));
    }

    #[test]
    fn paths_come_out_of_absolute_targets() {
        assert_eq!(path(b"http://h/p?q"), Some(&b"/p"[..]));
        assert_eq!(path(b"*"), None);
        assert_eq!(path(b"http://h"), None);
    }
}

//! Answers that rules give in the server's place: `deny`, `tarpit`, `return`, `redirect`.

use phalanx_config::{Answer, Body, Redirect, RedirectTo};

use super::reasons::reason;
use crate::errors_page::{Page, has_page};
use crate::sample::{Context, path_and_query, render};

/// An answer without what the connection adds to it.
#[derive(Debug, Default)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Status line and fields, each with its line end.
    pub head: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
}

/// The answer of `deny`, `tarpit` or `return`.
pub fn answer(answer: &Answer, at: &Context<'_>) -> Reply {
    let status = answer.status;
    if let (true, Some(Page { reason, body, .. })) = (answer.page, has_page(status)) {
        let mut reply = begin(status, reason);
        field(&mut reply, b"content-length", body.len().to_string().as_bytes());
        field(&mut reply, b"cache-control", b"no-cache");
        field(&mut reply, b"content-type", b"text/html");
        reply.body.extend_from_slice(body.as_bytes());
        return reply;
    }
    let mut reply = begin(status, reason(status));
    for (name, format) in &answer.headers {
        let mut value = Vec::new();
        render(format, at, &mut value);
        field(&mut reply, name.as_bytes(), &value);
    }
    match &answer.body {
        Some(Body::Fixed(body)) => reply.body.extend_from_slice(body),
        Some(Body::Format(format)) => render(format, at, &mut reply.body),
        None => {}
    }
    if status != 204 && status != 304 {
        let length = reply.body.len().to_string();
        field(&mut reply, b"content-length", length.as_bytes());
        if let Some(kind) = &answer.content_type
            && answer.body.is_some()
        {
            field(&mut reply, b"content-type", kind.as_bytes());
        }
    } else {
        reply.body.clear();
    }
    reply
}

/// The answer of `redirect`; `None` = with `ignore-empty` there is nowhere to go.
pub fn redirect(redirect: &Redirect, at: &Context<'_>) -> Option<Reply> {
    let (buf, head) = at.request?;
    let mut location = Vec::new();
    let rest = path_and_query(head.target(buf)).unwrap_or(b"/");
    let rest =
        if redirect.drop_query { &rest[..memchr::memchr(b'?', rest).unwrap_or(rest.len())] } else { rest };
    let append_path = |location: &mut Vec<u8>| {
        location.extend_from_slice(rest);
        if redirect.append_slash && redirect.drop_query && rest.last() != Some(&b'/') {
            location.push(b'/');
        }
    };
    match &redirect.to {
        RedirectTo::Location(format) => render(format, at, &mut location),
        RedirectTo::Prefix(format) => {
            render(format, at, &mut location);
            // The prefix `/` alone is the path itself.
            if location == b"/" {
                location.clear();
            }
            append_path(&mut location);
        }
        RedirectTo::Scheme(format) => {
            render(format, at, &mut location);
            location.extend_from_slice(b"://");
            location.extend_from_slice(head.last(buf, b"host").unwrap_or(b""));
            append_path(&mut location);
        }
    }
    if redirect.ignore_empty && location.is_empty() {
        return None;
    }
    let mut reply = begin(redirect.code, reason(redirect.code));
    field(&mut reply, b"content-length", b"0");
    field(&mut reply, b"location", &location);
    if matches!(redirect.code, 302 | 303 | 307) {
        field(&mut reply, b"cache-control", b"no-cache");
    }
    if let Some(cookie) = &redirect.cookie {
        field(&mut reply, b"set-cookie", cookie.as_bytes());
    }
    Some(reply)
}

fn begin(status: u16, reason: &str) -> Reply {
    Reply { status, head: format!("HTTP/1.1 {status} {reason}\r\n").into_bytes(), body: Vec::new() }
}

fn field(reply: &mut Reply, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        reply.head.extend_from_slice(part);
    }
}

//! What the proxy itself answers: HAProxy's texts, byte for byte.

use std::sync::Arc;
use std::time::Duration;

use phalanx_config::{ErrorFile, Proxy};
use phalanx_engine::errors_page::{self, Page};
use phalanx_engine::rules::Reply;

/// How long a client is given to take a refusal.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Most bytes thrown away after a refusal.
pub(crate) const DRAIN: usize = 1 << 20;

/// The page that a proxy has for a status.
pub(crate) fn own_page(config: &Proxy, status: u16) -> Option<&ErrorFile> {
    config.errorfiles.iter().find(|file| file.status == status).map(Arc::as_ref)
}

/// Appends a page of one's own; see [`write`].
pub(crate) fn write_file(file: &ErrorFile, with_body: bool, connection: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(&file.head);
    if let Some(connection) = connection {
        for part in ["connection: ", connection, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    if with_body {
        out.extend_from_slice(&file.body);
    }
}

/// The answer to what is no request: sent as it is, and the connection is closed.
pub(crate) fn refusal(config: &Proxy, status: u16) -> Vec<u8> {
    if let Some(file) = own_page(config, status) {
        let mut out = Vec::new();
        write_file(file, true, file.is_11.then_some("close"), &mut out);
        return out;
    }
    builtin_refusal(status)
}

fn builtin_refusal(status: u16) -> Vec<u8> {
    let Page { reason, body, .. } = errors_page::page(status);
    // HAProxy's own texts, which say it for these two only.
    let connection = if !matches!(status, 400 | 408) { "" } else { "Connection: close\r\n" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-length: {}\r\nCache-Control: no-cache\r\n{connection}\
         Content-Type: text/html\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Appends the answer; `connection` is the value of its `connection` field, if it has one.
pub(crate) fn write(status: u16, with_body: bool, connection: Option<&str>, out: &mut Vec<u8>) {
    let Page { reason, body, .. } = errors_page::page(status);
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-length: {}\r\ncache-control: no-cache\r\ncontent-type: text/html\r\n",
        body.len()
    );
    out.extend_from_slice(head.as_bytes());
    if let Some(connection) = connection {
        out.extend_from_slice(b"connection: ");
        out.extend_from_slice(connection.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if with_body {
        out.extend_from_slice(body.as_bytes());
    }
}

/// Appends the answer of a rule; see [`write`].
pub(crate) fn write_answer(answer: &Reply, with_body: bool, connection: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(&answer.head);
    if let Some(connection) = connection {
        for part in ["connection: ", connection, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    if with_body {
        out.extend_from_slice(&answer.body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_haproxys_bytes() {
        let text = "HTTP/1.1 400 Bad request\r\nContent-length: 90\r\nCache-Control: no-cache\r\n\
                    Connection: close\r\nContent-Type: text/html\r\n\r\n\
                    <html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>\n";
        assert_eq!(String::from_utf8_lossy(&builtin_refusal(400)), text);
        assert!(
            builtin_refusal(408).starts_with(b"HTTP/1.1 408 Request Time-out\r\nContent-length: 110\r\n")
        );
        assert!(
            builtin_refusal(413).starts_with(b"HTTP/1.1 413 Payload Too Large\r\nContent-length: 106\r\n")
        );
        for status in [413, 422] {
            assert!(!builtin_refusal(status).windows(10).any(|w| w == b"Connection"), "{status}");
        }
    }

    #[test]
    fn replies_have_a_length_and_a_body_only_where_wanted() {
        let mut out = Vec::new();
        write(400, false, Some("close"), &mut out);
        let text = String::from_utf8_lossy(&out);
        assert!(text.starts_with("HTTP/1.1 400 Bad request\r\ncontent-length: 90\r\n"), "{text}");
        assert!(text.ends_with("connection: close\r\n\r\n"), "{text}");
    }
}

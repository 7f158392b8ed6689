//! Working memory of a request, and what is changed in heads on their way through.

use std::cell::RefCell;
use std::net::IpAddr;

use phalanx_config::{ConnectionMode, ForwardFor};
use phalanx_engine::h1::{Edits, Head, Persistence, RequestFraming};
use phalanx_engine::log;
use phalanx_engine::time::Now;

use crate::buffer::Text;

/// Parsed heads and edits, used again by the thread's next request.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) request: Head,
    pub(crate) response: Head,
    /// When the first byte of the request came.
    pub(crate) began: Now,
    /// Bytes of it that came so far, while it is not complete.
    pub(crate) seen: u32,
    pub(crate) edits: Edits,
    /// Heads that rules have changed; empty as long as none has.
    pub(crate) request_text: Vec<u8>,
    pub(crate) response_text: Vec<u8>,
}

thread_local! {
    #[allow(clippy::vec_box, reason = "moved as pointers")]
    static POOL: RefCell<Vec<Box<Scratch>>> = const { RefCell::new(Vec::new()) };
}

impl Scratch {
    /// From the thread's pool, for a request whose first byte comes now.
    pub(crate) fn begin(now: Now) -> Box<Scratch> {
        let mut scratch = POOL.with_borrow_mut(Vec::pop).unwrap_or_default();
        (scratch.began, scratch.seen) = (now, 0);
        scratch.request.clear();
        scratch.request_text.clear();
        scratch.response_text.clear();
        scratch
    }

    /// The bytes that the request's head is about: those received in `buf`, unless rules changed them.
    pub(crate) fn request_bytes<'b>(&'b self, buf: &'b [u8]) -> &'b [u8] {
        if self.request_text.is_empty() { buf } else { &self.request_text }
    }

    /// As [`Scratch::request_bytes`] for the response.
    pub(crate) fn response_bytes<'b>(&'b self, buf: &'b [u8]) -> &'b [u8] {
        if self.response_text.is_empty() { buf } else { &self.response_text }
    }

    /// Back to the thread's pool.
    pub(crate) fn give(self: Box<Self>) {
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < 256 {
                pool.push(self);
            }
        });
    }
}

/// The connection mode of a frontend with a backend: the one that closes more.
pub(crate) fn mode(front: ConnectionMode, back: ConnectionMode) -> ConnectionMode {
    use ConnectionMode::*;
    match (front, back) {
        (Close, _) | (_, Close) => Close,
        (ServerClose, _) | (_, ServerClose) => ServerClose,
        _ => KeepAlive,
    }
}

/// Connection fields and doubled fields of a request.
pub(crate) fn edit_request(
    buf: &[u8],
    head: &Head,
    framing: &RequestFraming,
    mode: ConnectionMode,
    edits: &mut Edits,
) {
    connection_tokens(buf, head, edits);
    if framing.duplicates {
        drop_doubles(buf, head, edits);
    }
    if framing.upgrade {
        return;
    }
    match (mode, head.is_11()) {
        (ConnectionMode::KeepAlive, true) => {}
        (ConnectionMode::KeepAlive, false) => edits.add(b"connection", &[b"keep-alive"]),
        (_, true) => edits.add(b"connection", &[b"close"]),
        // The version says it.
        (_, false) => {}
    }
}

/// What `Connection` says of keeping the connection is ours to say; other names that it lists go on.
fn connection_tokens(buf: &[u8], head: &Head, edits: &mut Edits) {
    for (index, field) in head.fields.iter().enumerate() {
        if field.name.of(buf) != b"connection" {
            continue;
        }
        let value = field.value.of(buf);
        let ours = |t: &&[u8]| t.eq_ignore_ascii_case(b"close") || t.eq_ignore_ascii_case(b"keep-alive");
        let tokens = || value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty());
        if !tokens().any(|t| ours(&t)) {
            continue;
        }
        let kept: Vec<&[u8]> = tokens().filter(|t| !ours(t)).collect();
        if kept.is_empty() {
            edits.drop_field(index);
        } else {
            edits.replace(index, &kept.join(&b","[..]));
        }
    }
}

/// Only the first `Host` and `Content-Length` go on; the others were checked to say the same.
fn drop_doubles(buf: &[u8], head: &Head, edits: &mut Edits) {
    for name in [&b"host"[..], b"content-length"] {
        let mut found = head.fields.iter().enumerate().filter(|(_, f)| f.name.of(buf) == name);
        let Some((first, field)) = found.next() else { continue };
        for (index, _) in found {
            edits.drop_field(index);
        }
        if name == b"content-length"
            && let Some(value) = field.value.of(buf).split(|b| *b == b',').next()
        {
            edits.replace(first, value.trim_ascii());
        }
    }
}

/// `option forwardfor`.
pub(crate) fn forward_for(option: &ForwardFor, buf: &[u8], head: &Head, ip: IpAddr, edits: &mut Edits) {
    if option.except.is_some_and(|(net, len)| in_network(ip, net, len)) {
        return;
    }
    let given = option.header.as_bytes();
    let (mut short, long);
    let name = match given.len() {
        // Without an allocation: all that are in use are.
        n @ ..=32 => {
            short = [0; 32];
            short[..n].copy_from_slice(given);
            short[..n].make_ascii_lowercase();
            &short[..n]
        }
        _ => {
            long = given.to_ascii_lowercase();
            &long
        }
    };
    if option.if_none && head.last(buf, name).is_some() {
        return;
    }
    let mut text = Text::take();
    log::ip(ip, &mut text);
    edits.add(name, &[&text]);
}

fn in_network(ip: std::net::IpAddr, net: std::net::IpAddr, len: u8) -> bool {
    use std::net::IpAddr::*;
    match (ip, net) {
        (V4(ip), V4(net)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
            ip.to_bits() & mask == net.to_bits() & mask
        }
        (V6(ip), V6(net)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0);
            ip.to_bits() & mask == net.to_bits() & mask
        }
        _ => false,
    }
}

/// The `connection` field of a response, if it needs one: `version` is that of the response as it is
/// sent, `keep` what happens to the connection.
pub(crate) fn response_connection(
    framing: &RequestFraming,
    request_11: bool,
    response_11: bool,
    keep: bool,
) -> Option<&'static str> {
    if !keep {
        // The version of an HTTP/1.0 response says it.
        return response_11.then_some("close");
    }
    debug_assert!(framing.persistence == Persistence::KeepAlive);
    (!request_11 || !response_11).then_some("keep-alive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_match_by_prefix() {
        let cases = [
            ("10.1.2.3", "10.0.0.0", 8, true),
            ("11.1.2.3", "10.0.0.0", 8, false),
            ("11.1.2.3", "0.0.0.0", 0, true),
            ("10.0.0.1", "10.0.0.1", 32, true),
            ("fe80::1", "fe80::", 10, true),
            ("::1", "127.0.0.1", 8, false),
        ];
        for (ip, net, len, inside) in cases {
            assert_eq!(
                in_network(ip.parse().unwrap(), net.parse().unwrap(), len),
                inside,
                "{ip} {net}/{len}"
            );
        }
    }
}

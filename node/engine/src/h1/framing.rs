//! Where a message ends, and whether its connection may carry another one.
//!
//! RFC 9112 section 6.3, with the shapes refused that two readers could frame differently: both
//! lengths, lengths that differ, codings that do not end in `chunked`, and contradictory hosts.

use super::{Error, ErrorKind, Head};

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// When the sender closes.
    UntilClose,
    /// The connection becomes a tunnel.
    Tunnel,
}

/// What a sender said about keeping the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It may carry another message.
    KeepAlive,
    /// It ends with this message.
    Close,
}

/// What follows from the fields of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFraming {
    /// How the body ends.
    pub body: Body,
    /// `Connection`, or the version's default.
    pub persistence: Persistence,
    /// `Connection: upgrade` with an `Upgrade` field.
    pub upgrade: bool,
    /// `Expect: 100-continue`.
    pub expect_continue: bool,
    /// There is a second, identical `Host` or `Content-Length` that must not be sent on.
    pub duplicates: bool,
}

/// What follows from the fields of a response and the request it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFraming {
    /// How the body ends.
    pub body: Body,
    /// `Connection`, or the version's default.
    pub persistence: Persistence,
    /// A `Content-Length` that must not be sent on: `Transfer-Encoding` overrides it, or it stands where
    /// none may be.
    pub drop_length: bool,
}

/// What the length and connection fields say, gathered in one pass.
#[derive(Default)]
struct Said {
    length: Option<u64>,
    lengths: usize,
    chunked: bool,
    encoded: bool,
    other_coding: bool,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    upgrade: bool,
    websocket: bool,
    websocket_key: bool,
    expect_continue: bool,
    hosts: usize,
}

impl Said {
    fn read(buf: &[u8], head: &Head) -> Result<Said, Error> {
        let mut said = Said::default();
        let mut host: &[u8] = b"";
        for field in &head.fields {
            let value = field.value.of(buf);
            let at = field.value.start as usize;
            match field.name.of(buf) {
                b"content-length" => said.content_length(value, at)?,
                b"transfer-encoding" => said.transfer_encoding(value, at)?,
                b"connection" => said.connection(value),
                b"upgrade" => {
                    said.upgrade = !value.is_empty();
                    said.websocket |= tokens(value).any(|t| t.eq_ignore_ascii_case(b"websocket"));
                }
                b"sec-websocket-key" => said.websocket_key = true,
                b"expect" => said.expect_continue |= value.eq_ignore_ascii_case(b"100-continue"),
                b"host" => {
                    if said.hosts > 0 && !value.eq_ignore_ascii_case(host) {
                        return Err(Error::new(ErrorKind::Host, at));
                    }
                    host = value;
                    said.hosts += 1;
                }
                _ => {}
            }
        }
        Ok(said)
    }

    fn content_length(&mut self, value: &[u8], at: usize) -> Result<(), Error> {
        for part in value.split(|b| *b == b',') {
            let number = number(part.trim_ascii()).ok_or(Error::new(ErrorKind::ContentLength, at))?;
            if self.length.is_some_and(|known| known != number) {
                return Err(Error::new(ErrorKind::ContentLength, at));
            }
            self.length = Some(number);
            self.lengths += 1;
        }
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8], at: usize) -> Result<(), Error> {
        for coding in value.split(|b| *b == b',') {
            let coding = coding.trim_ascii();
            // Nothing may come after `chunked`, not even a second one.
            if coding.is_empty() || self.chunked {
                return Err(Error::new(ErrorKind::TransferEncoding, at));
            }
            self.encoded = true;
            if coding.eq_ignore_ascii_case(b"chunked") {
                self.chunked = true;
            } else {
                self.other_coding = true;
            }
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        // What nearly all say.
        if value == b"keep-alive" {
            self.keep_alive = true;
            return;
        }
        for token in tokens(value) {
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            self.connection_upgrade |= token.eq_ignore_ascii_case(b"upgrade");
        }
    }

    fn persistence(&self, is_11: bool) -> Persistence {
        if self.close || !(is_11 || self.keep_alive) { Persistence::Close } else { Persistence::KeepAlive }
    }
}

/// Frames a request.
///
/// # Errors
/// When its end or its host is ambiguous; the connection must then be closed.
pub fn request_framing(buf: &[u8], head: &Head) -> Result<RequestFraming, Error> {
    let said = Said::read(buf, head)?;
    if said.encoded {
        let at = head.block.start as usize;
        let kind = if said.lengths > 0 {
            Some(ErrorKind::BothLengths)
        } else if !said.chunked || !head.is_11() {
            Some(ErrorKind::TransferEncoding)
        } else {
            said.other_coding.then_some(ErrorKind::TransferCoding)
        };
        if let Some(kind) = kind {
            return Err(Error::new(kind, at));
        }
    }
    check_authority(buf, head)?;
    let upgrade = said.connection_upgrade && said.upgrade && head.is_11();
    if upgrade && said.websocket && !said.websocket_key && head.method(buf) == b"GET" {
        return Err(Error::new(ErrorKind::Upgrade, head.block.start as usize));
    }
    let body = match said.length {
        _ if said.chunked => Body::Chunked,
        None | Some(0) => Body::None,
        Some(n) => Body::Length(n),
    };
    // An old agent may not look for a body there, and take it for the next request.
    let bodiless = matches!(head.method(buf), b"GET" | b"HEAD" | b"DELETE");
    if body != Body::None && bodiless && !head.is_11() {
        return Err(Error::new(ErrorKind::OldBody, head.block.start as usize));
    }
    Ok(RequestFraming {
        body,
        persistence: said.persistence(head.is_11()),
        upgrade,
        expect_continue: said.expect_continue && head.is_11() && body != Body::None,
        duplicates: said.hosts > 1 || said.lengths > 1,
    })
}

/// Frames a response to a request with method `method`; `upgrade` tells whether that request asked
/// for one.
///
/// # Errors
/// When its end is ambiguous.
pub fn response_framing(
    buf: &[u8],
    head: &Head,
    method: &[u8],
    upgrade: bool,
) -> Result<ResponseFraming, Error> {
    let said = Said::read(buf, head)?;
    let status = head.start.status;
    let body = if status == 101 {
        if !upgrade {
            return Err(Error::new(ErrorKind::Status, head.start.second.start as usize));
        }
        Body::Tunnel
    } else if method == b"CONNECT" && (200..300).contains(&status) {
        Body::Tunnel
    } else if method == b"HEAD" || status < 200 || status == 204 || status == 304 {
        Body::None
    } else if said.chunked {
        Body::Chunked
    } else if said.encoded {
        Body::UntilClose
    } else {
        match said.length {
            Some(0) => Body::None,
            Some(n) => Body::Length(n),
            None => Body::UntilClose,
        }
    };
    // Both lengths: RFC 9112 section 6.3 lets a proxy go on by Transfer-Encoding if it drops the
    // other one and closes the connection it came on.
    let both = said.encoded && said.lengths > 0;
    let persistence = if both { Persistence::Close } else { said.persistence(head.is_11()) };
    // Nor may a response that never has a body announce one (RFC 9110 section 8.6).
    let never = status < 200 || status == 204;
    let drop_length = both || never && said.lengths > 0;
    Ok(ResponseFraming { body, persistence, drop_length })
}

/// An authority in the target must be that of `Host`.
fn check_authority(buf: &[u8], head: &Head) -> Result<(), Error> {
    let target = head.target(buf);
    let at = head.start.second.start as usize;
    let (authority, port): (&[u8], &[u8]) = if head.method(buf) == b"CONNECT" {
        (target, b"")
    } else if target.first() == Some(&b'/') || target == b"*" {
        return Ok(());
    } else {
        let Some(n) = memchr::memmem::find(target, b"://") else {
            return Err(Error::new(ErrorKind::Target, at));
        };
        let rest = &target[n + 3..];
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        let port: &[u8] = if target[..n].eq_ignore_ascii_case(b"https") { b":443" } else { b":80" };
        let authority = &rest[..end];
        let host = authority.iter().rposition(|b| *b == b'@').map_or(authority, |n| &authority[n + 1..]);
        (host, port)
    };
    if authority.is_empty() {
        return Err(Error::new(ErrorKind::Target, at));
    }
    let Some(host) = head.last(buf, b"host") else { return Ok(()) };
    let strip = |name: &[u8]| name.strip_suffix(port).unwrap_or(name).to_ascii_lowercase();
    if strip(authority) != strip(host) {
        return Err(Error::new(ErrorKind::Host, at));
    }
    Ok(())
}

/// A decimal number of digits only that does not overflow.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| {
        b.is_ascii_digit().then_some(())?;
        n.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })
}

/// The elements of a comma-separated list.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

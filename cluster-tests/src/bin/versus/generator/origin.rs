//! The servers behind the proxies, as cheap as they can be: they look at no more of a request than where
//! it ends and which of three bodies it asks for.

use std::fs::File;
use std::io::{self, Write};

use memchr::memmem;

use super::wire::Wire;

/// What a listener's connections get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// HTTP responses on a connection that stays.
    Http,
    /// HTTP responses, each of which ends its connection.
    HttpClose,
    /// Bytes without end.
    Source,
    /// One byte for whatever came, and the end.
    Knock,
    /// One byte for whatever came.
    Echo,
}

/// Length of the small body.
pub(crate) const SMALL: u64 = 100;
/// Length of the middle and the large body.
pub(crate) const MIDDLE: u64 = 64 * 1024;
/// See [`MIDDLE`].
pub(crate) const LARGE: u64 = 1024 * 1024;

/// What is served: bodies come out of a file's pages.
#[derive(Debug)]
pub(crate) struct Content {
    file: File,
    /// Small response whole, heads of the others: kept and closing.
    small: [Vec<u8>; 2],
    middle: [Vec<u8>; 2],
    large: [Vec<u8>; 2],
}

impl Content {
    /// Makes the file.
    ///
    /// # Errors
    /// It can't be written.
    pub(crate) fn new() -> io::Result<Content> {
        let mut file = tempfile::tempfile()?;
        file.write_all(&vec![b'x'; LARGE as usize])?;
        let head = |length: u64| {
            ["", "Connection: close\r\n"].map(|close| {
                let start = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";
                format!("{start}Content-Length: {length}\r\n{close}\r\n").into_bytes()
            })
        };
        let mut small = head(SMALL);
        small.iter_mut().for_each(|response| response.extend([b'x'; SMALL as usize]));
        Ok(Content { file, small, middle: head(MIDDLE), large: head(LARGE) })
    }

    /// The file, at least [`LARGE`] bytes.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) wire: Wire,
    service: Service,
    /// A request's head that has come in part.
    head: Vec<u8>,
    /// Bytes of a request's body that are to come.
    upload: u64,
    /// Bytes of the body that are to go out.
    left: u64,
    /// Waits for room to write.
    pub(crate) blocked: bool,
}

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Stays,
    Ends,
}

impl Served {
    pub(crate) fn new(wire: Wire, service: Service) -> Served {
        let blocked = service == Service::Source;
        Served { wire, service, head: Vec::new(), upload: 0, left: 0, blocked }
    }

    /// There is room to write.
    pub(crate) fn writable(&mut self, content: &Content) -> io::Result<Fate> {
        if self.service == Service::Source {
            // As long as it takes them; the event comes again.
            self.wire.send_file(&content.file, 0, LARGE)?;
            return Ok(Fate::Stays);
        }
        self.push(content)
    }

    /// There is something to read.
    pub(crate) fn readable(&mut self, content: &Content, scratch: &mut [u8]) -> io::Result<Fate> {
        if self.upload > 0 {
            let most = scratch.len().min(self.upload as usize);
            return match self.wire.discard(&mut scratch[..most])? {
                None => Ok(Fate::Stays),
                Some(0) => Ok(Fate::Ends),
                Some(n) => {
                    self.upload -= n as u64;
                    if self.upload == 0 { self.reply(content, b'u') } else { Ok(Fate::Stays) }
                }
            };
        }
        let most = scratch.len().min(64 * 1024);
        let n = match self.wire.receive(&mut scratch[..most])? {
            None => return Ok(Fate::Stays),
            Some(0) => return Ok(Fate::Ends),
            Some(n) => n,
        };
        match self.service {
            Service::Source => Ok(Fate::Stays),
            Service::Knock => self.wire.send(b"k", false).map(|_| Fate::Ends),
            Service::Echo => self.wire.send(b"k", false).map(|_| Fate::Stays),
            Service::Http | Service::HttpClose if self.head.is_empty() => {
                self.request(content, &scratch[..n])
            }
            Service::Http | Service::HttpClose => {
                let mut all = std::mem::take(&mut self.head);
                all.extend_from_slice(&scratch[..n]);
                self.request(content, &all)
            }
        }
    }

    fn request(&mut self, content: &Content, bytes: &[u8]) -> io::Result<Fate> {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else {
            self.head = bytes.to_vec();
            return Ok(Fate::Stays);
        };
        if bytes.starts_with(b"GET /") {
            return self.reply(content, bytes[5]);
        }
        let length =
            content_length(&bytes[..end]).ok_or_else(|| io::Error::other("an upload without length"))?;
        self.upload = length.saturating_sub((bytes.len() - end - 4) as u64);
        if self.upload == 0 { self.reply(content, b'u') } else { Ok(Fate::Stays) }
    }

    /// Answers by the first letter of the path.
    fn reply(&mut self, content: &Content, what: u8) -> io::Result<Fate> {
        let close = usize::from(self.service == Service::HttpClose);
        let (head, left) = match what {
            b'm' => (&content.middle[close], MIDDLE),
            b'l' => (&content.large[close], LARGE),
            _ => (&content.small[close], 0),
        };
        // The socket's buffer is empty: what was asked for before has been taken.
        if self.wire.send(head, left > 0)? != head.len() {
            return Err(io::Error::other("no room for a head"));
        }
        self.left = left;
        self.push(content)
    }

    fn push(&mut self, content: &Content) -> io::Result<Fate> {
        while self.left > 0 {
            match self.wire.send_file(&content.file, 0, self.left)? {
                0 => {
                    self.blocked = true;
                    return Ok(Fate::Stays);
                }
                n => self.left -= n as u64,
            }
        }
        self.blocked = false;
        Ok(if self.service == Service::HttpClose { Fate::Ends } else { Fate::Stays })
    }
}

/// The length that a head states.
pub(crate) fn content_length(head: &[u8]) -> Option<u64> {
    head.split(|b| *b == b'\n').find_map(|line| {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = line.split_at(colon);
        let value = std::str::from_utf8(&value[1..]).ok()?;
        name.eq_ignore_ascii_case(b"content-length").then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_found_in_any_spelling() {
        assert_eq!(content_length(b"POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:  17 \r\n"), Some(17));
        assert_eq!(content_length(b"POST / HTTP/1.1\r\nHost: a\r\n"), None);
    }
}

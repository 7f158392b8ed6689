//! A message that rules change: its head copied out of the read buffer, new text behind it.
//!
//! Spans of the head point into the copy, so that everything that reads a head sees the changes. The
//! body stays where it was received, and so does the length of the original head.

use super::Head;
use super::head::{Field, Span};

/// Most bytes of one rewritten head: what does not fit is left as it was.
const MAX_TEXT: usize = 256 << 10;
/// Room for what is put into a head.
const ROOM: usize = 512;
/// Most fields of one rewritten head.
const MAX_FIELDS: usize = 256;

/// A head and the bytes that it is about.
#[derive(Debug)]
pub struct Rewrite<'m> {
    head: &'m mut Head,
    text: &'m mut Vec<u8>,
}

impl<'m> Rewrite<'m> {
    /// A message whose head lies in `buf`, or in `text` if it was rewritten before.
    pub fn new(buf: &[u8], head: &'m mut Head, text: &'m mut Vec<u8>) -> Rewrite<'m> {
        if text.is_empty() {
            let received = buf.get(..head.len).unwrap_or(buf);
            // One change is hardly ever the last one.
            text.reserve(received.len() + ROOM);
            text.extend_from_slice(received);
            head.canonical = false;
        }
        Rewrite { head, text }
    }

    fn push(&mut self, bytes: &[u8]) -> Option<Span> {
        let start = self.text.len();
        if start + bytes.len() > MAX_TEXT {
            return None;
        }
        self.text.extend_from_slice(bytes);
        Some(Span { start: start as u32, end: self.text.len() as u32 })
    }

    /// Adds a field at the end.
    pub fn add(&mut self, name: &[u8], value: &[u8]) {
        if self.head.fields.len() >= MAX_FIELDS {
            return;
        }
        if let (Some(name), Some(value)) = (self.push(name), self.push(value)) {
            self.head.fields.push(Field::added(name, value));
        }
    }

    /// Removes the fields that `which` says.
    pub fn remove(&mut self, which: impl Fn(&[u8]) -> bool) {
        let text = &*self.text;
        if self.head.fields.iter().any(|field| which(field.name.of(text))) {
            self.head.fields.retain(|field| !which(field.name.of(text)));
        }
    }

    /// Replaces values of the fields called `name` by what `with` makes of them.
    pub fn replace(&mut self, name: &[u8], mut with: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
        for index in 0..self.head.fields.len() {
            let field = self.head.fields[index];
            if field.name.of(self.text) != name {
                continue;
            }
            if let Some(value) = with(field.value.of(self.text))
                && let Some(span) = self.push(&value)
            {
                self.head.fields[index].value = span;
            }
        }
    }

    /// Puts another method or version (of a response) in place.
    pub fn set_first(&mut self, bytes: &[u8]) {
        if let Some(span) = self.push(bytes) {
            self.head.start.first = span;
        }
    }

    /// The target of a request as it is now.
    pub fn target(&self) -> &[u8] {
        self.head.target(self.text)
    }

    /// Puts another target in place. What may not stand in one is written as `%XX`.
    pub fn set_target(&mut self, bytes: &[u8]) {
        let mut target = Vec::with_capacity(bytes.len());
        for &b in bytes {
            if (0x21..=0x7e).contains(&b) && b != b'#' {
                target.push(b);
            } else {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                target.extend([b'%', DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
            }
        }
        if !target.is_empty()
            && let Some(span) = self.push(&target)
        {
            self.head.start.second = span;
        }
    }

    /// Puts another status and reason in place.
    pub fn set_status(&mut self, status: u16, reason: &str) {
        if let (Some(code), Some(reason)) =
            (self.push(status.to_string().as_bytes()), self.push(reason.as_bytes()))
        {
            self.head.start.second = code;
            self.head.start.third = reason;
            self.head.start.status = status;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h1::{Edits, Parsed, request, write_request};

    #[test]
    fn changes_are_seen_by_whoever_reads_the_head() {
        let mut buf = b"GET /a?q HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\nA: 3\r\n\r\nbody".to_vec();
        let (mut head, mut text) = (Head::default(), Vec::new());
        assert!(matches!(request(&mut buf, &mut head), Ok(Parsed::Complete(_))));
        let length = head.len;
        let mut message = Rewrite::new(&buf, &mut head, &mut text);
        message.add(b"c", b"4");
        message.remove(|name| name == b"b");
        message.replace(b"a", |value| (value == b"3").then(|| b"33".to_vec()));
        message.set_first(b"PUT");
        message.set_target(b"/new path#\r\n?q");
        assert_eq!(message.target(), b"/new%20path%23%0D%0A?q");
        assert_eq!(head.last(&text, b"a"), Some(&b"33"[..]));
        assert_eq!(head.len, length);
        let mut out = Vec::new();
        write_request(&text, &head, &Edits::default(), &mut out);
        let wanted = "PUT /new%20path%23%0D%0A?q HTTP/1.1\r\nhost: x\r\na: 1\r\na: 33\r\nc: 4\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }

    #[test]
    fn growth_is_bounded() {
        let mut buf = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        let (mut head, mut text) = (Head::default(), Vec::new());
        assert!(request(&mut buf, &mut head).is_ok());
        for _ in 0..1000 {
            Rewrite::new(&buf, &mut head, &mut text).add(b"n", &[b'v'; 1024]);
        }
        assert!(head.fields.len() <= MAX_FIELDS && text.len() <= MAX_TEXT);
    }
}

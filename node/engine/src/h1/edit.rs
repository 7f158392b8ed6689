//! Changes to a head on its way through, and the head as it is sent on.
//!
//! A head of a few hundred bytes is copied once into the worker's output buffer, unchanged runs of
//! lines at a time: cheaper than handing the kernel one slice for each line, and it leaves the read
//! buffer to the body, which is not copied.

use super::{Head, Span};

/// Fields to drop, replace and add. Reused from message to message.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// Indices of fields that are not sent on, rising.
    dropped: Vec<u16>,
    /// Fields whose value is replaced: index and range in `text`.
    replaced: Vec<(u16, Span)>,
    /// Lines to add at the end, each with its CRLF, in `text`.
    added: Vec<Span>,
    text: Vec<u8>,
}

impl Edits {
    /// Forgets all changes, keeps the allocation.
    pub fn clear(&mut self) {
        self.dropped.clear();
        self.replaced.clear();
        self.added.clear();
        self.text.clear();
    }

    /// Does not send on field number `index`.
    pub fn drop_field(&mut self, index: usize) {
        let index = index as u16;
        if let Err(at) = self.dropped.binary_search(&index) {
            self.dropped.insert(at, index);
        }
    }

    /// Does not send on any field called `name` (lower case).
    pub fn drop_named(&mut self, buf: &[u8], head: &Head, name: &[u8]) {
        for (i, field) in head.fields.iter().enumerate() {
            if field.name.of(buf) == name {
                self.drop_field(i);
            }
        }
    }

    /// Sends field number `index` with another value.
    pub fn replace(&mut self, index: usize, value: &[u8]) {
        let span = self.push(&[value]);
        let index = index as u16;
        match self.replaced.binary_search_by_key(&index, |(i, _)| *i) {
            Ok(at) => self.replaced[at].1 = span,
            Err(at) => self.replaced.insert(at, (index, span)),
        }
    }

    /// Adds a field after the others; `value` is given in pieces.
    pub fn add(&mut self, name: &[u8], value: &[&[u8]]) {
        let start = self.text.len() as u32;
        self.push(&[name, b": "]);
        self.push(value);
        self.push(&[b"\r\n"]);
        self.added.push(Span { start, end: self.text.len() as u32 });
    }

    fn push(&mut self, pieces: &[&[u8]]) -> Span {
        let start = self.text.len() as u32;
        for piece in pieces {
            self.text.extend_from_slice(piece);
        }
        Span { start, end: self.text.len() as u32 }
    }
}

/// Appends the request as it is to be sent on: with its version as 1.0 or 1.1.
pub fn write_request(buf: &[u8], head: &Head, edits: &Edits, out: &mut Vec<u8>) {
    if !head.canonical {
        out.extend_from_slice(head.start.first.of(buf));
        out.push(b' ');
        out.extend_from_slice(head.start.second.of(buf));
        out.extend_from_slice(if head.is_11() { b" HTTP/1.1\r\n" } else { b" HTTP/1.0\r\n" });
    }
    write_fields(buf, head, edits, out);
}

/// Appends the response as it is to be sent on.
pub fn write_response(buf: &[u8], head: &Head, edits: &Edits, out: &mut Vec<u8>) {
    if !head.canonical {
        out.extend_from_slice(if head.is_11() { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        out.extend_from_slice(head.start.second.of(buf));
        out.push(b' ');
        out.extend_from_slice(head.start.third.of(buf));
        out.extend_from_slice(b"\r\n");
    }
    write_fields(buf, head, edits, out);
}

fn write_fields(buf: &[u8], head: &Head, edits: &Edits, out: &mut Vec<u8>) {
    if head.canonical {
        copy_runs(buf, head, edits, out);
    } else {
        for (i, field) in head.fields.iter().enumerate() {
            let i = i as u16;
            if edits.dropped.binary_search(&i).is_ok() {
                continue;
            }
            let value = match edits.replaced.binary_search_by_key(&i, |(i, _)| *i) {
                Ok(at) => edits.replaced[at].1.of(&edits.text),
                Err(_) => field.value.of(buf),
            };
            write_field(field.name.of(buf), value, out);
        }
    }
    for line in &edits.added {
        out.extend_from_slice(line.of(&edits.text));
    }
    out.extend_from_slice(b"\r\n");
}

/// Copies start line and fields in as few pieces as the edits allow.
fn copy_runs(buf: &[u8], head: &Head, edits: &Edits, out: &mut Vec<u8>) {
    let mut from = head.start.line.start as usize;
    let line_start = |i: usize| head.fields.get(i).map_or(head.block.end, |f| f.name.start) as usize;
    let (mut dropped, mut replaced) = (edits.dropped.iter().peekable(), edits.replaced.iter().peekable());
    loop {
        let next_drop = dropped.peek().map(|i| **i);
        let next_replace = replaced.peek().map(|r| r.0);
        let (index, value) = match (next_drop, next_replace) {
            (None, None) => break,
            (Some(d), r) if r.is_none_or(|r| d <= r) => {
                dropped.next();
                if r == Some(d) {
                    replaced.next();
                }
                (d as usize, None)
            }
            (_, r) => {
                let span = replaced.next().map_or(Span::default(), |r| r.1);
                (r.unwrap_or(0) as usize, Some(span))
            }
        };
        let (start, end) = (line_start(index), line_start(index + 1));
        out.extend_from_slice(buf.get(from..start).unwrap_or(&[]));
        if let (Some(value), Some(field)) = (value, head.fields.get(index)) {
            write_field(field.name.of(buf), value.of(&edits.text), out);
        }
        from = end;
    }
    out.extend_from_slice(buf.get(from..head.block.end as usize).unwrap_or(&[]));
}

fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

//! Follows a chunked body through a buffer without copying or rewriting it.
//!
//! The scanner says how many bytes of its input belong to the body and may be sent on. It accepts
//! only CRLF as a line end and no control characters in extensions and trailers: what it lets pass
//! is framed the same way by every reader.

use super::head::is_token;
use super::{Error, ErrorKind};

/// Result of one scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Bytes of the input that belong to the body.
    pub used: usize,
    /// Whether the body ended with them.
    pub done: bool,
}

/// Position in a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunked {
    state: State,
    /// Bytes left in the chunk, or its size so far.
    left: u64,
    /// Bytes of extensions or trailers so far.
    extra: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SizeStart,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

/// HAProxy's limit for one chunk.
const MAX_CHUNK: u64 = 0x7fff_ffff;
/// Most bytes of one extension or of all trailers.
const MAX_EXTRA: u32 = 8192;

impl Default for Chunked {
    fn default() -> Self {
        Chunked { state: State::SizeStart, left: 0, extra: 0 }
    }
}

impl Chunked {
    /// Goes over `input`, which follows what was scanned before.
    ///
    /// # Errors
    /// When a chunk is malformed; bytes before `at` had been fine.
    pub fn scan(&mut self, input: &[u8]) -> Result<Scan, Error> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if self.state == State::Data {
                let n = self.left.min((input.len() - at) as u64);
                self.left -= n;
                at += n as usize;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.step(input[at]).ok_or(Error::new(ErrorKind::Chunk, at))?;
            at += 1;
        }
        Ok(Scan { used: at, done: self.state == State::Done })
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn step(&mut self, b: u8) -> Option<State> {
        match self.state {
            State::SizeStart => {
                self.left = u64::from(hex(b)?);
                self.extra = 0;
                Some(State::Size)
            }
            State::Size => match b {
                b'\r' => Some(State::SizeLf),
                b';' | b' ' | b'\t' => Some(State::Extension),
                _ => {
                    self.left = self.left * 16 + u64::from(hex(b)?);
                    (self.left <= MAX_CHUNK).then_some(State::Size)
                }
            },
            State::Extension => match b {
                b'\r' => Some(State::SizeLf),
                _ => self.extra(b).then_some(State::Extension),
            },
            State::SizeLf => {
                (b == b'\n').then_some(if self.left == 0 { State::TrailerStart } else { State::Data })
            }
            State::DataCr => (b == b'\r').then_some(State::DataLf),
            State::DataLf => (b == b'\n').then_some(State::SizeStart),
            State::TrailerStart => match b {
                b'\r' => Some(State::EndLf),
                _ => (is_token(b) && self.extra(b)).then_some(State::TrailerName),
            },
            State::TrailerName => match b {
                b':' => Some(State::TrailerValue),
                _ => (is_token(b) && self.extra(b)).then_some(State::TrailerName),
            },
            State::TrailerValue => match b {
                b'\r' => Some(State::TrailerLf),
                _ => self.extra(b).then_some(State::TrailerValue),
            },
            State::TrailerLf => (b == b'\n').then_some(State::TrailerStart),
            State::EndLf => (b == b'\n').then_some(State::Done),
            State::Data | State::Done => None,
        }
    }

    fn extra(&mut self, b: u8) -> bool {
        self.extra += 1;
        self.extra <= MAX_EXTRA && (b >= 0x20 && b != 0x7f || b == b'\t')
    }
}

fn hex(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

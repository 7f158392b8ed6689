//! HTTP/1.x on byte buffers: heads, framing, chunks, and what a head looks like when it is sent on.
//!
//! The proxy reads into a buffer and calls [`request`] or [`response`] on its readable part until a
//! [`Head`] comes out; the head holds offsets, not references, so it may be kept while the session
//! waits. Parsing is strict where two readers of the same bytes could disagree about where a message
//! ends (RFC 9112 sections 6 and 11.2), and as tolerant as HAProxy elsewhere. Field names are put into
//! lower case in place, as HAProxy does, so later look-ups compare bytes. Nothing here reads a socket
//! or a clock, and no input may panic.

mod chunk;
mod edit;
mod framing;
mod head;
mod rewrite;
#[cfg(test)]
mod tests;

pub use chunk::{Chunked, Scan};
pub use edit::{Edits, write_request, write_response};
pub use framing::{Body, Persistence, RequestFraming, ResponseFraming, request_framing, response_framing};
pub(crate) use head::is_token;
pub use head::{Field, Head, Span, Start, request, response};
pub use rewrite::Rewrite;

/// Most header fields of one message, as `tune.http.maxhdr` has it by default (101 lines with the
/// start line).
pub const MAX_FIELDS: usize = 100;

/// What an incremental parser found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The head ends before this offset of the input.
    Complete(usize),
    /// More bytes are needed.
    Partial,
}

/// Why a message was refused, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong.
    pub kind: ErrorKind,
    /// Offset of the offending byte in the input.
    pub at: usize,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The method is not a token.
    Method,
    /// A byte that a request target may not have.
    Target,
    /// The version is not `HTTP/digit.digit`.
    Version,
    /// The status is not three digits.
    Status,
    /// A field name that is empty or not a token, or a space before the colon.
    FieldName,
    /// NUL or a bare CR in a field value.
    FieldValue,
    /// A line folded onto the next one in a request.
    Folded,
    /// A CR that no LF follows.
    BareCr,
    /// More than [`MAX_FIELDS`] fields.
    TooManyFields,
    /// `Content-Length` is not a number, or several of them differ.
    ContentLength,
    /// `Transfer-Encoding` does not end in one `chunked`, or is used with HTTP/1.0.
    TransferEncoding,
    /// A transfer coding besides `chunked`.
    TransferCoding,
    /// Both `Content-Length` and `Transfer-Encoding`.
    BothLengths,
    /// Several `Host` fields that differ, or one that contradicts the target.
    Host,
    /// A WebSocket upgrade without `Sec-WebSocket-Key`.
    Upgrade,
    /// A body with a method of HTTP/1.0 that has none.
    OldBody,
    /// A chunk's size or end is malformed.
    Chunk,
    /// The head is larger than the buffer.
    TooLong,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, at: usize) -> Error {
        Error { kind, at }
    }

    /// The status that a client gets whose request is refused with this error.
    pub fn status(self) -> u16 {
        match self.kind {
            ErrorKind::TransferCoding => 422,
            ErrorKind::OldBody => 413,
            _ => 400,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.kind {
            ErrorKind::Method => "invalid method",
            ErrorKind::Target => "invalid character in the request target",
            ErrorKind::Version => "invalid version",
            ErrorKind::Status => "invalid status code",
            ErrorKind::FieldName => "invalid header name",
            ErrorKind::FieldValue => "invalid character in a header value",
            ErrorKind::Folded => "folded header line",
            ErrorKind::BareCr => "CR without LF",
            ErrorKind::TooManyFields => "too many headers",
            ErrorKind::ContentLength => "invalid or contradictory content-length",
            ErrorKind::TransferEncoding => "invalid transfer-encoding",
            ErrorKind::TransferCoding => "unsupported transfer coding",
            ErrorKind::BothLengths => "both content-length and transfer-encoding",
            ErrorKind::Host => "contradictory host",
            ErrorKind::Upgrade => "websocket upgrade without sec-websocket-key",
            ErrorKind::OldBody => "HTTP/1.0 request with a body that its method does not have",
            ErrorKind::Chunk => "invalid chunk",
            ErrorKind::TooLong => "headers larger than the buffer",
        };
        write!(f, "{what} at offset {}", self.at)
    }
}

impl std::error::Error for Error {}

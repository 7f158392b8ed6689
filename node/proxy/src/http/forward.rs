//! How much of a buffer belongs to the body that is being forwarded.

use phalanx_engine::h1::{Body, Chunked, Error};

/// A body on its way.
#[derive(Debug)]
pub(crate) enum Flow {
    /// So many bytes are still to be sent.
    Length(u64),
    /// Chunks; `ready` bytes of the buffer were checked and may be sent.
    Chunked { chunks: Chunked, ready: usize },
    /// Everything until the sender closes; `ended` once it has.
    UntilClose { ended: bool },
}

impl Flow {
    /// The flow of a body, which is not a tunnel.
    pub(crate) fn new(body: Body) -> Flow {
        match body {
            Body::None | Body::Tunnel => Flow::Length(0),
            Body::Length(n) => Flow::Length(n),
            Body::Chunked => Flow::Chunked { chunks: Chunked::default(), ready: 0 },
            Body::UntilClose => Flow::UntilClose { ended: false },
        }
    }

    /// Looks at `unsent`, the bytes that follow what was sent; returns how many may be sent.
    pub(crate) fn sendable(&mut self, unsent: &[u8]) -> Result<usize, Error> {
        match self {
            Flow::Length(left) => Ok(usize::try_from(*left).unwrap_or(usize::MAX).min(unsent.len())),
            Flow::Chunked { chunks, ready } => {
                if let Some(new) = unsent.get(*ready..)
                    && !new.is_empty()
                    && !chunks.is_done()
                {
                    *ready += chunks.scan(new)?.used;
                }
                Ok(*ready)
            }
            Flow::UntilClose { .. } => Ok(unsent.len()),
        }
    }

    /// `n` bytes were sent.
    pub(crate) fn sent(&mut self, n: usize) {
        match self {
            Flow::Length(left) => *left -= n as u64,
            Flow::Chunked { ready, .. } => *ready -= n,
            Flow::UntilClose { .. } => {}
        }
    }

    /// Whether all of it was sent, given that `unsent` bytes wait.
    pub(crate) fn is_done(&self, unsent: usize) -> bool {
        match self {
            Flow::Length(left) => *left == 0,
            Flow::Chunked { chunks, ready } => chunks.is_done() && *ready == 0,
            Flow::UntilClose { ended } => *ended && unsent == 0,
        }
    }

    /// Whether all of it will have been sent once `n` more bytes are, of `unsent` that wait.
    pub(crate) fn ends_with(&self, n: usize, unsent: usize) -> bool {
        match self {
            Flow::Length(left) => *left == n as u64,
            Flow::Chunked { chunks, ready } => chunks.is_done() && *ready == n,
            Flow::UntilClose { ended } => *ended && unsent == n,
        }
    }

    /// Whether more must be received, given that `unsent` bytes wait.
    pub(crate) fn wants(&self, unsent: usize) -> bool {
        match self {
            Flow::Length(left) => *left > unsent as u64,
            Flow::Chunked { chunks, .. } => !chunks.is_done(),
            Flow::UntilClose { ended } => !ended,
        }
    }

    /// Of a body whose bytes need no looking at: how many are still to be sent, `Some(None)` = until the
    /// sender closes.
    pub(crate) fn free_run(&self) -> Option<Option<u64>> {
        match self {
            Flow::Length(left) => Some(Some(*left)),
            Flow::UntilClose { .. } => Some(None),
            Flow::Chunked { .. } => None,
        }
    }

    /// The sender has closed; whether that is a proper end.
    pub(crate) fn closed(&mut self) -> bool {
        match self {
            Flow::UntilClose { ended } => {
                *ended = true;
                true
            }
            _ => false,
        }
    }
}

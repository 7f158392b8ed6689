//! Messages that were refused, kept for `show errors`: the last one of each side.

use std::sync::atomic::Ordering::Relaxed;

use phalanx_engine::frontend::CapturedError;
use phalanx_engine::queue::Slot;

use crate::front::Front;
use crate::session::Session;

/// Keeps a refused request; `position` is where it is wrong.
pub(crate) fn request(session: &Session, front: &Front, position: usize) {
    let error = CapturedError {
        client: Some(session.src()),
        other: None,
        server: None,
        ..captured(session, position, front.buf.bytes())
    };
    *session.frontend().last_error.lock() = Some(error);
}

/// Keeps a refused response of the server that has this place.
pub(crate) fn response(session: &Session, from: Option<&Slot>, position: usize, bytes: &[u8]) {
    let Some(slot) = from else { return };
    let (frontend, server) = (session.frontend(), slot.server());
    let error = CapturedError {
        client: Some(session.entry.client()),
        other: Some((frontend.name().clone(), frontend.id())),
        server: Some((server.name().clone(), server.id())),
        ..captured(session, position, bytes)
    };
    *slot.backend().last_error.lock() = Some(error);
}

fn captured(session: &Session, position: usize, bytes: &[u8]) -> CapturedError {
    let worker = &session.worker;
    CapturedError {
        unix_us: worker.now().unix_us,
        event: worker.shared.state.process().captured.fetch_add(1, Relaxed),
        client: None,
        other: None,
        server: None,
        position,
        bytes: bytes.to_vec(),
    }
}

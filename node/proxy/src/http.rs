//! HTTP mode: for now every request is told that it cannot be served yet.

use std::rc::Rc;

use tokio::io::AsyncWriteExt;

use crate::front::Front;
use crate::session::Session;
use crate::worker::View;

/// Answers 501 and closes.
pub(crate) async fn serve(_session: Session, _plan: Rc<View>, _index: usize, mut front: Front) {
    let _ = front.fill().await;
    let _ = front.stream.write_all(b"HTTP/1.1 501 Not Implemented\r\nConnection: close\r\n\r\n").await;
}

//! HTTP mode: requests one after the other on a client connection, each with its own way to a server.
//!
//! [`serve`] waits for a request and hands it to [`transaction`]; nothing of a request is kept while
//! the connection is idle. A request goes with the plan that was in force when it began.

mod capture;
mod exchange;
mod forward;
mod message;
mod reply;
mod transaction;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, ready};

use phalanx_config::Proxy;
use phalanx_engine::counters::bump;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::h1::{self, Body, Chunked, Error, ErrorKind, Parsed, RequestFraming};
use phalanx_engine::log::Timers;
use phalanx_engine::state::sessions;
use phalanx_engine::time::Now;
use tokio::io::AsyncWriteExt;

use crate::buffer::poll_fill;
use crate::connect::Dispatch;
use crate::front::Front;
use crate::report::{self, Report};
use crate::session::Session;
use crate::worker::View;

use self::message::Scratch;

/// A request whose head is complete, at the start of the client's buffer.
pub(crate) struct Request {
    pub(crate) scratch: Box<Scratch>,
    pub(crate) framing: RequestFraming,
    /// When its first byte came.
    pub(crate) began: Now,
    /// When its head was complete.
    pub(crate) received: Now,
    /// The first on its connection.
    pub(crate) first: bool,
}

/// Whether the client connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Request,
    Close,
}

/// Why no request came.
enum NoRequest {
    /// It was idle, or never sent anything that matters: nothing to say.
    Silent,
    /// It must be told.
    Refused(End, u16, Option<Error>),
}

/// Serves a client until it or we close.
pub(crate) async fn serve(session: Session, mut plan: Rc<View>, mut index: usize, mut front: Front) {
    let mut first = true;
    loop {
        let config = plan.proxies[index].config.clone();
        let mut began = if first { Some(session.accepted) } else { None };
        match receive(&session, &config, &mut front, first, &mut began).await {
            Ok(request) => {
                // Boxed: an idle connection does not carry the state of a request.
                let serving = Box::pin(transaction::run(&session, &plan, index, &mut front, request));
                if serving.await == Next::Close {
                    break;
                }
            }
            Err(NoRequest::Silent) => break,
            Err(NoRequest::Refused(end, status, error)) => {
                refuse(&session, &config, &mut front, began, end, status, error).await;
                break;
            }
        }
        first = false;
        plan = session.worker.plan();
        let Some(now) = plan.index(session.frontend.name()) else { break };
        index = now;
        if session.worker.shared.state.process().is_stopping() && front.buf.is_empty() {
            break;
        }
    }
    linger(&mut front).await;
}

/// Waits for the head of the next request.
async fn receive(
    session: &Session,
    config: &Proxy,
    front: &mut Front,
    first: bool,
    began: &mut Option<Now>,
) -> Result<Request, NoRequest> {
    let timeouts = &config.timeouts;
    let request_limit = timeouts.http_request.or(timeouts.client);
    let mut scratch: Option<Box<Scratch>> = None;
    let mut armed = false;
    let mut first_byte = None;
    let mut waited = false;
    if front.buf.is_empty() {
        let idle = if first { request_limit } else { timeouts.http_keep_alive.or(request_limit) };
        front.deadline.set(idle);
        // With http-request the clock runs from the accept on.
        armed = first && timeouts.http_request.is_some();
        if !first {
            session.entry.session().note(None, None, sessions::Phase::Request);
        }
    }
    loop {
        if !front.buf.is_empty() {
            if first_byte.is_none() {
                let now = session.worker.now();
                first_byte = Some(now);
                *began = Some(now);
            }
            let scratch_now = scratch.get_or_insert_with(Scratch::take);
            match parse(front, scratch_now) {
                Ok(Some(framing)) => {
                    let began = first_byte.unwrap_or(session.accepted);
                    return Ok(Request {
                        scratch: scratch.take().unwrap_or_else(Scratch::take),
                        framing,
                        began,
                        // Usually it came in one piece.
                        received: if waited { session.worker.now() } else { began },
                        first,
                    });
                }
                Ok(None) if front.buf.is_full() => {
                    let error = Error { kind: ErrorKind::TooLong, at: front.buf.len() };
                    return Err(NoRequest::Refused(End::new(Cause::Proxy, Phase::Request), 400, Some(error)));
                }
                Ok(None) => {}
                Err(e) => {
                    scratch_now.request.restore_names(front.buf.bytes_mut());
                    let end = End::new(Cause::Proxy, Phase::Request);
                    return Err(NoRequest::Refused(end, e.status(), Some(e)));
                }
            }
            if !armed || timeouts.http_request.is_none() {
                front.deadline.set(request_limit);
                armed = true;
            }
            waited = true;
        }
        read_more(session, front, first).await?;
    }
}

/// One read while waiting for a request.
async fn read_more(session: &Session, front: &mut Front, first: bool) -> Result<(), NoRequest> {
    poll_fn(|cx| {
        let idle = front.buf.is_empty();
        if !front.eof {
            match poll_fill(&mut front.stream, cx, &mut front.buf) {
                Poll::Ready(Ok(0)) => front.eof = true,
                Poll::Ready(Ok(_)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(_)) => front.eof = true,
                Poll::Pending => {}
            }
        }
        if front.eof {
            let end = End::new(Cause::ClientAbort, Phase::Request);
            let silent = idle && !first;
            let why = if silent { NoRequest::Silent } else { NoRequest::Refused(end, 400, None) };
            return Poll::Ready(Err(why));
        }
        if session.entry.session().poll_killed(cx.waker()) {
            return Poll::Ready(Err(NoRequest::Silent));
        }
        ready!(front.deadline.poll(cx));
        let end = End::new(Cause::ClientTimeout, Phase::Request);
        let silent = idle && !first;
        Poll::Ready(Err(if silent { NoRequest::Silent } else { NoRequest::Refused(end, 408, None) }))
    })
    .await
}

fn parse(front: &mut Front, scratch: &mut Scratch) -> Result<Option<RequestFraming>, Error> {
    match h1::request(front.buf.bytes_mut(), &mut scratch.request)? {
        Parsed::Partial => Ok(None),
        Parsed::Complete(len) => {
            let buf = front.buf.bytes();
            let framing = h1::request_framing(buf, &scratch.request)?;
            // A body that came with its head and is no body makes this no request.
            if framing.body == Body::Chunked {
                let body = buf.get(len..).unwrap_or(&[]);
                Chunked::default().scan(body).map_err(|e| Error { at: e.at + len, ..e })?;
            }
            Ok(Some(framing))
        }
    }
}

/// Answers what is no valid request, captures and logs it.
async fn refuse(
    session: &Session,
    config: &Proxy,
    front: &mut Front,
    began: Option<Now>,
    end: End,
    status: u16,
    error: Option<Error>,
) {
    let worker = &session.worker;
    let now = worker.now();
    let shard = session.frontend.counters().shard(worker.id);
    bump(&shard.ereq, 1);
    shard.response(status);
    if let Some(error) = error {
        let state = &worker.shared.state;
        capture::request(session, front, error.at);
        state.process().counters().shard(worker.id).response(status);
    }
    let nothing_sent = front.buf.is_empty();
    if let Some(text) = reply::refusal(status) {
        front.deadline.set(config.timeouts.client);
        let write = front.stream.write_all(text);
        // A client that does not even read its refusal is not waited for.
        let _ = tokio::time::timeout(reply::PATIENCE, write).await;
    }
    if nothing_sent && config.dontlognull {
        return;
    }
    let began = began.unwrap_or(session.accepted);
    report::log(&Report {
        session,
        client: front.src,
        destination: front.dst,
        config,
        backend: None,
        dispatch: &Dispatch::default(),
        unix_us: began.unix_us,
        timers: Timers { total: report::since(began)(now), ..Timers::default() },
        status: Some(status),
        bytes: 0,
        termination: end.http_code(Default::default(), Default::default()),
        request: b"",
        server: None,
        asap: false,
    });
}

/// Closes so that the client can still read what was sent: our side first, then what it still sends
/// is thrown away for a moment; closing with unread bytes would reset the connection.
async fn linger(front: &mut Front) {
    if front.eof {
        return;
    }
    let unread = !front.buf.is_empty() || front.stream.try_read(&mut [0; 1]).is_ok_and(|n| n > 0);
    if !unread && !front.abandoned {
        return;
    }
    let _ = front.stream.shutdown().await;
    front.deadline.set(Some(reply::PATIENCE));
    let mut left = reply::DRAIN;
    poll_fn(|cx| {
        while left > 0 {
            let n = front.buf.len();
            front.buf.consume(n);
            match poll_fill(&mut front.stream, cx, &mut front.buf) {
                Poll::Ready(Ok(n)) if n > 0 => left = left.saturating_sub(n),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return front.deadline.poll(cx),
            }
        }
        Poll::Ready(())
    })
    .await;
}

//! The life of one client connection, from accept to close.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use phalanx_config::Mode;
use phalanx_engine::counters::bump;
use phalanx_engine::frontend::Frontend;
use phalanx_engine::memory::Memory;
use phalanx_engine::state::sessions::Entry;
use phalanx_engine::time::Now;
use tokio::task::spawn_local;

use crate::buffer::{Buffer, SIZE};
use crate::deadline::Deadline;
use crate::front::Front;
use crate::listener::Target;
use crate::room::Place;
use crate::rules::{Around, Passage};
use crate::stream::Stream;
use crate::worker::{View, Worker};
use crate::{http, rules, tcp};

/// What is the same for the whole connection.
pub(crate) struct Session {
    pub(crate) worker: Rc<Worker>,
    pub(crate) frontend: Arc<Frontend>,
    pub(crate) entry: Entry,
    /// What connection rules track, and variables.
    pub(crate) memory: Memory,
    _place: Place,
}

/// Starts the task that serves a connection just accepted.
///
/// Not itself a future: one within the other, each would have room for all of this.
pub(crate) fn start(
    worker: &Rc<Worker>,
    stream: std::net::TcpStream,
    peer: SocketAddr,
    target: &Target,
    place: Place,
) {
    let plan = worker.plan();
    let Some(index) = plan.index(target.frontend.name()) else { return };
    let dst = match target.addr.ip().is_unspecified() {
        true => stream.local_addr().unwrap_or(target.addr),
        false => target.addr,
    };
    let src = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let accepted = worker.now();
    let state = &worker.shared.state;
    let frontend = target.frontend.clone();
    let entry = state.sessions().enter(worker.id, src, dst, frontend.name().clone(), accepted);
    for counters in [frontend.counters(), state.process().counters()] {
        counters.count_connection(worker.id, accepted);
    }
    let bufsize = plan.config.global.bufsize.unwrap_or(SIZE).max(1024);
    let front = Front {
        stream: Stream::new(stream),
        buf: Buffer::new(bufsize),
        eof: false,
        abandoned: false,
        said_last: false,
        deadline: Deadline::default(),
        round: None,
        entry: entry.session().clone(),
    };
    let session =
        Session { worker: worker.clone(), frontend, entry, memory: Memory::default(), _place: place };
    match session.passage(&plan, index, &front) {
        Passage::Free => {}
        Passage::Rejected => return,
        Passage::Dropped => return rules::leave_silently(&front),
    }
    for counters in [session.frontend.counters(), worker.shared.state.process().counters()] {
        counters.count_session(worker.id, accepted);
    }
    session.memory.all_tracked().for_each(|tracked| tracked.sess(accepted));
    match plan.proxies[index].config.mode {
        Mode::Tcp => spawn_local(tcp::serve(session, plan, index, front)),
        Mode::Http => spawn_local(http::serve(session, plan, index, front)),
    };
}

impl Session {
    /// When it was accepted.
    pub(crate) fn accepted(&self) -> Now {
        self.entry.session().accepted()
    }

    /// Carries out `tcp-request connection` and `tcp-request session`.
    fn passage(&self, plan: &View, index: usize, client: &Front) -> Passage {
        let front = &plan.proxies[index];
        let set = &front.config.rules;
        let around = Around { session: self, plan, front, proxy: front, backend: None };
        let shard = self.frontend.counters().shard(self.worker.id);
        let passage = rules::connection(&set.tcp_connection, &around, client);
        if passage != Passage::Free {
            bump(&shard.dcon, 1);
            // A single reset: the client's port is free again and no TIME_WAIT is left here.
            client.stream.reset_on_close();
            return passage;
        }
        let passage = rules::connection(&set.tcp_session, &around, client);
        if passage != Passage::Free {
            bump(&shard.dses, 1);
        }
        passage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size of the future that a function of four arguments gives.
    fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// Most of what an idle connection costs is its task.
    #[test]
    fn tasks_of_sessions_are_small() {
        let (http, tcp) = (size(http::serve), size(tcp::serve));
        assert!(http <= 320, "HTTP, waiting for a request: {http} bytes");
        assert!(tcp <= 1280, "TCP: {tcp} bytes");
    }
}

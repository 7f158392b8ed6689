//! The life of one client connection, from accept to close.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use phalanx_config::Mode;
use phalanx_engine::counters::bump;
use phalanx_engine::frontend::Frontend;
use phalanx_engine::memory::Memory;
use phalanx_engine::state::sessions::Session as Entry;
use phalanx_engine::time::Now;

use crate::buffer::SIZE;
use crate::front::Front;
use crate::listener::Target;
use crate::room::{Limit, Place};
use crate::rules::{Around, Passage};
use crate::runtime::spawn;
use crate::stream::Stream;
use crate::worker::{Shared, View, Worker};
use crate::{http, rules, tcp};

/// What is the same for the whole connection.
pub(crate) struct Session {
    pub(crate) worker: Rc<Worker>,
    /// In the list of sessions.
    pub(crate) entry: Arc<Entry>,
    /// What connection rules track, and variables.
    pub(crate) memory: Memory,
    /// That of the `bind` line.
    limit: Arc<Limit>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let Shared { state, room, .. } = &self.worker.shared;
        state.sessions().leave(&self.entry);
        room.leave(&self.limit, self.entry.frontend(), state.process());
    }
}

/// `tune.bufsize`.
pub(crate) fn buffer_size(plan: &View) -> usize {
    plan.config.global.bufsize.unwrap_or(SIZE).max(1024)
}

/// Starts the task that serves a connection just accepted.
///
/// Not itself a future: one within the other, each would have room for all of this.
pub(crate) fn start(
    worker: &Rc<Worker>,
    stream: std::net::TcpStream,
    peer: SocketAddr,
    target: &Target,
    place: Place<'_>,
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
    let entry = state.sessions().enter(worker.id, src, dst, frontend, accepted);
    for counters in [entry.frontend().counters(), state.process().counters()] {
        counters.count_connection(worker.id, accepted);
    }
    let front = Front::new(Stream::new(stream), buffer_size(&plan));
    let session = Session { worker: worker.clone(), entry, memory: Memory::default(), limit: place.keep() };
    match session.passage(&plan, index, &front) {
        Passage::Free => {}
        Passage::Rejected => return,
        Passage::Dropped => return rules::leave_silently(&front),
    }
    for counters in [session.frontend().counters(), worker.shared.state.process().counters()] {
        counters.count_session(worker.id, accepted);
    }
    session.memory.all_tracked().for_each(|tracked| tracked.sess(accepted));
    match plan.proxies[index].config.mode {
        Mode::Tcp => spawn(tcp::serve(session, plan, index, front)),
        Mode::Http => spawn(http::serve(session, plan, index, front)),
    };
}

impl Session {
    /// When it was accepted.
    pub(crate) fn accepted(&self) -> Now {
        self.entry.accepted()
    }

    /// The client's address.
    pub(crate) fn src(&self) -> SocketAddr {
        self.entry.client()
    }

    /// The address that it connected to.
    pub(crate) fn dst(&self) -> SocketAddr {
        self.entry.local()
    }

    /// Where it was accepted.
    pub(crate) fn frontend(&self) -> &Arc<Frontend> {
        self.entry.frontend()
    }

    /// Carries out `tcp-request connection` and `tcp-request session`.
    fn passage(&self, plan: &View, index: usize, client: &Front) -> Passage {
        let front = &plan.proxies[index];
        let set = &front.config.rules;
        let around = Around { session: self, plan, front, proxy: front, backend: None };
        let shard = self.frontend().counters().shard(self.worker.id);
        let passage = rules::connection(&set.tcp_connection, &around);
        if passage != Passage::Free {
            bump(&shard.dcon, 1);
            // A single reset: the client's port is free again and no TIME_WAIT is left here.
            client.stream.reset_on_close();
            return passage;
        }
        let passage = rules::connection(&set.tcp_session, &around);
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
        // With what the runtime adds, 256 bytes, which are two of its cache lines.
        assert!(http <= 152, "HTTP, waiting for a request: {http} bytes");
        assert!(tcp <= 1280, "TCP: {tcp} bytes");
    }
}

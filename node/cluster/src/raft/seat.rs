//! This node's place in the agreement, across faults of its disk.
//!
//! A disk that is full or broken ends [`Raft`] on this node; the node forwards on with what it knows.
//! The seat then opens the log again, more and more rarely, until the disk works: the same as a
//! restart of the process, without one. Owned by [`crate::Cluster`]; the gRPC service asks it for
//! the raft of the moment. The registry that the forwarding plane sees never goes back meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use phalanx_engine::registry::Registry;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::machine::OnRegistry;
use super::{Failed, Open, Raft};
use crate::peer::Peers;
use crate::roster::Roster;
use crate::server::ended;
use crate::{Settings, StartError};

/// Pause before the log is opened again, at first and at last.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(15);

/// The raft of the moment, and what is needed for another.
#[derive(Clone)]
pub(crate) struct Seat(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    peers: Peers,
    roster: Roster,
    follower: Arc<Follower>,
    open: Arc<Mutex<Open>>,
    /// Or why there is none.
    raft: RwLock<Result<Raft, String>>,
}

/// Hands registries on, in the order of their revisions: a log that is opened again begins with its
/// snapshot.
struct Follower {
    on_registry: OnRegistry,
    newest: Mutex<Arc<Registry>>,
}

impl Follower {
    fn follow(&self, registry: &Registry) {
        let mut newest = self.newest.lock();
        if registry.revision() >= newest.revision() {
            *newest = Arc::new(registry.clone());
            (self.on_registry)(registry);
        }
    }
}

impl Seat {
    /// Takes part, or says why the disk does not let it.
    ///
    /// # Errors
    /// What is not the disk's fault and has to be set right first.
    pub(crate) async fn take(
        settings: Arc<Settings>,
        peers: Peers,
        roster: Roster,
        on_registry: OnRegistry,
    ) -> Result<Seat, StartError> {
        let follower = Arc::new(Follower { on_registry, newest: Mutex::default() });
        let open = Arc::default();
        let raft = match start(&settings, &peers, &roster, &follower, &open).await {
            Ok(raft) => Ok(raft),
            Err(Failed::Start(error)) => return Err(error),
            Err(Failed::Disk(reason)) => {
                error!("cluster {}: {reason}: no runtime commands on this node", settings.name);
                roster.set_waiting(&reason);
                Err(reason)
            }
        };
        Ok(Seat(Arc::new(Inner { settings, peers, roster, follower, open, raft: RwLock::new(raft) })))
    }

    /// The raft of the moment, or why there is none. Not to be kept.
    pub(crate) fn raft(&self) -> Result<Raft, String> {
        self.0.raft.read().clone()
    }

    /// What the commands so far have changed, as this node knows it.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.0.follower.newest.lock().clone()
    }

    /// Looks after the membership while there is a raft, and for another when it has ended.
    pub(crate) async fn tend(self, mut stop: watch::Receiver<bool>) {
        let mut pause = AGAIN_FIRST;
        let mut said = self.raft().err();
        loop {
            if let Ok(raft) = self.raft() {
                let began = Instant::now();
                raft.clone().tend().await;
                if began.elapsed() > AGAIN_LAST {
                    pause = AGAIN_FIRST;
                }
                if *stop.borrow() {
                    return;
                }
                let reason = raft.stopped().unwrap_or_default();
                error!(
                    "cluster {}: no runtime commands on this node for now: {reason}",
                    self.0.settings.name
                );
                *self.0.raft.write() = Err(reason);
                raft.shutdown().await;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = ended(&mut stop) => return,
            }
            pause = (pause * 2).min(AGAIN_LAST);
            let Inner { settings, peers, roster, follower, open, .. } = &*self.0;
            match start(settings, peers, roster, follower, open).await {
                Ok(raft) => {
                    info!("cluster {}: the log is in use again", self.0.settings.name);
                    *self.0.raft.write() = Ok(raft);
                    said = None;
                }
                Err(Failed::Disk(reason)) => self.still_without(reason, &mut said),
                Err(Failed::Start(error)) => self.still_without(error.to_string(), &mut said),
            }
        }
    }

    fn still_without(&self, reason: String, said: &mut Option<String>) {
        if said.as_ref() != Some(&reason) {
            warn!("cluster {}: the log cannot be used yet, trying again: {reason}", self.0.settings.name);
            *said = Some(reason.clone());
        }
        self.0.roster.set_waiting(&reason);
        *self.0.raft.write() = Err(reason);
    }
}

async fn start(
    settings: &Arc<Settings>,
    peers: &Peers,
    roster: &Roster,
    follower: &Arc<Follower>,
    open: &Arc<Mutex<Open>>,
) -> Result<Raft, Failed> {
    let follower = follower.clone();
    let on_registry = Box::new(move |registry: &Registry| follower.follow(registry));
    Raft::start(settings.clone(), peers.clone(), roster.clone(), on_registry, open.clone()).await
}

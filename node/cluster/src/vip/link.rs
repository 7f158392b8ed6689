//! Streams between nodes: this node's own to each peer, and the service that takes theirs.
//!
//! Own streams live on a thread of their own, so that nothing else on the control runtime delays a
//! renewal. A stream that is silent for some leases is given up and made anew: after a partition, a
//! fresh connection is up sooner than an old one that waits for its retransmission timer.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use phalanx_engine::lease::{NodeId, Timing};
use phalanx_wire::cluster as pb;
use phalanx_wire::cluster::lease_client::LeaseClient;
use phalanx_wire::cluster::lease_server::Lease as LeaseService;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::core::{Shared, thread};
use crate::identity::{Caller, Stamp};
use crate::{Settings, tls};

/// Messages waiting for a peer; more are lost, as the protocol allows.
const QUEUE: usize = 256;

/// How long a stream may be silent: peers speak at least once per lease, or per second.
fn silence(timing: Timing) -> Duration {
    3 * timing.lease.max(Duration::from_millis(200))
}

/// How to connect to a node.
pub(super) fn endpoint(settings: &Settings, node: &str, timing: Timing) -> Result<Endpoint, String> {
    let addr = settings.nodes.iter().find(|n| n.name == node).map(|n| n.addr.as_str()).unwrap_or_default();
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|_| format!("node '{node}': invalid address '{addr}', expects host:port"))?;
    let patience = timing.lease.max(Duration::from_millis(200));
    Ok(endpoint.connect_timeout(patience).tcp_nodelay(true).http2_keep_alive_interval(3 * patience))
}

/// Starts the thread with this node's own streams.
pub(super) fn start(shared: &Arc<Shared>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("runtime of leases: {e}"))?;
    let shared = shared.clone();
    thread("vip-links", move || {
        runtime.block_on(async move {
            let mut streams = tokio::task::JoinSet::new();
            let mut kept: BTreeMap<NodeId, AbortHandle> = BTreeMap::new();
            let mut changed = shared.changed.subscribe();
            while !shared.stopping.load(Ordering::Acquire) {
                let names = shared.names();
                let ids: Vec<NodeId> = names.ids().into_iter().filter(|id| Some(*id) != names.me()).collect();
                kept.retain(|id, stream| {
                    let stays = ids.contains(id);
                    if !stays {
                        stream.abort();
                    }
                    stays
                });
                for id in ids {
                    kept.entry(id).or_insert_with(|| streams.spawn(keep_stream(shared.clone(), id)));
                }
                while streams.try_join_next().is_some() {}
                // Looks now and then whether the node stops.
                let _ = timeout(Duration::from_millis(200), changed.changed()).await;
            }
            streams.join_all().await;
        });
    })
}

/// Keeps a stream to a peer, for as long as this node runs.
async fn keep_stream(shared: Arc<Shared>, peer: NodeId) {
    let mut told = String::new();
    while !shared.stopping.load(Ordering::Acquire) {
        let ended = talk(&shared, peer, &mut told).await;
        let names = shared.names();
        let name = names.name(peer);
        match ended {
            // That it cannot be reached, the probe of the cluster reports.
            Err(Ended::Gone(why)) => debug!("leases: node '{name}': {why}"),
            Err(Ended::Misfit(why)) if why != told => {
                warn!("leases: node '{name}': {why}");
                told = why;
            }
            _ => {}
        }
        // Different on each pair of nodes, so that they do not all knock at once.
        let me = shared.names().me().map_or(0, |id| id.0);
        let stagger = u64::from(me) * 7 + u64::from(peer.0) * 3;
        sleep(Duration::from_millis(40 + stagger % 40)).await;
    }
}

enum Ended {
    Gone(String),
    Misfit(String),
}

async fn talk(shared: &Arc<Shared>, peer: NodeId, told: &mut String) -> Result<(), Ended> {
    let names = shared.names();
    let name = names.name(peer);
    let settings = shared.settings();
    let gone = |e: &dyn std::fmt::Display| Ended::Gone(e.to_string());
    let endpoint = endpoint(&settings, name, shared.timing).map_err(Ended::Misfit)?;
    let stamp = Stamp::new(&settings, name).map_err(Ended::Misfit)?;
    let patience = silence(shared.timing);
    let connecting = tls::connect(&settings, name, &endpoint);
    let channel = timeout(patience, connecting).await.map_err(|e| gone(&e))?.map_err(|e| gone(&e))?;
    let (queue, messages) = mpsc::channel(QUEUE);
    let link = Registered { shared, peer, id: shared.link_up(peer, true, queue) };
    let mut client = LeaseClient::with_interceptor(channel, stamp);
    let call = timeout(patience, client.talk(ReceiverStream::new(messages))).await.map_err(|e| gone(&e))?;
    let mut inbound = match call {
        Ok(response) => response.into_inner(),
        Err(status) if status.code() == tonic::Code::FailedPrecondition => {
            return Err(Ended::Misfit(status.message().to_owned()));
        }
        Err(status) => return Err(gone(&status.message())),
    };
    loop {
        match timeout(patience, inbound.message()).await {
            Err(_) => return Err(Ended::Gone(format!("silent for {patience:?}"))),
            Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => {
                return Err(Ended::Misfit(status.message().to_owned()));
            }
            Ok(Err(status)) => return Err(gone(&status.message())),
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(message))) => {
                link.shared.receive(peer, message);
                told.clear();
            }
        }
    }
}

/// A stream that is known to the core while this lives.
struct Registered<'a> {
    shared: &'a Arc<Shared>,
    peer: NodeId,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.link_down(self.peer, self.id);
    }
}

/// The Lease service.
pub(super) struct Service {
    shared: Arc<Shared>,
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Service {
        Service { shared }
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let caller = Caller::of(request)?;
        self.shared
            .names()
            .id(&caller.node)
            .ok_or_else(|| Status::unavailable("not a member, as far as this node knows"))
    }
}

#[tonic::async_trait]
impl LeaseService for Service {
    type TalkStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseMessage, Status>> + Send>>;

    async fn talk(
        &self,
        request: Request<Streaming<pb::LeaseMessage>>,
    ) -> Result<Response<Self::TalkStream>, Status> {
        let caller = Caller::of(&request)?;
        let peer = self.caller(&request)?;
        let mut inbound = request.into_inner();
        let (queue, messages) = mpsc::channel(QUEUE);
        let id = self.shared.link_up(peer, false, queue);
        let shared = self.shared.clone();
        let reading = async move {
            let link = Registered { shared: &shared, peer, id };
            let patience = silence(shared.timing);
            while !shared.stopping.load(Ordering::Acquire) {
                let Ok(Ok(Some(message))) = timeout(patience, inbound.message()).await else { return };
                // A node that has left is nobody's peer, whatever it still says.
                if shared.names().id(&caller.node) != Some(peer) {
                    return;
                }
                link.shared.receive(peer, message);
            }
        };
        // The task ends with the stream, with its silence, or with the node; the stream ends with the task,
        // because the core lets go of the queue.
        tokio::spawn(reading);
        Ok(Response::new(Box::pin(ReceiverStream::new(messages).map(Ok))))
    }

    async fn released(
        &self,
        request: Request<pb::ReleasedRequest>,
    ) -> Result<Response<pb::ReleasedReply>, Status> {
        let from = self.caller(&request)?;
        self.shared.released(from, request.into_inner());
        Ok(Response::new(pb::ReleasedReply {}))
    }

    async fn r#move(&self, request: Request<pb::MoveRequest>) -> Result<Response<pb::MoveReply>, Status> {
        self.caller(&request)?;
        let request = request.into_inner();
        let to = Some(request.to.as_str()).filter(|to| !to.is_empty());
        let asked_by: String = request.asked_by.chars().filter(|c| !c.is_control()).take(64).collect();
        let reply = match self.shared.move_here(&request.vip, to, &asked_by).await {
            Ok((holder, epoch)) => pb::MoveReply { refused: String::new(), holder, epoch: epoch.0 },
            Err(why) => pb::MoveReply { refused: why.0, ..pb::MoveReply::default() },
        };
        Ok(Response::new(reply))
    }
}

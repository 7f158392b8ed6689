//! openraft's calls to the other nodes, carried by gRPC on the peers' connections.
//!
//! Every call has openraft's own deadline. A peer that cannot be reached is "unreachable" to openraft,
//! which then waits longer between attempts; what is wrong with it is reported by the probe, not here.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use phalanx_wire::raft::raft_client::RaftClient;
use phalanx_wire::raft::{Payload, SnapshotPiece};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tonic::{Response, Status};

use super::lost::Standing;
use super::types::{Member, Snapshot, SnapshotData, Types, Vote, decode, encode};
use crate::peer::{Lane, Line, Peer, Peers};

/// Largest message of a call: as many entries as go together, each the largest that there is, see
/// [`super::MAX_PUSH`].
pub(super) const MAX_MESSAGE: usize = 80 << 20;

/// Bytes of a snapshot in one message.
const PIECE: usize = 64 << 10;

/// A client of the raft service of a peer.
pub(super) fn client(peer: &Peer) -> RaftClient<Line> {
    RaftClient::new(peer.line(Lane::Raft))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Makes a [`Link`] per member.
pub(crate) struct Network {
    pub(crate) peers: Peers,
    pub(crate) witness: Witness,
}

/// How this node knows the others to stand; there is nobody to ask before raft has started.
pub(crate) type Witness = Arc<OnceLock<Box<dyn Fn() -> Option<Standing> + Send + Sync>>>;

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Member) -> Link {
        Link {
            name: node.name.clone(),
            id: target,
            peers: self.peers.clone(),
            witness: self.witness.clone(),
            last: self.peers.by_id(target),
        }
    }
}

/// The way to one member of the cluster.
pub(crate) struct Link {
    name: String,
    id: u64,
    peers: Peers,
    witness: Witness,
    /// A node that leaves is no peer any more, but still has to hear of it.
    last: Option<Arc<Peer>>,
}

/// Which call.
enum Call {
    Append,
    Vote,
    PreVote,
    TransferLeader,
}

impl Link {
    async fn call<Q, A>(&self, call: Call, request: &Q, ttl: Duration) -> Result<A, RPCError<Types>>
    where
        Q: Serialize,
        A: DeserializeOwned,
    {
        let mut client = client(&*self.peer()?);
        let data = Bytes::from(encode(request).map_err(|e| NetworkError::new(&e))?);
        let asks = matches!(call, Call::Vote | Call::PreVote);
        let standing = if asks { self.witness.get().and_then(|standing| standing()) } else { None };
        let standing = standing.map(|s| encode(&s)).transpose().map_err(|e| NetworkError::new(&e))?;
        let payload = Payload { data, standing: standing.unwrap_or_default().into() };
        let answer = timeout(ttl, async {
            match call {
                Call::Append => client.append(payload).await,
                Call::Vote => client.vote(payload).await,
                Call::PreVote => client.pre_vote(payload).await,
                Call::TransferLeader => client.transfer_leader(payload).await,
            }
        });
        Ok(self.answer(answer.await)?)
    }

    fn peer(&self) -> Result<Arc<Peer>, Unreachable<Types>> {
        let missing = || io::Error::other(format!("node '{}' is no member", self.name));
        let peer = self.peers.by_id(self.id).or_else(|| self.last.clone());
        peer.ok_or_else(|| Unreachable::new(&missing()))
    }

    fn answer<A: DeserializeOwned, T>(
        &self,
        answer: Result<Result<Response<Payload>, Status>, T>,
    ) -> Result<A, Unreachable<Types>> {
        let payload = match answer {
            Ok(Ok(payload)) => payload.into_inner(),
            Ok(Err(status)) => return Err(Unreachable::new(&status)),
            Err(_) => {
                let late = format!("node '{}' did not answer in time", self.name);
                return Err(Unreachable::new(&io::Error::new(io::ErrorKind::TimedOut, late)));
            }
        };
        decode(&payload.data).map_err(|error| Unreachable::new(&error))
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.call(Call::Append, &rpc, option.soft_ttl()).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(Call::Vote, &rpc, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(Call::PreVote, &rpc, option.soft_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call(Call::TransferLeader, &rpc, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut client = client(&*self.peer()?);
        let head = encode(&(vote, snapshot.meta)).map_err(|e| NetworkError::new(&e))?;
        let first = SnapshotPiece { head: head.into(), data: Bytes::new() };
        let mut rest = snapshot.snapshot;
        let pieces = std::iter::from_fn(move || {
            let data = rest.split_to(rest.len().min(PIECE));
            (!data.is_empty()).then_some(SnapshotPiece { head: Bytes::new(), data })
        });
        let sending = client.snapshot(stream::iter(std::iter::once(first).chain(pieces)));
        tokio::select! {
            answer = timeout(option.soft_ttl(), sending) => Ok(self.answer(answer)?),
            closed = cancel => Err(closed.into()),
        }
    }
}

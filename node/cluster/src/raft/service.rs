//! The raft service of this node: openraft's calls, snapshots, forwarded commands, probes.
//!
//! Called by the other nodes through the guard. Whatever they send is decoded with care; an answer
//! that cannot be given is a status, never a panic.

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use phalanx_engine::registry::Request as Command;
use phalanx_wire::raft::propose_reply::Outcome;
use phalanx_wire::raft::raft_server::{self, RaftServer};
use phalanx_wire::raft::{
    Done, HelloReply, HelloRequest, NotLeader, Payload, ProposeReply, ProposeRequest, SnapshotPiece,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::lost::{Asked, End};
use super::machine::registry_of;
use super::network::MAX_MESSAGE;
use super::seat::Seat;
use super::types::{Snapshot, SnapshotMeta, Types, Vote, decode, encode};
use super::{Local, MAX_SNAPSHOT, PROPOSE_WITHIN, Raft};
use crate::identity::Caller;

/// The service as it is served.
pub(crate) fn server(seat: Seat) -> RaftServer<Service> {
    RaftServer::new(Service(seat))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

pub(crate) struct Service(Seat);

impl Service {
    /// `Aborted` tells a peer that the node is there, but takes no part.
    fn raft(&self) -> Result<Raft, Status> {
        self.0.raft().map_err(|why| Status::aborted(format!("it cannot use its log: {why}")))
    }

    /// The request for a vote, if this node's vote counts.
    async fn may_vote(&self, request: Request<Payload>) -> Result<VoteRequest<Types>, Status> {
        let candidate = Caller::of_log(&request)?.id;
        let Payload { data, standing } = request.into_inner();
        let vote: VoteRequest<Types> = decode(&data).map_err(malformed)?;
        let last = vote.last_log_id.map(|id| End { term: id.leader_id.term, next: id.index + 1 });
        let asked = Asked { term: vote.vote.leader_id.term, last: last.unwrap_or_default() };
        self.raft()?.may_vote_for(candidate, asked, &standing).await.map_err(Status::unavailable)?;
        Ok(vote)
    }
}

#[tonic::async_trait]
impl raft_server::Raft for Service {
    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(self.raft()?.hello()))
    }

    async fn append(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let append: AppendEntriesRequest<Types> = read(request)?;
        let (leader, committed) = (append.vote, append.leader_commit);
        let last = append.entries.last().map(|e| e.log_id).or(append.prev_log_id);
        let result = self.raft()?.core().append_entries(append).await;
        if matches!(result, Ok(AppendEntriesResponse::Success)) {
            let noted = self.raft()?.note_taught(leader, committed, last).await;
            noted.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        answer(result)
    }

    async fn vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let request = self.may_vote(request).await?;
        answer(self.raft()?.core().vote(request).await)
    }

    async fn pre_vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let request = self.may_vote(request).await?;
        answer(self.raft()?.core().pre_vote(request).await)
    }

    async fn transfer_leader(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        answer(self.raft()?.core().handle_transfer_leader(read(request)?).await)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPiece>>,
    ) -> Result<Response<Payload>, Status> {
        let mut pieces = request.into_inner();
        let first = pieces.message().await?.ok_or_else(|| Status::invalid_argument("no snapshot"))?;
        let (vote, meta): (Vote, SnapshotMeta) = decode(&first.head).map_err(malformed)?;
        let mut data = first.data.to_vec();
        while let Some(piece) = pieces.message().await? {
            data.extend_from_slice(&piece.data);
            if data.len() > MAX_SNAPSHOT {
                return Err(Status::resource_exhausted("the snapshot is too large"));
            }
        }
        // openraft stops for good on a snapshot that it cannot install: look at it first.
        if let Err(error) = registry_of(&data) {
            self.raft()?.refuse_snapshot(&error);
            return Err(malformed(error));
        }
        let raft = self.raft()?;
        let installed =
            raft.core().install_full_snapshot(vote, Snapshot { meta, snapshot: data.into() }).await;
        if installed.is_ok() {
            raft.take_snapshot();
        }
        answer(installed)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let command: Command = decode(&request.into_inner().request).map_err(malformed)?;
        let outcome = match timeout(PROPOSE_WITHIN, self.raft()?.propose_here(&command)).await {
            Ok(Local::Done { index, reply }) => {
                Outcome::Done(Done { index, reply: encode(&reply).map_err(malformed)?.into() })
            }
            Ok(Local::NotLeader(leader)) => Outcome::NotLeader(NotLeader { leader: leader.unwrap_or(0) }),
            Ok(Local::Failed(reason)) => Outcome::Failed(reason),
            Ok(Local::Refused(reason)) => Outcome::Refused(reason),
            Err(_) => Outcome::Failed("no majority of the nodes confirmed it".to_owned()),
        };
        Ok(Response::new(ProposeReply { outcome: Some(outcome) }))
    }
}

fn read<T: DeserializeOwned>(request: Request<Payload>) -> Result<T, Status> {
    decode(&request.into_inner().data).map_err(malformed)
}

fn answer<T: Serialize, E: std::fmt::Display>(result: Result<T, E>) -> Result<Response<Payload>, Status> {
    let value = result.map_err(|error| Status::unavailable(error.to_string()))?;
    let data = encode(&value).map_err(malformed)?.into();
    Ok(Response::new(Payload { data, ..Payload::default() }))
}

fn malformed(error: std::io::Error) -> Status {
    Status::invalid_argument(format!("malformed message: {error}"))
}

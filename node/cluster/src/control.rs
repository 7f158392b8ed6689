//! Commands of the Runtime API that one node has another carry out.
//!
//! [`run`] asks a peer and gives its answer as it comes; [`Control`] is the other side, which hands the
//! command to whatever the program has given it ([`Commands`]). What a command means, and what a level
//! allows, is not decided here. Bounded: how many run at a time, how much is on its way, how long a
//! peer may be silent.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use phalanx_wire::cluster::control_client::ControlClient;
use phalanx_wire::cluster::control_server::{self, ControlServer};
use phalanx_wire::cluster::run_reply::Kind;
use phalanx_wire::cluster::{Finished, RunReply, RunRequest, Working};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::identity::Caller;
use crate::peer::{Lane, Peer, problem_text};

/// Longest silence of a peer before it counts as unreachable.
pub const SILENCE: Duration = Duration::from_millis(1800);

/// Between two signs of life of a command that takes its time.
const ALIVE_EVERY: Duration = Duration::from_millis(500);

/// Commands of other nodes that run here at a time.
const MAX_RUNNING: usize = 64;

/// Pieces of an answer that wait to be sent.
const PIECES: usize = 4;

/// Bytes of an answer in one message.
const PIECE: usize = 32 << 10;

/// Longest command with its payload: a configuration of a megabyte, and more than that.
const MAX_MESSAGE: usize = 4 << 20;

/// A command for another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The words.
    pub words: Vec<String>,
    /// The lines after `<<`.
    pub payload: Option<String>,
    /// What the asking session may do.
    pub level: Level,
    /// The asking node; of no interest to the caller of [`run`].
    pub from: String,
}

/// What a session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Look.
    User,
    /// And clear counters.
    Operator,
    /// And change.
    Admin,
}

impl Level {
    /// The level that a peer says. One that is not known allows the least.
    fn of(number: u32) -> Level {
        match number {
            1 => Level::Operator,
            2 => Level::Admin,
            _ => Level::User,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// As a syslog level; 0 = a plain dump.
    pub severity: u32,
    /// It was refused.
    pub refused: bool,
}

/// A future answer.
pub type Answer<'a> = Pin<Box<dyn Future<Output = (Done, String)> + Send + 'a>>;

/// What carries out the commands of other nodes.
pub trait Commands: Send + Sync {
    /// Carries out one. May be dropped before it is done, when nobody waits for the answer any more.
    fn run(&self, ask: Ask) -> Answer<'_>;
}

/// An answer that comes in pieces.
#[derive(Debug)]
pub struct Reply {
    /// How the command ended.
    pub done: Done,
    stream: Streaming<RunReply>,
}

/// Has a peer carry out a command; comes back when it has, before the text has arrived.
///
/// # Errors
/// Why there is no answer: within [`SILENCE`] when the peer cannot be reached.
pub async fn run(peer: &Peer, ask: Ask) -> Result<Reply, String> {
    let mut client = ControlClient::new(peer.line(Lane::Control)).max_encoding_message_size(MAX_MESSAGE);
    let request = RunRequest { words: ask.words, payload: ask.payload, level: ask.level as u32 };
    let mut stream = match timeout(SILENCE, client.run(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(problem_text(&status)),
        Err(_) => return Err(silent()),
    };
    loop {
        match timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(RunReply { kind: Some(Kind::Done(Finished { severity, refused })) }))) => {
                return Ok(Reply { done: Done { severity, refused }, stream });
            }
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err("ended without an answer".to_owned()),
            Ok(Err(status)) => return Err(problem_text(&status)),
            Err(_) => return Err(silent()),
        }
    }
}

fn silent() -> String {
    format!("does not answer within {} ms", SILENCE.as_millis())
}

impl Reply {
    /// The next bytes of the text; `None` at its end.
    ///
    /// # Errors
    /// Why the rest is missing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            match timeout(SILENCE, self.stream.message()).await {
                Ok(Ok(Some(RunReply { kind: Some(Kind::Text(text)) }))) => return Ok(Some(text)),
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(status)) => return Err(problem_text(&status)),
                Err(_) => return Err(silent()),
            }
        }
    }
}

/// The service of this node.
#[derive(Clone)]
pub(crate) struct Control(Arc<Shared>);

struct Shared {
    commands: OnceLock<Weak<dyn Commands>>,
    places: Arc<Semaphore>,
}

impl Default for Control {
    fn default() -> Control {
        Control(Arc::new(Shared { commands: OnceLock::new(), places: Arc::new(Semaphore::new(MAX_RUNNING)) }))
    }
}

impl Control {
    /// From now on commands are taken.
    pub(crate) fn take(&self, commands: &Arc<dyn Commands>) {
        let _ = self.0.commands.set(Arc::downgrade(commands));
    }

    pub(crate) fn service(&self) -> ControlServer<Control> {
        ControlServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

#[tonic::async_trait]
impl control_server::Control for Control {
    type RunStream = ReceiverStream<Result<RunReply, Status>>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let from = Caller::of(&request)?.node.to_string();
        let commands = self.0.commands.get().and_then(Weak::upgrade);
        let commands =
            commands.ok_or_else(|| Status::unavailable("starts or ends, and takes no commands"))?;
        let place = self.0.places.clone().try_acquire_owned();
        let place = place.map_err(|_| Status::resource_exhausted("too many commands of other nodes run"))?;
        let RunRequest { words, payload, level } = request.into_inner();
        let ask = Ask { words, payload, level: Level::of(level), from };
        let (pieces, stream) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            let _place = place;
            answer(commands, ask, &pieces).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Carries out a command and sends its answer; gives up when nobody listens.
async fn answer(commands: Arc<dyn Commands>, ask: Ask, pieces: &mpsc::Sender<Result<RunReply, Status>>) {
    let send = |kind: Kind| pieces.send(Ok(RunReply { kind: Some(kind) }));
    let mut alive = interval(ALIVE_EVERY);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running = commands.run(ask);
    let (Done { severity, refused }, text) = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            _ = alive.tick() => if send(Kind::Working(Working {})).await.is_err() { return },
        }
    };
    if send(Kind::Done(Finished { severity, refused })).await.is_err() {
        return;
    }
    let mut text = Bytes::from(text);
    while !text.is_empty() {
        let piece = text.split_to(text.len().min(PIECE));
        if send(Kind::Text(piece)).await.is_err() {
            return;
        }
    }
}

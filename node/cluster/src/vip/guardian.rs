//! The guardian: a small process that outlives the worker and takes its VIPs off the node.
//!
//! The worker starts it and tells it, over a socket pair, what it holds until when, and hands it
//! duplicates of its gated listeners. The guardian fences a VIP (removes the address, silences it in
//! the kernel, `shutdown(2)`s the listeners, which ends them in a stopped worker as well) when the
//! worker is dead (the socket ends) or has let the time pass. Then, and never before, it tells the
//! peers, if the worker is dead: its ballots are used up, and a peer may take over at once. Of a
//! worker that merely stands still it tells them nothing, for that one may come back within its
//! lease; the peers' own clocks settle it.
//!
//! It never holds anything itself, ignores the signals that stop a worker, and ends with it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_engine::lease::Timing;
use phalanx_engine::lease::watch::Watch;
use phalanx_sys::netlink::nft::Nft;
use phalanx_sys::{clock, net, process, unix};
use phalanx_wire::cluster as pb;
use phalanx_wire::cluster::lease_client::LeaseClient;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::{arp, exec, link};
use crate::identity::Stamp;
use crate::tls::{self, Tls};
use crate::{Node, Settings};

/// How to start the guardian: a program that calls [`main`].
#[derive(Clone, Debug)]
pub struct GuardianCommand {
    program: PathBuf,
    args: Vec<String>,
    ahead: Arc<Mutex<Ahead>>,
}

/// Guardians that wait for a worker.
#[derive(Debug, Default)]
struct Ahead {
    waiting: Vec<(Child, UnixStream)>,
    used: bool,
}

impl GuardianCommand {
    /// Usually `/proc/self/exe` and `guardian`.
    pub fn new(program: PathBuf, args: Vec<String>) -> GuardianCommand {
        GuardianCommand { program, args, ahead: Arc::default() }
    }

    /// Starts `count` guardians ahead, for a process that will no longer be able to (`chroot`). They
    /// end with the process, used or not.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_ahead(&self, count: usize) -> Result<(), String> {
        let waiting = (0..count).map(|_| self.spawn()).collect::<Result<_, _>>()?;
        *self.ahead.lock() = Ahead { waiting, used: true };
        Ok(())
    }

    fn launch(&self) -> Result<(Child, UnixStream), String> {
        let mut ahead = self.ahead.lock();
        match ahead.waiting.pop() {
            Some(waiting) => Ok(waiting),
            None if ahead.used => {
                Err("every guardian that was started before chroot has ended: restart the node".into())
            }
            None => self.spawn(),
        }
    }

    fn spawn(&self) -> Result<(Child, UnixStream), String> {
        let (mine, theirs) = unix::message_pair().map_err(|e| e.to_string())?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: {e}", self.program.display()))?;
        let stream = UnixStream::from(mine);
        // A guardian that does not read must not hold the worker up.
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        Ok((child, stream))
    }
}

/// Longest message between worker and guardian.
const MESSAGE: usize = 64 * 1024;

/// The shortest time that a socket waits.
const AT_ONCE: Duration = Duration::from_micros(1);

/// How long a guardian without worker goes on trying to take off what it could not.
const TRY_WITHIN: Duration = Duration::from_secs(5);

/// How long a peer gets to hear that VIPs are free.
const TELL_WITHIN: Duration = Duration::from_millis(500);

/// Worker to guardian.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// First of all: who we are, and whom to tell.
    Setup {
        cluster: String,
        node: String,
        incarnation: u64,
        nodes: Vec<(String, String, bool)>,
        tls: Option<tls::Files>,
    },
    /// The worker holds this; descriptors, if any come along, replace those before.
    Hold(Hold),
    /// The worker has let go by itself.
    LetGo { vip: String },
    /// The worker ends in good order.
    Farewell,
}

/// What the worker holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hold {
    pub(super) vip: String,
    pub(super) counter: u64,
    pub(super) incarnation: u64,
    /// Boot time at which it is to be gone.
    pub(super) until: Duration,
    pub(super) place: Place,
    /// It has moved away; only its connections go on here.
    pub(super) drains: bool,
}

/// Where a VIP is to be taken off.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Place {
    Arp {
        interface: String,
        addr: IpAddr,
        prefix: u8,
    },
    /// Through the descriptors.
    Listen,
    /// By the program; what it runs as at the moment, if it runs.
    Exec {
        hook: exec::Hook,
        epoch: u64,
        running: Option<u32>,
    },
}

/// The worker's side: starts the guardian, and again when it is gone.
pub(super) struct Guardian {
    command: GuardianCommand,
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<(Child, UnixStream)>,
    holds: BTreeMap<String, (Hold, Vec<OwnedFd>)>,
    started_before: bool,
    /// The certificates that the running one was told of.
    told_tls: u64,
    /// The members now; `None`: as configured.
    nodes: Option<Vec<Node>>,
    closed: bool,
}

impl Guardian {
    pub(super) fn new(command: GuardianCommand, settings: &Settings) -> Guardian {
        Guardian { command, settings: settings.clone(), state: Mutex::default() }
    }

    /// Makes sure that it runs.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        self.ensure(&mut state)
    }

    /// Tells it that a VIP is held, and for how long; comes back once it is told.
    pub(super) fn hold(&self, hold: Hold, fds: Option<Vec<OwnedFd>>) -> Result<(), String> {
        let mut state = self.state.lock();
        let fds_given = fds.is_some();
        let entry = state.holds.entry(hold.vip.clone()).or_insert_with(|| (hold.clone(), Vec::new()));
        entry.0 = hold.clone();
        if let Some(fds) = fds {
            entry.1 = fds;
        }
        let tls = self.settings.tls.as_ref().map_or(0, Tls::version);
        let fresh = state.running.is_none();
        if !fresh && state.told_tls != tls {
            state.told_tls = tls;
            if self.tell_all(&state).is_err() {
                self.end(&mut state);
            }
            return self.ensure(&mut state);
        }
        state.told_tls = tls;
        self.ensure(&mut state)?;
        if fresh {
            // Starting it has told it everything.
            return Ok(());
        }
        if self.tell(&state, &hold, fds_given).is_ok() {
            return Ok(());
        }
        self.end(&mut state);
        self.ensure(&mut state)
    }

    /// These are the nodes to tell when the worker dies.
    pub(super) fn follow(&self, nodes: &[Node]) {
        let mut state = self.state.lock();
        state.nodes = Some(nodes.to_vec());
        if state.running.is_some() && self.tell_all(&state).is_err() {
            self.end(&mut state);
        }
    }

    /// The VIP is gone from this node. Also ends the listeners in all their duplicates: ours would keep
    /// them taking connections.
    pub(super) fn let_go(&self, vip: &str) {
        let mut state = self.state.lock();
        if let Some((_, fds)) = state.holds.remove(vip) {
            fds.iter().for_each(shut);
        }
        let order = Order::LetGo { vip: vip.to_owned() };
        if let Some((_, stream)) = &state.running
            && send(stream, &order, &[]).is_err()
        {
            self.end(&mut state);
        }
    }

    /// The worker ends in good order; the last VIP to leave lets the guardian go.
    pub(super) fn farewell(&self, vip: &str) {
        self.let_go(vip);
        let mut state = self.state.lock();
        if !state.holds.is_empty() {
            return;
        }
        state.closed = true;
        if let Some((mut child, stream)) = state.running.take() {
            let _ = send(&stream, &Order::Farewell, &[]);
            drop(stream);
            let _ = child.wait();
        }
    }

    #[cfg(test)]
    pub(super) fn pid(&self) -> Option<u32> {
        self.state.lock().running.as_ref().map(|(child, _)| child.id())
    }

    fn ensure(&self, state: &mut State) -> Result<(), String> {
        if state.closed {
            return Ok(());
        }
        if let Some((child, _)) = &mut state.running {
            match child.try_wait() {
                Ok(None) => return Ok(()),
                Ok(Some(status)) => warn!("the guardian ended ({status}); starting another"),
                Err(error) => warn!("the guardian cannot be watched ({error}); starting another"),
            }
            self.end(state);
        }
        let (child, stream) = self.command.launch()?;
        if std::mem::replace(&mut state.started_before, true) {
            info!("another guardian runs, pid {}", child.id());
        }
        state.running = Some((child, stream));
        let told = self.tell_all(state);
        if told.is_err() {
            self.end(state);
        }
        told
    }

    fn tell_all(&self, state: &State) -> Result<(), String> {
        let Some((_, stream)) = &state.running else { return Ok(()) };
        let s = &self.settings;
        let nodes = state.nodes.as_ref().unwrap_or(&s.nodes).iter();
        let nodes = nodes.map(|n| (n.name.clone(), n.addr.clone(), n.witness)).collect();
        let setup = Order::Setup {
            cluster: s.name.clone(),
            node: s.node.clone(),
            incarnation: s.incarnation,
            nodes,
            tls: s.tls.as_ref().and_then(small_files),
        };
        send(stream, &setup, &[])?;
        for (hold, _) in state.holds.values() {
            self.tell(state, hold, true)?;
        }
        Ok(())
    }

    fn tell(&self, state: &State, hold: &Hold, with_fds: bool) -> Result<(), String> {
        let Some((_, stream)) = &state.running else { return Err("not running".into()) };
        let none = Vec::new();
        let fds = state.holds.get(&hold.vip).map_or(&none, |(_, fds)| fds);
        send(stream, &Order::Hold(hold.clone()), if with_fds { fds } else { &none })
    }

    /// Ends a guardian that does not do its work. It is dead before its socket ends, so that it cannot
    /// take that for the worker's death.
    fn end(&self, state: &mut State) {
        if let Some((mut child, stream)) = state.running.take() {
            let _ = child.kill();
            let _ = child.wait();
            drop(stream);
        }
    }
}

/// The certificates, unless they are too many for a message: then the guardian fences, but tells nobody,
/// and a takeover waits for the lease to end.
fn small_files(tls: &Tls) -> Option<tls::Files> {
    let files = tls.files();
    let small = files.crt.len() + files.ca.as_ref().map_or(0, Vec::len) <= MESSAGE / 2;
    if !small {
        warn!("'crt' and 'ca-file' are too long for the guardian: it will not tell peers of a dead worker");
    }
    small.then_some(files)
}

fn send(stream: &UnixStream, order: &Order, fds: &[OwnedFd]) -> Result<(), String> {
    let bytes = postcard::to_stdvec(order).map_err(|e| e.to_string())?;
    if bytes.len() > MESSAGE {
        return Err(format!("an order of {} bytes is too long", bytes.len()));
    }
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    unix::send_fds(stream, &bytes, &fds).map(drop).map_err(|e| e.to_string())
}

fn shut(fd: &OwnedFd) {
    if let Err(error) = net::shutdown(fd) {
        error!("a listener cannot be shut down: {error}");
    }
}

/// The guardian process: its orders come on standard input. Returns the exit code.
pub fn main() -> i32 {
    process::ignore_stop_signals();
    let stdin = std::io::stdin();
    let orders = match stdin.as_fd().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => {
            error!("guardian: standard input: {error}");
            return 1;
        }
    };
    if unix::peer(&orders).is_err() {
        error!("guardian: it is started by a node, not by hand");
        return 2;
    }
    Process { orders, settings: Settings::default(), watch: Watch::default(), died: false, passes: false }
        .run()
}

/// The guardian's side. What is to be done when, [`Watch`] decides.
struct Process {
    orders: UnixStream,
    settings: Settings,
    watch: Watch<Held>,
    died: bool,
    /// The worker may have passed packets on.
    passes: bool,
}

struct Held {
    hold: Hold,
    fds: Vec<OwnedFd>,
    /// When its program was run last to take it off.
    ran: Option<Duration>,
}

/// What came from the worker.
enum News {
    Order(Box<Order>, Vec<OwnedFd>),
    Nothing,
    Died,
}

impl Process {
    fn run(mut self) -> i32 {
        let mut buf = vec![0; MESSAGE];
        loop {
            // What has been said already comes before what the clock says: a guardian that stood still must
            // not take off what the worker has renewed meanwhile.
            let mut waits = false;
            let alive = loop {
                let pause = if waits { self.pause() } else { Some(AT_ONCE) };
                match self.read(&mut buf, pause) {
                    News::Order(order, _) if matches!(*order, Order::Farewell) => return 0,
                    News::Order(order, fds) => self.take(*order, fds),
                    News::Nothing if waits => break true,
                    News::Nothing => {
                        self.fence();
                        waits = true;
                    }
                    News::Died => break false,
                }
            };
            if !alive {
                self.worker_died();
                return 0;
            }
        }
    }

    fn read(&self, buf: &mut [u8], pause: Option<Duration>) -> News {
        use std::io::ErrorKind::{Interrupted, WouldBlock};
        if self.orders.set_read_timeout(pause).is_err() {
            return News::Died;
        }
        match unix::recv_fds(&self.orders, buf) {
            Ok((0, _)) => News::Died,
            Ok((n, fds)) => match postcard::from_bytes(&buf[..n]) {
                Ok(order) => News::Order(Box::new(order), fds),
                Err(error) => {
                    warn!("guardian: an order that cannot be read: {error}");
                    News::Nothing
                }
            },
            Err(e) if matches!(e.kind(), WouldBlock | Interrupted) => News::Nothing,
            Err(_) => News::Died,
        }
    }

    fn take(&mut self, order: Order, fds: Vec<OwnedFd>) {
        match order {
            Order::Setup { cluster, node, incarnation, nodes, tls } => {
                let nodes = nodes.into_iter().map(|(name, addr, witness)| Node { name, addr, witness });
                self.settings.nodes = nodes.collect();
                (self.settings.name, self.settings.node) = (cluster, node);
                self.settings.incarnation = incarnation;
                self.settings.tls = tls.and_then(|files| match Tls::new(files) {
                    Ok(tls) => Some(tls),
                    Err(why) => {
                        error!("guardian: peers cannot be told: {why}");
                        None
                    }
                });
            }
            Order::Hold(hold) => {
                self.passes |= matches!(hold.place, Place::Arp { .. });
                let (vip, until, drains) = (hold.vip.clone(), hold.until, hold.drains);
                let before = self.watch.place(&vip).map(|held| std::mem::take(&mut held.fds));
                let fds = if fds.is_empty() { before.unwrap_or_default() } else { fds };
                match drains {
                    true => self.watch.drain(&vip, until, Held { hold, fds, ran: None }),
                    false => self.watch.hold(&vip, until, Held { hold, fds, ran: None }),
                }
            }
            Order::LetGo { vip } => self.watch.let_go(&vip),
            Order::Farewell => {}
        }
    }

    /// Until there is something to do.
    fn pause(&self) -> Option<Duration> {
        let next = self.watch.deadline()?;
        Some(next.saturating_sub(clock::boottime()).max(Duration::from_millis(1)))
    }

    /// Takes off what is due: what the worker, which stands still, has not renewed in time.
    fn fence(&mut self) {
        // Last what a program takes off, which may need its time.
        let mut due = self.watch.due(clock::boottime());
        due.sort_by_key(|vip| {
            let place = self.watch.place(vip).map(|held| &held.hold.place);
            matches!(place, Some(Place::Exec { .. }))
        });
        for vip in due {
            let Some(held) = self.watch.place(&vip) else { continue };
            if !self.died && held.ran.is_none() {
                warn!("guardian: vip '{vip}' was not renewed in time: taking it off");
            }
            let off = fence(held);
            self.watch.taken_off(&vip, off, clock::boottime());
        }
    }

    /// Takes everything off, and tells the peers of what is off.
    fn worker_died(&mut self) {
        self.died = true;
        self.watch.worker_died();
        let tries = clock::boottime() + TRY_WITHIN;
        loop {
            self.fence();
            // Nobody looks after what was passed on to others; before, it would be answered with resets.
            if std::mem::take(&mut self.passes)
                && let Ok(mut nft) = Nft::open()
            {
                let _ = nft.remove_passes();
            }
            let off = self.watch.used_up();
            self.tell(off);
            if self.watch.is_done() || clock::boottime() >= tries {
                return;
            }
            std::thread::sleep(self.pause().unwrap_or(AT_ONCE));
        }
    }

    fn tell(&self, off: Vec<(String, Held)>) {
        if off.is_empty() {
            return;
        }
        let names: Vec<&str> = off.iter().map(|(vip, _)| vip.as_str()).collect();
        warn!("guardian: the worker of node '{}' died; took off: {}", self.settings.node, names.join(", "));
        let vips = off.iter().map(|(vip, held)| {
            let ballot = pb::Ballot {
                counter: held.hold.counter,
                node: self.settings.node.clone(),
                incarnation: held.hold.incarnation,
            };
            pb::VipBallot { vip: vip.clone(), ballot: Some(ballot) }
        });
        let request = pb::ReleasedRequest {
            cluster: self.settings.name.clone(),
            node: self.settings.node.clone(),
            vips: vips.collect(),
            reason: "its worker died".into(),
        };
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(tell_peers(&self.settings, request)),
            Err(error) => error!("guardian: peers not told: {error}"),
        }
    }
}

/// Between two runs of a program that fails to take a VIP off.
const PROGRAM_AGAIN: Duration = Duration::from_secs(1);

/// Takes a VIP off the node; tells whether it is off.
fn fence(held: &mut Held) -> bool {
    match &held.hold.place {
        Place::Listen => {
            held.fds.iter().for_each(shut);
            held.fds.clear();
            true
        }
        Place::Exec { hook, epoch, running } => {
            if *epoch == 0 {
                // It was not run yet.
                return true;
            }
            // A program that fails at once must not be run again and again.
            if held.ran.is_some_and(|ran| clock::boottime() < ran + PROGRAM_AGAIN) {
                return false;
            }
            held.ran = Some(clock::boottime());
            // Never two of one VIP: one that the worker started would take it for this node.
            if let Some(group) = running {
                exec::kill_group(*group);
            }
            let reason = "the worker is dead or stands still";
            let done = hook.start("release", *epoch, reason).and_then(exec::Run::finish);
            if let Err(why) = &done {
                error!("guardian: vip '{}': {why}", held.hold.vip);
            }
            done.is_ok()
        }
        Place::Arp { interface, addr, prefix } => {
            // Where there is no nftables there is nothing to silence.
            if let Ok(mut nft) = Nft::open() {
                let _ = nft.drop_hold(*addr);
                if held.hold.drains {
                    let _ = nft.end_drain(*addr);
                }
            }
            match arp::take_off(interface, *addr, *prefix) {
                Ok(()) => true,
                Err(why) => {
                    error!("guardian: vip '{}': {why}", held.hold.vip);
                    false
                }
            }
        }
    }
}

async fn tell_peers(settings: &Settings, request: pb::ReleasedRequest) {
    let mut calls = tokio::task::JoinSet::new();
    for node in settings.nodes.iter().filter(|n| n.name != settings.node) {
        let (settings, request, name) = (settings.clone(), request.clone(), node.name.clone());
        calls.spawn(async move {
            let told = tokio::time::timeout(TELL_WITHIN, async {
                let stamp = Stamp::new(&settings, &name)?;
                let endpoint = link::endpoint(&settings, &name, Timing::default())?;
                let channel = tls::connect(&settings, &name, &endpoint).await.map_err(|e| e.to_string())?;
                let mut client = LeaseClient::with_interceptor(channel, stamp);
                client.released(request).await.map_err(|e| e.message().to_owned())
            });
            match told.await {
                Ok(Ok(_)) => {}
                Ok(Err(why)) => warn!("guardian: node '{name}' not told: {why}"),
                Err(_) => warn!("guardian: node '{name}' not told within {TELL_WITHIN:?}"),
            }
        });
    }
    calls.join_all().await;
}

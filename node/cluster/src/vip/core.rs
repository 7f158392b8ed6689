//! The lease machines of all VIPs behind one lock, and the thread that lets time pass for them.
//!
//! Everything under the lock is computation and queueing; nothing there blocks.

mod fitness;
pub(super) mod moves;
mod status;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};
use phalanx_engine::lease::hands::Job;
use phalanx_engine::lease::{
    Ballot, Epoch, Free, Group, Lease, Message, NodeId, Output, Reason, Timing, View, Voter,
};
use phalanx_engine::membership::Adopted;
use phalanx_engine::registry::Members;
use phalanx_engine::time::Now;
use phalanx_sys::clock;
use phalanx_sys::netlink::news::{Feed, News};
use phalanx_wire::cluster as pb;
use phalanx_wire::cluster::lease_message::Kind;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::drain::{Kept, Others, Paths, Reach};
use super::guardian::Guardian;
use super::hands::{Driver, Hands, Task};
use super::wire::Names;
use super::{Announce, Announcer, Move, NodeFitness, Notice, Options, VipSettings, arp, exec, health};
use crate::{Node, Settings};

/// Moves remembered per VIP, and things noticed.
const MOVES: usize = 16;

/// A step of the wall clock that is worth a word; slewing stays below.
const STEP: Duration = Duration::from_millis(500);

pub(super) struct Shared {
    /// Of this node, with the members as its nodes.
    settings: ArcSwap<Settings>,
    names: ArcSwap<Names>,
    /// Tells of changes of the members.
    pub(super) changed: watch::Sender<()>,
    guardian: Option<Arc<Guardian>>,
    pub(super) timing: Timing,
    core: Mutex<Core>,
    wake: Condvar,
    pub(super) stopping: AtomicBool,
}

pub(super) struct Core {
    vips: Vec<One>,
    /// Per node: streams on which it can be told something, the best last.
    links: BTreeMap<NodeId, Vec<Link>>,
    next_link: u64,
    behind: Vec<String>,
    /// Why leases have not begun.
    waiting: Option<String>,
    maintenance: bool,
    /// It leaves the cluster.
    leaving: bool,
    /// The process is about to stop: it takes nothing, and keeps what it holds until that is moved.
    departing: bool,
    /// How long connections may go on here after a move.
    drain: Duration,
    /// `vip-lease` of the nodes that are connected.
    terms: BTreeMap<NodeId, Duration>,
}

struct One {
    settings: VipSettings,
    lease: Lease,
    hands: Arc<Hands>,
    /// What the driver says is missing here.
    missing: Vec<String>,
    /// What the others said about themselves.
    fitness: BTreeMap<NodeId, NodeFitness>,
    /// Connections of an earlier tenure that go on here.
    drains: Option<Kept>,
    /// And elsewhere.
    others: Others,
    /// This node answers for it, in the tenure of this epoch.
    announced: Option<Epoch>,
    /// How this node is reached on the VIP's interface.
    reach: Option<Reach>,
    moves: VecDeque<Move>,
    seen: View,
    /// What was done to the address by others, and what this node did about it.
    notices: VecDeque<Notice>,
    /// Why this node let go last.
    reason: Option<String>,
    /// It is held without a majority, and that was said.
    kept: bool,
    /// It is to be moved away, when the hands are ready for that.
    preparing: bool,
    /// As this node is not to hold it any more; then at the latest.
    parting: Option<Duration>,
}

struct Link {
    id: u64,
    outbound: bool,
    queue: mpsc::Sender<pb::LeaseMessage>,
}

/// The time of leases: boot time, which the guardian sees too.
pub(super) fn now() -> Now {
    Now { mono: clock::boottime(), unix_us: clock::unix_us() }
}

impl Shared {
    pub(super) fn start(
        settings: &Settings,
        vips: Vec<VipSettings>,
        options: Options,
        announcer: Arc<dyn Announcer>,
    ) -> Result<Arc<Shared>, String> {
        let this = settings.this();
        let this = this.ok_or_else(|| format!("cluster '{}': no node '{}'", settings.name, settings.node))?;
        let witness = this.witness;
        let guardian = options
            .guardian
            .clone()
            .filter(|_| !vips.is_empty() && !witness)
            .map(|command| Arc::new(Guardian::new(command, settings)));
        let kernel = arp::Kernel::new(&vips, witness);
        let mut drivers: Vec<Box<dyn Driver>> = Vec::new();
        let mut ones = Vec::new();
        for (i, vip) in vips.into_iter().enumerate() {
            drivers.push(match &vip.announce {
                Announce::Arp { interface } => {
                    Box::new(arp::Arp::new(vip.addr, vip.prefix, interface.clone(), kernel.clone()))
                }
                Announce::Listen => Box::new(super::hands::Listen::new(vip.clone(), announcer.clone())),
                Announce::HealthPort(port) => Box::new(health::Health::new(vip.addr, *port)),
                Announce::Exec { path, limit } => {
                    let hook = exec::Hook {
                        path: path.clone(),
                        limit: *limit,
                        vip: vip.name.clone(),
                        address: format!("{}/{}", vip.addr, vip.prefix),
                        cluster: settings.name.clone(),
                        node: settings.node.clone(),
                    };
                    Box::new(exec::Exec::new(hook))
                }
            });
            // Nobody has a vote before the members are known.
            let group = Group {
                me: NodeId(0),
                incarnation: settings.incarnation,
                config: 0,
                voters: Vec::new(),
                prefer: None,
            };
            let mut lease = Lease::new(group, options.timing, options.seed.wrapping_add(i as u64), now());
            lease.set_on_quorum_loss(vip.on_quorum_loss);
            ones.push(One {
                lease,
                kept: false,
                preparing: false,
                parting: None,
                notices: VecDeque::new(),
                settings: vip,
                hands: Arc::new(Hands::default()),
                missing: vec!["starting".into()],
                fitness: BTreeMap::new(),
                drains: None,
                others: Others::default(),
                announced: None,
                reach: None,
                moves: VecDeque::new(),
                seen: View::default(),
                reason: None,
            });
        }
        let hands: Vec<Arc<Hands>> = ones.iter().map(|one| one.hands.clone()).collect();
        let core = Core {
            vips: ones,
            links: BTreeMap::new(),
            next_link: 0,
            behind: Vec::new(),
            waiting: None,
            maintenance: false,
            leaving: false,
            departing: false,
            drain: super::DEFAULT_DRAIN,
            terms: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings.clone()),
            names: ArcSwap::default(),
            changed: watch::Sender::new(()),
            guardian: guardian.clone(),
            timing: options.timing,
            core: Mutex::new(core),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
        });
        for (i, (hands, driver)) in hands.into_iter().zip(drivers).enumerate() {
            super::hands::start(shared.clone(), i, hands, driver, (guardian.clone(), announcer.clone()))?;
        }
        if shared.core.lock().vips.iter().any(|one| matches!(one.settings.announce, Announce::Arp { .. })) {
            let heeds = shared.clone();
            thread("vip-links", move || heeds.heed_news())?;
        }
        let clock = shared.clone();
        thread("vip-clock", move || clock.keep_time())?;
        Ok(shared)
    }

    /// Heeds what the kernel tells of links and addresses; what it does not tell is seen a little later.
    fn heed_news(&self) {
        let mut feed = match Feed::open() {
            Ok(feed) => feed,
            Err(error) => return warn!("floating IPs: links are only looked at now and then: {error}"),
        };
        while !self.stopping.load(Ordering::Acquire) {
            if let Err(error) = feed.wait(|news| self.heed(&news)) {
                return warn!("floating IPs: links are only looked at now and then: {error}");
            }
        }
    }

    fn heed(&self, news: &News) {
        for one in &self.core.lock().vips {
            let Announce::Arp { interface } = &one.settings.announce else { continue };
            let concerns = match news {
                News::Link(name) => name == interface,
                // Whoever has it renews it all the time.
                News::Added(addr) => {
                    *addr == one.settings.addr && one.announced.is_none() && one.drains.is_none()
                }
                News::Removed(addr) => *addr == one.settings.addr,
                News::Lost => true,
            };
            if concerns {
                one.hands.push(Task::Look);
            }
        }
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    pub(super) fn names(&self) -> Arc<Names> {
        self.names.load_full()
    }

    /// These are the members from now on: leases are counted over those that vote.
    pub(super) fn follow(&self, members: &Members) {
        let mut core = self.core.lock();
        let mut settings = Settings::clone(&self.settings.load());
        settings.nodes = members
            .iter()
            .map(|(name, m)| Node { name: name.to_owned(), addr: m.addr.clone(), witness: m.witness })
            .collect();
        let all = members.iter().map(|(name, m)| (name, m.id()));
        let names = Names::of(all, &settings.node, &self.names.load());
        let mut voters: Vec<Voter> =
            members.voters().map(|(_, m)| Voter { id: m.id(), witness: m.witness }).collect();
        voters.sort_by_key(|v| v.id);
        // A number that nobody has stands for a node that is no member.
        let me = names.me().unwrap_or(NodeId(u8::MAX));
        let known = names.ids();
        let incarnation = settings.incarnation;
        let names = Arc::new(names);
        self.names.store(names.clone());
        self.settings.store(Arc::new(settings));
        let now = now();
        for i in 0..core.vips.len() {
            let one = &mut core.vips[i];
            one.fitness.retain(|id, _| known.contains(id));
            one.others.retain(&known);
            let prefer = one.settings.prefer.as_deref().and_then(|name| names.id(name));
            let voters = voters.clone();
            one.lease.reconfigure(Group { me, incarnation, config: members.config(), voters, prefer }, now);
            self.carry_out(&mut core, i, now);
            self.refit(&mut core, i);
        }
        drop(core);
        if let Some(guardian) = &self.guardian {
            guardian.follow(&self.settings().nodes);
        }
        self.changed.send_replace(());
    }

    /// The oldest configuration in which all leases of this node vote, and since when.
    pub(super) fn adopted(&self) -> Adopted {
        let core = self.core.lock();
        let now = now();
        let adopted = core.vips.iter().map(|one| {
            let (config, since) = one.lease.floor();
            Adopted { config, age: now.mono.saturating_sub(since) }
        });
        adopted.min_by_key(|a| (a.config, a.age)).unwrap_or_default()
    }

    /// How many VIPs this node holds, or is taking off.
    pub(super) fn held(&self) -> usize {
        let holds = |one: &&One| one.lease.held_until().is_some() || one.lease.is_withdrawing();
        self.core.lock().vips.iter().filter(holds).count()
    }

    /// How many VIPs have moved away from here and have connections that go on.
    pub(super) fn drained_from(&self) -> usize {
        self.core.lock().vips.iter().filter(|one| one.drains.is_some()).count()
    }

    /// Lets time pass for the machines, at their deadlines.
    fn keep_time(&self) {
        let mut core = self.core.lock();
        let mut fitness_due = Duration::ZERO;
        let mut clocks = now();
        loop {
            let now = now();
            if let Some(step) = stepped(clocks, now) {
                let text = format!("the wall clock was set {step}: nothing to do, leases go by another");
                warn!("leases: {text}");
                core.vips.iter_mut().for_each(|one| note(one, now, text.clone()));
            }
            clocks = now;
            for i in 0..core.vips.len() {
                core.vips[i].lease.tick(now);
                self.carry_out(&mut core, i, now);
                self.part_at_last(&mut core, i, now);
            }
            if now.mono >= fitness_due {
                self.tell_fitness(&mut core);
                fitness_due = now.mono + Duration::from_secs(1).min(self.timing.lease);
            }
            if self.stopping.load(Ordering::Acquire)
                && core.vips.iter().all(|one| one.lease.held_until().is_none())
            {
                return;
            }
            let next = core.vips.iter().map(|one| one.lease.deadline(now)).min().unwrap_or(fitness_due);
            // Never idle for long: what a machine is told in between may make an earlier deadline.
            let pause = next.min(fitness_due).saturating_sub(now.mono);
            self.wake.wait_for(&mut core, pause.clamp(Duration::from_micros(200), self.timing.renew));
        }
    }

    /// Carries out what the machine of VIP `i` wants, and notices a change of holder.
    fn carry_out(&self, core: &mut Core, i: usize, now: Now) {
        let Core { vips, links, .. } = core;
        let one = &mut vips[i];
        let names = self.names.load();
        while let Some(output) = one.lease.poll_output() {
            match output {
                Output::Send { to, message } => {
                    let message = names.message_out(&one.settings.name, message);
                    if let Some(links) = links.get_mut(&to) {
                        send(links, pb::LeaseMessage { kind: Some(Kind::Vip(message)) });
                    }
                }
                Output::Acquired { ballot, until } => {
                    one.hands.push(Task::Do(Job::Acquire { ballot, until }))
                }
                Output::Renewed { ballot, until } => one.hands.push(Task::Do(Job::Renew { ballot, until })),
                Output::Withdraw { ballot, reason } => {
                    let text = self.reason_text(&reason);
                    warn!(
                        "vip '{}' {}: letting go, epoch {}: {text}",
                        one.settings.name,
                        one.settings.addr,
                        ballot.epoch()
                    );
                    one.reason = Some(text);
                    // By plan, and nothing here is out of order: its connections go on.
                    let keep = match reason {
                        Reason::Moved { .. } => true,
                        Reason::Unfit(_) => one.missing.is_empty(),
                        _ => false,
                    };
                    one.hands.push(Task::Do(Job::Withdraw { ballot, keep }));
                }
            }
        }
        let one = &mut vips[i];
        let kept = one.lease.keeps();
        if kept && !one.kept {
            warn!(
                "vip '{}' {}: no majority renews the lease: kept all the same, epoch {}, by 'on-quorum-loss hold'; \
                 another node may hold it as well",
                one.settings.name,
                one.settings.addr,
                one.lease.view(now).epoch.unwrap_or_default()
            );
        }
        one.kept = kept;
        self.notice(one, now);
    }

    fn notice(&self, one: &mut One, now: Now) {
        let view = one.lease.view(now);
        let before = std::mem::replace(&mut one.seen, view);
        if view.holder == before.holder && view.epoch == before.epoch {
            return;
        }
        let names = self.names.load();
        let name = |id: Option<NodeId>| id.map(|id| names.name(id).to_owned());
        let reason = match (one.reason.take(), one.lease.free()) {
            (Some(own), _) => own,
            (None, Free::Expired(node)) => format!("the lease of {} ran out", names.name(node)),
            (None, Free::Released { by, to: Some(to) }) => {
                format!("{} moved it to {}", names.name(by), names.name(to))
            }
            (None, Free::Released { by, to: None }) => format!("{} let it go", names.name(by)),
            (None, Free::Initially) => "nobody held it".to_owned(),
        };
        let epoch = view.epoch.or(before.epoch).unwrap_or_default();
        one.hands.push(Task::PassOn);
        info!(
            "vip '{}' {}: holder {} (was {}), epoch {epoch}: {reason}",
            one.settings.name,
            one.settings.addr,
            name(view.holder).as_deref().unwrap_or("none"),
            name(before.holder).as_deref().unwrap_or("none"),
        );
        if one.moves.len() == MOVES {
            one.moves.pop_front();
        }
        one.moves.push_back(Move {
            unix_us: now.unix_us,
            from: name(before.holder),
            to: name(view.holder),
            epoch: epoch.0,
            reason,
        });
    }

    fn reason_text(&self, reason: &Reason) -> String {
        match reason {
            Reason::Lapsed => "no majority renewed the lease".into(),
            Reason::Moved { to: Some(to) } => format!("planned move to {}", self.names.load().name(*to)),
            Reason::Moved { to: None } => "planned move".into(),
            Reason::Unfit(reasons) => format!("not eligible: {}", reasons.join(", ")),
            Reason::AnnounceFailed(why) => format!("cannot be announced: {why}"),
            Reason::Superseded(by) => {
                format!("kept without a majority, until {} was seen to hold it", self.names.load().name(*by))
            }
            Reason::Stopping => "the node stops".into(),
        }
    }

    /// Lets the machine of VIP `i` decide about something.
    fn decide<T>(&self, i: usize, input: impl FnOnce(&mut Lease, Now) -> T) -> T {
        let mut core = self.core.lock();
        let now = now();
        let result = input(&mut core.vips[i].lease, now);
        self.carry_out(&mut core, i, now);
        self.wake.notify_all();
        result
    }

    /// Remembers what was noticed about VIP `i`.
    pub(super) fn note(&self, i: usize, text: String) {
        note(&mut self.core.lock().vips[i], now(), text);
    }

    pub(super) fn withdrawn(&self, i: usize) {
        self.decide(i, |lease, now| lease.withdrawn(now));
    }

    pub(super) fn announce_failed(&self, i: usize, why: String) {
        self.decide(i, |lease, now| lease.announce_failed(why, now));
    }

    /// What the machine of VIP `i` holds at this moment, until when.
    pub(super) fn held_until(&self, i: usize) -> Option<(Ballot, Duration)> {
        self.core.lock().vips[i].lease.held_until()
    }

    /// Connections of an earlier tenure of this node go on, or have ended.
    pub(super) fn set_kept(&self, i: usize, kept: Option<Kept>) {
        let mut core = self.core.lock();
        let before = std::mem::replace(&mut core.vips[i].drains, kept);
        // How many there are, the next sign of life tells.
        if before.map(|k| k.epoch) != kept.map(|k| k.epoch) {
            self.tell_fitness(&mut core);
        }
    }

    /// This node answers for the VIP from now on, or no more.
    pub(super) fn set_announced(&self, i: usize, epoch: Option<Epoch>) {
        let mut core = self.core.lock();
        let one = &mut core.vips[i];
        // A former holder waits for the one, nobody for the other.
        let before = std::mem::replace(&mut one.announced, epoch);
        if epoch.is_some() {
            let kept = one.drains.take();
            if before != epoch || kept.is_some() {
                self.tell_fitness(&mut core);
            }
        }
    }

    /// The node that answers for the VIP after the tenure `epoch`.
    pub(super) fn successor(&self, i: usize, epoch: Epoch) -> Option<Reach> {
        self.core.lock().vips[i].others.successor(epoch)
    }

    /// How this node is reached on the VIP's interface.
    pub(super) fn set_reach(&self, i: usize, reach: Option<Reach>) {
        self.core.lock().vips[i].reach = reach;
    }

    /// Where packets go that are not of a connection of this node, which has (or `drains`: had) `epoch`.
    pub(super) fn paths(&self, i: usize, epoch: Epoch, drains: bool) -> Paths {
        let one = &self.core.lock().vips[i];
        one.others.paths(epoch, drains, one.settings.addr, clock::boottime())
    }

    pub(super) fn set_drain(&self, limit: Duration) {
        self.core.lock().drain = limit;
    }

    /// How long connections may go on here after a move.
    pub(super) fn drain(&self) -> Duration {
        self.core.lock().drain
    }

    /// Registers a stream to a peer; the answer is its number and what to say first.
    pub(super) fn link_up(&self, node: NodeId, outbound: bool, queue: mpsc::Sender<pb::LeaseMessage>) -> u64 {
        let mut core = self.core.lock();
        core.next_link += 1;
        let id = core.next_link;
        let settings = self.settings.load();
        let hello = pb::Hello {
            cluster: settings.name.clone(),
            node: settings.node.clone(),
            incarnation: settings.incarnation,
            nodes: self.names.load().all(),
            lease_us: self.timing.lease.as_micros() as u64,
        };
        let _ = queue.try_send(pb::LeaseMessage { kind: Some(Kind::Hello(hello)) });
        let _ = queue.try_send(status::fitness(&core));
        let links = core.links.entry(node).or_default();
        links.push(Link { id, outbound, queue });
        // Ours last: it is the one that sends small messages at once.
        links.sort_by_key(|link| (link.outbound, link.id));
        id
    }

    pub(super) fn link_down(&self, node: NodeId, id: u64) {
        let mut core = self.core.lock();
        let Some(links) = core.links.get_mut(&node) else { return };
        links.retain(|link| link.id != id);
        if links.is_empty() {
            core.links.remove(&node);
            core.terms.remove(&node);
            for one in &mut core.vips {
                one.fitness.remove(&node);
            }
        }
    }

    /// Takes in what a peer sent.
    pub(super) fn receive(&self, from: NodeId, message: pb::LeaseMessage) {
        let names = self.names();
        match message.kind {
            Some(Kind::Vip(message)) => {
                let Some(i) = self.index(&message.vip) else { return };
                if let Some(message) = names.message_in(message) {
                    self.decide(i, |lease, now| lease.handle(from, message, now));
                }
            }
            Some(Kind::Fitness(fitness)) => {
                let mut core = self.core.lock();
                for vip in fitness.vips {
                    let Some(one) = core.vips.iter_mut().find(|one| one.settings.name == vip.vip) else {
                        continue;
                    };
                    let fitness = NodeFitness {
                        node: names.name(from).to_owned(),
                        eligible: vip.eligible,
                        reasons: vip.reasons.into_iter().take(8).collect(),
                    };
                    let kept = vip.kept;
                    let kept = kept.map(|k| Kept { epoch: Epoch(k.epoch), connections: k.connections });
                    let mac = <[u8; 6]>::try_from(&vip.mac[..]).ok();
                    let reach = vip.via.parse().ok().zip(mac).map(|(via, mac)| Reach { via, mac });
                    one.others.reached(from, reach);
                    let ready = vip.announced != 0 && one.others.announced(from, Epoch(vip.announced));
                    if one.others.heard(from, kept, clock::boottime()) || ready {
                        one.hands.push(Task::PassOn);
                    }
                    one.fitness.insert(from, fitness);
                }
            }
            // Whose votes count together, each message says for itself.
            Some(Kind::Hello(hello)) => self.heed_term(from, hello.lease_us),
            None => {}
        }
    }

    /// The guardian of a dead worker took its VIPs off that node.
    pub(super) fn released(&self, from: NodeId, request: pb::ReleasedRequest) {
        let names = self.names();
        let reason: String = request.reason.chars().filter(|c| !c.is_control()).take(80).collect();
        for vip in request.vips {
            let (Some(i), Some(ballot)) = (self.index(&vip.vip), names.ballot_in(vip.ballot)) else {
                continue;
            };
            if ballot.node == from {
                info!("vip '{}': the guardian of {} took it off: {reason}", vip.vip, names.name(from));
                let mut core = self.core.lock();
                if core.vips[i].seen.epoch == Some(ballot.epoch()) {
                    core.vips[i].reason = Some(format!("{}: {reason}", names.name(from)));
                }
                let now = now();
                core.vips[i].lease.handle(from, Message::Release { ballot, to: None }, now);
                self.carry_out(&mut core, i, now);
                self.wake.notify_all();
            }
        }
    }

    pub(super) fn index(&self, vip: &str) -> Option<usize> {
        self.core.lock().vips.iter().position(|one| one.settings.name == vip)
    }

    /// Why this node let go last.
    pub(super) fn reason_of(&self, i: usize) -> String {
        self.core.lock().vips[i].reason.clone().unwrap_or_default()
    }

    pub(super) fn settings_of(&self, i: usize) -> VipSettings {
        self.core.lock().vips[i].settings.clone()
    }
}

fn note(one: &mut One, now: Now, text: String) {
    if one.notices.len() == MOVES {
        one.notices.pop_front();
    }
    one.notices.push_back(Notice { unix_us: now.unix_us, text });
}

/// By how much the wall clock was set between two looks at the clocks.
fn stepped(before: Now, after: Now) -> Option<String> {
    let went = after.mono.saturating_sub(before.mono);
    let shown = Duration::from_micros(after.unix_us.abs_diff(before.unix_us));
    let (step, way) = match after.unix_us >= before.unix_us {
        true if shown >= went => (shown - went, "forward"),
        true => (went - shown, "back"),
        false => (shown + went, "back"),
    };
    (step > STEP).then(|| format!("{way} by {:.1} s", step.as_secs_f64()))
}

/// By the best stream that has room; else it is lost, as the protocol allows.
fn send(links: &mut Vec<Link>, message: pb::LeaseMessage) {
    links.retain(|link| !link.queue.is_closed());
    for link in links.iter().rev() {
        if link.queue.try_send(message.clone()).is_ok() {
            return;
        }
    }
}

pub(super) fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|e| format!("thread '{name}': {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_wall_clock_is_noticed_and_its_running_is_not() {
        let at = |mono_ms: u64, unix_ms: u64| Now {
            mono: Duration::from_millis(mono_ms),
            unix_us: unix_ms * 1000,
        };
        let before = at(1_000, 50_000);
        for (after, said) in [
            (at(1_100, 50_100), None),
            (at(9_000, 58_400), None),
            (at(1_100, 50_600), None),
            (at(1_100, 53_100), Some("forward by 3.0 s")),
            (at(1_100, 47_100), Some("back by 3.0 s")),
            (at(4_100, 50_100), Some("back by 3.0 s")),
        ] {
            assert_eq!(stepped(before, after).as_deref(), said, "{after:?}");
        }
    }
}

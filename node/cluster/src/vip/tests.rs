use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phalanx_engine::lease::Timing;
use phalanx_engine::registry::{Command, MemberCommand, NewMember, Registry};
use phalanx_sys::clock::boottime;
use phalanx_sys::net::Listen;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::service::Routes;

use super::guardian::{Guardian, Hold, Place};
use super::*;
use crate::identity::Guard;
use crate::{Node, server};

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Who listens, as the nodes' announcers see it.
#[derive(Default)]
struct World {
    holder: BTreeMap<String, String>,
    tenures: Vec<(String, String, u64)>,
    /// A panic in the announcer's thread would fail no test.
    overlaps: Vec<String>,
}

/// Announces by writing down who holds, and that nobody else does.
struct Scribe {
    node: String,
    world: Arc<Mutex<World>>,
    fail: bool,
}

impl Announcer for Scribe {
    fn acquire(&self, vip: &VipSettings, epoch: u64) -> Result<Vec<OwnedFd>, String> {
        if self.fail {
            return Err("no such luck".into());
        }
        let mut world = self.world.lock();
        let before = world.holder.insert(vip.name.clone(), self.node.clone());
        if let Some(before) = before {
            world.overlaps.push(format!("{}: {before} and {}", vip.name, self.node));
        }
        world.tenures.push((vip.name.clone(), self.node.clone(), epoch));
        Ok(Vec::new())
    }

    fn release(&self, vip: &VipSettings) -> Result<(), String> {
        let mut world = self.world.lock();
        if world.holder.get(&vip.name) == Some(&self.node) {
            world.holder.remove(&vip.name);
        }
        Ok(())
    }
}

/// Three nodes in this process, over real streams.
struct Group {
    runtime: Runtime,
    nodes: Vec<Option<(Vips, watch::Sender<bool>)>>,
    world: Arc<Mutex<World>>,
}

fn free_ports(n: usize) -> Vec<SocketAddr> {
    let held: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|l| l.local_addr().unwrap()).collect()
}

impl Group {
    fn new(vips: &[(&str, Option<&str>)], fail: &[&str], witness: Option<&str>) -> Group {
        Group::with(vips, fail, witness, [Timing::default(); 3])
    }

    fn with(
        vips: &[(&str, Option<&str>)],
        fail: &[&str],
        witness: Option<&str>,
        timings: [Timing; 3],
    ) -> Group {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let world = Arc::new(Mutex::new(World::default()));
        let names = ["n1", "n2", "n3"];
        let nodes: Vec<Node> = names
            .iter()
            .zip(free_ports(3))
            .map(|(name, addr)| Node {
                name: (*name).into(),
                addr: addr.to_string(),
                witness: witness == Some(*name),
            })
            .collect();
        let vips: Vec<VipSettings> = vips
            .iter()
            .map(|(name, prefer)| VipSettings {
                name: (*name).into(),
                addr: [127, 0, 0, 99].into(),
                prefix: 32,
                announce: Announce::Listen,
                prefer: prefer.map(str::to_owned),
                on_quorum_loss: QuorumLoss::Release,
            })
            .collect();
        let new = |n: &Node| NewMember { name: n.name.clone(), addr: n.addr.clone(), witness: n.witness };
        let mut registry = Registry::new();
        let found = MemberCommand::Found { id: 1, nodes: nodes.iter().map(new).collect() };
        registry.apply(&Command::Member(found));
        let members = registry.members().clone();
        let start = |(i, node): (usize, &Node)| {
            let settings = Settings {
                name: "test".into(),
                node: node.name.clone(),
                nodes: nodes.clone(),
                incarnation: i as u64 + 10,
                ..Settings::default()
            };
            let options = Options { timing: timings[i], guardian: None, seed: i as u64 };
            let scribe = Scribe {
                node: node.name.clone(),
                world: world.clone(),
                fail: fail.contains(&node.name.as_str()),
            };
            let started = Vips::start(&settings, vips.clone(), options, Arc::new(scribe)).unwrap();
            let (stop, stopped) = watch::channel(false);
            let routes = started.add_to(Routes::default());
            started.follow(&members);
            let guard = Guard::new(&settings);
            runtime.spawn(server::serve(Arc::new(settings), node.addr.clone(), guard, routes, None, stopped));
            Some((started, stop))
        };
        let started = nodes.iter().enumerate().map(start).collect();
        Group { nodes: started, runtime, world }
    }

    fn vips(&self, node: usize) -> &Vips {
        &self.nodes[node].as_ref().expect("it runs").0
    }

    fn holder(&self, vip: &str) -> Option<String> {
        self.world.lock().holder.get(vip).cloned()
    }

    fn stop(&mut self, node: usize) {
        let (vips, stop) = self.nodes[node].take().unwrap();
        vips.stop(Duration::from_secs(5));
        let _ = stop.send(true);
    }

    fn settled(&self, vip: &str, holder: &str) -> bool {
        let mut running = self.nodes.iter().flatten();
        self.holder(vip).as_deref() == Some(holder)
            && running.all(|(vips, _)| {
                vips.status().iter().any(|s| s.name == vip && s.holder.as_deref() == Some(holder))
            })
    }
}

#[test]
fn vips_are_spread_moved_and_taken_over() {
    let mut group = Group::new(&[("web", Some("n2")), ("api", Some("n3"))], &[], None);
    until("the preferred nodes to hold", || group.settled("web", "n2") && group.settled("api", "n3"));
    until("all to be eligible", || group.vips(0).status()[0].nodes.iter().all(|n| n.eligible));

    // A planned move, asked for on a node that has nothing to do with it.
    let start = Instant::now();
    let (holder, epoch) = group.runtime.block_on(group.vips(0).failover("web", Some("n3"))).unwrap();
    println!("planned move: {:?}", start.elapsed());
    assert_eq!(holder, "n3");
    until("all to see the move", || group.settled("web", "n3"));
    let last = group.vips(0).status()[0].moves.last().unwrap().clone();
    assert_eq!((last.to.as_deref(), last.epoch), (Some("n3"), epoch.0));

    // What cannot be done is said, wherever it is asked.
    for (node, vip, to, text) in [
        (0, "nope", None, "no vip 'nope', expects one of: web, api"),
        (0, "web", Some("n9"), "no node 'n9', expects one of: n1, n2, n3"),
        (2, "web", Some("n3"), "vip 'web' is already on node 'n3'"),
    ] {
        let refused = group.runtime.block_on(group.vips(node).failover(vip, to)).unwrap_err();
        assert_eq!(refused.to_string(), text);
    }

    // Maintenance and the end of a node: the VIPs go elsewhere at once.
    group.vips(2).set_maintenance(true);
    until("n3 to have given up both", || {
        ["web", "api"].iter().all(|vip| group.holder(vip).is_some_and(|holder| holder != "n3"))
    });
    until("the others to know why", || {
        group.vips(0).status()[0].nodes[2]
            == NodeFitness { node: "n3".into(), eligible: false, reasons: vec!["maintenance".into()] }
    });
    let refused = group.runtime.block_on(group.vips(0).failover("web", Some("n3"))).unwrap_err();
    assert_eq!(refused.to_string(), "node 'n3' is not eligible for vip 'web': maintenance");
    group.vips(2).set_maintenance(false);
    let holder = group.holder("web").unwrap();
    let index = holder.strip_prefix('n').unwrap().parse::<usize>().unwrap() - 1;
    group.stop(index);
    until("another holder", || group.holder("web").is_some_and(|other| other != holder));

    // The last one alone has no majority: it holds nothing, and says so.
    let next = (0..3).find(|&i| group.nodes[i].is_some()).unwrap();
    group.stop(next);
    until("nobody to hold", || group.world.lock().holder.is_empty());
    let last = group.nodes.iter().flatten().next().unwrap();
    until("the last to know of no holder", || last.0.status().iter().all(|s| s.holder.is_none()));
    let world = group.world.lock();
    assert!(world.overlaps.is_empty(), "two holders: {:?}", world.overlaps);
    for vip in ["web", "api"] {
        let epochs: Vec<u64> = world.tenures.iter().filter(|t| t.0 == vip).map(|t| t.2).collect();
        assert!(epochs.windows(2).all(|e| e[0] < e[1]), "epochs rise: {:?}", world.tenures);
    }
}

#[test]
fn a_node_that_cannot_announce_leaves_the_vip_to_another() {
    let group = Group::new(&[("web", Some("n1"))], &["n1"], Some("n3"));
    until("the only node that can to hold", || group.settled("web", "n2"));
    let status = &group.vips(0).status()[0];
    assert_eq!(status.nodes[2].reasons, ["witness"]);
    let refused = group.runtime.block_on(group.vips(1).failover("web", Some("n3"))).unwrap_err();
    assert_eq!(refused.to_string(), "node 'n3' is not eligible for vip 'web': witness");
}

#[test]
fn a_node_with_another_lease_than_most_leaves_vips_to_them() {
    let ms = Duration::from_millis;
    let timings = [Timing::default(), Timing::default(), Timing::of(ms(80))];
    let group = Group::with(&[("web", Some("n3"))], &[], None, timings);
    let reason = "'vip-lease' is 80ms here, 350ms on n1, 350ms on n2";
    until("n1 to hear why n3 stays away", || group.vips(0).status()[0].nodes[2].reasons == [reason]);
    until("n1 and n2 to be eligible", || {
        let status = &group.vips(1).status()[0];
        status.nodes[0].eligible && status.nodes[1].eligible && status.holder.is_some()
    });
    let refused = group.runtime.block_on(group.vips(0).failover("web", Some("n3"))).unwrap_err();
    assert!(refused.to_string().ends_with(&format!("is not eligible for vip 'web': {reason}")), "{refused}");
}

#[test]
#[ignore = "other tests run it as a process of its own"]
fn guardian_process() {
    assert_eq!(guardian::main(), 0);
}

fn guardian() -> Guardian {
    let args = ["vip::tests::guardian_process", "--exact", "--ignored"].map(str::to_owned).to_vec();
    let command = GuardianCommand::new(std::env::current_exe().unwrap(), args);
    Guardian::new(command, &Settings { name: "test".into(), node: "n1".into(), ..Settings::default() })
}

fn hold(until: Duration) -> Hold {
    Hold { vip: "web".into(), counter: 1, incarnation: 1, until, place: Place::Listen, drains: false }
}

fn listener() -> (TcpListener, SocketAddr, Vec<OwnedFd>) {
    let listener = Listen::on(SocketAddr::from(([127, 0, 0, 1], 0))).open().unwrap();
    let (addr, dup) = (listener.local_addr().unwrap(), listener.as_fd().try_clone_to_owned().unwrap());
    (listener, addr, vec![dup])
}

#[test]
fn the_guardian_ends_listeners_that_are_not_renewed() {
    let guardian = guardian();
    let (_listener, addr, fds) = listener();
    let end = boottime() + Duration::from_millis(1500);
    guardian.hold(hold(end - Duration::from_millis(500)), Some(fds)).unwrap();
    guardian.hold(hold(end), None).unwrap();
    while boottime() < end - Duration::from_millis(50) {
        assert!(TcpStream::connect(addr).is_ok(), "renewed, so open");
        std::thread::sleep(Duration::from_millis(20));
    }
    // This process does nothing about it: it stands still, as far as the VIP goes.
    until("the guardian to end the listener", || TcpStream::connect(addr).is_err());
    assert!(boottime() >= end, "not before its time");
    guardian.farewell("web");
}

#[test]
fn the_guardian_ends_listeners_of_a_dead_worker_and_then_itself() {
    let guardian = guardian();
    let (_listener, addr, fds) = listener();
    guardian.hold(hold(boottime() + Duration::from_secs(3600)), Some(fds)).unwrap();
    let pid = guardian.pid().unwrap();
    assert!(TcpStream::connect(addr).is_ok());
    // Its end of the socket closes, as at a death.
    drop(guardian);
    until("the guardian to end the listener", || TcpStream::connect(addr).is_err());
    until("the guardian to be gone", || !phalanx_sys::process::alive(pid));
}

#[test]
fn a_killed_guardian_is_replaced_and_told_everything() {
    let guardian = guardian();
    let (_listener, addr, fds) = listener();
    let far = boottime() + Duration::from_secs(3600);
    guardian.hold(hold(far), Some(fds)).unwrap();
    let first = guardian.pid().unwrap();
    phalanx_sys::process::signal(first, 9).unwrap();
    until("another guardian", || guardian.check().is_ok() && guardian.pid() != Some(first));
    assert!(TcpStream::connect(addr).is_ok(), "its death fences nothing");
    guardian.hold(hold(boottime()), None).unwrap();
    until("the new one to end the listener", || TcpStream::connect(addr).is_err());
    guardian.farewell("web");
    assert_eq!(guardian.pid(), None);
}

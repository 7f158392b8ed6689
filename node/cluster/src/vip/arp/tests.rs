//! The driver against a real kernel, in a network namespace of the test's own (root only).

use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx_engine::lease::QuorumLoss;

use super::*;

const VIP: &str = "10.9.7.100";
const OTHER: &str = "10.9.7.101";

/// More than can be told of between two renewals.
const MANY: usize = 9_000;

/// Fewer than a listener keeps that nobody accepts.
const EACH: usize = 100;

fn run(line: &str) -> String {
    let out = Command::new("sh").arg("-c").arg(line).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn vip(addr: &str) -> VipSettings {
    VipSettings {
        name: addr.into(),
        addr: addr.parse().unwrap(),
        prefix: 24,
        announce: Announce::Arp { interface: "near".into() },
        prefer: None,
        on_quorum_loss: QuorumLoss::Release,
    }
}

fn soon() -> Duration {
    boottime() + Duration::from_secs(5)
}

/// Runs it on a thread in a namespace with the interface `near`, if that can be done here.
fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    if phalanx_sys::process::effective_uid() != 0 {
        println!("skipped: needs root, to make network namespaces");
        return;
    }
    let thread = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            run(
                "ip link set lo up; ip link add near type veth peer name far; ip addr add 10.9.7.1/24 dev near",
            );
            run("ip link set far up; ip link set near up");
            test();
        }
        Err(error) => println!("skipped: no network namespaces here: {error}"),
    });
    thread.join().unwrap();
}

/// Connections to the address, accepted by nobody.
fn connections(addr: &str, most: usize) -> Vec<(TcpListener, Vec<TcpStream>)> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let count = most.min(hard as usize / 2);
    let group = |_| {
        let listener = TcpListener::bind((addr, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        (listener, (0..EACH).map(|_| TcpStream::connect(to).unwrap()).collect())
    };
    (0..count / EACH).map(group).collect()
}

fn listed(set: &str) -> String {
    run(&format!("nft list set netdev phalanx_vip {set}"))
}

#[test]
fn renewals_go_on_while_thousands_of_connections_are_told_of() {
    in_a_namespace(|| {
        let kernel = Kernel::new(&[vip(VIP), vip(OTHER)], false);
        assert!(kernel.enforces(), "nftables works here");
        let mut arp = Arp::new(VIP.parse().unwrap(), 24, "near".into(), kernel.clone());
        arp.acquire(1, soon()).unwrap();
        let open = connections(VIP, MANY);
        let count = open.iter().map(|(_, all)| all.len()).sum::<usize>();

        let (renewals, longest) = (AtomicUsize::new(0), Mutex::new(Duration::ZERO));
        let over = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while over.load(Relaxed) == 0 {
                    let began = Instant::now();
                    kernel.hold(OTHER.parse().unwrap(), soon()).unwrap();
                    renewals.fetch_add(1, Relaxed);
                    let mut longest = longest.lock();
                    *longest = longest.max(began.elapsed());
                }
            });
            while renewals.load(Relaxed) < 3 {
                std::thread::yield_now();
            }

            // A move begins: who has the address next is known, which connections are whose is not yet.
            let home = Some("10.9.7.2".parse().unwrap());
            let paths = Paths { home, closed: true, peers: vec![[2, 0, 0, 0, 0, 9]], ..Paths::default() };
            let (before, began) = (renewals.load(Relaxed), Instant::now());
            *longest.lock() = Duration::ZERO;
            let mut own = 0;
            while !arp.pass(&paths, Duration::ZERO).unwrap() {
                own += 1;
                arp.renew(soon()).unwrap();
                if own == 1 {
                    assert!(!listed("settling4").contains(VIP), "nothing of its own is lost");
                }
            }
            let (took, renewed) = (began.elapsed(), renewals.load(Relaxed) - before);
            println!(
                "{count} connections told of in {took:?}; meanwhile {own} renewals of its own and {renewed} of \
                 another address, of which the longest took {:?}",
                longest.lock()
            );
            over.store(1, Relaxed);
            assert!(own >= 1 && renewed >= 3, "{own} {renewed}");
        });
        // From here on what is not its own is lost or passed on: so it must know all that are.
        assert!(listed("settling4").contains(VIP) && listed("closed4").contains(VIP));
        // Three in each, and in the line that says what keys are.
        assert_eq!(listed("mine4").matches(" . ").count(), 3 * (count + 1));
        arp.release().unwrap();
        assert!(!listed("watch4").contains(VIP));
    });
}

#[test]
fn what_begins_between_two_holders_is_not_remembered_and_begins_again_when_it_comes_back() {
    in_a_namespace(|| {
        let kernel = Kernel::new(&[vip(VIP)], false);
        let mut arp = Arp::new(VIP.parse().unwrap(), 24, "near".into(), kernel);
        arp.acquire(1, soon()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !arp.prepare().unwrap() {
            assert!(Instant::now() < deadline, "it is ready for a move");
            std::thread::sleep(POLL);
        }
        assert!(listed("watch4").contains(VIP) && !listed("closed4").contains(VIP));
        assert!(arp.keep().unwrap());
        assert!(listed("closed4").contains(VIP), "nothing begins here");
        assert!(!listed("settling4").contains(VIP));
        arp.renew_kept().unwrap();
        // Nobody took it.
        arp.begin();
        arp.acquire(2, soon()).unwrap();
        assert!(!listed("closed4").contains(VIP), "it begins here again");
        arp.release().unwrap();
    });
}

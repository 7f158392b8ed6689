//! Floating IPs against a real kernel, in network namespaces of the test's own (root only).
//!
//! One test, because a thread that has moved to a namespace of its own must not serve another test.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use phalanx_sys::neighbour;
use phalanx_sys::netlink::diag::connections;
use phalanx_sys::netlink::news::{Feed, News};
use phalanx_sys::netlink::nft::Nft;
use phalanx_sys::netlink::nft::pass::Passing;
use phalanx_sys::netlink::route::Route;

fn run(line: &str) -> String {
    let out = Command::new("sh").arg("-c").arg(line).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A peer namespace `far`, kept by a sleeping process, with a veth pair into it.
struct Far(std::process::Child);

impl Far {
    fn new() -> Far {
        let child = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let pid = child.id();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        until("the far namespace", || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns != own)
        });
        let far = Far(child);
        run(
            "ip link set lo up; ip link add near type veth peer name far; ip addr add 10.9.0.1/24 dev near; ip link set near up",
        );
        run(&format!("ip link set far netns {pid}"));
        far.run("ip link set lo up; ip addr add 10.9.0.2/24 dev far; ip link set far up; ip -6 addr add 2001:db8:9::2/64 dev far nodad");
        run("ip -6 addr add 2001:db8:9::1/64 dev near nodad");
        far
    }

    fn run(&self, line: &str) -> String {
        run(&format!("nsenter -t {} -n sh -c '{line}'", self.0.id()))
    }

    fn pings(&self, addr: &str) -> bool {
        self.run(&format!("ping -c 1 -W 0.2 {addr} >/dev/null && echo yes")).contains("yes")
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vip_lives_and_dies_in_the_kernel() {
    if phalanx_sys::process::effective_uid() != 0 {
        println!("skipped: needs root, to make network namespaces");
        return;
    }
    if Command::new("ping").arg("-V").output().is_err() {
        println!("skipped: needs the program 'ping'");
        return;
    }
    let worker = std::thread::spawn(|| {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("skipped: no network namespaces here: {error}");
            return;
        }
        let far = Far::new();
        for (vip, prefix) in [("10.9.0.77", 32), ("2001:db8:9::77", 128)] {
            news(&far, vip.parse().unwrap(), prefix);
            addresses_and_announcements(&far, vip.parse().unwrap(), prefix);
            kernel_lease(&far, vip.parse().unwrap(), prefix);
            passing_on(&far, vip.parse().unwrap(), prefix);
        }
    });
    worker.join().unwrap();
}

/// What the kernel tells is there when it was asked for nothing.
fn news(far: &Far, vip: IpAddr, prefix: u8) {
    let mut feed = Feed::open().unwrap();
    let mut tells = |what: &str, expected: News, act: &dyn Fn()| {
        act();
        let mut told = false;
        until(what, || {
            feed.wait(|news| told |= news == expected).unwrap();
            told
        });
    };
    let mut route = Route::open().unwrap();
    let link = route.link("near").unwrap();
    route.add_address(link.index, vip, prefix, None).unwrap();
    tells("an address that is put there", News::Added(vip), &|| ());
    route.remove_address(link.index, vip, prefix).unwrap();
    tells("an address that is taken off", News::Removed(vip), &|| ());
    tells("a carrier that goes", News::Link("near".into()), &|| _ = far.run("ip link set far down"));
    tells("a carrier that comes", News::Link("near".into()), &|| _ = far.run("ip link set far up"));
    // It loses its addresses of IPv6 with the link.
    far.run("ip -6 addr replace 2001:db8:9::2/64 dev far nodad");
    until("carrier", || route.link("near").unwrap().running);
}

fn addresses_and_announcements(far: &Far, vip: IpAddr, prefix: u8) {
    let mut route = Route::open().unwrap();
    assert_eq!(route.link("nope").unwrap_err().to_string(), "interface 'nope' does not exist");
    until("carrier", || route.link("near").unwrap().running);
    let link = route.link("near").unwrap();
    assert!(!route.has_address(link.index, vip).unwrap());
    for _ in 0..2 {
        route.add_address(link.index, vip, prefix, None).unwrap();
        assert!(route.has_address(link.index, vip).unwrap());
    }
    assert!(route.remove_address(link.index, vip, prefix).unwrap());
    assert!(!route.remove_address(link.index, vip, prefix).unwrap(), "a second removal finds nothing");
    // The neighbour believes that the VIP is elsewhere, until it is told.
    far.run(&format!("ip neigh replace {vip} lladdr 02:00:00:00:00:99 dev far nud stale"));
    neighbour::announce(&link, vip).unwrap();
    let mac = link.mac.unwrap().map(|b| format!("{b:02x}")).join(":");
    until("the neighbour's table to name us", || far.run(&format!("ip neigh show {vip}")).contains(&mac));
    far.run("ip neigh flush dev far");
    // Without nftables, the kernel removes it by itself.
    route.add_address(link.index, vip, prefix, Some(Duration::from_secs(1))).unwrap();
    until("valid_lft to run out", || !route.has_address(link.index, vip).unwrap());
}

/// A host that has just taken the VIP from the far one: what it does not know goes back there.
fn passing_on(far: &Far, vip: IpAddr, prefix: u8) {
    let mut route = Route::open().unwrap();
    let mut nft = Nft::open().unwrap();
    let link = route.link("near").unwrap();
    route.add_address(link.index, vip, prefix, None).unwrap();
    let far_addr: IpAddr =
        if vip.is_ipv4() { [10, 9, 0, 2].into() } else { "2001:db8:9::2".parse().unwrap() };
    for _ in 0..2 {
        nft.set_up_passes(&[("near".into(), link.index)]).unwrap();
        nft.watch(vip, Duration::from_secs(30)).unwrap();
        let mut pass = |before, next, home| {
            let to = Passing { next, home, closed: home.is_some() };
            let times = (Duration::from_secs(30), Some(Duration::from_millis(1)));
            nft.pass(vip, before, to, &[[2, 0, 0, 0, 0, 1]], times).unwrap();
            to
        };
        let none = Passing::default();
        let mut before = pass(none, Some(far_addr), None);
        for (next, home) in [(vip, Some(far_addr)), (far_addr, Some(vip)), (far_addr, None)] {
            before = pass(before, Some(next), home);
            pass(none, Some(vip), Some(vip));
            // What was said last is not what is there.
            before = pass(before, Some(next), home);
        }
    }
    let listener = std::net::TcpListener::bind((vip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // What begins here, is here.
    let talk = format!("echo hi | timeout 3 nc -q 1 {vip} {port} >/dev/null && echo yes");
    let talking = std::thread::spawn({
        let (pid, talk) = (far.0.id(), talk.clone());
        move || run(&format!("nsenter -t {pid} -n sh -c '{talk}'"))
    });
    let (mut stream, peer) = listener.accept().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    assert_eq!(text, "hi\n");
    drop(stream);
    assert!(talking.join().unwrap().contains("yes"));
    let rules = run("nft list ruleset");
    assert!(rules.contains(&format!("{vip} . {}", peer.ip())), "remembered:\n{rules}");
    // What did not, is not: after the table has forgotten it, unless it is told.
    let connect = || {
        let far_pid = far.0.id();
        let talk = format!("(sleep 0.3; echo hi) | timeout 2 nc -q 1 {vip} {port} >/dev/null && echo yes");
        let talking = std::thread::spawn(move || run(&format!("nsenter -t {far_pid} -n sh -c '{talk}'")));
        let (stream, peer) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        (stream, peer, talking)
    };
    let on = Passing { next: Some(far_addr), ..Passing::default() };
    for told in [true, false] {
        let (mut stream, _, talking) = connect();
        nft.set_up_passes(&[("near".into(), link.index)]).unwrap();
        nft.watch(vip, Duration::from_secs(30)).unwrap();
        if told {
            let mut flows = Vec::new();
            connections(vip, |c| flows.push(c.flow)).unwrap();
            nft.add_mine(&flows).unwrap();
            nft.add_mine(&flows).unwrap();
            // Forgotten all, and told again.
            let listed = || run("nft list ruleset").contains(&format!("{vip} . "));
            for kept in [&flows[..], &[]] {
                let remembered = nft.remembered(vip).unwrap();
                nft.forget_others(remembered, kept).unwrap();
                assert_eq!(listed(), !kept.is_empty(), "{}", run("nft list ruleset"));
            }
            nft.add_mine(&flows).unwrap();
        }
        nft.pass(vip, Passing::default(), on, &[], (Duration::from_secs(30), None)).unwrap();
        let mut buf = [0; 8];
        let heard = std::io::Read::read(&mut stream, &mut buf);
        assert_eq!(heard.is_ok_and(|n| n > 0), told, "told {told}: {}", run("nft list ruleset"));
        drop(stream);
        talking.join().unwrap();
    }
    nft.end_pass(vip, on).unwrap();
    nft.end_pass(vip, on).unwrap();
    nft.remove_passes().unwrap();
    route.remove_address(link.index, vip, prefix).unwrap();
    assert!(!run("nft list ruleset").contains("phalanx"));
}

fn kernel_lease(far: &Far, vip: IpAddr, prefix: u8) {
    let mut route = Route::open().unwrap();
    let mut nft = Nft::open().unwrap();
    if let Err(error) = nft.set_up(&[vip]) {
        println!("skipped: no nftables here: {error}");
        return;
    }
    nft.set_up(&[vip]).expect("setting up again replaces");
    let link = route.link("near").unwrap();
    let text = vip.to_string();
    route.add_address(link.index, vip, prefix, None).unwrap();
    assert!(!far.pings(&text), "not held, so silent:\n{}", run("nft list ruleset"));
    let neighbour = far.run(&format!("ip neigh show {vip}"));
    assert!(!neighbour.contains("REACHABLE"), "nor do ARP or ND answer: {neighbour}");
    for _ in 0..3 {
        nft.hold(vip, Duration::from_secs(30)).unwrap();
    }
    let own: IpAddr = if vip.is_ipv4() { [10, 9, 0, 1].into() } else { "2001:db8:9::1".parse().unwrap() };
    for own in [own, own] {
        nft.drain(vip, own, Duration::from_secs(30)).unwrap_or_else(|e| panic!("draining as {own}: {e}"));
    }
    far.run("ip neigh flush dev far");
    assert!(!far.pings(&text), "draining, so silent");
    for _ in 0..2 {
        nft.end_drain(vip).unwrap();
        nft.hold(vip, Duration::from_secs(30)).unwrap();
    }
    far.run("ip neigh flush dev far");
    assert!(far.pings(&text), "held:\n{}", run("nft list ruleset"));
    nft.drop_hold(vip).unwrap();
    assert!(!far.pings(&text), "let go");

    // The element runs out by itself, and not much late: packets from the VIP stop.
    let probe = UdpSocket::bind((vip, 0)).unwrap();
    let to: IpAddr = if vip.is_ipv4() { [10, 9, 0, 2].into() } else { "2001:db8:9::2".parse().unwrap() };
    let passes = || probe.send_to(b"x", (to, 9)).is_ok();
    let start = Instant::now();
    nft.hold(vip, Duration::from_millis(300)).unwrap();
    assert!(passes());
    nft.hold(vip, Duration::from_millis(600)).unwrap();
    let mut last = start.elapsed();
    while last < Duration::from_secs(2) && passes() {
        last = start.elapsed();
    }
    assert!(last > Duration::from_millis(500) && last < Duration::from_millis(750), "silent after {last:?}");
    far.run("ip neigh flush dev far");
    assert!(!far.pings(&text), "run out");
    assert!(route.remove_address(link.index, vip, prefix).unwrap());
    nft.drop_hold(vip).unwrap();
    nft.remove_tables().unwrap();
    assert!(!run("nft list ruleset").contains("phalanx"));
    nft.drop_hold(vip).expect("nothing to let go is no error");
}

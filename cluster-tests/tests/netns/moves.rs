//! Planned moves under load lose nothing: connections go on where they are, new ones begin elsewhere.

use std::process::Command;
use std::time::Duration;

use cluster_tests::traffic::{Report, Traffic};
use cluster_tests::{Cluster, eventually, until};

use super::{Netns, inside};

const SOON: Duration = Duration::from_secs(10);

/// How many moves the long run makes, unless `MOVES` says otherwise.
const MANY: usize = 100;

fn run(namespace: &str, words: &[&str]) -> String {
    let out = Command::new("ip").args(["netns", "exec", namespace]).args(words).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Moves the address so often, from node to node and back, and returns what became of the traffic;
/// `None` when a machine without time to spare lost a lease meanwhile, which is another story.
fn moved(netns: &Netns, times: usize) -> Option<Report> {
    let (cluster, names) = (&netns.cluster, netns.cluster.names());
    under_load(netns, &format!("{times} moves"), || moves(cluster, &names, times))
}

fn moves(cluster: &Cluster, names: &[String], times: usize) {
    let mut at = cluster.wait_for_holder(SOON);
    for i in 0..times {
        // On to the next one most of the time, now and then back to where it came from.
        let here = names.iter().position(|n| *n == at).unwrap();
        let to = &names[(here + if i % 3 == 1 { names.len() - 1 } else { 1 }) % names.len()];
        let done = cluster.run(&["failover", "web", "--to", to]);
        if !done.status.success() {
            println!("{}", String::from_utf8_lossy(&done.stderr));
            break;
        }
        at.clone_from(to);
        // Moves follow each other while connections of the ones before go on.
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// What becomes of traffic while this is done; `None` as above.
fn under_load(netns: &Netns, what: &str, change: impl FnOnce()) -> Option<Report> {
    let (cluster, client) = (&netns.cluster, netns.client());
    let (http, tcp) = (netns.vip(8080), netns.vip(9000));
    until("all nodes are fit", SOON, || cluster.all_fit("n1"));
    let names = cluster.names();
    let asked = names.last().unwrap().clone();
    cluster.wait_for_holder(SOON);
    let traffic = inside(&client, || Traffic::start(&http, &tcp));
    std::thread::sleep(Duration::from_millis(500));
    change();
    let report = traffic.finish();
    let times_to_connect = report.connect_times();
    let quantile = |q: f64| times_to_connect[((times_to_connect.len() - 1) as f64 * q) as usize];
    let mut gaps = report.gaps();
    gaps.sort_unstable();
    println!(
        "{what}: {} requests, {} MiB in long transfers, {} lines, {} connects; lost: {:?}",
        report.requests,
        report.transferred >> 20,
        report.echoes,
        times_to_connect.len(),
        report.lost
    );
    println!(
        "connect p50 {:?} p99 {:?} max {:?}; {} moves made connections ask again, for {:?}",
        quantile(0.5),
        quantile(0.99),
        quantile(1.0),
        gaps.len(),
        gaps
    );
    let shown = cluster.api(&asked, "show vip");
    let lapsed = shown.contains("ran out") || shown.contains("no majority renewed");
    if !report.lost.is_empty() {
        // What the nodes said of it, without the log of requests.
        for node in names {
            let log = std::fs::read_to_string(cluster.dir().join(format!("{node}.log"))).unwrap_or_default();
            let told: Vec<&str> =
                log.lines().filter(|l| l.contains(" vip '") || l.contains("/size")).collect();
            println!("--- {node}\n{}", told.join("\n"));
        }
    }
    if lapsed {
        println!("a lease was lost:\n{shown}");
    }
    (!lapsed).then_some(report)
}

#[test]
fn planned_moves_under_load_lose_nothing_and_leave_nothing() {
    let tried = (0..3).find_map(|_| {
        let Some(netns) = Netns::up() else { return Some(None) };
        moved(&netns, 6).map(|report| Some((netns, report)))
    });
    let Some((netns, report)) = tried.expect("a machine that keeps a lease for three seconds") else {
        return;
    };
    assert_eq!(report.lost, [] as [&str; 0]);
    assert!(report.requests > 100 && report.echoes > 20 && report.transferred > 0, "{report:?}");

    // When its connections have ended, a former holder is as if it had never been one.
    let (cluster, vip) = (&netns.cluster, netns.vip(8080));
    let vip = vip.split(':').next().unwrap();
    let holder = cluster.wait_for_holder(SOON);
    for node in cluster.names() {
        let namespace = netns.client().replace("client", &node);
        until(&format!("nothing of a move is left on {node}"), Duration::from_secs(40), || {
            let there = run(&namespace, &["ip", "addr", "show", "dev", "eth0"]).contains(&format!("{vip}/"));
            let passes =
                run(&namespace, &["nft", "list", "map", "netdev", "phalanx_vip", "next4"]).contains(vip);
            there == (node == holder) && !passes
        });
    }
}

/// Another node than this holds the address, as a third sees it.
fn moved_from(cluster: &Cluster, node: &str) -> String {
    let asked = cluster.names().into_iter().find(|n| n != node).unwrap();
    eventually("another holds it", SOON, || {
        let shown: serde_json::Value =
            serde_json::from_str(cluster.api(&asked, "show vip json").trim()).ok()?;
        shown["vips"][0]["holder"].as_str().filter(|holder| *holder != node).map(str::to_owned)
    })
}

/// Each holder in turn is taken out of service and put back.
fn maintained(netns: &Netns, times: usize) -> Option<Report> {
    let cluster = &netns.cluster;
    under_load(netns, &format!("{times} times maintenance"), || {
        for _ in 0..times {
            until("all nodes are fit", SOON, || cluster.all_fit("n1"));
            let holder = cluster.wait_for_holder(SOON);
            let answer = cluster.api(&holder, &format!("maintenance node {holder} on"));
            assert!(answer.contains("is in maintenance"), "{answer}");
            let next = moved_from(cluster, &holder);
            std::thread::sleep(Duration::from_millis(250));
            cluster.api(&next, &format!("maintenance node {holder} off"));
        }
    })
}

#[test]
fn maintenance_of_the_holder_under_load_loses_nothing() {
    let tried = (0..3).find_map(|_| {
        let Some(netns) = Netns::up() else { return Some(None) };
        maintained(&netns, 4).map(|report| Some((netns, report)))
    });
    let Some((netns, report)) = tried.expect("a machine that keeps a lease for three seconds") else {
        return;
    };
    assert_eq!(report.lost, [] as [&str; 0]);
    assert!(report.requests > 100 && report.echoes > 20, "{report:?}");
    // It was a move like any planned one: the kernel was told of the connections before.
    for node in netns.cluster.names() {
        let log = std::fs::read_to_string(netns.cluster.dir().join(format!("{node}.log"))).unwrap();
        assert!(!log.contains("moved without preparation"), "{log}");
    }
}

/// The holder leaves the cluster: it is a member until its connections have ended, if they do soon. What became
/// of the traffic, and the answer.
fn left(netns: &Netns) -> Option<(Report, String)> {
    let cluster = &netns.cluster;
    let holder = cluster.wait_for_holder(SOON);
    let asked = cluster.names().into_iter().find(|n| *n != holder).unwrap();
    std::thread::scope(|scope| {
        let mut leaves = None;
        let report = under_load(netns, "the holder leaves", || {
            leaves = Some(scope.spawn(|| cluster.api(&asked, &format!("cluster leave {holder}"))));
            moved_from(cluster, &holder);
            std::thread::sleep(Duration::from_secs(3));
        });
        let answer = leaves.map(|leaves| leaves.join().unwrap()).unwrap_or_default();
        report.map(|report| (report, answer))
    })
}

#[test]
fn a_holder_that_leaves_under_load_loses_nothing() {
    let tried = (0..3).find_map(|_| {
        let Some(netns) = Netns::up() else { return Some(None) };
        left(&netns).map(Some)
    });
    let Some((report, answer)) = tried.expect("a machine that keeps a lease for three seconds") else {
        return;
    };
    assert_eq!(report.lost, [] as [&str; 0]);
    assert!(report.requests > 100 && report.echoes > 20, "{report:?}");
    assert!(answer.contains("has left after"), "{answer}");
}

/// The measure: `cargo test -p cluster-tests --test netns -- --ignored hundred --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn a_hundred_planned_moves_under_load_lose_nothing() {
    let Some(netns) = Netns::up() else { return };
    let times = std::env::var("MOVES").ok().and_then(|m| m.parse().ok()).unwrap_or(MANY);
    let report = moved(&netns, times).expect("no lease was lost");
    assert_eq!(report.lost, [] as [&str; 0]);
}

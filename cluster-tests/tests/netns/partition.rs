//! A holder that is cut off or frozen is replaced, and at no moment are there two.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::{Client, EndOnDrop, eventually, try_api, until};

use super::{Netns, forget_neighbours, forwarded_by, inside};

/// When a node said that it holds the address, by node and epoch: since when and until when it did
/// for certain. A holder that lost an epoch never has it again, so between two such answers of one
/// epoch it held throughout.
type Claims = BTreeMap<(String, u64), (Instant, Instant)>;

/// Asks a node again and again whether it holds the address.
fn watch_node(name: &str, api: &str, stop: &AtomicBool) -> Claims {
    let mut claims = Claims::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let Ok(text) = try_api(api, "show vip json", Duration::from_millis(200)) else { continue };
        let answered = Instant::now();
        let Ok(value) = serde_json::from_str::<serde_json::Value>(text.trim()) else { continue };
        let vip = &value["vips"][0];
        if vip["holder"] == name {
            let key = (name.to_owned(), vip["epoch"].as_u64().unwrap());
            claims.entry(key).and_modify(|(_, until)| *until = asked).or_insert((answered, answered));
        }
        thread::sleep(Duration::from_millis(5));
    }
    claims
}

/// Asks through the address again and again, by ARP each time, and notes who forwarded.
fn watch_address(client: &str, vip: &str, stop: &AtomicBool) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        forget_neighbours(client);
        let asked = Client::with_limit(vip, Duration::from_millis(250)).and_then(|mut c| c.get("/", &[]));
        let Ok(response) = asked else { continue };
        let node = forwarded_by(&response);
        if seen.last() != Some(&node) {
            seen.push(node);
        }
    }
    seen
}

/// Disturbs the holder, waits for another, lets the first go on, and checks everything that was seen.
fn replaced_without_overlap(disturb: &[&str], undisturb: &[&str]) {
    let Some(netns) = Netns::up() else { return };
    let (cluster, client, vip) = (&netns.cluster, netns.client(), netns.vip(8080));
    let first = cluster.wait_for_holder(Duration::from_secs(10));
    let stop = AtomicBool::new(false);
    let (claims, seen) = thread::scope(|scope| {
        let watchers: Vec<_> = cluster
            .status()
            .nodes
            .into_iter()
            .map(|n| {
                let stop = &stop;
                scope.spawn(move || watch_node(&n.name, &n.cli.unwrap(), stop))
            })
            .collect();
        let address = scope.spawn(|| inside(&client, || watch_address(&client, &vip, &stop)));
        let end = EndOnDrop(&stop);
        let with = |words: &[&str]| {
            words
                .iter()
                .map(|w| if *w == "NODE" { first.clone() } else { (*w).to_owned() })
                .collect::<Vec<_>>()
        };
        let run = |words: Vec<String>| cluster.must(&words.iter().map(String::as_str).collect::<Vec<_>>());
        thread::sleep(Duration::from_millis(500));
        run(with(disturb));
        let next = eventually("another holds it", Duration::from_secs(10), || {
            cluster.status().holder().filter(|h| *h != first).map(str::to_owned)
        });
        // Long enough for a second holder to show itself, before the end of the disturbance and after.
        thread::sleep(Duration::from_secs(2));
        run(with(undisturb));
        thread::sleep(Duration::from_secs(2));
        until("it stays", Duration::from_secs(5), || cluster.status().holder() == Some(&next));
        drop(end);
        let mut claims = Claims::new();
        for watcher in watchers {
            claims.extend(watcher.join().unwrap());
        }
        let seen = address.join().unwrap();
        (claims, seen)
    });

    println!("claims {claims:?}\nseen by the client {seen:?}");
    let spans: Vec<_> = claims.iter().collect();
    assert!(spans.len() >= 2, "both holders were seen: {spans:?}");
    for (i, ((a, ..), (a_from, a_to))) in spans.iter().enumerate() {
        for ((b, ..), (b_from, b_to)) in &spans[i + 1..] {
            let overlap = a_from < b_to && b_from < a_to;
            assert!(a == b || !overlap, "two holders at a time: {spans:?}");
        }
    }
    assert_eq!(seen.len(), 2, "the client sees one node, then another, and never the first again: {seen:?}");
}

#[test]
fn a_partitioned_holder_is_replaced_and_there_are_never_two() {
    replaced_without_overlap(&["partition", "NODE"], &["heal"]);
}

#[test]
fn a_frozen_machine_falls_silent_before_another_holds_its_address() {
    replaced_without_overlap(&["pause", "--guardian", "NODE"], &["resume", "NODE"]);
}

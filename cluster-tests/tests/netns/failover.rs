//! The floating address by ARP follows when its holder dies, as seen by a client of its own.

use std::time::Duration;

use cluster_tests::{Load, eventually, get, summary, until};

use super::{MOST, Netns, forwarded_by, inside};

#[test]
fn kill_of_each_node_in_turn_under_load_moves_the_address_for_a_client() {
    let Some(netns) = Netns::up() else { return };
    let (cluster, client, vip) = (&netns.cluster, netns.client(), netns.vip(8080));
    let ask = || inside(&client, || get(&vip, "/", &[]));
    until("the address serves", Duration::from_secs(10), || ask().is_ok_and(|r| r.status == 200));
    let load = inside(&client, || Load::start(&vip, "/", 4, Duration::from_millis(1500)));
    let mut holders_killed = 0;
    for node in cluster.names() {
        let held = cluster.status().holder() == Some(&node);
        holders_killed += usize::from(held);
        cluster.must(&["kill", &node]);
        let (holder, addr) = eventually("another node holds it", Duration::from_secs(10), || {
            let status = cluster.status();
            let holder = status.holder().filter(|h| *h != node)?.to_owned();
            let http = status.node(&holder).http.clone()?;
            Some((holder, http.split(':').next()?.to_owned()))
        });
        until(&format!("{holder} answers the client"), Duration::from_secs(5), || {
            ask().is_ok_and(|r| forwarded_by(&r) == addr)
        });
        cluster.must(&["start", &node]);
        until("it has rejoined", Duration::from_secs(20), || {
            let status = cluster.status();
            status.nodes.iter().all(|n| n.state == "running") && status.holder().is_some()
        });
    }
    let outcomes = load.finish();
    let wrong: Vec<_> = outcomes.iter().filter(|o| matches!(o.result, Ok(s) if s != 200)).collect();
    assert!(wrong.is_empty(), "answers other than 200: {:?}", &wrong[..wrong.len().min(5)]);
    let times: Vec<Duration> = outcomes.iter().filter(|o| o.result.is_ok()).map(|o| o.at).collect();
    let gap = times.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    println!("{} good answers, longest gap {gap:?}, {holders_killed} holders killed", times.len());
    println!("{}", summary(&outcomes));
    assert!(holders_killed > 0, "some victim held the address");
    assert!(gap < MOST, "the address was silent for {gap:?}");
}

//! The floating address follows when its holder dies, on loopback.

use std::time::Duration;

use cluster_tests::{Cluster, Load, eventually, get, summary, until};

/// Longest that the address may be without an answer when its holder dies: detection, lease,
/// takeover, on a busy machine.
const MOST: Duration = Duration::from_secs(3);

#[test]
fn kill_of_each_node_in_turn_under_load_moves_the_address() {
    let cluster = Cluster::up();
    let vip = cluster.base().at(100, 8080);
    until("the address serves", Duration::from_secs(10), || {
        get(&vip, "/healthz", &[]).is_ok_and(|r| r.status == 200)
    });
    let load = Load::start(&vip, "/", 4, Duration::from_secs(2));
    let mut killed = Vec::new();
    let mut left = cluster.names();
    while !left.is_empty() {
        // The holder as long as it has not had its turn: the first victim is one for certain.
        let holder = cluster.wait_for_holder(Duration::from_secs(10));
        let turn = left.iter().position(|n| *n == holder).unwrap_or(0);
        let node = left.swap_remove(turn);
        let before = cluster.status();
        let held = before.holder() == Some(&node);
        let epoch = before.vips[0].epoch;
        cluster.must(&["kill", &node]);
        let began = load.elapsed();
        eventually("another node holds it", Duration::from_secs(10), || {
            let status = cluster.status();
            let holder = status.holder().filter(|h| *h != node)?;
            (status.node(holder).state == "running" && get(&vip, "/", &[]).is_ok()).then_some(())
        });
        if held {
            assert!(cluster.status().vips[0].epoch > epoch, "a new holder has a newer epoch");
        }
        killed.push((node.clone(), held, began));
        cluster.must(&["start", &node]);
        cluster.wait_running(&node);
        // The next kill must leave a majority that is fit to take over.
        until("all are fit to hold it", Duration::from_secs(20), || {
            cluster.names().iter().all(|name| cluster.all_fit(name))
        });
    }
    let outcomes = load.finish();
    let good = outcomes.iter().filter(|o| o.result == Ok(200)).count();
    let wrong: Vec<_> = outcomes.iter().filter(|o| matches!(o.result, Ok(s) if s != 200)).collect();
    assert!(wrong.is_empty(), "answers other than 200: {:?}", &wrong[..wrong.len().min(5)]);
    assert!(good > 100, "only {good} answers");
    assert!(killed.iter().any(|(_, held, _)| *held), "some victim held the address: {killed:?}");
    // The longest time without a good answer.
    let times: Vec<Duration> = outcomes.iter().filter(|o| o.result.is_ok()).map(|o| o.at).collect();
    let gap = times.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    println!("{good} good answers, longest gap {gap:?}, kills {killed:?}");
    println!("{}", summary(&outcomes));
    assert!(gap < MOST, "the address was silent for {gap:?}");
}

#[test]
fn a_planned_failover_moves_the_address_to_the_node_asked_for() {
    let cluster = Cluster::up();
    let vip = cluster.base().at(100, 8080);
    let holder = cluster.wait_for_holder(Duration::from_secs(10));
    let target = cluster.names().into_iter().find(|n| *n != holder).unwrap();
    // A node that is not caught up yet is refused, so soon after the start.
    let mut refusal = String::new();
    until("it is moved", Duration::from_secs(10), || {
        let out = cluster.run(&["failover", "web", "--to", &target]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if said != refusal {
            println!("{said}");
            refusal = said;
        }
        out.status.success()
    });
    until("it is there", Duration::from_secs(5), || cluster.status().holder() == Some(&target));
    until("it serves", Duration::from_secs(5), || get(&vip, "/", &[]).is_ok_and(|r| r.status == 200));
    // No preemption: it stays.
    assert_eq!(cluster.status().holder(), Some(target.as_str()));

    // A node that is not there is refused, and nothing moves.
    let absent = cluster.names().into_iter().find(|n| *n != target).unwrap();
    cluster.must(&["kill", &absent]);
    let out = cluster.run(&["failover", "web", "--to", &absent]);
    assert!(!out.status.success(), "{out:?}");
    assert_eq!(cluster.status().holder(), Some(target.as_str()));

    let out = cluster.run(&["failover", "nosuch"]);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("there is: web"));
}

#[test]
fn a_paused_holder_is_replaced_and_does_not_come_back_as_a_second_one() {
    let cluster = Cluster::up();
    let vip = cluster.base().at(100, 8080);
    let holder = cluster.wait_for_holder(Duration::from_secs(10));
    cluster.must(&["pause", &holder]);
    let next = eventually("another holds it", Duration::from_secs(10), || {
        cluster.status().holder().filter(|h| *h != holder).map(str::to_owned)
    });
    until("it serves", Duration::from_secs(5), || get(&vip, "/", &[]).is_ok_and(|r| r.status == 200));
    cluster.must(&["resume", &holder]);
    cluster.wait_running(&holder);
    for node in cluster.names() {
        until("all agree", Duration::from_secs(10), || {
            let text = cluster.api(&node, "show vip json");
            let value: serde_json::Value = serde_json::from_str(text.trim()).unwrap_or_default();
            value["vips"][0]["holder"] == *next
        });
    }
    assert!(get(&vip, "/", &[]).is_ok_and(|r| r.status == 200));
}

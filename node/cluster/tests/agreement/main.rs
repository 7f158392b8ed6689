//! Nodes in one process, on loopback addresses of their own, with their logs on the disk: election,
//! commands, loss and return of nodes.
//!
//! Each node has a runtime of its own; killing it drops the runtime as it stands. No step waits for a
//! fixed time: each polls for what must become true, and gives up at a deadline.

mod harness;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use phalanx_cluster::{PROTOCOL, ProposeError, State};
use phalanx_engine::registry::{Change, Command, Reply, Weight};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::harness::{Nodes, SOON, add, eventually, names};

#[test]
fn commands_are_taken_on_any_node_and_seen_on_all() {
    let mut nodes = Nodes::new(3);
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1, 2]);
    for (i, server) in ["a", "b", "c"].into_iter().enumerate() {
        let reply = nodes.propose(i, add(server)).unwrap();
        assert_eq!(reply, Reply::Text("New server registered.".into()));
        // The node that answered has applied it.
        assert!(nodes.servers(i).contains(server), "{server} on node {i}");
    }
    let refused = nodes.propose(1, add("a")).unwrap();
    assert_eq!(refused, Reply::Refused("Already exists a server with the same name in backend.".into()));
    for i in 0..3 {
        eventually(SOON, "all servers on all nodes", || nodes.servers(i) == names(["a", "b", "c"]));
        assert_eq!(nodes.seen(i), names(["a", "b", "c"]), "what the engine was told on node {i}");
    }
    // Ids are the cluster's, not the node's.
    let ids = |i: usize| nodes.ids(i);
    assert_eq!(ids(0), ids(1));
    assert_eq!(ids(0), ids(2));

    for i in 0..3 {
        eventually(SOON, "one leader and two followers, seen from every node", || {
            let status = nodes.status(i);
            let count = |state| status.nodes.iter().filter(|n| n.state == state).count();
            status.quorum && count(State::Leader) == 1 && count(State::Follower) == 2
        });
    }
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut nodes = Nodes::new(3);
    nodes.start_all();
    let leader = nodes.wait_for_leader(&[0, 1, 2]);
    let mut acknowledged = BTreeSet::new();
    for i in 0..20 {
        let name = format!("before{i}");
        nodes.propose_until(i % 3, &name, SOON);
        acknowledged.insert(name);
    }
    nodes.kill(leader);
    let rest: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    let begun = Instant::now();
    let mut attempts = 0;
    eventually(SOON, "a command after the leader's death", || {
        attempts += 1;
        let name = format!("after{attempts}");
        // A failed one is unknown, never absent: only acknowledged ones count.
        let reply = nodes.propose(rest[0], add(&name));
        reply.is_ok_and(|_| acknowledged.insert(name))
    });
    println!("a new leader took a command after {:?}, attempt {attempts}", begun.elapsed());
    nodes.start(leader);
    for i in 0..3 {
        eventually(SOON, "everything acknowledged on every node", || {
            nodes.servers(i).is_superset(&acknowledged)
        });
    }
}

#[test]
fn a_retried_command_takes_effect_once_while_leaders_die() {
    let mut nodes = Nodes::new(3);
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1, 2]);
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let leader = nodes.wait_for_leader(&[0, 1, 2]);
        let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
        let halfway = std::sync::Barrier::new(3);
        let runtime = nodes.take(leader);
        let taken: Vec<Vec<String>> = std::thread::scope(|scope| {
            let proposing = scope.spawn(|| {
                nodes.on_each(&others, |i| {
                    let mut taken = Vec::new();
                    for n in 0..12 {
                        if n == 4 {
                            halfway.wait();
                        }
                        let name = format!("r{round}n{i}s{n}");
                        match nodes.propose(i, add(&name)) {
                            // The answer of the first time, also when only a retry got it through.
                            Ok(reply) => {
                                assert_eq!(reply, Reply::Text("New server registered.".into()), "{name}");
                                taken.push(name);
                            }
                            Err(error) => println!("{name}: {error}"),
                        }
                    }
                    taken
                })
            });
            halfway.wait();
            runtime.kill();
            proposing.join().unwrap()
        });
        acknowledged.extend(taken.into_iter().flatten());
        nodes.start(leader);
    }
    println!("{} of 72 acknowledged", acknowledged.len());
    assert!(acknowledged.len() > 24);
    for i in 0..3 {
        eventually(SOON, "everything acknowledged", || nodes.servers(i).is_superset(&acknowledged));
    }
    eventually(SOON, "all nodes alike", || (1..3).all(|i| nodes.registry(i) == nodes.registry(0)));
}

#[test]
fn nodes_join_leave_and_are_replaced_one_by_one() {
    let mut nodes = Nodes::founded(5);
    // A new node names a member or two, and founds nothing by itself.
    nodes.start(3);
    let text = nodes.join(1, 3, false, None).unwrap();
    assert!(text.starts_with("Node 'n4' is a member after ") && text.ends_with("4 nodes vote."), "{text}");
    for i in 0..4 {
        eventually(SOON, "four voters", || nodes.voters(i) == 4 && nodes.status(i).nodes.len() >= 4);
        eventually(SOON, "a on every node", || nodes.servers(i).contains("a"));
    }
    nodes.propose_until(3, "b", SOON);
    let refused = nodes.join(0, 3, false, None).unwrap_err();
    assert!(refused.starts_with("Node 'n4' is a member already"), "{refused}");

    // The leader itself leaves.
    let leader = nodes.wait_for_leader(&[0, 1, 2, 3]);
    let other = (leader + 1) % 4;
    let text = nodes.leave(other, leader).unwrap();
    assert!(text.ends_with("3 nodes vote."), "{text}");
    nodes.kill(leader);
    let rest: Vec<usize> = (0..4).filter(|i| *i != leader).collect();
    for i in &rest {
        eventually(SOON, "three voters", || nodes.voters(*i) == 3 && nodes.status(*i).nodes.len() == 3);
    }

    // A dead one is replaced; with two of three left, none may leave.
    nodes.kill(rest[0]);
    eventually(SOON, "its death is noticed", || {
        let status = nodes.status(rest[1]);
        status.nodes.iter().filter(|n| n.state == State::Unreachable).count() == 1
    });
    let refused = nodes.leave(rest[1], rest[2]).unwrap_err();
    assert!(refused.contains("which is no majority"), "{refused}");
    nodes.start(4);
    let text = nodes.join(rest[1], 4, false, Some(rest[0])).unwrap();
    assert!(text.starts_with("Node 'n5' has replaced"), "{text}");
    for i in [rest[1], rest[2], 4] {
        eventually(SOON, "three voters", || nodes.voters(i) == 3);
        eventually(SOON, "everything", || nodes.servers(i).is_superset(&names(["a", "b"])));
    }
}

#[test]
fn members_that_a_node_has_never_heard_of_bring_it_up_to_date() {
    let mut nodes = Nodes::founded(6);
    // While one is away, all others are replaced.
    nodes.kill(2);
    for i in [3, 4] {
        nodes.start(i);
        let text = nodes.join(0, i, false, None).unwrap();
        assert!(text.contains("is a member after"), "{text}");
    }
    for (at, i) in [(1, 0), (3, 1)] {
        let text = nodes.leave(at, i).unwrap();
        assert!(text.contains("has left after"), "{text}");
        nodes.kill(i);
    }
    nodes.wait_for_leader(&[3, 4]);
    nodes.propose_until(3, "b", SOON);
    nodes.start(2);
    eventually(SOON, "the one that was away has everything", || {
        nodes.servers(2).is_superset(&names(["a", "b"])) && nodes.voters(2) == 3
    });
    // And a new one, whose log begins with members that are all gone.
    nodes.start(5);
    let text = nodes.join(2, 5, false, None).unwrap();
    assert!(text.ends_with("4 nodes vote."), "{text}");
    eventually(SOON, "the new one has everything", || nodes.servers(5).is_superset(&names(["a", "b"])));
}

#[test]
fn nodes_of_versions_that_overlap_work_together_while_they_are_upgraded() {
    let mut nodes = Nodes::new(3);
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1, 2]);
    for i in 0..3 {
        nodes.propose_until(i, &format!("before{i}"), SOON);
        nodes.kill(i);
        nodes.upgrade(i, PROTOCOL, PROTOCOL + 1);
        nodes.start(i);
        nodes.propose_until((i + 1) % 3, &format!("meanwhile{i}"), SOON);
        nodes.propose_until(i, &format!("after{i}"), SOON);
    }
    for i in 0..3 {
        eventually(SOON, "everything everywhere", || nodes.servers(i).len() == 9);
    }
    // One that has nothing in common with them is refused in words, and the others go on.
    nodes.kill(2);
    nodes.upgrade(2, PROTOCOL + 2, PROTOCOL + 3);
    nodes.start(2);
    eventually(SOON, "the misfit is reported", || {
        let problem = nodes.status(0).nodes[2].problem.clone().unwrap_or_default();
        problem.contains("speaks protocol versions") && problem.contains("upgrade the older one")
    });
    nodes.propose_until(1, "alone", SOON);
}

#[test]
fn a_command_that_former_programs_cannot_read_waits_until_all_are_upgraded() {
    let mut nodes = Nodes::new(3);
    for i in 0..3 {
        nodes.upgrade(i, PROTOCOL - 1, PROTOCOL - 1);
    }
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1, 2]);
    nodes.propose_until(0, "a", SOON);
    eventually(SOON, "a everywhere", || (0..3).all(|i| nodes.servers(i).len() == 1));
    let command = |nodes: &Nodes, i| {
        let change = Change::Weight(Weight::Absolute(10)).beside_an_agent();
        let command = Command::SetServer { target: nodes.target(i, "a"), change };
        assert_eq!(command.since(), PROTOCOL);
        command
    };
    for i in 0..3 {
        nodes.kill(i);
        nodes.upgrade(i, PROTOCOL - 1, PROTOCOL);
        nodes.start(i);
        nodes.wait_for_leader(&[0, 1, 2]);
        if i == 2 {
            break;
        }
        // Whoever takes it, whoever leads: it is refused for good, and says whom to upgrade.
        for at in 0..3 {
            eventually(SOON, "n1 is known to be upgraded", || {
                let began = Instant::now();
                let refused = nodes.propose(at, command(&nodes, at)).unwrap_err();
                let ProposeError::Refused(why) = &refused else { panic!("{refused:?}") };
                assert!(why.contains("not before all nodes are upgraded") && why.contains("n3"), "{why}");
                assert!(began.elapsed() < Duration::from_secs(1), "it waits for nothing");
                !why.contains("n1")
            });
        }
        // What all know goes on.
        nodes.propose_until(i, &format!("b{i}"), SOON);
    }
    eventually(SOON, "taken when all are upgraded", || {
        (0..3).all(|at| nodes.propose(at, command(&nodes, at)) == Ok(Reply::Ok))
    });
    eventually(SOON, "everywhere", || (0..3).all(|i| nodes.registry(i).spoken("web", "a").weight > 0));
}

#[test]
fn a_minority_and_a_node_that_is_to_join_found_nothing() {
    let mut nodes = Nodes::new(3);
    nodes.only_joins(1);
    nodes.start(0);
    nodes.start(1);
    eventually(SOON, "they see each other", || {
        (0..2).all(|i| nodes.status(i).nodes.iter().filter(|n| n.seen.is_some()).count() == 2)
    });
    assert_eq!((nodes.status(0).cluster_id, nodes.status(1).cluster_id), (0, 0));
    nodes.kill(0);
    nodes.start(2);
    eventually(SOON, "they see each other", || nodes.status(2).nodes[1].seen.is_some());
    assert_eq!(nodes.status(1).cluster_id, 0);
    nodes.start(0);
    nodes.wait_for_leader(&[0, 1, 2]);
    eventually(SOON, "one id", || {
        let id = nodes.status(0).cluster_id;
        id != 0 && (1..3).all(|i| nodes.status(i).cluster_id == id)
    });
}

#[test]
fn all_nodes_killed_at_once_come_back_with_everything() {
    let mut nodes = Nodes::new(3);
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1, 2]);
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        for i in 0..10 {
            let name = format!("r{round}s{i}");
            if nodes.propose(i % 3, add(&name)).is_ok() {
                acknowledged.insert(name);
            }
        }
        // Something is acknowledged in each round, however busy the machine is.
        let name = format!("r{round}");
        nodes.propose_until(0, &name, SOON);
        acknowledged.insert(name);
        for i in 0..3 {
            nodes.kill(i);
        }
        nodes.start_all();
        nodes.wait_for_leader(&[0, 1, 2]);
    }
    println!("{} of 33 acknowledged", acknowledged.len());
    for i in 0..3 {
        eventually(SOON, "everything acknowledged after restarts", || {
            nodes.servers(i).is_superset(&acknowledged)
        });
    }
    eventually(SOON, "all nodes alike", || (1..3).all(|i| nodes.registry(i) == nodes.registry(0)));
}

#[test]
fn a_minority_refuses_commands_in_time_and_goes_on_reading() {
    let mut nodes = Nodes::new(3);
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1, 2]);
    nodes.propose_until(0, "a", SOON);
    eventually(SOON, "a on node 0", || nodes.servers(0) == names(["a"]));
    nodes.kill(1);
    nodes.kill(2);
    eventually(SOON, "node 0 sees that it is alone", || !nodes.status(0).quorum);
    let begun = Instant::now();
    let refused = nodes.propose(0, add("b")).unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    assert!(refused.to_string().contains("1 of 3 nodes reachable"), "{refused}");
    assert_eq!(nodes.servers(0), names(["a"]), "reading goes on");
    nodes.start(1);
    eventually(SOON, "commands with two of three", || nodes.propose(0, add("c")).is_ok());
    assert!(nodes.servers(0).is_superset(&names(["a", "c"])));
}

#[test]
fn a_node_that_lost_its_disk_is_taught_again() {
    let mut nodes = Nodes::new(3);
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1, 2]);
    nodes.propose_until(0, "a", SOON);
    nodes.kill(2);
    nodes.propose_until(0, "b", SOON);
    nodes.wipe(2);
    nodes.start(2);
    eventually(SOON, "the empty node has everything", || nodes.servers(2).is_superset(&names(["a", "b"])));
    nodes.wait_taught(0, 2);
    // And it counts again: with another node gone the two take commands.
    nodes.kill(1);
    nodes.propose_until(2, "c", SOON);
    eventually(SOON, "c everywhere", || nodes.servers(0).contains("c") && nodes.servers(2).contains("c"));
}

#[test]
fn a_node_that_was_away_for_long_gets_a_snapshot() {
    let mut nodes = Nodes::new(3);
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1, 2]);
    nodes.propose_until(0, "a", SOON);
    nodes.kill(2);
    nodes.propose_until(0, "b", SOON);
    let target = nodes.target(0, "a");
    nodes.propose_many(0, 2500, |i| Command::SetServer {
        target: target.clone(),
        change: Change::Maxconn(i as u32),
    });
    eventually(SOON, "a snapshot", || nodes.status(0).snapshot.is_some_and(|s| s >= 1000));
    nodes.start(2);
    eventually(SOON, "the node has caught up", || nodes.registry(2) == nodes.registry(0));
    // From its own disk as well.
    nodes.kill(2);
    nodes.start(2);
    eventually(SOON, "the node is as it was", || nodes.registry(2) == nodes.registry(0));
}

#[test]
fn strangers_and_junk_do_no_harm() {
    let mut nodes = Nodes::new(3);
    nodes.rename_cluster(2, "other");
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1]);
    for i in 0..3 {
        for junk in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"HAProxyS 2.1\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
        ] {
            let mut stream = TcpStream::connect(nodes.addr(i)).unwrap();
            stream.write_all(junk).unwrap();
        }
    }
    nodes.propose_until(0, "a", SOON);
    eventually(SOON, "the other cluster's node is reported", || {
        let problem = nodes.status(0).nodes[2].problem.clone().unwrap_or_default();
        problem.contains("cluster 'prod' is not 'other'")
    });
    assert!(nodes.servers(2).is_empty());
    let refused = nodes.propose(2, add("b")).unwrap_err();
    assert!(matches!(refused, ProposeError::Refused(_)), "{refused:?}");
}

#[test]
fn a_cluster_of_one_takes_commands_and_keeps_them() {
    let mut nodes = Nodes::new(1);
    nodes.start(0);
    nodes.wait_for_leader(&[0]);
    nodes.propose_until(0, "a", SOON);
    nodes.kill(0);
    nodes.start(0);
    eventually(SOON, "a after a restart", || nodes.servers(0).contains("a"));
}

#[test]
fn a_name_that_does_not_resolve_and_a_port_in_use_are_only_warnings() {
    let mut nodes = Nodes::new(4);
    nodes.move_to(3, "phalanx-n4.invalid:7100");
    let in_use = TcpListener::bind(nodes.addr(2)).unwrap();
    for i in 0..3 {
        nodes.start(i);
    }
    // Two of four, and one that hears nothing: no majority, but everybody runs.
    eventually(SOON, "the problems are seen", || {
        nodes.status(0).nodes[2..].iter().all(|n| n.problem.is_some() && n.state == State::Unreachable)
    });
    drop(in_use);
    nodes.wait_for_leader(&[0, 1, 2]);
    for i in 0..3 {
        nodes.propose(i, add(&format!("s{i}"))).unwrap();
    }
}

#[test]
fn a_data_directory_of_another_node_is_refused() {
    let mut nodes = Nodes::new(2);
    nodes.start_all();
    nodes.wait_for_leader(&[0, 1]);
    nodes.kill(0);
    nodes.kill(1);
    let error = nodes.start_in(0, 1).unwrap_err().to_string();
    assert!(
        error.contains("it belongs to node 'n2' of cluster 'prod', not to node 'n1' of cluster 'prod'"),
        "{error}"
    );
}

/// A seed of a test's random choices: `SEED`, or a fresh one; printed, so that a failure shows it.
fn seed() -> u64 {
    let seed =
        std::env::var("SEED").map_or_else(|_| rand::random(), |s| s.parse().expect("SEED is a number"));
    println!("SEED={seed}");
    seed
}

/// Three nodes, of which one is dead and being replaced, and another loses its disk at some moment of
/// that: of the three that voted one is left that knows anything.
fn a_member_is_wiped_while_another_is_replaced(moment: Duration, leads: bool) {
    let mut nodes = Nodes::founded(4);
    nodes.kill(2);
    nodes.start(3);
    let leader = nodes.wait_for_leader(&[0, 1]);
    let victim = if leads { leader } else { 1 - leader };
    let stays = 1 - victim;
    nodes.propose_until(stays, "b", SOON);
    nodes.begin_join(stays, 3, Some(2));
    eventually(SOON, "the node that stays knows of it", || {
        nodes.registry(stays).members().get("n4").is_some()
    });
    // Any moment will do.
    thread::sleep(moment);
    nodes.kill(victim);
    nodes.wipe(victim);
    nodes.start(victim);
    let three = [stays, victim, 3];
    let within = Duration::from_secs(30);
    for i in three {
        eventually(within, "the change is carried out", || {
            let registry = nodes.registry(i);
            let members: BTreeSet<_> = registry.members().voters().map(|(name, _)| name.to_owned()).collect();
            members == names(["n1", "n2", "n4"]) && nodes.voters(i) == 3
        });
        eventually(within, "all that was acknowledged", || nodes.servers(i).is_superset(&names(["a", "b"])));
        nodes.propose_until(i, &format!("c{i}"), within);
    }
    // And it bears the loss of any one, when all know that it is done.
    eventually(within, "all have the same", || {
        let all = three.map(|i| nodes.status(i));
        all.iter().all(|s| s.committed == all[0].last_log && s.applied == s.last_log)
    });
    nodes.kill(stays);
    nodes.propose_until(victim, "d", within);
}

#[test]
fn a_member_wiped_during_a_change_comes_back() {
    let mut random = SmallRng::seed_from_u64(seed());
    for leads in [true, random.random()] {
        let moment = Duration::from_millis(random.random_range(0..2500));
        println!("wiped after {moment:?}, leads: {leads}");
        a_member_is_wiped_while_another_is_replaced(moment, leads);
    }
}

#[test]
fn of_two_nodes_one_that_lost_its_disk_lets_the_other_lead() {
    let mut nodes = Nodes::new(2);
    nodes.start_all();
    let leader = nodes.wait_for_leader(&[0, 1]);
    nodes.propose_until(0, "a", SOON);
    nodes.kill(leader);
    nodes.wipe(leader);
    nodes.start(leader);
    eventually(SOON, "the empty node has everything", || nodes.servers(leader).contains("a"));
    nodes.propose_until(leader, "b", SOON);
}

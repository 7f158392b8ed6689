//! The holder of a floating address stops: softly, which is a planned move, or at once.

use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use cluster_tests::{Client, Signal, eventually, kill, line, until};

use super::{Netns, forwarded_by, inside};

const SOON: Duration = Duration::from_secs(15);

/// A connection that talks; the server begins.
fn talk(addr: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut stream = BufReader::new(stream);
    line(&mut stream).unwrap();
    stream
}

fn echoes(stream: &mut BufReader<TcpStream>, text: &str) {
    stream.get_mut().write_all(format!("{text}\n").as_bytes()).unwrap();
    assert!(line(stream).unwrap().contains(text));
}

fn log(netns: &Netns, node: &str) -> String {
    std::fs::read_to_string(netns.cluster.dir().join(format!("{node}.log"))).unwrap()
}

/// All nodes may hold the address; who does.
fn ready(netns: &Netns) -> String {
    until("all nodes are fit", SOON, || netns.cluster.all_fit("n1"));
    netns.cluster.wait_for_holder(SOON)
}

/// Who holds the address, as those other than `node` see it, when it is another.
fn successor(netns: &Netns, node: &str) -> String {
    let asked = netns.cluster.names().into_iter().find(|n| n != node).unwrap();
    eventually("another holds it", SOON, || {
        let shown = netns.cluster.api(&asked, "show vip json");
        let shown: serde_json::Value = serde_json::from_str(shown.trim()).unwrap_or_default();
        let holder = shown["vips"][0]["holder"].as_str()?.to_owned();
        (holder != node).then_some(holder)
    })
}

#[test]
fn a_soft_stop_of_the_holder_is_a_planned_move() {
    let Some(netns) = Netns::up() else { return };
    let holder = ready(&netns);
    let (http, tcp) = (netns.vip(8080), netns.vip(9000));
    let pid = netns.cluster.status().node(&holder).pid.unwrap();
    inside(&netns.client(), || {
        let mut stream = talk(&tcp);
        echoes(&mut stream, "before");

        kill(pid, Signal::SIGUSR1);
        let next = successor(&netns, &holder);
        for i in 0..20 {
            echoes(&mut stream, &format!("after {i}"));
            std::thread::sleep(Duration::from_millis(25));
        }
        let status = netns.cluster.status();
        let expected = status.node(&next).http.clone().unwrap();
        until("new connections go to the next holder", SOON, || {
            let asked = Client::with_limit(&http, Duration::from_secs(1)).and_then(|mut c| c.get("/", &[]));
            asked.is_ok_and(|r| expected.starts_with(&format!("{}:", forwarded_by(&r))))
        });
        assert_eq!(netns.cluster.status().node(&holder).pid, Some(pid), "it waits for its session");
        echoes(&mut stream, "the last");
        drop(stream);
        until("it ends with its last session", SOON, || {
            netns.cluster.status().node(&holder).pid != Some(pid)
        });
        let said = log(&netns, &holder);
        assert!(said.contains(&format!("planned move to {next}, for the node stops")), "{said}");
    });
}

#[test]
fn what_nobody_else_can_take_is_given_up_at_a_soft_stop() {
    let Some(netns) = Netns::up() else { return };
    let holder = ready(&netns);
    let others: Vec<String> = netns.cluster.names().into_iter().filter(|n| *n != holder).collect();
    for other in &others {
        let answer = netns.cluster.api(&holder, &format!("maintenance node {other} on"));
        assert!(answer.contains("is in maintenance"), "{answer}");
    }
    let vip = netns.vip(8080);
    let vip = vip.split(':').next().unwrap();
    let pid = netns.cluster.status().node(&holder).pid.unwrap();
    // A session that keeps the process.
    let mut stream = talk(&netns.cluster.at(&holder, 9000));
    echoes(&mut stream, "before");
    kill(pid, Signal::SIGUSR1);
    let space = netns.client().replace("client", &holder);
    until("the address is off", SOON, || {
        let out =
            std::process::Command::new("ip").args(["-n", &space, "addr", "show", "dev", "eth0"]).output();
        !String::from_utf8_lossy(&out.unwrap().stdout).contains(&format!("{vip}/"))
    });
    echoes(&mut stream, "after");
    let said = log(&netns, &holder);
    assert!(said.contains("given up, for the node stops: no other node is eligible"), "{said}");
}

#[test]
fn a_holder_that_stops_at_once_hands_over_and_answers_what_is_under_way() {
    let Some(netns) = Netns::up() else { return };
    let holder = ready(&netns);
    let http = netns.vip(8080);
    let pid = netns.cluster.status().node(&holder).pid.unwrap();
    inside(&netns.client(), || {
        let mut client = Client::with_limit(&http, Duration::from_secs(3)).unwrap();
        let expected = netns.cluster.status().node(&holder).http.clone().unwrap();
        assert!(expected.starts_with(&format!("{}:", forwarded_by(&client.get("/", &[]).unwrap()))));
        let busy = || {
            let shown = netns.cluster.api(&holder, "show stat");
            let line = shown.lines().find(|l| l.starts_with("webservers,BACKEND,")).unwrap_or_default();
            line.split(',').nth(4).is_some_and(|current| current != "0")
        };
        until("the last request has been answered", SOON, || !busy());
        client.send(format!("GET /slow?ms=500 HTTP/1.1\r\nHost: {http}\r\n\r\n").as_bytes()).unwrap();
        until("a request is under way", SOON, busy);
        kill(pid, Signal::SIGTERM);
        let answer = client.response(false);
        assert!(answer.as_ref().is_ok_and(|r| r.status == 200), "{answer:?}");
        let next = successor(&netns, &holder);
        let moves = netns.cluster.api(&next, "show vip");
        assert!(moves.contains(&format!("{holder} moved it to {next}")), "{moves}");
        until("it serves", SOON, || {
            Client::with_limit(&http, Duration::from_secs(1))
                .and_then(|mut c| c.get("/", &[]))
                .is_ok_and(|r| r.status == 200)
        });
    });
}

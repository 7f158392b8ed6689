//! A reload in the same process: connections, queue, counters and entries live on.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use cluster_tests::{Base, Client, Demo, EndOnDrop, Load, Node, Signal, line, summary, until};

use crate::configurations::{CHAT, WEB, connect, connect_first, moved, web_servers};

/// The ways to ask for a reload.
#[derive(Clone, Copy, Debug)]
enum Way {
    Hup,
    Usr2,
    RuntimeApi,
}

fn reload(node: &Node, way: Way) -> String {
    match way {
        Way::Hup => node.signal(Signal::SIGHUP),
        Way::Usr2 => node.signal(Signal::SIGUSR2),
        Way::RuntimeApi => return node.api("reload"),
    }
    String::new()
}

fn echoes(stream: &mut BufReader<TcpStream>, text: &str) {
    stream.get_mut().write_all(format!("{text}\n").as_bytes()).unwrap();
    assert_eq!(line(stream).unwrap(), text);
}

/// The story of the reload, by one way to ask for it.
fn story(way: Way) {
    let base = Base::free();
    let echo: Vec<_> = ["nc1", "nc2", "nc3"].into_iter().zip((9001..).map(|p| base.at(1, p))).collect();
    let _servers = Demo::start(&[], &echo);
    let chat = base.at(1, 9000);
    let text = moved(CHAT, &base);
    let mut node = Node::start(&text, "DIR/sock");
    let pid = node.pid();

    // Two connections are up.
    let mut one = connect_first(&chat);
    let first = line(&mut one).unwrap();
    let mut two = connect(&chat);
    line(&mut two).unwrap();
    let counted = node.api("show stat");

    // A file with errors changes nothing and says why.
    node.rewrite(&text.replace("balance leastconn", "balance leastcon"));
    let said = reload(&node, way);
    until("the reason is told", Duration::from_secs(5), || {
        let all = format!("{said}{}", node.output());
        all.contains("leastcon") && all.contains("phalanx.cfg:11]")
    });
    assert!(node.runs());
    echoes(&mut one, "after the bad file");
    assert!(!node.api("show servers state chat").contains("nc3"));

    // A third server is added.
    node.rewrite(&format!("{text}    server nc3 {} check maxconn 1\n", base.at(1, 9003)));
    reload(&node, way);
    until("the new server is there", Duration::from_secs(5), || {
        node.api("show servers state chat").contains(" nc3 ")
    });
    assert_eq!(node.pid(), pid);
    assert!(node.runs());

    // The old connections still carry data; a third client gets the new server.
    echoes(&mut one, "one lives");
    echoes(&mut two, "two lives");
    let mut three = connect(&chat);
    assert_eq!(line(&mut three).unwrap(), "nc3 ready");
    echoes(&mut three, "three");

    // A fourth waits in the queue until one leaves.
    let mut four = connect(&chat);
    four.get_ref().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(line(&mut four).is_err(), "all are full");
    four.get_ref().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    drop(one);
    assert_eq!(line(&mut four).unwrap(), first);
    echoes(&mut four, "four");
    echoes(&mut two, "two still lives");

    // Counters went on counting.
    let total = |csv: &str| -> u64 {
        let row = csv.lines().find(|l| l.starts_with("chat,BACKEND,")).unwrap_or_else(|| panic!("{csv}"));
        row.split(',').nth(7).unwrap().parse().unwrap()
    };
    assert_eq!(total(&counted), 2);
    assert_eq!(total(&node.api("show stat")), 4);
}

#[test]
fn by_sighup() {
    story(Way::Hup);
}

#[test]
fn by_sigusr2() {
    story(Way::Usr2);
}

#[test]
fn by_the_runtime_api() {
    story(Way::RuntimeApi);
}

/// Reloads under load, each with another server less or more, refuse and cut nothing: neither kept
/// connections nor new ones.
#[test]
fn nothing_is_refused_or_cut_under_load() {
    let base = Base::free();
    let _servers = web_servers(&base);
    let web = base.at(1, 8080);
    let full = moved(WEB, &base);
    let without = full.lines().filter(|l| !l.contains("server s3 ")).collect::<Vec<_>>().join("\n") + "\n";
    let node = Node::start(&full, &web);
    let api = base.at(1, 9999);
    let kept = Load::start(&web, "/", 2, Duration::from_secs(10));
    let (stop, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let fresh = thread::scope(|scope| {
        let fresh = scope.spawn(|| {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                match Client::connect(&web).and_then(|mut c| c.get("/", &[])) {
                    Ok(response) if response.status == 200 => done += 1,
                    other => {
                        println!("{other:?}");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            done
        });
        let end = EndOnDrop(&stop);
        let mut rounds = 0..;
        while rounds.start < 6 || kept.elapsed() < Duration::from_secs(3) {
            let round = rounds.next().unwrap_or_default();
            let (text, has_s3) = if round % 2 == 0 { (&without, false) } else { (&full, true) };
            node.rewrite(text);
            node.signal(Signal::SIGUSR2);
            until("it is applied", Duration::from_secs(10), || {
                cluster_tests::api(&api, "show servers state webservers").contains(" s3 ") == has_s3
            });
        }
        drop(end);
        fresh.join().unwrap()
    });
    let outcomes = kept.finish();
    println!("kept {}, fresh {fresh}", summary(&outcomes));
    assert!(fresh > 20 && outcomes.len() > 20, "there was load");
    assert_eq!(refused.into_inner(), 0);
    assert!(outcomes.iter().all(|o| o.result == Ok(200)), "{}", summary(&outcomes));
}

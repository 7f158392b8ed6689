//! Workers do not wait for each other: what two of them ask of the kernel while both forward.
//!
//! Counted and not timed, so that it holds on a loaded machine: whoever waits for a lock that another
//! holds ends in `futex`, or gives up its time in `sched_yield`. A lock that is never contended costs no
//! call and is not seen here; the machine needs two processors to see anything.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use cluster_tests::{Base, Client, Demo, Node, Signal, eventually, kill};

const CONFIG: &str = "\
global
    nbthread 2
    stats socket DIR/sock level admin
defaults
    mode http
    option httplog
    option forwardfor
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend web
    bind WEB
    log LOG local0
    acl known hdr(x-user),map(DIR/users.map) -m found
    http-request track-sc0 hdr(x-user) table users
    http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000 }
    http-request deny unless known
    http-request set-header x-group %[hdr(x-user),map(DIR/users.map,none)]
    default_backend app
backend app
    balance leastconn
    cookie SRV insert indirect
    server w1 W1 cookie w1
    server w2 W2 cookie w2
backend users
    stick-table type string len 32 size 100k expire 1m store http_req_rate(10s),conn_cnt
";

const CLIENTS: usize = 16;
const REQUESTS: usize = 125;

/// Threads of a process by name.
fn workers(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let named = |dir: &Path| fs::read_to_string(dir.join("comm")).unwrap_or_default();
    let tasks = tasks.filter(|task| named(&task.path()).starts_with("worker-"));
    tasks.map(|task| task.file_name().into_string().unwrap()).collect()
}

#[test]
fn workers_do_not_wait_for_each_other() {
    if cluster_tests::bench::find("strace").is_none() {
        eprintln!("not run: there is no strace");
        return;
    }
    let base = Base::free();
    let web: Vec<_> = ["w1", "w2"].into_iter().zip((9001..).map(|port| base.at(1, port))).collect();
    let _servers = Demo::start(&web, &[]);
    let addr = base.at(1, 9000);
    // Never read: what the kernel has no room for, it drops.
    let log = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let config = CONFIG
        .replace("WEB", &addr)
        .replace("LOG", &log.local_addr().unwrap().to_string())
        .replace("W1", &web[0].1)
        .replace("W2", &web[1].1);
    let node = Node::start_with(&config, "DIR/sock", |dir| {
        let users: String = (0..CLIENTS).map(|n| format!("user-{n} group-{}\n", n % 3)).collect();
        fs::write(dir.join("users.map"), users)
    });
    // The API answers before the last worker has given itself its name.
    let workers = eventually("two workers", Duration::from_secs(10), || {
        Some(workers(node.pid())).filter(|found| found.len() == 2)
    });
    // Until the connections to the servers are there.
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(&addr).unwrap()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        ask(client, n, 10);
    }

    let trace = node.dir().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-e", "trace=futex,sched_yield,recvfrom", "-o"]).arg(&trace);
    for tid in &workers {
        strace.args(["-p", tid]);
    }
    let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
    for _ in &workers {
        let line = said.next().expect("strace says what it does").unwrap();
        assert!(line.contains("attached"), "{line}");
    }
    thread::scope(|scope| {
        for (n, client) in clients.iter_mut().enumerate() {
            scope.spawn(move || ask(client, n, REQUESTS));
        }
    });
    kill(strace.id(), Signal::SIGINT);
    eventually("strace ends", Duration::from_secs(10), || strace.try_wait().unwrap());

    // Each line begins with the thread and the call.
    let mut calls: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(&trace).unwrap().lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(call)) = (words.next(), words.next()) else { continue };
        let call = call.split('(').next().unwrap_or_default();
        *calls.entry((thread.to_owned(), call.to_owned())).or_default() += 1;
    }
    let count = |of: &[&str]| -> usize {
        calls.iter().filter(|((_, call), _)| of.contains(&call.as_str())).map(|(_, n)| n).sum()
    };
    println!("{} requests: {calls:?}", CLIENTS * REQUESTS);
    assert!(count(&["recvfrom"]) >= CLIENTS * REQUESTS, "it was seen what they did: {calls:?}");
    let waited = count(&["futex", "sched_yield"]);
    assert!(waited * 200 <= CLIENTS * REQUESTS, "more than five waits in a thousand requests: {calls:?}");
}

fn ask(client: &mut Client, n: usize, times: usize) {
    for _ in 0..times {
        let response = client.get("/", &[("x-user", &format!("user-{n}"))]).unwrap();
        assert_eq!(response.status, 200);
    }
}

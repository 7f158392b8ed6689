//! Servers that are found by DNS: both programs ask the same name server, and have to end with the
//! same servers after every change of what it answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cluster_tests::{Dns, Zone};

use crate::side::{BOTH, Kind, Side, haproxy};

const CONFIG: &str = "\
global
    stats socket DIR/sock level admin
resolvers dns
    nameserver ns1 NAMESERVER
    timeout resolve 200ms
    timeout retry 200ms
    hold nx 1s
    hold timeout 1s
    hold other 1s
    hold refused 1s
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend fe
    bind 127.0.0.1:20000
    default_backend web
backend web
    balance roundrobin
    server-template w 3 web.test:80 resolvers dns init-addr none
backend srv
    balance roundrobin
    server-template s 2-5 _http._tcp.web.test resolvers dns init-addr none resolve-prefer ipv4
backend plain
    balance roundrobin
    server-template s 2 _http._tcp.web.test resolvers dns init-addr none resolve-opts ignore-weight resolve-prefer ipv4 weight 9
backend one
    balance roundrobin
    default-server resolvers dns init-addr none
    server x one.test:81
    server y one.test:81 resolve-opts allow-dup-ip
    server z one.test:81
backend net
    balance roundrobin
    server n net.test:82 resolvers dns init-addr none resolve-net 10.9.2.0/24 resolve-prefer ipv4
backend six
    balance roundrobin
    server s six.test:83 resolvers dns init-addr none
    server f six.test:83 resolvers dns init-addr none resolve-prefer ipv4
backend init
    balance roundrobin
    server i init.test:84 resolvers dns init-addr 10.9.0.99
    server j gone.test:84 resolvers dns init-addr last,none
";

/// What the name server says from now on, and the servers that there are to be: backend, address,
/// operational and administrative state, weight, name, port and SRV label of each. Which server of a
/// backend has which address is not said by the manual.
type Step = (&'static [(&'static str, &'static str)], &'static str);

const STEPS: &[Step] = &[
    (
        &[
            ("web.test", "10.9.0.1 10.9.0.2"),
            ("_http._tcp.web.test", "srv 10:8001:a.web.test 512:8002:b.web.test"),
            ("a.web.test", "10.9.0.11"),
            ("b.web.test", "10.9.0.12"),
            ("one.test", "10.9.0.5"),
            ("net.test", "10.8.0.1 10.9.2.2 10.8.0.3"),
            ("six.test", "10.9.0.6 fd00::6"),
            ("init.test", "10.9.0.9"),
        ],
        "\
init - 0 32 1 gone.test 84 -
init 10.9.0.9 2 0 1 init.test 84 -
net 10.9.2.2 2 0 1 net.test 82 -
one - 0 32 1 one.test 81 -
one 10.9.0.5 2 0 1 one.test 81 -
one 10.9.0.5 2 0 1 one.test 81 -
plain 10.9.0.11 2 64 9 a.web.test 8001 _http._tcp.web.test
plain 10.9.0.12 2 64 9 b.web.test 8002 _http._tcp.web.test
six 10.9.0.6 2 0 1 six.test 83 -
six fd00::6 2 0 1 six.test 83 -
srv - 0 32 1 - 0 _http._tcp.web.test
srv - 0 32 1 - 0 _http._tcp.web.test
srv 10.9.0.11 2 64 1 a.web.test 8001 _http._tcp.web.test
srv 10.9.0.12 2 64 2 b.web.test 8002 _http._tcp.web.test
web - 0 32 1 web.test 80 -
web 10.9.0.1 2 0 1 web.test 80 -
web 10.9.0.2 2 0 1 web.test 80 -
",
    ),
    (
        // One goes, others come; a weight changes, a target moves, another has no address.
        &[
            ("web.test", "10.9.0.2 10.9.0.3 10.9.0.4"),
            ("_http._tcp.web.test", "srv 257:8002:b.web.test 65535:8004:d.web.test 0:8005:e.web.test"),
            ("b.web.test", "10.9.0.22"),
            ("d.web.test", "10.9.0.14"),
        ],
        "\
init - 0 32 1 gone.test 84 -
init 10.9.0.9 2 0 1 init.test 84 -
net 10.9.2.2 2 0 1 net.test 82 -
one - 0 32 1 one.test 81 -
one 10.9.0.5 2 0 1 one.test 81 -
one 10.9.0.5 2 0 1 one.test 81 -
six 10.9.0.6 2 0 1 six.test 83 -
six fd00::6 2 0 1 six.test 83 -
srv 10.9.0.14 2 64 256 d.web.test 8004 _http._tcp.web.test
srv 10.9.0.22 2 64 2 b.web.test 8002 _http._tcp.web.test
web 10.9.0.2 2 0 1 web.test 80 -
web 10.9.0.3 2 0 1 web.test 80 -
web 10.9.0.4 2 0 1 web.test 80 -
",
    ),
    (
        // Every way to fail.
        &[
            ("web.test", "error 3"),
            ("_http._tcp.web.test", "silent"),
            ("a.web.test", "silent"),
            ("b.web.test", "silent"),
            ("d.web.test", "silent"),
            ("one.test", "error 2"),
            ("net.test", "error 5"),
            ("six.test", ""),
        ],
        "\
init - 0 32 1 gone.test 84 -
init 10.9.0.9 2 0 1 init.test 84 -
net - 0 32 1 net.test 82 -
one - 0 32 1 one.test 81 -
one - 0 32 1 one.test 81 -
one - 0 32 1 one.test 81 -
six - 0 32 1 six.test 83 -
six - 0 32 1 six.test 83 -
web - 0 32 1 web.test 80 -
web - 0 32 1 web.test 80 -
web - 0 32 1 web.test 80 -
",
    ),
    (
        &[
            ("web.test", "10.9.0.2"),
            ("_http._tcp.web.test", "srv 10:8001:a.web.test"),
            ("a.web.test", "10.9.0.11"),
            ("one.test", "10.9.0.5 10.9.0.55"),
            ("net.test", "10.8.0.1"),
            ("six.test", "10.9.0.6"),
            ("gone.test", "10.9.0.77"),
        ],
        "\
init 10.9.0.77 2 0 1 gone.test 84 -
init 10.9.0.9 2 0 1 init.test 84 -
net 10.8.0.1 2 0 1 net.test 82 -
six 10.9.0.6 2 0 1 six.test 83 -
six 10.9.0.6 2 0 1 six.test 83 -
web - 0 32 1 web.test 80 -
web - 0 32 1 web.test 80 -
web 10.9.0.2 2 0 1 web.test 80 -
",
    ),
];

fn zone(text: &str) -> Zone {
    match text.split_once(' ').unwrap_or((text, "")) {
        ("srv", rest) => Zone::srv(rest),
        ("error", code) => Zone::Error(code.parse().expect("a code")),
        ("silent", _) => Zone::Silent,
        _ => Zone::ips(text),
    }
}

fn ask(side: &Side, command: &str) -> String {
    let mut stream = UnixStream::connect(side.socket()).expect("the Runtime API answers");
    stream.write_all(format!("{command}\n").as_bytes()).expect("it takes commands");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// The servers of the backends that `expected` speaks of, sorted.
fn servers(side: &Side, expected: &str) -> String {
    let backends: Vec<&str> = expected.lines().filter_map(|l| l.split(' ').next()).collect();
    let state = ask(side, "show servers state");
    let mut rows: Vec<String> = Vec::new();
    for line in state.lines().filter(|l| !l.starts_with('#')) {
        let cells: Vec<&str> = line.split(' ').collect();
        if cells.len() < 20 || !backends.contains(&cells[1]) {
            continue;
        }
        let row = [1, 4, 5, 6, 7, 17, 18, 19].map(|n| cells[n]);
        rows.push(row.join(" "));
    }
    // What HAProxy remembers of servers that stand for nothing any more is of no use to anybody: they
    // are not compared where an SRV label has answered before.
    let leaves_traces = !expected.contains("srv - ");
    rows.retain(|row| !(leaves_traces && row.starts_with("srv - ")));
    rows.sort();
    rows.join("\n") + "\n"
}

#[test]
fn both_find_the_same_servers_by_dns() {
    if haproxy().is_none() {
        return;
    }
    let dns = Dns::start();
    let config = CONFIG.replace("NAMESERVER", &dns.addr());
    let mut sides: Option<[Side; 2]> = None;
    for (n, (names, expected)) in STEPS.iter().enumerate() {
        names.iter().for_each(|(name, text)| dns.set(name, zone(text)));
        // The name server is there before those who ask it.
        let sides = sides.get_or_insert_with(|| {
            BOTH.map(|kind| {
                let mut side = Side::new(kind);
                side.run(&config);
                side
            })
        });
        for side in sides {
            let end = Instant::now() + Duration::from_secs(20);
            let mut seen = String::new();
            while Instant::now() < end && seen != *expected {
                seen = servers(side, expected);
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(seen, *expected, "{:?} after step {n}:\n{}", side.kind, side.output());
        }
    }
    // The counters have the same names in the same order.
    let [haproxy, phalanx] = sides.expect("there are steps").map(|side| {
        let text = ask(&side, "show resolvers dns");
        let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
        (side.kind, text.lines().map(name).collect::<Vec<_>>())
    });
    assert_eq!((haproxy.0, phalanx.0), (Kind::HAProxy, Kind::Phalanx));
    assert_eq!(haproxy.1, phalanx.1);
}

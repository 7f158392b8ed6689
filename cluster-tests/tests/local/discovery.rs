//! Servers that are found at run time: one node reads Consul or DNS, all nodes see one list, and an
//! outage changes nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cluster_tests::{
    Base, Client, Cluster, Consul, Dns, Fault, Load, Node, Signal, Zone, kill, summary, until,
};
use serde_json::Value;

/// Three nodes; `SECTION` and `TEMPLATE` are the test's own.
const CLUSTER: &str = r#"
global
    stats socket "ipv4@${NODE_ADDR}:9999" level admin
    stats socket "${CLUSTER_DIR}/${NODE}.sock" mode 600 level admin
cluster local
    node n1 "${N1_ADDR}:7100"
    node n2 "${N2_ADDR}:7100"
    node n3 "${N3_ADDR}:7100"
    data-dir "${CLUSTER_DIR}/data/${NODE}"
SECTION
defaults
    mode http
    option redispatch
    timeout connect 2s
    timeout client  10s
    timeout server  10s
frontend web
    bind "${NODE_ADDR}:8080"
    default_backend app
backend app
    balance roundrobin
    TEMPLATE
"#;

const SOON: Duration = Duration::from_secs(15);

fn cluster(section: &str, template: &str) -> Cluster {
    Cluster::builder().config(CLUSTER.replace("SECTION", section).replace("TEMPLATE", template)).up()
}

/// Id, name, address, administrative state, weight and port of each server, as a node has them.
fn servers(state: &str) -> Vec<String> {
    let rows = state.lines().filter(|l| l.split(' ').count() > 20 && !l.starts_with('#'));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(' ').collect();
        [3, 4, 6, 7, 18].map(|n| cells[n]).join(" ")
    };
    rows.map(row).collect()
}

fn list(cluster: &Cluster, node: &str) -> Vec<String> {
    servers(&cluster.api(node, "show servers state app"))
}

/// Waits until every node that runs has exactly this list.
fn all_have(cluster: &Cluster, what: &str, expected: &[String]) {
    for node in running(cluster) {
        let mut seen = Vec::new();
        let end = Instant::now() + SOON;
        while Instant::now() < end && seen != expected {
            seen = list(cluster, &node);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(seen, expected, "{what} on {node}:\n{}", cluster.api(&node, "show discovery"));
    }
}

fn running(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.status().nodes;
    nodes.into_iter().filter(|n| n.state == "running").map(|n| n.name).collect()
}

/// What the node says of its first source.
fn discovery(cluster: &Cluster, node: &str) -> (Option<String>, Value) {
    source(&cluster.api(node, "show discovery json"))
}

fn source(answer: &str) -> (Option<String>, Value) {
    let all: Value = serde_json::from_str(answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
    (all["reader"].as_str().map(str::to_owned), all["sources"][0].clone())
}

fn reader(cluster: &Cluster) -> Option<String> {
    let names: BTreeSet<Option<String>> =
        running(cluster).iter().map(|node| discovery(cluster, node).0).collect();
    if names.len() == 1 { names.into_iter().next().flatten() } else { None }
}

/// `name ip state weight port` of a server that is there.
fn up(name: &str, addr: &str, weight: u32) -> String {
    let (ip, port) = addr.rsplit_once(':').unwrap();
    format!("{name} {ip} 0 {weight} {port}")
}

fn empty(name: &str) -> String {
    format!("{name} - 32 1 0")
}

/// Demo servers that answer on a node.
fn reached(cluster: &Cluster, node: &str) -> BTreeSet<String> {
    let mut client = Client::connect(&cluster.at(node, 8080)).unwrap();
    let names = (0..8).filter_map(|_| {
        let response = client.get("/", &[]).ok()?;
        (response.status == 200).then(|| response.server().to_owned())
    });
    names.collect()
}

fn consul_section(consul: &Consul) -> String {
    format!(
        "consul c\n    address http://{}\n    timeout connect 1s\n    wait 20s\n    hold empty 1s\n",
        consul.addr()
    )
}

#[test]
fn all_nodes_follow_consul_while_servers_and_readers_come_and_go() {
    let mut consul = Consul::start();
    let cluster = cluster(&consul_section(&consul), "server-template app 4 consul(c)/web?tag=v2");
    let at = |n: u16| cluster.base().at(1, 9800 + n);
    all_have(
        &cluster,
        "nothing is registered",
        &[empty("app1"), empty("app2"), empty("app3"), empty("app4")],
    );

    consul.register("w1", "web", &at(1), &["v2"], 1);
    consul.register("old", "web", &at(3), &["v1"], 1);
    all_have(&cluster, "one", &[up("app1", &at(1), 1), empty("app2"), empty("app3"), empty("app4")]);
    consul.register("w2", "web", &at(2), &["v2", "blue"], 5);
    let two = [up("app1", &at(1), 1), up("app2", &at(2), 5), empty("app3"), empty("app4")];
    all_have(&cluster, "two", &two);
    for node in cluster.names() {
        until("both serve", SOON, || reached(&cluster, &node).len() == 2);
    }

    // Up and down under load: nobody sees an error.
    let load: Vec<Load> = cluster
        .names()
        .iter()
        .map(|node| Load::start(&cluster.at(node, 8080), "/", 2, Duration::from_secs(5)))
        .collect();
    consul.register("w3", "web", &at(3), &["v2"], 1);
    let three = [up("app1", &at(1), 1), up("app2", &at(2), 5), up("app3", &at(3), 1), empty("app4")];
    all_have(&cluster, "three", &three);
    consul.check("w1", "fail");
    let without = [empty("app1"), up("app2", &at(2), 5), up("app3", &at(3), 1), empty("app4")];
    all_have(&cluster, "without the failed one", &without);
    consul.check("w1", "pass");
    all_have(&cluster, "it is back where it was", &three);
    consul.deregister("w2");
    let gap = [up("app1", &at(1), 1), empty("app2"), up("app3", &at(3), 1), empty("app4")];
    all_have(&cluster, "the others keep their servers", &gap);
    for load in load {
        let outcomes = load.finish();
        assert!(outcomes.len() > 50, "{}", summary(&outcomes));
        assert!(outcomes.iter().all(|o| o.result == Ok(200)), "{}", summary(&outcomes));
    }

    // What commands say of a server stays with it.
    cluster.api("n2", "set server app/app3 state maint");
    let maint = [
        up("app1", &at(1), 1),
        empty("app2"),
        format!("app3 {} 1 1 9803", cluster.base().ip(1)),
        empty("app4"),
    ];
    all_have(&cluster, "in maintenance", &maint);
    cluster.api("n3", "set server app/app3 state ready");
    all_have(&cluster, "ready again", &gap);
    let refused = cluster.api("n1", "set server app/app3 addr 127.0.0.1 port 1");
    assert!(refused.contains("is found at run time"), "{refused}");

    // Consul dies, then its reader: everybody keeps the list.
    let first = reader(&cluster).expect("all agree who reads");
    consul.stop();
    until("the reader notices", SOON, || discovery(&cluster, &first).1["read_here"]["error"].is_string());
    cluster.must(&["kill", &first]);
    until("another node reads", SOON, || reader(&cluster).is_some_and(|now| now != first));
    let second = reader(&cluster).unwrap();
    until("and finds no Consul", SOON, || discovery(&cluster, &second).1["read_here"]["error"].is_string());
    all_have(&cluster, "during the outage", &gap);
    assert_eq!(reached(&cluster, &second), BTreeSet::from(["s1".to_owned(), "s3".to_owned()]));

    // All nodes are killed at once, Consul is still away: the list is there.
    for node in cluster.status().nodes.iter().filter_map(|n| n.pid) {
        kill(node, Signal::SIGKILL);
    }
    until("all are gone", SOON, || cluster.status().nodes.iter().all(|n| n.state == "stopped"));
    cluster.must(&["start", "n1", "n2", "n3"]);
    for node in ["n1", "n2", "n3"] {
        cluster.wait_running(node);
    }
    all_have(&cluster, "after the restart of all", &gap);

    // An agent that comes back empty is not believed at once, and followed when it knows again.
    consul.restart();
    consul.register("w1", "web", &at(1), &["v2"], 1);
    consul.register("w2", "web", &at(2), &["v2"], 2);
    consul.register("w3", "web", &at(3), &["v2"], 1);
    let again = [up("app1", &at(1), 1), up("app2", &at(2), 2), up("app3", &at(3), 1), empty("app4")];
    all_have(&cluster, "Consul is back", &again);
    consul.deregister("w1");
    consul.deregister("w2");
    consul.deregister("w3");
    all_have(&cluster, "nothing is left", &[empty("app1"), empty("app2"), empty("app3"), empty("app4")]);
}

#[test]
fn all_nodes_follow_dns() {
    let dns = Dns::start();
    dns.set("app.test", Zone::Error(3));
    let section = format!(
        "resolvers dns\n    nameserver ns1 {}\n    timeout resolve 200ms\n    timeout retry 200ms\n    hold nx 1s\n",
        dns.addr()
    );
    let cluster = cluster(
        &section,
        "server-template app 3 app.test:9801 resolvers dns init-addr none resolve-prefer ipv4",
    );
    let none = |name: &str| format!("{name} - 32 1 9801");
    all_have(&cluster, "the name is not there", &[none("app1"), none("app2"), none("app3")]);
    let (first, second) = (cluster.base().ip(1), cluster.base().ip(9));
    dns.set("app.test", Zone::ips(&format!("{first} {second}")));
    let two = [format!("app1 {first} 0 1 9801"), format!("app2 {second} 0 1 9801"), none("app3")];
    all_have(&cluster, "two addresses", &two);
    dns.set("app.test", Zone::Long(vec![second.parse().unwrap()]));
    let one = [none("app1"), format!("app2 {second} 0 1 9801"), none("app3")];
    all_have(&cluster, "an answer that needs TCP", &one);
    // Without an answer what was known holds; without the name it does not.
    dns.set("app.test", Zone::Silent);
    let old = reader(&cluster).expect("all agree who reads");
    until("silence is noticed", SOON, || discovery(&cluster, &old).1["read_here"]["error"].is_string());
    all_have(&cluster, "silence", &one);
    cluster.must(&["kill", &old]);
    until("another node reads", SOON, || reader(&cluster).is_some_and(|now| now != old));
    all_have(&cluster, "silence, and another reader", &one);
    dns.set("app.test", Zone::Error(3));
    all_have(&cluster, "the name is gone", &[none("app1"), none("app2"), none("app3")]);
}

/// A configuration of one node by itself.
fn alone(base: &Base, section: &str, template: &str) -> String {
    let bind = base.at(1, 8080);
    format!(
        "global\n    stats socket DIR/sock level admin\n{section}\ndefaults\n    mode http\n    timeout connect 1s\n    \
         timeout client 1s\n    timeout server 1s\nbackend app\n    balance roundrobin\n    {template}\nfrontend web\n    \
         bind {bind}\n    default_backend app\n"
    )
}

fn until_servers(node: &Node, what: &str, expected: &[String]) {
    let end = Instant::now() + SOON;
    let mut seen = Vec::new();
    while Instant::now() < end && seen != expected {
        seen = servers(&node.api("show servers state app"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(seen, expected, "{what}:\n{}\n{}", node.api("show discovery"), node.output());
}

#[test]
fn no_fault_of_consul_costs_the_list() {
    let mut consul = Consul::fake();
    consul.need_token("s3cr3t");
    let section = consul_section(&consul).replace("wait 20s", "wait 2s\n    token-file DIR/token");
    let template = "server-template app 2 consul(c)/web resolve-opts ignore-weight weight 7";
    let config_token = |node: &Node, text: &str| std::fs::write(node.dir().join("token"), text).unwrap();
    let base = Base::free();
    let node = Node::start(&alone(&base, &section, template), "DIR/sock");
    let nowhere = |name: &str| format!("{name} - 32 7 0");
    let error = || source(&node.api("show discovery json")).1["read_here"]["error"].clone();
    let fails = |part: &str| {
        until(&format!("an error with '{part}'"), SOON, || {
            error().as_str().is_some_and(|e| e.contains(part))
        });
    };
    consul.register("w1", "web", "127.0.0.1:81", &[], 1);
    fails("token-file");
    config_token(&node, "wrong\n");
    fails("403");
    until_servers(&node, "without the token", &[nowhere("app1"), nowhere("app2")]);
    config_token(&node, "s3cr3t\n");
    let one = ["app1 127.0.0.1 0 7 81".to_owned(), nowhere("app2")];
    until_servers(&node, "with the token", &one);

    for (fault, part) in [
        (Fault::Error, "500"),
        (Fault::Garbage, "not what Consul sends"),
        (Fault::Filtered, "may not read"),
        (Fault::Half, ""),
        (Fault::Hang, "no answer"),
    ] {
        consul.fault(fault);
        fails(part);
        assert_eq!(servers(&node.api("show servers state app")), one, "{fault:?}");
        consul.fault(Fault::None);
        until(&format!("{fault:?} is over"), SOON, || error().is_null());
    }
    consul.fault(Fault::Slow(700));
    consul.register("w2", "web", "127.0.0.1:82", &[], 1);
    let two = ["app1 127.0.0.1 0 7 81".to_owned(), "app2 127.0.0.1 0 7 82".to_owned()];
    until_servers(&node, "a slow answer is one", &two);
    consul.fault(Fault::None);

    // A restart loses what was registered, and the index falls.
    let before = consul.queries().len();
    consul.restart();
    fails("");
    consul.register("w1", "web", "127.0.0.1:81", &[], 1);
    consul.register("w2", "web", "127.0.0.1:83", &[], 1);
    let moved = ["app1 127.0.0.1 0 7 81".to_owned(), "app2 127.0.0.1 0 7 83".to_owned()];
    until_servers(&node, "after the restart", &moved);
    let queries = consul.queries();
    assert!(queries[before..].iter().any(|q| q.index.is_none()), "asked anew: {:?}", &queries[before..]);
    assert!(queries.iter().all(|q| q.index != Some(0)), "an index of 0 does not block");
    let last = queries.last().unwrap();
    assert!(last.target.starts_with("/v1/health/service/web?passing=1"), "{last:?}");
    assert_eq!(last.token.as_deref(), Some("s3cr3t"));

    // Nothing changes: it blocks, and does not poll.
    let (count, began) = (consul.queries().len(), Instant::now());
    until("two queries have run out", SOON, || consul.queries().len() >= count + 2);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", &consul.queries()[count..]);
    assert!(consul.queries()[count..].iter().all(|q| q.index.is_some()));
    let warnings = node.output().matches("fails").count();
    assert!((1..20).contains(&warnings), "{warnings} warnings:\n{}", node.output());

    // More instances than servers; while Consul is away, a reload makes room for the third.
    consul.register("w3", "web", "127.0.0.1:84", &[], 1);
    let known = || source(&node.api("show discovery json")).1["agreed"]["instances"].as_array().map(Vec::len);
    until("the third is known", SOON, || known() == Some(3));
    assert_eq!(servers(&node.api("show servers state app")), moved);
    consul.stop();
    fails("");
    node.rewrite(&alone(&base, &section, &template.replace("app 2", "app 3")));
    let reloaded = node.api("reload");
    assert!(reloaded.contains("Reload done."), "{reloaded}");
    let three = [moved[0].clone(), moved[1].clone(), "app3 127.0.0.1 0 7 84".to_owned()];
    until_servers(&node, "room for the third", &three);
}

//! Real nodes in one process: own tables, own port, real gRPC between them.

use std::collections::BTreeMap;
use std::net::TcpListener;

use phalanx_engine::stick::{DataType, Key, KeyType, Spec, Table};
use tonic::service::Routes;

use tokio::time::sleep;

use super::*;
use crate::identity::Guard;
use crate::{Node, Settings};

struct Running {
    handle: Handle,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    clock: Clock,
}

fn spec() -> Spec {
    let store = vec![
        DataType::ServerId,
        DataType::Gpc0,
        DataType::HttpReqCnt,
        DataType::HttpReqRate(Duration::from_secs(60)),
    ];
    Spec {
        expire: Some(Duration::from_secs(600)),
        shared: true,
        ..Spec::new(KeyType::String(32), 10_000, &store)
    }
}

fn free_addr() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn nodes(count: usize) -> Vec<Node> {
    let node = |i| Node { name: format!("n{i}"), addr: free_addr(), witness: false };
    (1..=count).map(node).collect()
}

impl Running {
    fn start(nodes: &[Node], name: &str, incarnation: u64, specs: &BTreeMap<String, Spec>) -> Running {
        let settings = Settings {
            name: "test".to_string(),
            node: name.to_string(),
            nodes: nodes.to_vec(),
            incarnation,
            ..Settings::default()
        };
        let clock = Clock::new();
        let (stop, stopped) = watch::channel(false);
        let tables = Tables::new(name, incarnation, incarnation);
        let peers = Peers::new(&settings).unwrap();
        let handle = Handle::new("test", tables.clone(), &peers, clock, stopped.clone());
        tables.apply(specs, handle.0.now());
        let mut tasks = JoinSet::new();
        let routes = Routes::new(handle.service());
        let addr = settings.this().unwrap().addr.clone();
        let guard = Guard::new(&settings);
        tasks.spawn(crate::server::serve(Arc::new(settings), addr, guard, routes, None, stopped));
        tasks.spawn(handle.clone().run());
        Running { handle, stop, tasks, clock }
    }

    fn one(nodes: &[Node], name: &str, incarnation: u64) -> Running {
        Running::start(nodes, name, incarnation, &BTreeMap::from([("t".to_string(), spec())]))
    }

    fn table(&self) -> Arc<Table> {
        self.handle.tables().get("t").unwrap()
    }

    fn now(&self) -> Now {
        let (mono, unix_us) = self.clock.now();
        Now { mono, unix_us }
    }

    fn hit(&self, key: &str, times: u32) {
        let tracked = self.table().track(&Key::Str(key.as_bytes()), self.now()).unwrap();
        (0..times).for_each(|_| tracked.http_req(self.now()));
    }

    fn count(&self, key: &str) -> u64 {
        self.table().value(&Key::Str(key.as_bytes()), "http_req_cnt", self.now()).unwrap_or(0)
    }

    async fn end(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_one_node_sees_the_others_know() {
    let nodes = nodes(3);
    let all: Vec<_> = nodes.iter().map(|n| Running::one(&nodes, &n.name, 1)).collect();
    let client = Key::Str(b"client");
    all[0].table().set_server_id(&client, 7, all[0].now());
    for n in &all {
        until("the stick entry on every node", || n.table().server_id(&client, n.now()) == Some(7)).await;
    }
    all.iter().for_each(|n| n.hit("client", 5));
    for n in &all {
        until("the sum on every node", || n.count("client") == 15).await;
        let rate = n.table().value(&client, "http_req_rate", n.now());
        assert_eq!(rate, Some(15), "rates are summed as well");
    }
    let digest = all[0].table().digest(all[0].now());
    for n in &all {
        // What one node knows may have come by way of another, before all streams are up.
        until("every stream up and everything acknowledged", || {
            n.handle.status().iter().all(|s| s.sync.lag_updates == 0 && s.sync.state == "established")
        })
        .await;
        for s in n.handle.status() {
            assert!(s.bytes_in > 0 && s.bytes_out > 0);
            assert_eq!(s.sync.tables[0].digest, digest);
        }
    }
    all[1].table().clear_key(&client, all[1].now());
    for n in &all {
        until("gone on every node", || n.table().used() == 0).await;
    }
    for n in all {
        n.end().await;
    }
}

#[tokio::test]
async fn a_late_node_is_taught_and_a_restarted_one_gets_its_past_back() {
    let nodes = nodes(3);
    let n1 = Running::one(&nodes, "n1", 1);
    let n2 = Running::one(&nodes, "n2", 1);
    for k in 0..2_000 {
        n1.hit(&format!("key{k}"), 1);
        n2.hit(&format!("key{k}"), 2);
    }
    let n3 = Running::one(&nodes, "n3", 1);
    until("the late node knows all", || {
        (0..2_000).step_by(37).all(|k| n3.count(&format!("key{k}")) == 3) && n3.table().used() == 2_000
    })
    .await;
    n3.hit("key0", 4);
    until("its own count is elsewhere", || n1.count("key0") == 7 && n2.count("key0") == 7).await;
    n1.end().await;
    n2.hit("key0", 1);
    let n1 = Running::one(&nodes, "n1", 2);
    until("the past is back", || n1.count("key0") == 8).await;
    n1.hit("key0", 10);
    for n in [&n1, &n2, &n3] {
        until("it counts on from there", || n.count("key0") == 18).await;
        let parts = n.table().detail(&Key::Str(b"key0"), n.now());
        let by: Vec<_> = parts.iter().map(|p| (&*p.node, p.incarnation, p.values[2])).collect();
        assert_eq!(by, [("n1", 1, 1), ("n1", 2, 10), ("n2", 1, 3), ("n3", 1, 4)]);
    }
    for n in [n1, n2, n3] {
        n.end().await;
    }
}

#[tokio::test]
async fn a_node_that_ends_tells_its_peers_all_that_it_counted() {
    const KEYS: u32 = 3_000;
    let nodes = nodes(3);
    let (n1, n2) = (Running::one(&nodes, "n1", 1), Running::one(&nodes, "n2", 1));
    until("one stream", || n1.handle.peer_counts() == (2, 1)).await;
    // What changes fast is gathered, and a lot of it takes more than one turn. The third was never there.
    (0..KEYS).for_each(|k| n1.hit(&format!("key{k}"), 1));
    assert_eq!(n1.handle.flush(Duration::from_secs(20)).await, [""; 0]);
    let missing = (0..KEYS).filter(|k| n2.count(&format!("key{k}")) != 1).count();
    assert_eq!(missing, 0, "of {KEYS}");
    // Who does not take it is not waited for longer than is allowed, and named.
    let held = n2.handle.0.links.read()["n1"].clone();
    let peer = held.peer.lock();
    n1.hit("late", 1);
    let handle = n1.handle.clone();
    let owed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(handle.flush(Duration::from_millis(100)))
    });
    assert_eq!(owed.join().unwrap(), ["n2"]);
    drop(peer);
    n1.end().await;
    n2.end().await;
}

#[tokio::test]
async fn tables_that_do_not_fit_are_skipped_and_the_rest_goes_on() {
    let nodes = nodes(2);
    let mut specs = BTreeMap::from([("t".to_string(), spec())]);
    specs.insert("other".to_string(), spec());
    specs.insert("typed".to_string(), spec());
    let n1 = Running::start(&nodes, "n1", 1, &specs);
    specs.remove("other");
    specs.insert("typed".to_string(), Spec { key: KeyType::Ip, ..spec() });
    specs.insert("t".to_string(), Spec { store: vec![DataType::HttpReqCnt], ..spec() });
    let n2 = Running::start(&nodes, "n2", 1, &specs);
    for name in ["other", "typed"] {
        let table = n1.handle.tables().get(name).unwrap();
        table.track(&Key::Str(b"x"), n1.now()).unwrap().http_req(n1.now());
    }
    n1.hit("x", 3);
    until("the common data type", || n2.count("x") == 3).await;
    n2.hit("x", 1);
    until("and back", || n1.count("x") == 4).await;
    assert_eq!(n2.handle.tables().get("typed").unwrap().used(), 0);
    // A reload on the second node brings the table: it is taught what it missed.
    let specs = BTreeMap::from([("t".to_string(), spec()), ("other".to_string(), spec())]);
    n2.handle.tables().apply(&specs, n2.now());
    let other = n2.handle.tables().get("other").unwrap();
    until("the new table is taught", || other.value(&Key::Str(b"x"), "http_req_cnt", n2.now()) == Some(1))
        .await;
    until("the wider table goes on", || n2.count("x") == 4).await;
    n1.end().await;
    n2.end().await;
}

#[tokio::test]
async fn nonsense_costs_a_peer_its_stream_and_nothing_else() {
    let nodes = nodes(2);
    let n2 = Running::one(&nodes, "n2", 1);
    let settings =
        Settings { name: "test".into(), node: "n1".into(), nodes: nodes.clone(), ..Settings::default() };
    let peers = Peers::new(&settings).unwrap();
    let mut client = PeersClient::new(peers.by_name("n2").unwrap().line(Lane::Sync));
    let hello = |version| {
        let hello = phalanx_wire::peers::Hello { version, node: "n1".into(), ..Default::default() };
        Frame { kind: Some(phalanx_wire::peers::frame::Kind::Hello(hello)) }
    };
    let batch = phalanx_wire::peers::Batch { table: 9, ..Default::default() };
    let batch = Frame { kind: Some(phalanx_wire::peers::frame::Kind::Batch(batch)) };
    for frames in [vec![batch.clone()], vec![hello(99)], vec![hello(1), hello(1)], vec![hello(1), batch]] {
        let mut answer = None;
        until("the port answers", || true).await;
        while answer.is_none() {
            let (out, stream) = mpsc::channel(8);
            for frame in &frames {
                out.send(frame.clone()).await.unwrap();
            }
            if let Ok(response) = client.sync(ReceiverStream::new(stream)).await {
                answer = Some((response.into_inner(), out));
            } else {
                sleep(Duration::from_millis(10)).await;
            }
        }
        let (mut inbound, _out) = answer.unwrap();
        let ended =
            timeout(Duration::from_secs(5), async { while let Ok(Some(_)) = inbound.message().await {} });
        ended.await.expect("the stream ends");
    }
    let n1 = Running::one(&nodes, "n1", 2);
    n2.hit("x", 2);
    until("a proper peer is served as ever", || n1.count("x") == 2).await;
    n1.end().await;
    n2.end().await;
}

fn percentile(sorted: &[Duration], p: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * p) as usize]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: update to visible, and teaching a million entries"]
async fn how_fast() {
    let nodes = nodes(2);
    let spec = Spec {
        key: KeyType::Ip,
        size: 1_100_000,
        store: vec![DataType::HttpReqRate(Duration::from_secs(10))],
        ..spec()
    };
    let specs = BTreeMap::from([("t".to_string(), spec)]);
    let n1 = Running::start(&nodes, "n1", 1, &specs);
    let n2 = Running::start(&nodes, "n2", 1, &specs);
    let t2 = n2.table();
    let mut seen = Vec::new();
    for k in 0..300 {
        let key = Key::V4(k);
        n1.table().track(&key, n1.now()).unwrap().http_req(n1.now());
        let began = Instant::now();
        while t2.value(&key, "http_req_rate", n2.now()).is_none() {
            tokio::task::yield_now().await;
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        seen.push(began.elapsed());
        sleep(Duration::from_millis(3)).await;
    }
    seen.sort();
    println!("update to visible, quiet: p50 {:?} p99 {:?}", percentile(&seen, 0.5), percentile(&seen, 0.99));
    n2.end().await;
    for k in 0..1_000_000u32 {
        n1.table().track(&Key::V4(k), n1.now()).unwrap().http_req(n1.now());
    }
    let n2 = Running::start(&nodes, "n2", 2, &specs);
    let began = Instant::now();
    while n2.table().used() < 1_000_000 {
        sleep(Duration::from_millis(5)).await;
        assert!(began.elapsed() < Duration::from_secs(120), "{} taught", n2.table().used());
    }
    let status = n1.handle.status();
    let took = began.elapsed().as_secs_f64();
    for (name, node) in [("counted here", &n1), ("taught", &n2)] {
        let table = node.table();
        println!("{name}: {} bytes of memory an entry", table.heap_bytes() / table.used());
    }
    println!("taught 1,000,000 in {took:.2} s, {} bytes an entry", status[0].bytes_out / 1_000_000);
    n1.end().await;
    n2.end().await;
}

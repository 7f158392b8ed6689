//! Starts, kills and asks nodes.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use phalanx_cluster::{Cluster, NewMember, Node, ProposeError, Settings, StartError, State, Status};
use phalanx_engine::registry::{Base, Command, Origin, Registry, Reply, Target};
use phalanx_engine::stick::Tables;
use phalanx_sys::clock::Clock;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Polls until `done`, which must become true before `within` is over.
pub(crate) fn eventually(within: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !done() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// `add server web/NAME`.
pub(crate) fn add(name: &str) -> Command {
    Command::AddServer {
        backend: "web".into(),
        name: name.into(),
        host: "127.0.0.1".into(),
        addr: SocketAddr::from(([127, 0, 0, 1], 9804)),
        args: vec!["check".into()],
        id_hint: 4,
    }
}

/// Nodes n1, n2, … of one cluster.
pub(crate) struct Nodes {
    settings: Vec<Settings>,
    all: Vec<Node>,
    dirs: Vec<TempDir>,
    running: Vec<Option<Running>>,
}

struct Running {
    runtime: Runtime,
    cluster: Cluster,
    /// What the engine was told last.
    told: Arc<Mutex<BTreeSet<String>>>,
}

/// A node that is about to be killed.
pub(crate) struct Doomed(Running);

impl Doomed {
    pub(crate) fn kill(self) {
        self.0.runtime.shutdown_background();
    }
}

impl Nodes {
    /// On addresses that nothing else on this machine uses, so that a node finds its port free when
    /// it comes back.
    pub(crate) fn new(count: usize) -> Nodes {
        // RUST_LOG=info,openraft=error shows what the nodes say; nothing by default.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let set = NEXT.fetch_add(1, Ordering::Relaxed) as u8;
        let process = std::process::id();
        let nodes: Vec<Node> = (0..count)
            .map(|i| {
                let ip = [127, 64 | (process >> 8) as u8 & 63, process as u8, set * 8 + i as u8 + 1];
                let free = TcpListener::bind(SocketAddr::from((ip, 0))).unwrap();
                let addr = free.local_addr().unwrap().to_string();
                Node { name: format!("n{}", i + 1), addr, witness: false }
            })
            .collect();
        let dirs: Vec<TempDir> = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let settings = nodes.iter().zip(&dirs).map(|(node, dir)| Settings {
            name: "prod".into(),
            node: node.name.clone(),
            nodes: nodes.clone(),
            data_dir: dir.path().to_owned(),
            incarnation: 0,
            tls: None,
            haproxys: Vec::new(),
            join: false,
            vip_lease: None,
            pretends: None,
            cluster_id: Arc::default(),
            members: Arc::default(),
        });
        Nodes { settings: settings.collect(), all: nodes, dirs, running: (0..count).map(|_| None).collect() }
    }

    /// The first three of `count` are a cluster, with the server "a"; the others may join it.
    pub(crate) fn founded(count: usize) -> Nodes {
        let mut nodes = Nodes::new(count);
        let three = [0, 1, 2];
        nodes.list_first(&three, 3);
        three.iter().for_each(|i| nodes.start(*i));
        nodes.wait_for_leader(&three);
        nodes.propose_until(0, "a", SOON);
        eventually(SOON, "the cluster is founded", || three.iter().all(|i| nodes.status(*i).cluster_id != 0));
        nodes
    }

    pub(crate) fn rename_cluster(&mut self, i: usize, name: &str) {
        self.settings[i].name = name.into();
    }

    /// Node `i` speaks these versions of the protocol from its next start on.
    pub(crate) fn upgrade(&mut self, i: usize, oldest: u32, newest: u32) {
        self.settings[i].pretends = Some((oldest, newest));
    }

    /// Node `i` founds nothing.
    pub(crate) fn only_joins(&mut self, i: usize) {
        self.settings[i].join = true;
    }

    /// Asks node `at` to take node `i` in.
    pub(crate) fn join(
        &self,
        at: usize,
        i: usize,
        witness: bool,
        replaces: Option<usize>,
    ) -> Result<String, String> {
        let Node { name, addr, .. } = self.all[i].clone();
        let replaces = replaces.map(|old| self.all[old].name.clone());
        let node = self.node(at);
        let new = NewMember { name, addr, witness };
        let limit = Duration::from_secs(30);
        patiently(|| node.runtime.block_on(node.cluster.join(new.clone(), replaces.clone(), limit)))
    }

    /// As [`Nodes::join`], without waiting for the answer.
    pub(crate) fn begin_join(&self, at: usize, i: usize, replaces: Option<usize>) {
        let Node { name, addr, .. } = self.all[i].clone();
        let replaces = replaces.map(|old| self.all[old].name.clone());
        let new = NewMember { name, addr, witness: false };
        let node = self.node(at);
        let cluster = node.cluster.clone();
        node.runtime.spawn(async move { println!("{:?}", cluster.join(new, replaces, SOON).await) });
    }

    /// Asks node `at` to let node `i` go.
    pub(crate) fn leave(&self, at: usize, i: usize) -> Result<String, String> {
        let node = self.node(at);
        let limit = Duration::from_secs(30);
        patiently(|| node.runtime.block_on(node.cluster.leave(&self.all[i].name, limit)))
    }

    /// Gives the nodes a node list of the first `count`.
    pub(crate) fn list_first(&mut self, of: &[usize], count: usize) {
        let all = self.all.clone();
        for i in of {
            self.settings[*i].nodes = all[..count].to_vec();
        }
    }

    /// Gives node `i` another address, in all node lists.
    pub(crate) fn move_to(&mut self, i: usize, addr: &str) {
        self.all[i].addr = addr.into();
        for settings in &mut self.settings {
            settings.nodes[i].addr = addr.into();
        }
    }

    /// Calls `work` for each of `of` in a thread of its own.
    pub(crate) fn on_each<T: Send>(&self, of: &[usize], work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let threads: Vec<_> = of.iter().map(|i| scope.spawn(|| work(*i))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    pub(crate) fn addr(&self, i: usize) -> String {
        self.all[i].addr.clone()
    }

    pub(crate) fn start_all(&mut self) {
        for i in 0..self.settings.len() {
            self.start(i);
        }
    }

    pub(crate) fn start(&mut self, i: usize) {
        self.start_in(i, i).unwrap();
    }

    /// Starts node `i` with the data directory of node `dir`.
    pub(crate) fn start_in(&mut self, i: usize, dir: usize) -> Result<(), StartError> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        self.settings[i].incarnation = since.as_micros() as u64;
        let data_dir = self.dirs[dir].path().to_owned();
        let settings = Settings {
            data_dir,
            cluster_id: Arc::default(),
            members: Arc::default(),
            ..self.settings[i].clone()
        };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let told = Arc::new(Mutex::new(BTreeSet::new()));
        let deadline = Instant::now() + Duration::from_secs(10);
        let cluster = loop {
            let told = told.clone();
            let on_registry = move |r: &Registry| *told.lock().unwrap() = servers(r);
            let tables = Tables::new(&settings.node, settings.incarnation, 0);
            let start = Cluster::start(settings.clone(), tables, Clock::new(), None, Box::new(on_registry));
            let started = runtime.block_on(start);
            match started {
                // The threads of the killed one may need a moment to let go of the file.
                Err(error) if error.to_string().contains("already open") && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                other => break other,
            }
        }?;
        self.running[i] = Some(Running { runtime, cluster, told });
        Ok(())
    }

    /// Drops everything of it where it stands: nothing is flushed, closed or told.
    pub(crate) fn kill(&mut self, i: usize) {
        let running = self.running[i].take().expect("it runs");
        running.runtime.shutdown_background();
    }

    /// The handle to kill a node with, while others use the rest.
    pub(crate) fn take(&mut self, i: usize) -> Doomed {
        Doomed(self.running[i].take().expect("it runs"))
    }

    /// Members of the cluster, as many as the log says.
    pub(crate) fn voters(&self, i: usize) -> usize {
        self.status(i).voters
    }

    /// Empties its disk.
    pub(crate) fn wipe(&mut self, i: usize) {
        self.dirs[i] = tempfile::tempdir().unwrap();
    }

    fn node(&self, i: usize) -> &Running {
        self.running[i].as_ref().expect("it runs")
    }

    pub(crate) fn propose(&self, i: usize, command: Command) -> Result<Reply, ProposeError> {
        let node = self.node(i);
        node.runtime.block_on(node.cluster.propose(command))
    }

    /// Adds a server, as often as it takes.
    pub(crate) fn propose_until(&self, i: usize, server: &str, within: Duration) {
        eventually(within, server, || self.propose(i, add(server)).is_ok());
    }

    /// Until node `of`, which came back without its log, votes again, as node `i` hears of it.
    pub(crate) fn wait_taught(&self, i: usize, of: usize) {
        eventually(SOON, "the empty node votes again", || {
            let node = &self.status(i).nodes[of];
            node.state == State::Follower && node.problem.is_none()
        });
    }

    /// Many, some at once, each as often as it takes.
    pub(crate) fn propose_many(&self, i: usize, count: usize, command: impl Fn(usize) -> Command) {
        let node = self.node(i);
        node.runtime.block_on(async {
            let mut left = (0..count).peekable();
            while left.peek().is_some() {
                let some = left.by_ref().take(50).map(|i| {
                    let (cluster, command) = (node.cluster.clone(), command(i));
                    tokio::spawn(async move {
                        let deadline = Instant::now() + SOON;
                        loop {
                            match cluster.propose(command.clone()).await {
                                // The machine, or its disk, is too busy for an answer in time.
                                Err(error) => assert!(Instant::now() < deadline, "{error}"),
                                Ok(reply) => return reply,
                            }
                        }
                    })
                });
                for one in some.collect::<Vec<_>>() {
                    assert_eq!(one.await.unwrap(), Reply::Ok);
                }
            }
        });
    }

    /// The server `name` as a node names it in a command.
    pub(crate) fn target(&self, i: usize, name: &str) -> Target {
        let registry = self.registry(i);
        let added = registry.added_server("web", name).expect("it was added");
        let base = Base {
            disabled: false,
            weight: 1,
            host: added.host.clone(),
            addr: added.addr,
            check: true,
            maxconn: 0,
            check_ip: None,
            check_port: None,
        };
        Target { backend: "web".into(), name: name.into(), origin: Origin::Added, base }
    }

    pub(crate) fn registry(&self, i: usize) -> Arc<Registry> {
        self.node(i).cluster.registry()
    }

    /// Servers that node `i` knows.
    pub(crate) fn servers(&self, i: usize) -> BTreeSet<String> {
        servers(&self.registry(i))
    }

    /// Servers that the engine of node `i` was told last.
    pub(crate) fn seen(&self, i: usize) -> BTreeSet<String> {
        self.node(i).told.lock().unwrap().clone()
    }

    pub(crate) fn ids(&self, i: usize) -> Vec<(String, u32)> {
        self.registry(i).added("web").map(|(name, added)| (name.to_owned(), added.id)).collect()
    }

    pub(crate) fn status(&self, i: usize) -> Status {
        self.node(i).cluster.status()
    }

    /// Waits until all `of` agree on a leader that says so itself.
    pub(crate) fn wait_for_leader(&self, of: &[usize]) -> usize {
        let mut leader = None;
        eventually(Duration::from_secs(20), "a leader", || {
            let names: BTreeSet<_> = of.iter().map(|i| self.status(*i).leader).collect();
            leader = of.iter().copied().find(|i| {
                let status = self.status(*i);
                status.quorum && status.nodes.iter().any(|n| n.local && n.state == State::Leader)
            });
            names.len() == 1 && leader.is_some()
        });
        leader.expect("just seen")
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for running in self.running.iter_mut().filter_map(Option::take) {
            running.runtime.shutdown_background();
        }
    }
}

fn servers(registry: &Registry) -> BTreeSet<String> {
    registry.added("web").map(|(name, _)| name.to_owned()).collect()
}

/// Asks again, as a person would, while the machine is too busy for an answer in time.
fn patiently(ask: impl Fn() -> Result<String, String>) -> Result<String, String> {
    let began = Instant::now();
    loop {
        match ask() {
            Err(why) if began.elapsed() < SOON && why.contains("may still take effect") => {}
            answer => return answer,
        }
    }
}

//! A cluster made by `phalanx cluster up`, as a test sees it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tempfile::TempDir;

use crate::{Base, api, eventually, phalanx, until};

/// What `phalanx cluster status --json` says. Unknown fields are an error: the format is a promise.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// The virtual addresses.
    pub vips: Vec<VipStatus>,
}

/// One node.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields of the JSON")]
pub struct NodeStatus {
    pub name: String,
    pub state: String,
    pub pid: Option<u32>,
    pub http: Option<String>,
    pub cli: Option<String>,
    pub stats: Option<String>,
    pub grpc: Option<String>,
    pub leader: bool,
}

/// One virtual address.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields of the JSON")]
pub struct VipStatus {
    pub name: String,
    pub address: String,
    pub holder: Option<String>,
    pub epoch: u64,
}

impl Status {
    /// A node by name.
    ///
    /// # Panics
    /// When there is none.
    pub fn node(&self, name: &str) -> &NodeStatus {
        self.nodes.iter().find(|n| n.name == name).unwrap_or_else(|| panic!("no node {name} in {self:?}"))
    }

    /// Who holds the first virtual address.
    pub fn holder(&self) -> Option<&str> {
        self.vips.first()?.holder.as_deref()
    }
}

/// What a cluster is to be like.
#[derive(Debug, Default)]
pub struct Builder {
    nodes: Option<usize>,
    witness: usize,
    config: Option<String>,
    netns: bool,
    tls: bool,
}

impl Builder {
    /// So many nodes.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Builder {
        self.nodes = Some(nodes);
        self
    }

    /// So many more that only vote.
    #[must_use]
    pub fn witness(mut self, witness: usize) -> Builder {
        self.witness = witness;
        self
    }

    /// This text as configuration.
    #[must_use]
    pub fn config(mut self, text: impl Into<String>) -> Builder {
        self.config = Some(text.into());
        self
    }

    /// In network namespaces.
    #[must_use]
    pub fn netns(mut self) -> Builder {
        self.netns = true;
        self
    }

    /// With TLS between the nodes.
    #[must_use]
    pub fn tls(mut self) -> Builder {
        self.tls = true;
        self
    }

    /// Starts it and waits for nodes, leader and holder.
    ///
    /// # Panics
    /// When that does not come about.
    pub fn up(self) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let base = Base::free();
        let log = dir.path().join("up.log");
        let out = File::create(&log).expect("a log file");
        let mut command = Command::new(phalanx());
        command.args(["cluster", "up", "--until-stdin-ends", "--dir"]).arg(dir.path().join("c"));
        if self.netns {
            command.arg("--netns");
        } else {
            command.args(["--base", base.prefix()]);
        }
        if self.tls {
            command.arg("--tls");
        }
        if let Some(nodes) = self.nodes {
            command.arg("--nodes").arg(nodes.to_string());
        }
        if self.witness > 0 {
            command.arg("--witness").arg(self.witness.to_string());
        }
        if let Some(text) = &self.config {
            let file = dir.path().join("own.cfg");
            std::fs::write(&file, text).expect("a configuration file");
            command.arg("--config").arg(file);
        }
        let supervisor = command
            .stdin(Stdio::piped())
            .stdout(out.try_clone().expect("a log file"))
            .stderr(out)
            .spawn()
            .expect("phalanx starts");
        let mut cluster = Cluster { supervisor, dir, base };
        cluster.wait_for_start(&log);
        cluster
    }
}

/// A running cluster; dropped, it is taken down.
#[derive(Debug)]
pub struct Cluster {
    supervisor: Child,
    dir: TempDir,
    base: Base,
}

impl Cluster {
    /// The built-in one, of three nodes.
    pub fn up() -> Cluster {
        Builder::default().up()
    }

    /// One to be described.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn wait_for_start(&mut self, log: &Path) {
        let all_up = |status: &Status| {
            status.nodes.iter().all(|n| n.state == "running")
                && (status.vips.is_empty() || status.nodes.iter().any(|n| n.leader))
                && status.vips.iter().all(|v| v.holder.is_some())
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(Some(status)) = self.supervisor.try_wait() {
                panic!("'cluster up' ended with {status}:\n{}", read(log));
            }
            let status = self.try_status();
            if status.as_ref().is_some_and(all_up) {
                return;
            }
            assert!(Instant::now() < deadline, "the cluster does not come up: {status:?}\n{}", read(log));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The cluster's directory.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    /// The file that the nodes run, when it is not a test's own.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("c/phalanx.cfg")
    }

    /// Its piece of the loopback network.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The pid of the supervisor.
    pub fn supervisor(&self) -> u32 {
        self.supervisor.id()
    }

    /// Runs `phalanx cluster VERB …` on it.
    pub fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(phalanx());
        command.arg("cluster").args(words).arg("--dir").arg(self.dir());
        command.output().expect("phalanx starts")
    }

    /// As [`Cluster::run`], to succeed.
    ///
    /// # Panics
    /// When it fails; with its messages.
    pub fn must(&self, words: &[&str]) -> String {
        let out = self.run(words);
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "cluster {words:?}: {error}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn try_status(&self) -> Option<Status> {
        let out = self.run(&["status", "--json"]);
        out.status
            .success()
            .then(|| serde_json::from_slice(&out.stdout).expect("status is the promised JSON"))
    }

    /// Its status now.
    pub fn status(&self) -> Status {
        serde_json::from_str(&self.must(&["status", "--json"])).expect("status is the promised JSON")
    }

    /// Names of the nodes.
    pub fn names(&self) -> Vec<String> {
        self.status().nodes.into_iter().map(|n| n.name).collect()
    }

    /// `ADDR:port` of a node.
    pub fn at(&self, node: &str, port: u16) -> String {
        let http = self.status().node(node).http.clone().expect("a node serves HTTP");
        let (ip, _) = http.rsplit_once(':').expect("an address has a port");
        format!("{ip}:{port}")
    }

    /// Runs a command on a node's Runtime API.
    pub fn api(&self, node: &str, command: &str) -> String {
        api(&self.status().node(node).cli.clone().expect("a node has a Runtime API"), command)
    }

    /// Waits until some node holds the first virtual address and all others that run agree.
    pub fn wait_for_holder(&self, limit: Duration) -> String {
        eventually("a holder", limit, || self.status().holder().map(str::to_owned))
    }

    /// Whether all nodes are fit to hold the first virtual address, as `node` sees it.
    pub fn all_fit(&self, node: &str) -> bool {
        let shown: serde_json::Value =
            serde_json::from_str(self.api(node, "show vip json").trim()).unwrap_or_default();
        let nodes = shown["vips"][0]["nodes"].as_array();
        nodes.is_some_and(|nodes| !nodes.is_empty() && nodes.iter().all(|n| n["eligible"] == true))
    }

    /// Waits until a node answers.
    pub fn wait_running(&self, node: &str) {
        until(&format!("node {node} runs"), Duration::from_secs(20), || {
            self.status().node(node).state == "running"
        });
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.dir()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "log") {
                let text = read(&path);
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                all += &format!("--- {}\n{tail}\n", path.display());
            }
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // End of its standard input: it takes everything down.
        drop(self.supervisor.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if !matches!(self.supervisor.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

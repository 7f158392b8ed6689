//! What a local cluster consists of: nodes, their addresses and environment, and the configuration
//! file that all of them run.
//!
//! Planned once by `up`, written to `cluster.json` in the cluster's directory so that whoever finds
//! the directory later can clean up after it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use phalanx_config::{Config, Env, Mode, Source, StatsAddr};
use serde::{Deserialize, Serialize};

use super::certificates;
use super::netns::Network;
use super::process::own_binary;

/// The configuration that runs unless another is named.
const BUILT_IN: &str = include_str!("../../../deploy/local/phalanx.cfg");
/// Demo servers: names and ports. One of each kind is not in the built-in configuration: there to be
/// added at run time.
const WEB: [(&str, u16); 4] = [("s1", 9801), ("s2", 9802), ("s3", 9803), ("s4", 9804)];
const ECHO: [(&str, u16); 3] = [("nc1", 9001), ("nc2", 9002), ("nc3", 9003)];
/// Last number of the addresses of the demo servers, the first node and the virtual address.
const SERVERS_AT: u8 = 1;
const NODES_AT: u8 = 11;
const VIP_AT: u8 = 100;

/// First three numbers of the addresses of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base(pub [u8; 3]);

impl Base {
    pub(super) fn addr(self, last: u8) -> IpAddr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, last).into()
    }
}

impl FromStr for Base {
    type Err = String;

    fn from_str(text: &str) -> Result<Base, String> {
        let bad = || format!("invalid prefix '{text}', expected three numbers as in 127.0.0");
        let parts = text.split('.').map(str::parse).collect::<Result<Vec<u8>, _>>().map_err(|_| bad())?;
        let base: [u8; 3] = parts.try_into().map_err(|_| bad())?;
        if base[0] != 127 {
            return Err(format!("invalid prefix '{text}', expected a loopback one, 127.B.C"));
        }
        Ok(Base(base))
    }
}

/// What the user asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub nodes: Option<u8>,
    pub witness: u8,
    pub config: Option<PathBuf>,
    pub netns: bool,
    pub base: Option<Base>,
    pub keep: bool,
    pub tls: bool,
}

/// A planned cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Layout {
    /// Its directory.
    pub dir: PathBuf,
    /// Whether the directory stays when the cluster goes.
    pub keep: bool,
    /// The file that the nodes run.
    pub config: PathBuf,
    /// Whether that is the user's own.
    pub own_config: bool,
    /// First three numbers of all addresses.
    pub base: Base,
    /// With `--netns`: the namespaces.
    pub network: Option<Network>,
    /// The nodes, in order.
    pub nodes: Vec<Member>,
    /// Names and addresses of the virtual addresses.
    pub vips: Vec<(String, IpAddr)>,
}

/// One node of the plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Member {
    pub name: String,
    pub addr: IpAddr,
    /// Its number, from 1: part of its address and of the name of a variable.
    pub number: u8,
    /// It only votes.
    pub witness: bool,
    /// Its own file, when it came later.
    pub config: Option<PathBuf>,
    /// Where it serves HTTP.
    pub http: Option<String>,
    /// Its Runtime API: address and port, or the path of a unix socket.
    pub cli: Option<String>,
    /// URL of its statistics page.
    pub stats: Option<String>,
    /// Where its peers reach it.
    pub grpc: Option<String>,
    /// All addresses that it will listen on, and what for.
    listens: Vec<(String, SocketAddr)>,
}

impl Layout {
    /// Plans a cluster in `dir` and writes the configuration there if it is not a file of the user's.
    pub(super) fn plan(dir: &Path, wanted: &Wanted) -> Result<Layout, String> {
        let generated = dir.join("phalanx.cfg");
        let source = wanted.config.clone().or_else(|| generated.exists().then(|| generated.clone()));
        let text = match &source {
            None => BUILT_IN.to_owned(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| format!("cannot read configuration '{}': {e}", path.display()))?,
        };
        let named = node_names(&text);
        let count = wanted.nodes.map_or(named.len().max(1), usize::from);
        if named.is_empty() && count > 1 {
            return Err("the configuration has no 'cluster' section with 'node' lines: more than one node \
                        needs it"
                .into());
        }
        let names = with_count(&named, count + usize::from(wanted.witness));
        let tls = wanted.tls || certificates::exist(dir);
        let config = match source {
            Some(path) if !tls && wanted.witness == 0 && (named.is_empty() || names == named) => {
                path.canonicalize().map_err(|e| e.to_string())?
            }
            _ => {
                let text = if names == named { text } else { with_nodes(&text, &names) };
                let text = with_witnesses(&text, &names[count..]);
                let text = if tls { with_tls(&text)? } else { text };
                std::fs::write(&generated, text)
                    .map_err(|e| format!("cannot write '{}': {e}", generated.display()))?;
                generated
            }
        };
        let stations = || names.iter().cloned().zip(NODES_AT..).collect();
        let network = wanted.netns.then(|| Network::plan(dir, stations())).transpose()?;
        let base = network.as_ref().map(|n| n.base).or(wanted.base).unwrap_or(Base([127, 0, 0]));
        let member = |(i, name): (usize, &String)| Member {
            name: name.clone(),
            addr: base.addr(NODES_AT + i as u8),
            number: i as u8 + 1,
            witness: false,
            config: None,
            http: None,
            cli: None,
            stats: None,
            grpc: None,
            listens: Vec::new(),
        };
        let mut layout = Layout {
            dir: dir.into(),
            keep: wanted.keep,
            config,
            own_config: wanted.config.is_some(),
            base,
            network,
            nodes: names.iter().enumerate().map(member).collect(),
            vips: Vec::new(),
        };
        if tls {
            certificates::create(dir)?;
            layout.nodes.iter().try_for_each(|node| certificates::issue(dir, &node.name, node.addr))?;
        }
        layout.read_config()?;
        Ok(layout)
    }

    /// Finds in the configuration what each node will listen on.
    fn read_config(&mut self) -> Result<(), String> {
        for index in 0..self.nodes.len() {
            let file = self.nodes[index].config.as_ref().unwrap_or(&self.config);
            let text = std::fs::read(file)
                .map_err(|e| format!("cannot read configuration '{}': {e}", file.display()))?;
            let source = [Source::new(file.display().to_string(), text)];
            let outcome = phalanx_config::parse(&source, &NodeEnv { vars: self.env(index) });
            let Some(config) = outcome.config else {
                let lines: Vec<String> =
                    outcome.diagnostics.iter().map(|d| d.render(std::process::id())).collect();
                return Err(format!("the configuration has errors:\n{}", lines.join("\n")));
            };
            self.vips =
                config.cluster.iter().flat_map(|c| &c.vips).map(|v| (v.name.clone(), v.addr)).collect();
            let floating: Vec<IpAddr> = self.vips.iter().map(|(_, addr)| *addr).collect();
            self.nodes[index].read(&config, &floating);
        }
        Ok(())
    }

    /// Plans one node more, with a configuration of its own that names the others.
    pub(super) fn add(&mut self, name: &str, witness: bool) -> Result<usize, String> {
        if self.nodes.iter().any(|n| n.name == name) {
            return Err(format!("there is a node '{name}' already"));
        }
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
            return Err(format!("invalid name '{name}', expected letters, digits, '-' and '_'"));
        }
        let free = |number: &u8| self.nodes.iter().all(|n| n.number != *number);
        let meant = name.strip_prefix('n').and_then(|n| n.parse().ok()).filter(|n| (1..=80).contains(n));
        let number = meant.filter(free).or_else(|| (1..=80).find(free)).ok_or("there are too many nodes")?;
        let addr = self.base.addr(NODES_AT - 1 + number);
        let text = std::fs::read_to_string(&self.config)
            .map_err(|e| format!("cannot read configuration '{}': {e}", self.config.display()))?;
        let text = with_newcomer(&text, name, &addr.to_string(), witness)
            .ok_or("the configuration has no 'cluster' section with 'node' lines")?;
        let config = self.dir.join(format!("{name}.cfg"));
        std::fs::write(&config, text).map_err(|e| format!("cannot write '{}': {e}", config.display()))?;
        self.nodes.push(Member {
            name: name.to_owned(),
            addr,
            number,
            witness: false,
            config: Some(config),
            http: None,
            cli: None,
            stats: None,
            grpc: None,
            listens: Vec::new(),
        });
        let prepared = self.prepare(name, addr, NODES_AT - 1 + number).and_then(|()| self.read_config());
        if let Err(e) = prepared {
            self.remove(self.nodes.len() - 1);
            return Err(e);
        }
        Ok(self.nodes.len() - 1)
    }

    /// Makes what a node more needs: its certificate, its namespace.
    fn prepare(&mut self, name: &str, addr: IpAddr, last: u8) -> Result<(), String> {
        if certificates::exist(&self.dir) {
            certificates::issue(&self.dir, name, addr)?;
        }
        self.network.as_mut().map_or(Ok(()), |network| network.join(name, last))
    }

    /// Forgets a node, and what it had: one of this name that comes later begins anew.
    pub(super) fn remove(&mut self, index: usize) {
        let node = self.nodes.remove(index);
        let _ = std::fs::remove_dir_all(self.dir.join("data").join(&node.name));
        if let Some(config) = node.config {
            let _ = std::fs::remove_file(config);
        }
        certificates::forget(&self.dir, &node.name);
        if let Some(network) = &mut self.network {
            network.leave(&node.name);
        }
    }

    /// The plan of the cluster in `dir`.
    pub(super) fn load(dir: &Path) -> Result<Layout, String> {
        let path = dir.join("cluster.json");
        let text = std::fs::read(&path).map_err(|e| format!("cannot read '{}': {e}", path.display()))?;
        serde_json::from_slice(&text).map_err(|e| format!("'{}': {e}", path.display()))
    }

    pub(super) fn save(&self) -> Result<(), String> {
        let path = self.dir.join("cluster.json");
        let text = serde_json::to_vec(self).map_err(|e| e.to_string())?;
        std::fs::write(&path, text).map_err(|e| format!("cannot write '{}': {e}", path.display()))
    }

    /// The environment of a node: what one configuration for all of them may differ by.
    pub(super) fn env(&self, index: usize) -> Vec<(String, String)> {
        let node = &self.nodes[index];
        let (interface, announce) = if self.network.is_some() { ("eth0", "arp") } else { ("lo", "listen") };
        let mut env = vec![
            ("NODE".to_owned(), node.name.clone()),
            ("NODE_ADDR".into(), node.addr.to_string()),
            ("VIP_ADDR".into(), self.base.addr(VIP_AT).to_string()),
            ("VIP_INTERFACE".into(), interface.into()),
            ("VIP_ANNOUNCE".into(), announce.into()),
            ("SERVER_ADDR".into(), self.base.addr(SERVERS_AT).to_string()),
            ("CLUSTER_DIR".into(), self.dir.display().to_string()),
        ];
        env.extend(
            // Those of nodes that have left stay in the configuration of the others.
            (1..=9)
                .map(|number| (format!("N{number}_ADDR"), self.base.addr(NODES_AT - 1 + number).to_string())),
        );
        env
    }

    /// The command that runs a node.
    pub(super) fn node_command(&self, index: usize) -> Vec<OsString> {
        let Member { name, config, .. } = &self.nodes[index];
        let config = config.as_ref().unwrap_or(&self.config).clone();
        let program: [OsString; 5] =
            [own_binary().into(), "-f".into(), config.into(), "-L".into(), name.into()];
        let prefix = self.network.as_ref().map(|n| n.enter(name)).unwrap_or_default();
        prefix.into_iter().map(OsString::from).chain(program).collect()
    }

    /// The command that runs the demo servers; `None` when there is an own server at every address.
    pub(super) fn demo_command(&self) -> Option<Vec<OsString>> {
        let prefix = self.network.as_ref().map(Network::enter_hub).unwrap_or_default();
        let mut words: Vec<OsString> = prefix.into_iter().map(OsString::from).collect();
        words.extend([own_binary().into(), "demo".into()]);
        let before = words.len();
        for (kind, name, addr) in self.demo_servers() {
            if !self.own_config || self.network.is_some() || TcpListener::bind(addr).is_ok() {
                words.push(format!("--{kind}={name}={addr}").into());
            }
        }
        (words.len() > before).then_some(words)
    }

    fn demo_servers(&self) -> impl Iterator<Item = (&'static str, &'static str, SocketAddr)> {
        let addr = self.base.addr(SERVERS_AT);
        let web = WEB.iter().map(|(name, port)| ("http", *name, *port));
        let echo = ECHO.iter().map(|(name, port)| ("echo", *name, *port));
        web.chain(echo).map(move |(kind, name, port)| (kind, name, SocketAddr::new(addr, port)))
    }

    /// Fails if an address that the cluster needs is taken, naming it and what it is for. In
    /// namespaces of its own nobody else can be in the way.
    pub(super) fn check_free(&self) -> Result<(), String> {
        if self.network.is_some() {
            return Ok(());
        }
        let demo = self.demo_servers().map(|(_, name, addr)| (format!("demo server {name}"), addr));
        let demo: Vec<_> = if self.own_config { Vec::new() } else { demo.collect() };
        let nodes = self.nodes.iter().flat_map(|n| {
            n.listens.iter().map(move |(what, addr)| (format!("{} of node {}", what, n.name), *addr))
        });
        let mut seen = HashSet::new();
        for (what, addr) in nodes.chain(demo) {
            if !seen.insert(addr) {
                continue;
            }
            if let Err(e) = TcpListener::bind(addr) {
                return Err(format!("address {addr}, needed for {what}: {e}"));
            }
        }
        Ok(())
    }

    pub(super) fn node_log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    pub(super) fn demo_log(&self) -> PathBuf {
        self.dir.join("demo.log")
    }

    pub(super) fn supervisor_log(&self) -> PathBuf {
        self.dir.join("supervisor.log")
    }

    /// The demo servers, for people.
    pub(super) fn demo_summary(&self) -> String {
        let addr = self.base.addr(SERVERS_AT);
        let list = |servers: &[(&str, u16)]| {
            servers.iter().map(|(name, port)| format!("{name}:{port}")).collect::<Vec<_>>().join(" ")
        };
        format!("web {} and TCP echo {} on {addr}", list(&WEB), list(&ECHO))
    }
}

impl Member {
    /// Fills in the places from the configuration that the node will run.
    fn read(&mut self, config: &Config, floating: &[IpAddr]) {
        // A wildcard is reached at the node's own address.
        let reach = |addr: SocketAddr| match addr.ip().is_unspecified() {
            true => SocketAddr::new(self.addr, addr.port()),
            false => addr,
        };
        let me = config.cluster.iter().flat_map(|c| &c.nodes).find(|n| n.name == self.name);
        self.witness = me.is_some_and(|n| n.witness);
        let mut listens = Vec::new();
        // A witness takes no traffic.
        let proxies = config.proxies.iter().filter(|p| !p.disabled && p.kind.is_frontend());
        for proxy in proxies.filter(|_| !self.witness) {
            listens.extend(proxy.binds.iter().map(|b| (format!("'{}'", proxy.name), b.addr)));
            let fixed = proxy.binds.iter().map(|b| reach(b.addr)).find(|a| !floating.contains(&a.ip()));
            let Some(addr) = fixed else { continue };
            let serves = proxy.default_backend.is_some() || !proxy.servers.is_empty();
            if proxy.mode == Mode::Http && serves && self.http.is_none() {
                self.http = Some(addr.to_string());
            }
            if let (Some(stats), None) = (&proxy.stats, &self.stats) {
                self.stats = Some(format!("http://{addr}{}", stats.uri));
            }
        }
        let sockets = || config.global.stats_sockets.iter().map(|s| &s.addr);
        let tcp = sockets().find_map(|a| match a {
            StatsAddr::Tcp(addr) => Some(reach(*addr).to_string()),
            StatsAddr::Unix(_) => None,
        });
        let unix = sockets().find_map(|a| match a {
            StatsAddr::Unix(path) => Some(path.display().to_string()),
            StatsAddr::Tcp(_) => None,
        });
        self.cli = tcp.or(unix);
        listens.extend(sockets().filter_map(|a| match a {
            StatsAddr::Tcp(addr) => Some(("the Runtime API".to_owned(), *addr)),
            StatsAddr::Unix(_) => None,
        }));
        self.grpc = me.map(|n| n.addr.clone());
        if let Some(addr) = me.and_then(|n| n.addr.parse().ok()) {
            listens.push(("the cluster's port".into(), addr));
        }
        self.listens = listens;
    }
}

/// The environment that a node will see.
struct NodeEnv {
    vars: Vec<(String, String)>,
}

impl Env for NodeEnv {
    fn var(&self, name: &str) -> Option<String> {
        let own = self.vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        own.or_else(|| std::env::var(name).ok())
    }

    fn user(&self, name: &str) -> Option<u32> {
        phalanx_sys::process::user(name).ok().flatten().map(|(uid, _)| uid)
    }

    fn group(&self, name: &str) -> Option<u32> {
        phalanx_sys::process::group(name).ok().flatten()
    }

    fn resolve(&self, host: &str) -> Result<IpAddr, String> {
        use std::net::ToSocketAddrs;
        let mut found = (host, 0).to_socket_addrs().map_err(|e| e.to_string())?;
        found.next().map(|a| a.ip()).ok_or_else(|| "no address".into())
    }

    fn read(&self, file: &str, max: u64) -> Result<Vec<u8>, String> {
        crate::load::System { ignore_resolve: false }.read(file, max)
    }
}

const SECTIONS: [&str; 10] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "cluster",
    "peers",
    "userlist",
    "resolvers",
    "consul",
];

/// Each line of `text` with whether it is a `node` line of a `cluster` section.
fn node_lines(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut in_cluster = false;
    text.lines().map(move |line| {
        let first = line.split_whitespace().next().unwrap_or_default();
        if SECTIONS.contains(&first) {
            in_cluster = first == "cluster";
        }
        (line, in_cluster && first == "node")
    })
}

fn node_names(text: &str) -> Vec<String> {
    node_lines(text)
        .filter(|(_, node)| *node)
        .filter_map(|(line, _)| line.split_whitespace().nth(1))
        .map(|name| name.trim_matches(['"', '\'']).to_owned())
        .collect()
}

/// The first `count` names, and new ones in the manner n4, n5 when that is not enough.
fn with_count(named: &[String], count: usize) -> Vec<String> {
    if named.is_empty() {
        return (1..=count).map(|i| format!("n{i}")).collect();
    }
    let mut names: Vec<String> = named.iter().take(count).cloned().collect();
    let mut next = (1..).map(|i| format!("n{i}")).filter(|n| !named.contains(n));
    while names.len() < count {
        names.extend(next.next());
    }
    names
}

/// `text` with the `node` lines of its `cluster` section for exactly these names.
fn with_nodes(text: &str, names: &[String]) -> String {
    let total = node_lines(text).filter(|(_, node)| *node).count();
    let mut out = String::new();
    let mut seen = 0;
    for (line, node) in node_lines(text) {
        if !node {
            out.push_str(line);
            out.push('\n');
            continue;
        }
        if seen < names.len() {
            out.push_str(line);
            out.push('\n');
        }
        seen += 1;
        if seen == total {
            let port: String = line.chars().rev().take_while(|c| *c != ':').collect();
            let port: String = port.chars().rev().filter(char::is_ascii_digit).collect();
            for (i, name) in names.iter().enumerate().skip(total) {
                out.push_str(&format!("    node {name} \"${{N{}_ADDR}}:{port}\"\n", i + 1));
            }
        }
    }
    out
}

/// `text` with `witness` on the `node` lines of these names.
fn with_witnesses(text: &str, names: &[String]) -> String {
    let mut out = String::new();
    for (line, node) in node_lines(text) {
        out.push_str(line);
        let name = line.split_whitespace().nth(1).unwrap_or_default().trim_matches(['"', '\'']);
        if node && names.iter().any(|n| n == name) && !line.trim_end().ends_with(" witness") {
            out.push_str(" witness");
        }
        out.push('\n');
    }
    out
}

/// `text` with the line of its `cluster` section that names the certificates of the cluster's directory.
fn with_tls(text: &str) -> Result<String, String> {
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned).unwrap_or_default();
    let mut section = String::new();
    let mut ssl = text.lines().filter(|line| {
        let word = first(line);
        if SECTIONS.contains(&word.as_str()) {
            section.clone_from(&word);
        }
        section == "cluster" && word == "ssl"
    });
    match ssl.next() {
        Some(line) if line.trim() == TLS_LINE => return Ok(text.to_owned()),
        Some(_) => {
            return Err("the configuration has an 'ssl' line in its 'cluster' section already: without \
                        '--tls' it is used"
                .into());
        }
        None => {}
    }
    let at = text.lines().position(|line| first(line) == "cluster");
    let at = at.ok_or("'--tls' needs a configuration with a 'cluster' section")?;
    let mut out = String::new();
    for (i, line) in text.lines().enumerate() {
        out.push_str(line);
        out.push('\n');
        if i == at {
            out.push_str(&format!("    {TLS_LINE}\n"));
        }
    }
    Ok(out)
}

/// Where [`certificates`] puts them.
const TLS_LINE: &str = "ssl crt \"${CLUSTER_DIR}/tls/${NODE}.pem\" ca-file \"${CLUSTER_DIR}/tls/ca.pem\"";

/// `text` for a node that joins: one `node` line more, and `join`.
fn with_newcomer(text: &str, name: &str, addr: &str, witness: bool) -> Option<String> {
    let last = node_lines(text).enumerate().filter(|(_, (_, node))| *node).last();
    let (at, (line, _)) = last?;
    let port: String = line.chars().rev().take_while(|c| *c != ':').collect();
    let port: String = port.chars().rev().filter(char::is_ascii_digit).collect();
    let role = if witness { " witness" } else { "" };
    let mut out = String::new();
    for (i, (line, node)) in node_lines(text).enumerate() {
        let own = line.split_whitespace().nth(1).unwrap_or_default().trim_matches(['"', '\'']) == name;
        if !(node && own) {
            out.push_str(line);
            out.push('\n');
        }
        if i == at {
            out.push_str(&format!("    node {name} \"{addr}:{port}\"{role}\n    join\n"));
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "global\n    node other\ncluster c\n    node n1 \"${N1_ADDR}:7100\"\n    \
                        node n2 \"${N2_ADDR}:7100\"\n    data-dir /d\nlisten l\n    mode tcp\n";

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn nodes_are_those_of_the_cluster_section() {
        assert_eq!(node_names(TEXT), names(&["n1", "n2"]));
        assert_eq!(node_names(BUILT_IN), names(&["n1", "n2", "n3"]));
    }

    #[test]
    fn node_lines_are_added_and_dropped() {
        let more = with_nodes(TEXT, &with_count(&node_names(TEXT), 4));
        assert_eq!(node_names(&more), names(&["n1", "n2", "n3", "n4"]));
        assert!(more.contains("    node n4 \"${N4_ADDR}:7100\"\n    data-dir /d\n"), "{more}");
        let fewer = with_nodes(TEXT, &with_count(&node_names(TEXT), 1));
        assert_eq!(node_names(&fewer), names(&["n1"]));
        assert_eq!(with_nodes(TEXT, &node_names(TEXT)), TEXT);
    }

    #[test]
    fn witnesses_and_newcomers_get_their_lines() {
        let text = with_witnesses(TEXT, &names(&["n2"]));
        assert!(
            text.contains("node n2 \"${N2_ADDR}:7100\" witness\n") && !text.contains("N1_ADDR}:7100\" w")
        );
        let text = with_newcomer(TEXT, "n6", "127.0.0.16", false).unwrap();
        assert!(text.contains("7100\"\n    node n6 \"127.0.0.16:7100\"\n    join\n    data-dir"), "{text}");
        let text = with_newcomer(TEXT, "n2", "127.0.0.12", true).unwrap();
        assert_eq!(node_names(&text), names(&["n1", "n2"]), "{text}");
    }

    #[test]
    fn a_node_more_is_planned_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Wanted {
            nodes: Some(2),
            witness: 1,
            config: None,
            netns: false,
            base: None,
            keep: false,
            tls: false,
        };
        let mut layout = Layout::plan(dir.path(), &wanted).unwrap();
        let roles: Vec<_> = layout.nodes.iter().map(|n| (n.witness, n.http.is_some())).collect();
        assert_eq!(roles, [(false, true), (false, true), (true, false)]);
        let at = layout.add("n6", false).unwrap();
        assert_eq!(layout.nodes[at].grpc.as_deref(), Some("127.0.0.16:7100"));
        assert_eq!(layout.nodes[at].http.as_deref(), Some("127.0.0.16:8080"));
        assert!(layout.add("n6", false).unwrap_err().contains("already"));
        layout.remove(at);
        assert_eq!(layout.nodes.len(), 3);
        assert!(!dir.path().join("n6.cfg").exists());
    }

    #[test]
    fn with_tls_every_node_has_a_certificate_of_the_clusters_ca() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Wanted {
            nodes: Some(2),
            witness: 0,
            config: None,
            netns: false,
            base: None,
            keep: true,
            tls: true,
        };
        let layout = Layout::plan(dir.path(), &wanted).unwrap();
        let text = std::fs::read_to_string(&layout.config).unwrap();
        assert!(text.contains(&format!("cluster local\n    {TLS_LINE}\n")), "{text}");
        let ca = std::fs::read(dir.path().join("tls/ca.pem")).unwrap();
        // Once more in the same directory: the same authority, whatever was asked for.
        let mut layout = Layout::plan(dir.path(), &Wanted { tls: false, ..wanted }).unwrap();
        assert_eq!(std::fs::read(dir.path().join("tls/ca.pem")).unwrap(), ca);
        assert_eq!(std::fs::read_to_string(&layout.config).unwrap(), text);
        let at = layout.add("n5", false).unwrap();
        for node in ["n1", "n2", "n5"] {
            let crt = std::fs::read(dir.path().join(format!("tls/{node}.pem"))).unwrap();
            let files = phalanx_cluster::tls::Files { crt, ca: Some(ca.clone()), verify: true };
            assert!(phalanx_cluster::tls::Tls::new(files).is_ok());
        }
        layout.remove(at);
        assert!(!dir.path().join("tls/n5.pem").exists());
        let other = TEXT.replace("    data-dir /d", "    ssl crt /x ca-file /y");
        assert!(with_tls(&other).unwrap_err().contains("already"));
        assert!(with_tls("global\n").is_err());
    }

    #[test]
    fn a_base_is_a_loopback_prefix() {
        assert_eq!("127.3.9".parse(), Ok(Base([127, 3, 9])));
        for bad in ["127.0", "127.0.0.1", "10.0.0", "127.0.x", "127.0.300"] {
            assert!(bad.parse::<Base>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_built_in_configuration_says_where_things_are() {
        let dir = tempfile::tempdir().unwrap();
        for nodes in [3, 5] {
            let wanted = Wanted {
                nodes: Some(nodes),
                witness: 0,
                config: None,
                netns: false,
                base: None,
                keep: false,
                tls: false,
            };
            let layout = Layout::plan(dir.path(), &wanted).unwrap();
            assert_eq!(layout.nodes.len(), usize::from(nodes));
            let last = layout.nodes.last().unwrap();
            let addr = format!("127.0.0.{}", 10 + nodes);
            assert_eq!(last.http, Some(format!("{addr}:8080")));
            assert_eq!(last.cli, Some(format!("{addr}:9999")));
            assert_eq!(last.grpc, Some(format!("{addr}:7100")));
            assert_eq!(last.stats, Some(format!("http://{addr}:8404/stats")));
            assert_eq!(layout.vips, [("web".to_owned(), "127.0.0.100".parse().unwrap())]);
        }
    }
}

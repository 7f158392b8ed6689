//! A whole cluster in a laboratory, of Phalanx nodes or of HAProxys with keepalived, with those who
//! watch it: a client that probes the floating address, and a witness beside each node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Disk, Faults, Network, Program, Shim, Station};
use crate::phalanx;
use crate::probe::{Prober, Span, Witness};

/// Where every node answers probes with its name, on the floating address.
pub const PROBED: u16 = 8081;
/// Where nobody listens: the witnesses knock there.
const CLOSED: u16 = 9;
const PROBE_EVERY: Duration = Duration::from_millis(5);
const KNOCK_EVERY: Duration = Duration::from_millis(2);

/// What a cluster of Phalanx nodes is to be like.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How many nodes.
    pub nodes: usize,
    /// Words after `vip web ADDR interface eth0 announce arp`, and more lines of `cluster`.
    pub vip: String,
    /// More lines of `cluster`.
    pub cluster: String,
    /// More sections. `NODE`, `NODE_ADDR`, `VIP_ADDR` and `SERVER_ADDR` are in the environment.
    pub sections: String,
    /// With what is needed for clock steps, slow and failing syncs, and full disks.
    pub disks: bool,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec { nodes: 3, vip: String::new(), cluster: String::new(), sections: String::new(), disks: false }
    }
}

/// A running cluster and its watchers. Dropped, all ends.
#[derive(Debug)]
pub struct Rig {
    /// Who answers the client.
    pub prober: Prober,
    witnesses: Vec<Witness>,
    /// The nodes, in the network's order.
    pub stations: Vec<Station>,
    /// Faults inside the nodes; empty unless asked for.
    pub faults: Vec<Faults>,
    /// The nodes' disks; empty unless asked for.
    pub disks: Vec<Disk>,
    /// The network.
    pub network: Network,
    origin: Instant,
    dir: TempDir,
}

impl Rig {
    /// Starts Phalanx nodes; does not wait for them.
    ///
    /// # Errors
    /// What is missing or failed.
    pub fn phalanx(spec: &Spec) -> Result<Rig, String> {
        Rig::phalanx_with(spec, |_| Ok(()))
    }

    /// As [`Rig::phalanx`], in a directory that `prepare` has filled.
    ///
    /// # Errors
    /// As [`Rig::phalanx`].
    pub fn phalanx_with(
        spec: &Spec,
        prepare: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<Rig, String> {
        let names: Vec<String> = (1..=spec.nodes).map(|n| format!("n{n}")).collect();
        let network = Network::new(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        prepare(dir.path())?;
        let config = dir.path().join("phalanx.cfg");
        std::fs::write(&config, configuration(spec)).map_err(|e| e.to_string())?;
        let shim = spec.disks.then(|| Shim::build(dir.path())).transpose()?;
        let (mut stations, mut faults, mut disks) = (Vec::new(), Vec::new(), Vec::new());
        for (index, name) in names.iter().enumerate() {
            if spec.disks {
                disks.push(Disk::mount(&dir.path().join(name), 48)?);
            }
            let log = dir.path().join(format!("{name}.log"));
            let args = ["-f".as_ref(), config.as_os_str(), "-L".as_ref(), name.as_ref()];
            let mut program = Program::new(&network.namespace(name), phalanx(), &args, log)
                .env("NODE", name)
                .env("NODE_ADDR", network.addr(index))
                .env("VIP_ADDR", network.vip())
                .env("SERVER_ADDR", network.servers())
                .env("DIR", dir.path().display());
            for number in 0..spec.nodes {
                program = program.env(&format!("N{}_ADDR", number + 1), network.addr(number));
            }
            if let Some(shim) = &shim {
                faults.push(Faults::new(&dir.path().join(format!("{name}.faults")))?);
                program = faults[index].inject(program, shim);
            }
            stations.push(Station::new(name, vec![program], Some(dir.path().join(format!("{name}.sock")))));
        }
        Rig::start(network, stations, faults, disks, dir)
    }

    /// Starts HAProxys with keepalived, with so much time between two adverts.
    ///
    /// # Errors
    /// What is missing or failed.
    pub fn keepalived(nodes: usize, advert: Duration) -> Result<Rig, String> {
        let find = |name| {
            crate::bench::find(name)
                .ok_or_else(|| format!("needs the program '{name}': apt-get install {name}"))
        };
        let (keepalived, haproxy) = (find("keepalived")?, find("haproxy")?);
        let names: Vec<String> = (1..=nodes).map(|n| format!("n{n}")).collect();
        let network = Network::new(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let mut stations = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let path = |suffix: &str| dir.path().join(format!("{name}.{suffix}"));
            let write =
                |suffix: &str, text: String| std::fs::write(path(suffix), text).map_err(|e| e.to_string());
            write("vrrp", vrrp(&network, index, advert))?;
            write(
                "haproxy",
                format!(
                    "defaults\n mode http\n timeout connect 2s\n timeout client 5s\n timeout server 5s\nfrontend probe\n \
                 bind *:{PROBED}\n http-request return status 200 content-type text/plain string {name}\n"
                ),
            )?;
            let words = |list: &[(&str, PathBuf)]| -> Vec<String> {
                list.iter()
                    .flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()])
                    .collect()
            };
            let mut args = words(&[
                ("-f", path("vrrp")),
                ("-p", path("pid")),
                ("-r", path("vrrp.pid")),
                ("-c", path("check.pid")),
            ]);
            args.extend(["-n".to_owned(), "-l".to_owned(), "-P".to_owned()]);
            let namespace = network.namespace(name);
            let mover = Program::new(&namespace, &keepalived, &args, path("log"));
            let args = ["-db".to_owned(), "-f".to_owned(), path("haproxy").display().to_string()];
            let proxy = Program::new(&namespace, &haproxy, &args, path("haproxy.log"));
            stations.push(Station::new(name, vec![mover, proxy], None));
        }
        Rig::start(network, stations, Vec::new(), Vec::new(), dir)
    }

    fn start(
        network: Network,
        mut stations: Vec<Station>,
        faults: Vec<Faults>,
        disks: Vec<Disk>,
        dir: TempDir,
    ) -> Result<Rig, String> {
        for station in &mut stations {
            station.start()?;
        }
        let origin = Instant::now();
        let prober =
            Prober::start(&network.client(), SocketAddr::new(network.vip(), PROBED), PROBE_EVERY, origin);
        let knock = SocketAddr::new(network.vip(), CLOSED);
        let witness = |index| Witness::start(&network.witness(index), knock, KNOCK_EVERY, origin);
        let witnesses = (0..stations.len()).map(witness).collect();
        Ok(Rig { prober, witnesses, stations, faults, disks, network, origin, dir })
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The moment from which all times are counted.
    pub fn origin(&self) -> Instant {
        self.origin
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// When each node's kernel had the floating address.
    pub fn held(&self) -> Vec<Vec<Span>> {
        self.witnesses.iter().map(Witness::spans).collect()
    }

    /// Place of a node in the lists.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.network.nodes().iter().position(|n| n == name)
    }

    /// Who answered the client in the last `within`.
    pub fn holder(&self, within: Duration) -> Option<usize> {
        self.index(&self.prober.last(self.now().saturating_sub(within))?)
    }

    /// Waits until one node has answered all probes for a while.
    ///
    /// # Errors
    /// After `limit`; with the nodes' last words.
    pub fn settle(&self, quiet: Duration, limit: Duration) -> Result<usize, String> {
        let began = self.now();
        loop {
            let shots = self.prober.since(self.now().saturating_sub(quiet));
            let who = shots.iter().map(|s| s.body()).collect::<std::collections::BTreeSet<_>>();
            let enough = shots.len() >= (quiet.as_millis() / 10) as usize;
            if let (true, 1, Some(Some(name))) =
                (enough && self.now() - began > quiet, who.len(), who.first())
                && let Some(index) = self.index(name)
            {
                return Ok(index);
            }
            if self.now() > began + limit {
                return Err(format!(
                    "no single holder within {limit:?}\n{}\n{}",
                    self.diagnosis(),
                    self.logs(25)
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until every node would take the address, as it says itself.
    ///
    /// # Errors
    /// After `limit`; with what the nodes say.
    pub fn all_fit(&self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            let said: Vec<String> = self
                .stations
                .iter()
                .map(|s| s.api("show vip json", Duration::from_secs(2)).unwrap_or_default())
                .collect();
            if said.iter().all(|text| fit(text, self.stations.len())) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not all nodes are fit within {limit:?}: {said:?}\n{}", self.logs(25)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the nodes and their kernels say of the floating address, and where their threads stand.
    fn diagnosis(&self) -> String {
        let mut text = String::new();
        for station in &self.stations {
            let namespace = self.network.namespace(station.name());
            let said = station.api("show vip", Duration::from_secs(2));
            text += &format!("--- {} says:\n{}\n", station.name(), said.unwrap_or_else(|e| e.to_string()));
            for words in [&["ip", "-br", "addr"][..], &["nft", "list", "ruleset"]] {
                let mut command = std::process::Command::new("ip");
                let out = command.args(["netns", "exec", &namespace]).args(words).output();
                text +=
                    &out.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned());
            }
            text += &station.threads();
        }
        text
    }

    /// The ends of all logs.
    pub fn logs(&self, lines: usize) -> String {
        self.stations.iter().map(|s| s.log_tail(lines) + &s.threads()).collect()
    }
}

/// Whether all nodes are eligible by what one says.
fn fit(text: &str, nodes: usize) -> bool {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text.trim()) else { return false };
    let Some(listed) = value["vips"][0]["nodes"].as_array() else { return false };
    let held = value["vips"][0]["holder"].is_string();
    held && listed.len() == nodes && listed.iter().all(|n| n["eligible"] == true)
}

fn configuration(spec: &Spec) -> String {
    let node = |n| format!("    node n{n} \"${{N{n}_ADDR}}:7100\"\n");
    let nodes: String = (1..=spec.nodes).map(node).collect();
    let Spec { vip, cluster, sections, .. } = spec;
    format!(
        "global\n    log stdout format raw local0 notice\n    maxconn 4000\n    nbthread 2\n\
         \x20   stats socket \"${{DIR}}/${{NODE}}.sock\" mode 600 level admin\n\
         cluster lab\n{nodes}    data-dir \"${{DIR}}/${{NODE}}/data\"\n\
         \x20   vip web \"${{VIP_ADDR}}/24\" interface eth0 announce arp {vip}\n{cluster}\n\
         defaults\n    mode http\n    timeout connect 2s\n    timeout client 5s\n    timeout server 5s\n\
         \x20   timeout queue 5s\n\
         frontend probe\n    bind \"${{VIP_ADDR}}:{PROBED}\"\n    bind \"${{NODE_ADDR}}:{PROBED}\"\n\
         \x20   http-request return status 200 content-type text/plain string \"${{NODE}}\"\n{sections}\n"
    )
}

/// What keepalived is told. As with us, no node takes the address from another that holds it.
fn vrrp(network: &Network, index: usize, advert: Duration) -> String {
    let peers: String = (0..network.nodes().len())
        .filter(|n| *n != index)
        .map(|n| format!("  {}\n", network.addr(n)))
        .collect();
    format!(
        "global_defs {{\n router_id {name}\n vrrp_version 3\n vrrp_garp_master_refresh 0\n}}\n\
         vrrp_instance web {{\n state BACKUP\n interface eth0\n virtual_router_id 51\n nopreempt\n priority {priority}\n \
         advert_int {advert}\n unicast_src_ip {own}\n unicast_peer {{\n{peers} }}\n virtual_ipaddress {{\n  {vip}/24 dev eth0\n }}\n}}\n",
        name = network.nodes()[index],
        priority = 150 - 10 * index,
        advert = advert.as_secs_f64(),
        own = network.addr(index),
        vip = network.vip(),
    )
}

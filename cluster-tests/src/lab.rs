//! A laboratory: network namespaces on a bridge whose links can be cut, slowed and made to lose
//! packets, one for each node, one for clients, and a witness beside each node.
//!
//! All addresses lie inside the namespaces, so laboratories never meet. A witness is joined to its
//! node by a link of its own, which no fault touches: it asks the node's kernel for the floating
//! address even when the rest of the world cannot. Names begin with the pid of the process that made
//! them, and [`Network::new`] sweeps up what dead ones left behind. Needs root, `ip`, `nft` and `tc`.

mod disk;
mod faults;
mod node;
mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

pub use self::disk::{Disk, corrupt_tail};
pub use self::faults::{Faults, Shim};
pub use self::node::{Program, Station, end};
pub use self::rig::{PROBED, Rig, Spec};

/// Whether a laboratory can be made here, or what is missing.
///
/// # Errors
/// What is missing.
pub fn possible() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("network namespaces need root".into());
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("tc", "iproute2")] {
        if crate::bench::find(program).is_none() {
            return Err(format!("the program '{program}' (package {package}) is missing"));
        }
    }
    Ok(())
}

/// The namespaces and what joins them. Dropped, all is removed.
#[derive(Debug)]
pub struct Network {
    tag: String,
    nodes: Vec<String>,
    drops: BTreeSet<Drops>,
    down: BTreeSet<usize>,
    slow: BTreeSet<usize>,
}

/// Packets that the bridge loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drops {
    /// Sent by this node; `None`: by any station.
    pub from: Option<usize>,
    /// To this node; `None`: to any station.
    pub to: Option<usize>,
    /// How many of a hundred.
    pub percent: u8,
}

const HUB: &str = "hub";
const CLIENT: &str = "client";

impl Network {
    /// Makes it, with a station for each name.
    ///
    /// # Errors
    /// What failed.
    pub fn new(nodes: &[&str]) -> Result<Network, String> {
        possible()?;
        sweep();
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let network = Network {
            tag: format!("{TAG}{}-{serial}", std::process::id()),
            nodes: nodes.iter().map(|n| (*n).to_owned()).collect(),
            drops: BTreeSet::new(),
            down: BTreeSet::new(),
            slow: BTreeSet::new(),
        };
        network.create()?;
        Ok(network)
    }

    fn create(&self) -> Result<(), String> {
        let hub = self.hub();
        ip(&["netns", "add", &hub])?;
        batch(
            &hub,
            &format!(
                "link set lo up\nlink add br0 type bridge forward_delay 0\nlink set br0 up\naddr add {}/24 dev br0\n",
                self.servers()
            ),
        )?;
        for (index, name) in self.nodes.iter().enumerate() {
            self.attach(&format!("p{index}"), &self.namespace(name), self.addr(index))?;
            self.watch(index)?;
        }
        self.attach("pc", &self.client(), Ipv4Addr::new(10, 214, 0, 200).into())
    }

    fn attach(&self, port: &str, namespace: &str, addr: IpAddr) -> Result<(), String> {
        let hub = self.hub();
        ip(&["netns", "add", namespace])?;
        let veth =
            ["link", "add", port, "netns", &hub, "type", "veth", "peer", "name", "eth0", "netns", namespace];
        ip(&veth)?;
        batch(namespace, &format!("link set lo up\naddr add {addr}/24 dev eth0\nlink set eth0 up\n"))?;
        batch(&hub, &format!("link set {port} master br0 up\n"))
    }

    /// Joins a witness to a node, with fixed hardware addresses: it asks nobody where the address is.
    fn watch(&self, index: usize) -> Result<(), String> {
        let (node, witness) = (self.namespace(&self.nodes[index]), self.witness(index));
        ip(&["netns", "add", &witness])?;
        ip(&[
            "link", "add", "wit", "netns", &node, "type", "veth", "peer", "name", "wit", "netns", &witness,
        ])?;
        batch(
            &node,
            &format!(
                "link set wit address {NODE_MAC}\naddr add 10.215.{index}.1/30 dev wit\nlink set wit up\n"
            ),
        )?;
        let vip = self.vip();
        batch(
            &witness,
            &format!(
                "link set lo up\naddr add 10.215.{index}.2/30 dev wit\nlink set wit up\nroute add {vip}/32 dev wit\n\
                 neigh replace {vip} lladdr {NODE_MAC} nud permanent dev wit\n"
            ),
        )
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// Address of a node.
    pub fn addr(&self, index: usize) -> IpAddr {
        Ipv4Addr::new(10, 214, 0, 11 + index as u8).into()
    }

    /// The floating address.
    pub fn vip(&self) -> IpAddr {
        Ipv4Addr::new(10, 214, 0, 100).into()
    }

    /// Where servers run: beside the bridge, out of reach of the faults of single links.
    pub fn servers(&self) -> IpAddr {
        Ipv4Addr::new(10, 214, 0, 1).into()
    }

    /// Namespace of the servers.
    pub fn hub(&self) -> String {
        self.namespace(HUB)
    }

    /// Namespace of the clients.
    pub fn client(&self) -> String {
        self.namespace(CLIENT)
    }

    /// Namespace of the witness of a node.
    pub fn witness(&self, index: usize) -> String {
        self.namespace(&format!("w{index}"))
    }

    /// Namespace of a station.
    pub fn namespace(&self, station: &str) -> String {
        format!("{}-{station}", self.tag)
    }

    /// Loses packets at the bridge, in addition to what it loses already.
    ///
    /// # Errors
    /// `nft` failed.
    pub fn lose(&mut self, drops: impl IntoIterator<Item = Drops>) -> Result<(), String> {
        self.drops.extend(drops);
        self.filter()
    }

    /// Loses everything between a node and the other nodes, in both directions; clients and servers
    /// still reach it.
    ///
    /// # Errors
    /// `nft` failed.
    pub fn part(&mut self, node: usize) -> Result<(), String> {
        let others = (0..self.nodes.len()).filter(|n| *n != node).collect::<Vec<_>>();
        let pairs = others.into_iter().flat_map(|o| [(node, o), (o, node)]);
        self.lose(
            pairs
                .map(|(from, to)| Drops { from: Some(from), to: Some(to), percent: 100 })
                .collect::<Vec<_>>(),
        )
    }

    /// Loses everything from and to a node, as if the machine were gone.
    ///
    /// # Errors
    /// `nft` failed.
    pub fn isolate(&mut self, node: usize) -> Result<(), String> {
        let all = |from, to| Drops { from, to, percent: 100 };
        self.lose([all(Some(node), None), all(None, Some(node))])
    }

    /// Takes a node's link down: it sees that its carrier is gone.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn unplug(&mut self, node: usize) -> Result<(), String> {
        self.down.insert(node);
        batch(&self.hub(), &format!("link set p{node} down\n"))
    }

    /// Makes a node's link slow in both directions: packets queue up to 300 ms.
    ///
    /// # Errors
    /// `tc` failed.
    pub fn throttle(&mut self, node: usize) -> Result<(), String> {
        self.slow.insert(node);
        let words = "root tbf rate 400kbit burst 3000 latency 300ms";
        self.tc(&self.hub(), &format!("qdisc replace dev p{node} {words}"))?;
        self.tc(&self.namespace(&self.nodes[node]), &format!("qdisc replace dev eth0 {words}"))
    }

    /// Undoes every fault of the network.
    ///
    /// # Errors
    /// A tool failed.
    pub fn heal(&mut self) -> Result<(), String> {
        self.drops.clear();
        self.filter()?;
        for node in std::mem::take(&mut self.down) {
            batch(&self.hub(), &format!("link set p{node} up\n"))?;
        }
        for node in std::mem::take(&mut self.slow) {
            self.tc(&self.hub(), &format!("qdisc del dev p{node} root"))?;
            self.tc(&self.namespace(&self.nodes[node]), "qdisc del dev eth0 root")?;
        }
        Ok(())
    }

    /// Removes the floating address from a node's interface, as the end of a machine would.
    pub fn forget_address(&self, node: usize) {
        let namespace = self.namespace(&self.nodes[node]);
        let _ = ip(&["-n", &namespace, "addr", "del", &format!("{}/24", self.vip()), "dev", "eth0"]);
        let _ = ip(&["-n", &namespace, "addr", "del", &format!("{}/32", self.vip()), "dev", "eth0"]);
    }

    /// Lets the clients ask anew who has the floating address.
    pub fn forget_neighbours(&self) {
        let _ = ip(&["-n", &self.client(), "neigh", "flush", "dev", "eth0"]);
    }

    fn tc(&self, namespace: &str, words: &str) -> Result<(), String> {
        let args = ["-n", namespace].into_iter().chain(words.split(' ')).collect::<Vec<_>>();
        run("tc", &args, "").map(drop)
    }

    /// Puts the whole packet filter in force at once.
    fn filter(&self) -> Result<(), String> {
        run("ip", &["netns", "exec", &self.hub(), "nft", "-f", "-"], &ruleset(&self.drops)).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&format!("{}-", self.tag));
    }
}

/// The bridge's packet filter. What a node sends to the servers or gets from them passes the hub itself.
fn ruleset(drops: &BTreeSet<Drops>) -> String {
    let mut chains: BTreeMap<&str, String> = BTreeMap::new();
    for Drops { from, to, percent } in drops {
        let mut rule = String::new();
        if let Some(from) = from {
            let _ = write!(rule, "iifname \"p{from}\" ");
        }
        if let Some(to) = to {
            let _ = write!(rule, "oifname \"p{to}\" ");
        }
        if *percent < 100 {
            let _ = write!(rule, "numgen random mod 100 < {percent} ");
        }
        let hooks: &[&str] = match (from, to) {
            (Some(_), None) => &["forward", "input"],
            (None, Some(_)) => &["forward", "output"],
            _ => &["forward"],
        };
        for hook in hooks {
            let _ = writeln!(chains.entry(hook).or_default(), "{rule} drop");
        }
    }
    let mut text = "table bridge lab {}\ndelete table bridge lab\ntable bridge lab {\n".to_owned();
    for (hook, rules) in chains {
        let _ =
            write!(text, "chain {hook} {{ type filter hook {hook} priority 0; policy accept;\n{rules}}}\n");
    }
    text + "}\n"
}

/// Runs `f` on a thread in a network namespace; threads that it starts are there too.
///
/// # Panics
/// When the namespace cannot be entered, or `f` panics.
pub fn inside<T: Send>(namespace: &str, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(namespace);
                f()
            })
            .join()
            .expect("it does not panic")
    })
}

/// Moves this thread into a network namespace.
///
/// # Panics
/// When that fails.
pub fn enter(namespace: &str) {
    let file = File::open(format!("/var/run/netns/{namespace}")).expect("the namespace exists");
    setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
}

/// Removes what laboratories of dead processes have left.
fn sweep() {
    let mut dead = BTreeSet::new();
    for name in namespaces() {
        let Some(pid) = name.strip_prefix(TAG).and_then(|n| n.split('-').next()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            dead.insert(pid.to_owned());
        }
    }
    for pid in dead {
        remove(&format!("{TAG}{pid}-"));
    }
}

/// Removes all namespaces that begin so; their interfaces go with them.
fn remove(prefix: &str) {
    for name in namespaces().iter().filter(|n| n.starts_with(prefix)) {
        let _ = ip(&["netns", "del", name]);
    }
}

fn namespaces() -> Vec<String> {
    let entries = std::fs::read_dir("/var/run/netns").into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn ip(args: &[&str]) -> Result<String, String> {
    run("ip", args, "")
}

fn batch(namespace: &str, commands: &str) -> Result<(), String> {
    run("ip", &["-n", namespace, "-batch", "-"], commands).map(drop)
}

/// Runs a program with this on its standard input, and returns what it printed.
fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let what = format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("'{what}': {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that gave up early says why below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let out = child.wait_with_output().map_err(|e| format!("'{what}': {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!("'{what}' failed: {}{input}", String::from_utf8_lossy(&out.stderr)))
}

const TAG: &str = "phxlab";
const NODE_MAC: &str = "02:00:00:00:00:0a";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_to_and_from_the_servers_pass_the_hub_itself() {
        let drops = BTreeSet::from([
            Drops { from: Some(0), to: Some(1), percent: 100 },
            Drops { from: None, to: Some(2), percent: 30 },
        ]);
        let text = ruleset(&drops);
        assert_eq!(text.matches("iifname \"p0\" oifname \"p1\"  drop").count(), 1, "{text}");
        assert_eq!(text.matches("oifname \"p2\" numgen random mod 100 < 30  drop").count(), 2, "{text}");
        assert!(text.contains("hook output") && !text.contains("hook input"), "{text}");
    }
}

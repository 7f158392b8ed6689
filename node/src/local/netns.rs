//! A network of its own for each node (`--netns`): namespaces on a bridge, made with iproute2.
//!
//! The bridge lies in a namespace too (the hub, where the demo servers run), so that no packet filter
//! of the machine is in the way; the machine is one more station on it, and so is a client
//! namespace. A partition gives both ends a neighbour entry for the other that leads nowhere:
//! packets are lost silently, as in a real one, and nobody is told.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::layout::Base;

/// Last numbers of the addresses of the hub, the client and the machine itself; the nodes follow
/// the layout.
const HUB_AT: u8 = 1;
const CLIENT_AT: u8 = 200;
const MACHINE_AT: u8 = 254;
/// Address that no interface has: where a partition sends packets.
const NOWHERE: &str = "02:00:00:00:00:01";

/// The planned network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Network {
    /// Begins every name that it makes.
    tag: String,
    /// First three numbers of its addresses.
    pub base: Base,
    /// Names of the nodes, and the last numbers of their addresses.
    nodes: Vec<(String, u8)>,
}

impl Network {
    /// Plans names and addresses that no other cluster uses.
    pub(super) fn plan(dir: &Path, nodes: Vec<(String, u8)>) -> Result<Network, String> {
        if phalanx_sys::process::effective_uid() != 0 {
            return Err("--netns needs root: it makes network namespaces".into());
        }
        let taken = ip(&["-4", "-o", "addr", "show"])?;
        let mut hash = DefaultHasher::new();
        dir.hash(&mut hash);
        let hash = hash.finish();
        let free = (0..=255u8)
            .map(|i| Base([10, 213, (hash as u8).wrapping_add(i)]))
            .find(|b| !taken.contains(&format!(" 10.213.{}.", b.0[2])))
            .ok_or("no free network in 10.213.0.0/16")?;
        Ok(Network { tag: format!("phx{:06x}", hash >> 40), base: free, nodes })
    }

    /// Words before a command that is to run in a node's namespace.
    pub(super) fn enter(&self, node: &str) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace(node)].map(str::to_owned).to_vec()
    }

    /// Words before a command that is to run beside the bridge.
    pub(super) fn enter_hub(&self) -> Vec<String> {
        self.enter(HUB)
    }

    /// Namespace for clients.
    pub(super) fn client_namespace(&self) -> String {
        self.namespace(CLIENT)
    }

    /// Makes everything.
    pub(super) fn create(&self) -> Result<(), String> {
        let hub = self.namespace(HUB);
        for name in self.stations().map(|(name, _)| name).chain([HUB]) {
            ip(&["netns", "add", &self.namespace(name)])?;
        }
        batch(
            &hub,
            &format!(
                "link set lo up\nlink add br0 type bridge forward_delay 0\nlink set br0 up\n\
                 addr add {}/24 dev br0\n",
                self.base.addr(HUB_AT)
            ),
        )?;
        for (name, last) in self.stations() {
            self.connect(name, last)?;
        }
        ip(&["link", "add", &self.tag, "type", "veth", "peer", "name", "machine", "netns", &hub])?;
        ip(&["addr", "add", &format!("{}/24", self.base.addr(MACHINE_AT)), "dev", &self.tag])?;
        ip(&["link", "set", &self.tag, "up"])?;
        batch(&hub, "link set machine master br0 up\n")
    }

    /// Connects a station's namespace with the bridge.
    fn connect(&self, name: &str, last: u8) -> Result<(), String> {
        let (hub, namespace) = (self.namespace(HUB), self.namespace(name));
        let (port, addr) = (format!("p{last}"), self.base.addr(last));
        ip(&[
            "link", "add", &port, "netns", &hub, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
        ])?;
        batch(&namespace, &format!("link set lo up\naddr add {addr}/24 dev eth0\nlink set eth0 up\n"))?;
        batch(&hub, &format!("link set {port} master br0 up\n"))
    }

    /// Makes a namespace for one node more.
    pub(super) fn join(&mut self, name: &str, last: u8) -> Result<(), String> {
        ip(&["netns", "add", &self.namespace(name)])?;
        self.nodes.push((name.to_owned(), last));
        self.connect(name, last).inspect_err(|_| self.leave(name))
    }

    /// Removes the namespace of a node, if it has one.
    pub(super) fn leave(&mut self, name: &str) {
        self.nodes.retain(|(node, _)| node != name);
        let _ = ip(&["netns", "del", &self.namespace(name)]);
    }

    /// Removes everything, whatever part of it is there.
    pub(super) fn destroy(&self) {
        let _ = ip(&["link", "del", &self.tag]);
        for name in self.stations().map(|(name, _)| name).chain([HUB]) {
            let _ = ip(&["netns", "del", &self.namespace(name)]);
        }
    }

    /// Cuts exactly these nodes off from all others; the others see each other.
    pub(super) fn partition(&self, cut: &BTreeSet<String>) -> Result<(), String> {
        for (here, _) in self.node_addrs() {
            let mut commands = String::new();
            for (there, addr) in self.node_addrs().filter(|(there, _)| *there != here) {
                let apart = cut.contains(here) || cut.contains(there);
                commands += &match apart {
                    true => format!("neigh replace {addr} lladdr {NOWHERE} nud permanent dev eth0\n"),
                    // Made before it is removed: removing what is not there would be an error.
                    false => format!(
                        "neigh replace {addr} lladdr {NOWHERE} nud permanent dev eth0\nneigh del {addr} dev eth0\n"
                    ),
                };
            }
            batch(&self.namespace(here), &commands)?;
        }
        Ok(())
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.tag)
    }

    fn node_addrs(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.nodes.iter().map(|(name, last)| (name.as_str(), self.base.addr(*last)))
    }

    fn stations(&self) -> impl Iterator<Item = (&str, u8)> {
        self.nodes.iter().map(|(name, last)| (name.as_str(), *last)).chain([(CLIENT, CLIENT_AT)])
    }
}

const HUB: &str = "hub";
const CLIENT: &str = "client";

/// Runs `ip` and returns what it printed.
fn ip(args: &[&str]) -> Result<String, String> {
    let out = Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(|e| cannot_run(&e))?;
    succeeded(&args.join(" "), &out)
}

/// Runs several commands of `ip` in a namespace.
fn batch(namespace: &str, commands: &str) -> Result<(), String> {
    let mut child = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| cannot_run(&e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // An `ip` that gave up early says why below.
        let _ = std::io::Write::write_all(&mut stdin, commands.as_bytes());
    }
    let out = child.wait_with_output().map_err(|e| cannot_run(&e))?;
    succeeded(&format!("-n {namespace} -batch"), &out).map(drop)
}

fn cannot_run(error: &std::io::Error) -> String {
    format!("--netns needs the program 'ip' (package iproute2): {error}")
}

fn succeeded(what: &str, out: &std::process::Output) -> Result<String, String> {
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!("'ip {what}' failed: {}", String::from_utf8_lossy(&out.stderr).trim()))
}

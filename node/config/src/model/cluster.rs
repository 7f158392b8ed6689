//! Other nodes: the `cluster` section with its floating IPs, and `peers` sections.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Pos;

/// The `cluster` section.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its name; serves as the name of a `peers` section.
    pub name: String,
    /// `node` lines.
    pub nodes: Vec<ClusterNode>,
    /// `peer` lines: HAProxys that share its stick tables.
    pub peers: Vec<Peer>,
    /// `data-dir`: the raft log and snapshots.
    pub data_dir: PathBuf,
    /// `join`: this node founds no cluster, it only joins one.
    pub join: bool,
    /// `vip` lines.
    pub vips: Vec<Vip>,
    /// `vip-lease`; `None`: the default.
    pub vip_lease: Option<Duration>,
    /// `vip-drain`; `None`: the default.
    pub vip_drain: Option<Duration>,
    /// `ssl`: the nodes talk TLS with each other.
    pub ssl: Option<ClusterSsl>,
    /// Where the section starts.
    pub pos: Pos,
}

/// What `vip-lease` may be. A holder may use of its lease seven eighths, less 12 ms for the kernel's timers;
/// within what is left beside the quarter between two renewals (25 ms of 60) a renewal has to get to
/// another node, back, and to kernel and guardian, or the VIP would be given up for nothing. Above ten
/// seconds a dead holder would be missed for longer than people wait.
pub const VIP_LEASE: std::ops::RangeInclusive<Duration> = Duration::from_millis(60)..=Duration::from_secs(10);

/// What `vip-drain` may be: not less than neighbours need to hear of the next holder.
pub const VIP_DRAIN: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);

/// `ssl crt FILE [ca-file FILE] [verify required|none]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSsl {
    /// `crt`: certificate, chain and private key of this node, in PEM.
    pub crt: PathBuf,
    /// `ca-file`: who signs the certificates of the nodes. Always there with `verify required`.
    pub ca_file: Option<PathBuf>,
    /// `verify required`, the default: both sides show a certificate, and each checks the other's.
    pub verify: bool,
    /// Where it was declared.
    pub pos: Pos,
}

/// A `peers` section: stick tables are shared in HAProxy's protocol, with HAProxy's meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Peers {
    /// What `stick-table ... peers` refers to.
    pub name: String,
    /// `peer` and `server` lines, this node among them.
    pub peers: Vec<Peer>,
    /// `bind`: `host:port`.
    pub bind: Option<String>,
    /// `disabled`.
    pub disabled: bool,
    /// Where the section starts.
    pub pos: Pos,
}

/// `peer NAME ADDR:PORT`, `server NAME [ADDR:PORT]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Unique in the section; `-L` says which one this node is.
    pub name: String,
    /// `host:port` as written; resolved when connecting. `None`: this node, on the address of `bind`.
    pub addr: Option<String>,
    /// Where it was declared.
    pub pos: Pos,
}

/// `node NAME ADDR:PORT [witness]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterNode {
    /// Unique in the cluster; compared with `-L`.
    pub name: String,
    /// `host:port` as written; resolved when connecting, so that a name that does not resolve is a
    /// warning and not a failed start.
    pub addr: String,
    /// Votes, but never holds a VIP.
    pub witness: bool,
    /// Where it was declared.
    pub pos: Pos,
}

/// `vip NAME ADDR[/LEN] [interface IF] [announce MODE] [prefer NODE] [on-quorum-loss POLICY]
/// [exec-timeout TIME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vip {
    /// Unique in the cluster.
    pub name: String,
    /// The floating address.
    pub addr: IpAddr,
    /// Prefix length; default 32 or 128.
    pub prefix: u8,
    /// `interface`, needed by `announce arp`.
    pub interface: Option<String>,
    /// `announce`.
    pub announce: Announce,
    /// `prefer`: name of a node.
    pub prefer: Option<String>,
    /// `on-quorum-loss hold`: the last holder keeps it without a majority; else it lets go.
    pub hold: bool,
    /// `exec-timeout`: how long a program of `announce exec` may take.
    pub exec_timeout: Duration,
    /// Where it was declared.
    pub pos: Pos,
}

/// How the holder of a VIP makes it its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announce {
    /// The address is put on the interface, and neighbours are told.
    Arp,
    /// Only the holder listens on it.
    Listen,
    /// Only the holder answers health checks on this port: a load balancer in front sends it the traffic.
    HealthPort(u16),
    /// A program moves it, a route of a cloud for instance.
    Exec(PathBuf),
}

//! Tests with a network namespace for each node: addresses by ARP, a client of its own, partitions.
//!
//! They need root and iproute2; without, each says so and passes.

mod chaos;
mod checks;
mod confined;
mod failover;
mod moves;
mod partition;
mod service;
mod stops;
mod systemd;
mod terms;
mod vips;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster_tests::{Cluster, Response};
use nix::sched::{CloneFlags, setns};

/// A cluster in namespaces; one at a time, because the machine's own interface is part of each.
struct Netns {
    cluster: Cluster,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Netns {
    /// `None`, after saying why, where it can't be run.
    fn up() -> Option<Netns> {
        Netns::with(None)
    }

    /// With this configuration in place of the default one.
    fn with(config: Option<String>) -> Option<Netns> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not run: network namespaces need root");
            return None;
        }
        if !std::process::Command::new("ip").arg("-V").output().is_ok_and(|o| o.status.success()) {
            eprintln!("not run: the program 'ip' (package iproute2) is missing");
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let builder = Cluster::builder().netns();
        let builder = match config {
            Some(text) => builder.config(text),
            None => builder,
        };
        Some(Netns { cluster: builder.up(), _turn: turn })
    }

    /// The floating address with a port.
    fn vip(&self, port: u16) -> String {
        format!("{}:{port}", self.cluster.status().vips[0].address)
    }

    /// Name of the client's namespace, from the layout that `up` leaves in the cluster's directory.
    fn client(&self) -> String {
        let text = std::fs::read(self.cluster.dir().join("cluster.json")).unwrap();
        let layout: serde_json::Value = serde_json::from_slice(&text).unwrap();
        format!("{}-client", layout["network"]["tag"].as_str().unwrap())
    }
}

/// Runs `f` on a thread in a network namespace; threads that it starts are there too.
fn inside<T: Send>(namespace: &str, f: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(format!("/var/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        });
        thread.join().unwrap()
    })
}

/// Forgets who has which address, so that the next packet asks by ARP.
fn forget_neighbours(namespace: &str) {
    let status =
        std::process::Command::new("ip").args(["-n", namespace, "neigh", "flush", "dev", "eth0"]).status();
    assert!(status.unwrap().success());
}

/// The address of the node that forwarded a request: the demo servers tell from where it came.
fn forwarded_by(response: &Response) -> String {
    let text = response.text();
    let from = text.lines().find_map(|l| l.strip_prefix("from: ")).unwrap_or_else(|| panic!("{text}"));
    from.split(':').next().unwrap().to_owned()
}

/// Longest that the floating address may be silent.
const MOST: Duration = Duration::from_secs(3);

//! The node with the rights that `deploy/systemd/phalanx.service` gives it, and no others: not root, three
//! capabilities, nothing to be gained by executing anything.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cluster_tests::{Demo, Signal, get, kill, phalanx, until};

use super::confined::{Namespace, is_nobody};
use super::inside;

const SOON: Duration = Duration::from_secs(10);

const CONFIG: &str = "\
global
    localpeer n1
    stats socket DIR/sock mode 600 level admin
cluster c
    node n1 127.0.0.1:7100
    data-dir DIR/data
    vip web 198.51.100.7/24 interface eth0 announce arp
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
listen web
    bind 198.51.100.7:80
    server s1 127.0.0.1:9801
";

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The capabilities of the unit file, as `setpriv` writes them.
fn capabilities() -> Vec<String> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/phalanx.service");
    let unit = fs::read_to_string(unit).unwrap();
    let of = |key: &str| {
        let line = unit.lines().find_map(|l| l.strip_prefix(key)).expect("in the unit");
        line.split_whitespace().map(|c| c.trim_start_matches("CAP_").to_lowercase()).collect::<Vec<_>>()
    };
    assert_eq!(of("AmbientCapabilities="), of("CapabilityBoundingSet="));
    of("AmbientCapabilities=")
}

/// What any thread of a process has started.
fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let all: Vec<String> = tasks.map(|task| of(task.unwrap())).collect();
    all.iter().flat_map(|list| list.split_whitespace()).map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn the_rights_of_the_unit_suffice_for_a_vip_by_arp() {
    let has = |program: &str| Command::new(program).arg("-V").output().is_ok();
    if !nix::unistd::geteuid().is_root() || !has("ip") || !has("setpriv") {
        eprintln!("not run: it needs root and the programs 'ip' and 'setpriv'");
        return;
    }
    let space = Namespace::new("unit");
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let config = dir.path().join("phalanx.cfg");
    fs::write(&config, CONFIG.replace("DIR", &dir.path().display().to_string())).unwrap();
    let log = dir.path().join("log");
    let caps = capabilities().iter().map(|c| format!(",+{c}")).collect::<String>();
    let (_servers, child) = inside(&space.0, || {
        let servers = Demo::start(&[("s1", "127.0.0.1:9801".into())], &[]);
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
        for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
            command.arg(format!("{set}=-all{caps}"));
        }
        command.arg(phalanx()).args(["-Ws", "-f"]).arg(&config);
        let out = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        (servers, Process(command.spawn().unwrap()))
    });
    let output = || fs::read_to_string(&log).unwrap_or_default();
    until("the address is there", SOON, || space.has_vip());
    let pid = child.0.id();
    until("the node answers", SOON, || {
        inside(&space.0, || get("198.51.100.7:80", "/", &[]).is_ok_and(|r| r.server() == "s1"))
    });
    assert!(is_nobody(pid), "{}", output());
    // The kernel holds the lease: nothing was missing.
    let tables = Command::new("ip").args(["netns", "exec", &space.0, "nft", "list", "tables"]).output();
    if let Ok(tables) = tables {
        let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
        assert!(tables.contains("phalanx_vip"), "{tables}\n{}", output());
    }
    for word in ["not eligible", "nftables is not available", "neighbours not told"] {
        assert!(!output().contains(word), "{}", output());
    }
    let guardians = children(pid);
    assert!(!guardians.is_empty() && guardians.iter().all(|g| is_nobody(*g)), "{guardians:?}");

    // The guardian's rights suffice, too.
    kill(pid, Signal::SIGKILL);
    until("the address is gone", Duration::from_secs(1), || !space.has_vip());
}

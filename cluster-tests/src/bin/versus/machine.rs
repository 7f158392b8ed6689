//! What the machine gives: two CPUs, a network of our own, enough descriptors, and the programs.
//!
//! Changes only this process and those that it starts. The machine's own congestion control may be bbr,
//! which paces even on loopback: as root the bench has a network namespace of its own with another.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cluster_tests::bench::find;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, geteuid};

/// The proxy's CPU.
pub(crate) const PROXY_CPU: usize = 0;
/// That of all else.
pub(crate) const LOAD_CPU: usize = 1;

/// Descriptors that 10,000 connections with both of their ends need, with room.
const DESCRIPTORS: u64 = 120_000;

/// Moves this process to its place; what could not be had. To be called before any thread is started.
///
/// # Errors
/// There is only one CPU.
pub(crate) fn prepare() -> Result<Vec<String>, String> {
    let mut cpus = CpuSet::new();
    cpus.set(LOAD_CPU)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus))
        .map_err(|_| "needs two CPUs: one for the proxy, one for generator and origin")?;
    let mut missing = Vec::new();
    match own_network() {
        Ok(()) => {}
        Err(e) => missing.push(format!(
            "no network namespace of its own ({e}): on this machine's loopback, congestion control '{}'",
            congestion_control()
        )),
    }
    if !first_in_line() {
        missing.push("no right to a higher priority: other programs get in the way".into());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| format!("descriptors: {e}"))?;
    let raised = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, hard.max(DESCRIPTORS));
    if raised.is_err() && hard < DESCRIPTORS {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|e| format!("descriptors: {e}"))?;
        missing.push(format!("only {hard} descriptors: case i has {} connections", idle_connections()));
    }
    Ok(missing)
}

/// Puts what else runs on this machine after all that is measured, and after what measures.
fn first_in_line() -> bool {
    let own = std::process::id().to_string();
    let mut renice = Command::new("renice");
    renice.args(["-n", "-15", "-p", &own]).stdout(Stdio::null()).stderr(Stdio::null());
    renice.status().is_ok_and(|status| status.success())
}

/// The same for the session that this process belongs to: where the kernel groups processes by sessions,
/// priorities count only within each. Given back at the end.
#[derive(Debug)]
pub(crate) struct FirstSession(Option<String>);

const AUTOGROUP: &str = "/proc/self/autogroup";

impl FirstSession {
    pub(crate) fn new() -> FirstSession {
        // "/autogroup-12 nice 0"
        let text = std::fs::read_to_string(AUTOGROUP).unwrap_or_default();
        let before = text.trim().rsplit(' ').next().filter(|word| word.parse::<i32>().is_ok());
        let raised = before.is_some() && std::fs::write(AUTOGROUP, "-15").is_ok();
        FirstSession(before.filter(|_| raised).map(ToOwned::to_owned))
    }
}

impl Drop for FirstSession {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(AUTOGROUP, before);
        }
    }
}

/// What nginx needs for TCP, where Debian has it.
pub(crate) const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// `maxconn` of the proxies: two descriptors for each.
pub(crate) fn maxconn() -> u64 {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    (soft.saturating_sub(400) / 2).min(40_000)
}

/// Connections at rest in case i: 10,000 where there are descriptors for both of their ends.
pub(crate) fn idle_connections() -> usize {
    maxconn().saturating_sub(400).min(10_000) as usize
}

/// What paces connections here.
pub(crate) fn congestion_control() -> String {
    std::fs::read_to_string(CONGESTION_CONTROL).unwrap_or_default().trim().to_owned()
}

const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

fn own_network() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("not root".into());
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        return Err("cannot set lo up: apt-get install iproute2".into());
    }
    let write = |path: &str, text: &str| std::fs::write(path, text).map_err(|e| format!("{path}: {e}"));
    write(CONGESTION_CONTROL, "reno")?;
    // Connections that ended keep their ports for a while.
    write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65535")
}

/// What is compared, and what measures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    pub(crate) haproxy: Option<PathBuf>,
    pub(crate) nginx: Option<PathBuf>,
    pub(crate) h2load: Option<PathBuf>,
    pub(crate) perf: Option<PathBuf>,
    pub(crate) strace: Option<PathBuf>,
}

impl Tools {
    /// Looks for all, and says what to install for what is missing.
    ///
    /// # Errors
    /// The given HAProxy is none.
    pub(crate) fn look(haproxy: Option<&Path>) -> Result<(Tools, Vec<String>), String> {
        let mut missing = Vec::new();
        let mut look = |program: &str, package: &str, without: &str| {
            let found = find(program);
            if found.is_none() {
                missing.push(format!("no program '{program}': {without}; apt-get install {package}"));
            }
            found
        };
        let haproxy = match haproxy {
            Some(path) if path.is_file() => Some(path.to_owned()),
            Some(path) => return Err(format!("--haproxy {}: no such file", path.display())),
            None => look("haproxy", "haproxy", "it is left out"),
        };
        let tools = Tools {
            haproxy,
            nginx: look("nginx", "nginx libnginx-mod-stream", "it is left out"),
            h2load: look("h2load", "nghttp2-client", "case f fails"),
            perf: find("perf"),
            strace: find("strace"),
        };
        if tools.nginx.is_some() && !Path::new(STREAM_MODULE).exists() {
            missing.push(
                "nginx has no stream module: it is left out of TCP; apt-get install libnginx-mod-stream"
                    .into(),
            );
        }
        if find("taskset").is_none() {
            return Err("needs the program 'taskset': apt-get install util-linux".into());
        }
        if tools.perf.is_none() && tools.strace.is_none() {
            missing.push(
                "no program 'perf' or 'strace': syscalls are not counted; apt-get install strace".into(),
            );
        }
        Ok((tools, missing))
    }
}

/// The machine, for those who read the figures elsewhere.
pub(crate) fn description() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let cpus = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    format!(
        "CPUs {} of {}, Linux {}, congestion control {}",
        cpus.trim(),
        model.trim_start_matches(['\t', ' ', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        congestion_control()
    )
}

//! What the benchmarks have in common: processes whose CPU time and memory are read, and medians.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::until;

/// Median, least and most.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Most.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Spread { median, min: sorted[0], max: sorted[sorted.len() - 1] }
    }

    /// For `--json`.
    pub fn json(&self) -> serde_json::Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median < 100.0 { 2 } else { 0 };
        let mut text = String::new();
        write!(text, "{:.digits$} ({:.digits$}..{:.digits$})", self.median, self.min, self.max)?;
        write!(f, "{text:<28}")
    }
}

/// A process that ends with us.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it, with its output in `dir`.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(command: &mut Command, dir: &Path) -> Result<Running, String> {
        let log = dir.join("output");
        let out = std::fs::File::create(&log).map_err(|e| e.to_string())?;
        let again = out.try_clone().map_err(|e| e.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(again).spawn();
        let name = command.get_program().display().to_string();
        Ok(Running { child: child.map_err(|e| format!("cannot start {name}: {e}"))?, log })
    }

    /// Waits until an address answers.
    pub fn wait_for(&self, addr: &str) {
        until(&format!("{addr} answers: {}", self.output()), Duration::from_secs(10), || {
            TcpStream::connect(addr).is_ok()
        });
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// CPU seconds of all its threads.
    ///
    /// # Errors
    /// The kernel doesn't say.
    pub fn cpu(&self) -> Result<f64, String> {
        cpu_of(&self.child.id().to_string())
    }

    /// Resident memory, in bytes.
    ///
    /// # Errors
    /// The kernel doesn't say.
    pub fn resident(&self) -> Result<u64, String> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
        let kb: u64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        if kb == 0 { Err(format!("no VmRSS in {path}")) } else { Ok(kb * 1024) }
    }

    /// Asks it to end and waits, so that it can end its own children; kills it when it does not.
    pub fn stop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let deadline = std::time::Instant::now() + Duration::from_secs(3);
        while self.ended().is_none() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|d| d.join(program)).find(|p| p.exists())
}

/// CPU seconds of all threads of a process: its number, or `self`.
///
/// # Errors
/// The kernel doesn't say.
pub fn cpu_of(process: &str) -> Result<f64, String> {
    let [cpu, _] = ran_and_waited(process)?;
    if cpu == 0.0 { Err("no CPU time in /proc/PID/task/*/schedstat".into()) } else { Ok(cpu) }
}

/// Seconds that all threads of a process ran, and that they were ready and waited for a CPU.
///
/// # Errors
/// There is no such process.
pub fn ran_and_waited(process: &str) -> Result<[f64; 2], String> {
    let tasks = format!("/proc/{process}/task");
    let entries = std::fs::read_dir(&tasks).map_err(|e| format!("{tasks}: {e}"))?;
    let mut total = [0.0; 2];
    for task in entries.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        for (sum, word) in total.iter_mut().zip(text.split_whitespace()) {
            *sum += word.parse::<f64>().unwrap_or(0.0) / 1e9;
        }
    }
    Ok(total)
}

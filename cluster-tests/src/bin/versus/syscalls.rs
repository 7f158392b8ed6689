//! Syscalls of a process while it works, counted by `perf stat` (which hardly slows it) or `strace -c`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::{Signal, kill};
use tempfile::NamedTempFile;

use crate::machine::Tools;

/// Syscalls of a process by unit of the work that `run` does a second, or in the time given; `None`: nobody
/// can count.
///
/// # Errors
/// The work failed.
pub(crate) fn count(
    tools: &Tools,
    pid: u32,
    mut run: impl FnMut(Duration) -> Result<f64, String>,
) -> Result<Option<f64>, String> {
    if let Some(perf) = &tools.perf {
        // Whatever happens in this time; the rate of work is taken from a little more on both sides.
        let time = Duration::from_millis(500);
        let mut command = Command::new(perf);
        command.args(["stat", "-x,", "-D", "100", "-e", "raw_syscalls:sys_enter", "-p", &pid.to_string()]);
        command.args(["sleep", "0.6"]);
        let Some(watcher) = Watcher::start(command)? else { return Ok(None) };
        // It begins to count 0.1 s after it starts that program; read from disk that takes it a second.
        wait(|| has_child(watcher.child.id(), "sleep"));
        let around = Duration::from_millis(700);
        let rate = run(around)? / around.as_secs_f64();
        if let Some(calls) = of_perf(&watcher.finish(false)?).filter(|_| rate > 0.0) {
            return Ok(Some(calls / time.as_secs_f64() / rate));
        }
    }
    if let Some(strace) = &tools.strace {
        let mut command = Command::new(strace);
        command.args(["-c", "-f", "-U", "calls,name", "-p", &pid.to_string()]);
        let Some(watcher) = Watcher::start(command)? else { return Ok(None) };
        wait(|| traced(pid));
        let done = run(Duration::from_millis(500))?;
        return Ok(of_strace(&watcher.finish(true)?).filter(|_| done > 0.0).map(|calls| calls / done));
    }
    Ok(None)
}

/// Waits for what comes soon, or not at all.
fn wait(mut for_it: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(3);
    while !for_it() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process has a child of this name.
fn has_child(pid: u32, name: &str) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let children = tasks.flatten().map(|task| read(&task.path().join("children"))).collect::<String>();
    children.split_whitespace().any(|child| read(&Path::new("/proc").join(child).join("comm")).trim() == name)
}

/// Whether somebody traces it.
fn traced(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
}

/// A program that counts.
struct Watcher {
    child: Child,
    out: NamedTempFile,
}

impl Watcher {
    /// Starts it; `None`: it can't be started.
    fn start(mut command: Command) -> Result<Option<Watcher>, String> {
        let out = NamedTempFile::new().map_err(|e| e.to_string())?;
        let file = out.reopen().map_err(|e| e.to_string())?;
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn();
        Ok(spawned.ok().map(|child| Watcher { child, out }))
    }

    /// What it says at its end, which comes by itself or is asked for.
    fn finish(mut self, ask: bool) -> Result<String, String> {
        if ask {
            kill(self.child.id(), Signal::SIGINT);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().map_err(|e| e.to_string())?.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::read_to_string(self.out.path()).map_err(|e| e.to_string())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The count in the answer of `perf stat -x,`.
fn of_perf(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

/// The sum in the table of `strace -c -U calls,name`.
fn of_strace(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.trim_end().ends_with("total"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_by_its_name() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let here = std::process::id();
        wait(|| has_child(here, "sleep"));
        let found = ["sleep", "slee"].map(|name| has_child(here, name));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [true, false]);
    }

    #[test]
    fn both_watchers_words_are_understood() {
        assert_eq!(of_perf("7921,,raw_syscalls:sys_enter,501233,100.00,,\n"), Some(7921.0));
        assert_eq!(of_perf("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n"), None);
        assert_eq!(of_perf("event syntax error: 'raw_syscalls:sys_enter'\n"), None);
        let table = "strace: Process 12 attached\n    calls syscall\n--------- ----------------\n      120 read\n        3 write\n--------- ----------------\n      123 total\n";
        assert_eq!(of_strace(table), Some(123.0));
        assert_eq!(of_strace("strace: attach: Operation not permitted\n"), None);
    }
}

//! Child processes of the supervisor: started so that they die with it, signalled, reaped.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use phalanx_sys::process::{alive, die_with_parent, signal};
use tokio::process::{Child, Command};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// How long a process may take to leave after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Becomes `program`, to be killed when the supervisor ends; returns only when that fails. A step of
/// its own between the supervisor and the program, because the request to die with the parent has
/// to be made by the child, and outlives `exec`.
pub(super) fn become_child(parent: u32, program: &[OsString]) -> String {
    if let Err(e) = die_with_parent() {
        return format!("cannot tie the process to its supervisor: {e}");
    }
    if std::os::unix::process::parent_id() != parent {
        return "the supervisor is gone".into();
    }
    let Some((name, args)) = program.split_first() else { return "no program given".into() };
    let error = std::process::Command::new(name).args(args).exec();
    format!("cannot run '{}': {error}", name.display())
}

/// This program's file. A running binary that was rebuilt is started in its new form; one that was
/// deleted still is to be found in /proc.
pub(super) fn own_binary() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let text = exe.to_string_lossy();
    let path = PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text));
    if path.exists() { path } else { PathBuf::from(format!("/proc/{}/exe", std::process::id())) }
}

/// A program that the supervisor runs.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    pid: u32,
    exited: Option<ExitStatus>,
    paused: bool,
}

impl Running {
    /// Starts `words` with `env` added to the environment, its output appended to `log`.
    pub(super) fn start(words: &[OsString], env: &[(String, String)], log: &Path) -> Result<Running, String> {
        let failed = |e: std::io::Error| format!("cannot start a process: {e}");
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|e| format!("cannot open log '{}': {e}", log.display()))?;
        let child = Command::new(own_binary())
            .args(["cluster", "child", "--parent", &std::process::id().to_string(), "--"])
            .args(words)
            .envs(env.iter().map(|(k, v)| (k, v)))
            // A group of its own: Ctrl-C at the terminal is for the supervisor, which ends it in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(failed)?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().ok_or("the process ended at once")?;
        Ok(Running { child, pid, exited: None, paused: false })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended.
    pub(super) fn has_exited(&self) -> bool {
        self.exited.is_some() || !alive(self.pid)
    }

    pub(super) fn paused(&self) -> bool {
        self.paused
    }

    /// SIGSTOP, to its children too when `whole`.
    pub(super) fn pause(&mut self, whole: bool) -> Result<(), String> {
        if whole {
            self.signal_children(SIGSTOP);
        }
        self.send(SIGSTOP)?;
        self.paused = true;
        Ok(())
    }

    /// SIGCONT, to its children too.
    pub(super) fn resume(&mut self) -> Result<(), String> {
        self.send(SIGCONT)?;
        self.signal_children(SIGCONT);
        self.paused = false;
        Ok(())
    }

    /// SIGKILL, to its children first when `whole`; returns when it is gone.
    pub(super) async fn kill(&mut self, whole: bool) -> Result<(), String> {
        if whole {
            self.signal_children(SIGKILL);
        }
        self.send(SIGKILL)?;
        self.exited = self.child.wait().await.ok();
        Ok(())
    }

    /// SIGTERM, and SIGKILL to it and its children if that does not help.
    pub(super) async fn stop(&mut self) {
        if self.has_exited() {
            return;
        }
        let children = descendants(self.pid);
        let _ = self.resume();
        let _ = self.send(SIGTERM);
        match tokio::time::timeout(GRACE, self.child.wait()).await {
            Ok(status) => self.exited = status.ok(),
            Err(_) => {
                let _ = self.send(SIGKILL);
                self.exited = self.child.wait().await.ok();
            }
        }
        end_all(&children).await;
    }

    fn send(&mut self, number: i32) -> Result<(), String> {
        if self.has_exited() {
            return Err("the process has ended".into());
        }
        signal(self.pid, number).map_err(|e| format!("cannot signal process {}: {e}", self.pid))
    }

    fn signal_children(&self, number: i32) {
        for (pid, _) in descendants(self.pid) {
            let _ = signal(pid, number);
        }
    }
}

/// Processes below `pid`, each with its start time so that a number used again is not mistaken.
fn descendants(pid: u32) -> Vec<(u32, u64)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if let Some((parent, started)) = parent_and_start(pid) {
            all.push((pid, parent, started));
        }
    }
    let mut found: Vec<(u32, u64)> = Vec::new();
    let mut look = vec![pid];
    while let Some(of) = look.pop() {
        for &(child, parent, started) in &all {
            if parent == of && !found.contains(&(child, started)) {
                found.push((child, started));
                look.push(child);
            }
        }
    }
    found
}

/// Fields 4 and 22 of `/proc/PID/stat`.
fn parent_and_start(pid: u32) -> Option<(u32, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.nth(1)?.parse().ok()?, fields.nth(17)?.parse().ok()?))
}

/// Gives processes a moment to end by themselves, then kills them.
async fn end_all(processes: &[(u32, u64)]) {
    let lives = |&&(pid, started): &&(u32, u64)| {
        alive(pid) && parent_and_start(pid).is_some_and(|(_, now)| now == started)
    };
    for _ in 0..50 {
        if !processes.iter().any(|p| lives(&p)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (pid, _) in processes.iter().filter(lives) {
        let _ = signal(*pid, SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_down_to_grandchildren() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sh -c 'sleep 60 & echo started; wait' & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = shell.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let found = descendants(shell.id());
        for (pid, _) in &found {
            signal(*pid, SIGKILL).unwrap();
        }
        let _ = shell.kill();
        shell.wait().unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(descendants(shell.id()).is_empty());
    }
}

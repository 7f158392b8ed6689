//! `announce exec`: a program makes the VIP this node's, or no longer: it moves a route or an alias IP of
//! a cloud, for instance.
//!
//! It runs beside the lease, which goes on being renewed; one at a time for each VIP; and in a process
//! group of its own, which is killed when the time is over. However often a VIP comes and goes, there is
//! one process for it, the last thing that happened is run last, and a node that is still giving it up does
//! not take it again. What it is told stands in its environment:
//!
//! | variable | value |
//! |---|---|
//! | `PHALANX_ACTION` | `acquire` or `release` |
//! | `PHALANX_VIP`, `PHALANX_ADDRESS` | name, and address with prefix length |
//! | `PHALANX_NODE`, `PHALANX_CLUSTER` | this node, and the cluster |
//! | `PHALANX_EPOCH` | rises from tenure to tenure: what is done for a lower one than the last is stale |
//! | `PHALANX_REASON` | why |

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use phalanx_sys::process;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::core::thread;
use super::guardian::Place;
use super::hands::Driver;

/// How often a program that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Of what it says on standard error, the end is kept.
const KEPT: usize = 400;

const SIGKILL: i32 = 9;

/// The program and what it is always told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hook {
    pub(super) path: PathBuf,
    pub(super) limit: Duration,
    pub(super) vip: String,
    pub(super) address: String,
    pub(super) cluster: String,
    pub(super) node: String,
}

/// A program that runs.
pub(super) struct Run {
    what: String,
    child: Child,
    deadline: Instant,
    said: std::sync::mpsc::Receiver<String>,
}

impl Hook {
    /// Starts it.
    pub(super) fn start(&self, action: &str, epoch: u64, reason: &str) -> Result<Run, String> {
        let what = format!("'{}' ({action})", self.path.display());
        let mut command = Command::new(&self.path);
        command
            .env("PHALANX_ACTION", action)
            .env("PHALANX_VIP", &self.vip)
            .env("PHALANX_ADDRESS", &self.address)
            .env("PHALANX_CLUSTER", &self.cluster)
            .env("PHALANX_NODE", &self.node)
            .env("PHALANX_EPOCH", epoch.to_string())
            .env("PHALANX_REASON", reason)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().map_err(|e| format!("{what} cannot be run: {e}"))?;
        let (say, said) = std::sync::mpsc::sync_channel(1);
        if let Some(mut stderr) = child.stderr.take() {
            // Read to its end, or a program that says much would stand still.
            thread("vip-exec", move || {
                let (mut end, mut buf) = (Vec::new(), [0; 1024]);
                while let Ok(n) = stderr.read(&mut buf)
                    && n > 0
                {
                    end.extend_from_slice(&buf[..n]);
                    end.drain(..end.len().saturating_sub(KEPT));
                }
                let _ = say.try_send(String::from_utf8_lossy(&end).into_owned());
            })?;
        }
        Ok(Run { what, child, deadline: Instant::now() + self.limit, said })
    }
}

impl Run {
    /// Number of its process group.
    fn group(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None`: it runs still. One that takes too long is killed, with all that it started.
    fn poll(&mut self) -> Option<Result<(), String>> {
        match self.child.try_wait() {
            Ok(Some(status)) => Some(self.ended(status)),
            Ok(None) if Instant::now() < self.deadline => None,
            Ok(None) => {
                self.kill();
                Some(Err(format!("{} took too long and was killed", self.what)))
            }
            Err(error) => Some(Err(format!("{}: {error}", self.what))),
        }
    }

    /// Waits for its end.
    pub(super) fn finish(mut self) -> Result<(), String> {
        loop {
            if let Some(end) = self.poll() {
                return end;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn kill(&mut self) {
        kill_group(self.group());
        let _ = self.child.wait();
    }

    fn ended(&self, status: ExitStatus) -> Result<(), String> {
        // What it left behind in its group may go on, but holds up nobody.
        if status.success() {
            return Ok(());
        }
        let said = self.said.recv_timeout(Duration::from_millis(50)).unwrap_or_default();
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
        let last: String = last.chars().filter(|c| !c.is_control()).collect();
        let colon = if last.is_empty() { "" } else { ": " };
        Err(format!("{} failed, {status}{colon}{last}", self.what))
    }
}

/// Kills a process group. One that has ended already is no error.
pub(super) fn kill_group(group: u32) {
    let _ = process::signal_group(group, SIGKILL);
}

/// The driver of one VIP.
pub(super) struct Exec {
    hook: Hook,
    /// Epoch of the tenure that it was last run for.
    epoch: Option<u64>,
    running: Option<Run>,
    reason: String,
}

impl Exec {
    pub(super) fn new(hook: Hook) -> Exec {
        Exec { hook, epoch: None, running: None, reason: String::new() }
    }
}

impl Driver for Exec {
    fn missing(&mut self) -> Vec<String> {
        let path = &self.hook.path;
        let why = match std::fs::metadata(path) {
            Ok(file) if !file.is_file() => "is no file".to_owned(),
            Ok(file) if file.permissions().mode() & 0o111 == 0 => "may not be executed".to_owned(),
            Ok(_) => return Vec::new(),
            Err(error) => error.to_string(),
        };
        vec![format!("program '{}': {why}", path.display())]
    }

    fn acquire(&mut self, epoch: u64, _: Duration) -> Result<Vec<OwnedFd>, String> {
        if let Some(mut earlier) = self.running.take() {
            earlier.kill();
        }
        self.epoch = Some(epoch);
        self.running = Some(self.hook.start("acquire", epoch, "this node holds it")?);
        Ok(Vec::new())
    }

    fn renew(&mut self, _: Duration) -> Result<(), String> {
        let Some(end) = self.running.as_mut().and_then(Run::poll) else { return Ok(()) };
        self.running = None;
        if end.is_ok() {
            info!("vip '{}': '{}' has taken it for this node", self.hook.vip, self.hook.path.display());
        }
        end
    }

    fn reason(&mut self, why: &str) {
        self.reason = why.to_owned();
    }

    fn release(&mut self) -> Result<(), String> {
        if let Some(mut running) = self.running.take() {
            warn!("vip '{}': {} is ended: the VIP is given up", self.hook.vip, running.what);
            running.kill();
        }
        let Some(epoch) = self.epoch.take() else { return Ok(()) };
        self.hook.start("release", epoch, &std::mem::take(&mut self.reason))?.finish()
    }

    fn releases_once(&self) -> bool {
        true
    }

    fn place(&self) -> Place {
        let running = self.running.as_ref().map(Run::group);
        Place::Exec { hook: self.hook.clone(), epoch: self.epoch.unwrap_or_default(), running }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(dir: &std::path::Path, script: &str) -> Hook {
        let path = dir.join("hook");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let text = |s: &str| s.to_owned();
        Hook {
            path,
            limit: Duration::from_millis(700),
            vip: text("web"),
            address: text("192.0.2.1/24"),
            cluster: text("c"),
            node: text("n1"),
        }
    }

    fn ended(exec: &mut Exec) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while exec.running.is_some() {
            exec.renew(Duration::ZERO)?;
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    #[test]
    fn the_program_is_told_what_to_do_and_for_which_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let words = "$PHALANX_ACTION $PHALANX_VIP $PHALANX_ADDRESS $PHALANX_CLUSTER $PHALANX_NODE \
                     $PHALANX_EPOCH $PHALANX_REASON";
        let mut exec = Exec::new(hook(dir.path(), &format!("echo {words} >> {}", log.display())));
        assert_eq!(exec.missing(), [""; 0]);
        exec.release().unwrap();
        exec.acquire(7, Duration::ZERO).unwrap();
        ended(&mut exec).unwrap();
        exec.reason("planned move to n2");
        exec.release().unwrap();
        exec.release().unwrap();
        assert_eq!(
            std::fs::read_to_string(&log).unwrap(),
            "acquire web 192.0.2.1/24 c n1 7 this node holds it\nrelease web 192.0.2.1/24 c n1 7 planned move to n2\n"
        );
    }

    #[test]
    fn a_vip_that_comes_and_goes_has_one_program_at_a_time_and_the_last_state_last() {
        let dir = tempfile::tempdir().unwrap();
        let (log, lock) = (dir.path().join("log"), dir.path().join("lock"));
        // The lock ends with the process, however that ends.
        let script = format!(
            "exec 9>{lock}; flock -n 9 || echo two >> {log}
             echo begin $PHALANX_ACTION $PHALANX_EPOCH >> {log}
             sleep 0.0$((PHALANX_EPOCH % 5)) 9>&-
             echo end $PHALANX_ACTION $PHALANX_EPOCH >> {log}",
            lock = lock.display(),
            log = log.display()
        );
        let mut exec = Exec::new(hook(dir.path(), &script));
        let epochs = 1..=20;
        for epoch in epochs.clone() {
            exec.acquire(epoch, Duration::ZERO).unwrap();
            std::thread::sleep(Duration::from_millis(epoch * 3 % 30));
            // Now and then another tenure follows at once.
            if epoch % 3 != 0 {
                exec.release().unwrap();
            }
        }
        ended(&mut exec).unwrap();
        let said = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert!(!lines.contains(&"two"), "{said}");
        assert_eq!(lines.last(), Some(&"end release 20"), "{said}");
        let epoch = |line: &&str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        assert!(lines.is_sorted_by_key(epoch), "{said}");
        // What is begun for a release comes to its end.
        let begun = epochs.filter(|epoch| epoch % 3 != 0);
        for epoch in begun {
            assert!(lines.contains(&&*format!("end release {epoch}")), "{said}");
        }
    }

    #[test]
    fn one_that_fails_or_never_ends_gives_the_vip_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut exec = Exec::new(hook(dir.path(), "echo first >&2; echo 'no such route' >&2; exit 3"));
        exec.acquire(1, Duration::ZERO).unwrap();
        let why = ended(&mut exec).unwrap_err();
        assert!(why.ends_with("(acquire) failed, exit status: 3: no such route"), "{why}");

        let pid = dir.path().join("pid");
        let mut exec = Exec::new(hook(dir.path(), &format!("sleep 60 & echo $! > {}; wait", pid.display())));
        exec.acquire(2, Duration::ZERO).unwrap();
        let why = ended(&mut exec).unwrap_err();
        assert!(why.ends_with("(acquire) took too long and was killed"), "{why}");
        let sleeper: u32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while process::alive(sleeper) {
            assert!(Instant::now() < deadline, "what it started is killed with it");
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut gone = Exec::new(Hook { path: dir.path().join("nosuch"), ..hook(dir.path(), "") });
        assert!(gone.missing()[0].contains("nosuch'"), "{:?}", gone.missing());
        assert!(gone.acquire(1, Duration::ZERO).is_err());
    }
}

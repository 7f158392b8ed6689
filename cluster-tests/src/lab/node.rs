//! What runs on a station of the laboratory: Phalanx with its guardians, or HAProxy and keepalived.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::try_api;

/// A program with its arguments, that runs in a namespace.
#[derive(Clone, Debug)]
pub struct Program {
    /// In front of the program: where it runs and in what surroundings.
    words: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
}

impl Program {
    /// A program that is to run in `namespace` and writes to `log`. It dies with the thread that
    /// starts it.
    pub fn new<S: AsRef<OsStr>>(namespace: &str, program: &Path, args: &[S], log: PathBuf) -> Program {
        let args = args.iter().map(|a| a.as_ref().to_string_lossy().into_owned());
        let [ip, netns, exec, rest @ ..] = PREFIX;
        let prefix = [ip, netns, exec, namespace].into_iter().chain(rest).map(str::to_owned);
        let words = prefix.chain([program.display().to_string()]).chain(args);
        Program { words: words.collect(), env: Vec::new(), log }
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Program {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// File name of the program.
    fn name(&self) -> String {
        let program = self.words.get(PREFIX.len() + 1).map(Path::new).and_then(Path::file_name);
        program.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn start(&self) -> Result<Child, String> {
        let open = |log: &Path| OpenOptions::new().create(true).append(true).open(log);
        let out = open(&self.log).map_err(|e| format!("cannot write '{}': {e}", self.log.display()))?;
        let again = File::try_clone(&out).map_err(|e| e.to_string())?;
        let (program, args) = self.words.split_first().expect("a program has a name");
        let mut command = Command::new(program);
        command.args(args).envs(self.env.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(again)
            .spawn()
            .map_err(|e| format!("cannot start it: {e}"))
    }
}

/// The programs of one node. The first is the one that holds the floating address; others go on
/// when it is killed.
#[derive(Debug)]
pub struct Station {
    name: String,
    programs: Vec<Program>,
    running: Vec<Option<Child>>,
    /// Children that were seen: they may outlive the first program.
    seen: BTreeSet<u32>,
    socket: Option<PathBuf>,
}

impl Station {
    /// A node whose programs are not started yet; `socket` is its Runtime API.
    pub fn new(name: &str, programs: Vec<Program>, socket: Option<PathBuf>) -> Station {
        let running = programs.iter().map(|_| None).collect();
        Station { name: name.to_owned(), programs, running, seen: BTreeSet::new(), socket }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts what does not run.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn start(&mut self) -> Result<(), String> {
        for (program, slot) in self.programs.iter().zip(&mut self.running) {
            let ended = slot.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended {
                *slot = Some(program.start().map_err(|e| format!("{}: {e}", self.name))?);
            }
        }
        Ok(())
    }

    /// Pid of the first program while it runs.
    pub fn worker(&mut self) -> Option<u32> {
        let child = self.running.first_mut()?.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    /// Pids of the children of the first program, also of one that is gone: the guardians, or
    /// keepalived's VRRP process.
    pub fn children(&mut self) -> Vec<u32> {
        if let Some(worker) = self.worker() {
            self.seen.extend(children(worker));
        }
        let name = self.programs[0].name();
        self.seen.retain(|pid| runs(*pid, &name));
        self.seen.iter().copied().collect()
    }

    /// Sends a signal to the first program, its children, or both.
    pub fn signal(&mut self, signal: Signal, worker: bool, children: bool) {
        let mut pids = if children { self.children() } else { Vec::new() };
        if worker {
            // First: a guardian that saw its worker go on after it was stopped itself would act.
            pids.splice(0..0, self.worker());
        }
        for pid in pids {
            send(pid, signal);
        }
    }

    /// Kills everything at once, so that nobody can clean up.
    pub fn kill_all(&mut self) {
        let pids: Vec<u32> = self.running.iter().flatten().map(Child::id).collect();
        let all: Vec<u32> = self.children().into_iter().chain(pids).collect();
        // Stopped first, children before parents: no one sees the other die and acts.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            all.iter().for_each(|pid| send(*pid, signal));
        }
        self.reap();
    }

    /// Waits for the end of the first program after a signal that ends it; killed after `limit`.
    pub fn await_end(&mut self, limit: Duration) {
        if let Some(child) = self.running.first_mut().and_then(Option::as_mut) {
            end(child, limit);
        }
    }

    fn reap(&mut self) {
        for child in self.running.iter_mut().filter_map(Option::take) {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Runs a command on its Runtime API.
    ///
    /// # Errors
    /// It does not answer in time.
    pub fn api(&self, command: &str, limit: Duration) -> std::io::Result<String> {
        let socket = self.socket.as_ref().ok_or(std::io::ErrorKind::Unsupported)?;
        try_api(&socket.display().to_string(), command, limit)
    }

    /// Where the threads of the first program stand in the kernel.
    pub fn threads(&self) -> String {
        let Some(child) = self.running.first().and_then(Option::as_ref) else { return String::new() };
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten();
        let read = |task: &Path, file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let row = |task: PathBuf| {
            let stack: Vec<String> =
                read(&task, "stack").lines().take(3).map(|l| l.trim().to_owned()).collect();
            format!("{:<16} {}\n", read(&task, "comm").trim(), stack.join(" "))
        };
        tasks.map(|t| row(t.path())).collect()
    }

    /// The end of what it has printed.
    pub fn log_tail(&self, lines: usize) -> String {
        let mut text = String::new();
        for program in &self.programs {
            let all = std::fs::read(&program.log).unwrap_or_default();
            let all = String::from_utf8_lossy(&all).into_owned();
            let rows: Vec<&str> = all.lines().collect();
            text += &format!(
                "--- {}\n{}\n",
                program.log.display(),
                rows[rows.len().saturating_sub(lines)..].join("\n")
            );
        }
        text
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Waits for the end of a process; killed after `limit`.
pub fn end(child: &mut Child, limit: Duration) {
    let deadline = std::time::Instant::now() + limit;
    while matches!(child.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// In front of every program, with the namespace after the third.
const PREFIX: [&str; 7] = ["ip", "netns", "exec", "setpriv", "--pdeathsig", "KILL", "--"];

/// Whether a process is still that program: pids are used again.
fn runs(pid: u32, program: &str) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(words.split(|b| *b == 0).next().unwrap_or_default()).ends_with(program)
}

fn send(pid: u32, signal: Signal) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let mut pids: Vec<u32> =
        texts.flat_map(|t| t.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<_>>()).collect();
    pids.sort_unstable();
    pids
}

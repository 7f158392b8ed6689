//! The process behind `phalanx cluster up`: starts the nodes and the demo servers, carries out what
//! comes in on the control socket, and takes everything down again.
//!
//! One task on one thread. The thread must outlive the children (they die with it), and whatever
//! ends the loop ends in [`Supervisor::stop`].

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::control::{self, Action, Reply};
use super::layout::Layout;
use super::process::Running;
use super::status::{self, Process, State, Status};
use super::{place, runtime_api, view};

/// How long the nodes may take to agree on a leader and a holder before `up` says how far they are.
pub(super) const START_LIMIT: Duration = Duration::from_secs(15);
/// How long a client may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// How long a planned move of an address may take.
const FAILOVER_LIMIT: Duration = Duration::from_secs(10);

/// How long a change of members may take; a node answers within 30 seconds.
const CHANGE_LIMIT: Duration = Duration::from_secs(40);

/// How the supervisor shows itself and when it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    /// Has a terminal, or at least a reader.
    pub foreground: bool,
    /// Ends when standard input does.
    pub until_stdin_ends: bool,
}

/// Runs a planned cluster until it is told to stop.
pub(super) fn run(layout: Layout, mode: Mode) -> Result<(), String> {
    let (log, dir, keep) = (layout.supervisor_log(), layout.dir.clone(), layout.keep);
    let _ = std::fs::remove_file(&log);
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))
        .and_then(|runtime| runtime.block_on(supervise(layout, mode)));
    match &result {
        // The foreground half of --detach reads it and goes by our absence.
        Err(e) if !mode.foreground => {
            let _ = std::fs::write(&log, e);
        }
        _ => place::remove(&dir, keep),
    }
    result
}

/// Cleans up after a supervisor that was killed: its children died with it.
pub(super) fn sweep(layout: &Layout) -> Result<(), String> {
    if let Some(network) = &layout.network {
        network.destroy();
    }
    place::remove(&layout.dir, layout.keep);
    Ok(())
}

async fn supervise(layout: Layout, mode: Mode) -> Result<(), String> {
    let mut endings = Endings::new(mode)?;
    let socket = control::socket(&layout.dir);
    let _ = std::fs::remove_file(&socket);
    let listener =
        UnixListener::bind(&socket).map_err(|e| format!("cannot listen on '{}': {e}", socket.display()))?;
    let _ = std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600));
    let mut supervisor = Supervisor {
        nodes: layout.nodes.iter().map(|_| None).collect(),
        layout,
        demo: None,
        cut: BTreeSet::new(),
        started: None,
        screen: Screen::new(mode.foreground),
    };
    let result = match supervisor.start().await {
        Ok(()) => {
            // biased: a signal must win over a busy control socket.
            tokio::select! {
                biased;
                () = endings.wait() => Ok(()),
                () = supervisor.serve(&listener) => Ok(()),
            }
        }
        Err(e) => Err(e),
    };
    supervisor.screen.say("\nstopping");
    supervisor.stop().await;
    result
}

/// What makes the supervisor leave: Ctrl-C and its kin.
struct Endings {
    signals: [Signal; 3],
    stdin: bool,
}

impl Endings {
    fn new(mode: Mode) -> Result<Endings, String> {
        let on = |kind| signal(kind).map_err(|e| format!("cannot handle signals: {e}"));
        let signals = [on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?];
        Ok(Endings { signals, stdin: mode.until_stdin_ends })
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        let stdin = async {
            if !self.stdin {
                return std::future::pending().await;
            }
            let (ended, end) = tokio::sync::oneshot::channel();
            // A thread and not tokio's stdin, whose pending read would keep the runtime from ending.
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                let _ = ended.send(());
            });
            let _ = end.await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            () = stdin => {}
        }
    }
}

/// The cluster.
struct Supervisor {
    layout: Layout,
    nodes: Vec<Option<Running>>,
    demo: Option<Running>,
    /// Nodes that are partitioned.
    cut: BTreeSet<String>,
    /// When it had come up, or was given up waiting for.
    started: Option<Instant>,
    screen: Screen,
}

impl Supervisor {
    async fn start(&mut self) -> Result<(), String> {
        if let Some(network) = &self.layout.network {
            network.destroy();
            network.create()?;
        }
        if let Some(command) = self.layout.demo_command() {
            self.demo = Some(Running::start(&command, &[], &self.layout.demo_log())?);
        }
        for index in 0..self.nodes.len() {
            self.start_node(index)?;
        }
        Ok(())
    }

    fn start_node(&mut self, index: usize) -> Result<(), String> {
        let command = self.layout.node_command(index);
        let log = self.layout.node_log(&self.layout.nodes[index].name);
        self.nodes[index] = Some(Running::start(&command, &self.layout.env(index), &log)?);
        Ok(())
    }

    /// Answers requests and keeps the view up to date, until `down`.
    async fn serve(&mut self, listener: &UnixListener) {
        let began = Instant::now();
        let mut tick = interval(Duration::from_millis(200));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    if self.answer(stream).await == Some(Action::Down) {
                        return;
                    }
                }
                _ = tick.tick() => {
                    if self.started.is_none() || self.screen.wants() {
                        let status = self.status().await;
                        self.watch_start(began, &status);
                        if self.started.is_some() {
                            self.screen.show(&status);
                        }
                    }
                }
            }
        }
    }

    fn watch_start(&mut self, began: Instant, status: &Status) {
        if self.started.is_some() {
            return;
        }
        let agreed = self.layout.vips.is_empty() || status.nodes.iter().any(|n| n.leader);
        let up = status.nodes.iter().all(|n| n.state == State::Running)
            && agreed
            && status.vips.iter().all(|v| v.holder.is_some());
        let late = began.elapsed() > START_LIMIT;
        let dead = status.nodes.iter().all(|n| n.state == State::Stopped);
        if !up && !late && !dead {
            return;
        }
        self.started = Some(Instant::now());
        self.screen.say(&view::opening(&self.layout, status));
        self.screen.say(&ended(&self.layout, status));
        if late {
            self.screen.say("not everything came up in time");
        }
        self.screen.say("Ctrl-C stops it and leaves nothing behind.\n");
    }

    async fn answer(&mut self, stream: UnixStream) -> Option<Action> {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let mut reader = BufReader::new(read.take(control::MAX_LINE));
        tokio::time::timeout(REQUEST_LIMIT, reader.read_line(&mut line)).await.ok()?.ok()?;
        let action: Result<Action, _> = serde_json::from_str(&line);
        let reply = match &action {
            Ok(action) => self.carry_out(action).await,
            Err(e) => Err(format!("request not understood: {e}")),
        };
        let reply = reply.unwrap_or_else(|error| Reply { error: Some(error), ..Reply::default() });
        let mut line = serde_json::to_vec(&reply).ok()?;
        line.push(b'\n');
        let _ = tokio::time::timeout(REQUEST_LIMIT, write.write_all(&line)).await;
        action.ok()
    }

    async fn carry_out(&mut self, action: &Action) -> Result<Reply, String> {
        let mut reply = Reply { started: self.started.is_some(), ..Reply::default() };
        match action {
            Action::Status => {
                reply.status = Some(self.status().await);
                reply.text = self.roles();
            }
            Action::Kill { nodes, guardian } => {
                for index in self.find(nodes)? {
                    self.running(index)?.kill(*guardian).await?;
                }
            }
            Action::Start { nodes } => {
                for index in self.find(nodes)? {
                    if self.running(index).is_ok() {
                        return Err(format!("node '{}' runs already", self.layout.nodes[index].name));
                    }
                    self.start_node(index)?;
                }
            }
            Action::Pause { nodes, guardian } => {
                for index in self.find(nodes)? {
                    self.running(index)?.pause(*guardian)?;
                }
            }
            Action::Resume { nodes } => {
                for index in self.find(nodes)? {
                    self.running(index)?.resume()?;
                }
            }
            Action::Partition { nodes } => self.partition(nodes)?,
            Action::Heal => {
                self.network("heal")?.partition(&BTreeSet::new())?;
                self.cut.clear();
            }
            Action::Failover { vip, to } => reply.text = self.failover(vip, to.as_deref()).await?,
            Action::Join { node, replaces, witness } => {
                reply.text = self.join(node, replaces.as_deref(), *witness).await?;
            }
            Action::Leave { node } => reply.text = self.leave(node).await?,
            Action::Down => {}
        }
        Ok(reply)
    }

    /// Who only votes, for people.
    fn roles(&self) -> String {
        let names: Vec<&str> =
            self.layout.nodes.iter().filter(|n| n.witness).map(|n| n.name.as_str()).collect();
        if names.is_empty() { String::new() } else { format!("witness: {}", names.join(", ")) }
    }

    /// Starts a node and has the others take it in.
    async fn join(&mut self, name: &str, replaces: Option<&str>, witness: bool) -> Result<String, String> {
        if let Some(old) = replaces {
            self.find(&[old.to_owned()])?;
        }
        let index = self.layout.add(name, witness)?;
        if let (Some(network), false) = (&self.layout.network, self.cut.is_empty()) {
            network.partition(&self.cut)?;
        }
        self.nodes.push(None);
        let addr = self.layout.nodes[index].grpc.clone().unwrap_or_default();
        let role = if witness { " witness" } else { "" };
        let command = match replaces {
            Some(old) => format!("cluster replace {old} {name} {addr}{role}"),
            None => format!("cluster join {name} {addr}{role}"),
        };
        let done = match self.start_node(index) {
            Ok(()) => self.change(&command, &[name, replaces.unwrap_or_default()]).await,
            Err(e) => Err(e),
        };
        match (&done, replaces) {
            (Ok(_), Some(old)) => {
                let old = self.find(&[old.to_owned()])?[0];
                self.forget(old).await;
            }
            (Ok(_), None) => {}
            // It goes on: the node stays, and may still become a member.
            (Err(text), _) if text.starts_with("After ") => {}
            (Err(_), _) => self.forget(index).await,
        }
        self.layout.save()?;
        done
    }

    /// Has the others let a node go, and stops it.
    async fn leave(&mut self, name: &str) -> Result<String, String> {
        let index = self.find(&[name.to_owned()])?[0];
        let text = self.change(&format!("cluster leave {name}"), &[name]).await?;
        self.forget(index).await;
        self.layout.save()?;
        Ok(text)
    }

    /// Runs a command about members on a node that is none of `others`.
    async fn change(&mut self, command: &str, others: &[&str]) -> Result<String, String> {
        let status = self.status().await;
        let asked = status
            .nodes
            .iter()
            .find(|n| n.state == State::Running && !others.contains(&n.name.as_str()))
            .and_then(|n| n.cli.clone())
            .ok_or("no other node is running and reachable")?;
        let answer = runtime_api::command(&asked, command, CHANGE_LIMIT).await?;
        let answer = answer.trim().to_owned();
        let done = ["is a member after", "has replaced", "has left after"];
        if done.iter().any(|text| answer.contains(text)) { Ok(answer) } else { Err(answer) }
    }

    async fn forget(&mut self, index: usize) {
        if let Some(mut running) = self.nodes.remove(index) {
            running.stop().await;
        }
        let name = self.layout.nodes[index].name.clone();
        self.cut.remove(&name);
        self.layout.remove(index);
    }

    fn partition(&mut self, nodes: &[String]) -> Result<(), String> {
        let network = self.network("partition")?.clone();
        self.find(nodes)?;
        let mut cut = self.cut.clone();
        cut.extend(nodes.iter().cloned());
        network.partition(&cut)?;
        self.cut = cut;
        Ok(())
    }

    fn network(&self, what: &str) -> Result<&super::netns::Network, String> {
        self.layout.network.as_ref().ok_or_else(|| {
            format!("'{what}' needs a cluster in network namespaces: 'phalanx cluster up --netns'")
        })
    }

    async fn failover(&mut self, vip: &str, to: Option<&str>) -> Result<String, String> {
        if let Some(node) = to {
            self.find(&[node.to_owned()])?;
        }
        if !self.layout.vips.iter().any(|(name, _)| name == vip) {
            let names: Vec<&str> = self.layout.vips.iter().map(|(n, _)| n.as_str()).collect();
            return Err(format!("unknown virtual address '{vip}', there is: {}", names.join(", ")));
        }
        let status = self.status().await;
        let place = status.nodes.iter().find(|n| n.state == State::Running).and_then(|n| n.cli.clone());
        let place = place.ok_or("no node is running and reachable")?;
        let command = format!("failover vip {vip} {}", to.unwrap_or_default());
        let answer = runtime_api::command(&place, command.trim_end(), FAILOVER_LIMIT).await?;
        let answer = answer.trim().to_owned();
        if answer.contains("is now held by") { Ok(answer) } else { Err(answer) }
    }

    fn find(&self, names: &[String]) -> Result<Vec<usize>, String> {
        let find = |name: &String| {
            self.layout.nodes.iter().position(|n| n.name == *name).ok_or_else(|| {
                let known: Vec<&str> = self.layout.nodes.iter().map(|n| n.name.as_str()).collect();
                format!("unknown node '{name}', there are: {}", known.join(", "))
            })
        };
        names.iter().map(find).collect()
    }

    /// The process of a node that has one.
    fn running(&mut self, index: usize) -> Result<&mut Running, String> {
        let name = &self.layout.nodes[index].name;
        let running = self.nodes[index].as_mut().filter(|running| !running.has_exited());
        running.ok_or_else(|| format!("node '{name}' is not running"))
    }

    async fn status(&mut self) -> Status {
        let mut processes = Vec::new();
        for (node, running) in self.layout.nodes.iter().zip(&mut self.nodes) {
            let process = match running.as_mut().filter(|running| !running.has_exited()) {
                Some(running) => Process {
                    state: if running.paused() {
                        State::Paused
                    } else if self.cut.contains(&node.name) {
                        State::Partitioned
                    } else {
                        State::Running
                    },
                    pid: Some(running.pid()),
                },
                None => Process { state: State::Stopped, pid: None },
            };
            processes.push(process);
        }
        status::gather(&self.layout, &processes).await
    }

    async fn stop(&mut self) {
        futures_util::future::join_all(self.nodes.iter_mut().flatten().map(Running::stop)).await;
        if let Some(demo) = &mut self.demo {
            demo.stop().await;
        }
        if let Some(network) = &self.layout.network {
            network.destroy();
        }
    }
}

/// What the nodes that have ended left in their logs.
pub(super) fn ended(layout: &Layout, status: &Status) -> String {
    let stopped = status.nodes.iter().filter(|n| n.state == State::Stopped);
    let tell = |node: &status::NodeStatus| {
        let log = layout.node_log(&node.name);
        format!("node {} has ended, see {}\n{}", node.name, log.display(), tail(&log))
    };
    stopped.map(tell).collect()
}

/// The last lines of a log.
fn tail(log: &std::path::Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].iter().map(|l| format!("  {l}\n")).collect()
}

/// The terminal of `up`: a status line rewritten in place, or a line for each change where there is
/// no terminal.
struct Screen {
    on: bool,
    terminal: bool,
    last: String,
    next: Instant,
}

impl Screen {
    fn new(on: bool) -> Screen {
        Screen { on, terminal: std::io::stdout().is_terminal(), last: String::new(), next: Instant::now() }
    }

    /// Whether it is time for a new status line.
    fn wants(&mut self) -> bool {
        let due = self.on && Instant::now() >= self.next;
        if due {
            self.next = Instant::now() + Duration::from_millis(500);
        }
        due
    }

    fn say(&mut self, text: &str) {
        if self.on && !text.is_empty() {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        }
    }

    fn show(&mut self, status: &Status) {
        let line = view::line(status);
        if !self.on || line == self.last {
            return;
        }
        let mut out = std::io::stdout().lock();
        // A reader that went away must not end the cluster.
        let _ = match self.terminal {
            true => write!(out, "\r{line}\x1b[K"),
            false => writeln!(out, "{line}"),
        };
        let _ = out.flush();
        self.last = line;
    }
}

//! `phalanx cluster …`: a whole cluster on one machine, of real processes, to try things on and to
//! test with.
//!
//! `up` becomes the supervisor: it starts the nodes and the demo servers, and listens on a control
//! socket in the cluster's directory; every other subcommand is a client of that socket. A node is
//! the program itself, `phalanx -f FILE -L NAME`, with its addresses in the environment: nothing
//! here knows more about a node than its configuration and its Runtime API tell.

mod certificates;
mod control;
mod layout;
mod netns;
mod place;
mod process;
mod runtime_api;
mod status;
mod supervisor;
mod view;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use control::{Action, Reply};
use layout::Layout;
use phalanx_sys::process::Forked;

/// A local cluster: nodes, demo servers and a virtual address on this machine
#[derive(Debug, Parser)]
#[command(name = "phalanx cluster")]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

/// Which cluster is meant.
#[derive(Clone, Debug, Args)]
struct Which {
    /// Directory of the cluster; names it. Default: one per user, removed by `down`
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    which: Which,
    /// How many nodes; default: as many as the configuration names, 3 in the built-in one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Option<u8>,
    /// How many more nodes that only vote: they hold no virtual address and take no traffic
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=3))]
    witness: u8,
    /// Configuration of all nodes instead of the built-in deploy/local/phalanx.cfg
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Return when the cluster is up and leave it running in the background
    #[arg(long)]
    detach: bool,
    /// A network namespace for each node, on a bridge, and the virtual address by ARP (needs root)
    #[arg(long)]
    netns: bool,
    /// Nodes talk TLS with each other: a certificate for each, signed by a CA of the cluster's own
    #[arg(long)]
    tls: bool,
    /// First three numbers of the addresses: nodes get .11, .12, …, the virtual address .100
    #[arg(long, value_name = "A.B.C", hide = true)]
    base: Option<layout::Base>,
    /// Shut down when standard input ends: what a test wants of its children
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

#[derive(Debug, Args)]
struct Nodes {
    #[command(flatten)]
    which: Which,
    /// Names of nodes
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
struct Stop {
    #[command(flatten)]
    nodes: Nodes,
    /// Its guardian as well, as if the whole machine stood still
    #[arg(long)]
    guardian: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a cluster and watch it; Ctrl-C takes it down
    Up(Up),
    /// Show the nodes and who holds the virtual addresses
    Status {
        #[command(flatten)]
        which: Which,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Kill nodes (SIGKILL)
    Kill(Stop),
    /// Start nodes that were killed
    Start(Nodes),
    /// Stop nodes in their tracks (SIGSTOP)
    Pause(Stop),
    /// Let paused nodes go on (SIGCONT)
    Resume(Nodes),
    /// Cut nodes off from the others, not from clients and servers (needs `up --netns`)
    Partition(Nodes),
    /// Undo `partition`
    Heal(Which),
    /// Move a virtual address in an orderly way
    Failover {
        #[command(flatten)]
        which: Which,
        /// Name of the virtual address
        vip: String,
        /// Node to move it to; default: the next in line
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Start a new node and take it into the cluster
    Join {
        #[command(flatten)]
        which: Which,
        /// Name of the new node
        #[arg(value_name = "NODE")]
        node: String,
        /// It only votes
        #[arg(long)]
        witness: bool,
    },
    /// Let a node leave the cluster, alive or dead, and stop it
    Leave {
        #[command(flatten)]
        which: Which,
        /// Name of the node
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Start a new node and take it into the cluster in the place of another, alive or dead
    Replace {
        #[command(flatten)]
        which: Which,
        /// Name of the node to replace
        #[arg(value_name = "OLD")]
        old: String,
        /// Name of the new node
        #[arg(value_name = "NEW")]
        new: String,
        /// It only votes
        #[arg(long)]
        witness: bool,
    },
    /// Stop everything
    Down(Which),
    /// Run a program that dies with its parent
    #[command(hide = true)]
    Child {
        #[arg(long)]
        parent: u32,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

/// Runs `phalanx cluster` with the words that follow `cluster`.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let command = Command::parse_from(std::iter::once("phalanx cluster".into()).chain(args));
    match carry_out(command.verb) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("phalanx cluster: {e}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(verb: Verb) -> Result<ExitCode, String> {
    let (which, action) = match verb {
        Verb::Up(up) => return self::up(up),
        Verb::Child { parent, program } => return Err(process::become_child(parent, &program)),
        Verb::Status { which, json } => return show_status(&which, json),
        Verb::Kill(Stop { nodes, guardian }) => (nodes.which, Action::Kill { nodes: nodes.nodes, guardian }),
        Verb::Start(Nodes { which, nodes }) => (which, Action::Start { nodes }),
        Verb::Pause(Stop { nodes, guardian }) => {
            (nodes.which, Action::Pause { nodes: nodes.nodes, guardian })
        }
        Verb::Resume(Nodes { which, nodes }) => (which, Action::Resume { nodes }),
        Verb::Partition(Nodes { which, nodes }) => (which, Action::Partition { nodes }),
        Verb::Heal(which) => (which, Action::Heal),
        Verb::Failover { which, vip, to } => (which, Action::Failover { vip, to }),
        Verb::Join { which, node, witness } => (which, Action::Join { node, replaces: None, witness }),
        Verb::Replace { which, old, new, witness } => {
            (which, Action::Join { node: new, replaces: Some(old), witness })
        }
        Verb::Leave { which, node } => (which, Action::Leave { node }),
        Verb::Down(which) => return down(&which),
    };
    let Reply { text, .. } = control::ask(&place::existing(which.dir.as_deref())?, &action)?;
    if !text.is_empty() {
        println!("{}", text.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

/// The Runtime APIs of the nodes that run in the local cluster in `dir`.
///
/// # Errors
/// None runs there.
pub(crate) fn runtime_apis(dir: Option<&Path>) -> Result<Vec<String>, String> {
    let reply = control::ask(&place::existing(dir)?, &Action::Status)?;
    let nodes = reply.status.ok_or("the supervisor sent no status")?.nodes;
    Ok(nodes.into_iter().filter(|n| n.state == status::State::Running).filter_map(|n| n.cli).collect())
}

fn show_status(which: &Which, json: bool) -> Result<ExitCode, String> {
    let dir = place::existing(which.dir.as_deref())?;
    let reply = control::ask(&dir, &Action::Status)?;
    let reply_text = reply.text;
    let status = reply.status.ok_or("the supervisor sent no status")?;
    if json {
        println!("{}", serde_json::to_string(&status).map_err(|e| e.to_string())?);
    } else {
        print!("{}", view::table(&status));
        if !reply_text.is_empty() {
            println!("\n{reply_text}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn down(which: &Which) -> Result<ExitCode, String> {
    let dir = place::existing(which.dir.as_deref())?;
    match control::ask(&dir, &Action::Down) {
        Ok(_) => place::wait_until_free(&dir),
        // The supervisor was killed: sweep up what it could not.
        Err(e) => {
            let Ok(layout) = Layout::load(&dir) else { return Err(e) };
            let _lock = place::lock(&dir).map_err(|_| e)?;
            supervisor::sweep(&layout)
        }
    }?;
    println!("down");
    Ok(ExitCode::SUCCESS)
}

fn up(up: Up) -> Result<ExitCode, String> {
    let keep = up.which.dir.is_some();
    let dir = place::create(up.which.dir.as_deref())?;
    let lock = place::lock(&dir)?;
    if let Ok(old) = Layout::load(&dir) {
        // Left by a supervisor that was killed.
        supervisor::sweep(&old)?;
        place::create(up.which.dir.as_deref())?;
    }
    let wanted = layout::Wanted {
        nodes: up.nodes,
        witness: up.witness,
        config: up.config,
        netns: up.netns,
        base: up.base,
        keep,
        tls: up.tls,
    };
    let prepared = Layout::plan(&dir, &wanted).and_then(|layout| {
        layout.check_free()?;
        layout.save()?;
        Ok(layout)
    });
    let layout = match prepared {
        Ok(layout) => layout,
        Err(e) => {
            place::remove(&dir, keep);
            return Err(e);
        }
    };
    if up.detach {
        match phalanx_sys::process::fork_to_background().map_err(|e| e.to_string())? {
            Forked::Parent(supervisor) => {
                drop(lock);
                return watch_start(&layout, supervisor as u32);
            }
            Forked::Child => {}
        }
    }
    let mode = supervisor::Mode { foreground: !up.detach, until_stdin_ends: up.until_stdin_ends };
    let result = supervisor::run(layout, mode);
    drop(lock);
    result.map(|()| ExitCode::SUCCESS)
}

/// The foreground half of `up --detach`: waits for the cluster in the background to be up.
fn watch_start(layout: &Layout, supervisor: u32) -> Result<ExitCode, String> {
    let deadline = std::time::Instant::now() + supervisor::START_LIMIT + std::time::Duration::from_secs(5);
    loop {
        if let Ok(Reply { status: Some(status), started: true, .. }) =
            control::ask(&layout.dir, &Action::Status)
        {
            print!("{}", view::opening(layout, &status));
            let ended = supervisor::ended(layout, &status);
            eprint!("{ended}");
            return Ok(if ended.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        if !phalanx_sys::process::alive(supervisor) || std::time::Instant::now() > deadline {
            let log = std::fs::read_to_string(layout.supervisor_log()).unwrap_or_default();
            return Err(match log.trim() {
                "" => "the supervisor ended without a word".into(),
                log => log.to_owned(),
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

//! One node, from its command line to its last session: the composition root.
//!
//! [`run`] reads as the program's life: configuration, rights, forwarding plane, control plane, then
//! signals until the end. The forwarding plane has threads of its own; everything else (checks,
//! cluster, Runtime API, reload) shares one small control runtime and can never stall it.

mod background;
mod checks;
mod control;
mod edits;
mod limits;
mod peers;
mod places;
mod rollout;
mod vips;
mod watchdog;

pub(crate) use control::at_next_start;
pub(crate) use limits::fits_below;

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use phalanx_cluster::Settings;
use phalanx_cluster::tls::Tls;
use phalanx_config::{Config, Severity};
use phalanx_engine::state::{Setup, State};
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;
use phalanx_proxy::log::Sink;
use phalanx_sys::clock::Clock;
use phalanx_sys::process;

use self::background::Ready;
use crate::args::{self, Options};
use crate::cli;
use crate::epochs::Held;
use crate::load::{Files, Loaded};
use crate::notify::Notifier;

/// Runs a node, or checks its configuration, as HAProxy's command line says.
pub(crate) fn run(options: Options) -> ExitCode {
    let pid = std::process::id();
    let alert = |text: &str| eprintln!("[ALERT]    ({pid}) : {text}");
    if let Some(dir) = &options.dir
        && let Err(e) = std::env::set_current_dir(dir)
    {
        alert(&format!("Could not change to directory {} : {e}", dir.display()));
        return ExitCode::FAILURE;
    }
    if options.files.is_empty() {
        eprint!("{}", args::HELP);
        return ExitCode::FAILURE;
    }
    let read = Files::open(&options.files, options.zero_warning, options.ignore_resolve)
        .and_then(|files| Ok((files.load()?, files)));
    let (loaded, files) = match read {
        Ok(read) => read,
        Err(text) => {
            alert(&text);
            return ExitCode::FAILURE;
        }
    };
    show(&loaded, &options);
    let warnings = loaded.warnings();
    let messages = loaded.messages.iter().map(|m| m.text.as_str()).collect::<Vec<_>>().join("\n");
    let Some(config) = &loaded.config else { return ExitCode::FAILURE };
    if options.check {
        if config.proxies.iter().all(|p| p.binds.is_empty()) {
            println!("Configuration file has no error but will not start (no listener) => exit(2).");
            return ExitCode::from(2);
        }
        if options.verbose {
            println!("Configuration file is valid");
        }
        return ExitCode::SUCCESS;
    }
    let files = Arc::new(files);
    let name = node_name(&options, config);
    let (held, loaded, messages) = hold(files, loaded, &name, messages, pid);
    let Some(mut config) = loaded.config else { return ExitCode::FAILURE };
    options.override_in(&mut config);
    let in_background = (options.daemon || config.global.daemon) && !options.foreground && !options.debug;
    let mut ready = Ready::default();
    if in_background {
        match background::enter() {
            Ok(Ok(child)) => ready = child,
            Ok(Err(code)) => return code,
            Err(e) => {
                alert(&format!("cannot go to the background: {e}"));
                return ExitCode::FAILURE;
            }
        }
    }
    trace(&options);
    if let Err(e) = process::small_pages() {
        tracing::debug!("the kernel keeps giving huge pages: {e}");
    }
    match serve(config, loaded.tls, held, Said { messages, warnings }, &options, &mut ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            ready.failed(&format!("[ALERT]    ({}) : {text}", std::process::id()));
            ExitCode::FAILURE
        }
    }
}

/// The name of this node.
fn node_name(options: &Options, config: &Config) -> String {
    let named = options.node.clone().or_else(|| config.global.localpeer.clone());
    named.unwrap_or_else(process::hostname)
}

/// Takes the epoch of the cluster's configuration that this node has applied in place of its files, if
/// that is in force, and says so.
fn hold(
    files: Arc<Files>,
    loaded: Loaded,
    node: &str,
    mut messages: String,
    pid: u32,
) -> (Held, Loaded, String) {
    let cluster = loaded.config.as_ref().and_then(|c| c.cluster.as_ref());
    let dir = cluster.filter(|c| c.nodes.iter().any(|n| n.name == node)).map(|c| c.data_dir.clone());
    let held = Held::open(files, node, dir);
    let chosen = held.choose(loaded.sources.clone());
    if let Some(note) = &chosen.note {
        let note = format!("[WARNING]  ({pid}) : config : {note}");
        eprintln!("{note}");
        messages = format!("{messages}\n{note}").trim_start().to_owned();
    }
    if let Some(epoch) = chosen.declined {
        held.decline(epoch);
    }
    let loaded = if held.record().text.is_some() { chosen.loaded } else { loaded };
    held.in_force(loaded.sources.clone());
    (held, loaded, messages)
}

/// What the parser said at the start.
struct Said {
    messages: String,
    warnings: u64,
}

/// The process that watches over the worker's floating IPs.
pub(crate) fn guardian(words: &[String]) -> ExitCode {
    trace(&Options::default());
    vips::guardian(words)
}

/// Starts everything, says that it is ready, and stays until a signal ends it.
fn serve(
    config: Config,
    tls: Option<Tls>,
    mut held: Held,
    said: Said,
    options: &Options,
    ready: &mut Ready,
) -> Result<(), String> {
    let clock = Clock::new();
    let (mono, unix_us) = clock.now();
    let now = Now { mono, unix_us };
    let name = node_name(options, &config);

    let default_maxconn = limits::descriptors(&config)?;
    let pidfile = options.pidfile.clone().or_else(|| config.global.pidfile.clone());
    let pidfile = pidfile.map(open_pidfile).transpose()?;
    let data_dir = limits::data_dir(&config)?;
    held.moved_to(data_dir.clone());
    let sockets = config.global.stats_sockets.iter().map(|s| cli::listen(s).map_err(|e| e.to_string()));
    let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
    let guardian = vips::guardians(&config)?;
    let notifier = if options.notify { Notifier::from_env()? } else { Notifier::default() };
    limits::confine(&config, now)?;

    let workers = config.global.nbthread.map_or_else(process::cpus, |n| n as usize).max(1);
    let seed = rand_seed();
    let tables = Tables::new(&name, unix_us, seed);
    let logs = Sink::new(&config.global);
    let setup = Setup { workers, seed, default_maxconn, node: name.clone() };
    let cluster = control::settings(&config, &name, unix_us).map(|s| Settings { data_dir, tls, ..s });
    let state = State::new(config, setup, tables.clone(), now);

    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the control threads: {e}"))?;
    let outcome = control.block_on(async {
        control::run(
            control::Start {
                held: Arc::new(held),
                options: options.clone(),
                state,
                logs,
                clock,
                sockets,
                cluster,
                guardian,
                notifier: Arc::new(notifier),
                said,
            },
            || {
                if let Some((path, mut file)) = pidfile
                    && let Err(e) = writeln!(file, "{}", std::process::id())
                {
                    tracing::warn!("cannot write pid file '{}': {e}", path.display());
                }
                ready.ready();
            },
        )
        .await
    });
    // Tasks that block on a name server or a disk must not hold up the end.
    control.shutdown_background();
    outcome
}

fn open_pidfile(path: PathBuf) -> Result<(PathBuf, File), String> {
    match File::create(&path) {
        Ok(file) => Ok((path, file)),
        Err(e) => Err(format!("cannot create pid file '{}': {e}", path.display())),
    }
}

/// Shows what the parser said, as the options want it.
fn show(loaded: &Loaded, options: &Options) {
    for message in &loaded.messages {
        let wanted = match message.severity {
            Severity::Notice => options.verbose,
            Severity::Warning | Severity::Alert => true,
        };
        if wanted && !(options.quiet && message.severity != Severity::Alert) {
            eprintln!("{}", message.text);
        }
    }
}

/// Diagnostics of the program itself go to standard error; `PHALANX_LOG` overrides what is shown.
fn trace(options: &Options) {
    let default = match (options.quiet, options.debug) {
        (true, _) => "error",
        (_, true) => "debug,h2=info,hyper=info,tonic=info,tower=info",
        _ => "warn,phalanx=info,phalanx_cluster=info,phalanx_proxy=info,openraft=error",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("PHALANX_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}

/// A seed that nobody outside can guess: keys of stick tables must not be aimed at one bucket.
fn rand_seed() -> u64 {
    rand::random()
}

//! `phalanx`: one node of the load balancer, and the tools around it.
//!
//! Without a subcommand it takes HAProxy's command line and runs a node ([`node`]); the subcommands
//! are for people and for processes that the program starts of itself.

mod args;
mod cli;
mod ctl;
mod demo;
mod discovery;
mod epochs;
mod keywords;
mod load;
mod local;
mod node;
mod notify;
mod vip;

use std::process::ExitCode;

use args::Request;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What `-v` says, and the Runtime API's `show version`.
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    match words.peek().and_then(|w| w.to_str()) {
        Some("cluster") => local::run(words.skip(1)),
        Some("ctl") => ctl::run(words.skip(1)),
        Some("vip") => vip::run(words.skip(1)),
        Some("guardian") => {
            node::guardian(&words.skip(1).filter_map(|w| w.into_string().ok()).collect::<Vec<_>>())
        }
        Some("demo") => demo::run(words.skip(1)),
        Some("keywords") => keywords::run(words.skip(1)),
        _ => haproxy(words),
    }
}

/// HAProxy's command line.
fn haproxy(words: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    match args::parse(words) {
        Ok(Request::Run(options)) => node::run(*options),
        Ok(Request::Version) => {
            println!("Phalanx version {VERSION}");
            ExitCode::SUCCESS
        }
        Ok(Request::Build) => {
            println!("Phalanx version {VERSION}");
            println!("Configuration language: HAProxy's; 'phalanx keywords' lists what is built");
            println!("Target: {}, {}", std::env::consts::ARCH, std::env::consts::OS);
            ExitCode::SUCCESS
        }
        Ok(Request::Help) => {
            print!("{}", args::HELP);
            ExitCode::SUCCESS
        }
        Err(args::Error(text)) => {
            eprintln!("[ALERT]    ({}) : {text}", std::process::id());
            ExitCode::FAILURE
        }
    }
}

//! Placeholder.

mod demo;
mod local;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|a| a.to_str()) {
        Some("demo") => demo::run(args),
        Some("cluster") => local::run(args),
        _ => {
            eprintln!("phalanx: expected 'demo' or 'cluster'");
            ExitCode::FAILURE
        }
    }
}

//! `phalanx vip`: floating IPs for people; each subcommand is one command of the Runtime API.
//!
//! Exit codes as of `phalanx ctl`: 0 done, 1 refused, 2 not reached.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::ctl::{self, Place};

/// Show, move and keep off floating IPs
#[derive(Debug, Parser)]
#[command(name = "phalanx vip", after_help = HELP)]
struct Options {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Who holds what, since which epoch, who could and why others could not, the last moves
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Move a floating IP, to a node or to whichever is fit; comes back when it has a new holder
    Move {
        /// Its name
        vip: String,
        /// Where to
        node: Option<String>,
    },
    /// Move all floating IPs off a node and keep them off, across restarts, until 'off'
    Maintenance {
        /// Its name
        node: String,
        /// Begin or end it
        state: Switch,
        /// Also when nobody else could take what it holds
        #[arg(long)]
        force: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    On,
    Off,
}

const HELP: &str = "\
Any node can be asked. The socket is found as by 'phalanx ctl'.

  phalanx vip status                phalanx vip move web n2
  phalanx vip maintenance n1 on     phalanx vip maintenance n1 off

Exit codes: 0 done, 1 refused, 2 no answer.";

/// Runs `phalanx vip` with the words that follow `vip`.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let options = Options::parse_from(std::iter::once("phalanx vip".into()).chain(args));
    ctl::carry_out("vip", &options.place, &words(&options.verb))
}

/// The command of the Runtime API.
fn words(verb: &Verb) -> Vec<String> {
    let words: Vec<&str> = match verb {
        Verb::Status { json: false } => vec!["show", "vip"],
        Verb::Status { json: true } => vec!["show", "vip", "json"],
        Verb::Move { vip, node } => ["move", "vip", vip].into_iter().chain(node.as_deref()).collect(),
        Verb::Maintenance { node, state: Switch::On, force: true } => {
            vec!["maintenance", "node", node, "on", "force"]
        }
        Verb::Maintenance { node, state: Switch::On, .. } => vec!["maintenance", "node", node, "on"],
        Verb::Maintenance { node, state: Switch::Off, .. } => vec!["maintenance", "node", node, "off"],
    };
    words.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subcommand_is_a_command() {
        for (line, command) in [
            ("status", "show vip"),
            ("-S /run/x status --json", "show vip json"),
            ("move web", "move vip web"),
            ("move web n2", "move vip web n2"),
            ("maintenance n1 on", "maintenance node n1 on"),
            ("maintenance n1 on --force", "maintenance node n1 on force"),
            ("maintenance n1 off", "maintenance node n1 off"),
        ] {
            let options = Options::try_parse_from(std::iter::once("vip").chain(line.split(' '))).unwrap();
            assert_eq!(words(&options.verb).join(" "), command, "{line}");
        }
        assert!(Options::try_parse_from(["vip", "maintenance", "n1"]).is_err());
    }
}

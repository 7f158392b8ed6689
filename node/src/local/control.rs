//! The supervisor's control socket: one request and one reply a connection, a line of JSON each.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::place;
use super::status::Status;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Action {
    Status,
    Kill { nodes: Vec<String>, guardian: bool },
    Start { nodes: Vec<String> },
    Pause { nodes: Vec<String>, guardian: bool },
    Resume { nodes: Vec<String> },
    Partition { nodes: Vec<String> },
    Heal,
    Failover { vip: String, to: Option<String> },
    Join { node: String, replaces: Option<String>, witness: bool },
    Leave { node: String },
    Down,
}

/// What the supervisor answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Reply {
    /// Why it was not done.
    pub error: Option<String>,
    /// For the user.
    pub text: String,
    /// The answer to [`Action::Status`].
    pub status: Option<Status>,
    /// Whether the cluster has come up, or been given up waiting for.
    pub started: bool,
}

/// Longest request or reply line.
pub(super) const MAX_LINE: u64 = 1 << 20;

/// The socket in the cluster's directory.
pub(super) fn socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// Sends a request to the supervisor of the cluster in `dir`.
pub(super) fn ask(dir: &Path, action: &Action) -> Result<Reply, String> {
    let mut stream = UnixStream::connect(socket(dir)).map_err(|_| place::not_running(dir))?;
    let exchange = |stream: &mut UnixStream| -> std::io::Result<Reply> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut line = serde_json::to_vec(action)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut reply = String::new();
        BufReader::new(stream.take(MAX_LINE)).read_line(&mut reply)?;
        Ok(serde_json::from_str(&reply)?)
    };
    let reply = exchange(&mut stream).map_err(|e| format!("the supervisor does not answer: {e}"))?;
    match reply.error {
        Some(error) => Err(error),
        None => Ok(reply),
    }
}

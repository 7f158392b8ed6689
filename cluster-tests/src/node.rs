//! Single processes: a node with a configuration of its own, and demo servers to put behind it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::{Signal, eventually, kill, phalanx};

/// A process that ends with the test.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `phalanx -f FILE`.
#[derive(Debug)]
pub struct Node {
    process: Process,
    dir: TempDir,
    config: PathBuf,
    log: PathBuf,
}

impl Node {
    /// Starts it. `DIR` in `config` stands for a fresh directory. `ready` is an address that
    /// answers when it has started.
    ///
    /// # Panics
    /// When it ends or does not listen in time; with its output.
    pub fn start(config: &str, ready: &str) -> Node {
        Node::start_with(config, ready, |_| Ok(()))
    }

    /// As [`Node::start`], in a directory that `prepare` has filled.
    ///
    /// # Panics
    /// As [`Node::start`].
    pub fn start_with(config: &str, ready: &str, prepare: impl FnOnce(&Path) -> io::Result<()>) -> Node {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // A configuration may change the user before it opens its files again.
        let _ = std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755));
        prepare(dir.path()).expect("the directory is prepared");
        let file = dir.path().join("phalanx.cfg");
        let log = dir.path().join("log");
        let out = File::create(&log).expect("a log file");
        let node_config = config.replace("DIR", &dir.path().display().to_string());
        std::fs::write(&file, node_config).expect("a configuration file");
        let child = Command::new(phalanx())
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a log file"))
            .stderr(out)
            .spawn()
            .expect("phalanx starts");
        let mut node = Node { process: Process(child), dir, config: file, log };
        let ready = ready.replace("DIR", &node.dir.path().display().to_string());
        eventually("the node listens", Duration::from_secs(10), || {
            if let Ok(Some(status)) = node.process.0.try_wait() {
                panic!("phalanx ended with {status}:\n{}", node.output());
            }
            answers(&ready).then_some(())
        });
        node
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All that it has printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Writes a new configuration over the old one, without a reload.
    pub fn rewrite(&self, config: &str) {
        let text = config.replace("DIR", &self.dir.path().display().to_string());
        std::fs::write(&self.config, text).expect("a configuration file");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.process.0.try_wait(), Ok(None))
    }

    /// Runs a command on the unix socket `sock` of its directory.
    pub fn api(&self, command: &str) -> String {
        api(&self.dir.path().join("sock").display().to_string(), command)
    }
}

fn answers(place: &str) -> bool {
    if place.starts_with('/') {
        UnixStream::connect(place).is_ok()
    } else {
        TcpStream::connect(place).is_ok()
    }
}

/// Demo servers.
#[derive(Debug)]
pub struct Demo(#[allow(dead_code, reason = "held, never read")] Process);

impl Demo {
    /// Starts web servers and echo servers, as `(name, address)`.
    ///
    /// # Panics
    /// When an address is taken.
    pub fn start(web: &[(&str, String)], echo: &[(&str, String)]) -> Demo {
        let mut command = Command::new(phalanx());
        command.arg("demo");
        for (name, addr) in web {
            command.arg(format!("--http={name}={addr}"));
        }
        for (name, addr) in echo {
            command.arg(format!("--echo={name}={addr}"));
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("phalanx starts");
        let mut process = Process(child);
        let mut line = String::new();
        let out = process.0.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut line).expect("a pipe can be read");
        assert_eq!(line, "ready\n", "demo servers do not start");
        Demo(process)
    }
}

/// Runs a command on a Runtime API, at a path or `address:port`, as `nc` does: without closing its
/// half.
///
/// # Panics
/// When it does not answer.
pub fn api(place: &str, command: &str) -> String {
    try_api(place, command, Duration::from_secs(10))
        .unwrap_or_else(|e| panic!("Runtime API at {place}: '{command}': {e}"))
}

/// As [`api`], for a node that may not answer.
pub fn try_api(place: &str, command: &str, limit: Duration) -> io::Result<String> {
    let mut answer = String::new();
    if place.starts_with('/') {
        let mut stream = UnixStream::connect(place)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        stream.read_to_string(&mut answer)?;
    } else {
        let addr = place.parse().map_err(io::Error::other)?;
        let mut stream = TcpStream::connect_timeout(&addr, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        stream.read_to_string(&mut answer)?;
    }
    Ok(answer)
}

/// Reads a line from a TCP service.
pub fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    match stream.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

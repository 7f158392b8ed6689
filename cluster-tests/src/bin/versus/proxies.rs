//! The proxies: how each is started with a case's configuration, and whether it takes it at all.
//!
//! Knows command lines, and where what listens; the texts are those of `config`.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::bench::Running;
use cluster_tests::{Base, Signal, kill};

use crate::cases::Case;
use crate::floor;
use crate::machine::{LOAD_CPU, PROXY_CPU};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Phalanx,
    Haproxy,
    Nginx,
    /// See [`crate::floor`].
    Floor,
}

impl Kind {
    /// As in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Phalanx => "phalanx",
            Kind::Haproxy => "haproxy",
            Kind::Nginx => "nginx",
            Kind::Floor => "floor",
        }
    }
}

/// A program to measure.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
}

impl Proxy {
    /// What it says of itself.
    pub(crate) fn version(&self) -> String {
        if self.kind == Kind::Floor {
            return "the least system calls".into();
        }
        let out = Command::new(&self.program).arg("-v").output();
        let text = out.map_or_else(|e| e.to_string().into_bytes(), |o| [o.stdout, o.stderr].concat());
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    }
}

/// Addresses and files of one proxy in one case.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) kind: Kind,
    pub(crate) dir: PathBuf,
    /// The case has another node.
    pub(crate) replicated: bool,
    prefix: String,
}

impl Site {
    /// Where the proxy listens.
    pub(crate) fn web(&self) -> SocketAddr {
        self.at(10 + self.kind as u8, 8200)
    }

    /// Where the server listens.
    pub(crate) fn origin(&self) -> SocketAddr {
        self.at(1, 8100)
    }

    /// Where log lines go.
    pub(crate) fn log(&self) -> SocketAddr {
        self.at(1, 5140)
    }

    /// Where the two nodes meet that replicate: 1 is measured, 2 its peer.
    pub(crate) fn peer(&self, node: u8) -> SocketAddr {
        self.at(20 + 10 * self.kind as u8 + node, 7100)
    }

    /// Where the peer listens for requests; nobody asks it.
    pub(crate) fn peer_web(&self) -> SocketAddr {
        self.at(20 + 10 * self.kind as u8, 8200)
    }

    /// A file beside the configuration.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn at(&self, last: u8, port: u16) -> SocketAddr {
        format!("{}.{last}:{port}", self.prefix).parse().expect("numbers make an address")
    }
}

/// A place for each proxy.
pub(crate) fn site(base: &Base, dir: &Path, kind: Kind, replicated: bool) -> Result<Site, String> {
    let dir = dir.join(kind.name());
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    // As are those above it.
    for above in dir.ancestors().skip(1).take(2) {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let _ = std::fs::set_permissions(above, open);
    }
    // nginx may give its rights away: what it uses must be open to all.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&dir, open).map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(Site { kind, dir, replicated, prefix: base.prefix().to_owned() })
}

/// Why a proxy has no figures in a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It has nothing of the kind.
    NotThere,
    /// It refuses the configuration: its words.
    Refused(String),
}

/// A proxy that runs.
pub(crate) struct Started {
    pub(crate) site: Site,
    pub(crate) running: Running,
    /// The node that it replicates to.
    _peer: Option<Running>,
}

impl Started {
    /// Starts a proxy for a case.
    ///
    /// # Errors
    /// The outer: it does not run. The inner: it has no such thing.
    pub(crate) fn new(proxy: &Proxy, case: &Case, site: Site) -> Result<Result<Started, Absent>, String> {
        if proxy.kind == Kind::Floor {
            return if floor::has(case) {
                floor(proxy, case, site).map(Ok)
            } else {
                Ok(Err(Absent::NotThere))
            };
        }
        let Some(text) = case.config.text(&site, false) else { return Ok(Err(Absent::NotThere)) };
        let file = write(&site, "proxy.cfg", &text)?;
        if let Err(words) = accepts(proxy, &site, &file)? {
            return Ok(Err(Absent::Refused(words)));
        }
        let peer = match case.config.peer(&site) {
            None => None,
            Some(text) => {
                let file = write(&site, "peer.cfg", &text)?;
                Some(start(proxy, &site, &file, "n2", LOAD_CPU, false)?)
            }
        };
        let running = start(proxy, &site, &file, "n1", PROXY_CPU, case.config.master)?;
        let mut started = Started { site, running, _peer: peer };
        started.wait()?;
        Ok(Ok(started))
    }

    /// Until the node that it replicates to has so many entries: the case is not what it says before.
    pub(crate) fn wait_for_peer(&self, entries: u32) -> Result<(), String> {
        let socket = self.site.file("sock2");
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let used = entries_of(&socket)?;
            if used >= entries {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the peer has {used} of {entries} entries"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to take its configuration anew.
    pub(crate) fn reload(&self) {
        let signal = if self.site.kind == Kind::Nginx { Signal::SIGHUP } else { Signal::SIGUSR2 };
        kill(self.running.pid(), signal);
    }

    /// Until it listens.
    fn wait(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let addr = self.site.web();
        while std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_err() {
            if let Some(how) = self.running.ended() {
                return Err(format!("{} ended ({how}):\n{}", self.site.kind.name(), self.running.output()));
            }
            if Instant::now() > deadline {
                return Err(format!("{} does not listen:\n{}", self.site.kind.name(), self.running.output()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn floor(proxy: &Proxy, case: &Case, site: Site) -> Result<Started, String> {
    let mut command = Command::new("taskset");
    command.args(["-c", &PROXY_CPU.to_string()]).arg(&proxy.program).args(["--be-floor", case.id]);
    command.args([site.web(), site.origin()].map(|addr| addr.to_string()));
    let running = Running::start(&mut command, &site.dir)?;
    let mut started = Started { site, running, _peer: None };
    started.wait()?;
    Ok(started)
}

/// Entries of the only table, by the Runtime API.
fn entries_of(socket: &str) -> Result<u32, String> {
    let asked = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"show table\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = asked().map_err(|e| format!("{socket}: {e}"))?;
    let used = text.split_once("used:").and_then(|(_, rest)| rest.split_whitespace().next());
    used.and_then(|word| word.parse().ok()).ok_or_else(|| format!("no 'used' in: {text}"))
}

impl Drop for Started {
    fn drop(&mut self) {
        // A master that is killed leaves its workers behind.
        self.running.stop();
    }
}

fn write(site: &Site, name: &str, text: &str) -> Result<PathBuf, String> {
    let file = site.dir.join(name);
    std::fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(file)
}

/// Whether it takes the configuration; if not, its first words why.
fn accepts(proxy: &Proxy, site: &Site, file: &Path) -> Result<Result<(), String>, String> {
    let mut command = Command::new(&proxy.program);
    match proxy.kind {
        Kind::Nginx => command.args(["-t", "-p"]).arg(&site.dir).arg("-c").arg(file),
        Kind::Haproxy | Kind::Phalanx | Kind::Floor => command.args(["-c", "-L", "n1", "-f"]).arg(file),
    };
    let out = command.output().map_err(|e| format!("cannot start {}: {e}", proxy.program.display()))?;
    if out.status.success() {
        return Ok(Ok(()));
    }
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|l| l.contains("[ALERT]") || l.contains("[emerg]"));
    let line = line.or(text.lines().next()).unwrap_or("no words");
    // Without level and pid.
    Ok(Err(line.rsplit(" : ").next().unwrap_or(line).to_owned()))
}

fn start(
    proxy: &Proxy,
    site: &Site,
    file: &Path,
    node: &str,
    cpu: usize,
    master: bool,
) -> Result<Running, String> {
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string()]).arg(&proxy.program);
    match proxy.kind {
        Kind::Nginx => command.arg("-p").arg(&site.dir).arg("-c").arg(file),
        Kind::Haproxy | Kind::Phalanx | Kind::Floor => command.arg("-f").arg(file).args(["-db", "-L", node]),
    };
    if master && proxy.kind != Kind::Nginx {
        command.arg("-W");
    }
    let dir = site.dir.join(node);
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    Running::start(&mut command, &dir)
}

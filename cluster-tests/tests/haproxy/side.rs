//! One of the two programs with its own piece of loopback, on the same configuration as the other.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use cluster_tests::{Base, eventually, phalanx};
use tempfile::TempDir;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    HAProxy,
    Phalanx,
}

pub(crate) const BOTH: [Kind; 2] = [Kind::HAProxy, Kind::Phalanx];

/// Where `haproxy` is; says why the test proves nothing when it is not installed.
pub(crate) fn haproxy() -> Option<&'static Path> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PATH.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        dirs.map(|d| d.join("haproxy")).find(|p| p.is_file())
    });
    if found.is_none() {
        println!("SKIPPED: haproxy is not installed, so there is nothing to compare with");
    }
    found.as_deref()
}

impl Kind {
    pub(crate) fn program(self) -> &'static Path {
        match self {
            Kind::HAProxy => haproxy().expect("tests ask first"),
            Kind::Phalanx => phalanx(),
        }
    }
}

/// A running program; ends with the test.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) kind: Kind,
    pub(crate) base: Base,
    dir: TempDir,
    child: Option<Child>,
}

impl Side {
    /// A place for it; [`Side::run`] starts it.
    pub(crate) fn new(kind: Kind) -> Side {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Addresses of one length, so that lines are cut at the same place on both sides.
        let base = std::iter::repeat_with(Base::free).find(|b| b.prefix().len() == "127.100.100".len());
        Side { kind, base: base.expect("there is no end"), dir, child: None }
    }

    /// `127.0.0.1:` becomes its own address, `DIR` its directory.
    pub(crate) fn moved(&self, text: &str) -> String {
        text.replace("127.0.0.1", &self.base.ip(1)).replace("DIR", &self.dir.path().display().to_string())
    }

    /// An address of its own.
    pub(crate) fn at(&self, port: u16) -> String {
        self.base.at(1, port)
    }

    /// Path of its Runtime API.
    pub(crate) fn socket(&self) -> String {
        self.dir.path().join("sock").display().to_string()
    }

    /// Puts a file into its directory.
    pub(crate) fn file(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).expect("a file of its own");
    }

    /// Starts the program on a configuration that has `stats socket DIR/sock`.
    pub(crate) fn run(&mut self, config: &str) {
        self.run_as("", config);
    }

    /// The same under a name of its own (`-L`).
    pub(crate) fn run_as(&mut self, name: &str, config: &str) {
        let file = self.dir.path().join("haproxy.cfg");
        std::fs::write(&file, self.moved(config)).expect("a configuration file");
        let out = File::create(self.dir.path().join("out")).expect("a file for its output");
        let child = Command::new(self.kind.program())
            .arg("-f")
            .arg(&file)
            .args(if name.is_empty() { vec![] } else { vec!["-L", name] })
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a file for its output"))
            .stderr(out)
            .spawn()
            .expect("the program starts");
        self.child = Some(child);
        let socket = self.socket();
        eventually("the program answers", Duration::from_secs(10), || {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                panic!("{:?} ended with {status}:\n{}", self.kind, self.output());
            }
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
    }

    /// What it has printed.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("out")).unwrap_or_default()
    }

    /// Its addresses and directory written as they are in the tables.
    pub(crate) fn unmoved(&self, text: &str) -> String {
        text.replace(&self.dir.path().display().to_string(), "DIR").replace(self.base.prefix(), "127.0.0")
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

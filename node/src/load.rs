//! From the files named on the command line to a checked configuration, at start and at each reload.
//!
//! Owns handles of the directories that the files lie in, so that a reload finds them after `chroot`;
//! answers the parser's questions about variables, accounts and host names.

use std::collections::{BTreeMap, btree_map};
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use phalanx_cluster::tls::{self, Tls};
use phalanx_config::{ClusterSsl, Config, Diagnostic, Env, Severity, Source};
use phalanx_sys::files::Dir;
use phalanx_sys::process;

/// Longest configuration file, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Longest file of certificates.
const MAX_CERTIFICATES: u64 = 4 << 20;

/// The configuration files of this process.
#[derive(Debug)]
pub(crate) struct Files {
    entries: Vec<Entry>,
    zero_warning: bool,
    ignore_resolve: bool,
    /// Where certificates lie: found again after `chroot`.
    certificates: Mutex<BTreeMap<PathBuf, Dir>>,
}

#[derive(Debug)]
struct Entry {
    /// As given on the command line, for messages.
    path: PathBuf,
    dir: Dir,
    /// `None`: all `*.cfg` of the directory.
    name: Option<OsString>,
}

/// What came of reading the files.
pub(crate) struct Loaded {
    /// The configuration; `None` when it has errors.
    pub config: Option<Config>,
    /// What the `ssl` line of its `cluster` section names.
    pub tls: Option<Tls>,
    /// Messages in HAProxy's form, one or more lines each, in order.
    pub messages: Vec<Message>,
    /// What it was read from.
    pub sources: Vec<Source>,
}

impl Loaded {
    /// How many warnings there were.
    pub(crate) fn warnings(&self) -> u64 {
        self.messages.iter().filter(|m| m.severity == Severity::Warning).count() as u64
    }
}

/// One message about the configuration.
pub(crate) struct Message {
    pub severity: Severity,
    pub text: String,
}

impl Files {
    /// Finds the files.
    ///
    /// # Errors
    /// One line naming the file that can't be opened.
    pub(crate) fn open(paths: &[PathBuf], zero_warning: bool, ignore_resolve: bool) -> Result<Files, String> {
        let entries = paths.iter().map(|path| Entry::open(path).map_err(|e| cannot_open(path, &e)));
        let entries = entries.collect::<Result<_, _>>()?;
        Ok(Files { entries, zero_warning, ignore_resolve, certificates: Mutex::default() })
    }

    /// Reads and checks the files as they are now. Resolves names: may block for as long as the
    /// system's resolver does.
    ///
    /// # Errors
    /// One line naming the file that can't be read.
    pub(crate) fn load(&self) -> Result<Loaded, String> {
        Ok(self.check(self.read()?))
    }

    /// Reads the files as they are now.
    ///
    /// # Errors
    /// One line naming the file that can't be read.
    pub(crate) fn read(&self) -> Result<Vec<Source>, String> {
        let mut sources = Vec::new();
        for entry in &self.entries {
            entry.read(&mut sources).map_err(|e| cannot_open(&entry.path, &e))?;
        }
        Ok(sources)
    }

    /// Checks texts, these or others, in the environment of this process. May block as
    /// [`load`](Files::load) does.
    pub(crate) fn check(&self, sources: Vec<Source>) -> Loaded {
        let pid = std::process::id();
        let outcome = phalanx_config::parse(&sources, &System { ignore_resolve: self.ignore_resolve });
        let mut messages: Vec<Message> = outcome
            .diagnostics
            .iter()
            .map(|d| Message { severity: d.severity, text: d.render(pid) })
            .collect();
        let mut config = outcome.config;
        let alert = |text: &str| Message {
            severity: Severity::Alert,
            text: format!("[ALERT]    ({pid}) : config : {text}"),
        };
        let ssl = config.as_ref().and_then(|c| c.cluster.as_ref()).and_then(|c| c.ssl.clone());
        let tls = match ssl.map(|ssl| self.tls(&ssl).map_err(|why| (ssl, why))).transpose() {
            Ok(tls) => tls,
            Err((ssl, why)) => {
                let file = config.as_ref().and_then(|c| c.files.get(ssl.pos.file as usize).cloned());
                let diagnostic = Diagnostic {
                    severity: Severity::Alert,
                    file: file.unwrap_or_default(),
                    line: ssl.pos.line,
                    column: 0,
                    word: None,
                    message: format!("'ssl' : {why}"),
                    hint: None,
                    excerpt: None,
                };
                messages.push(Message { severity: Severity::Alert, text: diagnostic.render(pid) });
                config = None;
                None
            }
        };
        if config.is_none() {
            messages.push(alert("Fatal errors found in configuration."));
        } else if self.zero_warning && messages.iter().any(|m| m.severity == Severity::Warning) {
            messages.push(alert("Some warnings were found and 'zero-warning' is set. Aborting."));
            config = None;
        }
        Loaded { config, tls, messages, sources }
    }

    /// Reads and checks the certificates of the cluster's port.
    fn tls(&self, ssl: &ClusterSsl) -> Result<Tls, String> {
        let crt = self.certificate("crt", &ssl.crt)?;
        let ca = ssl.ca_file.as_deref().map(|path| self.certificate("ca-file", path)).transpose()?;
        Tls::new(tls::Files { crt, ca, verify: ssl.verify }).map_err(|error| match error {
            tls::Error::Crt(why) => format!("'crt' file '{}': {why}", ssl.crt.display()),
            tls::Error::Ca(why) => {
                format!("'ca-file' '{}': {why}", ssl.ca_file.as_deref().unwrap_or(Path::new("")).display())
            }
        })
    }

    fn certificate(&self, what: &str, path: &Path) -> Result<Vec<u8>, String> {
        let cannot = |e: io::Error| format!("cannot read the '{what}' file '{}': {e}", path.display());
        let parent = path.parent().unwrap_or(Path::new(""));
        let mut dirs = self.certificates.lock();
        let dir = match dirs.entry(parent.to_owned()) {
            btree_map::Entry::Occupied(known) => known.into_mut(),
            btree_map::Entry::Vacant(new) => new.insert(Dir::open(parent).map_err(cannot)?),
        };
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput).map_err(|e| cannot(e.into()))?;
        dir.read(name, MAX_CERTIFICATES).map_err(cannot)
    }
}

impl Entry {
    fn open(path: &Path) -> io::Result<Entry> {
        if path.is_dir() {
            return Ok(Entry { path: path.into(), dir: Dir::open(path)?, name: None });
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let dir = Dir::open(path.parent().unwrap_or(Path::new("")))?;
        Ok(Entry { path: path.into(), dir, name: Some(name) })
    }

    fn read(&self, sources: &mut Vec<Source>) -> io::Result<()> {
        if let Some(name) = &self.name {
            sources.push(Source::new(self.path.display().to_string(), self.dir.read(name, MAX_FILE)?));
            return Ok(());
        }
        for name in self.dir.names()? {
            let text = name.to_string_lossy();
            if text.ends_with(".cfg") && !text.starts_with('.') {
                let shown = self.path.join(&name).display().to_string();
                sources.push(Source::new(shown, self.dir.read(&name, MAX_FILE)?));
            }
        }
        Ok(())
    }
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    format!("Cannot open configuration file/directory {} : {error}", path.display())
}

/// The machine, as a configuration may refer to it.
pub(crate) struct System {
    /// `-dr`: a name that does not resolve stands for an address that never answers.
    pub ignore_resolve: bool,
}

/// Accounts found before: a reload asks for them again, when `chroot` may have hidden who knows them.
static USERS: Accounts = Mutex::new(BTreeMap::new());
static GROUPS: Accounts = Mutex::new(BTreeMap::new());

/// Directories of files that configurations have named.
static DIRS: Mutex<BTreeMap<PathBuf, Dir>> = Mutex::new(BTreeMap::new());

type Accounts = Mutex<BTreeMap<String, u32>>;

fn remembered(accounts: &Accounts, name: &str, find: impl FnOnce() -> Option<u32>) -> Option<u32> {
    let mut accounts = accounts.lock();
    match find() {
        Some(id) => {
            accounts.insert(name.to_owned(), id);
            Some(id)
        }
        None => accounts.get(name).copied(),
    }
}

impl Env for System {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|v| v.to_string_lossy().into_owned())
    }

    fn user(&self, name: &str) -> Option<u32> {
        remembered(&USERS, name, || process::user(name).ok().flatten().map(|(uid, _)| uid))
    }

    fn group(&self, name: &str) -> Option<u32> {
        remembered(&GROUPS, name, || process::group(name).ok().flatten())
    }

    fn resolve(&self, host: &str) -> Result<IpAddr, String> {
        match (host, 0).to_socket_addrs() {
            Ok(mut found) => found.next().map(|a| a.ip()).ok_or_else(|| "no address".to_owned()),
            Err(_) if self.ignore_resolve => Ok(IpAddr::from([0, 0, 0, 0])),
            Err(e) => Err(e.to_string()),
        }
    }

    fn read(&self, file: &str, max: u64) -> Result<Vec<u8>, String> {
        let path = Path::new(file);
        let name = path.file_name().ok_or("not the name of a file")?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let mut known = DIRS.lock();
        // By its path first: the whole directory may have been replaced. After a `chroot` the path
        // leads nowhere, but the directory that was opened before does.
        let fresh = Dir::open(parent);
        let found = fresh.and_then(|dir| Ok((dir.read(name, max)?, dir)));
        match (found, known.get(parent)) {
            (Ok((text, dir)), _) => {
                known.insert(parent.to_owned(), dir);
                Ok(text)
            }
            (Err(_), Some(dir)) => dir.read(name, max).map_err(|e| e.to_string()),
            (Err(e), None) => Err(e.to_string()),
        }
    }
}

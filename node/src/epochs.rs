//! The configuration that this node runs: its own files, or an epoch of the cluster, and which of the
//! two it is after a start or a reload.
//!
//! Precedence, in one place ([`Held::choose`]): an epoch that this node has applied stays in force over
//! starts and reloads for as long as its files are what they were when it was applied. Files that were
//! changed since put that epoch aside on this node, with a warning; the next epoch counts again.
//! What was applied is stored beside the cluster's log, whole or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use parking_lot::Mutex;
use phalanx_config::{Cluster, Config, Severity, Source};
use phalanx_engine::registry::epochs::hash;
use phalanx_sys::files;
use serde::{Deserialize, Serialize};

use crate::load::{Files, Loaded};

const FILE: &str = "config.epoch";

/// Version of the file.
const FORMAT: u32 = 1;

/// What is stored of the configuration that this node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    /// The epoch that is in force on this node; 0 = its own files, without having been told so.
    pub runs: u64,
    /// Name of its text.
    pub name: String,
    /// Its text; `None` = the node's own files.
    pub text: Option<Arc<str>>,
    /// Of the node's own files, when it was applied.
    files: u64,
    /// An epoch that the files, changed since, have put aside.
    pub declined: Option<u64>,
    /// An epoch that it began to apply, and how often it did not come to an end.
    pub trying: Option<(u64, u32)>,
}

/// A text to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    /// For messages.
    pub name: String,
    /// The text; `None` = the node's own files.
    pub text: Option<Arc<str>>,
}

/// What a node runs, and its files.
pub(crate) struct Held {
    files: Arc<Files>,
    node: String,
    /// Where it is stored; `None` without a cluster.
    dir: Option<PathBuf>,
    inner: Mutex<Inner>,
    /// This node runs what it is to run, or can't.
    settled: AtomicBool,
}

struct Inner {
    record: Record,
    /// What is in force.
    sources: Vec<Source>,
}

/// What a start or a reload is to take.
pub(crate) struct Chosen {
    /// The configuration.
    pub loaded: Loaded,
    /// An epoch that the files have put aside just now.
    pub declined: Option<u64>,
    /// What people should know about the choice.
    pub note: Option<String>,
}

impl Held {
    /// What the node called `node` runs; `dir` is the data directory of its cluster.
    pub(crate) fn open(files: Arc<Files>, node: &str, dir: Option<PathBuf>) -> Held {
        let record = dir.as_deref().and_then(|dir| match load(dir) {
            Ok(record) => record,
            Err(e) => {
                tracing::warn!("'{}' is not used: {e}", dir.join(FILE).display());
                None
            }
        });
        let inner = Mutex::new(Inner { record: record.unwrap_or_default(), sources: Vec::new() });
        Held { files, node: node.to_owned(), dir, inner, settled: AtomicBool::new(false) }
    }

    /// The data directory has another path from now on: after `chroot`.
    pub(crate) fn moved_to(&mut self, dir: PathBuf) {
        if self.dir.is_some() {
            self.dir = Some(dir);
        }
    }

    /// What is stored.
    pub(crate) fn record(&self) -> Record {
        self.inner.lock().record.clone()
    }

    /// What is in force.
    pub(crate) fn sources(&self) -> Vec<Source> {
        self.inner.lock().sources.clone()
    }

    /// Notes what is in force.
    pub(crate) fn in_force(&self, sources: Vec<Source>) {
        self.inner.lock().sources = sources;
    }

    /// Whether this node runs what the cluster says, or can't.
    pub(crate) fn settled(&self) -> bool {
        self.settled.load(SeqCst)
    }

    pub(crate) fn set_settled(&self, settled: bool) {
        self.settled.store(settled, SeqCst);
    }

    /// The node's own files as they are now.
    ///
    /// # Errors
    /// One line naming the file that can't be read.
    pub(crate) fn read(&self) -> Result<Vec<Source>, String> {
        self.files.read()
    }

    /// Decides between the files, which were just read, and the epoch that was applied. Blocks as the
    /// check of a configuration does.
    pub(crate) fn choose(&self, files: Vec<Source>) -> Chosen {
        let record = self.record();
        let epoch = match &record.text {
            Some(text) if record.runs > 0 && record.declined.is_none() => text.clone(),
            _ => return Chosen { loaded: self.files.check(files), declined: None, note: None },
        };
        let number = record.runs;
        if fingerprint(&files) != record.files {
            let note = format!(
                "The configuration files were changed since epoch {number} of the cluster's configuration \
                 was applied: this node runs its files. 'config push' makes them everybody's, 'config \
                 rollback {number}' returns to the epoch."
            );
            return Chosen { loaded: self.files.check(files), declined: Some(number), note: Some(note) };
        }
        let loaded = self.files.check(vec![Source::new(record.name.clone(), epoch.as_bytes())]);
        if loaded.config.is_some() {
            let note = format!(
                "Epoch {number} of the cluster's configuration ('{}') is in force on this node, not its \
                 own files, which are unchanged since; 'config detach' returns to the files.",
                record.name
            );
            return Chosen { loaded, declined: None, note: Some(note) };
        }
        // Not stored: what is amiss may be set right.
        self.inner.lock().record.runs = 0;
        let note = format!(
            "Epoch {number} of the cluster's configuration cannot be used any more, this node runs its own \
             files:\n{}",
            alerts(&loaded)
        );
        Chosen { loaded: self.files.check(files), declined: None, note: Some(note) }
    }

    /// The files have put an epoch aside.
    pub(crate) fn decline(&self, epoch: u64) {
        let record = Record { declined: Some(epoch), runs: 0, text: None, ..self.record() };
        if let Err(e) = self.store(record) {
            tracing::error!("cannot store that epoch {epoch} is put aside: {e}");
        }
    }

    /// Reads and checks a text; what can't be read is an alert.
    pub(crate) fn load(&self, text: &Text) -> Result<Loaded, String> {
        match &text.text {
            None => self.files.load(),
            Some(epoch) => Ok(self.files.check(vec![Source::new(text.name.clone(), epoch.as_bytes())])),
        }
    }

    /// Whether this node could run a text beside what runs: what there is to say, as an error when it
    /// could not. Blocks as the check of a configuration does.
    pub(crate) fn check(&self, text: &Text, running: &Config) -> Result<Vec<String>, String> {
        let loaded = self.load(text)?;
        // The same words on every node, so that what all say is shown once.
        let pid = format!(" ({}) : config :", std::process::id());
        let plain = |text: &str| text.replace(&pid, "");
        let Some(config) = &loaded.config else {
            let alerts = plain(&alerts(&loaded));
            let last = "Fatal errors found in configuration.";
            return Err(alerts.lines().filter(|l| !l.ends_with(last)).collect::<Vec<_>>().join("\n"));
        };
        let mut said: Vec<String> = loaded.messages.iter().map(|m| plain(&m.text)).collect();
        if config.proxies.iter().all(|p| p.binds.is_empty()) {
            return Err("it has no listener: a node would serve nobody".to_owned());
        }
        if let Some(cluster) = &running.cluster {
            self.fits(cluster, config.cluster.as_ref())?;
            let (now, next) = (&running.global.chroot, &config.global.chroot);
            crate::node::fits_below(now.as_deref(), next.as_deref(), &cluster.data_dir)?;
        }
        let kept = super::node::at_next_start(running, config);
        said.extend(
            kept.iter().map(|what| format!("Note: the change of {what} takes effect at the next start.")),
        );
        Ok(said)
    }

    /// A pushed configuration must not part the node from its cluster at its next start.
    fn fits(&self, running: &Cluster, new: Option<&Cluster>) -> Result<(), String> {
        let Some(new) = new else {
            return Err("it has no 'cluster' section: the nodes would be alone from their next start".into());
        };
        if new.name != running.name {
            return Err(format!("its cluster is '{}', this one is '{}'", new.name, running.name));
        }
        let lists = |c: &Cluster| c.nodes.iter().any(|n| n.name == self.node);
        if lists(running) && !lists(new) {
            return Err(format!("its 'cluster' section has no line for node '{}'", self.node));
        }
        if new.data_dir != running.data_dir {
            return Err(format!(
                "its data-dir is '{}', this node's is '{}', which cannot be changed by a push",
                new.data_dir.display(),
                running.data_dir.display()
            ));
        }
        Ok(())
    }

    /// Notes, on the disk, that this node is about to apply an epoch. Blocks.
    ///
    /// # Errors
    /// It cannot be stored.
    pub(crate) fn trying(&self, epoch: u64) -> io::Result<()> {
        let record = self.record();
        let before = record.trying.filter(|(tried, _)| *tried == epoch).map_or(0, |(_, times)| times);
        self.store(Record { trying: Some((epoch, before.saturating_add(1))), ..record })
    }

    /// Notes, on the disk, that an attempt has come to its end, whatever came of it. Blocks.
    pub(crate) fn tried(&self) {
        if let Err(e) = self.store(Record { trying: None, ..self.record() }) {
            tracing::warn!("cannot store the end of a rollout: {e}");
        }
    }

    /// Notes, on the disk, that an epoch is applied; `declined` is one that its files still put aside.
    /// Blocks.
    ///
    /// # Errors
    /// It cannot be stored: it would be lost at the next start.
    pub(crate) fn applied(&self, epoch: u64, text: &Text) -> io::Result<()> {
        let files = self.files.read().map_err(io::Error::other)?;
        let declined = self.record().declined.filter(|_| epoch == 0);
        self.store(Record {
            format: FORMAT,
            runs: epoch,
            name: text.name.clone(),
            text: text.text.clone(),
            files: fingerprint(&files),
            declined,
            trying: None,
        })
    }

    fn store(&self, mut record: Record) -> io::Result<()> {
        record.format = FORMAT;
        if let Some(dir) = &self.dir {
            store(dir, &record)?;
        }
        self.inner.lock().record = record;
        Ok(())
    }
}

/// The alerts of a check: what keeps a configuration from being used.
pub(crate) fn alerts(loaded: &Loaded) -> String {
    let alerts = loaded.messages.iter().filter(|m| m.severity == Severity::Alert);
    alerts.map(|m| m.text.as_str()).collect::<Vec<_>>().join("\n")
}

fn fingerprint(files: &[Source]) -> u64 {
    let mut all = Vec::new();
    for file in files {
        all.extend_from_slice(&(file.text.len() as u64).to_le_bytes());
        all.extend_from_slice(&file.text);
    }
    hash(&all)
}

fn load(dir: &Path) -> io::Result<Option<Record>> {
    let bytes = match fs::read(dir.join(FILE)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let (sum, body) = bytes.split_first_chunk::<8>().ok_or(io::ErrorKind::UnexpectedEof)?;
    if u64::from_le_bytes(*sum) != hash(body) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged"));
    }
    let record: Record = serde_json::from_slice(body)?;
    if record.format != FORMAT {
        let why = format!("it has format {}, this program writes {FORMAT}", record.format);
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(Some(record))
}

fn store(dir: &Path, record: &Record) -> io::Result<()> {
    let body = serde_json::to_vec(record)?;
    // It may hold passwords.
    files::replace(dir, FILE, &[&hash(&body).to_le_bytes(), &body], true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "listen own\n    mode tcp\n    timeout client 1s\n    timeout server 1s\n    \
                       timeout connect 1s\n    bind 127.0.0.1:1\n    server s 127.0.0.1:2\n";

    fn held(dir: &Path) -> Held {
        let path = dir.join("own.cfg");
        if !path.exists() {
            fs::write(&path, OWN).unwrap();
        }
        let files = Arc::new(Files::open(&[path], false, false).unwrap());
        Held::open(files, "n1", Some(dir.to_owned()))
    }

    fn text(text: &str) -> Text {
        Text { name: "pushed.cfg".into(), text: Some(text.into()) }
    }

    fn runs(held: &Held) -> (String, Option<u64>, bool) {
        let chosen = held.choose(held.files.read().unwrap());
        let name = chosen.loaded.config.unwrap().proxies[0].name.clone();
        (name, chosen.declined, chosen.note.is_some())
    }

    #[test]
    fn an_epoch_stays_until_the_files_are_changed_by_hand() {
        let dir = tempfile::tempdir().unwrap();
        let it = held(dir.path());
        assert_eq!(runs(&it), ("own".into(), None, false));
        it.applied(3, &text(&OWN.replace("own", "pushed"))).unwrap();
        assert_eq!(runs(&it), ("pushed".into(), None, true));
        // Over a restart.
        let it = held(dir.path());
        assert_eq!((runs(&it), it.record().runs), (("pushed".into(), None, true), 3));
        // Changed by hand: the files count, and go on to.
        fs::write(dir.path().join("own.cfg"), OWN.replace("own", "mine")).unwrap();
        assert_eq!(runs(&it), ("mine".into(), Some(3), true));
        it.decline(3);
        assert_eq!(runs(&it), ("mine".into(), None, false));
        assert_eq!(held(dir.path()).record().declined, Some(3));
        // The next epoch counts again.
        it.applied(4, &text(&OWN.replace("own", "again"))).unwrap();
        assert_eq!(runs(&held(dir.path())), ("again".into(), None, true));
        // An epoch that is none: back to the files.
        it.applied(5, &Text { name: "files".into(), text: None }).unwrap();
        assert_eq!(runs(&held(dir.path())), ("mine".into(), None, false));
    }

    #[test]
    fn attempts_are_counted_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        for times in 1..=3 {
            let it = held(dir.path());
            it.trying(7).unwrap();
            assert_eq!(held(dir.path()).record().trying, Some((7, times)));
        }
        let it = held(dir.path());
        it.trying(8).unwrap();
        assert_eq!(it.record().trying, Some((8, 1)));
        it.tried();
        assert_eq!(held(dir.path()).record().trying, None);
    }

    #[test]
    fn a_damaged_record_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        held(dir.path()).applied(1, &text(OWN)).unwrap();
        let path = dir.path().join(FILE);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(load(dir.path()).is_err(), "byte {at}");
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(load(dir.path()).is_err());
        assert_eq!(held(dir.path()).record(), Record::default());
    }
}

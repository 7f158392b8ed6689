//! Who is who on the wire: node ids, and the metadata that every call carries.
//!
//! The caller's side stamps each request ([`Stamp`]); the receiver's side lets only nodes of its own
//! cluster, speaking its own protocol, through to any service ([`Guard`]) and tells the services who
//! calls ([`Caller`]). A misfit is an answer and a warning, once per change, and never more than
//! that: what comes from the network must not stop or fail a node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::server::incoming::Line;
use crate::tls::Tls;
use crate::{Node, Settings};

/// Version of the protocol between nodes. Raised when there are commands that former programs can't read
/// ([`Command::since`](phalanx_engine::registry::Command::since)), or calls that they don't know.
pub const PROTOCOL: u32 = 4;

/// The oldest version that this program still speaks. Nodes of versions that overlap work together, so
/// that a cluster can be upgraded node by node: a release raises [`PROTOCOL`], the next one may raise
/// this.
pub const OLDEST_PROTOCOL: u32 = 3;

const KEY_PROTOCOL: &str = "phalanx-protocol";
const KEY_OLDEST: &str = "phalanx-protocol-oldest";
const KEY_CLUSTER_ID: &str = "phalanx-cluster-id";
const KEY_CLUSTER: &str = "phalanx-cluster";
const KEY_FROM: &str = "phalanx-from";
const KEY_TO: &str = "phalanx-to";
const KEY_INCARNATION: &str = "phalanx-incarnation";
const KEY_MEMBERS: &str = "phalanx-members";

/// Strangers whose last problem is remembered, so that it is reported once.
const STRANGERS: usize = 64;

/// The id of a node: a hash of its name, so that all nodes agree on it however their lists are
/// ordered, and it does not change when nodes come and go.
pub fn node_id(name: &str) -> u64 {
    fnv1a(name.as_bytes())
}

/// 64-bit FNV-1a: the same in every version and on every machine, as node ids and stored checksums
/// have to be.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The calling node, in the extensions of every request that reaches a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its name.
    pub node: Arc<str>,
    /// Its id.
    pub id: u64,
    /// The run of its process.
    pub incarnation: u64,
    /// It is no member by the list of this node, and has a later one.
    pub newer: bool,
}

impl Caller {
    /// Who sent `request`.
    ///
    /// # Errors
    /// It is no member that this node knows of; an internal error if it did not pass the guard.
    pub fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
        let caller = Caller::of_log(request)?;
        match caller.newer {
            true => Err(Status::failed_precondition(format!(
                "the list of members here is older than that of node '{}', and takes nothing from it but the log",
                caller.node
            ))),
            false => Ok(caller),
        }
    }

    /// As [`Caller::of`], for the log: the members that bring this node up to date may have joined
    /// after all that it knows, be it a new node that is at the log's beginning, or one that was away.
    ///
    /// # Errors
    /// An internal error if it did not pass the guard.
    pub(crate) fn of_log<T>(request: &Request<T>) -> Result<Caller, Status> {
        request.extensions().get().cloned().ok_or_else(|| Status::internal("the call has no caller"))
    }
}

/// The versions that a node speaks, the oldest first.
pub(crate) fn spoken(settings: &Settings) -> (u32, u32) {
    settings.pretends.unwrap_or((OLDEST_PROTOCOL, PROTOCOL))
}

/// Versions in words.
fn versions((oldest, newest): (u32, u32)) -> String {
    match oldest == newest {
        true => format!("version {newest}"),
        false => format!("versions {oldest} to {newest}"),
    }
}

/// Stamps requests to one peer with who calls whom.
#[derive(Clone, Debug)]
pub struct Stamp {
    fixed: Arc<MetadataMap>,
    cluster_id: Arc<AtomicU64>,
    members: Arc<AtomicU64>,
}

impl Stamp {
    /// The stamp of this node's calls to the node `to`.
    ///
    /// # Errors
    /// A name that cannot be sent as metadata.
    pub(crate) fn new(settings: &Settings, to: &str) -> Result<Stamp, String> {
        let mut map = MetadataMap::new();
        let (oldest, newest) = spoken(settings);
        map.insert(KEY_PROTOCOL, MetadataValue::from(newest));
        map.insert(KEY_OLDEST, MetadataValue::from(oldest));
        map.insert(KEY_INCARNATION, MetadataValue::from(settings.incarnation));
        for (key, value) in [(KEY_CLUSTER, settings.name.as_str()), (KEY_FROM, &settings.node), (KEY_TO, to)]
        {
            let value: MetadataValue<Ascii> =
                value.parse().map_err(|_| format!("name '{value}' may only contain printable ASCII"))?;
            map.insert(key, value);
        }
        let (cluster_id, members) = (settings.cluster_id.clone(), settings.members.clone());
        Ok(Stamp { fixed: Arc::new(map), cluster_id, members })
    }
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for entry in self.fixed.iter() {
            if let tonic::metadata::KeyAndValueRef::Ascii(key, value) = entry {
                request.metadata_mut().insert(key, value.clone());
            }
        }
        let id = self.cluster_id.load(Ordering::Relaxed);
        if id != 0 {
            request.metadata_mut().insert(KEY_CLUSTER_ID, MetadataValue::from(id));
            let members = self.members.load(Ordering::Relaxed);
            request.metadata_mut().insert(KEY_MEMBERS, MetadataValue::from(members));
        }
        Ok(request)
    }
}

/// Who may call.
#[derive(Debug, Default)]
struct Callers {
    /// With their addresses.
    nodes: BTreeMap<String, (Arc<str>, String)>,
    /// Whether that is all: a node that is no member yet takes calls of any node of the cluster, one of
    /// which brings it in.
    agreed: bool,
}

/// Lets through only calls of this cluster's nodes to this node.
#[derive(Clone)]
pub(crate) struct Guard(Arc<Gate>);

/// Called with the name of a node when a run of it calls for the first time.
pub(crate) type OnRun = Box<dyn Fn(&str) + Send + Sync>;

struct Gate {
    cluster: String,
    node: String,
    spoken: (u32, u32),
    callers: ArcSwap<Callers>,
    cluster_id: Arc<AtomicU64>,
    members: Arc<AtomicU64>,
    tls: Option<Tls>,
    /// The last problem of each caller, by the name it gave.
    problems: Mutex<BTreeMap<String, String>>,
    /// The run that each node called from last.
    runs: Mutex<BTreeMap<u64, u64>>,
    on_run: Option<OnRun>,
}

impl Guard {
    /// A guard of the node that `settings` describe.
    #[cfg(test)]
    pub(crate) fn new(settings: &Settings) -> Guard {
        Guard::telling(settings, None)
    }

    /// As [`Guard::new`]; tells when a node was started.
    pub(crate) fn telling(settings: &Settings, on_run: Option<OnRun>) -> Guard {
        let guard = Guard(Arc::new(Gate {
            cluster: settings.name.clone(),
            node: settings.node.clone(),
            spoken: spoken(settings),
            callers: ArcSwap::default(),
            cluster_id: settings.cluster_id.clone(),
            members: settings.members.clone(),
            tls: settings.tls.clone(),
            problems: Mutex::default(),
            runs: Mutex::default(),
            on_run,
        }));
        guard.follow(&settings.nodes, false);
        guard
    }

    /// These may call; and others too until the nodes have agreed on who they are.
    pub(crate) fn follow(&self, nodes: &[Node], agreed: bool) {
        let others = nodes.iter().filter(|n| n.name != self.0.node);
        let nodes = others.map(|n| (n.name.clone(), (Arc::from(n.name.as_str()), n.addr.clone()))).collect();
        self.0.callers.store(Arc::new(Callers { nodes, agreed }));
    }
}

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let from = quote(text(request.metadata(), KEY_FROM).unwrap_or_default());
        let caller = self.0.check(request.metadata(), &from).and_then(|(caller, addr)| {
            self.0.check_line(request.extensions().get(), &caller.node, &addr)?;
            Ok(caller)
        });
        self.0.report(&from, caller.as_ref().err());
        let caller = caller.map_err(|problem| match problem {
            Problem::Stranger(text) => Status::unauthenticated(text),
            Problem::Misfit(text) => Status::failed_precondition(text),
        })?;
        if let Some(on_run) = &self.0.on_run
            && self.0.runs.lock().insert(caller.id, caller.incarnation) != Some(caller.incarnation)
        {
            on_run(&caller.node);
        }
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

/// Why a call is refused.
#[derive(Debug)]
enum Problem {
    /// It does not come from a node at all.
    Stranger(String),
    /// It comes from a node that does not fit.
    Misfit(String),
}

impl Problem {
    fn text(&self) -> &str {
        match self {
            Problem::Stranger(text) | Problem::Misfit(text) => text,
        }
    }
}

impl Gate {
    /// The caller by its own account, and its address by ours.
    fn check(&self, metadata: &MetadataMap, from: &str) -> Result<(Caller, String), Problem> {
        let Some(protocol) = text(metadata, KEY_PROTOCOL).filter(|_| !from.is_empty()) else {
            return Err(Problem::Stranger("the call does not come from a Phalanx node".into()));
        };
        let newest: u32 = protocol.parse().map_err(|_| {
            Problem::Stranger(format!("protocol version '{}' is not a number", quote(protocol)))
        })?;
        let oldest = text(metadata, KEY_OLDEST).and_then(|v| v.parse().ok()).unwrap_or(newest);
        let ours = self.spoken;
        if newest < ours.0 || oldest > ours.1 {
            return Err(Problem::Misfit(format!(
                "node '{from}' speaks protocol {}, node '{}' {}: upgrade the older one by way of a release in between",
                versions((oldest, newest)),
                self.node,
                versions(ours)
            )));
        }
        let cluster = text(metadata, KEY_CLUSTER).unwrap_or_default();
        if cluster != self.cluster {
            return Err(Problem::Misfit(format!(
                "cluster '{}' is not '{}', the one of node '{}'",
                quote(cluster),
                self.cluster,
                self.node
            )));
        }
        let to = text(metadata, KEY_TO).unwrap_or_default();
        if to != self.node {
            return Err(Problem::Misfit(format!("this is node '{}', not '{}'", self.node, quote(to))));
        }
        if from == self.node {
            return Err(Problem::Misfit(format!("both call themselves node '{}'", self.node)));
        }
        self.check_id(metadata)?;
        let callers = self.callers.load();
        let mut newer = false;
        let (node, addr) = match callers.nodes.get(from) {
            Some((node, addr)) => (node.clone(), addr.clone()),
            None if callers.agreed && self.is_newer(metadata) => {
                newer = true;
                (Arc::from(from), String::new())
            }
            None if callers.agreed => {
                return Err(Problem::Misfit(format!(
                    "node '{from}' is no member of cluster '{}'; 'cluster join {from} ADDR:PORT' on a member \
                     makes it one",
                    self.cluster
                )));
            }
            None => (Arc::from(from), String::new()),
        };
        let incarnation = text(metadata, KEY_INCARNATION).and_then(|i| i.parse().ok());
        let incarnation =
            incarnation.ok_or_else(|| Problem::Stranger(format!("{KEY_INCARNATION} is not a number")))?;
        Ok((Caller { id: node_id(&node), node, incarnation, newer }, addr))
    }

    /// Whether a node of this cluster has a later list of members than this one.
    fn is_newer(&self, metadata: &MetadataMap) -> bool {
        let number = |key| text(metadata, key).and_then(|number| number.parse::<u64>().ok());
        let here = self.cluster_id.load(Ordering::Relaxed);
        here != 0
            && number(KEY_CLUSTER_ID) == Some(here)
            && number(KEY_MEMBERS).is_some_and(|theirs| theirs > self.members.load(Ordering::Relaxed))
    }

    /// Two clusters of one name must not mix.
    fn check_id(&self, metadata: &MetadataMap) -> Result<(), Problem> {
        let ours = self.cluster_id.load(Ordering::Relaxed);
        let theirs = text(metadata, KEY_CLUSTER_ID).and_then(|id| id.parse::<u64>().ok()).unwrap_or(0);
        if ours == 0 || theirs == 0 || ours == theirs {
            return Ok(());
        }
        Err(Problem::Misfit(format!(
            "this is another cluster of the name '{}': its id is {ours:016x}, not {theirs:016x}",
            self.cluster
        )))
    }

    /// Whether the connection is one of this node's.
    fn check_line(&self, line: Option<&Line>, from: &str, addr: &str) -> Result<(), Problem> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let Some(line) = line.filter(|line| line.fits) else {
            return Err(Problem::Misfit(format!(
                "node '{}' speaks TLS: 'ssl' is missing in the 'cluster' section of node '{from}'",
                self.node
            )));
        };
        tls.check_peer(line.certificate.as_deref(), from, addr)
            .map_err(|why| Problem::Misfit(format!("the certificate of node '{from}' {why}")))
    }

    /// Logs a change in what is wrong with the calls of `from`.
    fn report(&self, from: &str, problem: Option<&Problem>) {
        let mut problems = self.problems.lock();
        let Some(problem) = problem else {
            if problems.remove(from).is_some() {
                info!("cluster {}: calls from node '{from}' are accepted again", self.cluster);
            }
            return;
        };
        if problems.get(from).map(String::as_str) == Some(problem.text()) {
            return;
        }
        // The names are the strangers' own: bounded in number.
        if problems.len() >= STRANGERS && !problems.contains_key(from) {
            problems.pop_first();
        }
        problems.insert(from.to_owned(), problem.text().to_owned());
        let who = if from.is_empty() { "somebody".to_owned() } else { format!("node '{from}'") };
        warn!("cluster {}: call from {who} refused: {}", self.cluster, problem.text());
    }
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key)?.to_str().ok()
}

/// What a stranger sent, fit for a message.
fn quote(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    fn settings(cluster: &str, node: &str) -> Settings {
        let nodes = ["n1", "n2"].map(|n| Node { name: n.into(), addr: "127.0.0.1:1".into(), witness: false });
        Settings {
            name: cluster.into(),
            node: node.into(),
            nodes: nodes.to_vec(),
            data_dir: "/nonexistent".into(),
            incarnation: 5,
            tls: None,
            haproxys: Vec::new(),
            join: false,
            vip_lease: None,
            pretends: None,
            cluster_id: Arc::default(),
            members: Arc::default(),
        }
    }

    fn call(stamp: Option<Stamp>) -> Result<Request<()>, Status> {
        let request = Request::new(());
        let request = match stamp {
            Some(mut stamp) => stamp.call(request)?,
            None => request,
        };
        let guard = Guard::new(&settings("prod", "n1"));
        guard.follow(&settings("prod", "n1").nodes, true);
        guard.clone().call(request)
    }

    #[test]
    fn a_node_of_the_cluster_is_let_through_by_name() {
        let request = call(Some(Stamp::new(&settings("prod", "n2"), "n1").unwrap())).unwrap();
        let caller = Caller::of(&request).unwrap();
        assert_eq!(caller, Caller { node: "n2".into(), id: node_id("n2"), incarnation: 5, newer: false });
    }

    #[test]
    fn what_does_not_fit_is_told_why() {
        let stamp = |cluster, node, to| Some(Stamp::new(&settings(cluster, node), to).unwrap());
        for (stamp, text) in [
            (None, "the call does not come from a Phalanx node"),
            (stamp("test", "n2", "n1"), "cluster 'test' is not 'prod', the one of node 'n1'"),
            (
                stamp("prod", "n9", "n1"),
                "node 'n9' is no member of cluster 'prod'; 'cluster join n9 ADDR:PORT' on a member makes it one",
            ),
            (stamp("prod", "n2", "n3"), "this is node 'n1', not 'n3'"),
            (stamp("prod", "n1", "n1"), "both call themselves node 'n1'"),
        ] {
            assert_eq!(call(stamp).unwrap_err().message(), text);
        }
        let mut other = Stamp::new(&settings("prod", "n2"), "n1").unwrap();
        Arc::make_mut(&mut other.fixed).insert(KEY_PROTOCOL, MetadataValue::from(PROTOCOL + 2));
        Arc::make_mut(&mut other.fixed).insert(KEY_OLDEST, MetadataValue::from(PROTOCOL + 1));
        let text = call(Some(other.clone())).unwrap_err();
        let theirs = format!("speaks protocol versions {} to {}", PROTOCOL + 1, PROTOCOL + 2);
        assert!(text.message().contains(&theirs), "{text}");
        // The next release speaks this version too.
        Arc::make_mut(&mut other.fixed).insert(KEY_OLDEST, MetadataValue::from(PROTOCOL));
        assert!(call(Some(other)).is_ok());
    }

    #[test]
    fn clusters_of_one_name_do_not_mix_and_a_new_node_lets_any_member_in() {
        let ours = settings("prod", "n1");
        let mut guard = Guard::new(&ours);
        let theirs = settings("prod", "n7");
        let mut call = |theirs: &Settings| {
            let mut stamp = Stamp::new(theirs, "n1").unwrap();
            guard.call(stamp.call(Request::new(())).unwrap())
        };
        assert!(call(&theirs).is_ok());
        ours.cluster_id.store(1, Ordering::Relaxed);
        assert!(call(&theirs).is_ok(), "it does not know its cluster yet");
        theirs.cluster_id.store(2, Ordering::Relaxed);
        let text = call(&theirs).unwrap_err();
        assert!(text.message().starts_with("this is another cluster of the name 'prod'"), "{text}");
    }

    #[test]
    fn a_member_that_came_after_all_this_node_knows_brings_the_log_and_nothing_else() {
        let (ours, theirs) = (settings("prod", "n1"), settings("prod", "n7"));
        let mut guard = Guard::new(&ours);
        guard.follow(&ours.nodes, true);
        let mut call = |id: u64, members: u64| {
            theirs.cluster_id.store(id, Ordering::Relaxed);
            theirs.members.store(members, Ordering::Relaxed);
            guard.call(Stamp::new(&theirs, "n1").unwrap().call(Request::new(())).unwrap())
        };
        ours.members.store(4, Ordering::Relaxed);
        assert!(call(9, 5).is_err(), "this node does not know its cluster");
        ours.cluster_id.store(9, Ordering::Relaxed);
        let request = call(9, 5).unwrap();
        assert!(Caller::of_log(&request).unwrap().newer);
        let text = Caller::of(&request).unwrap_err();
        assert!(text.message().contains("older than that of node 'n7'"), "{text}");
        for (id, members) in [(9, 4), (9, 3), (0, 5), (8, 5)] {
            assert!(call(id, members).is_err(), "cluster {id}, members {members}");
        }
    }

    #[test]
    fn problems_remembered_are_bounded() {
        let mut guard = Guard::new(&settings("prod", "n1"));
        for i in 0..1000 {
            let stamp = Stamp::new(&settings("other", &format!("x{i}")), "n1");
            assert!(guard.call(stamp.unwrap().call(Request::new(())).unwrap()).is_err());
        }
        assert!(guard.0.problems.lock().len() <= STRANGERS);
    }

    #[test]
    fn node_ids_do_not_change() {
        assert_eq!(node_id(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(node_id("a"), 0xaf63_dc4c_8601_ec8c);
    }
}

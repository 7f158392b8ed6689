//! Who is who on the wire: node ids, and the metadata that every call carries.
//!
//! The caller's side stamps each request ([`Stamp`]); the receiver's side lets only nodes of its own
//! cluster, speaking its own protocol, through to any service ([`Guard`]) and tells the services who
//! calls ([`Caller`]). A misfit is an answer and a warning, once per change, and never more than
//! that: what comes from the network must not stop or fail a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::Settings;
use crate::server::incoming::Line;
use crate::tls::Tls;

/// Version of the protocol between nodes. Versions do not mix.
pub const PROTOCOL: u32 = 2;

const KEY_PROTOCOL: &str = "phalanx-protocol";
const KEY_CLUSTER: &str = "phalanx-cluster";
const KEY_FROM: &str = "phalanx-from";
const KEY_TO: &str = "phalanx-to";
const KEY_INCARNATION: &str = "phalanx-incarnation";

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
}

impl Caller {
    /// Who sent `request`.
    ///
    /// # Errors
    /// An internal error if it did not pass the guard.
    pub fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
        request.extensions().get().cloned().ok_or_else(|| Status::internal("the call has no caller"))
    }
}

/// Stamps requests to one peer with who calls whom.
#[derive(Clone, Debug)]
pub struct Stamp(Arc<MetadataMap>);

impl Stamp {
    /// The stamp of this node's calls to the node `to`.
    ///
    /// # Errors
    /// A name that cannot be sent as metadata.
    pub(crate) fn new(settings: &Settings, to: &str) -> Result<Stamp, String> {
        let mut map = MetadataMap::new();
        map.insert(KEY_PROTOCOL, MetadataValue::from(PROTOCOL));
        map.insert(KEY_INCARNATION, MetadataValue::from(settings.incarnation));
        for (key, value) in [(KEY_CLUSTER, settings.name.as_str()), (KEY_FROM, &settings.node), (KEY_TO, to)]
        {
            let value: MetadataValue<Ascii> =
                value.parse().map_err(|_| format!("name '{value}' may only contain printable ASCII"))?;
            map.insert(key, value);
        }
        Ok(Stamp(Arc::new(map)))
    }
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for entry in self.0.iter() {
            if let tonic::metadata::KeyAndValueRef::Ascii(key, value) = entry {
                request.metadata_mut().insert(key, value.clone());
            }
        }
        Ok(request)
    }
}

/// Lets through only calls of this cluster's nodes to this node.
#[derive(Clone)]
pub(crate) struct Guard(Arc<Gate>);

/// Called with the name of a node when a run of it calls for the first time.
pub(crate) type OnRun = Box<dyn Fn(&str) + Send + Sync>;

struct Gate {
    cluster: String,
    node: String,
    callers: BTreeMap<String, (Arc<str>, String)>,
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
        let others = settings.nodes.iter().filter(|n| n.name != settings.node);
        Guard(Arc::new(Gate {
            cluster: settings.name.clone(),
            node: settings.node.clone(),
            callers: others.map(|n| (n.name.clone(), (Arc::from(n.name.as_str()), n.addr.clone()))).collect(),
            tls: settings.tls.clone(),
            problems: Mutex::default(),
            runs: Mutex::default(),
            on_run,
        }))
    }
}

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let from = quote(text(request.metadata(), KEY_FROM).unwrap_or_default());
        let caller = self.0.check(request.metadata(), &from).and_then(|(caller, addr)| {
            self.0.check_line(request.extensions().get(), &caller.node, addr)?;
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
    fn check(&self, metadata: &MetadataMap, from: &str) -> Result<(Caller, &str), Problem> {
        let Some(protocol) = text(metadata, KEY_PROTOCOL).filter(|_| !from.is_empty()) else {
            return Err(Problem::Stranger("the call does not come from a Phalanx node".into()));
        };
        if protocol != PROTOCOL.to_string() {
            return Err(Problem::Misfit(format!(
                "protocol version {} is not {PROTOCOL}, the one of node '{}'",
                quote(protocol),
                self.node
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
        let Some((node, addr)) = self.callers.get(from) else {
            return Err(Problem::Misfit(format!(
                "node '{from}' is not in the cluster section of node '{}'",
                self.node
            )));
        };
        let incarnation = text(metadata, KEY_INCARNATION).and_then(|i| i.parse().ok());
        let incarnation =
            incarnation.ok_or_else(|| Problem::Stranger(format!("{KEY_INCARNATION} is not a number")))?;
        Ok((Caller { node: node.clone(), id: node_id(node), incarnation }, addr))
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
        }
    }

    fn call(stamp: Option<Stamp>) -> Result<Request<()>, Status> {
        let request = Request::new(());
        let request = match stamp {
            Some(mut stamp) => stamp.call(request)?,
            None => request,
        };
        Guard::new(&settings("prod", "n1")).call(request)
    }

    #[test]
    fn a_node_of_the_cluster_is_let_through_by_name() {
        let request = call(Some(Stamp::new(&settings("prod", "n2"), "n1").unwrap())).unwrap();
        let caller = Caller::of(&request).unwrap();
        assert_eq!(caller, Caller { node: "n2".into(), id: node_id("n2"), incarnation: 5 });
    }

    #[test]
    fn what_does_not_fit_is_told_why() {
        let stamp = |cluster, node, to| Some(Stamp::new(&settings(cluster, node), to).unwrap());
        for (stamp, text) in [
            (None, "the call does not come from a Phalanx node"),
            (stamp("test", "n2", "n1"), "cluster 'test' is not 'prod', the one of node 'n1'"),
            (stamp("prod", "n9", "n1"), "node 'n9' is not in the cluster section of node 'n1'"),
            (stamp("prod", "n2", "n3"), "this is node 'n1', not 'n3'"),
            (stamp("prod", "n1", "n1"), "both call themselves node 'n1'"),
        ] {
            assert_eq!(call(stamp).unwrap_err().message(), text);
        }
        let mut other = Stamp::new(&settings("prod", "n2"), "n1").unwrap();
        Arc::make_mut(&mut other.0).insert(KEY_PROTOCOL, MetadataValue::from(PROTOCOL + 1));
        let text = format!("protocol version {} is not {PROTOCOL}, the one of node 'n1'", PROTOCOL + 1);
        assert_eq!(call(Some(other)).unwrap_err().message(), text);
    }

    #[test]
    fn problems_remembered_are_bounded() {
        let mut guard = Guard::new(&settings("prod", "n1"));
        for i in 0..1000 {
            let stamp = Stamp::new(&settings("prod", &format!("x{i}")), "n1");
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

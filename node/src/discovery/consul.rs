//! Reads a service from Consul: blocking queries of `/v1/health/service/NAME` over HTTP/1.1,
//! with TLS ([`super::tls`]) to an `https://` address.
//!
//! Input and output only: `engine::discovery::watch` keeps the index, the pauses and what is believed.
//! One connection per service, made anew after any error, then to the next address of the section.
//! Every wait has an end and every body a bound.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap};
use hyper_util::rt::TokioIo;
use phalanx_config::Env as _;
use phalanx_config::model::{Consistency, Consul, ConsulToken, ServiceHealth};
use phalanx_engine::discovery::Instance;
use phalanx_engine::discovery::watch::{Answer, Watch};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Job, Report, tls};
use crate::load::System;

/// Longest body that is read.
const MAX_BODY: usize = 32 << 20;

/// Longest token file.
const MAX_TOKEN: u64 = 4096;

/// Names of instances that are looked up side by side.
const NAMES_AT_ONCE: usize = 64;

/// Bytes of an error's text that are shown.
const MAX_SAID: usize = 200;

/// What is asked for.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) tags: Vec<String>,
    pub(super) health: ServiceHealth,
}

/// Follows a service until it is dropped.
pub(super) async fn read(job: Job, section: Arc<Consul>, service: Service) {
    let mut watch = Watch::new(job.known.clone(), section.hold_empty, rand::random(), job.now());
    let mut agent = Agent { section: section.clone(), next: 0, open: None };
    loop {
        let index = watch.index();
        let delay = match agent.ask(&service, index).await {
            Ok(answer) => {
                job.succeeded(answer.index.unwrap_or(0));
                let index = answer.index.unwrap_or(0);
                let next = watch.handle_answer(answer, job.now());
                if let Some(instances) = watch.list() {
                    job.publish(Report { instances: instances.to_vec(), index, why: None });
                }
                next.delay
            }
            Err(why) => {
                agent.open = None;
                job.failed(&why);
                watch.handle_error()
            }
        };
        sleep(delay).await;
    }
}

/// The agents of a section, with the connection to one of them.
struct Agent {
    section: Arc<Consul>,
    /// Which address the next connection goes to.
    next: usize,
    open: Option<Open>,
}

/// An open connection. Dropped, it is closed.
struct Open {
    sender: Sender,
    task: JoinHandle<()>,
    address: String,
    token: Option<String>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    /// One query; with an index it blocks until something changes or `wait` is over.
    async fn ask(&mut self, service: &Service, index: u64) -> Result<Answer, String> {
        let limit = self.section.timeout;
        let usable = match &mut self.open {
            Some(open) => matches!(timeout(limit, open.sender.ready()).await, Ok(Ok(()))),
            None => false,
        };
        if !usable {
            self.open = None;
            self.open = Some(self.connect().await?);
        }
        let wait = self.section.wait;
        let path = path(&self.section, service, index);
        let Some(open) = self.open.as_mut() else { return Err("no connection".to_owned()) };
        let mut request =
            Request::get(path).header(HOST, open.address.as_str()).header("accept", "application/json");
        if let Some(token) = &open.token {
            request = request.header("x-consul-token", token.as_str());
        }
        let request = request.body(Empty::new()).map_err(|e| format!("the query cannot be asked: {e}"))?;
        // Consul adds up to a sixteenth to the wait that it is asked for.
        let patience = if index == 0 { limit } else { wait + wait / 16 + limit };
        let late = |what: &str| format!("{}: {what} within {patience:?}", open.address);
        let response = timeout(patience, open.sender.send_request(request))
            .await
            .map_err(|_| late("no answer"))?
            .map_err(|e| format!("{}: {e}", open.address))?;
        let (head, body) = response.into_parts();
        let body = timeout(limit * 2, Limited::new(body, MAX_BODY).collect())
            .await
            .map_err(|_| format!("{}: the answer did not end within {:?}", open.address, limit * 2))?
            .map_err(|e| format!("{}: {e}", open.address))?
            .to_bytes();
        if !head.status.is_success() {
            return Err(format!("{}: {}{}", open.address, head.status, said(&body)));
        }
        let mut instances = instances(&body, service).map_err(|e| format!("{}: {e}", open.address))?;
        trustworthy(&head.headers, instances.is_empty(), self.section.consistency)
            .map_err(|e| format!("{}: {e}", open.address))?;
        resolve(&mut instances, limit, addresses).await;
        let index = head.headers.get("x-consul-index").and_then(|v| v.to_str().ok()?.trim().parse().ok());
        Ok(Answer { index, instances })
    }

    async fn connect(&mut self) -> Result<Open, String> {
        let token = match &self.section.token {
            None => None,
            Some(ConsulToken::Literal(token)) => Some(token.clone()),
            Some(ConsulToken::File(path)) => Some(token_of(path.display().to_string()).await?),
        };
        let address = self.section.addresses[self.next % self.section.addresses.len()].clone();
        self.next = self.next.wrapping_add(1);
        let limit = self.section.timeout;
        let stream = timeout(limit, TcpStream::connect(&address))
            .await
            .map_err(|_| format!("{address}: no connection within {limit:?}"))?
            .map_err(|e| format!("{address}: {e}"))?;
        let _ = stream.set_nodelay(true);
        let named = |e: String| format!("{address}: {e}");
        let (sender, task) = if self.section.https {
            let stream = timeout(limit, tls::connect(stream, &self.section, &address)).await;
            let stream = stream.map_err(|_| format!("{address}: no TLS within {limit:?}"))?.map_err(named)?;
            handshake(stream).await.map_err(named)?
        } else {
            handshake(stream).await.map_err(named)?
        };
        Ok(Open { sender, task, address, token })
    }
}

type Sender = http1::SendRequest<Empty<Bytes>>;

/// Begins HTTP on a connection, and the task that carries it.
async fn handshake<S>(stream: S) -> Result<(Sender, JoinHandle<()>), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let task = tokio::spawn(async move {
        // Whatever ends it shows in the answer that does not come.
        let _ = connection.await;
    });
    Ok((sender, task))
}

/// The token in a file, which may have been replaced since.
async fn token_of(path: String) -> Result<String, String> {
    let named = path.clone();
    let text =
        tokio::task::spawn_blocking(move || System { ignore_resolve: false }.read(&path, MAX_TOKEN)).await;
    let text = text.map_err(|e| e.to_string()).and_then(|text| text);
    let text = text.map_err(|e| format!("token-file '{named}': {e}"))?;
    let text = String::from_utf8_lossy(&text);
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("token-file '{named}': its first line is no token"));
    }
    Ok(token.to_owned())
}

/// The query of a service.
fn path(section: &Consul, service: &Service, index: u64) -> String {
    let mut path = format!("/v1/health/service/{}", escaped(&service.name));
    let mut mark = '?';
    let mut add = |name: &str, value: Option<&str>| {
        let _ = write!(path, "{mark}{name}");
        if let Some(value) = value {
            let _ = write!(path, "={}", escaped(value));
        }
        mark = '&';
    };
    if service.health == ServiceHealth::Passing {
        add("passing", Some("1"));
    }
    for tag in &service.tags {
        add("tag", Some(tag));
    }
    let options = [
        ("dc", &section.datacenter),
        ("ns", &section.namespace),
        ("partition", &section.partition),
        ("near", &section.near),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            add(name, Some(value));
        }
    }
    match section.consistency {
        Consistency::Default => {}
        Consistency::Stale => add("stale", None),
        Consistency::Consistent => add("consistent", None),
    }
    if index > 0 {
        add("index", Some(&index.to_string()));
        add("wait", Some(&format!("{}ms", section.wait.as_millis())));
    }
    path
}

/// Percent-encoded, but for what is plain everywhere in a URI.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// Whether an answer is one, and not what is left of one.
fn trustworthy(headers: &HeaderMap, empty: bool, consistency: Consistency) -> Result<(), String> {
    let says = |name: &str, value: &str| {
        headers.get(name).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
    };
    if says("x-consul-knownleader", "false") && consistency != Consistency::Stale {
        return Err("it has no leader".to_owned());
    }
    if empty && says("x-consul-results-filtered-by-acls", "true") {
        return Err("the token may not read the service".to_owned());
    }
    Ok(())
}

/// The beginning of an error's text, in one line.
fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_SAID)]);
    let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: EntryNode,
    service: EntryService,
    #[serde(default, deserialize_with = "or_null")]
    checks: Vec<EntryCheck>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryNode {
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryService {
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u32,
    #[serde(default, deserialize_with = "or_null")]
    tags: Vec<String>,
    #[serde(default)]
    weights: Option<EntryWeights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryWeights {
    #[serde(default)]
    passing: u32,
    #[serde(default)]
    warning: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryCheck {
    #[serde(default)]
    status: String,
}

/// An empty list may be written as `null`.
fn or_null<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}

/// The instances in an answer's body. Those that can't be a server are left out.
fn instances(body: &[u8], service: &Service) -> Result<Vec<Instance>, String> {
    let entries: Vec<Entry> =
        serde_json::from_slice(body).map_err(|e| format!("the answer is not what Consul sends: {e}"))?;
    Ok(entries.into_iter().filter_map(|entry| instance(entry, service)).collect())
}

fn instance(entry: Entry, service: &Service) -> Option<Instance> {
    let worst = entry.checks.iter().map(|check| match check.status.as_str() {
        "passing" => 0,
        "warning" => 1,
        _ => 2,
    });
    let worst = worst.max().unwrap_or(0);
    let allowed = match service.health {
        ServiceHealth::Passing => 0,
        ServiceHealth::Warning => 1,
        ServiceHealth::Any => 2,
    };
    // Old agents heed only one of several tags.
    if worst > allowed || !service.tags.iter().all(|tag| entry.service.tags.contains(tag)) {
        return None;
    }
    let address = if entry.service.address.is_empty() { entry.node.address } else { entry.service.address };
    let port = u16::try_from(entry.service.port).ok()?;
    let weight = entry.service.weights.map(|w| if worst == 0 { w.passing } else { w.warning }.min(256));
    match address.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => None,
        Ok(ip) => Some(Instance::at(ip, port, weight)),
        Err(_) if address.is_empty() => None,
        Err(_) => Some(Instance { host: address.to_ascii_lowercase(), ips: Vec::new(), port, weight }),
    }
}

/// A service may be registered with a name in the place of an address. However many are, and however slow
/// names are found: the others shall not wait for it for long.
async fn resolve<F: Future<Output = Vec<IpAddr>>>(
    instances: &mut [Instance],
    limit: Duration,
    look_up: impl Fn(String) -> F,
) {
    let hosts: BTreeSet<String> =
        instances.iter().map(|i| &i.host).filter(|host| !host.is_empty()).cloned().collect();
    let look_up = &look_up;
    let asked = hosts.into_iter().map(|host| async move {
        let ips = timeout(limit, look_up(host.clone())).await.unwrap_or_default();
        (host, ips)
    });
    let found: HashMap<_, _> = stream::iter(asked).buffer_unordered(NAMES_AT_ONCE).collect().await;
    for instance in instances {
        if let Some(ips) = found.get(&instance.host) {
            instance.ips.clone_from(ips);
        }
    }
}

async fn addresses(host: String) -> Vec<IpAddr> {
    let found = tokio::net::lookup_host((host.as_str(), 0)).await;
    found.map_or_else(|_| Vec::new(), |found| found.map(|addr| addr.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_config::model::Pos;

    fn service(health: ServiceHealth, tags: &[&str]) -> Service {
        Service { name: "web".into(), tags: tags.iter().map(|t| (*t).to_owned()).collect(), health }
    }

    #[test]
    fn queries_are_as_documented() {
        let mut section = Consul::new("c", Pos::default());
        let plain = service(ServiceHealth::Passing, &[]);
        assert_eq!(path(&section, &plain, 0), "/v1/health/service/web?passing=1");
        assert_eq!(path(&section, &plain, 7), "/v1/health/service/web?passing=1&index=7&wait=300000ms");
        section.datacenter = Some("dc 1".into());
        section.near = Some("_agent".into());
        section.consistency = Consistency::Stale;
        let tagged = service(ServiceHealth::Any, &["v2", "a&b"]);
        assert_eq!(
            path(&section, &tagged, 0),
            "/v1/health/service/web?tag=v2&tag=a%26b&dc=dc%201&near=_agent&stale"
        );
    }

    const BODY: &str = r#"[
        {"Node": {"Node": "n1", "Address": "10.0.0.1"},
         "Service": {"ID": "a", "Address": "", "Port": 80, "Tags": ["v2", "blue"],
                     "Weights": {"Passing": 10, "Warning": 1}},
         "Checks": [{"Status": "passing"}, {"Status": "passing"}]},
        {"Node": {"Address": "10.0.0.2"},
         "Service": {"Address": "10.1.0.2", "Port": 81, "Tags": null, "Weights": {"Passing": 9999, "Warning": 3}},
         "Checks": [{"Status": "passing"}, {"Status": "warning"}]},
        {"Node": {"Address": "10.0.0.3"}, "Service": {"Port": 82, "Tags": ["v2"]},
         "Checks": [{"Status": "critical"}]},
        {"Node": {"Address": "10.0.0.4"}, "Service": {"Address": "Web.Internal", "Port": 83}, "Checks": null},
        {"Node": {"Address": ""}, "Service": {"Port": 84}},
        {"Node": {"Address": "10.0.0.6"}, "Service": {"Port": 70000}}
    ]"#;

    #[tokio::test]
    async fn names_that_are_not_found_hold_nobody_up() {
        let named = |host: String| Instance { host, ips: Vec::new(), port: 80, weight: None };
        let mut instances: Vec<Instance> = (0..200).map(|n| named(format!("silent{n}"))).collect();
        instances.extend(["a", "b", "a"].map(|host| named(host.to_owned())));
        instances.push(Instance::at([10, 0, 0, 1].into(), 80, None));
        let look_up = |host: String| async move {
            if host.starts_with("silent") {
                std::future::pending::<()>().await;
            }
            vec![IpAddr::from([10, 0, 0, host.as_bytes()[0]])]
        };
        let began = std::time::Instant::now();
        resolve(&mut instances, Duration::from_millis(50), look_up).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let ips: Vec<_> = instances[200..].iter().map(|i| i.ips[0].to_string()).collect();
        assert_eq!(ips, ["10.0.0.97", "10.0.0.98", "10.0.0.97", "10.0.0.1"]);
        assert!(instances[..200].iter().all(|i| i.ips.is_empty()));
    }

    #[test]
    fn instances_by_health_and_tags() {
        let list = |service: &Service| -> String {
            let shown = instances(BODY.as_bytes(), service).unwrap();
            let one = |i: &Instance| {
                let at = i.ips.first().map_or(i.host.clone(), |ip| ip.to_string());
                format!("{at}:{}/{}", i.port, i.weight.map_or("-".to_owned(), |w| w.to_string()))
            };
            shown.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(list(&service(ServiceHealth::Passing, &[])), "10.0.0.1:80/10 web.internal:83/-");
        assert_eq!(
            list(&service(ServiceHealth::Warning, &[])),
            "10.0.0.1:80/10 10.1.0.2:81/3 web.internal:83/-"
        );
        assert_eq!(list(&service(ServiceHealth::Any, &["v2"])), "10.0.0.1:80/10 10.0.0.3:82/-");
        assert_eq!(list(&service(ServiceHealth::Any, &["v2", "blue"])), "10.0.0.1:80/10");
    }

    #[test]
    fn other_bodies_are_errors_and_never_a_panic() {
        let any = service(ServiceHealth::Any, &[]);
        assert_eq!(instances(b"[]", &any), Ok(Vec::new()));
        for bad in ["", "null", "{}", "[1]", "[{}]", "<html>", "[{\"Node\":{},\"Service\":{\"Port\":-1}}]"] {
            assert!(instances(bad.as_bytes(), &any).is_err(), "{bad}");
        }
        let mut state = 3u64;
        for _ in 0..5_000 {
            let mut body = BODY.as_bytes().to_vec();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) as usize % body.len();
                body[at] = (state >> 24) as u8;
            }
            let _ = instances(&body, &any);
        }
    }

    #[test]
    fn half_an_answer_is_an_error() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
        };
        let filtered =
            headers(&[("x-consul-results-filtered-by-acls", "true"), ("x-consul-knownleader", "true")]);
        let leaderless = headers(&[("x-consul-knownleader", "false")]);
        use Consistency::{Default, Stale};
        assert!(trustworthy(&headers(&[]), true, Default).is_ok());
        assert!(trustworthy(&filtered, true, Default).is_err());
        assert!(trustworthy(&filtered, false, Default).is_ok());
        assert!(trustworthy(&leaderless, false, Default).is_err());
        assert!(trustworthy(&leaderless, false, Stale).is_ok());
    }

    /// An agent that answers everything with an empty list, over TLS, to whom its CA has signed for.
    async fn agent(ca: &tls::tests::Authority) -> (String, JoinHandle<()>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let acceptor = ca.acceptor();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = [0; 4096];
                if stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 2\r\n\r\n[]";
                    stream.write_all(answer).await.unwrap();
                }
            }
        });
        (address, task)
    }

    #[tokio::test]
    async fn agents_are_asked_over_tls_by_whom_the_ca_signed_for() {
        let dir = tempfile::tempdir().unwrap();
        let [ca, other] = ["ca", "other"].map(|name| tls::tests::Authority::new(dir.path(), name));
        let (address, task) = agent(&ca).await;
        let mut section = Consul::new("c", Pos::default());
        section.addresses.push(address);
        section.https = true;
        section.ca_file = Some(ca.file.clone());
        section.crt = Some(ca.crt.clone());
        let service = service(ServiceHealth::Passing, &[]);
        let ask = async |section: &Consul| {
            let mut agent = Agent { section: Arc::new(section.clone()), next: 0, open: None };
            agent.ask(&service, 0).await
        };
        assert_eq!(ask(&section).await.unwrap().index, Some(7));
        for (ca_file, crt, says) in [
            (&other.file, Some(ca.crt.clone()), "certificate"),
            // TLS 1.3: what the agent thinks of this node's certificate shows only in the answer.
            (&ca.file, None, ""),
            (&ca.file, Some(other.crt.clone()), ""),
            (&dir.path().join("none"), None, "ca-file"),
        ] {
            section.ca_file = Some(ca_file.clone());
            section.crt = crt;
            let why = ask(&section).await.unwrap_err();
            assert!(why.starts_with(&section.addresses[0]) && why.contains(says), "{why}");
        }
        task.abort();
    }
}

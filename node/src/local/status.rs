//! What `phalanx cluster status` tells: processes as the supervisor knows them, leader and holders
//! as the nodes' Runtime APIs report them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::runtime_api;

/// A node that takes longer than this to answer is shown without an answer.
const LIMIT: Duration = Duration::from_millis(700);

/// The cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Status {
    pub nodes: Vec<NodeStatus>,
    pub vips: Vec<VipStatus>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeStatus {
    pub name: String,
    pub state: State,
    pub pid: Option<u32>,
    pub http: Option<String>,
    pub cli: Option<String>,
    pub stats: Option<String>,
    pub grpc: Option<String>,
    /// Whether it leads the cluster's log.
    pub leader: bool,
}

/// What a node's process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// It runs, and does not answer yet.
    Starting,
    Running,
    Paused,
    Partitioned,
    Stopped,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Partitioned => "partitioned",
            State::Stopped => "stopped",
        }
    }
}

/// One virtual address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct VipStatus {
    pub name: String,
    pub address: String,
    /// Name of the node that holds it.
    pub holder: Option<String>,
    /// Fencing epoch of the holder's lease.
    pub epoch: u64,
}

/// A node's process as the supervisor knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub state: State,
    pub pid: Option<u32>,
}

/// What a node says of itself and the cluster.
#[derive(Clone, Debug, Default)]
struct Report {
    leads: bool,
    term: u64,
    vips: Vec<Claim>,
}

/// A node's idea of who holds a virtual address.
#[derive(Clone, Debug)]
struct Claim {
    name: String,
    holder: Option<String>,
    epoch: u64,
}

/// Asks all running nodes at once.
pub(super) async fn gather(layout: &Layout, processes: &[Process]) -> Status {
    let asked = layout.nodes.iter().zip(processes).map(|(node, process)| async move {
        let place = node
            .cli
            .as_deref()
            .filter(|_| process.state != State::Stopped && process.state != State::Paused)?;
        report(&node.name, place).await
    });
    let reports = futures_util::future::join_all(asked).await;
    merge(layout, processes, &reports)
}

/// `None`: it does not answer.
async fn report(name: &str, place: &str) -> Option<Report> {
    let answer = runtime_api::command(place, "show cluster json; show vip json", LIMIT).await.ok()?;
    Some(read_report(name, &answer))
}

/// Reads the answers to `show cluster json` and `show vip json`, one JSON value each.
fn read_report(name: &str, answer: &str) -> Report {
    let mut report = Report::default();
    for value in serde_json::Deserializer::from_str(answer).into_iter::<serde_json::Value>() {
        let Ok(value) = value else { break };
        if let Some(leader) = value.get("leader") {
            report.leads = leader.as_str() == Some(name);
            report.term = value.get("term").and_then(serde_json::Value::as_u64).unwrap_or(0);
        }
        for vip in value.get("vips").and_then(|v| v.as_array()).into_iter().flatten() {
            report.vips.push(Claim {
                name: vip["name"].as_str().unwrap_or_default().to_owned(),
                holder: vip["holder"].as_str().map(str::to_owned),
                epoch: vip["epoch"].as_u64().unwrap_or(0),
            });
        }
    }
    report
}

fn merge(layout: &Layout, processes: &[Process], reports: &[Option<Report>]) -> Status {
    // A node cut off may still believe that it leads: the newest term is right.
    let newest = reports.iter().flatten().filter(|r| r.leads).map(|r| r.term).max();
    let nodes = layout.nodes.iter().zip(processes).zip(reports).map(|((node, process), report)| NodeStatus {
        name: node.name.clone(),
        state: match process.state {
            State::Running if report.is_none() && node.cli.is_some() => State::Starting,
            state => state,
        },
        pid: process.pid,
        http: node.http.clone(),
        cli: node.cli.clone(),
        stats: node.stats.clone(),
        grpc: node.grpc.clone(),
        leader: report.as_ref().is_some_and(|r| r.leads && Some(r.term) == newest),
    });
    let vips = layout.vips.iter().map(|(name, addr)| {
        let (holder, epoch) = holder(name, layout, reports);
        VipStatus { name: name.clone(), address: addr.to_string(), holder, epoch }
    });
    Status { nodes: nodes.collect(), vips: vips.collect() }
}

/// A holder knows best that it holds; without one, the newest that anybody heard of.
fn holder(vip: &str, layout: &Layout, reports: &[Option<Report>]) -> (Option<String>, u64) {
    let mut own: BTreeMap<u64, &str> = BTreeMap::new();
    let mut heard = (None, 0);
    for (node, report) in layout.nodes.iter().zip(reports) {
        for claim in report.iter().flat_map(|r| &r.vips).filter(|c| c.name == vip) {
            if claim.holder.as_deref() == Some(&node.name) {
                own.insert(claim.epoch, &node.name);
            } else if claim.epoch >= heard.1 {
                heard = (claim.holder.clone(), claim.epoch);
            }
        }
    }
    match own.pop_last() {
        Some((epoch, name)) => (Some(name.to_owned()), epoch),
        None => heard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::layout::Wanted;

    fn layout(dir: &std::path::Path) -> Layout {
        let wanted = Wanted {
            nodes: None,
            witness: 0,
            config: None,
            netns: false,
            base: None,
            keep: false,
            tls: false,
        };
        Layout::plan(dir, &wanted).unwrap()
    }

    fn says(name: &str, leader: &str, term: u64, holder: &str, epoch: u64) -> Option<Report> {
        let text = format!(
            "{{\"leader\":\"{leader}\",\"term\":{term}}}\n\n\
             {{\"vips\":[{{\"name\":\"web\",\"address\":\"127.0.0.100\",\"holder\":\"{holder}\",\"epoch\":{epoch}}}]}}\n"
        );
        Some(read_report(name, &text))
    }

    #[test]
    fn the_newest_leader_and_the_newest_holder_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let running = [Process { state: State::Running, pid: Some(1) }; 3];
        let reports =
            [says("n1", "n1", 3, "n1", 7), says("n2", "n2", 4, "n3", 9), says("n3", "n2", 4, "n3", 9)];
        let status = merge(&layout, &running, &reports);
        let leaders: Vec<_> = status.nodes.iter().map(|n| n.leader).collect();
        assert_eq!(leaders, [false, true, false]);
        assert_eq!((status.vips[0].holder.as_deref(), status.vips[0].epoch), (Some("n3"), 9));
    }

    #[test]
    fn a_node_without_an_answer_is_starting_and_others_tell_of_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let running = [Process { state: State::Running, pid: Some(1) }; 3];
        let status = merge(&layout, &running, &[None, says("n2", "n2", 1, "n1", 5), None]);
        assert_eq!(status.nodes[0].state, State::Starting);
        assert_eq!(status.nodes[1].state, State::Running);
        assert_eq!((status.vips[0].holder.as_deref(), status.vips[0].epoch), (Some("n1"), 5));
    }

    #[test]
    fn the_json_has_exactly_the_promised_fields() {
        let dir = tempfile::tempdir().unwrap();
        let stopped = [Process { state: State::Stopped, pid: None }; 3];
        let status = merge(&layout(dir.path()), &stopped, &[None, None, None]);
        let json = serde_json::to_string(&status).unwrap();
        assert!(
            json.starts_with(
                "{\"nodes\":[{\"name\":\"n1\",\"state\":\"stopped\",\"pid\":null,\"http\":\"127.0.0.11:8080\",\
                 \"cli\":\"127.0.0.11:9999\",\"stats\":\"http://127.0.0.11:8404/stats\",\
                 \"grpc\":\"127.0.0.11:7100\",\"leader\":false},"
            ),
            "{json}"
        );
        assert!(
            json.ends_with(
                "],\"vips\":[{\"name\":\"web\",\"address\":\"127.0.0.100\",\"holder\":null,\"epoch\":0}]}"
            ),
            "{json}"
        );
    }
}

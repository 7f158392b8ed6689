//! Commands about the configuration itself: `config push` and what belongs to it.
//!
//! A push is checked by every node that can be reached, each in its own environment, and then committed
//! as one epoch; the nodes apply it by themselves, one after the other, and this command only watches.
//! `config check-node` is what one node asks another; it never leads on.

use std::fmt::Write as _;
use std::time::Duration;

use futures_util::future::join_all;
use phalanx_cluster::Cluster;
use phalanx_cluster::control::{self, Ask, Done};
use phalanx_cluster::vip::Vips;
use phalanx_config::Level;
use phalanx_engine::log;
use phalanx_engine::registry::epochs::{ConfigCommand, Epoch, Epochs, MAX_TEXT, Outcome, Push, Step};
use phalanx_engine::registry::{Command, Reply};

use super::keyword::{Answer, Call, Keyword, Run};
use super::membership::{align, one_line};
use super::remote;
use crate::epochs::Text;

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["show", "config"],
        usage: "[<epoch>]",
        text: "show the configuration in force, or that of an epoch",
        level: Level::Admin,
        run: Run::Now(show),
    },
    Keyword {
        words: &["show", "config", "status"],
        usage: "",
        text: "report which configuration each node runs",
        level: Level::User,
        run: Run::Now(status),
    },
    Keyword {
        words: &["config", "history"],
        usage: "",
        text: "list the configurations that the cluster remembers",
        level: Level::User,
        run: Run::Now(history),
    },
    Keyword {
        words: &["config", "check"],
        usage: "[<name>] <<",
        text: "have every node check a configuration",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(check(call))),
    },
    Keyword {
        words: &["config", "check-node"],
        usage: "[<name>] <<",
        text: "check a configuration on this node",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(check_node(call))),
    },
    Keyword {
        words: &["config", "diff"],
        usage: "[<epoch> [<epoch>]] | [<name>] <<",
        text: "show what a configuration or an epoch would change",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(diff(call))),
    },
    Keyword {
        words: &["config", "push"],
        usage: "[<name>] <<",
        text: "put a configuration in force on all nodes, or on none",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(push(call))),
    },
    Keyword {
        words: &["config", "rollback"],
        usage: "[<epoch>]",
        text: "put an earlier configuration in force; 0: each node's own files",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(rollback(call))),
    },
    Keyword {
        words: &["config", "detach"],
        usage: "",
        text: "return to each node's own files",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(detach(call))),
    },
];

/// Longest payload of these commands: a little more than is taken, so that the answer says why.
pub(super) const MAX_PAYLOAD: usize = MAX_TEXT + (64 << 10);

/// How long the answer to a push waits for the nodes.
const WAIT: Duration = Duration::from_secs(180);

/// Between two looks at how far they are.
const LOOK: Duration = Duration::from_millis(50);

/// How long a node may take over a check: its names have to be looked up.
const CHECK_WITHIN: Duration = Duration::from_secs(30);

const NO_CLUSTER: &str = "The configuration has no 'cluster' section, so there is nobody to push to: change the \
                          file and reload.";

fn show(call: &Call<'_>) -> Answer {
    let held = &call.ctx.held;
    let registry = call.ctx.authority.registry();
    let mut out = String::new();
    match call.arg(0) {
        "" => {
            let record = held.record();
            match registry.epochs().epoch(record.runs).filter(|e| e.text.is_some()) {
                Some(epoch) => head(epoch, &mut out),
                None if record.text.is_some() => {
                    let _ = writeln!(out, "# epoch {}: {}", record.runs, record.name);
                }
                None => out.push_str("# this node's own files\n"),
            }
            for source in held.sources() {
                if record.text.is_none() {
                    let _ = writeln!(out, "# file {}", source.name);
                }
                body(&String::from_utf8_lossy(&source.text), &mut out);
            }
        }
        number => match number.parse().ok().and_then(|n| registry.epochs().epoch(n)) {
            Some(epoch) => {
                head(epoch, &mut out);
                body(epoch.text.as_deref().unwrap_or("# each node's own files\n"), &mut out);
            }
            None => {
                return Answer::error(format!("No epoch '{number}' is remembered; see 'config history'."));
            }
        },
    }
    Answer::dump(out)
}

fn head(epoch: &Epoch, out: &mut String) {
    let Epoch { number, author, unix_us, name, .. } = epoch;
    let hash = epoch.hash();
    let _ = writeln!(out, "# epoch {number}: {name} by {author} at {} hash {hash:016x}", date(*unix_us));
}

/// A text without empty lines, one of which would end the answer; a blank in one means the same.
fn body(text: &str, out: &mut String) {
    for line in text.lines() {
        out.push_str(if line.is_empty() { " " } else { line });
        out.push('\n');
    }
}

fn date(unix_us: u64) -> String {
    let mut date = Vec::new();
    log::bracketed(unix_us, &mut date);
    String::from_utf8_lossy(&date).into_owned()
}

fn history(call: &Call<'_>) -> Answer {
    let registry = call.ctx.authority.registry();
    let epochs = registry.epochs();
    let header = ["# epoch", "date", "by", "name", "bytes", "hash", "outcome"];
    let mut rows = vec![header.map(str::to_owned)];
    for epoch in epochs.history() {
        let name = match epoch.again {
            Some(again) => format!("{} (again {again})", epoch.name),
            None => epoch.name.clone(),
        };
        let outcome = match &epoch.outcome {
            _ if epoch.number == epochs.in_force() => "in force".to_owned(),
            Outcome::Rolling => "rolling".to_owned(),
            Outcome::Done => "replaced".to_owned(),
            Outcome::TakenBack(why) => format!("taken back: {}", one_line(why)),
        };
        rows.push([
            epoch.number.to_string(),
            date(epoch.unix_us),
            epoch.author.clone(),
            one_line(&name),
            epoch.text.as_ref().map_or("-".to_owned(), |t| t.len().to_string()),
            format!("{:016x}", epoch.hash()),
            outcome,
        ]);
    }
    let mut out = String::new();
    align(&rows, &mut out);
    Answer::dump(out)
}

fn status(call: &Call<'_>) -> Answer {
    let registry = call.ctx.authority.registry();
    let epochs = registry.epochs();
    let mut out = match epochs.rollout() {
        None => format!("# in force: epoch {}, rollout: none\n", epochs.in_force()),
        Some(r) => {
            let way = match &r.back {
                None => "forward".to_owned(),
                Some(why) => format!("back: {}", one_line(why)),
            };
            format!("# in force: epoch {}, rollout: epoch {} {way}\n", epochs.in_force(), r.epoch)
        }
    };
    let mut rows = vec![["# node", "runs", "state", "error"].map(str::to_owned)];
    for node in remote::names(call.ctx) {
        let mark = epochs.mark(&node);
        let runs = mark.map(|m| m.runs);
        let error = mark.and_then(|m| m.error.as_deref());
        rows.push([
            node.clone(),
            runs.map_or(if epochs.last() == 0 { "0" } else { "-" }.to_owned(), |runs| runs.to_string()),
            state(epochs, &node).to_owned(),
            error.map_or("-".to_owned(), one_line),
        ]);
    }
    align(&rows, &mut out);
    Answer::dump(out)
}

/// How far a node is, in one word.
fn state(epochs: &Epochs, node: &str) -> &'static str {
    if let Some(rollout) = epochs.rollout() {
        return match (rollout.step(node), rollout.back.is_some()) {
            (None, _) => "absent",
            (Some(Step::Back), _) => "back",
            (Some(_), true) => "returning",
            (Some(Step::Waiting), _) => "waiting",
            (Some(Step::Applying { .. }), _) => "applying",
            (Some(Step::Applied), _) => "applied",
            (Some(Step::Absent), _) => "absent",
        };
    }
    match epochs.mark(node) {
        None if epochs.in_force() == 0 => "own-files",
        None => "unknown",
        Some(mark) if mark.runs == epochs.in_force() && mark.error.is_none() => "in-force",
        Some(mark) if mark.error.is_some() => "failed",
        Some(_) => "behind",
    }
}

/// The text that a command brings along.
fn given(call: &Call<'_>) -> Result<Text, Answer> {
    let name = match call.arg(0) {
        "" => "pushed".to_owned(),
        name => one_line(name).chars().take(256).collect(),
    };
    match call.payload {
        None | Some("") => Err(Answer::error("The configuration is expected behind '<<'.")),
        Some(text) if text.len() > MAX_TEXT => {
            Err(Answer::error(format!("The configuration is longer than {MAX_TEXT} bytes.")))
        }
        Some(text) => Ok(Text { name, text: Some(text.into()) }),
    }
}

async fn check_node(call: &Call<'_>) -> Answer {
    // Without a payload: what this node's own files say.
    let text = match given(call) {
        Ok(text) => text,
        Err(_) if call.payload.is_none() => Text { name: "own files".to_owned(), text: None },
        Err(answer) => return answer,
    };
    match check_here(call, text).await {
        Ok(said) if said.is_empty() => Answer::info("Configuration is valid."),
        Ok(said) => Answer::info(format!("{}\nConfiguration is valid.", lines(&said))),
        Err(why) => Answer::error(without_gaps(&why)),
    }
}

async fn check_here(call: &Call<'_>, text: Text) -> Result<Vec<String>, String> {
    let (held, running) = (call.ctx.held.clone(), call.ctx.state.plan().config.clone());
    let checked = tokio::task::spawn_blocking(move || held.check(&text, &running));
    checked.await.unwrap_or_else(|e| Err(e.to_string()))
}

fn without_gaps(text: &str) -> String {
    text.lines().filter(|l| !l.trim().is_empty()).collect::<Vec<_>>().join("\n")
}

fn lines(said: &[String]) -> String {
    without_gaps(&said.join("\n"))
}

/// What the nodes say to a text.
struct Checked {
    /// Those that could run it.
    fit: Vec<String>,
    /// Those that could not, and why.
    refused: Vec<(String, String)>,
    /// Those that could not be asked, and why.
    absent: Vec<(String, String)>,
    /// What this node has to say.
    said: Vec<String>,
}

/// Has every node check a text.
async fn check_all(call: &Call<'_>, cluster: &Cluster, text: &Text) -> Checked {
    let ask = || {
        let mut words = vec!["config".to_owned(), "check-node".to_owned()];
        words.extend(text.text.is_some().then(|| text.name.clone()));
        let payload = text.text.as_ref().map(|t| t.to_string());
        Ask { words, payload, level: control::Level::Admin, from: String::new() }
    };
    let peers: Vec<_> = cluster.peers().iter().collect();
    let others = join_all(peers.iter().map(|peer| async {
        let asked = async {
            let mut reply = control::run(peer, ask()).await?;
            let mut text = Vec::new();
            while let Some(piece) = reply.next().await? {
                text.extend_from_slice(&piece);
            }
            Ok::<(Done, String), String>((reply.done, String::from_utf8_lossy(&text).into_owned()))
        };
        let late = || Err(format!("its check takes longer than {} s", CHECK_WITHIN.as_secs()));
        (peer.name().to_string(), tokio::time::timeout(CHECK_WITHIN, asked).await.unwrap_or_else(|_| late()))
    }));
    let (own, others) = tokio::join!(check_here(call, text.clone()), others);
    let mut checked = Checked { fit: Vec::new(), refused: Vec::new(), absent: Vec::new(), said: Vec::new() };
    let me = cluster.node().to_owned();
    match own {
        Ok(said) => {
            checked.said = said;
            checked.fit.push(me);
        }
        Err(why) => checked.refused.push((me, why)),
    }
    for (name, outcome) in others {
        match outcome {
            Ok((Done { refused: false, .. }, _)) => checked.fit.push(name),
            Ok((_, why)) => checked.refused.push((name, why)),
            Err(why) => checked.absent.push((name, why)),
        }
    }
    checked
}

impl Checked {
    /// The refusals, if there are any.
    fn refusal(&self) -> Option<String> {
        let mut out = String::new();
        let mut reasons: Vec<(Vec<&str>, &str)> = Vec::new();
        for (node, why) in &self.refused {
            match reasons.iter_mut().find(|(_, same)| *same == why.trim_end()) {
                Some((nodes, _)) => nodes.push(node),
                None => reasons.push((vec![node], why.trim_end())),
            }
        }
        for (nodes, why) in reasons {
            let _ = writeln!(out, "Refused by {}:\n{}", nodes.join(", "), without_gaps(why));
        }
        (!out.is_empty()).then_some(out)
    }

    /// What there is to say besides.
    fn notes(&self) -> String {
        let mut out = lines(&self.said);
        for (node, why) in &self.absent {
            let _ = write!(out, "\nNote: node '{node}' was not asked: {}.", one_line(why));
        }
        out.push_str("\nNote: files that the configuration names are read by each node, and not sent along.");
        out.trim_start().to_owned()
    }
}

async fn check(call: &Call<'_>) -> Answer {
    let text = match given(call) {
        Ok(text) => text,
        Err(answer) => return answer,
    };
    let Some(cluster) = call.ctx.authority.cluster().filter(|_| !remote::only_here()) else {
        return check_node(call).await;
    };
    let checked = check_all(call, cluster, &text).await;
    match checked.refusal() {
        Some(refusal) => Answer::error(refusal),
        None => {
            let fit = checked.fit.join(", ");
            Answer::info(format!("{}\nConfiguration is valid on: {fit}.", checked.notes()))
        }
    }
}

/// Lines around a change.
const CONTEXT: usize = 3;

/// How long a difference may be looked for; beyond it a longer one is shown.
const DIFF_WITHIN: Duration = Duration::from_secs(2);

/// From the configuration in force to the one given, or between two epochs; nothing where they are equal.
async fn diff(call: &Call<'_>) -> Answer {
    let in_force = || (in_force_label(call), text_in_force(call));
    let sides = match (call.payload, call.arg(0), call.arg(1)) {
        (Some(_), _, _) => given(call).map(|text| {
            let new = text.text.as_deref().unwrap_or_default().to_owned();
            (in_force(), (text.name, new))
        }),
        (None, "", _) => Err(Answer::error("An epoch is expected, or a configuration behind '<<'.")),
        (None, epoch, "") => of_epoch(call, epoch).map(|new| (in_force(), new)),
        (None, old, new) => of_epoch(call, old).and_then(|old| Ok((old, of_epoch(call, new)?))),
    };
    let (old, new) = match sides {
        Ok(sides) => sides,
        Err(answer) => return answer,
    };
    let found = tokio::task::spawn_blocking(move || unified(&old, &new)).await;
    match found {
        Ok(found) if found.is_empty() => Answer::done(),
        Ok(found) => Answer::dump(found),
        Err(e) => Answer::error(e.to_string()),
    }
}

/// What `diff -u` shows of two texts with their labels.
fn unified(old: &(String, String), new: &(String, String)) -> String {
    let diff = similar::TextDiff::configure().timeout(DIFF_WITHIN).diff_lines(&old.1, &new.1);
    diff.unified_diff().context_radius(CONTEXT).header(&old.0, &new.0).to_string()
}

fn in_force_label(call: &Call<'_>) -> String {
    let record = call.ctx.held.record();
    match record.text {
        Some(_) => format!("epoch {} ({}), in force", record.runs, record.name),
        None => "this node's own files, in force".to_owned(),
    }
}

fn text_in_force(call: &Call<'_>) -> String {
    let sources = call.ctx.held.sources();
    sources.iter().map(|source| String::from_utf8_lossy(&source.text).into_owned()).collect()
}

/// The text of an epoch and a label for it.
fn of_epoch(call: &Call<'_>, number: &str) -> Result<(String, String), Answer> {
    let registry = call.ctx.authority.registry();
    let epoch = number.parse().ok().and_then(|n| registry.epochs().epoch(n));
    let own = call.ctx.held.record().text.is_none();
    match epoch {
        Some(Epoch { number, name, text: Some(text), .. }) => {
            Ok((format!("epoch {number} ({name})"), text.to_string()))
        }
        // Each node's own files: known while they are in force.
        _ if own && (number == "0" || epoch.is_some()) => Ok((in_force_label(call), text_in_force(call))),
        Some(_) => Err(Answer::error(format!("Epoch {number} is each node's own files, which do not run."))),
        None => Err(Answer::error(format!("No epoch '{number}' is remembered; see 'config history'."))),
    }
}

async fn push(call: &Call<'_>) -> Answer {
    match given(call) {
        Ok(text) => put_in_force(call, text, None).await,
        Err(answer) => answer,
    }
}

async fn detach(call: &Call<'_>) -> Answer {
    put_in_force(call, Text { name: "own files".to_owned(), text: None }, Some(0)).await
}

async fn rollback(call: &Call<'_>) -> Answer {
    let registry = call.ctx.authority.registry();
    let epochs = registry.epochs();
    let number = match call.arg(0) {
        "" if epochs.in_force() == 0 => return Answer::error("There is no earlier configuration."),
        "" => epochs.previous(),
        word => match word.parse() {
            Ok(number) => number,
            Err(_) => return Answer::error(format!("'{word}' is not the number of an epoch.")),
        },
    };
    if number == 0 {
        return detach(call).await;
    }
    let Some(epoch) = epochs.epoch(number) else {
        return Answer::error(format!("No epoch '{number}' is remembered; see 'config history'."));
    };
    let text = Text { name: epoch.name.clone(), text: epoch.text.clone() };
    put_in_force(call, text, Some(number)).await
}

/// Has all nodes check a text, all of them agree, and waits until each runs it, or none does.
async fn put_in_force(call: &Call<'_>, text: Text, again: Option<u64>) -> Answer {
    let Some(cluster) = call.ctx.authority.cluster() else { return Answer::error(NO_CLUSTER) };
    let registry = cluster.registry();
    if let Some(rollout) = registry.epochs().rollout() {
        let epoch = rollout.epoch;
        return Answer::error(format!("Not done: epoch {epoch} is being applied, see 'show config status'."));
    }
    let after = registry.epochs().last();
    let checked = check_all(call, cluster, &text).await;
    if let Some(refusal) = checked.refusal() {
        return Answer::error(format!("Not done, nothing was changed on any node.\n{refusal}"));
    }
    let push = Push {
        author: cluster.node().to_owned(),
        unix_us: call.now.unix_us,
        name: text.name,
        text: text.text,
        again,
        order: order(cluster, &checked.fit),
        after,
    };
    let order = push.order.join(", ");
    let number = match cluster.propose(Command::Config(ConfigCommand::Push(push))).await {
        Ok(Reply::Text(number)) => number.parse().unwrap_or(after + 1),
        Ok(Reply::Refused(why)) => return Answer::error(format!("Not done: {why}")),
        Ok(Reply::Ok) => after + 1,
        Err(why) => return Answer::error(format!("Not done: {why}.")),
    };
    match wait(cluster, number).await {
        Some(Outcome::Done) => {
            Answer::notice(format!("{}\nEpoch {number} is in force on: {order}.", checked.notes()))
        }
        Some(Outcome::TakenBack(why)) => {
            let why = one_line(&why);
            Answer::error(format!("Epoch {number} was taken back on all nodes: {why}"))
        }
        Some(Outcome::Rolling) | None => {
            Answer::notice(format!("Epoch {number} is still being applied; see 'show config status'."))
        }
    }
}

/// The nodes in the order in which they apply: those that hold floating IPs last, so that each of these
/// moves once, to a node that is done.
fn order(cluster: &Cluster, fit: &[String]) -> Vec<String> {
    let vips = cluster.vips().map(Vips::status).unwrap_or_default();
    let holds = |node: &String| vips.iter().any(|v| v.holder.as_ref() == Some(node));
    let mut order: Vec<String> = fit.to_vec();
    order.sort_by_key(|node| (holds(node), node.clone()));
    order
}

/// What became of an epoch.
async fn wait(cluster: &Cluster, number: u64) -> Option<Outcome> {
    let end = tokio::time::Instant::now() + WAIT;
    loop {
        let outcome = cluster.registry().epochs().epoch(number).map(|e| e.outcome.clone());
        if outcome.as_ref().is_some_and(|o| *o != Outcome::Rolling) || tokio::time::Instant::now() >= end {
            return outcome;
        }
        tokio::time::sleep(LOOK).await;
    }
}

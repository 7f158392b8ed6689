//! Commands with a prefix: `@NODE` runs one on another node, `@all` on every node, `local` on this
//! node only.
//!
//! The answer to `@all` is one answer without empty lines: for each node a heading, `@NODE: ok`,
//! `@NODE: refused` or `@NODE: unreachable: WHY`, then its lines; a line that begins with `@` itself has
//! a second one in front. Texts are passed on in pieces as they come, in the order of the nodes, and
//! no faster than the client reads.
//!
//! A bare `@NODE` or `@all` is where the commands of the connection run from then on, and `@` ends that,
//! as in HAProxy's master CLI; what concerns the connection itself stays here.
//!
//! What another node may do here is bounded by the level of the session that asks there, and never
//! leads on to a third node.

use std::sync::Arc;

use bytes::Bytes;
use phalanx_cluster::control::{self, Ask, Commands, Done, Reply};
use phalanx_cluster::{Cluster, Peer};
use phalanx_config::Level;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Context;
use super::keyword::{self, Answer, Call, Run, Severity};

/// Pieces of one node's answer that wait for those of the nodes before it.
const PIECES: usize = 16;

/// Where a command is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Here; changes are agreed by all nodes as ever.
    Here,
    /// Here, and it may change nothing elsewhere.
    Local,
    /// On the node of this name.
    Node(String),
    /// On every node.
    All,
}

/// Splits a prefix from a command.
pub(super) fn place(words: &[String]) -> (Place, &[String]) {
    match words.split_first() {
        Some((first, rest)) if first == "local" => (Place::Local, rest),
        Some((first, rest)) => match first.strip_prefix('@') {
            Some("all") => (Place::All, rest),
            Some(node) => (Place::Node(node.to_owned()), rest),
            None => (Place::Here, words),
        },
        None => (Place::Here, words),
    }
}

/// Where commands run after a prefix that stood alone.
pub(super) fn switched(ctx: &Context, to: Place) -> Result<Place, String> {
    let Place::Node(name) = &to else { return Ok(to) };
    let names = names(ctx);
    if names.contains(name) {
        return Ok(to);
    }
    match name.as_str() {
        "" | "local" => Ok(Place::Here),
        _ => Err(no_such_node(name, &names)),
    }
}

fn no_such_node(name: &str, names: &[String]) -> String {
    format!("No such node '{name}'; the nodes are: {}.", names.join(", "))
}

/// Commands that reach the other nodes by another way than a [proposal](super::Authority::propose),
/// which `local` refuses by itself.
const SHARED: &[&[&str]] = &[
    &["clear", "table"],
    &["set", "table"],
    &["failover", "vip"],
    &["move", "vip"],
    &["maintenance", "node"],
    &["cluster", "join"],
    &["cluster", "leave"],
    &["cluster", "replace"],
    &["config", "push"],
    &["config", "rollback"],
    &["config", "detach"],
];

tokio::task_local! {
    /// What runs in its scope was asked for with `local`.
    static ONLY_HERE: ();
}

/// Why what is decided by all nodes is not done for this one alone.
pub(super) const NOT_LOCAL: &str = "what this changes is agreed by all nodes and is the same on each: it \
                                    cannot be changed on this node only";

/// Whether the running command was asked for with `local`.
pub(super) fn only_here() -> bool {
    ONLY_HERE.try_with(|()| ()).is_ok()
}

/// Carries out a command on this node.
pub(super) async fn here(ctx: &Context, words: &[String], payload: Option<&str>, level: Level) -> Answer {
    if let Some(why) = keyword::not_built(words) {
        return Answer::error(why);
    }
    let Some(keyword) = keyword::find(words) else {
        return Answer::info(keyword::unknown(words, level));
    };
    if keyword.level > level {
        return Answer::error("Permission denied");
    }
    let args = &words[keyword.words.len()..];
    let call = Call { ctx, args, payload, level, now: ctx.now() };
    match keyword.run {
        Run::Now(run) => run(&call),
        Run::Later(run) => run(&call).await,
    }
}

/// Carries out a command on this node, and on no other.
pub(super) async fn local(ctx: &Context, words: &[String], payload: Option<&str>, level: Level) -> Answer {
    if let Err(why) = one_command(words, "local") {
        return Answer::error(why);
    }
    let shared = SHARED.iter().any(|with| keyword::starts_with(words, with));
    if shared && ctx.authority.cluster().is_some() {
        return Answer::error(format!("Not done: {NOT_LOCAL}."));
    }
    ONLY_HERE.scope((), here(ctx, words, payload, level)).await
}

/// Whether the words after a prefix are a command.
fn one_command(words: &[String], prefix: &str) -> Result<(), String> {
    match words.first().map(String::as_str) {
        None => Err(format!("'{prefix}' expects a command behind it.")),
        Some(first) if first == "local" || first.starts_with('@') => {
            Err(format!("'{first}': a command has one prefix; it is not passed on from node to node."))
        }
        Some(_) => Ok(()),
    }
}

/// Carries out a command for a session of another node, or of this one that names it.
async fn on_behalf(ctx: &Context, words: &[String], payload: Option<&str>, level: Level) -> (Done, String) {
    let answer = match one_command(words, "@") {
        Ok(()) => here(ctx, words, payload, level).await,
        Err(why) => Answer::error(why),
    };
    if answer.effect.is_some() {
        let why = format!("'{}' concerns this connection: it has no meaning on a node.", words.join(" "));
        return (Done { severity: Severity::Error as u32, refused: true }, why);
    }
    let refused = answer.severity == Some(Severity::Error) || keyword::find(words).is_none();
    (Done { severity: answer.severity.map_or(0, |s| s as u32), refused }, answer.text)
}

/// Runs what other nodes ask for.
pub(crate) struct ForOthers(pub(crate) Arc<Context>);

impl Commands for ForOthers {
    fn run(&self, ask: Ask) -> control::Answer<'_> {
        Box::pin(async move {
            tracing::debug!("node '{}' asks for '{}'", ask.from, ask.words.join(" "));
            on_behalf(&self.0, &ask.words, ask.payload.as_deref(), level_of(ask.level)).await
        })
    }
}

fn level_of(level: control::Level) -> Level {
    match level {
        control::Level::User => Level::User,
        control::Level::Operator => Level::Operator,
        control::Level::Admin => Level::Admin,
    }
}

fn to_level(level: Level) -> control::Level {
    match level {
        Level::User => control::Level::User,
        Level::Operator => control::Level::Operator,
        Level::Admin => control::Level::Admin,
    }
}

/// A command to be carried out elsewhere.
pub(super) struct Elsewhere<'a> {
    pub(super) ctx: &'a Arc<Context>,
    pub(super) words: &'a [String],
    pub(super) payload: Option<&'a str>,
    pub(super) level: Level,
}

/// An answer that comes in pieces.
pub(super) struct Pieces {
    /// The severity of the whole; `None` = a plain dump.
    pub(super) severity: Option<Severity>,
    text: Text,
}

enum Text {
    Whole(Option<Bytes>),
    From(Reply),
    All(All),
}

impl Pieces {
    fn whole(done: Done, text: String) -> Pieces {
        Pieces { severity: severity_of(done), text: Text::Whole(Some(text.into())) }
    }

    fn error(text: String) -> Pieces {
        Pieces { severity: Some(Severity::Error), text: Text::Whole(Some(text.into())) }
    }

    /// The next piece of the text.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        match &mut self.text {
            Text::Whole(text) => text.take(),
            Text::From(reply) => match reply.next().await {
                Ok(piece) => piece,
                Err(why) => {
                    self.text = Text::Whole(None);
                    Some(format!("\nThe rest is missing: the node {why}.").into())
                }
            },
            Text::All(all) => all.next().await,
        }
    }
}

fn severity_of(done: Done) -> Option<Severity> {
    match done.severity {
        3 => Some(Severity::Error),
        5 => Some(Severity::Notice),
        6 => Some(Severity::Info),
        _ => None,
    }
}

impl Elsewhere<'_> {
    /// Carries out the command on the node called `name`.
    pub(super) async fn on_node(&self, name: &str) -> Pieces {
        if name.is_empty() {
            return Pieces::error("'@' expects the name of a node behind it, or 'all'.".into());
        }
        if let Err(why) = one_command(self.words, &format!("@{name}")) {
            return Pieces::error(why);
        }
        let cluster = self.ctx.authority.cluster();
        let own = cluster.map_or_else(|| self.ctx.state.node(), Cluster::node);
        if name == own {
            let (done, text) = on_behalf(self.ctx, self.words, self.payload, self.level).await;
            return Pieces::whole(done, text);
        }
        let Some(peer) = cluster.and_then(|c| c.peers().by_name(name)) else {
            return Pieces::error(no_such_node(name, &names(self.ctx)));
        };
        match control::run(&peer, self.ask()).await {
            Ok(reply) => Pieces { severity: severity_of(reply.done), text: Text::From(reply) },
            Err(why) => Pieces::error(format!("Node '{name}': {why}.")),
        }
    }

    /// Carries out the command on all nodes at once.
    pub(super) fn on_all(&self) -> Pieces {
        if let Err(why) = one_command(self.words, "@all") {
            return Pieces::error(why);
        }
        let mut all = All { left: Vec::new(), tasks: JoinSet::new(), line: Line::default() };
        for name in names(self.ctx) {
            let (head, answered) = oneshot::channel();
            let (pieces, text) = mpsc::channel(PIECES);
            all.left.push(Section { name: name.clone(), head: Some(answered), text });
            let peer = self.ctx.authority.cluster().and_then(|c| c.peers().by_name(&name));
            match peer {
                Some(peer) => {
                    all.tasks.spawn(fetch(peer, self.ask(), head, pieces));
                }
                None => {
                    let (ctx, ask) = (self.ctx.clone(), self.ask());
                    all.tasks.spawn(async move {
                        let level = level_of(ask.level);
                        let (done, text) = on_behalf(&ctx, &ask.words, ask.payload.as_deref(), level).await;
                        let _ = head.send(Ok(done));
                        let _ = pieces.send(Ok(text.into())).await;
                    });
                }
            }
        }
        all.left.reverse();
        Pieces { severity: None, text: Text::All(all) }
    }

    fn ask(&self) -> Ask {
        Ask {
            words: self.words.to_vec(),
            payload: self.payload.map(str::to_owned),
            level: to_level(self.level),
            from: String::new(),
        }
    }
}

/// All nodes, in the order of the configuration.
pub(super) fn names(ctx: &Context) -> Vec<String> {
    match ctx.authority.cluster() {
        Some(cluster) => cluster.status().nodes.into_iter().map(|n| n.name).collect(),
        None => vec![ctx.state.node().to_owned()],
    }
}

/// Brings the answer of one node.
async fn fetch(
    peer: Arc<Peer>,
    ask: Ask,
    head: oneshot::Sender<Result<Done, String>>,
    pieces: mpsc::Sender<Result<Bytes, String>>,
) {
    let mut reply = match control::run(&peer, ask).await {
        Ok(reply) => reply,
        Err(why) => {
            let _ = head.send(Err(why));
            return;
        }
    };
    let _ = head.send(Ok(reply.done));
    loop {
        let piece = match reply.next().await {
            Ok(None) => return,
            Ok(Some(piece)) => Ok(piece),
            Err(why) => Err(why),
        };
        let last = piece.is_err();
        if pieces.send(piece).await.is_err() || last {
            return;
        }
    }
}

/// The answers of all nodes, one after the other.
struct All {
    /// Last first.
    left: Vec<Section>,
    /// Ends what nobody waits for any more.
    tasks: JoinSet<()>,
    line: Line,
}

struct Section {
    name: String,
    head: Option<oneshot::Receiver<Result<Done, String>>>,
    text: mpsc::Receiver<Result<Bytes, String>>,
}

impl All {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let section = self.left.last_mut()?;
            if let Some(head) = section.head.take() {
                let name = &section.name;
                let status = match head.await {
                    Ok(Ok(Done { refused: false, .. })) => "ok".to_owned(),
                    Ok(Ok(Done { refused: true, .. })) => "refused".to_owned(),
                    Ok(Err(why)) => format!("unreachable: {}", super::membership::one_line(&why)),
                    Err(_) => "unreachable: the command ended without an answer".to_owned(),
                };
                return Some(format!("@{name}: {status}\n").into());
            }
            let piece = match section.text.recv().await {
                Some(Ok(piece)) => self.line.indent(&piece),
                Some(Err(why)) => {
                    let why = super::membership::one_line(&why);
                    let name = &section.name;
                    let mut end = self.line.end();
                    end.extend_from_slice(
                        format!("@{name}: unreachable: the rest is missing: {why}\n").as_bytes(),
                    );
                    end
                }
                None => {
                    self.left.pop();
                    self.line.end()
                }
            };
            if !piece.is_empty() {
                return Some(piece.into());
            }
        }
    }
}

impl Drop for All {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// Keeps headings apart from text, however the text is cut into pieces.
#[derive(Default)]
struct Line {
    /// Something of the current line was given out.
    begun: bool,
}

impl Line {
    fn indent(&mut self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + 16);
        for byte in text {
            match byte {
                // An empty line would end the answer.
                b'\n' if !self.begun => continue,
                b'@' if !self.begun => out.push(b'@'),
                _ => {}
            }
            out.push(*byte);
            self.begun = *byte != b'\n';
        }
        out
    }

    fn end(&mut self) -> Vec<u8> {
        match std::mem::take(&mut self.begun) {
            true => b"\n".to_vec(),
            false => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn prefixes_are_split_from_commands() {
        for (line, want, rest) in [
            ("show info", Place::Here, "show info"),
            ("", Place::Here, ""),
            ("@all show info", Place::All, "show info"),
            ("@n2 show info", Place::Node("n2".into()), "show info"),
            ("@n2", Place::Node("n2".into()), ""),
            ("@ show info", Place::Node(String::new()), "show info"),
            ("local show info", Place::Local, "show info"),
            ("show @n2", Place::Here, "show @n2"),
        ] {
            let words = words(line);
            let (place, command) = place(&words);
            assert_eq!((place, command.join(" ")), (want, rest.to_owned()), "{line}");
        }
    }

    #[test]
    fn text_under_a_heading_looks_the_same_however_it_is_cut() {
        let text = b"one\n\n@two\n\n\nthree @\n@\nfour";
        let want = b"one\n@@two\nthree @\n@@\nfour\n";
        for cut in 0..=text.len() {
            let mut line = Line::default();
            let mut out = line.indent(&text[..cut]);
            out.extend(line.indent(&text[cut..]));
            out.extend(line.end());
            assert_eq!(out, want, "cut at {cut}: {:?}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn one_prefix_is_enough() {
        assert!(one_command(&words("show info"), "@n1").is_ok());
        for line in ["", "@n1 show info", "@all show info", "local show info"] {
            assert!(one_command(&words(line), "@n1").is_err(), "{line}");
        }
    }
}

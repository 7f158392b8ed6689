//! Conditions and rule sets (manual sections 4.3, 4.4 and 7): what is looked at, and what is done.

use std::sync::Arc;

use super::{Expr, Format, Link, PatternUse, Pos, Regex, Variable};
use crate::pattern::Method;

/// An ACL: one name, tests of which any may be true.
#[derive(Clone, Debug, PartialEq)]
pub struct Acl {
    /// As declared; empty for an anonymous one.
    pub name: String,
    /// Each `acl` line of the name.
    pub tests: Vec<AclTest>,
}

/// One `acl` line.
#[derive(Clone, Debug, PartialEq)]
pub struct AclTest {
    /// What is compared.
    pub expr: Expr,
    /// How.
    pub method: Method,
    /// With what: true if any of the sets matches.
    pub patterns: Vec<PatternUse>,
    /// Where it was declared.
    pub pos: Pos,
}

/// `if` or `unless` with ACLs.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// `unless`.
    pub unless: bool,
    /// Alternatives, each of terms that must all hold.
    pub any: Vec<Vec<Term>>,
}

/// An ACL in a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// `!`.
    pub negated: bool,
    /// Index into the proxy's [`acls`](super::Proxy::acls).
    pub acl: usize,
}

/// `use_backend`.
#[derive(Clone, Debug, PartialEq)]
pub struct UseBackend {
    /// A name, or a log-format string that gives one.
    pub backend: BackendName,
    /// When.
    pub condition: Option<Condition>,
}

/// The backend that `use_backend` names.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendName {
    /// It exists.
    Fixed(Link),
    /// Looked up when a request is there; the next rule if there is no such backend.
    Dynamic(Format),
}

/// `use-server`.
#[derive(Clone, Debug, PartialEq)]
pub struct UseServer {
    /// A server of the backend.
    pub server: Link,
    /// When.
    pub condition: Option<Condition>,
}

/// The rule sets of a proxy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// `tcp-request connection`.
    pub tcp_connection: Vec<Rule>,
    /// `tcp-request session`.
    pub tcp_session: Vec<Rule>,
    /// `tcp-request content`.
    pub tcp_content: Vec<Rule>,
    /// `tcp-request inspect-delay`.
    pub inspect_delay: Option<std::time::Duration>,
    /// `http-request`.
    pub http_request: Vec<Rule>,
    /// `redirect`, carried out after `http-request`.
    pub redirect: Vec<Rule>,
    /// `http-response`.
    pub http_response: Vec<Rule>,
    /// `http-after-response`.
    pub http_after_response: Vec<Rule>,
}

/// A rule: an action and when it is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What is done.
    pub action: Action,
    /// When; `None` = always.
    pub condition: Option<Condition>,
    /// Where it was declared.
    pub pos: Pos,
}

impl Rule {
    /// A rule without condition, as tests make it.
    pub fn always(action: Action) -> Rule {
        Rule { action, condition: None, pos: Pos::default() }
    }
}

/// What a rule does (section 4.4).
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `allow`, `accept`: no further rule of the set.
    Accept,
    /// `reject`: the connection is closed without an answer.
    Reject,
    /// `silent-drop`: it is closed so that the client does not learn of it.
    SilentDrop,
    /// `deny`: an error answer.
    Deny(Answer),
    /// `tarpit`: an error answer, late.
    Tarpit(Answer),
    /// `return`: an answer of one's own.
    Return(Answer),
    /// `redirect`.
    Redirect(Redirect),
    /// `track-sc0` … `track-sc2`.
    Track(TrackRule),
    /// A change of a tracked counter.
    Counter(CounterAction),
    /// `set-var`, `set-var-fmt`.
    SetVar(Variable, ValueFrom),
    /// `unset-var`.
    UnsetVar(Variable),
    /// A header that is added, set or removed.
    Header(HeaderAction),
    /// `set-method`.
    SetMethod(Format),
    /// `set-path`.
    SetPath(Format),
    /// `set-pathq`.
    SetPathQuery(Format),
    /// `set-query`.
    SetQuery(Format),
    /// `set-uri`.
    SetUri(Format),
    /// `replace-path`.
    ReplacePath(Regex, Format),
    /// `replace-pathq`.
    ReplacePathQuery(Regex, Format),
    /// `replace-uri`.
    ReplaceUri(Regex, Format),
    /// `set-status`: code and reason.
    SetStatus(u16, Option<String>),
    /// `set-log-level`; `None` = `silent`.
    SetLogLevel(Option<u8>),
    /// `set-map`, `del-map`, `add-acl`, `del-acl`.
    Pattern(PatternAction),
}

/// `track-sc<n> <key> [table <table>]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackRule {
    /// Which counter, 0..=2.
    pub counter: u8,
    /// The key.
    pub expr: Expr,
    /// The proxy whose table is used.
    pub table: Link,
}

/// A change of what a tracked entry counts.
#[derive(Clone, Debug, PartialEq)]
pub struct CounterAction {
    /// Which counter, 0..=2.
    pub counter: u8,
    /// Data type, such as `gpc0`.
    pub data: &'static str,
    /// Index into an array type; 0 for others.
    pub index: u8,
    /// How.
    pub change: Change,
}

/// How a counter is changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// One more.
    Increment,
    /// So many more.
    Add(ValueFrom),
    /// Set to.
    Set(ValueFrom),
}

/// Where an action takes its value from.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueFrom {
    /// A number.
    Int(i64),
    /// An expression.
    Expr(Expr),
    /// A log-format string.
    Format(Format),
}

/// What is done to a header.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderAction {
    /// Name, in lower case.
    pub name: String,
    /// What.
    pub edit: HeaderEdit,
}

/// How a header is edited.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderEdit {
    /// `add-header`.
    Add(Format),
    /// `set-header`.
    Set(Format),
    /// `del-header`, by the way that the name is compared.
    Delete(NameMatch),
    /// `replace-header`: each whole line that matches.
    Replace(Regex, Format),
    /// `replace-value`: each value of a list that matches.
    ReplaceValue(Regex, Format),
}

/// Header fields that no rule changes: what says where a message ends is the proxy's to say.
pub const FRAMING: [&str; 4] = ["content-length", "transfer-encoding", "connection", "upgrade"];

/// How `del-header -m` compares names.
#[derive(Clone, Debug, PartialEq)]
pub enum NameMatch {
    /// The same.
    Str,
    /// Begins with.
    Beg,
    /// Ends with.
    End,
    /// Holds.
    Sub,
    /// A regular expression.
    Reg(Regex),
}

/// An answer that the proxy gives itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// `status`, `deny_status`.
    pub status: u16,
    /// The page of the status, whatever else stands here.
    pub page: bool,
    /// `content-type`.
    pub content_type: Option<String>,
    /// What it holds.
    pub body: Option<Body>,
    /// `hdr`.
    pub headers: Vec<(String, Format)>,
}

/// The body of an [`Answer`].
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// `string`, `file`.
    Fixed(Arc<[u8]>),
    /// `lf-string`, `lf-file`.
    Format(Format),
}

/// A page of one's own (`errorfile`), put together as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorFile {
    /// The status that it stands for.
    pub status: u16,
    /// Status line and fields with their line ends; no `Connection`.
    pub head: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
    /// Whether it says how long it is, so that the connection may be kept.
    pub has_length: bool,
    /// HTTP/1.1 or later.
    pub is_11: bool,
}

/// `redirect`.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// Where to.
    pub to: RedirectTo,
    /// `code`.
    pub code: u16,
    /// `drop-query`.
    pub drop_query: bool,
    /// `append-slash`.
    pub append_slash: bool,
    /// `set-cookie`, `clear-cookie`: the whole field value.
    pub cookie: Option<String>,
    /// `ignore-empty`.
    pub ignore_empty: bool,
}

/// Where a redirect leads.
#[derive(Clone, Debug, PartialEq)]
pub enum RedirectTo {
    /// `location`.
    Location(Format),
    /// `prefix`.
    Prefix(Format),
    /// `scheme`.
    Scheme(Format),
}

/// A change of a map or of an ACL's patterns.
#[derive(Clone, Debug, PartialEq)]
pub struct PatternAction {
    /// Its file.
    pub file: Arc<str>,
    /// The pattern.
    pub key: Format,
    /// What.
    pub edit: PatternEdit,
}

/// What a [`PatternAction`] does.
#[derive(Clone, Debug, PartialEq)]
pub enum PatternEdit {
    /// `set-map`.
    SetMap(Format),
    /// `del-map`.
    DelMap,
    /// `add-acl`.
    AddAcl,
    /// `del-acl`.
    DelAcl,
}

/// A `stick` line.
#[derive(Clone, Debug, PartialEq)]
pub struct StickRule {
    /// `on`, `match` or `store-request`.
    pub kind: StickKind,
    /// The key.
    pub expr: Expr,
    /// Name of the proxy whose table is used.
    pub table: String,
    /// When.
    pub condition: Option<Condition>,
}

/// What a stick rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StickKind {
    /// Match and store.
    On,
    /// Only look.
    Match,
    /// Only store.
    StoreRequest,
}

//! Rule sets (manual sections 4.3 and 4.4): which actions each of them takes, and the lines that use
//! ACLs without being a rule set (`acl`, `use_backend`, `use-server`).
//!
//! An action is an entry of the table in `actions`; `answers` reads those that answer in the server's
//! place.

pub(crate) mod actions;
mod answers;

use crate::acl;
use crate::draft::Placed;
use crate::keyword::{Apply, Arity, BACKEND, FRONTEND, Keyword, LISTEN, Sections};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::{
    Action, BackendName, Condition, Converter, CounterKey, Expr, Fetch, Format, GaugeKind, Link, Needs,
    Piece, Rule, Rules, UseBackend, UseServer,
};
use crate::parser::Parser;
use crate::value::{self, Unit};

/// A set of rules, or another place where conditions and expressions are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    TcpConnection,
    TcpSession,
    TcpContent,
    HttpRequest,
    HttpResponse,
    HttpAfterResponse,
    UseBackend,
    UseServer,
    Stick,
}

impl Set {
    /// Bit in [`actions::Entry::sets`].
    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Set::TcpConnection => "tcp-request connection",
            Set::TcpSession => "tcp-request session",
            Set::TcpContent => "tcp-request content",
            Set::HttpRequest => "http-request",
            Set::HttpResponse => "http-response",
            Set::HttpAfterResponse => "http-after-response",
            Set::UseBackend => "use_backend",
            Set::UseServer => "use-server",
            Set::Stick => "stick",
        }
    }

    /// Whether what a fetch needs is there.
    pub(crate) fn offers(self, needs: Needs) -> bool {
        match (needs, self) {
            (Needs::Nothing, _) => true,
            (_, Set::TcpConnection | Set::TcpSession) => false,
            (Needs::Request, Set::HttpResponse | Set::HttpAfterResponse) => false,
            (Needs::Request, _) => true,
            (Needs::Response, Set::HttpResponse | Set::HttpAfterResponse) => true,
            (Needs::Response, _) => false,
        }
    }

    fn rules(self, rules: &mut Rules) -> &mut Vec<Rule> {
        match self {
            Set::TcpConnection => &mut rules.tcp_connection,
            Set::TcpSession => &mut rules.tcp_session,
            Set::TcpContent => &mut rules.tcp_content,
            Set::HttpResponse => &mut rules.http_response,
            Set::HttpAfterResponse => &mut rules.http_after_response,
            _ => &mut rules.http_request,
        }
    }
}

const ANY: Sections = FRONTEND | LISTEN | BACKEND;
const USAGE: &str = "<action> [arguments] [if|unless <condition>]";

const fn set(name: &'static str, sections: Sections, doc: &'static str, apply: Apply) -> Keyword {
    Keyword::new(name, USAGE, sections, Arity::AtLeast(0), doc, apply)
}

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "acl",
        "<name> <criterion> [flags] [operator] <pattern>...",
        ANY,
        Arity::AtLeast(1),
        "Names a test.",
        |p, a| acl::declare(p, a.words),
    ),
    set("tcp-request connection", FRONTEND | LISTEN, "A rule for new connections.", |p, a| {
        rule(p, a, Set::TcpConnection)
    }),
    set("tcp-request session", FRONTEND | LISTEN, "A rule for new sessions.", |p, a| {
        rule(p, a, Set::TcpSession)
    }),
    set("tcp-request content", ANY, "A rule for what a client sends.", |p, a| rule(p, a, Set::TcpContent)),
    Keyword::new(
        "tcp-request inspect-delay",
        "<time>",
        ANY,
        Arity::Exact(1),
        "Longest wait for content that rules need.",
        |p, a| {
            let delay = value::time(a.text(0), Unit::Milliseconds, "the delay");
            let delay = delay.map_err(|err| a.fault(0, format!("'tcp-request inspect-delay' : {err}")))?;
            p.proxy().rules.inspect_delay = (!delay.is_zero()).then_some(delay);
            Ok(())
        },
    ),
    set("http-request", ANY, "A rule for requests.", |p, a| rule(p, a, Set::HttpRequest)),
    set("http-response", ANY, "A rule for responses of servers.", |p, a| rule(p, a, Set::HttpResponse)),
    set("http-after-response", ANY, "A rule for all responses.", |p, a| rule(p, a, Set::HttpAfterResponse)),
    Keyword::new(
        "redirect",
        "<location|prefix|scheme> <fmt> [arguments] [if|unless <condition>]",
        ANY,
        Arity::AtLeast(2),
        "Redirects requests; as 'http-request redirect', after all others.",
        |p, a| {
            let mut line = Line { args: a, set: Set::HttpRequest, name: "redirect", param: None, next: 0 };
            let action = Action::Redirect(answers::redirect(p, &mut line)?);
            let condition = line.condition(p)?;
            let pos = p.pos();
            p.proxy().rules.redirect.push(Rule { action, condition, pos });
            Ok(())
        },
    ),
    Keyword::new(
        "use-server",
        "<server> [if|unless <condition>]",
        BACKEND | LISTEN,
        Arity::AtLeast(1),
        "Sends what meets the condition to a server.",
        |p, a| {
            let mut line = Line { args: a, set: Set::UseServer, name: "", param: None, next: 1 };
            let condition = line.condition(p)?;
            let (server, pos) = (Link::new(a.text(0)), p.pos());
            p.proxy().use_server.push(Placed { value: UseServer { server, condition }, pos });
            Ok(())
        },
    ),
    Keyword::new(
        "use_backend",
        "<backend> [if|unless <condition>]",
        FRONTEND | LISTEN,
        Arity::AtLeast(1),
        "Sends what meets the condition to a backend.",
        use_backend,
    ),
];

/// A line of a rule set.
fn rule(parser: &mut Parser<'_>, args: &Args<'_>, set: Set) -> Result<(), Fault> {
    let Some(word) = args.words.first() else {
        let names: Vec<&str> = actions::names(set).collect();
        return Err(args.named(usize::MAX, format!("expects {}", crate::parser::one_of(&names))));
    };
    let (name, param) = match word.text.split_once('(') {
        Some((name, rest)) => match rest.strip_suffix(')') {
            Some(param) => (name, Some(param)),
            None => return Err(args.fault(0, format!("missing closing parenthesis after '{name}'"))),
        },
        None => (word.text.as_str(), None),
    };
    let Some(entry) = actions::find(name, set) else { return Err(unknown_action(args, set, name)) };
    let mut line = Line { args, set, name: entry.name, param, next: 1 };
    if param.is_some() != entry.param {
        return Err(match entry.param {
            true => line.fault(0, "expects an argument in parentheses"),
            false => line.fault(0, "takes no argument in parentheses"),
        });
    }
    let action = (entry.parse)(parser, &mut line)?;
    let condition = line.condition(parser)?;
    let pos = parser.pos();
    set.rules(&mut parser.proxy().rules).push(Rule { action, condition, pos });
    Ok(())
}

fn unknown_action(args: &Args<'_>, set: Set, name: &str) -> Fault {
    if known::ACTIONS.has(name) || actions::exists(name) {
        return args.fault(0, known::unsupported(&format!("'{} {name}'", set.name())));
    }
    let names: Vec<&str> = actions::names(set).collect();
    let message = format!("'{}' expects {} (got '{name}')", set.name(), crate::parser::one_of(&names));
    let fault = args.fault(0, message);
    match known::nearest(name, names.iter().copied().chain(known::ACTIONS.iter())) {
        Some(near) => fault.hint(known::did_you_mean(near)),
        None => fault,
    }
}

fn use_backend(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let mut line = Line { args, set: Set::UseBackend, name: "", param: None, next: 1 };
    let name = args.text(0);
    let backend = if name.contains('%') {
        BackendName::Dynamic(line.format_at(parser, 0)?)
    } else {
        BackendName::Fixed(Link::new(name))
    };
    let condition = line.condition(parser)?;
    let pos = parser.pos();
    parser.proxy().use_backend.push(Placed { value: UseBackend { backend, condition }, pos });
    Ok(())
}

/// The rest of a rule's line, read word by word.
pub(crate) struct Line<'a, 'b> {
    pub(crate) args: &'a Args<'b>,
    set: Set,
    name: &'static str,
    param: Option<&'a str>,
    next: usize,
}

impl<'a> Line<'a, '_> {
    /// A line that is no rule of a set, with what follows word number `next`.
    pub(crate) fn after<'b>(args: &'a Args<'b>, set: Set, next: usize) -> Line<'a, 'b> {
        Line { args, set, name: "", param: None, next }
    }

    /// The next word, unless a condition begins there.
    fn peek(&self) -> Option<&'a str> {
        let text = self.args.words.get(self.next)?.text.as_str();
        (!matches!(text, "if" | "unless")).then_some(text)
    }

    /// Takes the next word, which must be there.
    fn take(&mut self, what: &str) -> Result<&'a str, Fault> {
        let Some(text) = self.peek() else {
            return Err(self.fault(self.next, format!("expects {what}")));
        };
        self.next += 1;
        Ok(text)
    }

    /// A complaint about a word.
    fn fault(&self, index: usize, message: impl AsRef<str>) -> Fault {
        let (set, message) = (self.set.name(), message.as_ref());
        match self.name {
            "" => self.args.fault(index, format!("'{set}' : {message}")),
            name => self.args.fault(index, format!("'{set} {name}' : {message}")),
        }
    }

    /// A complaint about the word taken last.
    fn fault_before(&self, message: impl AsRef<str>) -> Fault {
        self.fault(self.next.saturating_sub(1), message)
    }

    /// The argument in parentheses.
    fn param(&self) -> &'a str {
        self.param.unwrap_or_default()
    }

    /// Takes a sample expression: words up to one of `ends` or a condition, each one a converter more.
    pub(crate) fn expr(&mut self, parser: &mut Parser<'_>, ends: &[&str]) -> Result<Expr, Fault> {
        let start = self.next;
        let mut text = String::new();
        while let Some(word) = self.peek().filter(|word| !ends.contains(word)) {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(word);
            self.next += 1;
        }
        if text.is_empty() {
            return Err(self.fault(self.next, "expects a fetch method"));
        }
        let expr = parser.expr(&text).map_err(|err| self.fault(start, err))?;
        self.check_expr(parser, &expr, start)?;
        Ok(expr)
    }

    /// Takes `table <table>`, if it is there; otherwise it is the proxy's own.
    pub(crate) fn table(&mut self, parser: &mut Parser<'_>) -> Result<String, Fault> {
        if self.peek() != Some("table") {
            return Ok(parser.proxy().name.clone());
        }
        self.next += 1;
        self.take("a table name after 'table'").map(str::to_owned)
    }

    /// Takes a log-format string.
    fn format(&mut self, parser: &mut Parser<'_>, what: &str) -> Result<Format, Fault> {
        self.take(what)?;
        self.format_at(parser, self.next - 1)
    }

    fn format_at(&mut self, parser: &mut Parser<'_>, index: usize) -> Result<Format, Fault> {
        let format = parser.format(self.args.text(index)).map_err(|err| self.fault(index, err))?;
        for piece in &format.pieces {
            if let Piece::Expr { expr, .. } = piece {
                self.check_expr(parser, expr, index)?;
            }
        }
        Ok(format)
    }

    /// What an expression needs must be there where it is used.
    fn check_expr(&self, parser: &mut Parser<'_>, expr: &Expr, index: usize) -> Result<(), Fault> {
        let needs = expr.fetch.needs();
        if !self.set.offers(needs) {
            let what = if needs == Needs::Response { "response" } else { "request" };
            let message = format!(
                "fetch method '{}' extracts information from 'HTTP {what} headers', none of which is available here",
                expr.text
            );
            return Err(self.fault(index, message));
        }
        if needs != Needs::Nothing && matches!(self.set, Set::TcpContent | Set::UseBackend | Set::Stick) {
            let (what, pos) = (self.set.name(), parser.pos());
            let text = expr.text.clone();
            parser.proxy().needs_http.push(Placed { value: (what, text), pos });
        }
        Ok(())
    }

    /// What is left: nothing, or a condition.
    pub(crate) fn condition(&mut self, parser: &mut Parser<'_>) -> Result<Option<Condition>, Fault> {
        let Some(word) = self.args.words.get(self.next) else { return Ok(None) };
        if !matches!(word.text.as_str(), "if" | "unless") {
            let message =
                format!("expects either 'if' or 'unless' followed by a condition but found '{}'", word.text);
            return Err(self.fault(self.next, message));
        }
        let words = &self.args.words[self.next + 1..];
        acl::condition(parser, word, words, self.set).map(Some)
    }
}

/// What an expression refers to by name.
pub(crate) enum Reference<'a> {
    /// The table of a proxy; the proxy's own if there is no name.
    Table(Option<&'a Link>),
    /// A backend.
    Backend(&'a Link),
    /// A frontend.
    Frontend(&'a Link),
    /// A server of a backend, or of the proxy itself.
    Server(Option<&'a Link>, &'a Link),
}

/// Everything that an expression refers to.
pub(crate) fn references(expr: &Expr) -> Vec<Reference<'_>> {
    let mut list = Vec::new();
    match &expr.fetch {
        Fetch::Counter(counter) => match (counter.of, counter.table.as_ref()) {
            (CounterKey::Tracked(_), None) => {}
            (_, table) => list.push(Reference::Table(table)),
        },
        Fetch::TableCount(table) | Fetch::TableAvailable(table) => {
            list.push(Reference::Table(table.as_ref()));
        }
        Fetch::Gauge(gauge) => match (&gauge.server, &gauge.proxy) {
            (Some(server), proxy) => list.push(Reference::Server(proxy.as_ref(), server)),
            (None, Some(name)) => list.push(match gauge.kind {
                GaugeKind::FeConn | GaugeKind::FeReqRate | GaugeKind::FeSessRate => Reference::Frontend(name),
                _ => Reference::Backend(name),
            }),
            (None, None) => {}
        },
        _ => {}
    }
    for converter in &expr.converters {
        if let Converter::InTable(table) | Converter::TableValue(table, ..) = converter {
            list.push(Reference::Table(table.as_ref()));
        }
    }
    list
}

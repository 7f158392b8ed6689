//! The actions of the rule sets, one entry each.

use super::{Line, Set, answers};
use crate::expr;
use crate::known;
use crate::line::Fault;
use crate::model::{
    Action, Change, CounterAction, FRAMING, Format, HeaderAction, HeaderEdit, Link, NameMatch, PatternAction,
    PatternEdit, Regex, TrackRule, Type, ValueFrom, Variable,
};
use crate::parser::Parser;

/// An action.
pub(super) struct Entry {
    pub(super) name: &'static str,
    /// Bits of the sets that take it.
    sets: u8,
    /// Whether its name has an argument in parentheses.
    pub(super) param: bool,
    pub(super) parse: fn(&mut Parser<'_>, &mut Line<'_, '_>) -> Result<Action, Fault>,
}

const TCP: u8 = Set::TcpConnection.bit() | Set::TcpSession.bit() | Set::TcpContent.bit();
const REQUEST: u8 = Set::HttpRequest.bit();
const RESPONSE: u8 = Set::HttpResponse.bit();
const AFTER: u8 = Set::HttpAfterResponse.bit();
/// What all sets of HTTP rules take.
const HEADERS: u8 = REQUEST | RESPONSE | AFTER;

const fn action(
    name: &'static str,
    sets: u8,
    parse: fn(&mut Parser<'_>, &mut Line<'_, '_>) -> Result<Action, Fault>,
) -> Entry {
    Entry { name, sets, param: false, parse }
}

const fn with_param(
    name: &'static str,
    sets: u8,
    parse: fn(&mut Parser<'_>, &mut Line<'_, '_>) -> Result<Action, Fault>,
) -> Entry {
    Entry { name, sets, param: true, parse }
}

/// The table.
const ACTIONS: &[Entry] = &[
    action("accept", TCP, |_, _| Ok(Action::Accept)),
    action("allow", HEADERS, |_, _| Ok(Action::Accept)),
    with_param("add-acl", REQUEST | RESPONSE, |p, l| pattern(p, l, PatternEdit::AddAcl)),
    action("add-header", HEADERS, |p, l| header(p, l, HeaderEdit::Add)),
    with_param("del-acl", REQUEST | RESPONSE, |p, l| pattern(p, l, PatternEdit::DelAcl)),
    action("del-header", HEADERS, del_header),
    with_param("del-map", REQUEST | RESPONSE, |p, l| pattern(p, l, PatternEdit::DelMap)),
    action("deny", REQUEST | RESPONSE, |p, l| answers::deny(p, l).map(Action::Deny)),
    action("redirect", REQUEST, |p, l| answers::redirect(p, l).map(Action::Redirect)),
    action("reject", TCP | REQUEST, |_, _| Ok(Action::Reject)),
    action("replace-header", HEADERS, |p, l| replace_header(p, l, HeaderEdit::Replace)),
    action("replace-path", REQUEST, |p, l| replace(p, l, Action::ReplacePath)),
    action("replace-pathq", REQUEST, |p, l| replace(p, l, Action::ReplacePathQuery)),
    action("replace-uri", REQUEST, |p, l| replace(p, l, Action::ReplaceUri)),
    action("replace-value", HEADERS, |p, l| replace_header(p, l, HeaderEdit::ReplaceValue)),
    action("return", REQUEST | RESPONSE, |p, l| answers::respond(p, l).map(Action::Return)),
    with_param("sc-add-gpc", TCP | HEADERS, |p, l| {
        let (counter, index) = element(l)?;
        Ok(changed(counter, "gpc", index, Change::Add(amount(p, l)?)))
    }),
    with_param("sc-inc-gpc", TCP | HEADERS, |_, l| {
        let (counter, index) = element(l)?;
        Ok(changed(counter, "gpc", index, Change::Increment))
    }),
    with_param("sc-inc-gpc0", TCP | HEADERS, |_, l| {
        Ok(changed(counter(l, l.param())?, "gpc0", 0, Change::Increment))
    }),
    with_param("sc-inc-gpc1", TCP | HEADERS, |_, l| {
        Ok(changed(counter(l, l.param())?, "gpc1", 0, Change::Increment))
    }),
    with_param("sc-set-gpt", TCP | HEADERS, |p, l| {
        let (counter, index) = element(l)?;
        Ok(changed(counter, "gpt", index, Change::Set(amount(p, l)?)))
    }),
    with_param("sc-set-gpt0", TCP | HEADERS, |p, l| {
        let counter = counter(l, l.param())?;
        Ok(changed(counter, "gpt0", 0, Change::Set(amount(p, l)?)))
    }),
    action("set-header", HEADERS, |p, l| header(p, l, HeaderEdit::Set)),
    action("set-log-level", REQUEST | RESPONSE, set_log_level),
    with_param("set-map", REQUEST | RESPONSE, |p, l| {
        let Action::Pattern(mut action) = pattern(p, l, PatternEdit::DelMap)? else {
            return Err(l.fault(0, "expects a key and a value"));
        };
        action.edit = PatternEdit::SetMap(l.format(p, "a value")?);
        Ok(Action::Pattern(action))
    }),
    action("set-method", REQUEST, |p, l| Ok(Action::SetMethod(l.format(p, "a method")?))),
    action("set-path", REQUEST, |p, l| Ok(Action::SetPath(l.format(p, "a path")?))),
    action("set-pathq", REQUEST, |p, l| Ok(Action::SetPathQuery(l.format(p, "a path with query")?))),
    action("set-query", REQUEST, |p, l| Ok(Action::SetQuery(l.format(p, "a query")?))),
    action("set-status", RESPONSE | AFTER, answers::set_status),
    action("set-uri", REQUEST, |p, l| Ok(Action::SetUri(l.format(p, "a URI")?))),
    with_param("set-var", TCP | HEADERS, set_var),
    with_param("set-var-fmt", TCP | HEADERS, set_var_format),
    action("silent-drop", TCP | REQUEST, |_, _| Ok(Action::SilentDrop)),
    action("tarpit", REQUEST, |p, l| answers::tarpit(p, l).map(Action::Tarpit)),
    action("track-sc0", TCP | REQUEST, |p, l| track(p, l, 0)),
    action("track-sc1", TCP | REQUEST, |p, l| track(p, l, 1)),
    action("track-sc2", TCP | REQUEST, |p, l| track(p, l, 2)),
    with_param("unset-var", TCP | HEADERS, |_, l| Ok(Action::UnsetVar(variable(l, l.param())?))),
];

/// The action of this name in this set.
pub(super) fn find(name: &str, set: Set) -> Option<&'static Entry> {
    ACTIONS.iter().find(|entry| entry.name == name && entry.sets & set.bit() != 0)
}

/// Whether some set takes an action of this name.
pub(super) fn exists(name: &str) -> bool {
    ACTIONS.iter().any(|entry| entry.name == name)
}

/// Every action with each set that takes it, for the reference.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let sets = [
        Set::TcpConnection,
        Set::TcpSession,
        Set::TcpContent,
        Set::HttpRequest,
        Set::HttpResponse,
        Set::HttpAfterResponse,
    ];
    sets.into_iter().flat_map(|set| names(set).map(move |name| (set.name(), name)))
}

/// The actions of a set.
pub(super) fn names(set: Set) -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().filter(move |entry| entry.sets & set.bit() != 0).map(|entry| entry.name)
}

/// `<key> [table <table>]`.
fn track(parser: &mut Parser<'_>, line: &mut Line<'_, '_>, counter: u8) -> Result<Action, Fault> {
    let expr = line.expr(parser, &["table"])?;
    let table = Link::new(&line.table(parser)?);
    Ok(Action::Track(TrackRule { counter, expr, table }))
}

/// `set-var(<name>) <expression>`.
fn set_var(parser: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Action, Fault> {
    let name = variable(line, line.param())?;
    Ok(Action::SetVar(name, ValueFrom::Expr(line.expr(parser, &[])?)))
}

/// `set-var-fmt(<name>) <format>`.
fn set_var_format(parser: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Action, Fault> {
    let name = variable(line, line.param())?;
    Ok(Action::SetVar(name, ValueFrom::Format(line.format(parser, "a log-format string")?)))
}

fn variable(line: &Line<'_, '_>, text: &str) -> Result<Variable, Fault> {
    if let Some((_, condition)) = text.split_once(',') {
        return Err(line.fault(0, known::unsupported(&format!("the condition '{condition}' of a variable"))));
    }
    expr::variable(text).map_err(|err| line.fault(0, err))
}

/// `(<file>) <key>`.
fn pattern(parser: &mut Parser<'_>, line: &mut Line<'_, '_>, edit: PatternEdit) -> Result<Action, Fault> {
    let file = line.param();
    if file.is_empty() {
        return Err(line.fault(0, "expects a file name in parentheses"));
    }
    let key = line.format(parser, "a key")?;
    Ok(Action::Pattern(PatternAction { file: file.into(), key, edit }))
}

/// `<name> <format>`.
fn header(
    parser: &mut Parser<'_>,
    line: &mut Line<'_, '_>,
    edit: fn(Format) -> HeaderEdit,
) -> Result<Action, Fault> {
    let name = header_name(line)?;
    let value = line.format(parser, "a header's name and a log-format string")?;
    Ok(Action::Header(HeaderAction { name, edit: edit(value) }))
}

/// `<name> <regex> <format>`.
fn replace_header(
    parser: &mut Parser<'_>,
    line: &mut Line<'_, '_>,
    edit: fn(Regex, Format) -> HeaderEdit,
) -> Result<Action, Fault> {
    let name = header_name(line)?;
    let regex = regex(line)?;
    let value = line.format(parser, "a log-format string")?;
    Ok(Action::Header(HeaderAction { name, edit: edit(regex, value) }))
}

/// `<regex> <format>`.
fn replace(
    parser: &mut Parser<'_>,
    line: &mut Line<'_, '_>,
    action: fn(Regex, Format) -> Action,
) -> Result<Action, Fault> {
    let regex = regex(line)?;
    Ok(action(regex, line.format(parser, "a log-format string")?))
}

fn regex(line: &mut Line<'_, '_>) -> Result<Regex, Fault> {
    let text = line.take("a regular expression")?;
    Regex::new(text, false).map_err(|err| line.fault_before(err))
}

/// `<name> [-m <method>]`.
fn del_header(_: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Action, Fault> {
    let text = line.take("a header's name")?;
    let mut how = NameMatch::Str;
    if line.peek() == Some("-m") {
        line.next += 1;
        how = match line.take("a matching method")? {
            "str" => NameMatch::Str,
            "beg" => NameMatch::Beg,
            "end" => NameMatch::End,
            "sub" => NameMatch::Sub,
            "reg" => NameMatch::Reg(Regex::new(text, false).map_err(|err| line.fault_before(err))?),
            other => {
                let fault = line.fault_before(format!("unknown matching method '{other}'"));
                return Err(fault.hint("expects 'str', 'beg', 'end', 'sub' or 'reg'"));
            }
        };
    }
    let name = text.to_ascii_lowercase();
    check_framing(line, &name)?;
    Ok(Action::Header(HeaderAction { name, edit: HeaderEdit::Delete(how) }))
}

/// Takes a header's name, in lower case.
fn header_name(line: &mut Line<'_, '_>) -> Result<String, Fault> {
    let name = line.take("a header's name")?.to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.bytes().all(token) {
        return Err(line.fault_before(format!("'{name}' is no header name")));
    }
    check_framing(line, &name)?;
    Ok(name)
}

/// What says where a message ends is the proxy's to say.
fn check_framing(line: &Line<'_, '_>, name: &str) -> Result<(), Fault> {
    if FRAMING.contains(&name) {
        return Err(line.fault_before(known::unsupported(&format!("a rule about '{name}'"))));
    }
    Ok(())
}

/// `silent`, or a level of syslog.
fn set_log_level(_: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Action, Fault> {
    const LEVELS: &[&str] = &["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
    let name = line.take("a log level")?;
    if name == "silent" {
        return Ok(Action::SetLogLevel(None));
    }
    match LEVELS.iter().position(|level| *level == name) {
        Some(level) => Ok(Action::SetLogLevel(Some(level as u8))),
        None => {
            let fault = line.fault_before(format!("unknown log level '{name}'"));
            Err(fault.hint(format!("expects 'silent', {}", crate::parser::one_of(LEVELS))))
        }
    }
}

fn changed(counter: u8, data: &'static str, index: u8, change: Change) -> Action {
    Action::Counter(CounterAction { counter, data, index, change })
}

/// `<index>,<counter>` in parentheses.
fn element(line: &Line<'_, '_>) -> Result<(u8, u8), Fault> {
    let Some((index, number)) = line.param().split_once(',') else {
        return Err(line.fault(0, "expects (<index>,<counter>)"));
    };
    match index.trim().parse() {
        Ok(index @ 0..100) => Ok((counter(line, number)?, index)),
        _ => Err(line.fault(0, format!("the index of an element is at most 99, but got '{index}'"))),
    }
}

/// A number or an expression that gives one.
fn amount(parser: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<ValueFrom, Fault> {
    if let Some(number) = line.peek().and_then(|text| text.parse::<u32>().ok()) {
        line.next += 1;
        return Ok(ValueFrom::Int(i64::from(number)));
    }
    let start = line.next;
    let expr = line.expr(parser, &[])?;
    if !expr.output().casts_to(Type::Int) {
        return Err(line.fault(start, format!("'{}' gives no number ({})", expr.text, expr.output())));
    }
    Ok(ValueFrom::Expr(expr))
}

fn counter(line: &Line<'_, '_>, text: &str) -> Result<u8, Fault> {
    match text.trim().parse() {
        Ok(number @ 0..=2) => Ok(number),
        _ => Err(line.fault(0, format!("invalid stick table track ID '{text}', expects 0, 1 or 2"))),
    }
}

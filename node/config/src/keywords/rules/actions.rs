//! The actions of the rule sets, one entry each.

use super::{Line, Set, answers};
use crate::expr;
use crate::known;
use crate::line::Fault;
use crate::model::{Action, Change, CounterAction, TrackRule, ValueFrom, Variable};
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
    action("allow", REQUEST, |_, _| Ok(Action::Accept)),
    action("deny", REQUEST, |p, l| answers::deny(p, l).map(Action::Deny)),
    action("reject", TCP | REQUEST, |_, _| Ok(Action::Reject)),
    with_param("sc-inc-gpc0", TCP | REQUEST, |_, l| count(l, "gpc0")),
    with_param("set-var", TCP | REQUEST, set_var),
    with_param("set-var-fmt", TCP | REQUEST, set_var_format),
    action("track-sc0", TCP | REQUEST, |p, l| track(p, l, 0)),
    action("track-sc1", TCP | REQUEST, |p, l| track(p, l, 1)),
    action("track-sc2", TCP | REQUEST, |p, l| track(p, l, 2)),
    with_param("unset-var", TCP | REQUEST, |_, l| Ok(Action::UnsetVar(variable(l, l.param())?))),
];

/// The action of this name in this set.
pub(super) fn find(name: &str, set: Set) -> Option<&'static Entry> {
    ACTIONS.iter().find(|entry| entry.name == name && entry.sets & set.bit() != 0)
}

/// Whether some set takes an action of this name.
pub(super) fn exists(name: &str) -> bool {
    ACTIONS.iter().any(|entry| entry.name == name)
}

/// The actions of a set.
pub(super) fn names(set: Set) -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().filter(move |entry| entry.sets & set.bit() != 0).map(|entry| entry.name)
}

/// `<key> [table <table>]`.
fn track(parser: &mut Parser<'_>, line: &mut Line<'_, '_>, counter: u8) -> Result<Action, Fault> {
    let expr = line.expr(parser, &["table"])?;
    let table = line.table(parser)?;
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

/// `sc-inc-gpc0(<counter>)`.
fn count(line: &Line<'_, '_>, data: &'static str) -> Result<Action, Fault> {
    let counter = counter(line, line.param())?;
    Ok(Action::Counter(CounterAction { counter, data, index: None, change: Change::Increment }))
}

fn counter(line: &Line<'_, '_>, text: &str) -> Result<u8, Fault> {
    match text.trim().parse() {
        Ok(number @ 0..=2) => Ok(number),
        _ => Err(line.fault(0, format!("invalid stick table track ID '{text}', expects 0, 1 or 2"))),
    }
}

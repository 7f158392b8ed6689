//! Rule sets carried out: conditions decided, counters and variables changed, verdicts given.
//!
//! [`next`] walks a set until a rule asks for something that the caller must do: change a message,
//! answer, close. What only touches memory (tracking, counting, variables) is done here. The caller
//! holds the message, so it builds a new [`Context`] after it has changed one.

mod answer;
mod edit;
mod guard;
mod reasons;
#[cfg(test)]
mod tests;

use phalanx_config::pattern::Method;
use phalanx_config::{
    AclTest, Action, Change, Condition, CounterAction, Fetch, PatternAction, PatternEdit, Rule, Term,
    TrackRule, ValueFrom,
};

use crate::pattern;
use crate::plan::{Plan, ProxyPlan};
use crate::sample::{self, Context, Value, evaluate, with_key};
use crate::stick::Data;

pub use self::answer::{Reply, answer, redirect};
pub use self::edit::{Edit, prepare};
pub(crate) use self::guard::{FILTERS, Guards};
pub use self::reasons::reason;

/// Where in a set the caller stands. It is for one walk over one set: what was found out on the way stays
/// true until the caller has done what it was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    at: usize,
    seen: guard::Seen,
}

/// How a walk over a set went on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step<'r> {
    /// The set is through.
    Done,
    /// A rule waits for the inspection time to be over; the walk goes on with it.
    Wait,
    /// The caller must carry this out and go on, or not.
    Act(&'r Action),
}

/// Walks over a set up to what the caller must do.
pub fn next<'r>(rules: &'r [Rule], cursor: &mut Cursor, proxy: &ProxyPlan, at: &Context<'_>) -> Step<'r> {
    let world = at.world.filter(|_| std::ptr::eq(rules, &*proxy.config.rules.http_request));
    let guards = world.map(|world| (&proxy.guards, world.plan));
    loop {
        if let Some((guards, plan)) = guards {
            cursor.at = guards.skip(cursor.at, &mut cursor.seen, plan, at);
        }
        let Some(rule) = rules.get(cursor.at) else { return Step::Done };
        match decide(rule.condition.as_ref(), proxy, at) {
            Some(true) => cursor.at += 1,
            Some(false) => {
                cursor.at += 1;
                continue;
            }
            None => {
                // There is more of the message when the walk goes on.
                cursor.seen = guard::Seen::default();
                return Step::Wait;
            }
        }
        match &rule.action {
            Action::Track(track) => start_tracking(track, at),
            Action::Counter(counter) => change(counter, at),
            Action::SetVar(name, source) => {
                let memory = at.memory_of(name);
                match source {
                    ValueFrom::Int(n) => memory.set(name, Value::Int(*n)),
                    ValueFrom::Expr(expr) => match evaluate(expr, at) {
                        Some(value) => memory.set(name, value),
                        None => memory.unset(name),
                    },
                    ValueFrom::Format(format) => {
                        let mut text = Vec::new();
                        sample::render(format, at, &mut text);
                        memory.set(name, Value::Str(text.into()));
                    }
                }
            }
            Action::UnsetVar(name) => at.memory_of(name).unset(name),
            Action::Pattern(action) => edit_patterns(action, at),
            action => {
                if let Some((guards, _)) = guards {
                    guards.after(action, &mut cursor.seen);
                }
                return Step::Act(action);
            }
        }
    }
}

/// Whether a condition holds; one that is not there does.
pub fn holds(condition: Option<&Condition>, proxy: &ProxyPlan, at: &Context<'_>) -> bool {
    decide(condition, proxy, at) == Some(true)
}

/// As [`holds`]; `None` = that depends on what `wait_end` waits for.
fn decide(condition: Option<&Condition>, proxy: &ProxyPlan, at: &Context<'_>) -> Option<bool> {
    let Some(condition) = condition else { return Some(true) };
    let plan = at.world.map(|world| world.plan);
    let term = |term: &Term| {
        let tests = proxy.config.acls.get(term.acl).map_or(&[][..], |acl| &acl.tests);
        Some(any(tests.iter().map(|test| matches(test, plan, at)))? != term.negated)
    };
    let alternative = |terms: &Vec<Term>| any(terms.iter().map(|t| term(t).map(|is| !is))).map(|is| !is);
    any(condition.any.iter().map(alternative)).map(|is| is != condition.unless)
}

/// True if anything is; not known if nothing is, but may be.
fn any(all: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut sure = true;
    for one in all {
        match one {
            Some(true) => return Some(true),
            Some(false) => {}
            None => sure = false,
        }
    }
    sure.then_some(false)
}

fn matches(test: &AclTest, plan: Option<&Plan>, at: &Context<'_>) -> Option<bool> {
    if !at.waited && test.expr.fetch == Fetch::WaitEnd {
        return None;
    }
    Some(match test.method {
        Method::Found => sample::any(&test.expr, at, &mut |_| true),
        Method::Bool => sample::any(&test.expr, at, &mut |value| value.to_bool() == Some(true)),
        _ => {
            let Some(plan) = plan else { return Some(false) };
            sample::any(&test.expr, at, &mut |value| {
                let Some(input) = sample::input_for(test.method, value) else { return false };
                test.patterns.iter().any(|usage| plan.matcher(usage).is_some_and(|m| m.matches(&input)))
            })
        }
    })
}

/// Tracks an entry, unless the counter tracks one already.
fn start_tracking(track: &TrackRule, at: &Context<'_>) {
    let Some(world) = at.world else { return };
    if at.memory.tracked(track.counter).or_else(|| at.session.tracked(track.counter)).is_some() {
        return;
    }
    let Some(table) = world.plan.linked(&track.table).and_then(|proxy| proxy.table.as_ref()) else { return };
    if let Some(Some(tracked)) =
        with_key(&track.expr, at, table, |key| table.track_begun(key, at.request.is_some(), at.now))
    {
        at.memory.track(track.counter, tracked);
    }
}

/// Asks for a change of a map or an ACL, which all nodes see a moment later.
fn edit_patterns(action: &PatternAction, at: &Context<'_>) {
    let Some(world) = at.world else { return };
    let text = |format| {
        let mut text = Vec::new();
        sample::render(format, at, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    let edit = match &action.edit {
        PatternEdit::SetMap(value) => pattern::Edit::SetMap(text(value)),
        PatternEdit::AddAcl => pattern::Edit::AddAcl,
        PatternEdit::DelMap | PatternEdit::DelAcl => pattern::Edit::Delete,
    };
    // The queue counts what it has no room for, and the control plane says so.
    world.state.pattern_edits().push(&action.file, text(&action.key), edit);
}

/// Changes what a tracked entry counts.
fn change(counter: &CounterAction, at: &Context<'_>) {
    let Some(tracked) = at.memory.tracked(counter.counter).or_else(|| at.session.tracked(counter.counter))
    else {
        return;
    };
    let Some(data) = Data::named(counter.data, counter.index) else { return };
    let amount = |from: &ValueFrom| match from {
        ValueFrom::Int(n) => Some(*n),
        ValueFrom::Expr(expr) => evaluate(expr, at)?.to_int(),
        ValueFrom::Format(_) => None,
    };
    match &counter.change {
        Change::Increment => drop(tracked.inc(data, 1, at.now)),
        Change::Add(from) => {
            if let Some(n) = amount(from).and_then(|n| u64::try_from(n).ok()) {
                tracked.inc(data, n, at.now);
            }
        }
        Change::Set(from) => {
            if let Some(n) = amount(from) {
                tracked.set_gpt(data, n as u32, at.now);
            }
        }
    }
}

//! What the conditions of a rule set look for, looked for at once.
//!
//! Most rules do not apply to most requests, and finding that out one by one walks over a dozen pieces of
//! memory for each. Here every rule has the tests (lines of ACLs) of which one must hold for it to apply, and
//! all tests that compare the same sample in the same way are tried together, over one small piece of memory.
//! Says only that a rule can't apply: what may apply is decided by its condition. Nothing with an effect is
//! ever left out. [`next`](super::next) asks; commands that change an ACL have it built anew.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};
use phalanx_config::pattern::Method;
use phalanx_config::{Acl, AclTest, Action, Condition, Converter, Expr, Fetch, PatternUse, Rule, Term};
use smallvec::SmallVec;

use crate::pattern::{self, Input, Short};
use crate::plan::Plan;
use crate::sample::{self, Context, Value};

/// Most tests of a set that are tried ahead: one bit each.
const MOST: usize = 64;

/// The tests of a rule set that are tried together.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    /// By rule: the tests of which one must hold for it to apply; 0: none can rule it out.
    needs: Box<[u64]>,
    looks: Vec<Look>,
    /// Tests that depend on the request line, and on header fields.
    on_line: u64,
    on_fields: u64,
    built: ArcSwapOption<Built>,
}

/// Tests of one sample that compare it in one way.
#[derive(Debug)]
struct Look {
    expr: Expr,
    method: Method,
    ignore_case: bool,
    /// Each with its bit.
    tests: Vec<(u64, Vec<PatternUse>)>,
    all: u64,
}

/// What is known of the tests of a request so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    known: u64,
    found: u64,
}

/// What a sample depends on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Connection,
    Line,
    Fields,
}

impl Guards {
    pub(crate) fn new(rules: &[Rule], acls: &[Acl]) -> Guards {
        let mut guards = Guards::default();
        let mut numbered = Vec::new();
        guards.needs = rules
            .iter()
            .map(|rule| {
                let condition = rule.condition.as_ref();
                condition.and_then(|c| guards.need(c, acls, &mut numbered)).unwrap_or(0)
            })
            .collect();
        guards
    }

    /// The tests of which one must hold for the condition to hold, if it has such.
    fn need(&mut self, condition: &Condition, acls: &[Acl], numbered: &mut Vec<(usize, u64)>) -> Option<u64> {
        if condition.unless {
            return None;
        }
        let mut need = 0;
        for terms in &condition.any {
            let acl = guarding(terms, acls)?;
            let known = numbered.iter().find(|(other, _)| *other == acl).map(|(_, bits)| *bits);
            let bits = match known {
                Some(bits) => bits,
                None => {
                    let bits = self.number(&acls[acl].tests)?;
                    numbered.push((acl, bits));
                    bits
                }
            };
            need |= bits;
        }
        Some(need)
    }

    /// Gives each test a bit; `None` when there is no room for them.
    fn number(&mut self, tests: &[AclTest]) -> Option<u64> {
        let used: usize = self.looks.iter().map(|look| look.tests.len()).sum();
        if used + tests.len() > MOST {
            return None;
        }
        let mut bits = 0;
        for (n, test) in tests.iter().enumerate() {
            let ignore_case = test.patterns.first().is_some_and(|usage| usage.ignore_case);
            let same = |look: &&mut Look| {
                look.method == test.method
                    && look.ignore_case == ignore_case
                    && look.expr.fetch == test.expr.fetch
                    && look.expr.converters == test.expr.converters
            };
            let bit = 1 << (used + n);
            bits |= bit;
            match plain(&test.expr) {
                Some(Of::Line) => self.on_line |= bit,
                Some(Of::Fields) => self.on_fields |= bit,
                _ => {}
            }
            let one = (bit, test.patterns.clone());
            match self.looks.iter_mut().find(same) {
                Some(look) => {
                    look.tests.push(one);
                    look.all |= bit;
                }
                None => self.looks.push(Look {
                    expr: test.expr.clone(),
                    method: test.method,
                    ignore_case,
                    tests: vec![one],
                    all: bit,
                }),
            }
        }
        Some(bits)
    }

    /// Whether a rule can't apply.
    #[inline]
    pub(super) fn rules_out(&self, rule: usize, seen: &mut Seen, plan: &Plan, at: &Context<'_>) -> bool {
        let need = self.needs.get(rule).copied().unwrap_or(0);
        if need == 0 || need & seen.found != 0 {
            return false;
        }
        if need & !seen.known != 0 {
            self.look(need, seen, plan, at);
        }
        need & seen.found == 0
    }

    #[inline(never)]
    fn look(&self, need: u64, seen: &mut Seen, plan: &Plan, at: &Context<'_>) {
        let built = self.built(plan);
        let Some(built) = &*built else { return seen.found |= need };
        for (look, filter) in self.looks.iter().zip(&built.filters) {
            if look.all & need & !seen.known != 0 {
                seen.known |= look.all;
                seen.found |= filter.found(look, at);
            }
        }
    }

    /// The filters for the patterns in force.
    fn built(&self, plan: &Plan) -> Guard<Option<Arc<Built>>> {
        // Read before the patterns are: those may then be later ones, which the next look finds out.
        let version = pattern::short_changes();
        let built = self.built.load();
        if built.as_ref().is_some_and(|built| built.version == version) {
            return built;
        }
        let filters = self.looks.iter().map(|look| Filter::new(look, plan)).collect();
        let fresh = Some(Arc::new(Built { version, filters }));
        self.built.store(fresh.clone());
        Guard::from_inner(fresh)
    }

    /// What is still known when the caller has carried out `action`.
    pub(super) fn after(&self, action: &Action, seen: &mut Seen) {
        let gone = match action {
            Action::SetLogLevel(_) => 0,
            Action::Header(_) => self.on_fields,
            _ => self.on_fields | self.on_line,
        };
        seen.known &= !gone;
        seen.found &= !gone;
    }
}

/// The ACL without which the terms can't all hold; what comes before it has no effect.
fn guarding(terms: &[Term], acls: &[Acl]) -> Option<usize> {
    for term in terms {
        let tests = &acls.get(term.acl)?.tests;
        if !tests.iter().all(|test| plain(&test.expr).is_some()) {
            return None;
        }
        if !term.negated && tests.iter().all(is_tried) {
            return Some(term.acl);
        }
    }
    None
}

fn is_tried(test: &AclTest) -> bool {
    let method = test.method;
    matches!(method, Method::Str | Method::Beg | Method::End | Method::Sub | Method::Ip | Method::Int)
        && test.patterns.iter().all(|usage| usage.ignore_case == test.patterns[0].ignore_case)
}

/// What a sample depends on, if looking at it has no effect and the connection and the request alone decide.
fn plain(expr: &Expr) -> Option<Of> {
    use Converter::{Bytes, Field, HostOnly, Length, Lower, PortOnly, Upper, UrlDecode, Word};
    let harmless = |converter: &Converter| {
        matches!(converter, Lower | Upper | HostOnly | PortOnly | Length)
            || matches!(converter, Bytes(..) | Field(..) | Word(..) | UrlDecode(_))
    };
    if !expr.converters.iter().all(harmless) {
        return None;
    }
    Some(match &expr.fetch {
        Fetch::Src | Fetch::SrcPort | Fetch::Dst | Fetch::DstPort => Of::Connection,
        Fetch::Path | Fetch::PathQuery | Fetch::Url | Fetch::Query | Fetch::Method => Of::Line,
        Fetch::UrlParam(_) | Fetch::UrlParamVal(_) => Of::Line,
        Fetch::Hdr(_) | Fetch::FullHdr(_) | Fetch::HdrCount(_) | Fetch::FullHdrCount(_) => Of::Fields,
        Fetch::HdrIp(_) | Fetch::HdrVal(_) | Fetch::Cook(_) | Fetch::CookCount(_) => Of::Fields,
        _ => return None,
    })
}

/// Filters of all looks.
#[derive(Debug)]
struct Built {
    version: u64,
    filters: Vec<Filter>,
}

/// The patterns of a look's tests, each with the bit of its test.
#[derive(Debug, Default)]
struct Filter {
    /// Tests with patterns that are not tried here, so that any value may match.
    open: u64,
    ends: Vec<End>,
    nets: Vec<(u32, u32, u64)>,
    ranges: Vec<(i64, i64, u64)>,
    parts: Option<Parts>,
}

/// How texts begin or end: up to 16 bytes of it.
#[derive(Debug)]
struct End {
    value: u128,
    mask: u128,
    test: u64,
}

/// Parts of texts, searched for together.
#[derive(Debug)]
struct Parts {
    shortest: usize,
    any: regex::bytes::Regex,
    tests: u64,
}

impl Filter {
    fn new(look: &Look, plan: &Plan) -> Filter {
        let mut filter = Filter::default();
        let mut parts: Vec<String> = Vec::new();
        let mut with_parts = 0;
        for (bit, uses) in &look.tests {
            for usage in uses {
                match plan.matcher(usage).and_then(|matcher| matcher.short()) {
                    Some(Short::Texts(texts)) => {
                        filter.ends.extend(texts.iter().map(|text| End::new(look, text, *bit)));
                    }
                    Some(Short::Nets(nets)) => {
                        filter.nets.extend(nets.iter().map(|(net, mask)| (*net, *mask, *bit)));
                    }
                    Some(Short::Ranges(ranges)) => {
                        filter.ranges.extend(ranges.iter().map(|(from, to)| (*from, *to, *bit)));
                    }
                    Some(Short::Parts(texts)) => {
                        parts.extend(texts);
                        with_parts |= bit;
                    }
                    None => filter.open |= bit,
                }
            }
        }
        if !parts.is_empty() {
            match Parts::new(&parts, with_parts) {
                Some(parts) => filter.parts = Some(parts),
                None => filter.open |= with_parts,
            }
        }
        filter
    }

    /// The tests that may hold for a value of the look's sample.
    fn found(&self, look: &Look, at: &Context<'_>) -> u64 {
        if self.open == look.all {
            return look.all;
        }
        let mut found = 0;
        sample::any(&look.expr, at, &mut |value| {
            found |= self.tests_for(look, value);
            found == look.all
        });
        found
    }

    fn tests_for(&self, look: &Look, value: &Value<'_>) -> u64 {
        let Some(input) = sample::input_for(look.method, value) else { return 0 };
        let found = match (look.method, input) {
            (Method::Ip, Input::Ip(IpAddr::V4(addr))) => {
                let addr = addr.to_bits();
                let fits = |(net, mask, bit): &(u32, u32, u64)| if addr & mask == *net { *bit } else { 0 };
                self.nets.iter().map(fits).fold(0, |all, bit| all | bit)
            }
            (Method::Int, Input::Int(n)) => {
                let fits =
                    |(from, to, bit): &(i64, i64, u64)| if (*from..=*to).contains(&n) { *bit } else { 0 };
                self.ranges.iter().map(fits).fold(0, |all, bit| all | bit)
            }
            (Method::Str | Method::Beg | Method::End, Input::Text(text)) => {
                let text = end(look, text);
                let fits = |end: &End| if (text ^ end.value) & end.mask == 0 { end.test } else { 0 };
                self.ends.iter().map(fits).fold(0, |all, bit| all | bit)
            }
            (Method::Sub, Input::Text(text)) => {
                self.parts.as_ref().map_or(0, |parts| parts.found(look.ignore_case, text))
            }
            _ => look.all,
        };
        found | self.open
    }
}

impl End {
    fn new(look: &Look, text: &[u8], test: u64) -> End {
        let mask = match (look.method, text.len()) {
            (Method::Str, _) | (_, 16..) => u128::MAX,
            (_, len) => (1 << (8 * len)) - 1,
        };
        End { value: end(look, text), mask, test }
    }
}

/// The first 16 bytes of a text, or its last ones where ends are compared: the byte at the end is the lowest.
fn end(look: &Look, text: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let len = text.len().min(16);
    if look.method == Method::End {
        bytes[16 - len..].copy_from_slice(&text[text.len() - len..]);
    } else {
        bytes[..len].copy_from_slice(&text[..len]);
    }
    if look.ignore_case {
        bytes.make_ascii_lowercase();
    }
    if look.method == Method::End { u128::from_be_bytes(bytes) } else { u128::from_le_bytes(bytes) }
}

impl Parts {
    fn new(parts: &[String], tests: u64) -> Option<Parts> {
        let shortest = parts.iter().map(String::len).min()?;
        let escaped: Vec<String> = parts.iter().map(|part| regex::escape(part)).collect();
        let any = regex::bytes::Regex::new(&escaped.join("|")).ok()?;
        Some(Parts { shortest, any, tests })
    }

    /// The patterns are in lower case where case is ignored.
    fn found(&self, ignore_case: bool, text: &[u8]) -> u64 {
        if text.len() < self.shortest {
            return 0;
        }
        let is = if ignore_case {
            let mut lower = SmallVec::<[u8; 256]>::from_slice(text);
            lower.make_ascii_lowercase();
            self.any.is_match(&lower)
        } else {
            self.any.is_match(text)
        };
        if is { self.tests } else { 0 }
    }
}

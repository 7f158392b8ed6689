//! What the conditions of a rule set look for, looked for at once.
//!
//! Most rules do not apply to most requests, and finding that out one by one walks over a dozen pieces of
//! memory for each. Here every rule has the tests (lines of ACLs) of which one must hold for it to apply, and
//! all tests that compare the same sample in the same way are tried together, over one small piece of memory.
//! Says only that a rule can't apply: what may apply is decided by its condition. Nothing with an effect is
//! ever left out. [`next`](super::next) asks; commands that change an ACL have it built anew.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwapOption;
use phalanx_config::pattern::Method;
use phalanx_config::{Acl, AclTest, Action, Condition, Converter, Expr, Fetch, PatternUse, Rule, Term};
use smallvec::SmallVec;

use crate::near::{self, Shelf};
use crate::pattern::{self, Input, Short};
use crate::plan::Plan;
use crate::sample::{self, Context, Value};

/// Most tests of a set that are tried ahead: one bit each.
const MOST: usize = 64;

/// The tests of a rule set that are tried together.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    /// Its own in this process.
    number: u64,
    /// By rule: the tests of which one must hold for it to apply; 0: none can rule it out.
    needs: Box<[u64]>,
    looks: Vec<Look>,
    /// By bit: the look that its test is one of.
    look_of: Vec<usize>,
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
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let mut guards = Guards { number: NUMBER.fetch_add(1, Relaxed), ..Guards::default() };
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
            let same = |look: &Look| {
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
            let at = self.looks.iter().position(same).unwrap_or(self.looks.len());
            self.look_of.push(at);
            match self.looks.get_mut(at) {
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

    /// The first rule from `rule` on that may apply; one behind the last if none may.
    pub(super) fn skip(&self, rule: usize, seen: &mut Seen, plan: &Plan, at: &Context<'_>) -> usize {
        let left = self.needs.get(rule..).unwrap_or_default();
        let may = |need: u64| {
            if need != 0 && need & !seen.known != 0 && need & seen.found == 0 {
                self.look(need, seen, plan, at);
            }
            need == 0 || need & seen.found != 0
        };
        rule + left.iter().copied().position(may).unwrap_or(left.len())
    }

    #[inline(never)]
    fn look(&self, need: u64, seen: &mut Seen, plan: &Plan, at: &Context<'_>) {
        // Read before the patterns are: those may then be later ones, which the next look finds out.
        let version = pattern::short_changes();
        let load = || self.built(version, plan);
        near::look(&FILTERS, (self.number, version), load, |built| {
            while need & !seen.known != 0 {
                let index = self.look_of[(need & !seen.known).trailing_zeros() as usize];
                let look = &self.looks[index];
                seen.known |= look.all;
                seen.found |= built.filters[index].found(look, at);
            }
        });
    }

    /// The filters for the patterns in force.
    fn built(&self, version: u64, plan: &Plan) -> Arc<Built> {
        if let Some(built) = self.built.load_full().filter(|built| built.version == version) {
            return built;
        }
        let filters = self.looks.iter().map(|look| Filter::new(look, plan)).collect();
        let fresh = Arc::new(Built { version, filters });
        self.built.store(Some(fresh.clone()));
        fresh
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

thread_local! {
    pub(crate) static FILTERS: Shelf<Built> = const { Shelf::new(Vec::new()) };
}

/// Filters of all looks.
#[derive(Debug)]
pub(crate) struct Built {
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
        // What is asked for most, without the way through all kinds of samples.
        if look.expr.converters.is_empty() {
            match (&look.expr.fetch, look.method) {
                (Fetch::Path, Method::Beg | Method::End | Method::Str) => {
                    let path = at.request.and_then(|(buf, head)| sample::path(head.target(buf)));
                    return path.map_or(0, |path| self.ends(look, path) | self.open);
                }
                (Fetch::Src, Method::Ip) => {
                    if let IpAddr::V4(addr) = at.src.ip().to_canonical() {
                        return self.nets(addr) | self.open;
                    }
                }
                _ => {}
            }
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
            (Method::Ip, Input::Ip(IpAddr::V4(addr))) => self.nets(addr),
            (Method::Int, Input::Int(n)) => {
                let fits =
                    |(from, to, bit): &(i64, i64, u64)| if (*from..=*to).contains(&n) { *bit } else { 0 };
                self.ranges.iter().map(fits).fold(0, |all, bit| all | bit)
            }
            (Method::Str | Method::Beg | Method::End, Input::Text(text)) => self.ends(look, text),
            (Method::Sub, Input::Text(text)) => {
                self.parts.as_ref().map_or(0, |parts| parts.found(look.ignore_case, text))
            }
            _ => look.all,
        };
        found | self.open
    }

    fn nets(&self, addr: Ipv4Addr) -> u64 {
        let addr = addr.to_bits();
        let fits = |(net, mask, bit): &(u32, u32, u64)| if addr & mask == *net { *bit } else { 0 };
        self.nets.iter().map(fits).fold(0, |all, bit| all | bit)
    }

    fn ends(&self, look: &Look, text: &[u8]) -> u64 {
        let text = end(look, text);
        let fits = |end: &End| if (text ^ end.value) & end.mask == 0 { end.test } else { 0 };
        self.ends.iter().map(fits).fold(0, |all, bit| all | bit)
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
    let at_end = look.method == Method::End;
    match if at_end { text.last_chunk::<16>() } else { text.first_chunk::<16>() } {
        Some(whole) => bytes = *whole,
        None if at_end => bytes[16 - text.len()..].copy_from_slice(text),
        None => bytes[..text.len()].copy_from_slice(text),
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

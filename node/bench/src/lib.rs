//! What the hot pieces may cost: instructions counted, held against `budget.txt`.
//!
//! `benches/hot` counts (gungraun over callgrind), `src/main.rs` runs it and carries out what is decided
//! here: whether a count is within its limit, and what the file looks like when it is renewed. An
//! instruction count is the same on a loaded machine as on an idle one, so a test can hold to it; it is
//! not time, which only benches beside other proxies measure. Nothing here runs or reads anything.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// How often a piece is carried out in one count.
pub const TIMES: u64 = 100;

/// Requests in one count of what forwards.
pub const REQUESTS: u64 = 1000;

/// What is allowed above a count when it is renewed, in percent.
const MARGIN: u64 = 4;

/// The same for what forwards: its steps depend a little on how two threads meet.
const FORWARD_MARGIN: u64 = 5;

/// What is allowed above the limit when another compiler than that of the file counted, in percent.
const OTHER_COMPILER: u64 = 20;

/// Below so much of its limit, in percent, a count should be renewed: a later slow-down would hide there.
const LOW: u64 = 85;

/// How to renew the file.
pub const RENEW: &str = "UPDATE_BUDGET=1 cargo run -p phalanx-bench --bin budget";

/// Instructions of each piece, by its name `function::case`.
pub type Counts = BTreeMap<String, u64>;

/// The limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// The compiler that they were counted with: `rustc 1.95`.
    pub compiler: String,
    /// Instructions that each piece may take.
    pub allowed: Counts,
}

/// What is to be said of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub piece: String,
    /// Instructions counted, if it was.
    pub counted: Option<u64>,
    /// Instructions allowed, if they are in the file.
    pub allowed: Option<u64>,
    /// What to think of that.
    pub verdict: Verdict,
}

/// What to think of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within the limit.
    Within,
    /// Far below it.
    Low,
    /// Above it.
    Over,
    /// It is not in the file.
    NoLimit,
    /// It is in the file, and nothing counts it.
    NotCounted,
}

impl Verdict {
    /// Whether it fails the build.
    pub fn fails(self) -> bool {
        matches!(self, Verdict::Over | Verdict::NoLimit | Verdict::NotCounted)
    }
}

impl Budget {
    /// Reads a file.
    ///
    /// # Errors
    /// The line that is none.
    pub fn parse(text: &str) -> Result<Budget, String> {
        let mut budget = Budget::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [] => {}
                ["compiler", ref name @ ..] => budget.compiler = name.join(" "),
                [piece, allowed] if allowed.parse::<u64>().is_ok() => {
                    let allowed = allowed.parse().unwrap_or_default();
                    if budget.allowed.insert(piece.to_owned(), allowed).is_some() {
                        return Err(format!("line {}: '{piece}' is there twice", number + 1));
                    }
                }
                _ => {
                    return Err(format!("line {}: '{line}' is not 'piece instructions'", number + 1));
                }
            }
        }
        Ok(budget)
    }

    /// Limits for what was counted. One that it is within and not far below stays as it is, so that a
    /// renewal changes only what has changed.
    pub fn renewed(&self, counts: &Counts, compiler: &str) -> Budget {
        let limit = |piece: &str, counted: u64| {
            let margin = if is_forwarding(piece) { FORWARD_MARGIN } else { MARGIN };
            let anew = (counted * (100 + margin)).div_ceil(100);
            let before = self.allowed.get(piece).copied().filter(|_| self.compiler == compiler);
            before.filter(|before| counted <= *before && *before <= anew + anew / 50).unwrap_or(anew)
        };
        let allowed = counts.iter().map(|(piece, n)| (piece.clone(), limit(piece, *n))).collect();
        Budget { compiler: compiler.to_owned(), allowed }
    }

    /// Holds what was counted against the limits.
    pub fn judge(&self, counts: &Counts, compiler: &str) -> Vec<Finding> {
        let other = if self.compiler == compiler { 0 } else { OTHER_COMPILER };
        let counted = counts.iter().map(|(piece, &n)| {
            let allowed = self.allowed.get(piece).map(|limit| limit * (100 + other) / 100);
            let verdict = match allowed {
                None => Verdict::NoLimit,
                Some(limit) if n > limit => Verdict::Over,
                Some(limit) if n < limit * LOW / 100 && other == 0 => Verdict::Low,
                Some(_) => Verdict::Within,
            };
            Finding { piece: piece.clone(), counted: Some(n), allowed, verdict }
        });
        let missing = self.allowed.iter().filter(|(piece, _)| !counts.contains_key(*piece));
        let missing = missing.map(|(piece, &limit)| Finding {
            piece: piece.clone(),
            counted: None,
            allowed: Some(limit),
            verdict: Verdict::NotCounted,
        });
        counted.chain(missing).collect()
    }
}

/// The file.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Instructions that the hot pieces may take, each once; .ci/run counts them and fails above."
        )?;
        writeln!(f, "# What they are is in benches/hot. To renew, with the reason in the commit message:")?;
        writeln!(f, "#     {RENEW}")?;
        writeln!(f, "compiler {}\n", self.compiler)?;
        for (piece, allowed) in &self.allowed {
            writeln!(f, "{piece:<32} {allowed:>8}")?;
        }
        Ok(())
    }
}

/// A line of the report.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        write!(f, "{:<32} {:>8} of {:>8}", self.piece, number(self.counted), number(self.allowed))?;
        let percent = |counted: u64, allowed: u64| counted as f64 * 100.0 / allowed.max(1) as f64;
        match (self.verdict, self.counted, self.allowed) {
            (Verdict::Over, Some(counted), Some(allowed)) => {
                write!(f, "  OVER: {:.1} % of what it may take", percent(counted, allowed))
            }
            (Verdict::Low, Some(counted), Some(allowed)) => {
                write!(f, "  {:.0} %: cheaper than its limit, renew it", percent(counted, allowed))
            }
            (Verdict::NoLimit, ..) => write!(f, "  NO LIMIT: renew the file"),
            (Verdict::NotCounted, ..) => write!(f, "  NOT COUNTED: nothing in benches/hot has this name"),
            (_, Some(counted), Some(allowed)) => write!(f, "  {:.0} %", percent(counted, allowed)),
            _ => Ok(()),
        }
    }
}

/// Whether a piece forwards whole requests.
fn is_forwarding(piece: &str) -> bool {
    piece.starts_with("keep_alive::")
}

/// Instructions of one go of a piece, from what the harness says of it in JSON; `None` = it says nothing
/// about a bench.
///
/// # Errors
/// What it lacks.
pub fn count(summary: &Value) -> Result<Option<(String, u64)>, String> {
    let Some(function) = summary["function_name"].as_str() else { return Ok(None) };
    let piece = match summary["id"].as_str() {
        Some(id) => format!("{function}::{id}"),
        None => function.to_owned(),
    };
    let data = &summary["profiles"][0]["data"];
    let (counted, times) = if is_forwarding(&piece) {
        // One part a thread. The worker is the second one: the forwarder starts nothing else.
        let parts = data["parts"].as_array().map_or(&[][..], Vec::as_slice);
        let worker = parts.iter().find(|part| part["tool_run"]["new"]["thread"] == 2);
        (worker.map(|part| &part["metrics"]), REQUESTS)
    } else {
        (Some(&data["total"]["metrics"]), TIMES)
    };
    let instructions = counted.and_then(|metrics| metrics["Ir"]["values"]["new"].as_u64());
    let instructions = instructions.ok_or_else(|| format!("'{piece}' was not counted: {data}"))?;
    Ok(Some((piece, instructions.div_ceil(times))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u64)]) -> Counts {
        of.iter().map(|(piece, n)| ((*piece).to_owned(), *n)).collect()
    }

    fn verdicts(budget: &Budget, of: &[(&str, u64)]) -> Vec<Verdict> {
        budget.judge(&counts(of), "rustc 1.95").into_iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn a_slow_down_is_seen_and_named() {
        let budget = Budget::default().renewed(&counts(&[("parse::request", 1_000)]), "rustc 1.95");
        assert_eq!(verdicts(&budget, &[("parse::request", 1_000)]), [Verdict::Within]);
        assert_eq!(verdicts(&budget, &[("parse::request", 1_040)]), [Verdict::Within]);
        let findings = budget.judge(&counts(&[("parse::request", 1_041)]), "rustc 1.95");
        assert!(findings[0].verdict.fails());
        let line = findings[0].to_string();
        assert!(
            line.contains("parse::request") && line.contains("1041 of     1040  OVER: 100.1 %"),
            "{line}"
        );
    }

    #[test]
    fn no_piece_gets_away_without_a_limit_and_no_limit_without_a_piece() {
        let budget = Budget::parse("compiler rustc 1.95\na 100\nb 100 # of what is gone\n").unwrap();
        let found = verdicts(&budget, &[("a", 100), ("c", 1)]);
        assert_eq!(found, [Verdict::Within, Verdict::NoLimit, Verdict::NotCounted]);
        assert!(found[1].fails() && found[2].fails());
    }

    #[test]
    fn another_compiler_may_differ_but_not_by_much() {
        let budget = Budget::parse("compiler rustc 1.90\na 100\n").unwrap();
        assert_eq!(verdicts(&budget, &[("a", 120)]), [Verdict::Within]);
        assert_eq!(verdicts(&budget, &[("a", 121)]), [Verdict::Over]);
    }

    #[test]
    fn a_renewal_tightens_what_has_become_cheap_and_leaves_the_rest() {
        let budget = Budget::parse("compiler rustc 1.95\na 1040\nb 1040\nc 1040\n").unwrap();
        let now = counts(&[("a", 1_010), ("b", 500), ("c", 1_100), ("keep_alive::plain", 10_000)]);
        assert_eq!(verdicts(&budget, &[("a", 1_010), ("b", 500), ("c", 1_040)])[1], Verdict::Low);
        let renewed = budget.renewed(&now, "rustc 1.95");
        assert_eq!(
            renewed.allowed,
            counts(&[("a", 1_040), ("b", 520), ("c", 1_144), ("keep_alive::plain", 10_500)])
        );
        assert_eq!(Budget::parse(&renewed.to_string()).unwrap(), renewed);
    }

    #[test]
    fn counts_are_read_from_what_the_harness_says() {
        let part = |thread: u64, n: u64| {
            serde_json::json!({ "metrics": { "Ir": { "values": { "new": n } } },
                "tool_run": { "new": { "thread": thread } } })
        };
        let summary = |function: &str, id: &str| {
            let data = serde_json::json!({ "parts": [part(1, 7_000), part(2, 2_000_001)],
                "total": { "metrics": { "Ir": { "values": { "new": 5_000 } } } } });
            serde_json::json!({ "function_name": function, "id": id, "profiles": [{ "data": data }] })
        };
        assert_eq!(count(&summary("parse", "request")), Ok(Some(("parse::request".to_owned(), 50))));
        assert_eq!(count(&summary("keep_alive", "plain")), Ok(Some(("keep_alive::plain".to_owned(), 2_001))));
        assert_eq!(count(&serde_json::json!({ "other": 1 })), Ok(None));
        let nothing = serde_json::json!({ "function_name": "parse", "id": "request", "profiles": [] });
        assert!(count(&nothing).unwrap_err().contains("'parse::request' was not counted"));
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        for (text, said) in [
            ("a\n", "line 1: 'a' is not 'piece instructions'"),
            ("\na many\n", "line 2: 'a many' is not 'piece instructions'"),
            ("a 1\na 2\n", "line 2: 'a' is there twice"),
        ] {
            assert_eq!(Budget::parse(text).unwrap_err(), said);
        }
    }
}

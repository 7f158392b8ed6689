//! From rounds to figures: medians, ratios, what is void, and the table, Markdown and JSON of it all.
//!
//! Pure: nothing is measured here and nothing waited for.

use std::fmt::Write as _;

use cluster_tests::bench::Spread;
use serde_json::{Value, json};

use crate::cases::Case;
use crate::generator::Service;
use crate::measure::{Cell, Sample};
use crate::proxies::{Absent, Kind};

/// What a proxy gave in a case, summed up.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) kind: Kind,
    pub(crate) figures: Option<Figures>,
    /// Our CPU time (memory: bytes) by the best peer's (memory: HAProxy's); of our own rows only.
    pub(crate) ratio: Option<f64>,
    /// Throughput and times do not count: the load's CPU was full and the proxy's was not; or there is
    /// nothing at all. CPU time by unit and syscalls hold all the same.
    pub(crate) void: bool,
    /// Requests that went wrong in all rounds, where that is what is measured.
    pub(crate) failed: Option<u64>,
    /// What else there is to say.
    pub(crate) note: String,
}

impl Row {
    /// What is compared: CPU time by unit, or bytes.
    pub(crate) fn cost(&self, case: &Case) -> Option<f64> {
        let figures = self.figures?;
        if case.is_memory() { Some(figures.throughput.median) } else { Some(figures.cpu_us?.median) }
    }

    /// The tail of the times, where it counts.
    fn tail_ms(&self) -> Option<f64> {
        if self.void { None } else { Some(self.figures?.p99_ms?.median) }
    }

    /// Whether ours is compared with it: memory is with HAProxy's alone.
    pub(crate) fn is_peer(&self, case: &Case) -> bool {
        match self.kind {
            Kind::Phalanx | Kind::Floor => false,
            Kind::Haproxy => true,
            Kind::Nginx => !case.is_memory(),
        }
    }
}

/// Medians with least and most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) throughput: Spread,
    pub(crate) cpu_us: Option<Spread>,
    pub(crate) p50_ms: Option<Spread>,
    pub(crate) p99_ms: Option<Spread>,
    pub(crate) syscalls: Option<f64>,
}

/// Whether most rounds were void.
fn is_void(samples: &[Sample]) -> bool {
    samples.iter().filter(|sample| sample.void).count() * 2 > samples.len()
}

/// Sums up a case.
pub(crate) fn rows(case: &Case, cells: &[Cell]) -> Vec<Row> {
    let mut rows: Vec<Row> = cells.iter().map(|cell| row(case, cell)).collect();
    let peers = rows.iter().filter(|row| row.is_peer(case));
    let best = peers.filter_map(|row| Some((row.cost(case)?, row))).min_by(|a, b| a.0.total_cmp(&b.0));
    let best = best.map(|(cost, row)| (cost, row.kind, row.tail_ms()));
    for row in &mut rows {
        if row.kind == Kind::Floor
            && let (Some(least), Some((best, peer, _))) = (row.cost(case), best)
        {
            row.note = join(&row.note, &format!("{:.2} of {}'s CPU", least / best, peer.name()));
        }
        if row.kind == Kind::Phalanx
            && let (Some(ours), Some((best, peer, tail))) = (row.cost(case), best)
            && best > 0.0
        {
            let ratio = ours / best;
            row.ratio = Some(ratio);
            let verdict = if ratio <= case.goal { "met" } else { "MISSED" };
            row.note = join(&row.note, &format!("goal {:.2}: {verdict}", case.goal));
            if let (Some(ours), Some(theirs)) = (row.tail_ms(), tail) {
                let tail = format!("p{} {:.2} of {}'s", case.tail() * 100.0, ours / theirs, peer.name());
                row.note = join(&row.note, &tail);
            }
        }
    }
    rows
}

/// What replication costs: the same proxy's CPU time with it by that without, from rounds in turn.
pub(crate) fn compare(with: &mut [Row], without: &[Row]) {
    for row in with {
        let before = without.iter().find(|other| other.kind == row.kind);
        let cpu = |row: &Row| Some(row.figures?.cpu_us?.median);
        if let (Some(after), Some(before)) = (cpu(row), before.and_then(cpu)) {
            let more = (after / before - 1.0) * 100.0;
            let mut note = format!("{more:+.1} % CPU to case {}", without[0].case);
            if row.kind == Kind::Phalanx {
                note += if more < REPLICATION { ", goal +10 %: met" } else { ", goal +10 %: MISSED" };
            }
            row.note = join(&row.note, &note);
        }
    }
}

/// What replication may cost, in percent.
const REPLICATION: f64 = 10.0;

fn row(case: &Case, cell: &Cell) -> Row {
    let samples = match &cell.outcome {
        Ok(samples) if !samples.is_empty() => samples,
        other => {
            let note = match other {
                Err(Absent::Refused(words)) => format!("not built: {words}"),
                _ => "it has no such thing".into(),
            };
            return Row {
                case: case.id,
                kind: cell.kind,
                figures: None,
                ratio: None,
                void: true,
                failed: None,
                note,
            };
        }
    };
    let of = |value: fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = samples.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| Spread::of(values.into_iter()))
    };
    let figures = Figures {
        throughput: Spread::of(samples.iter().map(|s| s.throughput)),
        cpu_us: of(|s| s.cpu_us),
        p50_ms: of(|s| s.p50_ms),
        p99_ms: of(|s| s.p99_ms),
        syscalls: cell.syscalls,
    };
    let busy: Vec<[f64; 2]> = samples.iter().filter_map(|s| s.busy).collect();
    let void = is_void(samples);
    let mut note = String::new();
    if !busy.is_empty() {
        let part = |side: usize| 100.0 * Spread::of(busy.iter().map(|b| b[side])).median;
        note = format!("CPU {:.0} %, load's {:.0} %", part(0), part(1));
    }
    if void {
        note = join("load full first: only CPU and syscalls count", &note);
    }
    if let Some(spread) = of(|s| s.server_connections)
        && case.service == Service::Http
        && spread.median > 0.02
    {
        note = join(&note, &format!("{:.2} server connections a request", spread.median));
    }
    let failed = samples.iter().filter_map(|s| s.failed).reduce(|sum, more| sum + more);
    if let Some(failed) = failed {
        note = join(&note, &format!("{failed} requests failed"));
    }
    Row { case: case.id, kind: cell.kind, figures: Some(figures), ratio: None, void, failed, note }
}

fn join(one: &str, two: &str) -> String {
    if one.is_empty() { two.into() } else { format!("{one}; {two}") }
}

/// A number with three digits that mean something, and not more after the point than it needs.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn shown(spread: Option<Spread>) -> String {
    spread.map_or("-".into(), |s| {
        if s.min.to_bits() == s.max.to_bits() {
            short(s.median)
        } else {
            format!("{} ({}..{})", short(s.median), short(s.min), short(s.max))
        }
    })
}

/// The cells of a line, in the order of [`HEAD`].
fn columns(row: &Row) -> [String; 8] {
    let figures = row.figures;
    let uncounted = |text: String| if row.void && text != "-" { format!("[{text}]") } else { text };
    [
        row.kind.name().into(),
        uncounted(shown(figures.map(|f| f.throughput))),
        shown(figures.and_then(|f| f.cpu_us)),
        uncounted(shown(figures.and_then(|f| f.p50_ms))),
        uncounted(shown(figures.and_then(|f| f.p99_ms))),
        figures.and_then(|f| f.syscalls).map_or("-".into(), short),
        row.ratio.map_or("-".into(), |r| format!("{r:.2}")),
        row.note.clone(),
    ]
}

const WIDTHS: [usize; 8] = [8, 27, 27, 23, 23, 9, 6, 0];

/// A case for the terminal.
pub(crate) fn text(case: &Case, rows: &[Row]) -> String {
    let [throughput, unit] = case.load.units();
    let cpu = if unit.is_empty() { String::new() } else { format!("CPU us/{unit}") };
    let mut out = format!("{}: {}\n", case.id, case.what);
    let tail = format!("p{} ms", case.tail() * 100.0);
    let head = ["", throughput, &cpu, "p50 ms", &tail, "syscalls", "ratio", ""].map(String::from);
    for line in std::iter::once(head).chain(rows.iter().map(columns)) {
        out.push_str("  ");
        for (cell, width) in line.iter().zip(WIDTHS) {
            let _ = write!(out, "{cell:<width$} ");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

/// All cases as one table for a README.
pub(crate) fn markdown(all: &[(&Case, Vec<Row>)]) -> String {
    let mut out = String::from(
        "| case | proxy | throughput | CPU us by unit | p50 ms | p99 ms | syscalls by unit | ratio | |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (case, rows) in all {
        for row in rows {
            let mut cells = columns(row);
            if row.figures.is_some() {
                cells[1] = format!("{} {}", cells[1], case.load.units()[0]);
            }
            let _ = writeln!(out, "| {} | {} |", case.id, cells.join(" | "));
        }
    }
    out
}

/// What `--json` writes.
pub(crate) fn json(rows: &[Row]) -> Value {
    let cell = |row: &Row| {
        let figures = row.figures;
        let median = |spread: Option<Spread>| spread.map(|s| s.median);
        json!({
            "case": row.case,
            "proxy": row.kind.name(),
            "throughput": figures.map(|f| f.throughput.median),
            "cpu_us": median(figures.and_then(|f| f.cpu_us)),
            "p50_ms": median(figures.and_then(|f| f.p50_ms)),
            "p99_ms": median(figures.and_then(|f| f.p99_ms)),
            "syscalls": figures.and_then(|f| f.syscalls),
            "ratio": row.ratio,
            "void": row.void,
        })
    };
    // Failures have cells of their own: a request that failed has no throughput, time or cost.
    let failed = |row: &Row| {
        Some(json!({
            "case": format!("{}-failed", row.case), "proxy": row.kind.name(), "throughput": row.failed?,
            "cpu_us": null, "p50_ms": null, "p99_ms": null, "syscalls": null, "ratio": null, "void": false,
        }))
    };
    let cells: Vec<Value> = rows.iter().flat_map(|row| [Some(cell(row)), failed(row)]).flatten().collect();
    json!({ "cells": cells })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CASES;

    fn case(id: &str) -> &'static Case {
        CASES.iter().find(|c| c.id == id).unwrap()
    }

    fn cell(kind: Kind, cpu: &[f64], void: bool) -> Cell {
        let sample = |cpu: &f64| Sample {
            throughput: 1e6 / cpu,
            cpu_us: Some(*cpu),
            p50_ms: Some(1.0),
            p99_ms: Some(2.0),
            busy: Some([0.9, 0.8]),
            void,
            failed: None,
            server_connections: Some(0.0),
        };
        Cell { kind, outcome: Ok(cpu.iter().map(sample).collect()), syscalls: Some(4.0) }
    }

    #[test]
    fn the_ratio_is_that_of_medians_to_the_cheapest_peer() {
        let cells = [
            cell(Kind::Phalanx, &[18.0, 90.0, 17.0], false),
            cell(Kind::Haproxy, &[25.0, 25.0, 25.0], false),
            cell(Kind::Nginx, &[20.0, 20.0, 1.0], false),
        ];
        let rows = rows(case("a"), &cells);
        assert_eq!(rows.iter().map(|r| r.ratio).collect::<Vec<_>>(), [Some(18.0 / 20.0), None, None]);
        assert!(rows[0].note.contains("goal 0.90: met"), "{}", rows[0].note);
    }

    #[test]
    fn replication_is_compared_with_the_same_proxy_without_it() {
        let without =
            rows(case("h"), &[cell(Kind::Phalanx, &[20.0], false), cell(Kind::Haproxy, &[20.0], false)]);
        let with = |ours| [cell(Kind::Phalanx, &[ours], false), cell(Kind::Haproxy, &[24.0], false)];
        for (ours, verdict) in [(21.0, "+5.0 % CPU to case h, goal +10 %: met"), (23.0, "MISSED")] {
            let mut rows = rows(case("h-repl"), &with(ours));
            compare(&mut rows, &without);
            assert!(rows[0].note.contains(verdict), "{}", rows[0].note);
            assert!(rows[1].note.ends_with("+20.0 % CPU to case h"), "{}", rows[1].note);
        }
    }

    #[test]
    fn a_peer_that_is_absent_does_not_count_and_without_any_there_is_no_ratio() {
        let absent = |kind| Cell { kind, outcome: Err(Absent::NotThere), syscalls: None };
        let ours = cell(Kind::Phalanx, &[30.0], false);
        let both = rows(case("a"), &[ours.clone(), cell(Kind::Haproxy, &[25.0], false), absent(Kind::Nginx)]);
        assert_eq!(both[0].ratio, Some(1.2));
        assert!(both[0].note.contains("MISSED"));
        assert_eq!(rows(case("a"), &[ours, absent(Kind::Haproxy), absent(Kind::Nginx)])[0].ratio, None);
    }

    #[test]
    fn a_row_is_void_when_most_rounds_were() {
        let sample = |void| Sample { void, ..Sample::default() };
        assert!(is_void(&[sample(true), sample(false), sample(true)]));
        assert!(!is_void(&[sample(true), sample(false)]));
        assert!(!is_void(&[]));
    }

    #[test]
    fn a_void_row_keeps_its_ratio_and_brackets_what_does_not_count() {
        let cells = [cell(Kind::Phalanx, &[10.0], true), cell(Kind::Haproxy, &[20.0], false)];
        let rows = rows(case("a"), &cells);
        assert!(rows[0].void && !rows[1].void);
        assert_eq!(rows[0].ratio, Some(0.5));
        let text = text(case("a"), &rows);
        assert!(text.contains("[100000]") && text.contains("[1.00]") && text.contains(" 10.0 "), "{text}");
    }

    #[test]
    fn who_does_not_reuse_server_connections_is_named() {
        let sample = |server| Sample { server_connections: Some(server), ..Sample::default() };
        let noted = |id, server| {
            let cell = Cell { kind: Kind::Nginx, outcome: Ok(vec![sample(server)]), syscalls: None };
            rows(case(id), &[cell])[0].note.contains("server connections")
        };
        assert!(noted("b1", 1.0) && noted("b1", 0.1));
        assert!(!noted("b1", 0.001));
        assert!(!noted("b2", 1.0), "there it is to close them");
    }

    #[test]
    fn memory_is_compared_with_haproxys() {
        let cell = |kind, bytes| Cell {
            kind,
            outcome: Ok(vec![Sample { throughput: bytes, ..Sample::default() }]),
            syscalls: None,
        };
        let rows = rows(
            case("i-http"),
            &[cell(Kind::Phalanx, 600.0), cell(Kind::Haproxy, 1200.0), cell(Kind::Nginx, 300.0)],
        );
        assert_eq!(rows[0].ratio, Some(0.5));
        assert!(rows.iter().all(|row| !row.void));
    }

    #[test]
    fn json_has_exactly_the_agreed_shape() {
        let refused =
            Cell { kind: Kind::Phalanx, outcome: Err(Absent::Refused("no".into())), syscalls: None };
        let rows = rows(case("a"), &[refused, cell(Kind::Haproxy, &[25.0], false)]);
        assert_eq!(
            json(&rows),
            json!({ "cells": [
                { "case": "a", "proxy": "phalanx", "throughput": null, "cpu_us": null, "p50_ms": null,
                  "p99_ms": null, "syscalls": null, "ratio": null, "void": true },
                { "case": "a", "proxy": "haproxy", "throughput": 40000.0, "cpu_us": 25.0, "p50_ms": 1.0,
                  "p99_ms": 2.0, "syscalls": 4.0, "ratio": null, "void": false },
            ] })
        );
        assert!(text(case("a"), &rows).contains("not built: no"));
    }

    #[test]
    fn failures_have_a_cell_of_their_own() {
        let sample = |failed| Sample { throughput: 100.0, failed: Some(failed), ..Sample::default() };
        let cell = Cell { kind: Kind::Nginx, outcome: Ok(vec![sample(3), sample(4)]), syscalls: None };
        let rows = rows(case("k"), &[cell]);
        assert!(rows[0].note.contains("7 requests failed"));
        let json = json(&rows);
        assert_eq!(json["cells"][1]["case"], "k-failed");
        assert_eq!(json["cells"][1]["throughput"], 7);
    }

    #[test]
    fn markdown_has_a_line_for_each_row_with_as_many_cells() {
        let rows = rows(case("a"), &[cell(Kind::Haproxy, &[25.0], false)]);
        let text = markdown(&[(case("a"), rows)]);
        let bars: Vec<usize> = text.lines().map(|line| line.matches('|').count()).collect();
        assert_eq!(bars, [10, 10, 10], "{text}");
    }
}

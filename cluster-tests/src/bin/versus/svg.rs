//! The picture: for each case a bar for each proxy, its cost by that of the cheapest peer.
//!
//! Pure text in, text out; no fonts, scripts or colours of elsewhere.

use std::fmt::Write as _;

use crate::cases::Case;
use crate::proxies::Kind;
use crate::report::{Row, short};

const LEFT: f64 = 360.0;
/// Width of a cost of 1.
const ONE: f64 = 240.0;
/// Costs above are cut off, and their number says so.
const MOST: f64 = 2.0;
const BAR: f64 = 13.0;
const TOP: f64 = 64.0;

/// Draws all cases.
pub(crate) fn draw(all: &[(&Case, Vec<Row>)], subtitle: &str) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for (case, rows) in all {
        y = group(&mut body, case, rows, y);
    }
    let (width, height) = (LEFT + ONE * MOST + 150.0, y + 20.0);
    let mut grid = String::new();
    for (at, stroke) in [(0.5, "#ddd"), (1.0, "#888"), (1.5, "#ddd"), (2.0, "#ddd")] {
        let x = LEFT + ONE * at;
        let _ = write!(
            grid,
            "<line x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{y}\" stroke=\"{stroke}\"/>\n\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">{at}</text>\n",
            TOP - 8.0,
            TOP - 12.0
        );
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"20\" font-size=\"15\" font-weight=\"bold\">CPU time (case i: memory) by the cheapest peer's; \
         shorter is better</text>\n<text x=\"12\" y=\"38\" fill=\"#666\">{}</text>\n{grid}{body}</svg>\n",
        escape(subtitle)
    )
}

/// Draws one case and returns where the next begins.
fn group(out: &mut String, case: &Case, rows: &[Row], top: f64) -> f64 {
    let _ = writeln!(
        out,
        "<text x=\"12\" y=\"{}\"><tspan font-weight=\"bold\">{}</tspan> {}</text>",
        top + BAR - 3.0,
        case.id,
        escape(&clipped(case.what, 60 - case.id.len()))
    );
    let costs: Vec<Option<f64>> = rows.iter().map(|row| row.cost(case)).collect();
    let peers = rows.iter().zip(&costs).filter(|(row, _)| row.is_peer(case)).filter_map(|(_, cost)| *cost);
    let best = peers.min_by(f64::total_cmp);
    let mut y = top;
    for (row, cost) in rows.iter().zip(costs) {
        let middle = y + BAR - 3.0;
        match (cost, best) {
            (Some(cost), Some(best)) if best > 0.0 => {
                let by = cost / best;
                let width = by.min(MOST) * ONE;
                let unit = if case.is_memory() { "B" } else { "us" };
                let _ = write!(
                    out,
                    "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/>\n\
                     <text x=\"{:.1}\" y=\"{middle}\">{} {by:.2} ({} {unit})</text>\n",
                    BAR - 2.0,
                    colour(row.kind),
                    LEFT + width + 5.0,
                    row.kind.name(),
                    short(cost),
                );
            }
            _ if row.figures.is_none() => {
                let why = if row.note.starts_with("not built") { "not built" } else { "has no such thing" };
                let _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{middle}\" fill=\"#999\">{}: {why}</text>",
                    LEFT + 5.0,
                    row.kind.name()
                );
            }
            _ => {
                // What has no cost has its failures.
                let _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{middle}\">{}: {}</text>",
                    LEFT + 5.0,
                    row.kind.name(),
                    escape(&row.note)
                );
            }
        }
        y += BAR;
    }
    y + 8.0
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Phalanx => "#2a6fdb",
        Kind::Haproxy => "#b9c0c9",
        Kind::Nginx => "#d9d3c4",
        Kind::Floor => "#e8e8e8",
    }
}

/// As much as there is room for.
fn clipped(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use cluster_tests::bench::Spread;

    use super::*;
    use crate::cases::CASES;
    use crate::report::Figures;

    fn row(kind: Kind, cpu: Option<f64>) -> Row {
        let one = |value: f64| Spread::of(std::iter::once(value));
        let figures = Figures {
            throughput: one(1.0),
            cpu_us: cpu.map(one),
            p50_ms: None,
            p99_ms: None,
            syscalls: None,
        };
        let figures = cpu.map(|_| figures);
        Row {
            case: "a",
            kind,
            figures,
            ratio: None,
            void: false,
            failed: None,
            note: "not built: <x>".into(),
        }
    }

    #[test]
    fn bars_are_as_long_as_the_cost_by_the_cheapest_peers() {
        let case = &CASES[0];
        let rows = vec![
            row(Kind::Phalanx, Some(10.0)),
            row(Kind::Haproxy, Some(20.0)),
            row(Kind::Nginx, Some(200.0)),
        ];
        let drawn = draw(&[(case, rows)], "a < b & c");
        for wanted in
            ["width=\"120.0\"", "width=\"240.0\"", "width=\"480.0\"", "nginx 10.00", "a &lt; b &amp; c"]
        {
            assert!(drawn.contains(wanted), "no {wanted} in {drawn}");
        }
    }

    #[test]
    fn what_is_not_built_has_no_bar() {
        let case = &CASES[0];
        let drawn = draw(&[(case, vec![row(Kind::Phalanx, None), row(Kind::Haproxy, Some(20.0))])], "");
        assert!(drawn.contains("phalanx: not built"), "{drawn}");
        assert_eq!(drawn.matches("<rect x=").count(), 1);
    }
}

//! The page as HTML: one table per proxy.

use std::fmt::{Display, Write as _};

use phalanx_config::Stats;
use phalanx_engine::state::State;
use phalanx_engine::stats::Column::{self, *};
use phalanx_engine::stats::info::VERSION;
use phalanx_engine::stats::{Kind, Row};
use phalanx_engine::time::Now;

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--head:#8882}
body{font:13px/1.4 system-ui,sans-serif;margin:1.5rem;max-width:100rem}
h1{font-size:1.3rem;margin:0 0 .5rem}h2{font-size:1rem;margin:1.5rem 0 .3rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.3rem 1rem;margin:0}
dt{opacity:.65}dd{margin:0;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .45rem;border:1px solid var(--line);text-align:right;white-space:nowrap}
th{background:var(--head);font-weight:600;text-align:center}
td:first-child,td.t{text-align:left}
tr.b td,tr.f td{background:var(--head)}
.dot{display:inline-block;width:.6em;height:.6em;border-radius:50%;margin-right:.4em;background:#888}
.up .dot{background:#2a9d4a}.trans .dot{background:#e0a100}.down .dot{background:#d0342c}
.maint .dot{background:#8a5a2b}.drain .dot{background:#2f7fd0}.none .dot{background:#888}
footer{margin-top:1.5rem;opacity:.7}
";

/// Groups of columns: title, and per column its title and where its value comes from.
const GROUPS: &[(&str, &[(&str, Column)])] = &[
    ("Queue", &[("Cur", Qcur), ("Max", Qmax), ("Limit", Qlimit)]),
    ("Session rate", &[("Cur", Rate), ("Max", RateMax), ("Limit", RateLim)]),
    (
        "Sessions",
        &[
            ("Cur", Scur),
            ("Max", Smax),
            ("Limit", Slim),
            ("Total", Stot),
            ("LbTot", Lbtot),
            ("Last", Lastsess),
        ],
    ),
    ("Bytes", &[("In", Bin), ("Out", Bout)]),
    ("Denied", &[("Req", Dreq), ("Resp", Dresp)]),
    ("Errors", &[("Req", Ereq), ("Conn", Econ), ("Resp", Eresp)]),
    ("Warnings", &[("Retr", Wretr), ("Redis", Wredis)]),
    (
        "Server",
        &[
            ("Status", Status),
            ("LastChk", CheckStatus),
            ("Wght", Weight),
            ("Act", Act),
            ("Bck", Bck),
            ("Chk", Chkfail),
            ("Dwn", Chkdown),
            ("Dwntme", Downtime),
            ("Thrtle", Throttle),
        ],
    ),
];

/// Text with everything that HTML would take for markup replaced.
struct Escaped<T>(T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Appends the page.
pub(super) fn page(state: &State, stats: &Stats, rows: &[Row], refreshes: bool, now: Now, out: &mut String) {
    let node = stats.show_node.as_deref().map(|n| if n.is_empty() { state.node() } else { n });
    let title = match node {
        Some(node) => format!("Phalanx statistics on {node}"),
        None => "Phalanx statistics".to_owned(),
    };
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\
         <link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head>\n<body>\n<h1>{0}</h1>\n",
        Escaped(&title)
    );
    process(state, stats, now, out);
    let mut at = 0;
    while let Some(first) = rows.get(at) {
        let count = rows[at..].iter().take_while(|r| r.iid == first.iid).count();
        proxy(state, stats, &rows[at..at + count], out);
        at += count;
    }
    let uri = Escaped(&stats.uri);
    let _ = write!(out, "<footer><a href=\"{uri};csv\">CSV</a> · <a href=\"{uri};json\">JSON</a>");
    if refreshes {
        let _ = write!(out, " · <a href=\"{uri};norefresh\">stop refreshing</a>");
    } else if stats.refresh.is_some() {
        let _ = write!(out, " · <a href=\"{uri}\">refresh</a>");
    }
    out.push_str("</footer>\n</body></html>\n");
}

fn process(state: &State, stats: &Stats, now: Now, out: &mut String) {
    let process = state.process();
    let sum = process.counters().sum(now);
    out.push_str("<dl>");
    let mut field = |name: &str, value: &dyn Display| {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", Escaped(value));
    };
    if !stats.hide_version {
        field("version", &VERSION);
    }
    field("pid", &std::process::id());
    field("uptime", &seconds(now.mono.saturating_sub(process.started.mono).as_secs()));
    field("threads", &state.workers());
    field("connections", &format!("{} of {}", process.conns(), process.maxconn()));
    field("connections/s", &format!("{} (max {})", sum.conn_rate, sum.conn_rate_max));
    field("sessions/s", &format!("{} (max {})", sum.sess_rate, sum.sess_rate_max));
    field("requests", &sum.req_tot);
    out.push_str("</dl>\n");
}

fn proxy(state: &State, stats: &Stats, rows: &[Row], out: &mut String) {
    let name = rows[0].get(Pxname).to_string();
    let _ = write!(out, "<h2>{}", Escaped(&name));
    if stats.show_legends {
        let algorithm = rows.iter().map(|r| r.get(Algo)).find(|v| !v.is_empty());
        let mode = rows[0].get(Mode);
        let _ = write!(out, " <small>id {}, mode {mode}", rows[0].iid);
        if let Some(algorithm) = algorithm {
            let _ = write!(out, ", balance {}", Escaped(algorithm));
        }
        out.push_str("</small>");
    }
    out.push_str("</h2>\n");
    let plan = state.plan_owned();
    if let Some(text) = plan.proxy(&name).and_then(|p| p.config.description.as_deref()) {
        let _ = writeln!(out, "<p>{}</p>", Escaped(text));
    }
    out.push_str("<div class=\"scroll\"><table><tr><th rowspan=\"2\"></th>");
    for (title, columns) in GROUPS {
        let _ = write!(out, "<th colspan=\"{}\">{title}</th>", columns.len());
    }
    out.push_str("</tr>\n<tr>");
    for (title, _) in GROUPS.iter().flat_map(|(_, columns)| columns.iter()) {
        let _ = write!(out, "<th>{title}</th>");
    }
    out.push_str("</tr>\n");
    for row in rows {
        line(row, out);
    }
    out.push_str("</table></div>\n");
}

fn line(row: &Row, out: &mut String) {
    let status = row.get(Status).to_string();
    let kind = match row.kind {
        Kind::Frontend => "f",
        Kind::Backend => "b",
        Kind::Server => "s",
    };
    let state = class(&status);
    let _ = write!(out, "<tr class=\"{kind} {state}\"><td");
    let address = row.get(Addr);
    if !address.is_empty() {
        let _ = write!(out, " title=\"{}", Escaped(address));
        if !row.get(Cookie).is_empty() {
            let _ = write!(out, ", cookie {}", Escaped(row.get(Cookie)));
        }
        out.push('"');
    }
    let _ = write!(out, "><span class=\"dot\"></span>{}</td>", Escaped(row.get(Svname)));
    for (_, column) in GROUPS.iter().flat_map(|(_, columns)| columns.iter()) {
        cell(row, *column, out);
    }
    out.push_str("</tr>\n");
}

fn cell(row: &Row, column: Column, out: &mut String) {
    let value = row.get(column);
    match column {
        _ if value.is_empty() => out.push_str("<td></td>"),
        Status => {
            let since = row.get(Lastchg);
            let _ = write!(out, "<td class=\"t\">");
            if !since.is_empty() {
                let _ = write!(out, "{} ", seconds(since.number()));
            }
            let _ = write!(out, "{}</td>", Escaped(value));
        }
        CheckStatus => {
            let _ = write!(
                out,
                "<td class=\"t\" title=\"{}{}{}\">{}",
                Escaped(row.get(CheckDesc)),
                if row.get(LastChk).to_string().is_empty() { "" } else { ": " },
                Escaped(row.get(LastChk)),
                Escaped(value)
            );
            if !row.get(CheckCode).is_empty() {
                let _ = write!(out, "/{}", row.get(CheckCode));
            }
            if !row.get(CheckDuration).is_empty() {
                let _ = write!(out, " in {}ms", row.get(CheckDuration));
            }
            out.push_str("</td>");
        }
        Act | Bck if row.kind == Kind::Server => {
            let _ = write!(out, "<td>{}</td>", if value.number() > 0 { "Y" } else { "-" });
        }
        Lastsess => {
            let never = value.to_string() == "-1";
            let text = if never { "?".to_owned() } else { seconds(value.number()) };
            let _ = write!(out, "<td>{text}</td>");
        }
        Downtime => {
            let _ = write!(out, "<td>{}</td>", seconds(value.number()));
        }
        Throttle => {
            let _ = write!(out, "<td>{value}%</td>");
        }
        _ => {
            let _ = write!(out, "<td>{}</td>", Escaped(value));
        }
    }
}

fn class(status: &str) -> &'static str {
    match status {
        s if s.starts_with("MAINT") => "maint",
        s if s.starts_with("DRAIN") || s.starts_with("NOLB") => "drain",
        s if s.starts_with("UP ") || s.starts_with("DOWN ") => "trans",
        s if s.starts_with("UP") || s == "OPEN" => "up",
        s if s.starts_with("DOWN") || s == "STOP" || s == "FULL" => "down",
        _ => "none",
    }
}

/// `3d4h`, `5m6s`: the two largest units.
fn seconds(n: u64) -> String {
    match n {
        0..60 => format!("{n}s"),
        60..3600 => format!("{}m{}s", n / 60, n % 60),
        3600..86_400 => format!("{}h{}m", n / 3600, n / 60 % 60),
        _ => format!("{}d{}h", n / 86_400, n / 3600 % 24),
    }
}

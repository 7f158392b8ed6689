//! The picture of a chaos run: one page that needs nothing else, with what was disturbed, who held the
//! floating address, and what a client saw.
//!
//! A run of half an hour is shown in strips one below the other, five minutes each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::probe::{Shot, Span};

/// Something that was done to the cluster.
#[derive(Clone, Debug)]
pub struct Event {
    /// Since when.
    pub from: Duration,
    /// Until when it was undone.
    pub to: Duration,
    /// The node that it hit.
    pub node: usize,
    /// Whether all nodes were hit.
    pub everywhere: bool,
    /// What.
    pub what: String,
    /// The longest silence of the floating address that came of it.
    pub gap: Duration,
}

/// What became of a promise.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which.
    pub promise: &'static str,
    /// What it says.
    pub meaning: &'static str,
    /// What was found.
    pub found: String,
    /// Whether it was kept.
    pub good: bool,
}

/// All that is shown.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Heading.
    pub title: String,
    /// Rows of the table above.
    pub verdicts: Vec<Verdict>,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// What was done.
    pub events: Vec<Event>,
    /// When all was compared.
    pub checks: Vec<Duration>,
    /// When each node's kernel had the address.
    pub held: Vec<Vec<Span>>,
    /// What the client saw.
    pub shots: Vec<Shot>,
    /// Megabytes of each node, at times.
    pub memory: Vec<Vec<(Duration, f64)>>,
    /// How long it ran.
    pub length: Duration,
}

const WIDTH: f64 = 1180.0;
const LEFT: f64 = 96.0;
const STRIP: f64 = 300.0;
const LANE: f64 = 20.0;
const COLOURS: [&str; 5] = ["#2f6fde", "#e08a1e", "#2a9d6f", "#9d4edd", "#c2397a"];

impl Picture {
    /// The page.
    pub fn html(&self) -> String {
        let mut out = String::from(HEAD);
        let _ = write!(out, "<h1>{}</h1><p class=say>{ABOUT}</p><table class=v>", escape(&self.title));
        for Verdict { promise, meaning, found, good } in &self.verdicts {
            let (class, mark) = if *good { ("ok", "&#10003;") } else { ("bad", "&#10007;") };
            let _ = write!(
                out,
                "<tr><td class={class}>{mark}</td><td>{}</td><td>{}</td><td class=why>{}</td></tr>",
                escape(promise),
                escape(found),
                escape(meaning)
            );
        }
        let _ = write!(out, "</table><h2>What happened when</h2><p class=say>{LANES}</p><div class=key>");
        for (name, colour) in self.nodes.iter().zip(COLOURS) {
            let _ = write!(
                out,
                "<span><i style='background:{colour}'></i>{} holds the address</span>",
                escape(name)
            );
        }
        for (group, colour) in GROUPS {
            let _ = write!(out, "<span><i style='background:{colour}'></i>{group}</span>");
        }
        out += "<span><i style='background:#d6404a'></i>requests without answer</span>\
                <span><i class=dots></i>all undone, everything compared</span></div>";
        let length = self.length.as_secs_f64().max(1.0);
        let strip = STRIP.min(length);
        for number in 0..(length / strip).ceil() as usize {
            self.strip(&mut out, number as f64 * strip, strip, length);
        }
        self.kinds(&mut out);
        out +=
            "<h2>Longest silences</h2><table><tr><th>at</th><th>what</th><th>node</th><th>silence</th></tr>";
        let mut worst: Vec<&Event> = self.events.iter().collect();
        worst.sort_by_key(|e| std::cmp::Reverse(e.gap));
        for event in worst.iter().take(15) {
            let at = event.from.as_secs();
            let _ = write!(
                out,
                "<tr><td>{}:{:02}</td><td>{}</td><td>{}</td><td>{:.0} ms</td></tr>",
                at / 60,
                at % 60,
                escape(&event.what),
                escape(self.name(event)),
                event.gap.as_secs_f64() * 1e3
            );
        }
        out + "</table></body></html>\n"
    }

    /// How often each fault was done, and how long the floating address was silent then.
    fn kinds(&self, out: &mut String) {
        let mut kinds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for event in &self.events {
            let kind = event.what.split(' ').next().unwrap_or_default();
            kinds.entry(kind).or_default().push(event.gap.as_secs_f64() * 1e3);
        }
        let _ = write!(
            out,
            "<h2>Faults</h2><p class=say>{SILENCE}</p><table><tr><th>what</th><th>times</th>\
             <th>median silence</th><th>longest</th></tr>"
        );
        for (kind, mut gaps) in kinds {
            gaps.sort_by(f64::total_cmp);
            let _ = write!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{:.0} ms</td><td>{:.0} ms</td></tr>",
                escape(kind),
                gaps.len(),
                gaps[gaps.len() / 2],
                gaps[gaps.len() - 1]
            );
        }
        out.push_str("</table>");
    }

    fn name(&self, event: &Event) -> &str {
        if event.everywhere { "all" } else { self.nodes.get(event.node).map_or("-", String::as_str) }
    }

    fn strip(&self, out: &mut String, from: f64, length: f64, end: f64) {
        let to = from + length;
        let scale = Scale { from, to, per_second: (WIDTH - LEFT - 10.0) / length };
        let lanes = self.nodes.len() as f64;
        let errors_at = 26.0 + (lanes + 1.0) * LANE;
        let memory_at = errors_at + 50.0;
        let height = memory_at + 46.0;
        let _ = write!(out, "<svg viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'>");
        self.axis(out, &scale, height, end);
        for (lane, name) in self.nodes.iter().enumerate() {
            let y = 22.0 + lane as f64 * LANE;
            let _ = write!(out, "<text x='8' y='{}'>{}</text>", y + 14.0, escape(name));
            let _ = write!(
                out,
                "<rect class='lane' x='{LEFT}' y='{y}' width='{}' height='{}'/>",
                WIDTH - LEFT - 10.0,
                LANE - 3.0
            );
        }
        for event in &self.events {
            let lanes = if event.everywhere { 0..self.nodes.len() } else { event.node..event.node + 1 };
            for lane in lanes {
                let y = 22.0 + lane as f64 * LANE;
                let tip = format!(
                    "{} at {}, {:.1} s, silence {:.0} ms",
                    event.what,
                    self.name(event),
                    (event.to - event.from).as_secs_f64(),
                    event.gap.as_secs_f64() * 1e3
                );
                scale.bar(out, event.from, event.to, y, LANE - 3.0, colour(&event.what), &tip);
            }
        }
        let y = 22.0 + lanes * LANE;
        let _ = write!(out, "<text x='8' y='{}'>holder</text>", y + 14.0);
        for (node, spans) in self.held.iter().enumerate() {
            for span in spans {
                scale.bar(
                    out,
                    span.from,
                    span.to,
                    y,
                    LANE - 3.0,
                    COLOURS[node % COLOURS.len()],
                    &self.nodes[node],
                );
            }
        }
        self.failures(out, &scale, errors_at);
        self.resident(out, &scale, memory_at);
        out.push_str("</svg>\n");
    }

    fn axis(&self, out: &mut String, scale: &Scale, height: f64, end: f64) {
        let step = if scale.to - scale.from > 120.0 { 30.0 } else { 10.0 };
        let mut at = scale.from;
        while at <= scale.to.min(end) + 0.01 {
            let x = scale.x(at);
            let _ = write!(
                out,
                "<line class='tick' x1='{x:.1}' y1='16' x2='{x:.1}' y2='{}'/><text class='small' x='{:.1}' y='12'>{}:{:02}</text>",
                height - 6.0,
                x + 2.0,
                at as u64 / 60,
                at as u64 % 60
            );
            at += step;
        }
        for check in
            self.checks.iter().map(Duration::as_secs_f64).filter(|c| (scale.from..scale.to).contains(c))
        {
            let x = scale.x(check);
            let _ = write!(
                out,
                "<line class='check' x1='{x:.1}' y1='16' x2='{x:.1}' y2='{}'><title>everything compared</title></line>",
                height - 6.0
            );
        }
    }

    /// The part of the client's requests without an answer, of each second.
    fn failures(&self, out: &mut String, scale: &Scale, y: f64) {
        const HIGH: f64 = 40.0;
        let _ = write!(
            out,
            "<text x='8' y='{}'>no answer</text><text class='small' x='8' y='{}'>% of requests</text>",
            y + 16.0,
            y + 30.0
        );
        let _ = write!(
            out,
            "<rect class='lane' x='{LEFT}' y='{y}' width='{}' height='{HIGH}'/>",
            WIDTH - LEFT - 10.0
        );
        // Five a second: a takeover is shorter than one.
        let bins = ((scale.to - scale.from) * 5.0) as usize;
        let mut counts = vec![(0u32, 0u32); bins];
        for shot in &self.shots {
            let bin = (shot.sent.as_secs_f64() - scale.from) * 5.0;
            if bin >= 0.0 && (bin as usize) < bins {
                let (all, bad) = &mut counts[bin as usize];
                *all += 1;
                *bad += u32::from(shot.body().is_none());
            }
        }
        for (bin, (all, bad)) in counts.iter().enumerate().filter(|(_, (_, bad))| *bad > 0) {
            let part = f64::from(*bad) / f64::from((*all).max(1));
            let x = scale.x(scale.from + bin as f64 / 5.0);
            let _ = write!(
                out,
                "<rect class='err' x='{x:.1}' y='{:.1}' width='{:.2}' height='{:.1}'/>",
                y + HIGH * (1.0 - part),
                (scale.per_second / 5.0).max(0.8),
                HIGH * part
            );
        }
    }

    fn resident(&self, out: &mut String, scale: &Scale, y: f64) {
        const HIGH: f64 = 36.0;
        let most = self.memory.iter().flatten().map(|(_, mb)| *mb).fold(1.0, f64::max);
        let _ = write!(
            out,
            "<text x='8' y='{}'>memory</text><text class='small' x='8' y='{}'>to {most:.0} MB</text>",
            y + 16.0,
            y + 30.0
        );
        let _ = write!(
            out,
            "<rect class='lane' x='{LEFT}' y='{y}' width='{}' height='{HIGH}'/>",
            WIDTH - LEFT - 10.0
        );
        for (node, samples) in self.memory.iter().enumerate() {
            let mut path = String::new();
            let mut last: Option<f64> = None;
            for (at, mb) in samples {
                let at = at.as_secs_f64();
                if !(scale.from..scale.to).contains(&at) {
                    continue;
                }
                // A node that was down has no memory: the line begins anew.
                let verb = if last.is_some_and(|l| at - l < 3.0) { 'L' } else { 'M' };
                let _ = write!(path, "{verb}{:.1} {:.1} ", scale.x(at), y + HIGH * (1.0 - mb / most));
                last = Some(at);
            }
            let _ = write!(
                out,
                "<path d='{path}' fill='none' stroke='{}' stroke-width='1.2'/>",
                COLOURS[node % COLOURS.len()]
            );
        }
    }
}

struct Scale {
    from: f64,
    to: f64,
    per_second: f64,
}

impl Scale {
    fn x(&self, at: f64) -> f64 {
        LEFT + (at - self.from) * self.per_second
    }

    #[allow(clippy::too_many_arguments, reason = "where, how high, what")]
    fn bar(
        &self,
        out: &mut String,
        from: Duration,
        to: Duration,
        y: f64,
        height: f64,
        colour: &str,
        tip: &str,
    ) {
        let (from, to) = (from.as_secs_f64().max(self.from), to.as_secs_f64().min(self.to));
        if from < to {
            let width = ((to - from) * self.per_second).max(0.7);
            let _ = write!(
                out,
                "<rect x='{:.1}' y='{y}' width='{width:.2}' height='{height}' fill='{colour}'><title>{}</title></rect>",
                self.x(from),
                escape(tip)
            );
        }
    }
}

const GROUPS: [(&str, &str); 5] = [
    ("killed", "#444b59"),
    ("stopped", "#8b94a7"),
    ("network", "#c9b458"),
    ("disk or clock", "#7fb7be"),
    ("restart or reload", "#b9a5d6"),
];

fn colour(what: &str) -> &'static str {
    let begins = |words: &[&str]| words.iter().any(|w| what.starts_with(w));
    let group = if begins(&["kill", "torn"]) {
        0
    } else if begins(&["stop"]) {
        1
    } else if begins(&["slow", "fail", "disk", "clock"]) {
        3
    } else if begins(&["rolling", "reload"]) {
        4
    } else {
        2
    };
    GROUPS[group].1
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

const ABOUT: &str = "Clients send requests to the floating address and to each node's own, people change \
maps and weights, and a nemesis disturbs the nodes, their network, disks and clocks, as its seed says. Round by \
round everything is undone, and what the nodes say is compared with what clients and people were told. The same \
seed does the same again.";
const LANES: &str = "A lane for each node shows what was done to it, with details under the pointer. Below: \
which node's kernel had the floating address, which part of the requests to it had no answer (a bar is a fifth \
of a second), and the memory of the nodes.";
const SILENCE: &str = "Silence is the longest time without an answer of the floating address during a fault, \
probed every 5 ms. A fault at a node that does not hold it makes hardly any.";

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>Phalanx chaos</title><style>\
body{font:14px/1.45 system-ui,sans-serif;margin:28px;color:#1d2430;background:#fff}h1{font-size:21px;margin:0 0 12px}\
h2{font-size:16px;margin:22px 0 6px}table{border-collapse:collapse}td,th{padding:2px 14px 2px 0;text-align:left;font-variant-numeric:tabular-nums}\
th{color:#6b7484;font-weight:500}.ok{color:#1f8a54;font-weight:700}.bad{color:#d6404a;font-weight:700}\
.key{margin:16px 0 6px;color:#4a5261;font-size:12px}.key span{margin-right:16px;white-space:nowrap}\
.key i{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:5px;vertical-align:-2px}\
.say{max-width:900px;margin:4px 0 10px;color:#4a5261}.why{color:#6b7484}.key i.dots{width:0;border-left:2px dotted #1f8a54;border-radius:0}\
svg{display:block;margin:10px 0;max-width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:#1d2430}svg .small{fill:#8b94a7;font-size:10px}\
.lane{fill:#f2f4f8}.tick{stroke:#dfe3ea}.check{stroke:#1f8a54;stroke-dasharray:2 3}.err{fill:#d6404a}</style><body>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_events_by_strip_and_escapes_what_it_shows() {
        let second = Duration::from_secs;
        let event = |from| Event {
            from: second(from),
            to: second(from + 2),
            node: 1,
            everywhere: false,
            what: "kill-node <x>".into(),
            gap: second(1),
        };
        let picture = Picture {
            title: "run".into(),
            nodes: vec!["n1".into(), "n2".into()],
            events: vec![event(5), event(400)],
            held: vec![vec![Span { from: second(0), to: second(500) }], vec![]],
            length: second(600),
            ..Picture::default()
        };
        let html = picture.html();
        assert_eq!(html.matches("<svg").count(), 2);
        assert!(html.contains("<td>kill-node</td><td>2</td><td>1000 ms</td>"));
        assert_eq!(html.matches("<title>kill-node &lt;x&gt; at n2").count(), 2);
        assert_eq!(html.matches("<title>n1</title>").count(), 2, "a span over two strips is in both");
    }
}

//! Agent checks: what a server's agent says, and what it comes to.
//!
//! [`Said`] reads one line of an agent (manual, `agent-check`); [`View`] is what all its lines so far
//! amount to, as the server keeps it and the nodes of a cluster tell each other. Pure; any bytes are a
//! line.

use std::fmt;
use std::net::IpAddr;

use crate::health::{CheckStatus, Report};
use crate::registry::{Admin, Revisions, Weight};

/// Longest line that is read.
pub const MAX_LINE: usize = 1024;

/// What one line of an agent asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// `75%`, `weight:10`.
    pub weight: Option<Weight>,
    /// `maxconn:30`.
    pub maxconn: Option<u32>,
    /// `ready`, `drain`, `maint`.
    pub admin: Option<Admin>,
    /// `up`; or `down`, `fail`, `stopped`.
    pub up: Option<bool>,
    /// For the statistics and the log.
    pub status: CheckStatus,
    /// The same in words.
    pub info: String,
}

impl Said {
    /// Reads up to the first CR or LF.
    pub fn read(bytes: &[u8]) -> Said {
        let line = bytes.split(|b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
        let text = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]);
        let mut said = Said { status: CheckStatus::Checked, ..Said::default() };
        let (mut state, mut rest, mut note) = (None, &*text, "");
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let (word, after) = rest.split_at(rest.find([' ', '\t', ',']).unwrap_or(rest.len()));
            match word {
                "" => break,
                "up" => (said.up, state) = (Some(true), Some(word)),
                "down" | "fail" | "stopped" => (said.up, state) = (Some(false), Some(word)),
                "ready" => said.admin = Some(Admin::Ready),
                "drain" => said.admin = Some(Admin::Drain),
                "maint" => said.admin = Some(Admin::Maint),
                _ => match (weight(word), word.strip_prefix("maxconn:").and_then(|n| n.parse().ok())) {
                    (Some(weight), _) => said.weight = Some(weight),
                    (_, Some(maxconn)) => said.maxconn = Some(maxconn),
                    // A description, or something that an agent should not say.
                    _ => {
                        note = rest.trim_start_matches('#').trim();
                        break;
                    }
                },
            }
            rest = after;
        }
        said.info = match (state, note) {
            (Some(state), "") => format!("via agent : {state}"),
            (Some(state), note) => format!("via agent : {state} ({note})"),
            (None, "") => String::new(),
            (None, note) => format!("agent reports an error : {note}"),
        };
        if let Some(up) = said.up {
            said.status = if up { CheckStatus::L7Ok } else { CheckStatus::L7Sts };
        }
        said
    }
}

/// `75%`, `weight:75%`, `weight:10`.
fn weight(word: &str) -> Option<Weight> {
    let (value, bare) = word.strip_prefix("weight:").map_or((word, true), |value| (value, false));
    match value.strip_suffix('%') {
        Some(percent) => percent.parse().ok().map(Weight::Percent),
        None if bare => None,
        None => value.parse().ok().filter(|n| *n <= 256).map(Weight::Absolute),
    }
}

/// What an agent has said so far, and which commands it came after. Displayed and parsed for other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// When it said so: the commands about the same that the node that asked had carried out.
    pub after: Revisions,
    /// The same of [`View::down`].
    pub down_after: u64,
    /// It said that the server is down, and not yet that it is up again.
    pub down: bool,
    /// The last weight.
    pub weight: Option<Weight>,
    /// The last maxconn.
    pub maxconn: Option<u32>,
    /// The last administrative state.
    pub admin: Option<Admin>,
}

impl View {
    /// Takes a line in that comes after these commands (`forced`: `set server … agent`); what it does not
    /// mention stays.
    pub fn take(&mut self, said: &Said, after: &Revisions, forced: u64) {
        if let Some(up) = said.up {
            (self.down, self.down_after) = (!up, forced);
        }
        if said.weight.is_some() {
            (self.weight, self.after.weight) = (said.weight, after.weight);
        }
        if said.maxconn.is_some() {
            (self.maxconn, self.after.maxconn) = (said.maxconn, after.maxconn);
        }
        if said.admin.is_some() {
            (self.admin, self.after.admin) = (said.admin, after.admin);
        }
    }

    /// What counts of it: that of which no command has spoken since.
    pub fn standing(&self, spoken: &Revisions) -> View {
        View {
            weight: self.weight.filter(|_| self.after.weight >= spoken.weight),
            maxconn: self.maxconn.filter(|_| self.after.maxconn >= spoken.maxconn),
            admin: self.admin.filter(|_| self.after.admin >= spoken.admin),
            ..*self
        }
    }

    /// Reads what [`View`] displays; words that do not tell when came after `untold`.
    pub fn parse(text: &str, untold: &Revisions) -> View {
        let mut view = View { after: *untold, ..View::default() };
        for word in text.split(' ') {
            match word.split_once('=') {
                Some(("down", "1")) => view.down = true,
                Some(("weight", value)) => {
                    view.weight = weight(&format!("weight:{value}"));
                }
                Some(("maxconn", value)) => view.maxconn = value.parse().ok(),
                Some(("admin", "ready")) => view.admin = Some(Admin::Ready),
                Some(("admin", "drain")) => view.admin = Some(Admin::Drain),
                Some(("admin", "maint")) => view.admin = Some(Admin::Maint),
                Some(("down-after", n)) => view.down_after = n.parse().unwrap_or(0),
                Some(("weight-after", n)) => view.after.weight = n.parse().unwrap_or(0),
                Some(("maxconn-after", n)) => view.after.maxconn = n.parse().unwrap_or(0),
                Some(("admin-after", n)) => view.after.admin = n.parse().unwrap_or(0),
                _ => {}
            }
        }
        let heard = |said: bool, after: u64| if said { after } else { 0 };
        view.after = Revisions {
            admin: heard(view.admin.is_some(), view.after.admin),
            weight: heard(view.weight.is_some(), view.after.weight),
            maxconn: heard(view.maxconn.is_some(), view.after.maxconn),
        };
        view
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "down={}", u8::from(self.down))?;
        match self.weight {
            Some(Weight::Absolute(n)) => write!(f, " weight={n}")?,
            Some(Weight::Percent(n)) => write!(f, " weight={n}%")?,
            None => {}
        }
        if let Some(maxconn) = self.maxconn {
            write!(f, " maxconn={maxconn}")?;
        }
        match self.admin {
            Some(Admin::Ready) => f.write_str(" admin=ready")?,
            Some(Admin::Drain) => f.write_str(" admin=drain")?,
            Some(Admin::Maint) => f.write_str(" admin=maint")?,
            None => {}
        }
        let after = [
            (true, "down", self.down_after),
            (self.weight.is_some(), "weight", self.after.weight),
            (self.maxconn.is_some(), "maxconn", self.after.maxconn),
            (self.admin.is_some(), "admin", self.after.admin),
        ];
        for (_, word, revision) in after.iter().filter(|(said, ..)| *said) {
            write!(f, " {word}-after={revision}")?;
        }
        Ok(())
    }
}

/// A server's agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// The server line says `agent-check`.
    pub configured: bool,
    /// Not switched off by `disable agent`.
    pub enabled: bool,
    /// It was enabled or disabled, and its server has not followed yet.
    pub(crate) switched: bool,
    /// What it has said.
    pub view: View,
    /// The commands that this node has carried out about the same.
    pub(crate) spoken: Revisions,
    /// The last probe; `None` before the first.
    pub last: Option<Report>,
    /// Where it is asked, if not at the server's address.
    pub ip: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// What is sent to it first.
    pub send: String,
    /// Revision of the last `set server … agent` carried out.
    pub(crate) forced: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_manual_says() {
        let (percent, absolute) = (Weight::Percent, Weight::Absolute);
        for (line, weight, maxconn, admin, up, info) in [
            ("75%\n", Some(percent(75)), None, None, None, ""),
            ("weight:50%\r\nup", Some(percent(50)), None, None, None, ""),
            ("weight:7", Some(absolute(7)), None, None, None, ""),
            ("weight:300", None, None, None, None, "agent reports an error : weight:300"),
            ("maxconn:30", None, Some(30), None, None, ""),
            ("up 50%\n", Some(percent(50)), None, None, Some(true), "via agent : up"),
            ("drain", None, None, Some(Admin::Drain), None, ""),
            ("ready,up\t100%", Some(percent(100)), None, Some(Admin::Ready), Some(true), "via agent : up"),
            ("maint", None, None, Some(Admin::Maint), None, ""),
            ("down #overloaded now\n", None, None, None, Some(false), "via agent : down (overloaded now)"),
            ("fail #x", None, None, None, Some(false), "via agent : fail (x)"),
            ("stopped", None, None, None, Some(false), "via agent : stopped"),
            ("up junk", None, None, None, Some(true), "via agent : up (junk)"),
            ("", None, None, None, None, ""),
            ("\n", None, None, None, None, ""),
        ] {
            let said = Said::read(line.as_bytes());
            assert_eq!(
                (said.weight, said.maxconn, said.admin, said.up),
                (weight, maxconn, admin, up),
                "{line}"
            );
            assert_eq!(said.info, info, "{line}");
        }
    }

    #[test]
    fn any_bytes_are_a_line_and_views_come_back() {
        let mut state = 9u64;
        let words =
            [&b"up"[..], b"down", b" ", b"50%", b"weight:", b"9", b"#", b"\xff", b"maint", b",", b"ready"];
        let mut view = View::default();
        for _ in 0..20_000 {
            let mut line = Vec::new();
            for _ in 0..6 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                line.extend(words[(state >> 33) as usize % words.len()]);
            }
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let n = state >> 40;
            view.take(&Said::read(&line), &Revisions { admin: n % 7, weight: n % 5, maxconn: n % 3 }, n % 9);
            assert_eq!(View::parse(&view.to_string(), &Revisions::default()), view);
        }
        let _ = View::parse(
            "weight=x down admin=9 = maxconn=-1 weight-after=-3 admin-after=99999999999999999999",
            &Revisions::default(),
        );
        // As nodes tell it that do not know of an order.
        let spoken = Revisions { admin: 9, weight: 9, maxconn: 9 };
        let view = View::parse("down=1 weight=50% admin=drain", &spoken);
        let standing = view.standing(&spoken);
        assert_eq!((standing.weight, standing.admin), (Some(Weight::Percent(50)), Some(Admin::Drain)));
        assert_eq!((view.down, view.down_after, view.after.maxconn), (true, 0, 0));
    }
}

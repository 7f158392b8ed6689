//! `phalanx keywords [WORD]...`: what of HAProxy's language is built, one line each.
//!
//! Made from the tables that the parser itself reads, so it can't promise what the parser refuses.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use phalanx_config::{keywords, option_keywords, vocabulary};

/// One line of the listing.
struct Entry {
    /// Section, or the keyword that it is an option of.
    place: &'static str,
    /// Whether `no` may precede it.
    negatable: bool,
    name: &'static str,
    usage: &'static str,
    doc: &'static str,
}

/// Prints the keywords that contain one of the words in their place or name; without words, all.
pub(crate) fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<String> = words.map(|w| w.to_string_lossy().into_owned()).collect();
    if words.iter().any(|w| w.starts_with('-')) {
        println!("Usage: phalanx keywords [WORD]...\n\n{USAGE}");
        let asked = words.iter().all(|w| matches!(w.as_str(), "-h" | "--help"));
        return if asked { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let entries: Vec<Entry> = entries().into_iter().filter(|e| e.matches(&words)).collect();
    if entries.is_empty() {
        eprintln!("No keyword contains {}.", words.join(" or "));
        return ExitCode::FAILURE;
    }
    // Whoever reads it may have seen enough (`| head`).
    let _ = print(&entries, &mut BufWriter::new(io::stdout().lock()));
    ExitCode::SUCCESS
}

const USAGE: &str = "\
Lists the keywords of the configuration that are built: section (or the keyword whose option it is),
keyword with its arguments, and what it is for; then sample fetches, converters and the actions of
each set of rules. With words, only
those whose section or name contains one of them.";

fn entries() -> Vec<Entry> {
    let of_sections = keywords().flat_map(|k| {
        let negatable = k.takes_no();
        k.sections().map(move |place| Entry { place, negatable, name: k.name, usage: k.usage, doc: k.doc })
    });
    let of_lines = option_keywords().map(|o| Entry {
        place: o.of,
        negatable: false,
        name: o.name,
        usage: o.usage,
        doc: o.doc,
    });
    let words = vocabulary().map(|(place, name)| Entry { place, negatable: false, name, usage: "", doc: "" });
    let mut all: Vec<Entry> = of_sections.chain(of_lines).chain(words).collect();
    all.sort_by_key(|e| (place_order(e.place), e.name));
    all
}

/// Sections in the manual's order, then the options of lines.
fn place_order(place: &str) -> usize {
    const PLACES: [&str; 8] =
        ["global", "defaults", "frontend", "listen", "backend", "resolvers", "consul", "cluster"];
    PLACES.iter().position(|p| *p == place).unwrap_or(PLACES.len())
}

impl Entry {
    fn matches(&self, words: &[String]) -> bool {
        words.is_empty() || words.iter().any(|w| self.name.contains(w.as_str()) || self.place == w)
    }
}

fn print(entries: &[Entry], out: &mut impl Write) -> io::Result<()> {
    for entry in entries {
        let no = if entry.negatable { "[no] " } else { "" };
        // The usage is made for messages such as "expects <name> and <addr>".
        let keyword = format!("{no}{} {}", entry.name, entry.usage.replace(" and ", " "));
        let line = format!("{:<12}  {:<44}  {}", entry.place, keyword.trim_end(), entry.doc);
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let entries: Vec<Entry> = entries().into_iter().filter(|e| e.matches(&words)).collect();
        let mut out = Vec::new();
        print(&entries, &mut out).expect("memory takes it");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn every_keyword_is_listed_with_its_sections_and_options_with_their_lines() {
        let all = text(&[]);
        let count = keywords().map(|k| k.sections().count()).sum::<usize>() + option_keywords().count();
        let count = count + vocabulary().count();
        assert_eq!(all.lines().count(), count);
        let has =
            |place: &str, name: &str| all.lines().any(|l| l.starts_with(&format!("{place:<12}  {name} ")));
        assert!(has("listen", "timeout client") && has("backend", "balance") && has("server", "weight"));
        assert!(has("defaults", "[no] option forwardfor"));
        assert!(!has("backend", "timeout client"));
    }

    #[test]
    fn words_choose_by_name_or_section() {
        let timeouts = text(&["timeout"]);
        assert!(timeouts.lines().count() > 5 && timeouts.lines().all(|l| l.contains("timeout")));
        assert!(text(&["cluster"]).lines().all(|l| l.contains("cluster")));
        assert_eq!(text(&["no-such-word"]), "");
    }
}

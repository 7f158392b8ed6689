//! The table of commands: which words lead where, who may, and what `help` says.

use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use phalanx_config::Level;
use phalanx_engine::time::Now;

use super::{
    Context, basics, config, counters, digests, discovery, errors, frontends, membership, patterns, process,
    servers, sessions, tables, vips,
};

/// One command.
pub(super) struct Keyword {
    /// The words that select it.
    pub(super) words: &'static [&'static str],
    /// What follows them, for `help`.
    pub(super) usage: &'static str,
    /// What it does, for `help`.
    pub(super) text: &'static str,
    /// Who may.
    pub(super) level: Level,
    pub(super) run: Run,
}

/// How a command is carried out.
pub(super) enum Run {
    /// At once.
    Now(fn(&Call<'_>) -> Answer),
    /// After something else happened: a commit, a delay.
    Later(for<'a> fn(&'a Call<'a>) -> Later<'a>),
}

/// An answer to come.
pub(super) type Later<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// A command as it was given.
pub(super) struct Call<'a> {
    pub(super) ctx: &'a Context,
    /// The words after those that selected the command.
    pub(super) args: &'a [String],
    /// The lines after `<<`.
    pub(super) payload: Option<&'a str>,
    /// Of the connection.
    pub(super) level: Level,
    pub(super) now: Now,
}

impl<'a> Call<'a> {
    /// An argument; "" when there is none.
    pub(super) fn arg(&self, index: usize) -> &'a str {
        self.args.get(index).map_or("", String::as_str)
    }
}

/// How serious an answer is; the number is the syslog level that `set severity-output` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// The command was refused or failed.
    Error = 3,
    /// Something was changed and there is more to say.
    Notice = 5,
    /// What was asked for.
    Info = 6,
}

/// What a command changes of its own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Quit,
    Mode(Mode),
    Timed,
    Level(Level),
    Timeout(Duration),
    Severity(SeverityOutput),
}

/// How long a connection lives and whether it prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// One line.
    #[default]
    Once,
    /// Until it quits, silently.
    Interactive,
    /// Until it quits, with `> `.
    Prompt,
    /// What `prompt` alone does: the next mode.
    Toggle,
}

/// How the severity is shown in front of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SeverityOutput {
    #[default]
    None,
    Number,
    Text,
}

/// The reply to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    /// `None` = a plain dump, never marked.
    pub(super) severity: Option<Severity>,
    pub(super) effect: Option<Effect>,
}

impl Answer {
    /// Done, nothing to say.
    pub(super) fn done() -> Answer {
        Answer { text: String::new(), severity: None, effect: None }
    }

    /// A dump.
    pub(super) fn dump(text: impl Into<String>) -> Answer {
        Answer { text: text.into(), ..Answer::done() }
    }

    /// Information.
    pub(super) fn info(text: impl Into<String>) -> Answer {
        Answer { text: text.into(), severity: Some(Severity::Info), effect: None }
    }

    /// Something was changed.
    pub(super) fn notice(text: impl Into<String>) -> Answer {
        Answer { text: text.into(), severity: Some(Severity::Notice), effect: None }
    }

    /// A refusal.
    pub(super) fn error(text: impl Into<String>) -> Answer {
        Answer { text: text.into(), severity: Some(Severity::Error), effect: None }
    }

    /// Done, with an effect on the connection.
    pub(super) fn effect(effect: Effect) -> Answer {
        Answer { effect: Some(effect), ..Answer::done() }
    }
}

/// Every group of commands.
const GROUPS: &[&[Keyword]] = &[
    basics::KEYWORDS,
    config::KEYWORDS,
    counters::KEYWORDS,
    digests::KEYWORDS,
    discovery::KEYWORDS,
    errors::KEYWORDS,
    frontends::KEYWORDS,
    membership::KEYWORDS,
    vips::KEYWORDS,
    patterns::KEYWORDS,
    process::KEYWORDS,
    servers::KEYWORDS,
    sessions::KEYWORDS,
    tables::KEYWORDS,
];

/// Commands that `help` always names, last.
const ALWAYS: &[&str] = &["help", "prompt", "quit"];

/// All commands.
pub(super) fn all() -> impl Iterator<Item = &'static Keyword> {
    GROUPS.iter().copied().flatten()
}

/// The command that the words select: the one with the most words of its own.
pub(super) fn find(words: &[String]) -> Option<&'static Keyword> {
    all().filter(|k| starts_with(words, k.words)).max_by_key(|k| k.words.len())
}

/// HAProxy's commands that are not built: said so, rather than taken for a typing error.
const NOT_BUILT: &[(&[&str], &str)] = &[
    (&["abort", "ssl"], TLS),
    (&["add", "backend"], "change the configuration and reload"),
    (&["add", "ssl"], TLS),
    (&["commit", "ssl"], TLS),
    (&["debug", "counters"], INSIDES),
    (&["debug", "dev"], INSIDES),
    (&["del", "backend"], "change the configuration and reload"),
    (&["del", "ssl"], TLS),
    (&["disable", "dynamic-cookie"], "cookies are not made by key"),
    (&["dump", "ssl"], TLS),
    (&["dump", "stats-file"], "counters outlast a reload by themselves"),
    (&["enable", "dynamic-cookie"], "cookies are not made by key"),
    (&["experimental-mode"], "no command needs it"),
    (&["expert-mode"], "no command needs it"),
    (&["get", "var"], "variables of the process don't exist"),
    (&["httpclient"], "there is no client of its own"),
    (&["new", "ssl"], TLS),
    (&["set", "anon"], "dumps are never anonymised"),
    (&["set", "dynamic-cookie-key"], "cookies are not made by key"),
    (&["set", "profiling"], INSIDES),
    (&["set", "rate-limit"], "the process has no limits of rates; 'rate-limit sessions' limits a frontend"),
    (&["set", "ssl"], TLS),
    (&["set", "var"], "variables of the process don't exist"),
    (&["show", "anon"], "dumps are never anonymised"),
    (&["show", "cache"], "nothing is cached"),
    (&["show", "default-server"], "see the configuration"),
    (&["show", "defaults"], "see the configuration"),
    (&["show", "dev"], INSIDES),
    (&["show", "events"], "see the program's log"),
    (&["show", "fd"], INSIDES),
    (&["show", "pools"], INSIDES),
    (&["show", "profiling"], INSIDES),
    (&["show", "quic"], "QUIC is not spoken"),
    (&["show", "schema"], "'show info' and 'show stat' have no schema"),
    (&["show", "ssl"], TLS),
    (&["show", "tasks"], INSIDES),
    (&["show", "threads"], INSIDES),
    (&["show", "tls-keys"], TLS),
    (&["show", "trace"], INSIDES),
    (&["trace"], INSIDES),
];
const TLS: &str = "TLS of clients and servers is not built";
const INSIDES: &str = "it is about HAProxy's inner workings; see 'show activity' and 'show info'";

/// Why a command of HAProxy is none here, for whoever may give it.
pub(super) fn not_built(words: &[String]) -> Option<String> {
    let (with, why) = NOT_BUILT.iter().find(|(with, _)| starts_with(words, with))?;
    let known = find(words).is_some();
    (!known).then(|| format!("'{}' is not built: {why}.", with.join(" ")))
}

/// Whether the words begin with these.
pub(super) fn starts_with(words: &[String], with: &[&str]) -> bool {
    words.len() >= with.len() && words.iter().zip(with).all(|(a, b)| a == b)
}

/// Whether a command is about the connection that it comes on, and so is never another node's.
pub(super) fn concerns_connection(words: &[String]) -> bool {
    const THESE: &[&[&str]] = &[
        &["help"],
        &["prompt"],
        &["quit"],
        &["operator"],
        &["user"],
        &["show", "cli", "level"],
        &["set", "timeout"],
        &["set", "severity-output"],
    ];
    find(words).is_some_and(|keyword| THESE.contains(&keyword.words))
}

/// How long the payload of the last command of a line may be, where that is not the usual.
pub(super) fn payload_limit(line: &str) -> Option<usize> {
    let commands = super::words::split(line);
    let (_, command) = super::remote::place(commands.last()?);
    starts_with(command, &["config"]).then_some(super::config::MAX_PAYLOAD)
}

/// The answer to words that select nothing.
pub(super) fn unknown(words: &[String], level: Level) -> String {
    let mut out = String::new();
    let candidates = matching(words, level);
    if words.is_empty() || candidates.is_empty() {
        out.push_str("Unknown command. Please enter one of the following commands only:\n");
        list(&all_for(level), &mut out);
    } else {
        let typed = words.join(" ");
        let shown: String = typed.chars().filter(|c| !c.is_control()).take(64).collect();
        let _ = writeln!(
            out,
            "Unknown command: '{shown}', but maybe one of the following ones is a better match:"
        );
        list(&candidates, &mut out);
    }
    out
}

/// What `help` says: all commands, or those that match `words`.
pub(super) fn help(words: &[String], level: Level) -> String {
    let mut out = String::from("The following commands are valid at this level:\n");
    let chosen = if words.is_empty() { all_for(level) } else { matching(words, level) };
    list(&chosen, &mut out);
    out
}

fn all_for(level: Level) -> Vec<&'static Keyword> {
    all().filter(|k| k.level <= level).collect()
}

/// Commands that begin with the words, else up to five that look like them.
fn matching(words: &[String], level: Level) -> Vec<&'static Keyword> {
    let begins = |k: &&Keyword| {
        let n = words.len().min(k.words.len());
        n > 0 && words[..n].iter().zip(k.words).all(|(a, b)| a == b)
    };
    let exact: Vec<_> = all_for(level).into_iter().filter(begins).collect();
    if !exact.is_empty() {
        return exact;
    }
    let mut near: Vec<(f64, &Keyword)> = all_for(level)
        .into_iter()
        .map(|k| {
            let n = words.len().min(k.words.len());
            // Long words are junk: their distance to anything is not worth the time.
            let typed: String = words[..n].join(" ").chars().take(64).collect();
            (strsim::normalized_damerau_levenshtein(&typed, &k.words.join(" ")), k)
        })
        .filter(|(likeness, _)| *likeness >= 0.4)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(5).map(|(_, k)| k).collect()
}

/// One line per command, sorted, with those of [`ALWAYS`] last.
fn list(keywords: &[&'static Keyword], out: &mut String) {
    let special = |k: &&&Keyword| k.words.len() == 1 && ALWAYS.contains(&k.words[0]);
    let mut lines: Vec<String> = keywords.iter().filter(|k| !special(k)).map(|k| help_line(k)).collect();
    lines.sort();
    for name in ALWAYS {
        lines.extend(all().filter(|k| k.words == [*name]).map(help_line));
    }
    for line in lines {
        out.push_str(&line);
    }
}

fn help_line(keyword: &Keyword) -> String {
    let mut form = keyword.words.join(" ");
    if !keyword.usage.is_empty() {
        form.push(' ');
        form.push_str(keyword.usage);
    }
    format!("  {form:<40}: {}\n", keyword.text)
}

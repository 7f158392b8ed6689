//! Commands about the connection itself: `help`, `prompt`, `quit`, levels, `echo`, `wait`.

use std::time::Duration;

use phalanx_config::Level;

use super::keyword::{self, Answer, Call, Effect, Keyword, Mode, Run, SeverityOutput};
use super::servers;

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["help"],
        usage: "[<command>]",
        text: "list matching or all commands",
        level: Level::User,
        run: Run::Now(|call| Answer::info(keyword::help(call.args, call.level))),
    },
    Keyword {
        words: &["prompt"],
        usage: "[help | n | i | p | timed]*",
        text: "toggle interactive mode with prompt",
        level: Level::User,
        run: Run::Now(prompt),
    },
    Keyword {
        words: &["quit"],
        usage: "",
        text: "disconnect",
        level: Level::User,
        run: Run::Now(|_| Answer::effect(Effect::Quit)),
    },
    Keyword {
        words: &["echo"],
        usage: "<text>",
        text: "print text to the output",
        level: Level::User,
        run: Run::Now(|call| Answer::info(call.args.join(" "))),
    },
    Keyword {
        words: &["wait"],
        usage: "{-h|<delay_ms>} cond [args...]",
        text: "wait the specified delay or condition (-h to see list)",
        level: Level::User,
        run: Run::Later(|call| Box::pin(wait(call))),
    },
    Keyword {
        words: &["@<node>"],
        usage: "[<command>]",
        text: "run a command on another node, or all from now on",
        level: Level::User,
        run: Run::Now(|_| Answer::error("Put the name of a node behind '@'.")),
    },
    Keyword {
        words: &["@all"],
        usage: "<command>",
        text: "run a command on every node",
        level: Level::User,
        run: Run::Now(|_| Answer::error("'@all' stands in front of a command.")),
    },
    Keyword {
        words: &["local"],
        usage: "<command>",
        text: "run a command on this node only",
        level: Level::User,
        run: Run::Now(|_| Answer::error("'local' stands in front of a command.")),
    },
    Keyword {
        words: &["operator"],
        usage: "",
        text: "lower the level of the current CLI session to operator",
        level: Level::Operator,
        run: Run::Now(|_| Answer::effect(Effect::Level(Level::Operator))),
    },
    Keyword {
        words: &["user"],
        usage: "",
        text: "lower the level of the current CLI session to user",
        level: Level::User,
        run: Run::Now(|_| Answer::effect(Effect::Level(Level::User))),
    },
    Keyword {
        words: &["show", "cli", "level"],
        usage: "",
        text: "display the level of the current CLI session",
        level: Level::User,
        run: Run::Now(|call| Answer::info(level_name(call.level))),
    },
    Keyword {
        words: &["set", "timeout"],
        usage: "[cli] <delay>",
        text: "change a timeout setting",
        level: Level::User,
        run: Run::Now(set_timeout),
    },
    Keyword {
        words: &["set", "severity-output"],
        usage: "[none|number|string]",
        text: "set presence of severity level in feedback information",
        level: Level::User,
        run: Run::Now(set_severity_output),
    },
];

/// A level as it is written.
pub(super) fn level_name(level: Level) -> &'static str {
    match level {
        Level::User => "user",
        Level::Operator => "operator",
        Level::Admin => "admin",
    }
}

fn prompt(call: &Call<'_>) -> Answer {
    match call.arg(0) {
        "" => Answer::effect(Effect::Mode(Mode::Toggle)),
        "n" => Answer::effect(Effect::Mode(Mode::Once)),
        "i" => Answer::effect(Effect::Mode(Mode::Interactive)),
        "p" => Answer::effect(Effect::Mode(Mode::Prompt)),
        "timed" => Answer::effect(Effect::Timed),
        "help" => Answer::info(
            "Usage: prompt [help | n | i | p | timed]*\n\
             Changes the default prompt and interactive settings. Available options:\n  \
             help  display this help\n  n     non-interactive: one line, then the connection closes\n  \
             i     interactive: several lines, no prompt\n  p     interactive with prompt\n  \
             timed toggle the display of the uptime in the prompt\n\
             Without any option, prompt mode is toggled.",
        ),
        other => Answer::error(format!("Unknown option '{other}', use 'help', 'n', 'i', 'p' or 'timed'.")),
    }
}

/// A time with HAProxy's units.
pub(super) fn delay(text: &str, unit: Duration) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let micros = match &text[digits..] {
        "" => u64::try_from(unit.as_micros()).ok()?,
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    Some(Duration::from_micros(number.checked_mul(micros)?))
}

fn set_timeout(call: &Call<'_>) -> Answer {
    if call.arg(0) != "cli" {
        return Answer::error("'set timeout' only supports 'cli'.");
    }
    if call.arg(1).is_empty() {
        return Answer::error("Expects an integer value.");
    }
    match delay(call.arg(1), Duration::from_secs(1)) {
        Some(timeout) if !timeout.is_zero() => Answer::effect(Effect::Timeout(timeout)),
        _ => Answer::error("Invalid timeout value."),
    }
}

fn set_severity_output(call: &Call<'_>) -> Answer {
    let output = match call.arg(0) {
        "none" => SeverityOutput::None,
        "number" => SeverityOutput::Number,
        "string" => SeverityOutput::Text,
        _ => return Answer::error("one of 'none', 'number', 'string' is a required argument"),
    };
    Answer::effect(Effect::Severity(output))
}

/// Longest `wait`: a connection is not held for ever.
const MAX_WAIT: Duration = Duration::from_secs(3600);

async fn wait(call: &Call<'_>) -> Answer {
    const USAGE: &str = "Usage: wait {-h|<duration>} [condition [args...]]\n\
        - '-h' displays this help\n- <duration> is the maximum wait time, optionally suffixed by the unit \
        among 'us', 'ms', 's', 'm', 'h', and 'd'. The default unit is milliseconds.\n\
        - <condition> indicates what to wait for, no longer than the specified duration.\n\
        Supported conditions are:\n  srv-removable <proxy>/<server> : wait for this server to be removable";
    if call.args.is_empty() || call.arg(0) == "-h" || call.arg(1) == "-h" {
        return Answer::info(USAGE);
    }
    let Some(limit) = delay(call.arg(0), Duration::from_millis(1)) else {
        return Answer::error("Invalid duration.");
    };
    let limit = limit.min(MAX_WAIT);
    match call.arg(1) {
        "" => {
            tokio::time::sleep(limit).await;
            Answer::done()
        }
        "srv-removable" => wait_removable(call, limit).await,
        other => Answer::error(format!("Unknown condition '{other}'.\n{USAGE}")),
    }
}

async fn wait_removable(call: &Call<'_>, limit: Duration) -> Answer {
    let end = tokio::time::Instant::now() + limit;
    loop {
        match servers::removable(call.ctx, call.arg(2)) {
            Ok(_) => return Answer::info("Done."),
            Err(servers::Kept::Never(why)) => return Answer::error(format!("Failed. {why}")),
            Err(servers::Kept::Busy(_)) if tokio::time::Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(servers::Kept::Busy(_)) => return Answer::error("Timed out."),
        }
    }
}

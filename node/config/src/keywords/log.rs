//! `log` lines (manual section 4.2, "log").

use std::path::PathBuf;

use crate::draft::LogLine;
use crate::keyword::{Arity, Keyword, PROXY};
use crate::known;
use crate::line::{Args, Fault, Polarity};
use crate::model::{LogFraming, LogReceiver, LogTarget};
use crate::parser::Parser;
use crate::value::{self, PortRule};

/// What follows `log`.
pub(crate) const USAGE: &str =
    "global, or <target> [len <length>] [format <format>] <facility> [<max level> [<min level>]]";

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[Keyword::new(
    "log",
    USAGE,
    PROXY,
    Arity::AtLeast(1),
    "Adds a syslog target, or those of 'global'.",
    |parser, args| {
        if args.polarity != Polarity::Set {
            parser.settings().logs.clear();
            return Ok(());
        }
        let line = target(parser, args)?;
        parser.settings().logs.push(line);
        Ok(())
    },
)
.negatable()];

const FACILITIES: &[&str] = &[
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "auth2", "ftp", "ntp",
    "audit", "alert", "cron2", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];

const LEVELS: &[&str] = &["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

const FORMATS: &[(&str, LogFraming)] = &[
    ("local", LogFraming::Local),
    ("rfc3164", LogFraming::Rfc3164),
    ("rfc5424", LogFraming::Rfc5424),
    ("priority", LogFraming::Priority),
    ("short", LogFraming::Short),
    ("timed", LogFraming::Timed),
    ("iso", LogFraming::Iso),
    ("raw", LogFraming::Raw),
];

/// Parses what follows `log`.
pub(crate) fn target(parser: &Parser<'_>, args: &Args<'_>) -> Result<LogLine, Fault> {
    if args.text(0) == "global" {
        return match args.words.get(1) {
            None => Ok(LogLine::Global),
            Some(_) => {
                Err(args.named(1, format!("global cannot handle unexpected argument '{}'", args.text(1))))
            }
        };
    }
    let to = receiver(parser, args)?;
    let mut len = 1024;
    let mut format = LogFraming::Local;
    let mut next = 1;
    loop {
        match args.text(next) {
            "len" => {
                let length = value::number(args.text(next + 1), 80..=65535);
                len = length.map_err(|err| args.named(next + 1, format!(": length {err}")))? as usize;
            }
            "format" => format = framing(args, next + 1)?,
            option @ ("sample" | "profile") => {
                return Err(args.named(next, format!(": {}", known::unsupported(&format!("'{option}'")))));
            }
            _ => break,
        }
        next += 2;
    }
    if args.words.get(next).is_none() {
        return Err(args.named(usize::MAX, ": expects <address> and <facility> or global as arguments"));
    }
    let facility = position(FACILITIES, args, next, "facility")?;
    let level = match args.words.get(next + 1) {
        Some(_) => position(LEVELS, args, next + 1, "level")?,
        None => 7,
    };
    let min_level = match args.words.get(next + 2) {
        Some(_) => position(LEVELS, args, next + 2, "level")?,
        None => 0,
    };
    match args.words.get(next + 3) {
        None => Ok(LogLine::Target(LogTarget { to, format, len, facility, level, min_level })),
        Some(_) => {
            Err(args.named(next + 3, format!("cannot handle unexpected argument '{}'", args.text(next + 3))))
        }
    }
}

fn framing(args: &Args<'_>, index: usize) -> Result<LogFraming, Fault> {
    let name = args.text(index);
    match FORMATS.iter().find(|(known, _)| *known == name) {
        Some(&(_, format)) => Ok(format),
        None => {
            let names: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
            let fault = args.named(index, format!(": unknown log format '{name}'"));
            Err(fault.hint(format!("expects {}", crate::parser::one_of(&names))))
        }
    }
}

fn position(names: &[&str], args: &Args<'_>, index: usize, what: &str) -> Result<u8, Fault> {
    let name = args.text(index);
    match names.iter().position(|known| *known == name) {
        Some(position) => Ok(position as u8),
        None => {
            let fault = args.named(index, format!(": unknown log {what} '{name}'"));
            Err(match known::nearest(name, names.iter().copied()) {
                Some(near) => fault.hint(known::did_you_mean(near)),
                None => fault.hint(format!("expects {}", crate::parser::one_of(names))),
            })
        }
    }
}

fn receiver(parser: &Parser<'_>, args: &Args<'_>) -> Result<LogReceiver, Fault> {
    let text = args.text(0);
    match text {
        "stdout" | "fd@1" => return Ok(LogReceiver::Stdout),
        "stderr" | "fd@2" => return Ok(LogReceiver::Stderr),
        _ => {}
    }
    if let Some(path) = text.strip_prefix("unix@").or_else(|| text.starts_with('/').then_some(text)) {
        if path.len() > 107 {
            return Err(
                args.named(0, format!(": path '{path}' is too long for a unix socket (at most 107 bytes)"))
            );
        }
        return Ok(LogReceiver::Unix(PathBuf::from(path)));
    }
    // Datagrams are what `log` sends anyway.
    let text = match text.split_once('@') {
        Some(("udp", rest)) => rest.to_owned(),
        Some(("udp4", rest)) => format!("ipv4@{rest}"),
        Some(("udp6", rest)) => format!("ipv6@{rest}"),
        Some((prefix @ ("tcp" | "tcp4" | "tcp6"), _)) => {
            return Err(args
                .named(0, format!(": {}", known::unsupported(&format!("the address prefix '{prefix}@'")))));
        }
        _ => text.to_owned(),
    };
    let resolve = |host: &str| parser.env.resolve(host);
    let address = value::address(&text, PortRule::Optional, &resolve)
        .map_err(|err| args.named(0, format!(": {err}")))?;
    Ok(LogReceiver::Udp((address.ip, address.ports.map_or(514, |(port, _)| port)).into()))
}

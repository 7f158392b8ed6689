//! Keywords of `global` (manual section 3).

use std::path::PathBuf;
use std::time::Duration;

use super::log;
use crate::keyword::{Arity, GLOBAL, Keyword};
use crate::known;
use crate::line::{Args, Fault, Polarity};
use crate::model::{Level, StatsAddr, StatsSocket};
use crate::options::{self, OptionKeyword};
use crate::parser::Parser;
use crate::value::{self, PortRule, Unit};

use Arity::{AtLeast, Between, Exact};

const fn kw(
    name: &'static str,
    usage: &'static str,
    arity: Arity,
    doc: &'static str,
    apply: crate::keyword::Apply,
) -> Keyword {
    Keyword::new(name, usage, GLOBAL, arity, doc, apply)
}

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    kw("maxconn", "<number>", Exact(1), "Concurrent connections of the process.", |p, a| {
        p.global().maxconn = Some(count(a, 0)?).filter(|&n| n > 0);
        Ok(())
    }),
    kw("nbthread", "<number>", Exact(1), "Number of worker threads.", |p, a| {
        p.global().nbthread = Some(number(a, 1..=256)? as u32);
        Ok(())
    }),
    kw("log", LOG_USAGE, AtLeast(1), "Adds a syslog target.", |p, a| {
        match log::target(p, a)? {
            crate::draft::LogLine::Target(target) => p.global().logs.push(target),
            crate::draft::LogLine::Global => {
                return Err(a.named(0, "global has no meaning in the 'global' section itself"));
            }
        }
        Ok(())
    }),
    kw("log-tag", "<tag>", Exact(1), "Program name in syslog headers.", |p, a| {
        p.global().log_tag = Some(a.text(0).to_owned());
        Ok(())
    }),
    kw("log-send-hostname", "[<name>]", Between(0, 1), "Puts a host name in syslog headers.", |p, a| {
        p.global().log_send_hostname = Some(a.words.first().map(|word| word.text.clone()));
        Ok(())
    }),
    kw(
        "stats socket",
        "<address:port>|<path> [options]",
        AtLeast(1),
        "Opens a Runtime API socket.",
        stats_socket,
    ),
    kw("stats timeout", "<time>", Exact(1), "Inactivity limit of Runtime API connections.", |p, a| {
        p.global().stats_timeout = Some(time(a)?);
        Ok(())
    }),
    kw("user", "<name>", Exact(1), "Account to run as.", |p, a| {
        let Some(id) = p.env.user(a.text(0)) else {
            return Err(a.fault(0, format!("cannot find user id for '{}'", a.text(0))));
        };
        p.global().uid = Some(id);
        Ok(())
    }),
    kw("group", "<name>", Exact(1), "Group to run as.", |p, a| {
        let Some(id) = p.env.group(a.text(0)) else {
            return Err(a.fault(0, format!("cannot find group id for '{}'", a.text(0))));
        };
        p.global().gid = Some(id);
        Ok(())
    }),
    kw("uid", "<number>", Exact(1), "Account to run as, by number.", |p, a| {
        p.global().uid = Some(count(a, 0)?);
        Ok(())
    }),
    kw("gid", "<number>", Exact(1), "Group to run as, by number.", |p, a| {
        p.global().gid = Some(count(a, 0)?);
        Ok(())
    }),
    kw("chroot", "<directory>", Exact(1), "Directory to lock the process into.", |p, a| {
        p.global().chroot = Some(PathBuf::from(a.text(0)));
        Ok(())
    }),
    kw("daemon", "", Exact(0), "Goes to the background.", |p, _| {
        p.global().daemon = true;
        Ok(())
    }),
    kw("pidfile", "<file>", Exact(1), "File that gets the process id.", |p, a| {
        p.global().pidfile = Some(PathBuf::from(a.text(0)));
        Ok(())
    }),
    kw("localpeer", "<name>", Exact(1), "Name of this node in the cluster.", |p, a| {
        p.global().localpeer = Some(a.text(0).to_owned());
        Ok(())
    }),
    kw("node", "<name>", Exact(1), "Name shown by the statistics.", |p, a| {
        if value::invalid_name_char(a.text(0)).is_some() {
            return Err(a.named(0, "only takes letters, digits, '-', '_', '.' and ':'"));
        }
        p.global().node = Some(a.text(0).to_owned());
        Ok(())
    }),
    kw("description", "<text>", AtLeast(1), "Text shown by the statistics.", |p, a| {
        p.global().description = Some(join(a));
        Ok(())
    }),
    kw("ulimit-n", "<number>", Exact(1), "Limit of open files.", |p, a| {
        p.global().ulimit_n = Some(u64::from(count(a, 1)?));
        Ok(())
    }),
    kw("hard-stop-after", "<time>", Exact(1), "Longest time of a soft stop.", |p, a| {
        p.global().hard_stop_after = Some(time(a)?);
        Ok(())
    }),
    kw("spread-checks", "<0..50>", Exact(1), "Randomness of check intervals, in percent.", |p, a| {
        p.global().spread_checks = number(a, 0..=50)? as u32;
        Ok(())
    }),
    kw("tune.bufsize", "<size>", Exact(1), "Size of a buffer in bytes.", |p, a| {
        let size = value::size(a.text(0)).map_err(|err| a.named(0, format!(": {err}")))?;
        if !(1024..=1 << 28).contains(&size) {
            return Err(a.named(0, format!("must be between 1k and 256m, but got '{}'", a.text(0))));
        }
        p.global().bufsize = Some(size as usize);
        Ok(())
    }),
    kw("maxpipes", "<number>", Exact(1), "Pipes that splicing may use.", |p, a| {
        p.global().maxpipes = Some(count(a, 0)?).filter(|&n| n > 0);
        Ok(())
    }),
    kw("nosplice", "", Exact(0), "Copies what could be spliced.", |p, _| {
        p.global().nosplice = true;
        Ok(())
    }),
    kw("tune.pipesize", "<size>", Exact(1), "Size of a pipe in bytes.", |p, a| {
        let size = value::size(a.text(0)).map_err(|err| a.named(0, format!(": {err}")))?;
        if size > 1 << 30 {
            return Err(a.named(0, format!("must be between 0 and 1g, but got '{}'", a.text(0))));
        }
        p.global().pipesize = Some(size as usize).filter(|&n| n > 0);
        Ok(())
    }),
    kw("zero-warning", "", Exact(0), "Refuses a configuration that has warnings.", |p, _| {
        p.draft.zero_warning = true;
        Ok(())
    }),
    kw("setenv", "<name> <value>", Exact(2), "Sets a variable for what follows.", |p, a| {
        let name = variable_name(a, 0)?;
        p.overlay.insert(name, Some(a.text(1).to_owned()));
        Ok(())
    }),
    kw("presetenv", "<name> <value>", Exact(2), "Sets a variable if it does not exist.", |p, a| {
        let name = variable_name(a, 0)?;
        if p.variable(&name).is_none() {
            p.overlay.insert(name, Some(a.text(1).to_owned()));
        }
        Ok(())
    }),
    kw("unsetenv", "<name>...", AtLeast(1), "Removes variables.", |p, a| {
        for index in 0..a.words.len() {
            let name = variable_name(a, index)?;
            p.overlay.insert(name, None);
        }
        Ok(())
    }),
    kw("resetenv", "[<name>...]", AtLeast(0), "Removes all variables but these.", |p, a| {
        let kept = (0..a.words.len()).map(|i| variable_name(a, i)).collect::<Result<Vec<_>, _>>()?;
        p.overlay.retain(|name, _| kept.contains(name));
        p.only_env = Some(kept);
        Ok(())
    }),
];

const LOG_USAGE: &str = log::USAGE;

fn variable_name(args: &Args<'_>, index: usize) -> Result<String, Fault> {
    let name = args.text(index);
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(good) {
        return Err(args.named(index, format!("expects the name of a variable, but got '{name}'")));
    }
    Ok(name.to_owned())
}

/// All arguments, with one space between them.
pub(crate) fn join(args: &Args<'_>) -> String {
    let words: Vec<&str> = args.words.iter().map(|word| word.text.as_str()).collect();
    words.join(" ")
}

/// The first argument as a number in a range.
pub(crate) fn number(args: &Args<'_>, range: std::ops::RangeInclusive<i64>) -> Result<i64, Fault> {
    value::number(args.text(0), range).map_err(|err| args.named(0, err))
}

/// The first argument as a number from `low`.
pub(crate) fn count(args: &Args<'_>, low: u32) -> Result<u32, Fault> {
    value::count(args.text(0), low).map_err(|err| args.named(0, err))
}

/// The first argument as a time in milliseconds.
pub(crate) fn time(args: &Args<'_>) -> Result<Duration, Fault> {
    value::time(args.text(0), Unit::Milliseconds, &format!("'{}'", args.name))
        .map_err(|err| args.fault(0, err))
}

fn stats_socket(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let text = args.text(0);
    let path = text.strip_prefix("unix@").or_else(|| text.starts_with('/').then_some(text));
    let addr = match path {
        Some("") => return Err(args.named(0, ": an empty path is not a socket")),
        // sockaddr_un holds 108 bytes, and HAProxy binds to a temporary name beside it.
        Some(path) if path.len() > 97 => {
            return Err(
                args.named(0, format!(": path '{path}' is too long for a unix socket (at most 97 bytes)"))
            );
        }
        Some(path) => StatsAddr::Unix(PathBuf::from(path)),
        None => {
            let resolve = |host: &str| parser.env.resolve(host);
            let address = value::address(text, PortRule::One, &resolve);
            let address = address.map_err(|err| args.fault(0, format!("'stats socket' : {err}")))?;
            StatsAddr::Tcp((address.ip, address.ports.map_or(0, |(port, _)| port)).into())
        }
    };
    if let Some(other) = parser.draft.global.stats_sockets.iter().find(|socket| socket.addr == addr) {
        let place = parser.place(other.pos);
        return Err(args.fault(0, format!("'stats socket {text}' is declared already at {place}")));
    }
    let mut socket = StatsSocket {
        addr,
        mode: None,
        uid: None,
        gid: None,
        level: Level::default(),
        expose_fd: false,
        pos: parser.pos(),
    };
    let subject = format!("'stats socket {text}'");
    let faults =
        options::apply_all(SOCKET_OPTIONS, &args.words[1..], &mut socket, parser.env, &subject, known::BIND);
    if faults.is_empty() {
        parser.global().stats_sockets.push(socket);
    }
    faults.into_iter().for_each(|fault| parser.alert(fault));
    Ok(())
}

/// Options of `stats socket` (manual section 5.1).
pub(crate) const SOCKET_OPTIONS: &[OptionKeyword<StatsSocket>] = &[
    OptionKeyword {
        name: "level",
        usage: "user, operator or admin",
        doc: "What its commands may do.",
        apply: |socket, text, _| {
            socket.level = match text {
                "user" => Level::User,
                "operator" => Level::Operator,
                "admin" => Level::Admin,
                _ => return Err(format!("only supports 'user', 'operator', and 'admin' (got '{text}')")),
            };
            Ok(())
        },
    },
    OptionKeyword {
        name: "mode",
        usage: "an octal mode",
        doc: "Permissions of the unix socket.",
        apply: |socket, text, _| {
            let mode =
                u32::from_str_radix(text, 8).ok().filter(|&mode| mode <= 0o7777 && !text.starts_with('+'));
            socket.mode = Some(
                mode.ok_or_else(|| format!("missing or invalid mode '{text}' (octal integer expected)"))?,
            );
            Ok(())
        },
    },
    OptionKeyword {
        name: "user",
        usage: "<user>",
        doc: "Owner of the unix socket.",
        apply: |socket, text, env| {
            socket.uid = Some(env.user(text).ok_or_else(|| format!("unknown user '{text}'"))?);
            Ok(())
        },
    },
    OptionKeyword {
        name: "group",
        usage: "<group>",
        doc: "Group of the unix socket.",
        apply: |socket, text, env| {
            socket.gid = Some(env.group(text).ok_or_else(|| format!("unknown group '{text}'"))?);
            Ok(())
        },
    },
    OptionKeyword {
        name: "uid",
        usage: "<uid>",
        doc: "Owner of the unix socket, by number.",
        apply: |socket, text, _| {
            socket.uid = Some(value::count(text, 0)?);
            Ok(())
        },
    },
    OptionKeyword {
        name: "gid",
        usage: "<gid>",
        doc: "Group of the unix socket, by number.",
        apply: |socket, text, _| {
            socket.gid = Some(value::count(text, 0)?);
            Ok(())
        },
    },
    OptionKeyword {
        name: "expose-fd",
        usage: "listeners",
        doc: "Lets a new process take the listening sockets.",
        apply: |socket, text, _| {
            if text != "listeners" {
                return Err(format!("only supports 'listeners' (got '{text}')"));
            }
            socket.expose_fd = true;
            Ok(())
        },
    },
];

/// Switches a flag on or off as `no` and `default` say; off is the default.
pub(crate) fn flag(polarity: Polarity) -> bool {
    polarity == Polarity::Set
}

//! Keywords of the `cluster` section, which is Phalanx's own.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::bind;
use crate::keyword::{Arity, CLUSTER, Keyword};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::{Announce, ClusterNode, ClusterSsl, VIP_DRAIN, VIP_LEASE, Vip};
use crate::parser::Parser;
use crate::value;

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new("node", "<name> <addr>:<port> [witness]", CLUSTER, Arity::Between(2, 3), "A member.", node),
    Keyword::new(
        "data-dir",
        "<directory>",
        CLUSTER,
        Arity::Exact(1),
        "Where the node keeps its log.",
        |p, a| {
            if p.cluster().data_dir.is_some() {
                return Err(a.named(0, "is given already"));
            }
            p.cluster().data_dir = Some(PathBuf::from(a.text(0)));
            Ok(())
        },
    ),
    Keyword::new(
        "join",
        "",
        CLUSTER,
        Arity::Exact(0),
        "This node founds no cluster; 'cluster join' on a member of one takes it in.",
        |p, _| {
            p.cluster().join = true;
            Ok(())
        },
    ),
    Keyword::new(
        "vip",
        "<name> <address>[/<length>] [interface <if>] [announce arp|listen|health-port <port>|exec <path>] \
         [prefer <node>] [on-quorum-loss release|hold] [exec-timeout <time>]",
        CLUSTER,
        Arity::AtLeast(2),
        "An address that one node holds at a time.",
        vip,
    ),
    Keyword::new(
        "vip-lease",
        "<time>",
        CLUSTER,
        Arity::Exact(1),
        "How long a holder of a VIP that falls silent keeps it, 60ms to 10s; default 350ms. The same on all nodes.",
        vip_lease,
    ),
    Keyword::new(
        "vip-drain",
        "<time>",
        CLUSTER,
        Arity::Exact(1),
        "How long connections may go on where they are after a VIP has been moved away, 1s to 7d; default 30m.",
        vip_drain,
    ),
    Keyword::new(
        "ssl",
        "crt <file> ca-file <file> [verify required|none]",
        CLUSTER,
        Arity::AtLeast(1),
        "Mutual TLS between the nodes.",
        ssl,
    ),
];

fn check_name(args: &Args<'_>) -> Result<String, Fault> {
    let name = args.text(0);
    match value::invalid_name_char(name) {
        None => Ok(name.to_owned()),
        Some(c) => {
            let fault = args.named(0, format!(": character '{c}' is not permitted in the name '{name}'"));
            Err(fault.hint("letters, digits, '-', '_', '.' and ':' are"))
        }
    }
}

fn node(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let name = check_name(args)?;
    let addr = args.text(1);
    if let Some(other) = parser.cluster().nodes.iter().find(|n| n.name == name || n.addr == addr).cloned() {
        let place = parser.place(other.pos);
        let (what, index) = if other.name == name { ("name", 0) } else { ("address", 1) };
        return Err(
            args.named(index, format!(": the {what} '{}' is used already at {place}", args.text(index)))
        );
    }
    // A host name is resolved when connecting: only its shape is looked at.
    let shape = |_: &str| Ok(std::net::Ipv4Addr::LOCALHOST.into());
    let address = value::address(addr, value::PortRule::One, &shape)
        .map_err(|err| args.named(1, format!(": {err}")).hint("expects <addr>:<port>"))?;
    if address.ip.is_unspecified() {
        let fault = args.named(1, format!(": '{addr}' is no address that other nodes could connect to"));
        return Err(fault);
    }
    let witness = match args.text(2) {
        "" => false,
        "witness" => true,
        other => {
            return Err(args
                .named(2, format!(": unknown argument '{other}'"))
                .hint("expects 'witness' or nothing"));
        }
    };
    let pos = parser.pos();
    parser.cluster().nodes.push(ClusterNode { name, addr: addr.to_owned(), witness, pos });
    Ok(())
}

const SSL_OPTIONS: [&str; 3] = ["crt", "ca-file", "verify"];

fn ssl(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    if let Some(other) = parser.cluster().ssl.as_ref().map(|ssl| ssl.pos) {
        let place = parser.place(other);
        return Err(args.fault(usize::MAX, format!("'ssl' is given already at {place}")));
    }
    let (mut crt, mut ca_file, mut verify) = (None, None, None);
    for next in (0..args.words.len()).step_by(2) {
        let (word, argument) = (args.text(next), args.text(next + 1));
        if !SSL_OPTIONS.contains(&word) {
            let fault = args.named(next, format!(": unknown argument '{word}'"));
            return Err(match known::nearest(word, SSL_OPTIONS) {
                Some(near) => fault.hint(known::did_you_mean(near)),
                None => fault.hint(format!("expects {}", crate::parser::one_of(&SSL_OPTIONS))),
            });
        }
        if argument.is_empty() {
            return Err(args.named(next, format!(": missing argument after '{word}'")));
        }
        let twice = match word {
            "crt" => crt.replace(PathBuf::from(argument)).is_some(),
            "ca-file" if argument.starts_with('@') => {
                return Err(args.fault(next + 1, known::unsupported(&format!("'ca-file {argument}'"))));
            }
            "ca-file" => ca_file.replace(PathBuf::from(argument)).is_some(),
            _ => {
                let required = match argument {
                    "required" => true,
                    "none" => false,
                    other => {
                        let fault = args.named(next + 1, format!(": unknown argument '{other}' of 'verify'"));
                        return Err(fault.hint("expects 'required' or 'none'"));
                    }
                };
                verify.replace(required).is_some()
            }
        };
        if twice {
            return Err(args.named(next, format!(": '{word}' is given twice")));
        }
    }
    let verify = verify.unwrap_or(true);
    let Some(crt) = crt else {
        let fault = args.fault(usize::MAX, "'ssl' : needs 'crt <file>'".to_owned());
        return Err(fault.hint("a PEM file with this node's certificate and private key"));
    };
    if verify && ca_file.is_none() {
        let fault = args.fault(usize::MAX, "'ssl' : needs 'ca-file <file>' to verify peers".to_owned());
        return Err(fault.hint("or 'verify none', which encrypts and lets anybody take a node's place"));
    }
    let pos = parser.pos();
    parser.cluster().ssl = Some(ClusterSsl { crt, ca_file, verify, pos });
    Ok(())
}

fn vip_lease(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let given = parser.cluster().vip_lease.is_some();
    parser.cluster().vip_lease = Some(time_within(args, given, &VIP_LEASE, "60ms and 10s")?);
    Ok(())
}

fn vip_drain(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let given = parser.cluster().vip_drain.is_some();
    parser.cluster().vip_drain = Some(time_within(args, given, &VIP_DRAIN, "1s and 7d")?);
    Ok(())
}

/// The time of a keyword that may stand once; `borders` are those of `range` in words.
fn time_within(
    args: &Args<'_>,
    given: bool,
    range: &RangeInclusive<Duration>,
    borders: &str,
) -> Result<Duration, Fault> {
    if given {
        return Err(args.named(0, ": is given already"));
    }
    let time = value::time(args.text(0), value::Unit::Milliseconds, "the time")
        .map_err(|err| args.named(0, format!(": {err}")))?;
    if !range.contains(&time) {
        return Err(args.named(0, format!(": must be between {borders}, but got '{}'", args.text(0))));
    }
    Ok(time)
}

const VIP_OPTIONS: [&str; 5] = ["interface", "announce", "prefer", "on-quorum-loss", "exec-timeout"];

/// How long a program of `announce exec` may take by default.
const EXEC_TIMEOUT: Duration = Duration::from_secs(10);

/// What it may be.
const EXEC_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

fn vip(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let name = check_name(args)?;
    let (text, length) = match args.text(1).split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (args.text(1), None),
    };
    let addr: std::net::IpAddr = text
        .parse()
        .map_err(|_| args.named(1, format!(": invalid address '{text}'")).hint("expects an IP address"))?;
    if addr.is_unspecified() || addr.is_multicast() {
        return Err(args.named(1, format!(": '{text}' is not the address of one host")));
    }
    if let Some(other) = parser.cluster().vips.iter().find(|v| v.name == name || v.addr == addr).cloned() {
        let place = parser.place(other.pos);
        let index = usize::from(other.name != name);
        return Err(args.named(index, format!(": '{}' is declared already at {place}", args.text(index))));
    }
    let widest = if addr.is_ipv4() { 32 } else { 128 };
    let prefix = match length {
        None => widest,
        Some(length) => {
            let number = value::number(length, 1..=i64::from(widest));
            number.map_err(|err| args.named(1, format!(": the prefix length {err}")))? as u8
        }
    };
    let pos = parser.pos();
    let mut vip = Vip {
        name,
        addr,
        prefix,
        interface: None,
        announce: Announce::Arp,
        prefer: None,
        hold: false,
        exec_timeout: EXEC_TIMEOUT,
        pos,
    };
    let mut next = 2;
    while let Some(word) = args.words.get(next) {
        let argument = args.text(next + 1);
        if argument.is_empty() && VIP_OPTIONS.contains(&word.text.as_str()) {
            return Err(args.named(next, format!(": missing argument after '{}'", word.text)));
        }
        match word.text.as_str() {
            "interface" => {
                let interface = bind::interface(argument);
                vip.interface =
                    Some(interface.map_err(|err| args.named(next + 1, format!(": 'interface' {err}")))?);
            }
            "announce" => {
                vip.announce = announce(args, next + 1)?;
                // What the mode needs stands behind it.
                next += usize::from(matches!(vip.announce, Announce::HealthPort(_) | Announce::Exec(_)));
            }
            "prefer" => vip.prefer = Some(argument.to_owned()),
            "on-quorum-loss" => {
                vip.hold = match argument {
                    "release" => false,
                    "hold" => true,
                    other => {
                        let fault = args.named(next + 1, format!(": unknown policy '{other}'"));
                        return Err(fault.hint("expects 'release' or 'hold'"));
                    }
                }
            }
            "exec-timeout" => {
                let time = value::time(argument, value::Unit::Milliseconds, "'exec-timeout'");
                let time = time.map_err(|err| args.named(next + 1, format!(": {err}")))?;
                if !EXEC_TIMEOUTS.contains(&time) {
                    let message =
                        format!(": 'exec-timeout' must be between 100ms and 5m, but got '{argument}'");
                    return Err(args.named(next + 1, message));
                }
                vip.exec_timeout = time;
            }
            other => {
                let fault = args.named(next, format!(": unknown argument '{other}'"));
                return Err(match known::nearest(other, VIP_OPTIONS) {
                    Some(near) => fault.hint(known::did_you_mean(near)),
                    None => fault.hint(format!("expects {}", crate::parser::one_of(&VIP_OPTIONS))),
                });
            }
        }
        next += 2;
    }
    if let Announce::HealthPort(port) = vip.announce
        && let Some(other) = parser.cluster().vips.iter().find(|v| v.announce == vip.announce).cloned()
    {
        // One port answers for one VIP: what checks it could not tell them apart.
        let place = parser.place(other.pos);
        let message =
            format!("'{}' : 'health-port {port}' is that of '{}' already at {place}", vip.name, other.name);
        return Err(args.named(0, message));
    }
    if vip.announce == Announce::Arp && vip.interface.is_none() {
        let message = format!("'{}' : 'announce arp' needs an 'interface' to put {} on", vip.name, vip.addr);
        return Err(args.named(0, message).hint("or use 'announce listen'"));
    }
    parser.cluster().vips.push(vip);
    Ok(())
}

fn announce(args: &Args<'_>, index: usize) -> Result<Announce, Fault> {
    match args.text(index) {
        "arp" => Ok(Announce::Arp),
        "listen" => Ok(Announce::Listen),
        "health-port" => match value::number(args.text(index + 1), 1..=65_535) {
            Ok(port) => Ok(Announce::HealthPort(port as u16)),
            Err(err) => Err(args.named(index + 1, format!(": the port of 'health-port' {err}"))),
        },
        "exec" => match args.text(index + 1) {
            path if path.starts_with('/') => Ok(Announce::Exec(PathBuf::from(path))),
            other => {
                let fault = args
                    .named(index + 1, format!(": 'exec' expects a path from the root, but got '{other}'"));
                Err(fault.hint("as in 'announce exec /etc/phalanx/move-route'"))
            }
        },
        other => {
            let fault = args.named(index, format!(": unknown announce mode '{other}'"));
            Err(fault.hint("expects 'arp', 'listen', 'health-port <port>' or 'exec <path>'"))
        }
    }
}

//! Keywords of the `resolvers` section (manual section 5.3.2).

use std::net::IpAddr;
use std::time::Duration;

use crate::Env;
use crate::keyword::{Arity, Keyword, RESOLVERS};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::Nameserver;
use crate::parser::Parser;
use crate::value::{self, PortRule, Unit};

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "nameserver",
        "<name> and <address>:<port>",
        RESOLVERS,
        Arity::AtLeast(2),
        "A name server.",
        nameserver,
    ),
    Keyword::new(
        "parse-resolv-conf",
        "",
        RESOLVERS,
        Arity::Exact(0),
        "Takes the name servers of /etc/resolv.conf.",
        parse_resolv_conf,
    ),
    Keyword::new("hold", "<event> and <time>", RESOLVERS, Arity::Exact(2), "How long an answer holds.", hold),
    Keyword::new(
        "resolve_retries",
        "<number>",
        RESOLVERS,
        Arity::Exact(1),
        "Queries until a resolution is given up.",
        |p, a| {
            p.resolvers().retries = value::number(a.text(0), 1..=100).map_err(|e| a.named(0, e))? as u32;
            Ok(())
        },
    ),
    Keyword::new("timeout resolve", "<time>", RESOLVERS, Arity::Exact(1), "Between resolutions.", |p, a| {
        p.resolvers().resolve = timeout(a)?;
        Ok(())
    }),
    Keyword::new(
        "timeout retry",
        "<time>",
        RESOLVERS,
        Arity::Exact(1),
        "Until a query is repeated.",
        |p, a| {
            p.resolvers().retry = timeout(a)?;
            Ok(())
        },
    ),
    Keyword::new(
        "accepted_payload_size",
        "<bytes>",
        RESOLVERS,
        Arity::Exact(1),
        "Largest answer over UDP.",
        |p, a| {
            // Less than 512 is what every server sends anyway (RFC 6891, 6.2.3).
            let size = value::number(a.text(0), 512..=65535).map_err(|e| a.named(0, e))?;
            p.resolvers().payload_size = size as u16;
            Ok(())
        },
    ),
];

fn nameserver(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let name = args.text(0).to_owned();
    if parser.resolvers().nameservers.iter().any(|n| n.name == name) {
        return Err(args.named(0, format!("'{name}' has the same name as another nameserver")));
    }
    let text = args.text(1);
    let (tcp, address) = match text.split_once('@') {
        Some(("udp" | "dgram+ip", rest)) => (false, rest.to_owned()),
        Some(("udp4" | "dgram+ipv4", rest)) => (false, format!("ipv4@{rest}")),
        Some(("udp6" | "dgram+ipv6", rest)) => (false, format!("ipv6@{rest}")),
        Some((prefix, _)) => (prefix.starts_with("tcp") || prefix.starts_with("stream"), text.to_owned()),
        None => (false, text.to_owned()),
    };
    // Who resolves names can't be found by name.
    let never = |_: &str| Err("a name server needs an address".to_owned());
    let address = value::address(&address, PortRule::One, &never)
        .map_err(|err| args.named(1, format!("'{name}' : {err}")))?;
    if address.ip.is_unspecified() {
        return Err(args.named(1, format!("'{name}' : '{text}' is not the address of one host")));
    }
    if let Some(word) = args.words.get(2) {
        let what = format!("'{}' of a nameserver", word.text);
        return Err(Fault::about(word, known::unsupported(&what)));
    }
    let port = address.ports.map_or(53, |(port, _)| port);
    let addr = (address.ip, port).into();
    parser.resolvers().nameservers.push(Nameserver { name, addr, tcp });
    check_count(parser, args)
}

/// All of them are asked at once.
const MAX_NAMESERVERS: usize = 64;

fn check_count(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    match parser.resolvers().nameservers.len() {
        0..=MAX_NAMESERVERS => Ok(()),
        _ => Err(args.named(usize::MAX, format!(": more than {MAX_NAMESERVERS} name servers in a section"))),
    }
}

fn parse_resolv_conf(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    match from_system(parser.env) {
        Ok(found) if found.is_empty() => {
            parser.warn(args.named(usize::MAX, ": /etc/resolv.conf names no name server"));
            Ok(())
        }
        Ok(found) => {
            let known = &mut parser.resolvers().nameservers;
            let new = found.into_iter().filter(|n| !known.iter().any(|k| k.name == n.name));
            let new: Vec<Nameserver> = new.collect();
            known.extend(new);
            check_count(parser, args)
        }
        Err(why) => Err(args.named(usize::MAX, format!(": /etc/resolv.conf: {why}"))),
    }
}

/// The system's name servers, each by its address for a name, as in HAProxy.
pub(crate) fn from_system(env: &dyn Env) -> Result<Vec<Nameserver>, String> {
    let text = env.read("/etc/resolv.conf", 1 << 20)?;
    let text = String::from_utf8_lossy(&text);
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()?.parse::<IpAddr>().ok()
    });
    Ok(addresses.map(|ip| Nameserver { name: ip.to_string(), addr: (ip, 53).into(), tcp: false }).collect())
}

const EVENTS: [&str; 6] = ["nx", "refused", "timeout", "other", "valid", "obsolete"];

fn hold(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let time = value::time(args.text(1), Unit::Milliseconds, "'hold'").map_err(|e| args.fault(1, e))?;
    let hold = &mut parser.resolvers().hold;
    let slot = match args.text(0) {
        "nx" => &mut hold.nx,
        "refused" => &mut hold.refused,
        "timeout" => &mut hold.timeout,
        "other" => &mut hold.other,
        "valid" => &mut hold.valid,
        "obsolete" => &mut hold.obsolete,
        other => {
            let fault = args.named(0, format!("unknown <event>: '{other}'"));
            return Err(fault.hint(format!("expects {}", crate::parser::one_of(&EVENTS))));
        }
    };
    *slot = time;
    Ok(())
}

fn timeout(args: &Args<'_>) -> Result<Duration, Fault> {
    let what = format!("'{}'", args.name);
    let time = value::time(args.text(0), Unit::Milliseconds, &what).map_err(|e| args.fault(0, e))?;
    Ok(time.max(SHORTEST))
}

/// Nothing is asked more often: 0 would be as often as the name server answers.
const SHORTEST: Duration = Duration::from_millis(10);

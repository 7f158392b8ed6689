//! `option …` lines (manual section 4.2). All but those with arguments only are switches that `no`
//! and `default` turn off.

use super::global::flag;
use crate::draft::{Placed, Settings};
use crate::keyword::{Apply, Arity, BACK, FRONT, Keyword, PROXY};
use crate::known;
use crate::line::{Args, Fault, Polarity};
use crate::model::{ConnectionMode, ForwardFor, LogFormat};
use crate::parser::Parser;
use crate::value;

use Arity::{Between, Exact};

const fn switch(
    name: &'static str,
    sections: crate::keyword::Sections,
    doc: &'static str,
    apply: Apply,
) -> Keyword {
    Keyword::new(name, "", sections, Exact(0), doc, apply).negatable()
}

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new("option httplog", "", FRONT, Between(0, 1), "Logs requests with all details.", |p, a| {
        log_format(p, a, LogFormat::Http)
    }),
    Keyword::new("option tcplog", "", FRONT, Between(0, 1), "Logs connections with all details.", |p, a| {
        log_format(p, a, LogFormat::Tcp)
    }),
    switch("option dontlognull", FRONT, "Does not log connections without data.", |p, a| {
        set(p, a, |s| &mut s.dontlognull)
    }),
    switch("option dontlog-normal", FRONT, "Does not log what went well.", |p, a| {
        set(p, a, |s| &mut s.dontlog_normal)
    }),
    switch("option logasap", FRONT, "Logs before the end of the transfer.", |p, a| {
        set(p, a, |s| &mut s.logasap)
    }),
    switch("option log-health-checks", BACK, "Logs every change of a check.", |p, a| {
        set(p, a, |s| &mut s.log_health_checks)
    }),
    switch("option per-node-checks", BACK, "Every node of a cluster checks for itself.", |p, a| {
        set(p, a, |s| &mut s.per_node_checks)
    }),
    switch("option httpclose", PROXY, "Closes both sides after each response.", |p, a| {
        connection_mode(p, a, ConnectionMode::Close)
    }),
    switch("option http-server-close", PROXY, "Closes the server side after each response.", |p, a| {
        connection_mode(p, a, ConnectionMode::ServerClose)
    }),
    switch("option http-keep-alive", PROXY, "Keeps both sides open.", |p, a| {
        connection_mode(p, a, ConnectionMode::KeepAlive)
    }),
    switch("option splice-auto", PROXY, "Splices where that is cheaper: the default.", |p, a| {
        p.settings().splice.auto = three(a.polarity);
        Ok(())
    }),
    switch(
        "option tcp-smart-accept",
        FRONT,
        "Saves an acknowledgement to clients: in HTTP the default.",
        |p, a| {
            p.settings().smart_accept = three(a.polarity);
            Ok(())
        },
    ),
    switch("option tcp-smart-connect", BACK, "Saves an acknowledgement to servers: the default.", |p, a| {
        p.settings().smart_connect = three(a.polarity);
        Ok(())
    }),
    switch("option splice-request", PROXY, "Splices all that comes from clients.", |p, a| {
        set(p, a, |s| &mut s.splice.request)
    }),
    switch("option splice-response", PROXY, "Splices all that comes from servers.", |p, a| {
        set(p, a, |s| &mut s.splice.response)
    }),
    switch("option allbackups", BACK, "Uses all backup servers at once.", |p, a| {
        set(p, a, |s| &mut s.allbackups)
    }),
    switch("option abortonclose", PROXY, "Gives up a request whose client has gone.", |p, a| {
        set(p, a, |s| &mut s.abortonclose)
    }),
    switch("option persist", BACK, "Follows persistence even to a server that is down.", |p, a| {
        set(p, a, |s| &mut s.persist)
    }),
    switch("option tcpka", PROXY, "Keep-alive probes on both sides.", |p, a| set(p, a, |s| &mut s.tcpka)),
    switch("option clitcpka", FRONT, "Keep-alive probes towards clients.", |p, a| {
        set(p, a, |s| &mut s.clitcpka)
    }),
    switch("option srvtcpka", BACK, "Keep-alive probes towards servers.", |p, a| {
        set(p, a, |s| &mut s.srvtcpka)
    }),
    Keyword::new(
        "option redispatch",
        "[<interval>]",
        BACK,
        Between(0, 1),
        "Lets a retry go to another server.",
        redispatch,
    )
    .negatable(),
    Keyword::new(
        "option forwardfor",
        "[except <network>] [header <name>] [if-none]",
        PROXY,
        Arity::AtLeast(0),
        "Tells servers the client's address in a header.",
        forwardfor,
    )
    .negatable(),
];

fn set(parser: &mut Parser<'_>, args: &Args<'_>, field: fn(&mut Settings) -> &mut bool) -> Result<(), Fault> {
    *field(parser.settings()) = flag(args.polarity);
    Ok(())
}

/// What is said; `None` = the default.
fn three(polarity: Polarity) -> Option<bool> {
    match polarity {
        Polarity::Set => Some(true),
        Polarity::No => Some(false),
        Polarity::Default => None,
    }
}

fn log_format(parser: &mut Parser<'_>, args: &Args<'_>, format: LogFormat) -> Result<(), Fault> {
    match args.text(0) {
        "" => {}
        "clf" => return Err(args.fault(0, known::unsupported(&format!("'{} clf'", args.name)))),
        other => {
            let message = format!("keyword '{}' only supports option 'clf' (got '{other}')", args.name);
            return Err(args.fault(0, message));
        }
    }
    let pos = parser.pos();
    parser.settings().log_format = Some(Placed { value: format, pos });
    Ok(())
}

fn connection_mode(parser: &mut Parser<'_>, args: &Args<'_>, mode: ConnectionMode) -> Result<(), Fault> {
    let current = &mut parser.settings().connection_mode;
    match args.polarity {
        Polarity::Set => *current = Some(mode),
        // `no option httpclose` does not undo an `option http-server-close`.
        Polarity::No | Polarity::Default if *current == Some(mode) => *current = None,
        Polarity::No | Polarity::Default => {}
    }
    Ok(())
}

fn redispatch(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    parser.settings().redispatch = match (args.polarity, args.text(0)) {
        (Polarity::No | Polarity::Default, _) => None,
        (Polarity::Set, "") => Some(-1),
        (Polarity::Set, text) => {
            let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
            let interval = value::number(text, range).map_err(|err| args.named(0, err))?;
            // 0 never redispatches.
            (interval != 0).then_some(interval as i32)
        }
    };
    Ok(())
}

fn forwardfor(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    if args.polarity != Polarity::Set {
        parser.settings().forwardfor = None;
        return Ok(());
    }
    let mut option = ForwardFor { header: "X-Forwarded-For".to_owned(), except: None, if_none: false };
    let mut next = 0;
    while let Some(word) = args.words.get(next) {
        match word.text.as_str() {
            "if-none" => {
                option.if_none = true;
                next += 1;
            }
            "except" => {
                let network = network(args.text(next + 1));
                let message = "except expects <address>[/mask] as argument";
                option.except = Some(network.ok_or_else(|| args.named(next + 1, message))?);
                next += 2;
            }
            "header" => {
                let name = args.text(next + 1);
                if !is_token(name) {
                    return Err(args.named(next + 1, "header expects <header_name> as argument"));
                }
                option.header = name.to_owned();
                next += 2;
            }
            other => {
                let message = format!(
                    "only supports optional values: 'except', 'header' and 'if-none' (got '{other}')"
                );
                return Err(args.named(next, message));
            }
        }
    }
    parser.settings().forwardfor = Some(option);
    Ok(())
}

/// `address[/length or mask]`.
fn network(text: &str) -> Option<(std::net::IpAddr, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: std::net::IpAddr = address.parse().ok()?;
    let widest = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => widest,
        Some(mask) if mask.contains('.') && widest == 32 => {
            let mask = u32::from(mask.parse::<std::net::Ipv4Addr>().ok()?);
            // Only masks of leading ones are networks.
            (mask.leading_ones() == mask.count_ones()).then(|| mask.count_ones() as u8)?
        }
        Some(length) => value::number(length, 0..=i64::from(widest)).ok()? as u8,
    };
    Some((address, length))
}

/// Whether it may name an HTTP header or a cookie (RFC 9110 token).
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

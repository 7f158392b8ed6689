//! Keywords of the `consul` section, which is Phalanx's own.

use std::time::Duration;

use crate::keyword::{Arity, CONSUL, Keyword};
use crate::line::{Args, Fault};
use crate::model::{Consistency, ConsulToken};
use crate::parser::Parser;
use crate::value::{self, PortRule, Unit};

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "address",
        "[http://|https://]<host>[:<port>]",
        CONSUL,
        Arity::Exact(1),
        "An agent of Consul; several are tried in turn.",
        address,
    ),
    Keyword::new("ca-file", "<file>", CONSUL, Arity::Exact(1), "Who signs agents' certificates.", |p, a| {
        p.consul().ca_file = Some(a.text(0).into());
        Ok(())
    }),
    Keyword::new(
        "crt",
        "<file>",
        CONSUL,
        Arity::Exact(1),
        "Certificate and key to show to agents.",
        |p, a| {
            p.consul().crt = Some(a.text(0).into());
            Ok(())
        },
    ),
    Keyword::new("token", "<secret>", CONSUL, Arity::Exact(1), "Sent as X-Consul-Token.", |p, a| {
        let text = a.text(0);
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Fault {
                message: "'token' takes visible ASCII characters only".into(),
                ..a.fault(0, "")
            });
        }
        set_token(p, a, ConsulToken::Literal(text.to_owned()))
    }),
    Keyword::new("token-file", "<file>", CONSUL, Arity::Exact(1), "Where the token stands.", |p, a| {
        set_token(p, a, ConsulToken::File(a.text(0).into()))
    }),
    Keyword::new("datacenter", "<name>", CONSUL, Arity::Exact(1), "Whose services.", |p, a| {
        p.consul().datacenter = Some(a.text(0).to_owned());
        Ok(())
    }),
    Keyword::new("namespace", "<name>", CONSUL, Arity::Exact(1), "Of Consul Enterprise.", |p, a| {
        p.consul().namespace = Some(a.text(0).to_owned());
        Ok(())
    }),
    Keyword::new("partition", "<name>", CONSUL, Arity::Exact(1), "Of Consul Enterprise.", |p, a| {
        p.consul().partition = Some(a.text(0).to_owned());
        Ok(())
    }),
    Keyword::new("near", "<node>", CONSUL, Arity::Exact(1), "The nearest to it come first.", |p, a| {
        p.consul().near = Some(a.text(0).to_owned());
        Ok(())
    }),
    Keyword::new(
        "consistency",
        "'default', 'stale' or 'consistent'",
        CONSUL,
        Arity::Exact(1),
        "How fresh answers must be.",
        |p, a| {
            p.consul().consistency = match a.text(0) {
                "default" => Consistency::Default,
                "stale" => Consistency::Stale,
                "consistent" => Consistency::Consistent,
                other => {
                    let fault = a.named(0, format!(": unknown mode '{other}'"));
                    return Err(fault.hint("expects 'default', 'stale' or 'consistent'"));
                }
            };
            Ok(())
        },
    ),
    Keyword::new("wait", "<time>", CONSUL, Arity::Exact(1), "Longest blocking query.", |p, a| {
        p.consul().wait = time(a, 0, Duration::from_secs(1), Duration::from_secs(600))?;
        Ok(())
    }),
    Keyword::new(
        "timeout connect",
        "<time>",
        CONSUL,
        Arity::Exact(1),
        "Until an agent has to answer.",
        |p, a| {
            p.consul().timeout = time(a, 0, Duration::from_millis(10), Duration::from_secs(300))?;
            Ok(())
        },
    ),
    Keyword::new(
        "hold empty",
        "<time>",
        CONSUL,
        Arity::Exact(1),
        "How long an empty answer must last.",
        |p, a| {
            p.consul().hold_empty = time(a, 0, Duration::ZERO, Duration::from_secs(86_400))?;
            Ok(())
        },
    ),
];

fn time(args: &Args<'_>, index: usize, low: Duration, high: Duration) -> Result<Duration, Fault> {
    let what = format!("'{}'", args.name);
    let time = value::time(args.text(index), Unit::Milliseconds, &what).map_err(|e| args.fault(index, e))?;
    if time < low || time > high {
        let message = format!(
            "must be between {}ms and {}s, but got '{}'",
            low.as_millis(),
            high.as_secs(),
            args.text(index)
        );
        return Err(args.named(index, message));
    }
    Ok(time)
}

fn set_token(parser: &mut Parser<'_>, args: &Args<'_>, token: ConsulToken) -> Result<(), Fault> {
    if parser.consul().token.is_some() {
        return Err(Fault {
            message: format!("'{}' : a token is given already", args.name),
            ..Fault::default()
        });
    }
    parser.consul().token = Some(token);
    Ok(())
}

fn address(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let text = args.text(0);
    let secured = text.strip_prefix("https://");
    let rest = secured.or(text.strip_prefix("http://")).unwrap_or(text);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // A name is resolved when connecting: only its shape is looked at.
    let shape = |_: &str| Ok(std::net::Ipv4Addr::LOCALHOST.into());
    let address = value::address(rest, PortRule::Optional, &shape)
        .map_err(|err| args.named(0, format!(": {err}")).hint("expects [http://|https://]<host>[:<port>]"))?;
    if address.ip.is_unspecified() || rest.contains('@') {
        return Err(args.named(0, format!(": '{text}' is not the address of an agent")));
    }
    let port = address.ports.map_or(if secured.is_some() { 8501 } else { 8500 }, |(port, _)| port);
    let host = if address.host.contains(':') { format!("[{}]", address.host) } else { address.host };
    if parser.consul().addresses.len() == MAX_ADDRESSES {
        return Err(args.named(0, format!(": more than {MAX_ADDRESSES} addresses")));
    }
    if !parser.consul().addresses.is_empty() && parser.consul().https != secured.is_some() {
        let hint = "the agents of a section are asked all by http or all by https";
        return Err(args.named(0, format!(": '{text}' is not of the same scheme as those above")).hint(hint));
    }
    parser.consul().https = secured.is_some();
    parser.consul().addresses.push(format!("{host}:{port}"));
    Ok(())
}

const MAX_ADDRESSES: usize = 16;

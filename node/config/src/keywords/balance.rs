//! `balance` and `hash-type` (manual section 4.2).

use super::option::is_token;
use crate::condition;
use crate::keyword::{Arity, BACK, Keyword};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::{Balance, HashFunction, HashMethod, HashType};
use crate::parser::Parser;
use crate::value;

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "balance",
        "<algorithm> [<arguments>]",
        BACK,
        Arity::AtLeast(1),
        "How a server is chosen.",
        |p, a| {
            let balance = balance(a)?;
            p.settings().balance = Some(balance);
            Ok(())
        },
    ),
    Keyword::new(
        "hash-type",
        "<method> [<function> [<modifier>]]",
        BACK,
        Arity::Between(1, 3),
        "How a hash maps to a server.",
        hash_type,
    ),
];

const ALGORITHMS: &[&str] =
    &["roundrobin", "static-rr", "leastconn", "first", "source", "uri", "url_param", "hdr(name)", "random"];

fn balance(args: &Args<'_>) -> Result<Balance, Fault> {
    let (name, parameter) = match args.text(0).split_once('(') {
        Some((name, rest)) => (name, Some(rest)),
        None => (args.text(0), None),
    };
    let parameter = match parameter.map(condition::arguments) {
        None => None,
        Some(Ok((list, ""))) if list.len() == 1 => list.into_iter().next(),
        Some(_) => {
            return Err(args.named(
                0,
                format!("{name} expects one argument in parentheses, but got '{}'", args.text(0)),
            ));
        }
    };
    let plain = |balance: Balance| -> Result<Balance, Fault> {
        if parameter.is_some() {
            return Err(args.named(0, format!("{name} takes no argument in parentheses")));
        }
        match args.words.get(1) {
            None => Ok(balance),
            Some(extra) => {
                Err(args.named(1, format!("{name} cannot handle unexpected argument '{}'", extra.text)))
            }
        }
    };
    match name {
        "roundrobin" => plain(Balance::RoundRobin),
        "static-rr" => plain(Balance::StaticRr),
        "leastconn" => plain(Balance::LeastConn),
        "first" => plain(Balance::First),
        "source" => plain(Balance::Source),
        "random" => {
            let draws = match &parameter {
                None => 2,
                Some(text) => value::count(text, 1)
                    .map_err(|err| args.named(0, format!("random : number of draws {err}")))?,
            };
            if let Some(extra) = args.words.get(1) {
                return Err(
                    args.named(1, format!("random cannot handle unexpected argument '{}'", extra.text))
                );
            }
            Ok(Balance::Random(draws))
        }
        "hdr" => hdr(args, parameter.as_deref().unwrap_or_default()),
        "uri" if parameter.is_none() => uri(args),
        "url_param" if parameter.is_none() => url_param(args),
        "hash" | "rdp-cookie" | "log-hash" | "sticky" | "none" => {
            Err(args.fault(0, known::unsupported(&format!("'balance {name}'"))))
        }
        _ => {
            let fault = args.named(
                0,
                format!("only supports {} (got '{}')", crate::parser::one_of(ALGORITHMS), args.text(0)),
            );
            Err(match known::nearest(name, ALGORITHMS.iter().copied()) {
                Some(near) => fault.hint(known::did_you_mean(near)),
                None => fault,
            })
        }
    }
}

fn hdr(args: &Args<'_>, name: &str) -> Result<Balance, Fault> {
    if !is_token(name) {
        return Err(args.named(0, "hdr requires an http header field name"));
    }
    let domain_only = match args.text(1) {
        "" => false,
        "use_domain_only" => true,
        other => {
            return Err(
                args.named(1, format!("hdr(name) only accepts 'use_domain_only' modifier (got '{other}')"))
            );
        }
    };
    if let Some(extra) = args.words.get(2) {
        return Err(args.named(2, format!("hdr cannot handle unexpected argument '{}'", extra.text)));
    }
    Ok(Balance::Hdr { name: name.to_ascii_lowercase(), domain_only })
}

fn uri(args: &Args<'_>) -> Result<Balance, Fault> {
    let (mut len, mut depth, mut whole, mut path_only) = (None, None, false, false);
    let mut next = 1;
    while let Some(word) = args.words.get(next) {
        match word.text.as_str() {
            name @ ("len" | "depth") => {
                let number = value::count(args.text(next + 1), 1);
                let number = number.map_err(|err| args.named(next + 1, format!("uri {name} {err}")))?;
                if name == "len" {
                    len = Some(number as usize)
                } else {
                    depth = Some(number)
                }
                next += 1;
            }
            "whole" => whole = true,
            "path-only" => path_only = true,
            other => {
                let message = format!(
                    "uri only accepts parameters 'len', 'depth', 'path-only', and 'whole' (got '{other}')"
                );
                return Err(args.named(next, message));
            }
        }
        next += 1;
    }
    Ok(Balance::Uri { len, depth, whole, path_only })
}

fn url_param(args: &Args<'_>) -> Result<Balance, Fault> {
    if args.words.len() < 2 {
        return Err(args.named(0, "url_param requires an URL parameter name"));
    }
    match args.text(2) {
        "" => Ok(Balance::UrlParam(args.text(1).to_owned())),
        "check_post" => Err(args.fault(2, known::unsupported("'balance url_param' with 'check_post'"))),
        other => Err(args.named(2, format!("url_param only accepts check_post modifier (got '{other}')"))),
    }
}

fn hash_type(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let method = match args.text(0) {
        "map-based" => HashMethod::MapBased,
        "consistent" => HashMethod::Consistent,
        other => {
            return Err(args.named(0, format!("only supports 'consistent' and 'map-based' (got '{other}')")));
        }
    };
    // Without a function HAProxy takes sdbm, and for a ring it then spreads it by the avalanche.
    let mut hash =
        HashType { method, function: HashFunction::Sdbm, avalanche: method == HashMethod::Consistent };
    if let Some(word) = args.words.get(1) {
        hash.avalanche = false;
        hash.function = match word.text.as_str() {
            "sdbm" => HashFunction::Sdbm,
            "djb2" => HashFunction::Djb2,
            "crc32" => HashFunction::Crc32,
            "none" => HashFunction::None,
            "wt6" => return Err(args.fault(1, known::unsupported("the hash function 'wt6'"))),
            other => {
                let message =
                    format!("only supports 'sdbm', 'djb2', 'crc32' or 'none' hash functions (got '{other}')");
                return Err(args.named(1, message));
            }
        };
    }
    if let Some(word) = args.words.get(2) {
        if word.text != "avalanche" {
            return Err(
                args.named(2, format!("only supports 'avalanche' as a modifier (got '{}')", word.text))
            );
        }
        hash.avalanche = true;
    }
    parser.settings().hash_type = hash;
    Ok(())
}

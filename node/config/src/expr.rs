//! Sample expressions (manual section 7): a fetch, then converters, as `src` or `req.hdr(host),lower`.

use crate::condition;
use crate::known;
use crate::model::{Converter, Expr, Fetch};

/// A sample fetch.
struct FetchKeyword {
    names: &'static [&'static str],
    /// How many arguments.
    args: usize,
    build: fn(&[String]) -> Result<Fetch, String>,
}

const FETCHES: &[FetchKeyword] = &[
    FetchKeyword { names: &["src"], args: 0, build: |_| Ok(Fetch::Src) },
    FetchKeyword { names: &["src_port"], args: 0, build: |_| Ok(Fetch::SrcPort) },
    FetchKeyword { names: &["dst"], args: 0, build: |_| Ok(Fetch::Dst) },
    FetchKeyword { names: &["dst_port"], args: 0, build: |_| Ok(Fetch::DstPort) },
    FetchKeyword {
        names: &["req.hdr", "hdr"],
        args: 1,
        build: |args| Ok(Fetch::ReqHdr(args[0].to_ascii_lowercase())),
    },
    FetchKeyword { names: &["req.cook", "cook"], args: 1, build: |args| Ok(Fetch::ReqCook(args[0].clone())) },
    FetchKeyword { names: &["path"], args: 0, build: |_| Ok(Fetch::Path) },
    FetchKeyword { names: &["url"], args: 0, build: |_| Ok(Fetch::Url) },
    FetchKeyword { names: &["query"], args: 0, build: |_| Ok(Fetch::Query) },
    FetchKeyword { names: &["method"], args: 0, build: |_| Ok(Fetch::Method) },
    FetchKeyword {
        names: &["url_param", "urlp"],
        args: 1,
        build: |args| Ok(Fetch::UrlParam(args[0].clone())),
    },
    FetchKeyword { names: &["str"], args: 1, build: |args| Ok(Fetch::Str(args[0].clone())) },
    FetchKeyword {
        names: &["int"],
        args: 1,
        build: |args| match args[0].parse() {
            Ok(number) => Ok(Fetch::Int(number)),
            Err(_) => Err(format!("expects an integer, but got '{}'", args[0])),
        },
    },
];

const CONVERTERS: &[(&str, Converter)] = &[("lower", Converter::Lower), ("upper", Converter::Upper)];

/// Parses `fetch[(args)][,converter[(args)]]...`. Errors name the part that is at fault.
pub(crate) fn parse(text: &str) -> Result<Expr, String> {
    let (name, args, mut rest) =
        call(text).map_err(|(name, err)| format!("fetch method '{name}' : {err}"))?;
    let Some(keyword) = FETCHES.iter().find(|keyword| keyword.names.contains(&name)) else {
        return Err(unknown(
            name,
            "fetch method",
            known::FETCHES,
            FETCHES.iter().flat_map(|k| k.names).copied(),
        ));
    };
    check_args(&args, keyword.args).map_err(|err| format!("fetch method '{name}' : {err}"))?;
    let fetch = (keyword.build)(&args).map_err(|err| format!("fetch method '{name}' : {err}"))?;
    let mut converters = Vec::new();
    while !rest.is_empty() {
        let Some(next) = rest.strip_prefix(',') else {
            return Err(format!("unexpected '{rest}' after '{}'", &text[..text.len() - rest.len()]));
        };
        let (name, args, after) = call(next).map_err(|(name, err)| format!("converter '{name}' : {err}"))?;
        let Some((_, converter)) = CONVERTERS.iter().find(|(known, _)| *known == name) else {
            return Err(unknown(
                name,
                "converter",
                known::CONVERTERS,
                CONVERTERS.iter().map(|(name, _)| *name),
            ));
        };
        check_args(&args, 0).map_err(|err| format!("converter '{name}' : {err}"))?;
        converters.push(converter.clone());
        rest = after;
    }
    Ok(Expr { fetch, converters, text: text.to_owned() })
}

/// A name, its arguments, and what follows.
type Call<'a> = (&'a str, Vec<String>, &'a str);

fn call(text: &str) -> Result<Call<'_>, (&str, String)> {
    let end = text.find(['(', ',']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match rest.strip_prefix('(') {
        None => Ok((name, Vec::new(), rest)),
        Some(open) => {
            let (args, rest) = condition::arguments(open).map_err(|err| (name, err))?;
            // `src()` has no argument, not an empty one.
            let args = if args == [""] { Vec::new() } else { args };
            Ok((name, args, rest))
        }
    }
}

fn check_args(args: &[String], expected: usize) -> Result<(), String> {
    match (args.len(), expected) {
        (got, expected) if got == expected && args.iter().all(|arg| !arg.is_empty()) => Ok(()),
        (0, 1) => Err("missing argument".to_owned()),
        (_, 0) => Err(format!("takes no argument, but got '{}'", args.join(","))),
        (got, 1) if got > 1 => Err(known::unsupported(&format!("an argument beyond '{}'", args[0]))),
        (got, expected) => Err(format!("expects {expected} argument(s), but got {got}")),
    }
}

fn unknown(name: &str, what: &str, names: known::Names, built: impl Iterator<Item = &'static str>) -> String {
    if names.has(name) {
        return known::unsupported(&format!("{what} '{name}'"));
    }
    match known::nearest(name, built.chain(names.iter())) {
        Some(near) => format!("unknown {what} '{name}'; {}", known::did_you_mean(near)),
        None => format!("unknown {what} '{name}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let table = [
            ("src", Fetch::Src, 0),
            ("src()", Fetch::Src, 0),
            ("hdr(X-Session-ID),lower", Fetch::ReqHdr("x-session-id".into()), 1),
            ("req.hdr(Host),lower,upper", Fetch::ReqHdr("host".into()), 2),
            ("req.cook(SID)", Fetch::ReqCook("SID".into()), 0),
            ("urlp(id)", Fetch::UrlParam("id".into()), 0),
            ("str('a,b)')", Fetch::Str("a,b)".into()), 0),
            ("int(-5)", Fetch::Int(-5), 0),
        ];
        for (text, fetch, converters) in table {
            let expr = parse(text).expect(text);
            assert_eq!((expr.fetch, expr.converters.len(), expr.text.as_str()), (fetch, converters, text));
        }
        let bad = [
            ("foo", "unknown fetch method 'foo'"),
            ("srcc", "unknown fetch method 'srcc'; did you mean 'src' maybe ?"),
            ("ssl_fc_sni", "fetch method 'ssl_fc_sni' is not supported by Phalanx yet"),
            ("src(1)", "fetch method 'src' : takes no argument, but got '1'"),
            ("req.hdr", "fetch method 'req.hdr' : missing argument"),
            ("req.hdr(a", "fetch method 'req.hdr' : missing closing parenthesis"),
            (
                "req.hdr(a,1)",
                "fetch method 'req.hdr' : an argument beyond 'a' is not supported by Phalanx yet",
            ),
            ("src,foo", "unknown converter 'foo'"),
            ("src,ipmask(24)", "converter 'ipmask' is not supported by Phalanx yet"),
            ("src,lower(1)", "converter 'lower' : takes no argument, but got '1'"),
            ("hdr(a)b", "unexpected 'b' after 'hdr(a)'"),
            ("int(x)", "fetch method 'int' : expects an integer, but got 'x'"),
            ("src,", "unknown converter ''"),
            ("", "unknown fetch method ''"),
        ];
        for (text, message) in bad {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
    }
}

//! Sample expressions (manual section 7): a fetch, then converters, as `src` or `req.hdr(host),lower`.
//!
//! The tables of `expr/fetches` and `expr/converters` know the names; here the text is taken apart and
//! the types are checked, so that evaluation can only find nothing.

mod converters;
mod fetches;

use crate::condition;
use crate::known;
use crate::model::{Expr, PatternUse, VarScope, Variable};
use crate::pattern::{Method, Output};

pub(crate) use fetches::ends_in_match;

/// Where `map` converters find their files.
pub(crate) trait Maps {
    /// The set of a file.
    fn map(&mut self, file: &str, method: Method, output: Output) -> Result<PatternUse, String>;
}

/// Parses `fetch[(args)][,converter[(args)]]...`. Errors name the part that is at fault.
pub(crate) fn parse(text: &str, maps: &mut dyn Maps) -> Result<Expr, String> {
    let (expr, rest) = prefix(text, maps)?;
    match rest {
        "" => Ok(expr),
        _ => Err(format!("unexpected '{rest}' after '{}'", &text[..text.len() - rest.len()])),
    }
}

/// Parses an expression at the start of `text`; the second is what follows it.
pub(crate) fn prefix<'a>(text: &'a str, maps: &mut dyn Maps) -> Result<(Expr, &'a str), String> {
    let (name, list, mut rest) =
        call(text).map_err(|(name, err)| format!("fetch method '{name}' : {err}"))?;
    let mut args = Arguments { list: &list, next: 0, maps };
    let fetch = match fetches::build(name, &mut args) {
        Some(fetch) => fetch.and_then(|fetch| args.finish().map(|()| fetch)),
        None => return Err(unknown(name, "fetch method", known::FETCHES, fetches::names())),
    };
    let fetch = fetch.map_err(|err| format!("fetch method '{name}' : {err}"))?;
    let mut expr = Expr { fetch, converters: Vec::new(), text: String::new() };
    while let Some(next) = rest.strip_prefix(',') {
        let (name, list, after) = call(next).map_err(|(name, err)| format!("converter '{name}' : {err}"))?;
        let mut args = Arguments { list: &list, next: 0, maps };
        let converter = match converters::build(name, &mut args) {
            Some(converter) => converter.and_then(|converter| args.finish().map(|()| converter)),
            None => return Err(unknown(name, "converter", known::CONVERTERS, converters::names())),
        };
        let converter = converter.map_err(|err| format!("converter '{name}' : {err}"))?;
        let output = expr.output();
        if !output.casts_to(converter.input()) {
            return Err(format!(
                "converter '{name}' cannot be applied to what '{}' gives ({output})",
                consumed(text, rest)
            ));
        }
        expr.converters.push(converter);
        rest = after;
    }
    expr.text = consumed(text, rest).to_owned();
    Ok((expr, rest))
}

fn consumed<'a>(text: &'a str, rest: &str) -> &'a str {
    &text[..text.len() - rest.len()]
}

/// A name, its arguments, and what follows.
type Call<'a> = (&'a str, Vec<String>, &'a str);

fn call(text: &str) -> Result<Call<'_>, (&str, String)> {
    // A name ends where it cannot go on: log-format strings put a bracket behind the last one.
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+');
    let end = text.find(|c: char| !is_name(c)).unwrap_or(text.len());
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

/// Arguments of a fetch or converter, taken one after the other.
pub(crate) struct Arguments<'a> {
    list: &'a [String],
    next: usize,
    maps: &'a mut dyn Maps,
}

impl<'a> Arguments<'a> {
    /// The next, if there is one; it may be empty.
    fn optional(&mut self) -> Option<&'a str> {
        let arg = self.list.get(self.next)?;
        self.next += 1;
        Some(arg)
    }

    /// The next, which must be there and not be empty.
    fn text(&mut self) -> Result<&'a str, String> {
        match self.optional() {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err("missing argument".to_owned()),
        }
    }

    fn parsed<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, String> {
        let text = self.text()?;
        text.parse().map_err(|_| format!("expects {what}, but got '{text}'"))
    }

    fn int(&mut self) -> Result<i64, String> {
        self.parsed("an integer")
    }

    fn optional_parsed<T: std::str::FromStr>(&mut self, what: &str) -> Result<Option<T>, String> {
        match self.list.get(self.next).map(String::as_str) {
            None => Ok(None),
            Some("") => {
                self.next += 1;
                Ok(None)
            }
            Some(_) => self.parsed(what).map(Some),
        }
    }

    fn variable(&mut self) -> Result<Variable, String> {
        variable(self.text()?)
    }

    fn finish(&self) -> Result<(), String> {
        if self.next >= self.list.len() {
            return Ok(());
        }
        Err(match self.next {
            0 => format!("takes no argument, but got '{}'", self.list.join(",")),
            _ => format!("cannot handle the argument '{}'", self.list[self.next..].join(",")),
        })
    }
}

/// A variable's name with its scope, as `txn.name`.
pub(crate) fn variable(text: &str) -> Result<Variable, String> {
    let (scope, name) = text.split_once('.').unwrap_or((text, ""));
    let scope = match scope {
        "sess" => VarScope::Sess,
        "txn" => VarScope::Txn,
        "req" => VarScope::Req,
        "res" => VarScope::Res,
        "proc" | "check" => return Err(known::unsupported(&format!("variable scope '{scope}'"))),
        _ => {
            return Err(format!(
                "invalid variable name '{text}'. A variable name must begin with its scope: 'sess', 'txn', 'req' or 'res'"
            ));
        }
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if name.is_empty() || !name.chars().all(valid) {
        return Err(format!("invalid variable name '{text}': letters, digits, '_' and '.' are allowed"));
    }
    Ok(Variable { scope, name: name.into() })
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

/// What there is beside the keywords of lines, as (what, name): sample fetches (those of stick counters
/// without their `sc_` or `src_`), converters, and the actions of each set of rules.
pub fn vocabulary() -> impl Iterator<Item = (&'static str, &'static str)> {
    let counters = fetches::counters().map(|name| ("sc_/src_", name));
    let fetches = fetches::names().map(|name| ("fetch", name)).chain(counters);
    let converters = converters::names().map(|name| ("converter", name));
    fetches.chain(converters).chain(crate::keywords::rules::actions::all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Counter, CounterFetch, CounterKey, Fetch, Named};

    struct NoMaps;

    impl Maps for NoMaps {
        fn map(&mut self, file: &str, method: Method, output: Output) -> Result<PatternUse, String> {
            let found = file == "/etc/x.map";
            let set = PatternUse { set: 0, method, ignore_case: false, output: Some(output) };
            if found { Ok(set) } else { Err(format!("failed to open pattern file <{file}>")) }
        }
    }

    fn parse(text: &str) -> Result<Expr, String> {
        super::parse(text, &mut NoMaps)
    }

    fn request(name: &str) -> Named {
        Named { response: false, name: Some(name.into()), occurrence: 0 }
    }

    #[test]
    fn expressions() {
        let tracked = |what| Counter { of: CounterKey::Tracked(0), table: None, what };
        let table = [
            ("src", Fetch::Src, 0),
            ("src()", Fetch::Src, 0),
            ("hdr(X-Session-ID),lower", Fetch::Hdr(request("x-session-id")), 1),
            ("req.hdr(Host),lower,upper", Fetch::Hdr(request("host")), 2),
            ("req.hdr(a,-1)", Fetch::Hdr(Named { occurrence: -1, ..request("a") }), 0),
            ("req.cook(SID)", Fetch::Cook(request("SID")), 0),
            ("urlp(id)", Fetch::UrlParam(Some("id".into())), 0),
            ("str('a,b)')", Fetch::Str("a,b)".into()), 0),
            ("int(-5)", Fetch::Int(-5), 0),
            ("int(-5),add(3),mul(txn.x)", Fetch::Int(-5), 2),
            ("src,ipmask(24)", Fetch::Src, 1),
            ("path,map_beg(/etc/x.map,none)", Fetch::Path, 1),
            ("sc_http_req_rate(0)", Fetch::Counter(tracked(CounterFetch::Value("http_req_rate"))), 0),
            ("sc0_http_req_rate", Fetch::Counter(tracked(CounterFetch::Value("http_req_rate"))), 0),
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
            ("urlp_val(a,b)", "fetch method 'urlp_val' : cannot handle the argument 'b'"),
            ("req.hdr(a", "fetch method 'req.hdr' : missing closing parenthesis"),
            ("req.hdr(a,x)", "fetch method 'req.hdr' : expects an occurrence, but got 'x'"),
            ("src,foo", "unknown converter 'foo'"),
            ("src,ipmask(33)", "converter 'ipmask' : expects a prefix length of at most 32, but got '33'"),
            ("src,map(/none)", "converter 'map' : failed to open pattern file </none>"),
            ("src,map_int_int(/etc/x.map,a)", "converter 'map_int_int' : unable to parse 'a'"),
            ("src,ipmask", "converter 'ipmask' : missing argument"),
            ("src,lower(1)", "converter 'lower' : takes no argument, but got '1'"),
            ("hdr(a)b", "unexpected 'b' after 'hdr(a)'"),
            ("int(x)", "fetch method 'int' : expects an integer, but got 'x'"),
            ("src,", "unknown converter ''"),
            ("", "unknown fetch method ''"),
            ("bool(1),ipmask(8)", "converter 'ipmask' cannot be applied to what 'bool(1)' gives (bool)"),
            (
                "sc_http_req_rate(3)",
                "fetch method 'sc_http_req_rate' : invalid stick table track ID '3', at most 2",
            ),
        ];
        for (text, message) in bad {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_mutated_expression_is_parsed_or_refused() {
        let seeds = [
            "req.hdr(Host,-1),lower,regsub(\"a(b)\",'\\1',g),map_str(/etc/x.map,none)",
            "sc_inc_gpc0(0,t),add(txn.n),mul(3),iif(a,b)",
            "src,ipmask(24,64),table_http_req_rate(t)",
            "date(-5,ms),http_date,field(2,' '),bytes(1,3)",
        ];
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut draw = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        let bytes: Vec<char> = "(),'\"\\[]{}%$ -+.0129aZé\0\u{7f}".chars().collect();
        for round in 0..1_500 {
            let mut text: Vec<char> = seeds[round % seeds.len()].chars().collect();
            for _ in 0..=draw(4) {
                let at = draw(text.len().max(1));
                match draw(3) {
                    0 if !text.is_empty() => drop(text.remove(at)),
                    1 => text.insert(at.min(text.len()), bytes[draw(bytes.len())]),
                    _ if !text.is_empty() => text[at] = bytes[draw(bytes.len())],
                    _ => {}
                }
            }
            let text: String = text.into_iter().collect();
            if let Ok(expr) = parse(&text) {
                assert_eq!(expr.text, text, "what is accepted is read to its end");
            }
        }
    }
}

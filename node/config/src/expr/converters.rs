//! The converters that are built (manual section 7.3.1).

use super::{Arguments, fetches, variable};
use crate::known;
use crate::model::{Arithmetic, Converter, CounterFetch, HashKind, Link, Map, Operand, Regex};
use crate::pattern::{Method, Output};

type Built = Result<Converter, String>;
type Build = fn(&mut Arguments<'_>) -> Built;

/// The table.
const CONVERTERS: &[(&str, Build)] = &[
    ("lower", |_| Ok(Converter::Lower)),
    ("upper", |_| Ok(Converter::Upper)),
    ("length", |_| Ok(Converter::Length)),
    ("ltrim", |a| Ok(Converter::Ltrim(a.text()?.into()))),
    ("rtrim", |a| Ok(Converter::Rtrim(a.text()?.into()))),
    ("bytes", |a| Ok(Converter::Bytes(a.parsed("an offset")?, a.optional_parsed("a length")?))),
    ("field", |a| part(a).map(|(n, by, count)| Converter::Field(n, by, count))),
    ("word", |a| part(a).map(|(n, by, count)| Converter::Word(n, by, count))),
    ("regsub", regsub),
    ("concat", |a| {
        let before = a.optional().unwrap_or_default().to_owned();
        let var = a.optional().filter(|name| !name.is_empty()).map(variable).transpose()?;
        Ok(Converter::Concat(before, var, a.optional().unwrap_or_default().to_owned()))
    }),
    ("strcmp", |a| Ok(Converter::Strcmp(a.variable()?))),
    ("iif", |a| {
        let yes = a.optional().unwrap_or_default().to_owned();
        Ok(Converter::Iif(yes, a.optional().unwrap_or_default().to_owned()))
    }),
    ("hex", |_| Ok(Converter::Hex)),
    ("hex2i", |_| Ok(Converter::Hex2i)),
    ("base64", |_| Ok(Converter::Base64)),
    ("b64dec", |_| Ok(Converter::Base64Decode)),
    ("url_dec", |a| {
        Ok(Converter::UrlDecode(a.optional_parsed::<i64>("an integer")?.is_some_and(|n| n != 0)))
    }),
    ("url_enc", |a| match a.optional() {
        None | Some("" | "query") => Ok(Converter::UrlEncode),
        Some(other) => Err(format!("expects 'query', but got '{other}'")),
    }),
    ("param", |a| {
        let by = |text: &str| if text.is_empty() { b"&".to_vec() } else { text.into() };
        Ok(Converter::Param(a.text()?.to_owned(), by(a.optional().unwrap_or_default())))
    }),
    ("host_only", |_| Ok(Converter::HostOnly)),
    ("port_only", |_| Ok(Converter::PortOnly)),
    ("ipmask", ipmask),
    ("add", |a| math(Arithmetic::Add, a)),
    ("sub", |a| math(Arithmetic::Sub, a)),
    ("mul", |a| math(Arithmetic::Mul, a)),
    ("div", |a| math(Arithmetic::Div, a)),
    ("mod", |a| math(Arithmetic::Mod, a)),
    ("and", |a| math(Arithmetic::And, a)),
    ("or", |a| math(Arithmetic::Or, a)),
    ("xor", |a| math(Arithmetic::Xor, a)),
    ("neg", |_| Ok(Converter::Neg)),
    ("cpl", |_| Ok(Converter::Cpl)),
    ("not", |_| Ok(Converter::Not)),
    ("bool", |_| Ok(Converter::Bool)),
    ("even", |_| Ok(Converter::Even)),
    ("odd", |_| Ok(Converter::Odd)),
    ("crc32", |a| hash(HashKind::Crc32, a)),
    ("djb2", |a| hash(HashKind::Djb2, a)),
    ("sdbm", |a| hash(HashKind::Sdbm, a)),
    ("http_date", |a| Ok(Converter::HttpDate(a.optional_parsed("an offset")?.unwrap_or(0)))),
    ("ltime", |a| {
        Ok(Converter::Time(a.text()?.to_owned(), a.optional_parsed("an offset")?.unwrap_or(0), true))
    }),
    ("utime", |a| {
        Ok(Converter::Time(a.text()?.to_owned(), a.optional_parsed("an offset")?.unwrap_or(0), false))
    }),
    ("set-var", |a| {
        let set = Converter::SetVar(a.variable()?);
        match a.optional() {
            None => Ok(set),
            Some(_) => Err(known::unsupported("a condition of 'set-var'")),
        }
    }),
    ("unset-var", |a| Ok(Converter::UnsetVar(a.variable()?))),
    ("in_table", |a| Ok(Converter::InTable(Link::some(a.optional())))),
];

/// What may follow `table_`, beside what stick counters have.
const TABLE_VALUES: &[(&str, CounterFetch)] = &[
    ("expire", CounterFetch::Expire),
    ("gpc0", CounterFetch::Value("gpc0")),
    ("gpc1", CounterFetch::Value("gpc1")),
    ("gpt0", CounterFetch::Value("gpt0")),
    ("idle", CounterFetch::Idle),
    ("server_id", CounterFetch::Value("server_id")),
];

/// What takes the index of an element first.
const TABLE_ELEMENTS: &[(&str, fetches::OfElement)] = &[
    ("clr_gpc", CounterFetch::ClearElement),
    ("gpc", |index| CounterFetch::Element("gpc", index)),
    ("gpc_rate", |index| CounterFetch::Element("gpc_rate", index)),
    ("gpt", |index| CounterFetch::Element("gpt", index)),
    ("inc_gpc", CounterFetch::IncElement),
];

/// The converter of this name; `None` when there is none.
pub(super) fn build(name: &str, args: &mut Arguments<'_>) -> Option<Built> {
    if let Some((_, build)) = CONVERTERS.iter().find(|(known, _)| *known == name) {
        return Some(build(args));
    }
    if let Some(rest) = name.strip_prefix("table_") {
        let values = TABLE_VALUES.iter().chain(fetches::VALUES);
        let plain = values.into_iter().find(|(known, _)| *known == rest).map(|(_, what)| *what);
        let element = TABLE_ELEMENTS.iter().find(|(known, _)| *known == rest).map(|(_, what)| *what);
        return match (plain, element) {
            (Some(what), _) => Some(table_value(what, args)),
            (None, Some(what)) => Some(fetches::index(args).and_then(|index| table_value(what(index), args))),
            (None, None) => None,
        };
    }
    let (method, output) = map_kind(name)?;
    Some(map(method, output, args))
}

/// `[table[,default]]`.
fn table_value(what: CounterFetch, args: &mut Arguments<'_>) -> Built {
    let table = Link::some(args.optional());
    let default = match what {
        CounterFetch::Expire | CounterFetch::Idle => args.optional_parsed("an integer")?,
        _ => None,
    };
    Ok(Converter::TableValue(table, what, default))
}

/// What `map`, `map_<match>` and `map_<match>_<output>` compare and give.
fn map_kind(name: &str) -> Option<(Method, Output)> {
    let mut parts = name.strip_prefix("map")?.split('_');
    if parts.next() != Some("") {
        return None;
    }
    let (method, output) = match parts.next() {
        None => (Method::Str, Output::Str),
        Some("regm") => (Method::Reg, Output::Regm),
        Some(word) => (Method::named(word).filter(|method| method.takes_patterns())?, Output::Str),
    };
    let output = match (parts.next(), output) {
        (None | Some("str"), output) => output,
        (Some("int"), Output::Str) => Output::Int,
        (Some("ip"), Output::Str) => Output::Ip,
        (Some("key"), Output::Str) => Output::Key,
        _ => return None,
    };
    parts.next().is_none().then_some((method, output))
}

fn map(method: Method, output: Output, args: &mut Arguments<'_>) -> Built {
    let file = args.text()?;
    let patterns = args.maps.map(file, method, output)?;
    let default = args.optional().map(str::to_owned);
    if let Some(default) = &default {
        output.check(default)?;
    }
    Ok(Converter::Map(Map { patterns, default }))
}

/// Every name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CONVERTERS.iter().map(|(name, _)| *name)
}

/// Index, delimiters and count of `field` and `word`.
fn part(args: &mut Arguments<'_>) -> Result<(i64, Vec<u8>, i64), String> {
    let index = args.int()?;
    if index == 0 {
        return Err("the index counts from 1, or from -1 at the end".to_owned());
    }
    let delimiters = args.text()?.into();
    Ok((index, delimiters, args.optional_parsed("a count")?.unwrap_or(1)))
}

fn regsub(args: &mut Arguments<'_>) -> Built {
    let (pattern, replacement) = (args.text()?, args.optional().unwrap_or_default());
    let flags = args.optional().unwrap_or_default();
    if let Some(bad) = flags.chars().find(|c| !matches!(c, 'g' | 'i')) {
        return Err(format!("flags are 'g' and 'i', but got '{bad}'"));
    }
    let regex = Regex::new(pattern, flags.contains('i'))?;
    Ok(Converter::Regsub(regex, replacement.to_owned(), flags.contains('g')))
}

fn ipmask(args: &mut Arguments<'_>) -> Built {
    let v4 = prefix(args.text()?, 32)?;
    let v6 = args.optional().map_or(Ok(128), |text| prefix(text, 128))?;
    Ok(Converter::Ipmask(v4, v6))
}

/// A prefix length, or a mask that is one.
fn prefix(text: &str, longest: u8) -> Result<u8, String> {
    if let Ok(mask) = text.parse::<std::net::Ipv4Addr>()
        && longest == 32
        && mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() >= 32
    {
        return Ok(mask.to_bits().leading_ones() as u8);
    }
    match text.parse::<u8>() {
        Ok(n) if n <= longest => Ok(n),
        _ => Err(format!("expects a prefix length of at most {longest}, but got '{text}'")),
    }
}

fn math(operation: Arithmetic, args: &mut Arguments<'_>) -> Built {
    let text = args.text()?;
    let operand = match text.parse() {
        Ok(number) => Operand::Int(number),
        Err(_) => Operand::Var(
            variable(text)
                .map_err(|_| format!("expects an integer or a variable's name, but got '{text}'"))?,
        ),
    };
    if matches!(operation, Arithmetic::Div | Arithmetic::Mod) && operand == Operand::Int(0) {
        return Err("cannot divide by 0".to_owned());
    }
    Ok(Converter::Math(operation, operand))
}

fn hash(kind: HashKind, args: &mut Arguments<'_>) -> Built {
    let avalanche = args.optional_parsed::<i64>("an integer")?.unwrap_or(0);
    Ok(Converter::Hash(kind, avalanche != 0))
}

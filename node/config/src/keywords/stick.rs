//! `stick-table` (manual section 11.1) and `stick …` rules (4.2).

use std::time::Duration;

use crate::draft::Placed;
use crate::expr;
use crate::keyword::{Apply, Arity, BACKEND, FRONTEND, Keyword, LISTEN};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::{DataType, Expr, KeyType, StickKind, StickRule, StickTable};
use crate::parser::Parser;
use crate::value::{self, Unit};

const RULE_USAGE: &str = "<key> [table <table>]";

const fn rule(name: &'static str, doc: &'static str, apply: Apply) -> Keyword {
    Keyword::new(name, RULE_USAGE, LISTEN | BACKEND, Arity::AtLeast(1), doc, apply)
}

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "stick-table",
        "type <type> size <size> [expire <time>] [nopurge] [peers <cluster>] [store <data>[,...]]",
        FRONTEND | LISTEN | BACKEND,
        Arity::AtLeast(1),
        "Declares the proxy's stick table.",
        stick_table,
    ),
    rule("stick on", "Looks a key up, and stores it for the chosen server.", |p, a| {
        stick(p, a, StickKind::On)
    }),
    rule("stick match", "Looks a key up.", |p, a| stick(p, a, StickKind::Match)),
    rule("stick store-request", "Stores a key for the chosen server.", |p, a| {
        stick(p, a, StickKind::StoreRequest)
    }),
];

fn stick(parser: &mut Parser<'_>, args: &Args<'_>, kind: StickKind) -> Result<(), Fault> {
    let (expr, table) = key_and_table(args)?;
    let table = table.unwrap_or_else(|| parser.proxy().name.clone());
    let value = StickRule { kind, expr, table };
    let pos = parser.pos();
    parser.proxy().stick_rules.push(Placed { value, pos });
    Ok(())
}

/// `<key> [table <table>]`, as `stick` and `track-sc` rules have it. Converters may follow the fetch
/// as words of their own.
pub(crate) fn key_and_table(args: &Args<'_>) -> Result<(Expr, Option<String>), Fault> {
    let is_end = |text: &str| matches!(text, "table" | "if" | "unless");
    let length = args.words.iter().take_while(|word| !is_end(&word.text)).count();
    if length == 0 {
        return Err(args.named(0, "expects a fetch method"));
    }
    let words: Vec<&str> = args.words[..length].iter().map(|word| word.text.as_str()).collect();
    let expr = expr::parse(&words.join(",")).map_err(|err| args.named(0, format!(": {err}")))?;
    let mut next = length;
    let mut table = None;
    if args.text(next) == "table" {
        let name = args.text(next + 1);
        if name.is_empty() {
            return Err(args.named(next, "expects a table name after 'table'"));
        }
        table = Some(name.to_owned());
        next += 2;
    }
    match args.text(next) {
        "" => Ok((expr, table)),
        word @ ("if" | "unless") => {
            Err(args.fault(next, known::unsupported(&format!("'{}' with a condition ('{word}')", args.name))))
        }
        other => Err(args.named(next, format!("cannot handle unexpected argument '{other}'"))),
    }
}

fn stick_table(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    if let Some(other) = &parser.proxy().stick_table {
        let pos = other.pos;
        let (kind, name) = (parser.section_name(), parser.proxy().name.clone());
        let place = parser.place(pos);
        let message =
            format!("stick-table name '{name}' conflicts with table declared in {kind} '{name}' at {place}");
        return Err(args.fault(usize::MAX, message));
    }
    let mut table = StickTable {
        key: KeyType::Ip,
        size: 0,
        expire: None,
        nopurge: false,
        peers: None,
        store: Vec::new(),
        pos: parser.pos(),
    };
    let mut key = None;
    let mut next = 0;
    while let Some(word) = args.words.get(next) {
        let argument = args.text(next + 1);
        if !matches!(word.text.as_str(), "nopurge" | "recv-only") && argument.is_empty() {
            return Err(unknown_argument(args, next).unwrap_or_else(|| {
                args.fault(next, format!("stick-table: missing argument after '{}'", word.text))
            }));
        }
        match word.text.as_str() {
            "type" => {
                let (parsed, used) = key_type(args, next + 1)?;
                key = Some(parsed);
                next += used;
            }
            "size" => {
                let size = value::size(argument);
                table.size = size
                    .map_err(|err| args.fault(next + 1, format!("stick-table: 'size' : {err}")))?
                    as usize;
                next += 1;
            }
            "expire" => {
                let expire = value::time(argument, Unit::Milliseconds, "'expire'");
                let expire = expire.map_err(|err| args.fault(next + 1, format!("stick-table: {err}")))?;
                table.expire = (!expire.is_zero()).then_some(expire);
                next += 1;
            }
            "peers" => {
                table.peers = Some(argument.to_owned());
                next += 1;
            }
            "store" => {
                store(parser, args, next + 1, &mut table.store)?;
                next += 1;
            }
            "nopurge" => table.nopurge = true,
            _ => {
                return Err(unknown_argument(args, next).unwrap_or_else(|| {
                    args.fault(next, format!("stick-table: unknown argument '{}'", word.text))
                }));
            }
        }
        next += 1;
    }
    let Some(key) = key else { return Err(args.fault(usize::MAX, "stick-table: missing type")) };
    if table.size == 0 {
        return Err(args.fault(usize::MAX, "stick-table: missing size"));
    }
    table.key = key;
    parser.proxy().stick_table = Some(table);
    Ok(())
}

/// An argument of HAProxy's that is not built, or no argument at all.
fn unknown_argument(args: &Args<'_>, index: usize) -> Option<Fault> {
    let name = args.text(index);
    if matches!(name, "write-to" | "srvkey" | "brates-factor" | "recv-only") {
        return Some(args.fault(index, known::unsupported(&format!("'stick-table' with '{name}'"))));
    }
    let names = ["type", "size", "expire", "nopurge", "peers", "store"];
    if names.contains(&name) {
        return None;
    }
    let fault = args.fault(index, format!("stick-table: unknown argument '{name}'"));
    Some(match known::nearest(name, names) {
        Some(near) => fault.hint(known::did_you_mean(near)),
        None => fault.hint(format!("expects {}", crate::parser::one_of(&names))),
    })
}

/// A key type and how many words it took.
fn key_type(args: &Args<'_>, index: usize) -> Result<(KeyType, usize), Fault> {
    match args.text(index) {
        "ip" | "ipv4" => Ok((KeyType::Ip, 1)),
        "ipv6" => Ok((KeyType::Ipv6, 1)),
        "integer" => Ok((KeyType::Integer, 1)),
        "string" if args.text(index + 1) == "len" => {
            let len = value::number(args.text(index + 2), 1..=16384);
            let len = len.map_err(|err| args.fault(index + 2, format!("stick-table: 'len' {err}")))?;
            Ok((KeyType::String(len as usize), 3))
        }
        "string" => Ok((KeyType::String(32), 1)),
        "binary" => Err(args.fault(index, known::unsupported("'stick-table type binary'"))),
        other => {
            let fault = args.fault(index, format!("stick-table: unknown type '{other}'"));
            Err(fault.hint("expects 'ip', 'ipv4', 'ipv6', 'integer' or 'string [len <length>]'"))
        }
    }
}

/// Data types that are built, and whether they take a period.
const DATA_TYPES: &[&str] = &["server_id", "gpc0", "conn_cnt", "conn_rate", "http_req_cnt", "http_req_rate"];

/// Data types of HAProxy's that are not.
const OTHER_DATA_TYPES: &[&str] = &[
    "bytes_in_cnt",
    "bytes_in_rate",
    "bytes_out_cnt",
    "bytes_out_rate",
    "conn_cur",
    "glitch_cnt",
    "glitch_rate",
    "gpc",
    "gpc0_rate",
    "gpc1",
    "gpc1_rate",
    "gpc_rate",
    "gpt",
    "gpt0",
    "http_err_cnt",
    "http_err_rate",
    "http_fail_cnt",
    "http_fail_rate",
    "server_key",
    "sess_cnt",
    "sess_rate",
];

fn store(
    parser: &mut Parser<'_>,
    args: &Args<'_>,
    index: usize,
    list: &mut Vec<DataType>,
) -> Result<(), Fault> {
    for item in args.text(index).split(',') {
        let fault = |message: String| args.fault(index, format!("stick-table: {message}"));
        let (name, period) = match item.split_once('(') {
            None => (item, None),
            Some((name, rest)) => match rest.strip_suffix(')') {
                Some(period) => (name, Some(period)),
                None => {
                    return Err(fault(format!("missing closing parenthesis after store option '{name}'")));
                }
            },
        };
        let data = match name {
            "server_id" => plain(name, period, DataType::ServerId),
            "gpc0" => plain(name, period, DataType::Gpc0),
            "conn_cnt" => plain(name, period, DataType::ConnCnt),
            "http_req_cnt" => plain(name, period, DataType::HttpReqCnt),
            "conn_rate" => rate(name, period).map(DataType::ConnRate),
            "http_req_rate" => rate(name, period).map(DataType::HttpReqRate),
            _ if OTHER_DATA_TYPES.contains(&name) => {
                Err(known::unsupported(&format!("store option '{name}'")))
            }
            _ => {
                let fault = fault(format!("unknown store option '{name}'"));
                return Err(match known::nearest(name, DATA_TYPES.iter().chain(OTHER_DATA_TYPES).copied()) {
                    Some(near) => fault.hint(known::did_you_mean(near)),
                    None => fault.hint(format!("expects {}", crate::parser::one_of(DATA_TYPES))),
                });
            }
        };
        let data = data.map_err(fault)?;
        let same = |other: &DataType| std::mem::discriminant(other) == std::mem::discriminant(&data);
        if list.iter().any(same) {
            parser.warn(fault(format!("store option '{name}' already enabled, ignored")));
        } else {
            list.push(data);
        }
    }
    Ok(())
}

fn plain(name: &str, period: Option<&str>, data: DataType) -> Result<DataType, String> {
    match period {
        None => Ok(data),
        Some(_) => Err(format!("unexpected argument to store option '{name}'")),
    }
}

fn rate(name: &str, period: Option<&str>) -> Result<Duration, String> {
    let Some(period) = period else { return Err(format!("missing argument to store option '{name}'")) };
    match value::time(period, Unit::Milliseconds, &format!("store option '{name}'"))? {
        Duration::ZERO => Err(format!("the period of store option '{name}' must be at least 1 ms")),
        period => Ok(period),
    }
}

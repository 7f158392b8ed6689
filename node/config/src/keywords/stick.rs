//! `stick-table` (manual section 11.1) and `stick …` rules (4.2).

use std::time::Duration;

use super::rules::{Line, Set};
use crate::draft::Placed;
use crate::keyword::{Apply, Arity, BACKEND, FRONTEND, Keyword, LISTEN};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::{DataType, KeyType, ServerKey, StickKind, StickRule, StickTable};
use crate::parser::Parser;
use crate::value::{self, Unit};

const RULE_USAGE: &str = "<key> [table <table>] [if|unless <condition>]";

const fn rule(name: &'static str, doc: &'static str, apply: Apply) -> Keyword {
    Keyword::new(name, RULE_USAGE, LISTEN | BACKEND, Arity::AtLeast(1), doc, apply)
}

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "stick-table",
        "type <type> size <size> [expire <time>] [nopurge] [recv-only] [peers <cluster>] [srvkey <name|addr>] \
         [brates-factor <factor>] [write-to <table>] [store <data>[,...]]",
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
    let mut line = Line::after(args, Set::Stick, 0);
    let expr = line.expr(parser, &["table"])?;
    let table = line.table(parser)?;
    let condition = line.condition(parser)?;
    let value = StickRule { kind, expr, table, condition };
    let pos = parser.pos();
    parser.proxy().stick_rules.push(Placed { value, pos });
    Ok(())
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
        write_to: None,
        recv_only: false,
        server_key: ServerKey::Name,
        brates_factor: 1,
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
            "recv-only" => table.recv_only = true,
            "srvkey" => {
                table.server_key = match argument {
                    "name" => ServerKey::Name,
                    "addr" => ServerKey::Address,
                    other => {
                        let fault = args.fault(next + 1, format!("stick-table: invalid 'srvkey' '{other}'"));
                        return Err(fault.hint("expects 'name' or 'addr'"));
                    }
                };
                next += 1;
            }
            "brates-factor" => {
                let factor = value::number(argument, 1..=1024);
                table.brates_factor = factor
                    .map_err(|err| args.fault(next + 1, format!("stick-table: 'brates-factor' {err}")))?
                    as u32;
                next += 1;
            }
            "write-to" => {
                table.write_to = Some(argument.to_owned());
                next += 1;
            }
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
    let names = [
        "type",
        "size",
        "expire",
        "nopurge",
        "recv-only",
        "peers",
        "srvkey",
        "brates-factor",
        "write-to",
        "store",
    ];
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
        kind @ ("string" | "binary") => {
            let (len, used) = match args.text(index + 1) {
                "len" => {
                    let len = value::number(args.text(index + 2), 1..=16384);
                    let len =
                        len.map_err(|err| args.fault(index + 2, format!("stick-table: 'len' {err}")))?;
                    (len as usize, 3)
                }
                _ => (32, 1),
            };
            Ok((if kind == "string" { KeyType::String(len) } else { KeyType::Binary(len) }, used))
        }
        other => {
            let fault = args.fault(index, format!("stick-table: unknown type '{other}'"));
            Err(fault.hint(
                "expects 'ip', 'ipv4', 'ipv6', 'integer', 'string [len <length>]' or 'binary [len <length>]'",
            ))
        }
    }
}

/// Data types that are built.
const DATA_TYPES: &[&str] = &[
    "bytes_in_cnt",
    "bytes_in_rate",
    "bytes_out_cnt",
    "bytes_out_rate",
    "conn_cnt",
    "conn_cur",
    "conn_rate",
    "gpc",
    "gpc0",
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
    "http_req_cnt",
    "http_req_rate",
    "server_id",
    "server_key",
    "sess_cnt",
    "sess_rate",
];

/// Data types of HAProxy's that are not.
const OTHER_DATA_TYPES: &[&str] = &["glitch_cnt", "glitch_rate"];

/// Elements of one array.
const MAX_ELEMENTS: i64 = 100;

fn store(
    parser: &mut Parser<'_>,
    args: &Args<'_>,
    index: usize,
    list: &mut Vec<DataType>,
) -> Result<(), Fault> {
    for item in items(args.text(index)) {
        let fault = |message: String| args.fault(index, format!("stick-table: {message}"));
        let (name, argument) = match item.split_once('(') {
            None => (item, None),
            Some((name, rest)) => match rest.strip_suffix(')') {
                Some(argument) => (name, Some(argument)),
                None => {
                    return Err(fault(format!("missing closing parenthesis after store option '{name}'")));
                }
            },
        };
        let Some(data) = data_type(name, argument) else {
            if OTHER_DATA_TYPES.contains(&name) {
                return Err(fault(known::unsupported(&format!("store option '{name}'"))));
            }
            let fault = fault(format!("unknown store option '{name}'"));
            return Err(match known::nearest(name, DATA_TYPES.iter().chain(OTHER_DATA_TYPES).copied()) {
                Some(near) => fault.hint(known::did_you_mean(near)),
                None => fault.hint(format!("expects {}", crate::parser::one_of(DATA_TYPES))),
            });
        };
        let data = data.map_err(fault)?;
        let same = |other: &DataType| std::mem::discriminant(other) == std::mem::discriminant(&data);
        if list.iter().any(same) {
            parser.warn(fault(format!("store option '{name}' already enabled, ignored")));
        } else {
            list.push(data);
        }
    }
    exclusive(list).map_err(|message| args.fault(index, format!("stick-table: {message}")))
}

/// The words of a `store` list: commas within parentheses are not between them.
fn items(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth <= 0
    })
}

/// An array takes the place of the legacy types of its kind: a table has the one or the other.
fn exclusive(list: &[DataType]) -> Result<(), String> {
    let array = |data: &DataType| match data {
        DataType::Gpt(_) => Some("gpt"),
        DataType::Gpc(_) => Some("gpc"),
        DataType::GpcRate(..) => Some("gpc_rate"),
        _ => None,
    };
    let legacy = |data: &DataType| match data {
        DataType::Gpt0 => Some(("gpt", "gpt0")),
        DataType::Gpc0 => Some(("gpc", "gpc0")),
        DataType::Gpc1 => Some(("gpc", "gpc1")),
        DataType::Gpc0Rate(_) => Some(("gpc_rate", "gpc0_rate")),
        DataType::Gpc1Rate(_) => Some(("gpc_rate", "gpc1_rate")),
        _ => None,
    };
    for name in list.iter().filter_map(array) {
        if let Some((_, old)) = list.iter().filter_map(legacy).find(|(of, _)| *of == name) {
            return Err(format!("'{name}' and '{old}' cannot be stored in the same table"));
        }
    }
    Ok(())
}

/// The data type of this name, if it is built.
fn data_type(name: &str, argument: Option<&str>) -> Option<Result<DataType, String>> {
    let plain = |data| match argument {
        None => Ok(data),
        Some(_) => Err(format!("unexpected argument to store option '{name}'")),
    };
    let rate = |data: fn(Duration) -> DataType| period(name, argument).map(data);
    let array = |data: fn(usize) -> DataType| elements(name, argument).map(data);
    Some(match name {
        "server_id" => plain(DataType::ServerId),
        "server_key" => plain(DataType::ServerKey),
        "gpt0" => plain(DataType::Gpt0),
        "gpt" => array(DataType::Gpt),
        "gpc0" => plain(DataType::Gpc0),
        "gpc0_rate" => rate(DataType::Gpc0Rate),
        "gpc1" => plain(DataType::Gpc1),
        "gpc1_rate" => rate(DataType::Gpc1Rate),
        "gpc" => array(DataType::Gpc),
        "gpc_rate" => {
            let (count, every) = match argument.and_then(|a| a.split_once(',')) {
                Some((count, every)) => (Some(count.trim()), Some(every.trim())),
                None => return Some(Err(format!("store option '{name}' expects (<number>,<period>)"))),
            };
            elements(name, count).and_then(|n| Ok(DataType::GpcRate(n, period(name, every)?)))
        }
        "conn_cnt" => plain(DataType::ConnCnt),
        "conn_cur" => plain(DataType::ConnCur),
        "conn_rate" => rate(DataType::ConnRate),
        "sess_cnt" => plain(DataType::SessCnt),
        "sess_rate" => rate(DataType::SessRate),
        "http_req_cnt" => plain(DataType::HttpReqCnt),
        "http_req_rate" => rate(DataType::HttpReqRate),
        "http_err_cnt" => plain(DataType::HttpErrCnt),
        "http_err_rate" => rate(DataType::HttpErrRate),
        "http_fail_cnt" => plain(DataType::HttpFailCnt),
        "http_fail_rate" => rate(DataType::HttpFailRate),
        "bytes_in_cnt" => plain(DataType::BytesInCnt),
        "bytes_in_rate" => rate(DataType::BytesInRate),
        "bytes_out_cnt" => plain(DataType::BytesOutCnt),
        "bytes_out_rate" => rate(DataType::BytesOutRate),
        _ => return None,
    })
}

fn missing(name: &str) -> String {
    format!("missing argument to store option '{name}'")
}

fn elements(name: &str, count: Option<&str>) -> Result<usize, String> {
    let count = value::number(count.ok_or_else(|| missing(name))?, 1..=MAX_ELEMENTS);
    count.map(|n| n as usize).map_err(|err| format!("number of elements of store option '{name}' {err}"))
}

fn period(name: &str, period: Option<&str>) -> Result<Duration, String> {
    let period = period.ok_or_else(|| missing(name))?;
    match value::time(period, Unit::Milliseconds, &format!("store option '{name}'"))? {
        Duration::ZERO => Err(format!("the period of store option '{name}' must be at least 1 ms")),
        period => Ok(period),
    }
}

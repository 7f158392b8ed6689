//! Log-format strings (manual section 8.2.6) as rules use them: text, `%[expression]`, `%ci` and the like.

use crate::expr::{self, Maps};
use crate::known;
use crate::model::{Format, LogVar, Piece};

/// The variables that are built.
const VARIABLES: &[(&str, LogVar)] = &[
    ("H", LogVar::Hostname),
    ("HM", LogVar::Method),
    ("HP", LogVar::Path),
    ("HPO", LogVar::PathOnly),
    ("HQ", LogVar::Query),
    ("HU", LogVar::Uri),
    ("HV", LogVar::Version),
    ("ST", LogVar::Status),
    ("T", LogVar::Gmt),
    ("Ts", LogVar::Timestamp),
    ("b", LogVar::Backend),
    ("ci", LogVar::ClientIp),
    ("cp", LogVar::ClientPort),
    ("f", LogVar::Frontend),
    ("fi", LogVar::FrontIp),
    ("fp", LogVar::FrontPort),
    ("ft", LogVar::Frontend),
    ("ms", LogVar::Milliseconds),
    ("pid", LogVar::Pid),
    ("r", LogVar::RequestLine),
    ("rt", LogVar::RequestCounter),
    ("s", LogVar::Server),
];

/// Those of HAProxy's that are not.
const OTHERS: &[&str] = &[
    "B", "CC", "CS", "ID", "Ta", "Tc", "Td", "Th", "Ti", "Tl", "Tq", "TR", "Tr", "Tt", "Tu", "Tw", "U", "ac",
    "bc", "bi", "bp", "bq", "fc", "hr", "hrl", "hs", "hsl", "lc", "o", "rc", "sc", "si", "sp", "sq", "sslc",
    "sslv", "t", "tr", "trg", "trl", "ts", "tsc",
];

/// Parses a log-format string.
pub(crate) fn parse(text: &str, maps: &mut dyn Maps) -> Result<Format, String> {
    let mut format = Format { pieces: Vec::new(), text: text.to_owned() };
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let quoted;
        (quoted, rest) = flags(rest)?;
        let piece;
        (piece, rest) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (expr, after) = expr::prefix(inner, maps)?;
                let Some(after) = after.strip_prefix(']') else {
                    return Err(match after {
                        "" => format!("missing ']' after '{}'", expr.text),
                        _ => format!("unexpected '{after}' after '{}'", expr.text),
                    });
                };
                (Piece::Expr { expr, quoted }, after)
            }
            None => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                (Piece::Var { var: variable(name)?, quoted }, after)
            }
        };
        if !literal.is_empty() {
            format.pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        format.pieces.push(piece);
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        format.pieces.push(Piece::Text(literal));
    }
    Ok(format)
}

/// `{+Q}` and what follows it.
fn flags(text: &str) -> Result<(bool, &str), String> {
    let Some(inner) = text.strip_prefix('{') else { return Ok((false, text)) };
    let Some((flags, rest)) = inner.split_once('}') else { return Err("missing '}' after '%{'".to_owned()) };
    let mut quoted = false;
    for flag in flags.split(',') {
        match flag.trim() {
            "+Q" => quoted = true,
            "-Q" => quoted = false,
            "-E" | "-X" | "" => {}
            other @ ("+E" | "+X") => return Err(known::unsupported(&format!("the flag '{other}'"))),
            other => return Err(format!("unknown flag '{other}', expects '+Q' or '-Q'")),
        }
    }
    Ok((quoted, rest))
}

fn variable(name: &str) -> Result<LogVar, String> {
    if let Some((_, var)) = VARIABLES.iter().find(|(known, _)| *known == name) {
        return Ok(*var);
    }
    if OTHERS.contains(&name) {
        return Err(known::unsupported(&format!("the format variable '{name}'")));
    }
    Err(format!(
        "no such format variable '{name}'. If you wanted to emit the '%' character verbatim, you need to use '%%'"
    ))
}

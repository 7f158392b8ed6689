//! `cookie` of a backend (manual section 4.2).

use super::option::is_token;
use crate::keyword::{Arity, BACK, Keyword};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::{Cookie, CookieMode};
use crate::parser::Parser;
use crate::value::{self, Unit};

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[Keyword::new(
    "cookie",
    "<cookie_name> [<options>]",
    BACK,
    Arity::AtLeast(1),
    "Keeps a client on its server by a cookie.",
    cookie,
)];

fn cookie(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let name = args.text(0);
    if !is_token(name) {
        return Err(args.named(0, format!("expects <cookie_name> as argument, but '{name}' is none")));
    }
    let mut cookie = Cookie {
        name: name.to_owned(),
        mode: CookieMode::Passive,
        indirect: false,
        nocache: false,
        postonly: false,
        preserve: false,
        httponly: false,
        secure: false,
        domains: Vec::new(),
        attrs: Vec::new(),
        maxidle: None,
        maxlife: None,
    };
    let mut next = 1;
    while let Some(word) = args.words.get(next) {
        match word.text.as_str() {
            "rewrite" => set_mode(&mut cookie, CookieMode::Rewrite, args, next)?,
            "insert" => set_mode(&mut cookie, CookieMode::Insert, args, next)?,
            "prefix" => set_mode(&mut cookie, CookieMode::Prefix, args, next)?,
            "indirect" => cookie.indirect = true,
            "nocache" => cookie.nocache = true,
            "postonly" => cookie.postonly = true,
            "preserve" => cookie.preserve = true,
            "httponly" => cookie.httponly = true,
            "secure" => cookie.secure = true,
            "dynamic" => return Err(args.fault(next, known::unsupported("'cookie' with 'dynamic'"))),
            "domain" | "attr" | "maxidle" | "maxlife" => {
                let value = valued(&mut cookie, &word.text, args.text(next + 1));
                if let Some(warning) = value.map_err(|err| args.fault(next + 1, err))? {
                    parser.warn(args.fault(next + 1, warning));
                }
                next += 1;
            }
            other => {
                let fault =
                    args.named(next, format!("supports {} (got '{other}')", crate::parser::one_of(OPTIONS)));
                return Err(match known::nearest(other, OPTIONS.iter().copied()) {
                    Some(near) => fault.hint(known::did_you_mean(near)),
                    None => fault,
                });
            }
        }
        next += 1;
    }
    if cookie.preserve && cookie.mode != CookieMode::Insert && !cookie.indirect {
        return Err(args.named(0, "'preserve' requires at least 'insert' or 'indirect'"));
    }
    parser.settings().cookie = Some(cookie);
    Ok(())
}

const OPTIONS: &[&str] = &[
    "rewrite", "insert", "prefix", "indirect", "nocache", "postonly", "preserve", "httponly", "secure",
    "domain", "attr", "maxidle", "maxlife",
];

fn set_mode(cookie: &mut Cookie, mode: CookieMode, args: &Args<'_>, index: usize) -> Result<(), Fault> {
    if cookie.mode != CookieMode::Passive && cookie.mode != mode {
        return Err(args.named(index, "'rewrite', 'insert' and 'prefix' modes are incompatible"));
    }
    cookie.mode = mode;
    Ok(())
}

/// An option with a value; may have a warning to give.
fn valued(cookie: &mut Cookie, option: &str, text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Err(format!("'cookie' expects a value after '{option}'"));
    }
    // Both go into a header as they are.
    let unsafe_char = |c: char| c.is_ascii_control() || c == ';' || !c.is_ascii();
    match option {
        "domain" | "attr" if text.contains(unsafe_char) => {
            return Err(format!("'cookie {option}' takes no semicolon, control or non-ASCII character"));
        }
        "domain" => {
            cookie.domains.push(text.to_owned());
            if !text.starts_with('.') || !text[1..].contains('.') {
                let why = "does not begin with a dot and have another one; most browsers would refuse it";
                return Ok(Some(format!("domain '{text}' {why}")));
            }
        }
        "attr" => cookie.attrs.push(text.to_owned()),
        _ => {
            let time = value::time(text, Unit::Seconds, &format!("'cookie {option}'"))?;
            if time.as_secs() == 0 {
                return Err(format!("'cookie {option}' must be at least 1 s"));
            }
            if option == "maxidle" { cookie.maxidle = Some(time) } else { cookie.maxlife = Some(time) }
        }
    }
    Ok(None)
}

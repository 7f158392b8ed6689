//! HTTP health checks: `option httpchk` and `http-check send` (manual section 4.2).

use super::option::is_token;
use crate::draft::HttpCheckSend;
use crate::keyword::{Arity, BACK, Keyword};
use crate::known;
use crate::line::{Args, Fault, Polarity};
use crate::model::HttpCheck;
use crate::parser::Parser;

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "option httpchk",
        "[<method>] [<uri> [<version> [<host>]]]",
        BACK,
        Arity::Between(0, 4),
        "Checks servers with an HTTP request.",
        httpchk,
    )
    .negatable(),
    Keyword::new(
        "http-check send",
        "[meth <method>] [uri <uri>] [ver <version>] [hdr Host <value>]",
        BACK,
        Arity::AtLeast(0),
        "Changes the request of 'option httpchk'.",
        http_check_send,
    ),
];

fn httpchk(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    if args.polarity != Polarity::Set {
        parser.settings().httpchk = None;
        return Ok(());
    }
    let (method, uri, version) = match args.words.len() {
        0 => ("OPTIONS", "/", "HTTP/1.0"),
        1 => ("OPTIONS", args.text(0), "HTTP/1.0"),
        2 => (args.text(0), args.text(1), "HTTP/1.0"),
        _ => (args.text(0), args.text(1), args.text(2)),
    };
    check_method(method).map_err(|err| args.named(0, err))?;
    check_uri(uri).map_err(|err| args.named(args.words.len().min(2).saturating_sub(1), err))?;
    // Before there was `http-check send`, header lines were put after the version.
    check_version(version.split("\r\n").next().unwrap_or_default()).map_err(|err| args.named(2, err))?;
    let host = (args.words.len() > 3).then(|| host_value(args, 3)).transpose()?;
    parser.settings().httpchk =
        Some(HttpCheck { method: method.to_owned(), uri: uri.to_owned(), version: version.to_owned(), host });
    Ok(())
}

fn check_method(method: &str) -> Result<(), String> {
    if is_token(method) { Ok(()) } else { Err(format!("expects an HTTP method, but got '{method}'")) }
}

fn check_uri(uri: &str) -> Result<(), String> {
    match uri.is_empty() || uri.bytes().any(|b| b <= b' ' || b == 0x7f) {
        false => Ok(()),
        true => {
            Err(format!("expects a URI without space or control character, but got '{}'", uri.escape_debug()))
        }
    }
}

fn check_version(version: &str) -> Result<(), String> {
    let number = version.strip_prefix("HTTP/").unwrap_or_default();
    match number.as_bytes() {
        [major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => Ok(()),
        _ => Err(format!("expects a version such as 'HTTP/1.1', but got '{}'", version.escape_debug())),
    }
}

fn http_check_send(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let mut send = HttpCheckSend::default();
    let mut next = 0;
    while let Some(word) = args.words.get(next) {
        let value = args.text(next + 1);
        let fault = |err: String| args.named(next + 1, format!("'{}' {err}", word.text));
        match word.text.as_str() {
            "meth" => {
                check_method(value).map_err(fault)?;
                send.method = Some(value.to_owned());
            }
            "uri" => {
                check_uri(value).map_err(fault)?;
                send.uri = Some(value.to_owned());
            }
            "ver" => {
                check_version(value).map_err(fault)?;
                send.version = Some(value.to_owned());
            }
            "hdr" => {
                send.host = Some(host(args, next + 1)?);
                next += 1;
            }
            name @ ("uri-lf" | "body" | "body-lf" | "comment") => {
                return Err(args.fault(next, known::unsupported(&format!("'http-check send' with '{name}'"))));
            }
            other => {
                return Err(
                    args.named(next, format!("expects 'meth', 'uri', 'ver' or 'hdr' (got '{other}')"))
                );
            }
        }
        next += 2;
    }
    parser.settings().http_check_send = Some(send);
    Ok(())
}

/// `Host <value>`: the one header that is built.
fn host(args: &Args<'_>, index: usize) -> Result<String, Fault> {
    let name = args.text(index);
    if name.is_empty() {
        return Err(args.named(index, "'hdr' expects <name> <value>"));
    }
    if !name.eq_ignore_ascii_case("host") {
        let message = known::unsupported(&format!("'http-check send' with the header '{name}'"));
        return Err(args.fault(index, message).hint("'hdr Host <value>' is"));
    }
    host_value(args, index + 1)
}

/// The value of a Host header, which goes into the request as it is.
fn host_value(args: &Args<'_>, index: usize) -> Result<String, Fault> {
    let value = args.text(index);
    if value.is_empty() || value.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(args.named(index, "the Host header expects a value without space or control character"));
    }
    if value.contains('%') {
        return Err(args.fault(index, known::unsupported("a log-format in the Host header of a check")));
    }
    Ok(value.to_owned())
}

//! `errorfile` (manual section 4.2): pages in the place of the built-in ones.

use std::sync::Arc;

use crate::keyword::{Arity, Keyword, PROXY};
use crate::line::{Args, Fault};
use crate::model::ErrorFile;
use crate::parser::Parser;

/// Statuses that a page can be given for.
const STATUSES: &[u16] =
    &[200, 400, 401, 403, 404, 405, 407, 408, 410, 413, 422, 425, 429, 500, 501, 502, 503, 504];

/// Longest file: HAProxy's buffer less what it keeps free.
const MAX_FILE: u64 = 15_360;

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[Keyword::new(
    "errorfile",
    "<code> <file>",
    PROXY,
    Arity::Exact(2),
    "Sends a file in the place of a built-in answer.",
    errorfile,
)];

fn errorfile(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let Some(status) = args.text(0).parse().ok().filter(|status| STATUSES.contains(status)) else {
        let list: Vec<String> = STATUSES.iter().map(u16::to_string).collect();
        let fault = args.named(0, format!(": status code '{}' is not handled", args.text(0)));
        return Err(fault.hint(format!("expects one of {}", list.join(", "))));
    };
    let name = args.text(1);
    let text = parser.env.read(name, MAX_FILE);
    let text = text.map_err(|err| args.named(1, format!(": unable to read the file '{name}' ({err})")))?;
    let page = parse(status, &text).map_err(|err| args.named(1, format!(": file '{name}': {err}")))?;
    let list = &mut parser.settings().errorfiles;
    list.retain(|other| other.status != status);
    list.push(Arc::new(page));
    Ok(())
}

/// Takes a response apart.
fn parse(status: u16, text: &[u8]) -> Result<ErrorFile, String> {
    let mut rest = text;
    let mut line = || -> Option<&[u8]> {
        let end = rest.iter().position(|b| *b == b'\n')?;
        let line = &rest[..end];
        rest = &rest[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    };
    let first = line().and_then(|line| std::str::from_utf8(line).ok()).ok_or("it has no status line")?;
    let is_11 = first.starts_with("HTTP/1.1 ");
    let code = first.get(9..12).and_then(|code| code.parse::<u16>().ok());
    if !(is_11 || first.starts_with("HTTP/1.0 ")) || code.is_none() || first.contains(char::is_control) {
        return Err(format!("it does not begin with a status line of HTTP/1.0 or HTTP/1.1 ('{first}')"));
    }
    let mut head = format!("{first}\r\n").into_bytes();
    let mut length = None;
    loop {
        let line = line().ok_or("no empty line ends its header fields")?;
        if line.is_empty() {
            break;
        }
        let field = std::str::from_utf8(line).ok().and_then(|line| line.split_once(':'));
        let token = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
        };
        let Some((name, value)) =
            field.filter(|(name, value)| token(name) && !value.contains(char::is_control))
        else {
            return Err(format!("'{}' is no header field", String::from_utf8_lossy(line)));
        };
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        match name.as_str() {
            "connection" => continue,
            "transfer-encoding" => return Err("a transfer-encoding cannot be sent from a file".to_owned()),
            "content-length" => length = Some(value.to_owned()),
            _ => {}
        }
        head.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    let body = rest.to_vec();
    if let Some(length) = &length
        && length.parse() != Ok(body.len())
    {
        return Err(format!("its content-length is '{length}', but its body has {} bytes", body.len()));
    }
    Ok(ErrorFile { status, head, body, has_length: length.is_some(), is_11 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_responses() {
        let debian =
            b"HTTP/1.0 503 Service Unavailable\r\nCache-Control: no-cache\nConnection: close\r\n\r\n<b>\n";
        let page = parse(503, debian).unwrap();
        let head = "HTTP/1.0 503 Service Unavailable\r\ncache-control: no-cache\r\n";
        assert_eq!(
            (String::from_utf8(page.head).unwrap().as_str(), page.body.as_slice()),
            (head, &b"<b>\n"[..])
        );
        assert!(!page.has_length && !page.is_11);
        assert!(parse(503, b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\nab").unwrap().has_length);
        for bad in [
            "",
            "hello\n\n",
            "HTTP/1.1 xyz\n\n",
            "HTTP/1.1 503 X\nno field\n\n",
            "HTTP/1.1 503 X\na b: c\n\n",
            "HTTP/1.1 503 X\nContent-Length: 3\n\nab",
            "HTTP/1.1 503 X\nTransfer-Encoding: chunked\n\n0",
            "HTTP/1.1 503 X\nA: b\n",
        ] {
            assert!(parse(503, bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}

//! Actions that answer in the server's place: `deny`, `tarpit`, `return`, `redirect`.

use std::sync::Arc;

use super::{Line, Set};
use crate::known;
use crate::line::Fault;
use crate::model::{Action, Answer, Body, Redirect, RedirectTo};
use crate::parser::Parser;

/// Statuses that have a page of their own.
const PAGES: &[u16] = &[200, 400, 401, 403, 404, 405, 408, 413, 422, 429, 500, 501, 502, 503, 504];

/// Largest file that is returned.
const MAX_FILE: u64 = 1 << 20;

/// `[status|deny_status <code>] [<content>]`, 403 by default, 502 for a response.
pub(super) fn deny(parser: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Answer, Fault> {
    let status = if line.set == Set::HttpRequest { 403 } else { 502 };
    refusal(parser, line, status)
}

/// As `deny`, 500 by default.
pub(super) fn tarpit(parser: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Answer, Fault> {
    refusal(parser, line, 500)
}

fn refusal(parser: &mut Parser<'_>, line: &mut Line<'_, '_>, status: u16) -> Result<Answer, Fault> {
    let mut answer = Answer { status, ..Answer::default() };
    let start = line.next;
    let words = content(parser, line, &mut answer)?;
    // As HAProxy: nothing, or only the old word for the status, means the page of the status.
    let bare = words == 0 || words == 1 && line.args.text(start) == "deny_status";
    answer.page |= bare;
    if answer.page && !PAGES.contains(&answer.status) {
        let list: Vec<String> = PAGES.iter().map(u16::to_string).collect();
        let fault = line.fault(start + 1, format!("status code '{}' has no page of its own", answer.status));
        return Err(
            fault.hint(format!("expects one of {}, or 'status' in place of 'deny_status'", list.join(", ")))
        );
    }
    Ok(answer)
}

/// `return [status <code>] [content-type <type>] [<content>] [hdr <name> <fmt>]...`.
pub(super) fn respond(parser: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Answer, Fault> {
    let mut answer = Answer { status: 200, ..Answer::default() };
    content(parser, line, &mut answer)?;
    Ok(answer)
}

/// What an answer holds; returns how many arguments there were.
fn content(parser: &mut Parser<'_>, line: &mut Line<'_, '_>, answer: &mut Answer) -> Result<usize, Fault> {
    let mut count = 0;
    while let Some(word) = line.peek() {
        line.next += 1;
        let second = answer.body.is_some();
        match word {
            "status" | "deny_status" => answer.status = code(line)?,
            "content-type" => answer.content_type = Some(line.take("a content type")?.to_owned()),
            "hdr" => {
                let name = line.take("a header's name and a log-format string")?.to_ascii_lowercase();
                let value = line.format(parser, "a log-format string after the header's name")?;
                answer.headers.push((name, value));
            }
            "string" | "lf-string" | "file" | "lf-file" if second => {
                return Err(line.fault_before(format!("'{word}' : there is a content already")));
            }
            "string" => {
                answer.body = Some(Body::Fixed(line.take("a text after 'string'")?.as_bytes().into()))
            }
            "lf-string" => {
                answer.body =
                    Some(Body::Format(line.format(parser, "a log-format string after 'lf-string'")?));
            }
            "file" => answer.body = Some(Body::Fixed(file(parser, line)?)),
            "lf-file" => {
                let text = file(parser, line)?;
                let Ok(text) = std::str::from_utf8(&text) else {
                    return Err(line.fault_before("the file is not UTF-8 text"));
                };
                let format = parser.format(text).map_err(|err| line.fault_before(err))?;
                answer.body = Some(Body::Format(format));
            }
            "default-errorfiles" => answer.page = true,
            "errorfile" | "errorfiles" => {
                return Err(line.fault_before(known::unsupported(&format!("the argument '{word}'"))));
            }
            _ => {
                line.next -= 1;
                break;
            }
        }
        count += 1;
    }
    if answer.body.is_some() && answer.content_type.is_none() {
        return Err(line.fault_before("a content needs a 'content-type'"));
    }
    Ok(count)
}

fn file(parser: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Arc<[u8]>, Fault> {
    let name = line.take("a file name")?;
    let text = parser.env.read(name, MAX_FILE);
    let text = text.map_err(|err| line.fault_before(format!("unable to read the file '{name}' ({err})")))?;
    Ok(text.into())
}

fn code(line: &mut Line<'_, '_>) -> Result<u16, Fault> {
    let text = line.take("a status code")?;
    match text.parse() {
        Ok(code @ 200..=599) => Ok(code),
        _ => Err(line.fault_before(format!("unexpected status code '{text}'")).hint("expects 200 to 599")),
    }
}

/// `set-status <code> [reason <text>]`.
pub(super) fn set_status(_: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Action, Fault> {
    let status = code(line)?;
    let mut reason = None;
    if line.peek() == Some("reason") {
        line.next += 1;
        reason = Some(line.take("a text after 'reason'")?.to_owned());
    }
    Ok(Action::SetStatus(status, reason))
}

/// `redirect <location|prefix|scheme> <fmt> [code <code>] [options]`.
pub(super) fn redirect(parser: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Redirect, Fault> {
    let (mut to, mut cookie) = (None, None);
    let (mut code, mut drop_query, mut append_slash, mut ignore_empty) = (302, false, false, false);
    while let Some(word) = line.peek() {
        line.next += 1;
        match word {
            "location" => to = Some(RedirectTo::Location(line.format(parser, "a location")?)),
            "prefix" => to = Some(RedirectTo::Prefix(line.format(parser, "a prefix")?)),
            "scheme" => to = Some(RedirectTo::Scheme(line.format(parser, "a scheme")?)),
            "code" => {
                let text = line.take("a code")?;
                code = match text.parse() {
                    Ok(code @ (301 | 302 | 303 | 307 | 308)) => code,
                    _ => {
                        let fault = line.fault_before(format!("'code': unsupported HTTP code '{text}'"));
                        return Err(fault.hint("expects 301, 302, 303, 307 or 308"));
                    }
                };
            }
            "set-cookie" => cookie = Some(format!("{}; path=/;", line.take("a cookie")?)),
            "clear-cookie" => {
                let name = line.take("a cookie")?;
                let equals = if name.contains('=') { "" } else { "=" };
                cookie = Some(format!("{name}{equals}; path=/; Max-Age=0;"));
            }
            "drop-query" => drop_query = true,
            "append-slash" => append_slash = true,
            "ignore-empty" => ignore_empty = true,
            "keep-query" => return Err(line.fault_before(known::unsupported("the argument 'keep-query'"))),
            _ => {
                let names = "'code', 'prefix', 'location', 'scheme', 'set-cookie', 'clear-cookie', 'drop-query', \
                             'ignore-empty' or 'append-slash'";
                return Err(line.fault_before(format!("expects {names} (was '{word}')")));
            }
        }
    }
    let Some(to) = to else {
        return Err(line.fault(line.next, "expects 'prefix', 'location' or 'scheme'"));
    };
    Ok(Redirect { to, code, drop_query, append_slash, cookie, ignore_empty })
}

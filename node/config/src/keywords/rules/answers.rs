//! Actions that answer in the server's place: `deny`, `tarpit`, `return`, `redirect`.

use super::Line;
use crate::known;
use crate::line::Fault;
use crate::model::Answer;
use crate::parser::Parser;

/// Statuses that have a page of their own.
const PAGES: &[u16] =
    &[200, 400, 401, 403, 404, 405, 407, 408, 410, 413, 421, 422, 425, 429, 500, 501, 502, 503, 504];

/// `[status|deny_status <code>]`.
pub(super) fn deny(_: &mut Parser<'_>, line: &mut Line<'_, '_>) -> Result<Answer, Fault> {
    let mut answer = Answer { status: 403, ..Answer::default() };
    while let Some(word) = line.peek() {
        line.next += 1;
        match word {
            "status" | "deny_status" => answer.status = status(line, PAGES)?,
            "default-errorfiles" => {}
            "content-type" | "errorfile" | "errorfiles" | "file" | "hdr" | "lf-file" | "lf-string"
            | "string" => {
                return Err(line.fault_before(known::unsupported(&format!("the argument '{word}'"))));
            }
            _ => {
                line.next -= 1;
                break;
            }
        }
    }
    Ok(answer)
}

fn status(line: &mut Line<'_, '_>, accepted: &[u16]) -> Result<u16, Fault> {
    let text = line.take("a status code")?;
    match text.parse() {
        Ok(code) if accepted.contains(&code) => Ok(code),
        _ => {
            let list: Vec<String> = accepted.iter().map(u16::to_string).collect();
            let fault = line.fault_before(format!("status code '{text}' has no page of its own"));
            Err(fault.hint(format!("expects one of {}", list.join(", "))))
        }
    }
}

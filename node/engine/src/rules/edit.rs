//! Actions that change a message.

use phalanx_config::{Action, FRAMING, Format, HeaderAction, HeaderEdit, NameMatch, Piece, Regex};

use super::reasons::reason;
use crate::h1::Rewrite;
use crate::sample::{Context, path_and_query, query, regsub_whole, render};

/// Longer than most values of headers: they are written without making room again and again.
const USUAL: usize = 128;

/// What a change needs of the message as it is, worked out before it is changed.
#[derive(Debug)]
pub struct Edit<'r> {
    action: &'r Action,
    text: &'r [u8],
}

/// Prepares a change, with `room` for what is put in; `None` = the action is none.
pub fn prepare<'r>(action: &'r Action, at: &Context<'_>, room: &'r mut Vec<u8>) -> Option<Edit<'r>> {
    let text = match (format(action), action) {
        (Some(format), _) => match format.pieces.as_slice() {
            [Piece::Text(text)] => text.as_bytes(),
            _ => {
                room.clear();
                room.reserve(USUAL);
                render(format, at, room);
                room
            }
        },
        (None, Action::SetStatus(..)) => &[],
        (None, Action::Header(HeaderAction { edit: HeaderEdit::Delete(_), .. })) => &[],
        _ => return None,
    };
    Some(Edit { action, text })
}

fn format(action: &Action) -> Option<&Format> {
    match action {
        Action::Header(header) => match &header.edit {
            HeaderEdit::Add(format) | HeaderEdit::Set(format) => Some(format),
            HeaderEdit::Replace(_, format) | HeaderEdit::ReplaceValue(_, format) => Some(format),
            HeaderEdit::Delete(_) => None,
        },
        Action::SetMethod(format)
        | Action::SetPath(format)
        | Action::SetPathQuery(format)
        | Action::SetQuery(format)
        | Action::SetUri(format)
        | Action::ReplacePath(_, format)
        | Action::ReplacePathQuery(_, format)
        | Action::ReplaceUri(_, format) => Some(format),
        _ => None,
    }
}

impl Edit<'_> {
    /// Changes the message.
    pub fn apply(&self, message: &mut Rewrite<'_>) {
        let text = self.text;
        match self.action {
            Action::Header(header) => self.header(header, message),
            Action::SetMethod(_) if is_token(text) => message.set_first(text),
            Action::SetPath(_) => {
                let (prefix, old) = split(message.target());
                let query = query(old).map(|query| [b"?", query].concat()).unwrap_or_default();
                let target = [prefix, text, &query].concat();
                message.set_target(&target);
            }
            Action::SetPathQuery(_) => {
                let target = [split(message.target()).0, text].concat();
                message.set_target(&target);
            }
            Action::SetQuery(_) => {
                let target = message.target();
                let path = &target[..memchr::memchr(b'?', target).unwrap_or(target.len())];
                let target = if text.is_empty() { path.to_vec() } else { [path, b"?", text].concat() };
                message.set_target(&target);
            }
            Action::SetUri(_) => message.set_target(text),
            Action::ReplacePath(regex, _) => {
                let (prefix, old) = split(message.target());
                let (path, query) = old.split_at(memchr::memchr(b'?', old).unwrap_or(old.len()));
                let new = regsub_whole(path, &regex.0, text).map(|new| [prefix, &new, query].concat());
                new.into_iter().for_each(|target| message.set_target(&target));
            }
            Action::ReplacePathQuery(regex, _) => {
                let (prefix, old) = split(message.target());
                let new = regsub_whole(old, &regex.0, text).map(|new| [prefix, &new].concat());
                new.into_iter().for_each(|target| message.set_target(&target));
            }
            Action::ReplaceUri(regex, _) => {
                let new = regsub_whole(message.target(), &regex.0, text);
                new.into_iter().for_each(|target| message.set_target(&target));
            }
            Action::SetStatus(status, words) => {
                message.set_status(*status, words.as_deref().unwrap_or_else(|| reason(*status)));
            }
            _ => {}
        }
    }

    fn header(&self, header: &HeaderAction, message: &mut Rewrite<'_>) {
        let (name, text) = (header.name.as_bytes(), self.text);
        match &header.edit {
            HeaderEdit::Add(_) => message.add(name, text),
            HeaderEdit::Set(_) => {
                message.remove(|other| other == name);
                message.add(name, text);
            }
            HeaderEdit::Delete(how) => {
                // A pattern may match more than its author thought of.
                let is_framing = |other: &[u8]| FRAMING.iter().any(|name| name.as_bytes() == other);
                message.remove(|other| named(other, name, how) && !is_framing(other));
            }
            HeaderEdit::Replace(regex, _) => {
                message.replace(name, |value| regsub_whole(value, &regex.0, text))
            }
            HeaderEdit::ReplaceValue(regex, _) => message.replace(name, |line| each_value(line, regex, text)),
        }
    }
}

/// Scheme and authority, and what follows them.
fn split(target: &[u8]) -> (&[u8], &[u8]) {
    let at = path_and_query(target).map_or(0, |rest| target.len() - rest.len());
    target.split_at(at)
}

fn named(name: &[u8], wanted: &[u8], how: &NameMatch) -> bool {
    match how {
        NameMatch::Str => name == wanted,
        NameMatch::Beg => name.starts_with(wanted),
        NameMatch::End => name.ends_with(wanted),
        NameMatch::Sub => memchr::memmem::find(name, wanted).is_some(),
        NameMatch::Reg(regex) => regex.0.is_match(name),
    }
}

/// A comma-separated line with those of its values replaced that match; white space around them stays.
fn each_value(line: &[u8], regex: &Regex, with: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(line.len());
    let mut changed = false;
    for (n, element) in crate::sample::split_list(line).enumerate() {
        if n > 0 {
            out.push(b',');
        }
        let value = element.trim_ascii();
        match regsub_whole(value, &regex.0, with) {
            Some(new) => {
                changed = true;
                out.extend_from_slice(&new);
            }
            None => out.extend_from_slice(element),
        }
    }
    changed.then_some(out)
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| crate::h1::is_token(*b))
}

//! The head of a message: start line and fields, parsed line by line in the read buffer.
//!
//! Offsets are relative to the start of the head, so the buffer may be moved or compacted as long as
//! the head's bytes stay together. `Head` is reused from message to message to keep its allocation.

mod line;

use super::{Error, ErrorKind, MAX_FIELDS, Parsed};

/// A range of bytes of the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }

    /// The bytes in `head`, the buffer that the span was made for.
    pub fn of(self, head: &[u8]) -> &[u8] {
        head.get(self.start as usize..self.end as usize).unwrap_or(&[])
    }

    /// Whether it is empty.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// One header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, in lower case.
    pub name: Span,
    /// Value without surrounding white space.
    pub value: Span,
    /// Which of the first 32 letters of the name were capitals, lowest bit first.
    upper: u32,
}

impl Field {
    /// A field that was not received.
    pub(crate) fn added(name: Span, value: Span) -> Field {
        Field { name, value, upper: 0 }
    }
}

/// The start line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Method of a request; version text of a response.
    pub first: Span,
    /// Target of a request; status code of a response.
    pub second: Span,
    /// Version of a request; reason of a response.
    pub third: Span,
    /// The whole line without its end.
    pub line: Span,
    /// Major and minor version as `major * 10 + minor`.
    pub version: u8,
    /// Status of a response, 0 for a request.
    pub status: u16,
}

/// A parsed head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Start line.
    pub start: Start,
    /// Fields in order.
    pub fields: Vec<Field>,
    /// Where the fields begin and where the empty line begins, for copying them at once.
    pub block: Span,
    /// Length in bytes with the empty line.
    pub len: usize,
    /// Whether every line is `name: value CRLF` as it would be written anew, so that it may be copied.
    pub canonical: bool,
    /// Bytes already known to hold no complete head.
    seen: usize,
}

impl Head {
    /// Forgets the message, keeps the allocation.
    pub fn clear(&mut self) {
        self.start = Start::default();
        self.fields.clear();
        self.block = Span::default();
        self.len = 0;
        self.canonical = true;
        self.seen = 0;
    }

    /// HTTP/1.1 or later.
    pub fn is_11(&self) -> bool {
        self.start.version >= 11
    }

    /// Values of the fields called `name` (lower case), in order.
    pub fn values<'a>(&'a self, buf: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.fields.iter().filter(move |f| f.name.of(buf) == name).map(move |f| f.value.of(buf))
    }

    /// Value of the last field called `name`.
    pub fn last<'a>(&'a self, buf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        self.fields.iter().rev().find(|f| f.name.of(buf) == name).map(|f| f.value.of(buf))
    }

    /// Puts the capitals back into the names, as far as they are known: for showing what was received.
    pub fn restore_names(&self, buf: &mut [u8]) {
        for field in &self.fields {
            if let Some(name) = buf.get_mut(field.name.start as usize..field.name.end as usize) {
                restore(name, field.upper);
            }
        }
    }

    /// Method of a request.
    pub fn method<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        self.start.first.of(buf)
    }

    /// Target of a request.
    pub fn target<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        self.start.second.of(buf)
    }

    /// Whether bytes that arrived since the last look can have completed the head.
    fn worth_parsing(&self, buf: &[u8]) -> bool {
        self.seen == 0 || buf.get(self.seen..).is_some_and(|new| memchr::memchr(b'\n', new).is_some())
    }
}

/// Parses a request head at the start of `buf`.
///
/// Call it again with more bytes after [`Parsed::Partial`]. Empty lines before the request are part
/// of the head, as RFC 9112 section 2.2 and HAProxy have it.
///
/// # Errors
/// The first thing that is wrong, with its offset.
pub fn request(buf: &mut [u8], head: &mut Head) -> Result<Parsed, Error> {
    if !head.worth_parsing(buf) {
        head.seen = buf.len();
        return Ok(Parsed::Partial);
    }
    head.clear();
    let mut at = 0;
    loop {
        match buf.get(at) {
            Some(b'\n') => at += 1,
            Some(b'\r') if buf.get(at + 1) == Some(&b'\n') => at += 2,
            Some(b'\r') if buf.len() == at + 1 => return partial(head, buf),
            Some(_) => break,
            None => return partial(head, buf),
        }
    }
    let Some(line) = next_line(buf, at)? else {
        check_method_prefix(buf, at)?;
        return partial(head, buf);
    };
    request_line(buf, at, line.end, head)?;
    head.canonical &= line.crlf;
    fields(buf, line.next, head, Fold::Refuse)
}

/// Parses a response head at the start of `buf`; see [`request`].
///
/// # Errors
/// The first thing that is wrong, with its offset.
pub fn response(buf: &mut [u8], head: &mut Head) -> Result<Parsed, Error> {
    if !head.worth_parsing(buf) {
        head.seen = buf.len();
        return Ok(Parsed::Partial);
    }
    head.clear();
    let Some(line) = next_line(buf, 0)? else {
        let n = buf.len().min(5);
        if buf.get(..n) != b"HTTP/".get(..n) {
            return Err(Error::new(ErrorKind::Version, 0));
        }
        return partial(head, buf);
    };
    status_line(buf, line.end, head)?;
    head.canonical &= line.crlf;
    fields(buf, line.next, head, Fold::Unfold)
}

/// What to do with a line that continues the field before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fold {
    Refuse,
    Unfold,
}

struct Line {
    /// One past the last byte before the line end.
    end: usize,
    /// Start of the next line.
    next: usize,
    crlf: bool,
}

fn partial(head: &mut Head, buf: &[u8]) -> Result<Parsed, Error> {
    head.seen = buf.len();
    Ok(Parsed::Partial)
}

fn next_line(buf: &[u8], at: usize) -> Result<Option<Line>, Error> {
    let Some(rest) = buf.get(at..) else { return Ok(None) };
    let Some(n) = memchr::memchr(b'\n', rest) else { return Ok(None) };
    let lf = at + n;
    if n > 0 && buf[lf - 1] == b'\r' {
        Ok(Some(Line { end: lf - 1, next: lf + 1, crlf: true }))
    } else {
        Ok(Some(Line { end: lf, next: lf + 1, crlf: false }))
    }
}

/// Refuses early what can never become a request, so that a TLS hello is not waited on.
fn check_method_prefix(buf: &[u8], at: usize) -> Result<(), Error> {
    for (i, &b) in buf.iter().enumerate().skip(at) {
        if b == b' ' {
            break;
        }
        if !is_token(b) {
            return Err(Error::new(ErrorKind::Method, i));
        }
    }
    Ok(())
}

fn request_line(buf: &[u8], start: usize, end: usize, head: &mut Head) -> Result<(), Error> {
    let line = &buf[start..end];
    let method_len = line.iter().position(|b| !is_token(*b)).unwrap_or(line.len());
    let bad_method = Error::new(ErrorKind::Method, start + method_len);
    if method_len == 0 || line.get(method_len) != Some(&b' ') {
        return Err(bad_method);
    }
    let mut target = method_len;
    while line.get(target) == Some(&b' ') {
        target += 1;
    }
    let target_end = match memchr::memchr(b' ', &line[target..]) {
        Some(n) => target + n,
        // HTTP/0.9 has no version; HAProxy refuses it as well by default.
        None => return Err(Error::new(ErrorKind::Version, end)),
    };
    if let Some(bad) = line[target..target_end].iter().position(|b| !(0x21..=0x7e).contains(b) || *b == b'#')
    {
        return Err(Error::new(ErrorKind::Target, start + target + bad));
    }
    if target == target_end {
        return Err(Error::new(ErrorKind::Target, start + target));
    }
    let mut version = target_end;
    while line.get(version) == Some(&b' ') {
        version += 1;
    }
    let number = version_number(&line[version..]).ok_or(Error::new(ErrorKind::Version, start + version))?;
    head.canonical =
        start == 0 && target == method_len + 1 && version == target_end + 1 && matches!(number, 10 | 11);
    head.start = Start {
        first: Span::new(start, start + method_len),
        second: Span::new(start + target, start + target_end),
        third: Span::new(start + version, end),
        line: Span::new(start, end),
        version: number,
        status: 0,
    };
    Ok(())
}

fn status_line(buf: &[u8], end: usize, head: &mut Head) -> Result<(), Error> {
    let line = &buf[..end];
    let version_end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let number = version_number(&line[..version_end]).ok_or(Error::new(ErrorKind::Version, 0))?;
    let code = version_end + 1;
    let bad = Error::new(ErrorKind::Status, code.min(end));
    let digits = line.get(code..code + 3).ok_or(bad)?;
    if !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0' {
        return Err(bad);
    }
    let reason = match line.get(code + 3) {
        None => code + 3,
        Some(b' ') => code + 4,
        Some(_) => return Err(bad),
    };
    if let Some(n) = line[reason..].iter().position(|b| matches!(b, 0 | b'\r')) {
        return Err(Error::new(ErrorKind::FieldValue, reason + n));
    }
    // Without the space before a missing reason it is written anew.
    head.canonical = matches!(number, 10 | 11) && line.len() > code + 3;
    head.start = Start {
        first: Span::new(0, version_end),
        second: Span::new(code, code + 3),
        third: Span::new(reason, end),
        line: Span::new(0, end),
        version: number,
        status: digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0')),
    };
    Ok(())
}

fn version_number(text: &[u8]) -> Option<u8> {
    match text {
        [b'H', b'T', b'T', b'P', b'/', major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9'] => {
            let number = (major - b'0') * 10 + (minor - b'0');
            (number >= 10).then_some(number)
        }
        _ => None,
    }
}

fn fields(buf: &mut [u8], from: usize, head: &mut Head, fold: Fold) -> Result<Parsed, Error> {
    let mut at = from;
    loop {
        while head.fields.len() < MAX_FIELDS
            && buf.get(at) != Some(&b'\r')
            && let Some(line) = line::usual(buf, at)
        {
            head.canonical &= line.canonical;
            head.fields.push(line.field);
            at = line.next;
        }
        let line = match buf.get(at..at + 2) {
            Some(b"\r\n") => Some(Line { end: at, next: at + 2, crlf: true }),
            _ => next_line(buf, at)?,
        };
        let Some(line) = line else {
            // The next look starts over.
            head.restore_names(buf);
            return partial(head, buf);
        };
        if line.end == at {
            head.canonical &= line.crlf;
            head.block = Span::new(from, at);
            head.len = line.next;
            head.seen = 0;
            return Ok(Parsed::Complete(line.next));
        }
        if matches!(buf[at], b' ' | b'\t') {
            unfold(buf, at, line.end, head, fold)?;
            at = line.next;
            continue;
        }
        if head.fields.len() == MAX_FIELDS {
            return Err(Error::new(ErrorKind::TooManyFields, at));
        }
        let field = field(buf, at, line.end, &mut head.canonical)?;
        head.canonical &= line.crlf;
        head.fields.push(field);
        at = line.next;
    }
}

fn field(buf: &mut [u8], start: usize, end: usize, canonical: &mut bool) -> Result<Field, Error> {
    let line = &mut buf[start..end];
    let (mut colon, mut upper) = (0, 0);
    loop {
        match line.get(colon) {
            Some(b':') if colon > 0 => break,
            Some(&b) if is_token(b) => {
                upper |= (u64::from(b.is_ascii_uppercase()) << colon.min(32)) as u32;
                line[colon] = b.to_ascii_lowercase();
                colon += 1;
            }
            // Also a space before the colon, and a line without a colon.
            _ => {
                restore(line, upper);
                return Err(Error::new(ErrorKind::FieldName, start + colon));
            }
        }
    }
    let raw = &line[colon + 1..];
    if raw.iter().fold(false, |bad, &b| bad | (b == 0) | (b == b'\r')) {
        let n = raw.iter().position(|b| matches!(b, 0 | b'\r')).unwrap_or(0);
        let kind = if raw[n] == 0 { ErrorKind::FieldValue } else { ErrorKind::BareCr };
        restore(line, upper);
        return Err(Error::new(kind, start + colon + 1 + n));
    }
    let (left, right) = line::blanks(raw);
    *canonical &= right == 0 && raw.first() == Some(&b' ') && left == 1;
    let value = start + colon + 1 + left;
    Ok(Field { name: Span::new(start, start + colon), value: Span::new(value, end - right), upper })
}

/// Puts capitals back where `upper` has a bit.
fn restore(name: &mut [u8], upper: u32) {
    if upper == 0 {
        return;
    }
    for (n, b) in name.iter_mut().take(32).enumerate() {
        if upper >> n & 1 == 1 {
            b.make_ascii_uppercase();
        }
    }
}

/// Makes a folded line one with the field before it by blanking the line end between them.
fn unfold(buf: &mut [u8], at: usize, end: usize, head: &mut Head, fold: Fold) -> Result<(), Error> {
    let Some(last) = head.fields.last_mut() else { return Err(Error::new(ErrorKind::FieldName, at)) };
    if fold == Fold::Refuse {
        return Err(Error::new(ErrorKind::Folded, at));
    }
    if let Some(n) = buf[at..end].iter().position(|b| matches!(b, 0 | b'\r')) {
        return Err(Error::new(ErrorKind::FieldValue, at + n));
    }
    let trailing = buf[at..end].iter().rev().take_while(|b| matches!(**b, b' ' | b'\t')).count();
    let from = last.value.end as usize;
    buf[from..at].fill(b' ');
    last.value.end = (end - trailing).max(from) as u32;
    head.canonical = false;
    Ok(())
}

/// RFC 9110 token characters.
pub(crate) fn is_token(b: u8) -> bool {
    TOKEN[b as usize]
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 256 {
        let c = b as u8;
        table[b] = c.is_ascii_alphanumeric()
            || matches!(
                c,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        b += 1;
    }
    table
};

//! DNS messages, as far as finding servers needs them (RFC 1035, 2782, 3596, 6891): a question out,
//! an answer in.
//!
//! An answer comes from anywhere: it counts only if it repeats the identifier and the question, and
//! reading it is bounded whatever it says.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::lookup::Kind;

/// Whether a name can be asked for.
pub fn is_askable(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| !label.is_empty() && label.len() <= 63 && label.is_ascii())
}

/// A question for `name`, announcing room for `payload` bytes; `None` if the name can't be asked for.
pub fn question(id: u16, name: &str, kind: Kind, payload: u16) -> Option<Vec<u8>> {
    if !is_askable(name) {
        return None;
    }
    let mut out = Vec::with_capacity(64);
    out.extend(id.to_be_bytes());
    // Recursion desired; one question, one additional record.
    out.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        out.push(label.len() as u8);
        out.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    }
    out.push(0);
    out.extend(code(kind).to_be_bytes());
    out.extend([0, 1]);
    // EDNS0: the root's name, OPT, the payload size.
    out.extend([0, 0, 41]);
    out.extend(payload.to_be_bytes());
    out.extend([0; 6]);
    Some(out)
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Addresses.
    Ips(Vec<IpAddr>),
    /// Targets of an SRV label, with the addresses that came along.
    Targets(Vec<Target>),
    /// No record of the kind.
    Empty,
    /// Not all of it fitted: ask again over TCP.
    Truncated,
    /// An error code.
    Error(u8),
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host, in lower case, without the last dot.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The weight, as in the record.
    pub weight: u16,
    /// Addresses from the additional records.
    pub ips: Vec<IpAddr>,
}

/// Why a message is none that answers the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is the answer to something else, maybe late.
    Other,
    /// It is broken.
    Broken,
    /// Its chain of aliases leads nowhere.
    Alias,
}

/// Records that are read of one message.
const MAX_RECORDS: usize = 8192;

/// Longest chain of aliases.
const MAX_ALIASES: usize = 16;

/// Reads the answer to a question.
///
/// # Errors
/// It is not one.
pub fn answer(bytes: &[u8], id: u16, name: &str, kind: Kind) -> Result<Answer, Unfit> {
    let mut reader = Reader { bytes, at: 0 };
    let header: [u16; 6] =
        [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    let [got, flags, questions, answers, authorities, additional] = header;
    if got != id || flags & 0x8000 == 0 || questions != 1 {
        return Err(Unfit::Other);
    }
    let asked = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if reader.name()? != asked || reader.u16()? != code(kind) || reader.u16()? != 1 {
        return Err(Unfit::Other);
    }
    if flags & 0x0200 != 0 {
        return Ok(Answer::Truncated);
    }
    match (flags & 0xf) as u8 {
        0 => {}
        error => return Ok(Answer::Error(error)),
    }
    let total = usize::from(answers) + usize::from(authorities) + usize::from(additional);
    let mut records = Vec::new();
    for n in 0..total.min(MAX_RECORDS) {
        match reader.record() {
            Ok(record) => records.push((n < usize::from(answers), record)),
            // What comes after the answers is a courtesy.
            Err(_) if n >= usize::from(answers) => break,
            Err(unfit) => return Err(unfit),
        }
    }
    judge(&records, asked, kind)
}

fn judge(records: &[(bool, Record)], asked: String, kind: Kind) -> Result<Answer, Unfit> {
    let answers = || records.iter().filter(|(answer, _)| *answer).map(|(_, record)| record);
    let mut name = asked;
    for _ in 0..MAX_ALIASES {
        let alias = answers().find_map(|r| match &r.data {
            Data::Alias(to) if r.name == name => Some(to.clone()),
            _ => None,
        });
        match alias {
            Some(to) => name = to,
            None => break,
        }
    }
    let own = || answers().filter(|r| r.name == name);
    if kind == Kind::Srv {
        let addresses = |host: &str| -> Vec<IpAddr> {
            let all = records.iter().filter(|(_, r)| r.name == host);
            all.filter_map(|(_, r)| if let Data::Ip(ip) = r.data { Some(ip) } else { None }).collect()
        };
        let targets: Vec<Target> = own()
            .filter_map(|r| match &r.data {
                // A lone dot says that there is no such service (RFC 2782).
                Data::Srv { host, port, weight } if !host.is_empty() => {
                    Some(Target { host: host.clone(), port: *port, weight: *weight, ips: addresses(host) })
                }
                _ => None,
            })
            .collect();
        return Ok(if targets.is_empty() { Answer::Empty } else { Answer::Targets(targets) });
    }
    let ips: Vec<IpAddr> = own()
        .filter_map(|r| match r.data {
            Data::Ip(ip) if ip.is_ipv4() == (kind == Kind::A) => Some(ip),
            _ => None,
        })
        .collect();
    match ips.is_empty() {
        false => Ok(Answer::Ips(ips)),
        true if answers().any(|r| matches!(r.data, Data::Alias(_)) && r.name == name) => Err(Unfit::Alias),
        true => Ok(Answer::Empty),
    }
}

fn code(kind: Kind) -> u16 {
    match kind {
        Kind::A => 1,
        Kind::Aaaa => 28,
        Kind::Srv => 33,
    }
}

struct Record {
    name: String,
    data: Data,
}

enum Data {
    Ip(IpAddr),
    Srv { host: String, port: u16, weight: u16 },
    Alias(String),
    Other,
}

/// Reads a message from front to back.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Unfit> {
        let end = self.at + N;
        let taken = self.bytes.get(self.at..end).and_then(|s| s.try_into().ok()).ok_or(Unfit::Broken)?;
        self.at = end;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Unfit> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    /// A name in lower case, its labels joined by dots. Every pointer has to lead further to the
    /// front, so that reading ends.
    fn name(&mut self) -> Result<String, Unfit> {
        let mut name = String::new();
        let (mut at, mut lowest, mut end) = (self.at, self.at, None);
        loop {
            let length = *self.bytes.get(at).ok_or(Unfit::Broken)?;
            match length {
                0 => break,
                1..=63 => {
                    let label = self.bytes.get(at + 1..at + 1 + usize::from(length)).ok_or(Unfit::Broken)?;
                    if !name.is_empty() {
                        name.push('.');
                    }
                    for &b in label {
                        match b {
                            b'!'..=b'~' if b != b'.' && b != b'\\' => {
                                name.push(char::from(b.to_ascii_lowercase()))
                            }
                            // As in zone files, so that no two names look alike.
                            _ => drop(write!(name, "\\{b:03}")),
                        }
                    }
                    if name.len() > 1024 {
                        return Err(Unfit::Broken);
                    }
                    at += 1 + usize::from(length);
                }
                192.. => {
                    let low = *self.bytes.get(at + 1).ok_or(Unfit::Broken)?;
                    end.get_or_insert(at + 2);
                    at = usize::from(length & 0x3f) << 8 | usize::from(low);
                    if at >= lowest {
                        return Err(Unfit::Broken);
                    }
                    lowest = at;
                }
                _ => return Err(Unfit::Broken),
            }
        }
        self.at = end.unwrap_or(at + 1);
        Ok(name)
    }

    fn record(&mut self) -> Result<Record, Unfit> {
        let name = self.name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        let _ttl: [u8; 4] = self.take()?;
        let length = usize::from(self.u16()?);
        let end = self.at + length;
        if end > self.bytes.len() {
            return Err(Unfit::Broken);
        }
        let data = match (kind, class) {
            (1, 1) if length == 4 => Data::Ip(IpAddr::from(self.take::<4>()?)),
            (28, 1) if length == 16 => Data::Ip(IpAddr::from(self.take::<16>()?)),
            (5, 1) => Data::Alias(self.name()?),
            (33, 1) => {
                let (_priority, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
                Data::Srv { host: self.name()?, port, weight }
            }
            (1 | 28, 1) => return Err(Unfit::Broken),
            _ => Data::Other,
        };
        if !matches!(data, Data::Other) && self.at != end {
            return Err(Unfit::Broken);
        }
        self.at = end;
        Ok(Record { name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to `question` with these flags and records, names written out.
    fn reply(question: &[u8], flags: u16, records: &[(&str, u16, Vec<u8>)], answers: u16) -> Vec<u8> {
        let mut out = question[..2].to_vec();
        out.extend((0x8180 | flags).to_be_bytes());
        out.extend([0, 1]);
        out.extend(answers.to_be_bytes());
        out.extend([0, 0]);
        out.extend((records.len() as u16 - answers).to_be_bytes());
        let end = question.len() - 11;
        out.extend(&question[12..end]);
        for (name, kind, data) in records {
            // "@" is the name that was asked for.
            out.extend(if *name == "@" { vec![0xc0, 12] } else { encoded(name) });
            out.extend(kind.to_be_bytes());
            out.extend([0, 1, 0, 0, 0, 5]);
            out.extend((data.len() as u16).to_be_bytes());
            out.extend(data);
        }
        out
    }

    fn encoded(name: &str) -> Vec<u8> {
        let mut out: Vec<u8> =
            name.split('.').flat_map(|l| std::iter::once(l.len() as u8).chain(l.bytes())).collect();
        out.push(0);
        out
    }

    fn srv(weight: u16, port: u16, host: &str) -> Vec<u8> {
        let mut out = [[0, 1], weight.to_be_bytes(), port.to_be_bytes()].concat();
        out.extend(if host == "." { vec![0] } else { encoded(host) });
        out
    }

    #[test]
    fn questions_are_as_the_rfcs_want_them() {
        let bytes = question(0x1234, "Web.Test.", Kind::Srv, 1232).unwrap();
        let expected = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03web\x04test\x00\x00\x21\x00\x01\
            \x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
        assert_eq!(bytes, expected);
        let long = "a".repeat(64);
        for bad in ["", ".", "a..b", long.as_str(), "\u{e4}.b"] {
            assert_eq!(question(1, bad, Kind::A, 512), None, "{bad}");
        }
    }

    #[test]
    fn answers_of_all_kinds() {
        let a = question(7, "web.test", Kind::A, 512).unwrap();
        let read = |bytes: &[u8]| answer(bytes, 7, "web.test", Kind::A);
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let two = reply(&a, 0, &[("@", 1, vec![10, 0, 0, 1]), ("WEB.test", 1, vec![10, 0, 0, 2])], 2);
        assert_eq!(read(&two), Ok(Answer::Ips(vec![ip(1), ip(2)])));
        let alias = reply(&a, 0, &[("@", 5, encoded("b.test")), ("b.test", 1, vec![10, 0, 0, 3])], 2);
        assert_eq!(read(&alias), Ok(Answer::Ips(vec![ip(3)])));
        let foreign = reply(&a, 0, &[("c.test", 1, vec![10, 0, 0, 4])], 1);
        assert_eq!(read(&foreign), Ok(Answer::Empty), "of another name");
        let circle = reply(&a, 0, &[("@", 5, encoded("b.test")), ("b.test", 5, encoded("web.test"))], 2);
        assert_eq!(read(&circle), Err(Unfit::Alias));
        assert_eq!(read(&reply(&a, 0, &[], 0)), Ok(Answer::Empty));
        assert_eq!(read(&reply(&a, 3, &[], 0)), Ok(Answer::Error(3)));
        assert_eq!(read(&reply(&a, 0x200, &[], 0)), Ok(Answer::Truncated));
        assert_eq!(answer(&two, 8, "web.test", Kind::A), Err(Unfit::Other));
        assert_eq!(answer(&two, 7, "web2.test", Kind::A), Err(Unfit::Other));
        assert_eq!(answer(&two, 7, "web.test", Kind::Aaaa), Err(Unfit::Other));
        assert_eq!(read(&two[..two.len() - 1]), Err(Unfit::Broken));
        assert_eq!(read(&a), Err(Unfit::Other), "a question is no answer");
    }

    #[test]
    fn targets_come_with_their_addresses() {
        let q = question(7, "_http._tcp.web.test", Kind::Srv, 512).unwrap();
        let records = [
            ("@", 33, srv(10, 8001, "A.web.test")),
            ("@", 33, srv(0, 8002, "b.web.test")),
            ("@", 33, srv(0, 0, ".")),
            ("a.web.test", 1, vec![10, 0, 0, 1]),
            ("x.web.test", 1, vec![10, 0, 0, 2]),
        ];
        let got = answer(&reply(&q, 0, &records, 3), 7, "_http._tcp.web.test", Kind::Srv);
        let target =
            |host: &str, port, weight, ips: Vec<IpAddr>| Target { host: host.into(), port, weight, ips };
        let expected = vec![
            target("a.web.test", 8001, 10, vec![IpAddr::from([10, 0, 0, 1])]),
            target("b.web.test", 8002, 0, Vec::new()),
        ];
        assert_eq!(got, Ok(Answer::Targets(expected)));
    }

    #[test]
    fn pointers_that_go_round_end() {
        let a = question(7, "web.test", Kind::A, 512).unwrap();
        let mut bytes = reply(&a, 0, &[("@", 1, vec![10, 0, 0, 1])], 1);
        let at = a.len() - 11;
        bytes[at + 1] = at as u8;
        assert_eq!(answer(&bytes, 7, "web.test", Kind::A), Err(Unfit::Broken));
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        let q = question(7, "_http._tcp.web.test", Kind::Srv, 512).unwrap();
        let records = [
            ("@", 33, srv(10, 8001, "a.web.test")),
            ("@", 5, encoded("b.test")),
            ("a.web.test", 28, vec![9; 16]),
            ("a.web.test", 1, vec![10, 0, 0, 1]),
        ];
        let good = reply(&q, 0, &records, 2);
        let mut state = 1u64;
        for _ in 0..50_000 {
            let mut bytes = good.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // The head stays, or nothing would get past it.
                let at = 4 + (state >> 33) as usize % (bytes.len() - 4);
                bytes[at] = (state >> 25) as u8;
            }
            bytes.truncate(bytes.len() - (state >> 59) as usize % 16);
            let _ = answer(&bytes, 7, "_http._tcp.web.test", Kind::Srv);
        }
    }
}

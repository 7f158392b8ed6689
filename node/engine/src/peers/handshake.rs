//! The first lines of a session: who calls whom.

use super::wire::Malformed;

/// First word of the hello.
pub const PREFIX: &[u8] = b"HAProxyS ";
/// Longest hello that is read, in bytes.
const MAX_HELLO: usize = 1024;

/// Answers to a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `200`: the session begins.
    Succeeded,
    /// `300`: try again later.
    TryAgain,
    /// `501`: that was no hello.
    ProtocolError,
    /// `502`: another version.
    BadVersion,
    /// `503`: the caller takes the one it calls for somebody else.
    LocalMismatch,
    /// `504`: the one that is called does not know the caller.
    RemoteMismatch,
}

impl Status {
    /// The answer's line.
    pub fn line(self) -> &'static [u8] {
        match self {
            Status::Succeeded => b"200\n",
            Status::TryAgain => b"300\n",
            Status::ProtocolError => b"501\n",
            Status::BadVersion => b"502\n",
            Status::LocalMismatch => b"503\n",
            Status::RemoteMismatch => b"504\n",
        }
    }

    /// What the answer means, for people. `line` without its end.
    pub fn explain(line: &[u8]) -> String {
        match line {
            b"300" => "it asks to try again later".to_string(),
            b"501" => "it took the hello for a protocol error".to_string(),
            b"502" => "it does not speak version 2.1 of the peers protocol".to_string(),
            b"503" => "its own name is another one in its configuration".to_string(),
            b"504" => "this node is not in its 'peers' section".to_string(),
            other => format!("it answered '{}'", other.escape_ascii()),
        }
    }
}

/// The hello of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Whom it calls.
    pub to: String,
    /// Who it is.
    pub from: String,
}

impl Hello {
    /// The three lines.
    pub fn bytes(&self, pid: u32) -> Vec<u8> {
        format!("HAProxyS 2.1\n{}\n{} {pid} 1\n", self.to, self.from).into_bytes()
    }

    /// Reads the three lines off the beginning of `input`: the hello and how many bytes it took, or
    /// `None` when more must come.
    ///
    /// # Errors
    /// The answer to give before closing.
    pub fn read(input: &[u8]) -> Result<Option<(Hello, usize)>, Status> {
        let mut ends = input.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i);
        let (Some(one), Some(two), Some(three)) = (ends.next(), ends.next(), ends.next()) else {
            return if input.len() >= MAX_HELLO { Err(Status::ProtocolError) } else { Ok(None) };
        };
        let text = |from: usize, to: usize| {
            let line = input.get(from..to).unwrap_or_default();
            std::str::from_utf8(line).map(|l| l.trim_end_matches('\r')).map_err(|_| Status::ProtocolError)
        };
        let version = text(0, one)?.strip_prefix("HAProxyS ").ok_or(Status::ProtocolError)?;
        let (major, minor) = version.split_once('.').ok_or(Status::BadVersion)?;
        // 2.0 lacks heartbeats: it would be taken for dead.
        if major != "2" || minor.parse::<u32>().map_or(true, |minor| minor < 1) {
            return Err(Status::BadVersion);
        }
        let to = text(one + 1, two)?.to_string();
        let from = text(two + 1, three)?.split(' ').next().unwrap_or_default().to_string();
        Ok(Some((Hello { to, from }, three + 1)))
    }
}

/// The line that answers a hello, and how many bytes it took; `None` when more must come.
///
/// # Errors
/// When it is no answer.
pub fn read_status(input: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    match input.iter().position(|b| *b == b'\n') {
        Some(end) => Ok(Some((input[..end].trim_ascii_end(), end + 1))),
        None if input.len() > 16 => Err(Malformed("an answer that is no status")),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_of_haproxy_reads() {
        let bytes = b"HAProxyS 2.1\nN\nA 28332 1\n\x00\x04";
        let (hello, used) = Hello::read(bytes).unwrap().unwrap();
        assert_eq!(hello, Hello { to: "N".into(), from: "A".into() });
        assert_eq!(used, bytes.len() - 2);
        for len in 0..used {
            assert_eq!(Hello::read(&bytes[..len]), Ok(None));
        }
        assert_eq!(Hello::read(&hello.bytes(7)).unwrap().unwrap().0, hello);
    }

    #[test]
    fn others_are_told_what_is_wrong() {
        assert_eq!(Hello::read(b"HAProxyS 1.0\nN\nA 1 1\n"), Err(Status::BadVersion));
        assert_eq!(Hello::read(b"HAProxyS 2.0\nN\nA 1 1\n"), Err(Status::BadVersion));
        assert_eq!(Hello::read(b"GET / HTTP/1.1\r\na: b\r\n\r\n"), Err(Status::ProtocolError));
        assert_eq!(Hello::read(&[b'x'; 2000]), Err(Status::ProtocolError));
        assert_eq!(Hello::read(b"HAProxyS 2.1\nN\n\xff 1 1\n"), Err(Status::ProtocolError));
    }
}

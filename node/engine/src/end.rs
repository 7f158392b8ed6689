//! How a session or a request ended.
//!
//! One value decides the termination code of the log line (manual section 8.5), the status that the
//! client gets and what is counted, so that they cannot contradict each other.

/// Who ended it, and how: the first character of the termination state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// Nobody: it came to its normal end.
    #[default]
    None,
    /// The client aborted.
    ClientAbort,
    /// The client was too slow.
    ClientTimeout,
    /// The server refused or aborted.
    ServerAbort,
    /// The server was too slow.
    ServerTimeout,
    /// The proxy refused it.
    Proxy,
    /// The proxy answered it itself.
    Local,
    /// The proxy ran out of a resource.
    Resource,
    /// A self-check failed.
    Internal,
    /// The server was found down.
    Down,
    /// An active server came back and backup sessions were ended.
    Up,
    /// An administrator ended it.
    Killed,
}

/// How far it had come: the second character.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Beyond the transfer.
    #[default]
    None,
    /// Waiting for a complete request.
    Request,
    /// Waiting for a slot.
    Queue,
    /// Connecting to the server.
    Connect,
    /// Waiting for the response's head.
    Headers,
    /// Transferring.
    Data,
    /// Sending the last bytes to the client.
    Last,
    /// Held open as a tarpit.
    Tarpit,
}

/// What the client's persistence cookie was: the third character.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestCookie {
    /// No `cookie` line applies.
    #[default]
    None,
    /// There was none.
    Absent,
    /// It names no server.
    Invalid,
    /// Its server is down.
    Down,
    /// It named the server that was used.
    Valid,
    /// Too long unused (`maxidle`).
    Expired,
    /// Too old (`maxlife`).
    Old,
    /// Something else chose the server.
    Unused,
}

/// What was done to the server's persistence cookie: the fourth character.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseCookie {
    /// No `cookie` line applies.
    #[default]
    None,
    /// There was none and none was set.
    Absent,
    /// One was inserted.
    Inserted,
    /// Its date was updated.
    Updated,
    /// The server's passed unchanged.
    Provided,
    /// The server's was rewritten.
    Rewritten,
    /// The server's was removed.
    Deleted,
}

/// The end of a session or request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Who and how.
    pub cause: Cause,
    /// When.
    pub phase: Phase,
}

impl End {
    /// The normal end.
    pub const NORMAL: End = End { cause: Cause::None, phase: Phase::None };

    /// An end.
    pub const fn new(cause: Cause, phase: Phase) -> End {
        End { cause, phase }
    }

    /// The two characters of the termination state in TCP mode.
    pub fn code(self) -> [u8; 2] {
        let cause = match self.cause {
            Cause::None => b'-',
            Cause::ClientAbort => b'C',
            Cause::ClientTimeout => b'c',
            Cause::ServerAbort => b'S',
            Cause::ServerTimeout => b's',
            Cause::Proxy => b'P',
            Cause::Local => b'L',
            Cause::Resource => b'R',
            Cause::Internal => b'I',
            Cause::Down => b'D',
            Cause::Up => b'U',
            Cause::Killed => b'K',
        };
        let phase = match self.phase {
            Phase::None => b'-',
            Phase::Request => b'R',
            Phase::Queue => b'Q',
            Phase::Connect => b'C',
            Phase::Headers => b'H',
            Phase::Data => b'D',
            Phase::Last => b'L',
            Phase::Tarpit => b'T',
        };
        [cause, phase]
    }

    /// The four characters in HTTP mode.
    pub fn http_code(self, request: RequestCookie, response: ResponseCookie) -> [u8; 4] {
        let [cause, phase] = self.code();
        let request = match request {
            RequestCookie::None => b'-',
            RequestCookie::Absent => b'N',
            RequestCookie::Invalid => b'I',
            RequestCookie::Down => b'D',
            RequestCookie::Valid => b'V',
            RequestCookie::Expired => b'E',
            RequestCookie::Old => b'O',
            RequestCookie::Unused => b'U',
        };
        let response = match response {
            ResponseCookie::None => b'-',
            ResponseCookie::Absent => b'N',
            ResponseCookie::Inserted => b'I',
            ResponseCookie::Updated => b'U',
            ResponseCookie::Provided => b'P',
            ResponseCookie::Rewritten => b'R',
            ResponseCookie::Deleted => b'D',
        };
        [cause, phase, request, response]
    }

    /// The status that the client gets when nothing of a response was sent yet; `None` when it gets
    /// no answer because it is gone or already has one.
    pub fn status(self) -> Option<u16> {
        match (self.phase, self.cause) {
            (Phase::Data | Phase::Last | Phase::None, _) => None,
            (Phase::Request, Cause::ClientTimeout) => Some(408),
            (Phase::Request, _) => Some(400),
            (_, Cause::ClientAbort) => Some(400),
            (_, Cause::ClientTimeout) => Some(408),
            (Phase::Queue | Phase::Connect, Cause::Internal) => Some(500),
            (Phase::Queue | Phase::Connect, _) => Some(503),
            (Phase::Tarpit, _) => Some(500),
            (Phase::Headers, Cause::ServerTimeout) => Some(504),
            (Phase::Headers, Cause::Down | Cause::Killed) => Some(503),
            (Phase::Headers, _) => Some(502),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typical_ends_give_the_codes_and_statuses_of_the_manual() {
        let table = [
            (Cause::None, Phase::None, "--", None),
            (Cause::ClientAbort, Phase::Request, "CR", Some(400)),
            (Cause::ClientTimeout, Phase::Request, "cR", Some(408)),
            (Cause::Proxy, Phase::Request, "PR", Some(400)),
            (Cause::ServerTimeout, Phase::Queue, "sQ", Some(503)),
            (Cause::ClientAbort, Phase::Queue, "CQ", Some(400)),
            (Cause::ServerAbort, Phase::Connect, "SC", Some(503)),
            (Cause::ServerTimeout, Phase::Connect, "sC", Some(503)),
            (Cause::ServerAbort, Phase::Headers, "SH", Some(502)),
            (Cause::ServerTimeout, Phase::Headers, "sH", Some(504)),
            (Cause::Proxy, Phase::Headers, "PH", Some(502)),
            (Cause::ClientTimeout, Phase::Data, "cD", None),
            (Cause::ServerAbort, Phase::Data, "SD", None),
            (Cause::Killed, Phase::Data, "KD", None),
        ];
        for (cause, phase, code, status) in table {
            let end = End::new(cause, phase);
            assert_eq!(std::str::from_utf8(&end.code()).unwrap(), code);
            assert_eq!(end.status(), status, "{code}");
        }
        let end = End::NORMAL.http_code(RequestCookie::Valid, ResponseCookie::Absent);
        assert_eq!(&end, b"--VN");
    }
}

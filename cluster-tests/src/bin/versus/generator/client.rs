//! One client: sends what its script says and finds the end of each answer.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use memchr::memmem;

use super::origin::LARGE;
use super::tls::Tls;
use super::wire::Wire;

/// What is said on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Talk {
    /// Requests; each answer's body and each request's has so many bytes.
    Http { body: u64, upload: u64 },
    /// Reads as much as comes.
    Bulk,
    /// One byte there, one byte back.
    Knock,
}

/// Writes the request of this number; true for a connection's last.
pub(crate) type Writer = Box<dyn Fn(u64, bool, &mut Vec<u8>)>;

/// What clients do.
pub(crate) struct Script {
    pub(crate) target: SocketAddr,
    /// Clients at a time.
    pub(crate) connections: usize,
    /// Exchanges on each connection, the last of which the proxy ends; 0: no end.
    pub(crate) exchanges: u32,
    /// Addresses that connections come from in turn; 0: the kernel's choice.
    pub(crate) sources: u32,
    pub(crate) talk: Talk,
    pub(crate) tls: Option<Tls>,
    pub(crate) request: Writer,
}

impl Script {
    /// Address of a connection by its number.
    fn source(&self, connection: u64) -> Option<IpAddr> {
        (self.sources > 0).then(|| {
            // The generator's addresses begin at 127.64.0.1: far from those that proxies listen on.
            let offset = (connection % u64::from(self.sources)) as u32;
            Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 1).to_bits() + offset).into()
        })
    }
}

/// A connection to the proxy.
pub(crate) struct Client {
    pub(crate) wire: Wire,
    out: Vec<u8>,
    sent: usize,
    upload: u64,
    /// Waits for room to write.
    pub(crate) blocked: bool,
    head: Vec<u8>,
    /// Bytes of the answer's body that are to come, once its head is there.
    left: Option<u64>,
    /// When this exchange began, or was due.
    pub(crate) began: Instant,
    /// Exchanges so far, with this one.
    exchanges: u32,
    last: bool,
    /// All of the last answer is here, and its connection's end is not.
    ending: bool,
    /// Nothing is asked and nothing awaited.
    pub(crate) idle: bool,
}

/// How far a client has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More is to come.
    Going,
    /// So many bytes more, without end.
    Bytes(u64),
    /// The answer is whole, after so many bytes; another may be asked for.
    Complete(u64),
    /// The answer is whole and the connection has ended.
    Over(u64),
    /// It went wrong.
    Failed(&'static str),
}

impl Client {
    /// Begins to connect.
    pub(crate) fn connect(script: &Script, nth: u64, began: Instant) -> io::Result<Client> {
        let tls = script.tls.as_ref().map(|tls| tls.connection(nth)).transpose()?;
        Ok(Client {
            wire: Wire::connect(script.target, script.source(nth), tls)?,
            out: Vec::new(),
            sent: 0,
            upload: 0,
            blocked: false,
            head: Vec::new(),
            left: None,
            began,
            exchanges: 0,
            last: false,
            ending: false,
            idle: true,
        })
    }

    /// Begins an exchange.
    pub(crate) fn ask(&mut self, script: &Script, nth: u64, began: Instant) {
        self.exchanges += 1;
        self.last = self.exchanges == script.exchanges;
        self.began = began;
        self.left = None;
        self.idle = false;
        self.sent = 0;
        self.out.clear();
        match script.talk {
            Talk::Http { upload, .. } => {
                (script.request)(nth, self.last, &mut self.out);
                self.upload = upload;
            }
            Talk::Knock => self.out.push(b'k'),
            Talk::Bulk => {}
        }
    }

    /// Sends what there is room for.
    pub(crate) fn push(&mut self, body: &File) -> Result<(), &'static str> {
        let failed = |_| "cannot send";
        self.blocked = true;
        while self.sent < self.out.len() {
            match self.wire.send(&self.out[self.sent..], self.upload > 0).map_err(failed)? {
                0 => return Ok(()),
                n => self.sent += n,
            }
        }
        while self.upload > 0 {
            match self.wire.send_file(body, 0, self.upload.min(LARGE)).map_err(failed)? {
                0 => return Ok(()),
                n => self.upload -= n as u64,
            }
        }
        self.blocked = self.wire.flush().map_err(failed)?;
        Ok(())
    }

    /// Reads what is there.
    pub(crate) fn pull(&mut self, script: &Script, scratch: &mut [u8]) -> Progress {
        let known = self.left.unwrap_or(u64::MAX);
        let read = match script.talk {
            Talk::Bulk => self.wire.discard(scratch),
            _ if known > 0 && known < u64::MAX => {
                let most = scratch.len().min(known as usize);
                self.wire.discard(&mut scratch[..most])
            }
            _ => self.wire.receive(&mut scratch[..16 * 1024]),
        };
        match (read, script.talk) {
            (Err(_), _) if self.idle => Progress::Failed("reset while idle"),
            (Err(_), _) => Progress::Failed("reset"),
            (Ok(None), _) => Progress::Going,
            (Ok(Some(0)), Talk::Http { body, .. }) if self.ending => Progress::Over(body),
            (Ok(Some(0)), Talk::Knock) if self.ending => Progress::Over(1),
            (Ok(Some(0)), _) if self.idle => Progress::Failed("closed while idle"),
            (Ok(Some(0)), _) => Progress::Failed("closed before the answer was whole"),
            (Ok(Some(n)), Talk::Bulk) => Progress::Bytes(n as u64),
            (Ok(Some(_)), Talk::Knock) => self.complete(1),
            (Ok(Some(n)), Talk::Http { body, upload }) => self.answer(&scratch[..n], body, upload),
        }
    }

    fn answer(&mut self, bytes: &[u8], body: u64, upload: u64) -> Progress {
        if let Some(left) = self.left {
            let Some(left) = left.checked_sub(bytes.len() as u64) else {
                return Progress::Failed("more than the answer came");
            };
            self.left = Some(left);
            return if left == 0 { self.complete(body.max(upload)) } else { Progress::Going };
        }
        let joined;
        let all = if self.head.is_empty() {
            bytes
        } else {
            self.head.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.head);
            &joined
        };
        let Some(end) = memmem::find(all, b"\r\n\r\n") else {
            self.head = all.to_vec();
            return Progress::Going;
        };
        if !all.starts_with(b"HTTP/1.1 200") {
            return Progress::Failed("the status is not 200");
        }
        let Some(left) = body.checked_sub((all.len() - end - 4) as u64) else {
            return Progress::Failed("more than the answer came");
        };
        self.left = Some(left);
        if left == 0 { self.complete(body.max(upload)) } else { Progress::Going }
    }

    fn complete(&mut self, bytes: u64) -> Progress {
        if self.last {
            // The proxy is to end it, and the time counts until then no more than the answer's.
            self.ending = true;
            self.left = None;
            return Progress::Going;
        }
        self.idle = true;
        Progress::Complete(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    fn pair(exchanges: u32, talk: Talk) -> (Script, Client, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let script = Script {
            target: listener.local_addr().unwrap(),
            connections: 1,
            exchanges,
            sources: 0,
            talk,
            tls: None,
            request: Box::new(|nth, last, out| out.extend(format!("GET /{nth} {last}\r\n\r\n").bytes())),
        };
        let client = Client::connect(&script, 0, Instant::now()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (script, client, server)
    }

    /// What the client makes of an answer that comes in these pieces.
    fn judged(exchanges: u32, body: u64, pieces: &[&[u8]], ended: bool) -> Progress {
        let (script, mut client, mut server) = pair(exchanges, Talk::Http { body, upload: 0 });
        client.ask(&script, 7, Instant::now());
        client.push(&tempfile::tempfile().unwrap()).unwrap();
        let mut asked = [0; 64];
        let n = server.read(&mut asked).unwrap();
        assert_eq!(asked[..n], *format!("GET /7 {}\r\n\r\n", exchanges == 1).as_bytes());
        let mut scratch = vec![0; 16 * 1024];
        let mut progress = Progress::Going;
        let deadline = Instant::now() + Duration::from_secs(5);
        for piece in pieces {
            server.write_all(piece).unwrap();
            // Until it has all been taken: the kernel passes on what was sent before.
            let mut waiting = Progress::Going;
            let before = (client.left, client.head.len(), client.ending);
            while waiting == Progress::Going
                && before == (client.left, client.head.len(), client.ending)
                && Instant::now() < deadline
            {
                waiting = client.pull(&script, &mut scratch);
            }
            progress = waiting;
        }
        if ended {
            server.shutdown(Shutdown::Both).unwrap();
            while progress == Progress::Going && Instant::now() < deadline {
                progress = client.pull(&script, &mut scratch);
            }
        }
        progress
    }

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";

    #[test]
    fn an_answer_is_whole_wherever_it_was_split() {
        let whole = [HEAD, b"body"].concat();
        for at in 1..whole.len() {
            let (one, two) = whole.split_at(at);
            assert_eq!(judged(0, 4, &[one, two], false), Progress::Complete(4), "split at {at}");
        }
        assert_eq!(judged(0, 4, &[&whole], false), Progress::Complete(4));
    }

    #[test]
    fn the_last_answer_is_over_with_its_connection() {
        let whole = [HEAD, b"body"].concat();
        assert_eq!(judged(1, 4, &[&whole], false), Progress::Going);
        assert_eq!(judged(1, 4, &[&whole], true), Progress::Over(4));
    }

    #[test]
    fn what_is_not_the_answer_is_a_failure() {
        let whole = [HEAD, b"body"].concat();
        let failed = |p| matches!(p, Progress::Failed(_));
        assert!(failed(judged(0, 4, &[&whole[..whole.len() - 1]], true)));
        assert!(failed(judged(0, 3, &[&whole], false)));
        assert!(failed(judged(0, 4, &[b"HTTP/1.1 503 No\r\n\r\nbody"], false)));
    }

    #[test]
    fn sources_come_in_turn_and_are_distinct() {
        let (mut script, _, _server) = pair(1, Talk::Knock);
        script.sources = 100_000;
        let seen: std::collections::BTreeSet<_> = (0..100_000).map(|n| script.source(n).unwrap()).collect();
        assert_eq!(seen.len(), 100_000);
        assert_eq!(script.source(100_000), script.source(0));
    }
}

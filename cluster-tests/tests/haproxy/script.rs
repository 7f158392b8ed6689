//! Scripted clients and servers: what they send byte for byte, and a transcript of what they saw.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(6);

/// What one end of a connection does next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Sends this.
    Send(&'static str),
    /// Sends so many bytes of body.
    Fill(usize),
    /// Reads a message: its head and its body.
    Message,
    /// As [`Step::Message`] without a body, whatever the head says.
    Head,
    /// Reads so many bytes.
    Bytes(usize),
    /// Reads until the other side closes, and notes that it did.
    Eof,
    /// Notes whether the connection is still open and silent after so many milliseconds.
    Open(u64),
    /// Does nothing for so many milliseconds.
    Wait(u64),
    /// Closes its half.
    Shut,
    /// Closes with a reset.
    Reset,
    /// Answers each message with this, until the other side closes.
    Serve(&'static str),
}

/// Runs a script on a connection; `transcript` grows with what is seen.
pub(crate) fn play(mut stream: TcpStream, steps: &[Step], transcript: &Transcript) {
    let _ = stream.set_nodelay(true);
    let mut seen = Seen { text: transcript, ahead: Vec::new() };
    for step in steps {
        match *step {
            Step::Send(text) => drop(stream.write_all(text.as_bytes())),
            Step::Fill(n) => drop(stream.write_all(&vec![b'x'; n])),
            Step::Message => drop(seen.message(&mut stream, false)),
            Step::Head => drop(seen.message(&mut stream, true)),
            Step::Bytes(n) => seen.bytes(&mut stream, n),
            Step::Eof => seen.rest(&mut stream),
            Step::Open(ms) => seen.open(&mut stream, Duration::from_millis(ms)),
            Step::Wait(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Step::Shut => drop(stream.shutdown(std::net::Shutdown::Write)),
            Step::Reset => {
                let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                let _ = setsockopt(&stream, sockopt::Linger, &now);
                break;
            }
            Step::Serve(text) => {
                while seen.message(&mut stream, false) && stream.write_all(text.as_bytes()).is_ok() {}
            }
        }
    }
}

/// What one end of a connection saw so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript(Arc<Mutex<Vec<u8>>>);

impl Transcript {
    fn add(&self, bytes: impl IntoIterator<Item = u8>) {
        self.0.lock().expect("nobody panics here").extend(bytes);
    }

    fn is_empty(&self) -> bool {
        self.0.lock().expect("nobody panics here").is_empty()
    }

    /// As text.
    pub(crate) fn text(&self) -> String {
        printable(&self.0.lock().expect("nobody panics here"))
    }
}

struct Seen<'a> {
    text: &'a Transcript,
    ahead: Vec<u8>,
}

impl Seen<'_> {
    /// Reads once; false at the end, which is noted unless nothing was begun.
    fn more(&mut self, stream: &mut TcpStream, limit: Duration) -> Result<usize, ErrorKind> {
        let _ = stream.set_read_timeout(Some(limit.max(Duration::from_millis(1))));
        let mut buf = [0; 65536];
        match stream.read(&mut buf) {
            Ok(n) => {
                self.ahead.extend_from_slice(&buf[..n]);
                Ok(n)
            }
            Err(e) => Err(e.kind()),
        }
    }

    fn take(&mut self, n: usize) {
        self.text.add(self.ahead.drain(..n));
    }

    fn note(&mut self, text: &str) {
        self.text.add(text.bytes());
    }

    fn note_end(&mut self, result: Result<usize, ErrorKind>) {
        match result {
            Ok(0) => self.note("<EOF>"),
            Ok(_) => {}
            Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => self.note("<NOTHING>"),
            Err(_) => self.note("<RESET>"),
        }
    }

    fn need(&mut self, stream: &mut TcpStream, n: usize) -> bool {
        while self.ahead.len() < n {
            match self.more(stream, LIMIT) {
                Ok(1..) => {}
                end => {
                    let got = self.ahead.len();
                    self.take(got);
                    if got > 0 || self.text.is_empty() {
                        self.note_end(end);
                    }
                    return false;
                }
            }
        }
        true
    }

    fn bytes(&mut self, stream: &mut TcpStream, n: usize) {
        if self.need(stream, n) {
            self.take(n);
        }
    }

    fn message(&mut self, stream: &mut TcpStream, head_only: bool) -> bool {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.need(stream, self.ahead.len() + 1) {
                return false;
            }
        };
        let head = String::from_utf8_lossy(&self.ahead[..end]).to_ascii_lowercase();
        self.take(end);
        let field = |name: &str| {
            head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()))
        };
        let bodiless = ["http/1.1 1", "http/1.1 204", "http/1.1 304"].iter().any(|s| head.starts_with(s));
        if head_only || bodiless {
            return true;
        }
        if field("transfer-encoding").is_some() {
            loop {
                if self.ahead.starts_with(b"0\r\n\r\n") {
                    self.take(5);
                    return true;
                }
                let Some(line) = self.ahead.windows(2).position(|w| w == b"\r\n") else {
                    if !self.need(stream, self.ahead.len() + 1) {
                        return false;
                    }
                    continue;
                };
                let size = String::from_utf8_lossy(&self.ahead[..line]).into_owned();
                let Ok(size) = usize::from_str_radix(size.split(';').next().unwrap_or("").trim(), 16) else {
                    return false;
                };
                if size == 0 {
                    // Trailers.
                    while !self.ahead.windows(4).any(|w| w == b"\r\n\r\n") {
                        if !self.need(stream, self.ahead.len() + 1) {
                            return false;
                        }
                    }
                    let end = self.ahead.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |n| n + 4);
                    self.take(end);
                    return true;
                }
                if !self.need(stream, line + 2 + size + 2) {
                    return false;
                }
                self.take(line + 2 + size + 2);
            }
        }
        if let Some(n) = field("content-length").and_then(|v| v.parse().ok()) {
            if !self.need(stream, n) {
                return false;
            }
            self.take(n);
        } else if head.starts_with("http/") {
            self.rest(stream);
        }
        true
    }

    fn rest(&mut self, stream: &mut TcpStream) {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.more(stream, deadline.saturating_duration_since(Instant::now())) {
                Ok(1..) => {}
                end => {
                    let got = self.ahead.len();
                    self.take(got);
                    return self.note_end(end);
                }
            }
        }
    }

    fn open(&mut self, stream: &mut TcpStream, limit: Duration) {
        let end = self.more(stream, limit);
        let got = self.ahead.len();
        self.take(got);
        self.note_end(end);
    }
}

/// One line for each line of the bytes, ends shown; long runs of the same byte are counted.
fn printable(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        let run = bytes[at..].iter().take_while(|b| **b == byte).count();
        if run > 40 {
            out += &format!("<{run} * {}>", byte.escape_ascii());
            at += run;
            continue;
        }
        match byte {
            b'\n' => out.push('\n'),
            b'\r' => out.push_str("\\r"),
            _ => out += &byte.escape_ascii().to_string(),
        }
        at += 1;
    }
    out
}

/// Plays one script for each connection, in the order in which they come; the last for all others.
pub(crate) struct Server {
    seen: Arc<Mutex<Vec<Transcript>>>,
}

impl Server {
    /// Listens; serves until the process ends.
    pub(crate) fn start(addr: &str, scripts: &'static [&'static [Step]]) -> Server {
        let listener = TcpListener::bind(addr).unwrap_or_else(|e| panic!("cannot listen on {addr}: {e}"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        std::thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { continue };
                let Some(script) = scripts.get(index).or(scripts.last()) else { continue };
                let transcript = Transcript::default();
                all.lock().expect("nobody panics here").push(transcript.clone());
                std::thread::spawn(move || play(stream, script, &transcript));
            }
        });
        Server { seen }
    }

    /// What each connection saw so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("nobody panics here").iter().map(Transcript::text).collect()
    }
}

//! Log lines: what HAProxy prints for a session, byte for byte.
//!
//! A session fills a [`Record`]; [`line`] appends the message of `option httplog`, `option tcplog` or
//! of no option to the caller's buffer, and [`frame`] puts a syslog header before it. Both only
//! append: no allocation beyond the buffer's growth. Dates are in local time and cached per thread.
//! Sending is not done here: `phalanx-proxy` owns the sockets.

use std::net::{IpAddr, SocketAddr};

use phalanx_config::{LogFormat, LogFraming, Mode};

mod date;
#[cfg(test)]
mod tests;

pub use date::{bracketed, iso8601, remember_zone, syslog};

/// Syslog severity: the system is unusable.
pub const EMERG: u8 = 0;
/// Syslog severity: a human must act at once.
pub const ALERT: u8 = 1;
/// Syslog severity: critical.
pub const CRIT: u8 = 2;
/// Syslog severity: error.
pub const ERR: u8 = 3;
/// Syslog severity: warning.
pub const WARNING: u8 = 4;
/// Syslog severity: normal but worth a look; starts, stops, servers that come back.
pub const NOTICE: u8 = 5;
/// Syslog severity: traffic.
pub const INFO: u8 = 6;
/// Syslog severity: debug.
pub const DEBUG: u8 = 7;

/// Name of the server field when no server was reached.
pub const NO_SERVER: &str = "<NOSRV>";
/// Name of the server field when the statistics page answered.
pub const STATS: &str = "<STATS>";

/// Longest request line that is logged; `tune.http.logurilen`'s default less its terminator.
const MAX_REQUEST: usize = 1023;

/// Durations of a session or request; `None` = the stage was not reached, printed as `-1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    /// `%TR`: the client's request, first byte to last header; HTTP only.
    pub request: Option<u32>,
    /// `%Tw`: queues.
    pub queue: Option<u32>,
    /// `%Tc`: connection to the server, retries included.
    pub connect: Option<u32>,
    /// `%Tr`: the server's answer; HTTP only.
    pub response: Option<u32>,
    /// `%Ta` (HTTP) or `%Tt` (TCP): everything.
    pub total: u32,
}

/// What a session or request has to tell when it ends.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// `%ci:%cp`.
    pub client: SocketAddr,
    /// Where the client connected to; in the default format only.
    pub destination: SocketAddr,
    /// Mode of the frontend; in the default format only.
    pub mode: Mode,
    /// `%t` (TCP: accept) or `%tr` (HTTP: first byte of the request), microseconds since the epoch.
    pub unix_us: u64,
    /// `%ft`.
    pub frontend: &'a str,
    /// `%b`; the frontend's name when no backend was chosen.
    pub backend: &'a str,
    /// `%s`; `None` = [`NO_SERVER`]. The statistics page passes [`STATS`].
    pub server: Option<&'a str>,
    /// The timers.
    pub timers: Timers,
    /// `%ST`; `None` prints `-1`.
    pub status: Option<u16>,
    /// `%B`: bytes sent to the client.
    pub bytes: u64,
    /// `%CC`: captured request cookie.
    pub request_cookie: Option<&'a [u8]>,
    /// `%CS`: captured response cookie.
    pub response_cookie: Option<&'a [u8]>,
    /// `%tsc`; the TCP format prints the first two.
    pub termination: [u8; 4],
    /// `%ac`: connections of the process.
    pub actconn: u32,
    /// `%fc`: connections of the frontend.
    pub feconn: u32,
    /// `%bc`: sessions of the backend.
    pub beconn: u32,
    /// `%sc`: sessions of the server.
    pub srvconn: u32,
    /// `%rc`.
    pub retries: u32,
    /// Puts `+` before the retries.
    pub redispatched: bool,
    /// `%sq`: how many went before this one in the server's queue.
    pub srv_queue: u32,
    /// `%bq`: how many went before this one in the backend's queue.
    pub backend_queue: u32,
    /// `%r`: the request line without its end; empty prints `<BADREQ>`.
    pub request: &'a [u8],
    /// `option logasap`: the line comes before the end, so total and bytes carry a `+`.
    pub asap: bool,
}

/// Appends the message for `record` to `out`, without header and line end.
pub fn line(format: LogFormat, record: &Record<'_>, out: &mut Vec<u8>) {
    match format {
        LogFormat::Default => connect_line(record, out),
        LogFormat::Tcp => tcp_line(record, out),
        LogFormat::Http => http_line(record, out),
    }
}

fn connect_line(r: &Record<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Connect from ");
    endpoint(r.client, out);
    out.extend_from_slice(b" to ");
    endpoint(r.destination, out);
    out.extend_from_slice(b" (");
    out.extend_from_slice(r.frontend.as_bytes());
    out.extend_from_slice(if r.mode == Mode::Http { b"/HTTP)" } else { b"/TCP)" });
}

fn tcp_line(r: &Record<'_>, out: &mut Vec<u8>) {
    origin(r, out);
    timer(r.timers.queue, out);
    out.push(b'/');
    timer(r.timers.connect, out);
    out.push(b'/');
    partial(r.asap, u64::from(r.timers.total), out);
    out.push(b' ');
    partial(r.asap, r.bytes, out);
    out.push(b' ');
    out.extend_from_slice(&r.termination[..2]);
    out.push(b' ');
    load(r, out);
}

fn http_line(r: &Record<'_>, out: &mut Vec<u8>) {
    origin(r, out);
    for t in [r.timers.request, r.timers.queue, r.timers.connect, r.timers.response] {
        timer(t, out);
        out.push(b'/');
    }
    partial(r.asap, u64::from(r.timers.total), out);
    out.push(b' ');
    timer(r.status.map(u32::from), out);
    out.push(b' ');
    partial(r.asap, r.bytes, out);
    for cookie in [r.request_cookie, r.response_cookie] {
        out.push(b' ');
        escaped(cookie.unwrap_or(b"-"), out);
    }
    out.push(b' ');
    out.extend_from_slice(&r.termination);
    out.push(b' ');
    load(r, out);
    out.extend_from_slice(b" \"");
    if r.request.is_empty() {
        out.extend_from_slice(b"<BADREQ>");
    } else {
        escaped(&r.request[..r.request.len().min(MAX_REQUEST)], out);
    }
    out.push(b'"');
}

/// `ip:port [date] frontend backend/server `.
fn origin(r: &Record<'_>, out: &mut Vec<u8>) {
    endpoint(r.client, out);
    out.push(b' ');
    bracketed(r.unix_us, out);
    for name in [" ", r.frontend, " ", r.backend, "/", r.server.unwrap_or(NO_SERVER), " "] {
        out.extend_from_slice(name.as_bytes());
    }
}

/// `actconn/feconn/beconn/srvconn/retries srv_queue/backend_queue`.
fn load(r: &Record<'_>, out: &mut Vec<u8>) {
    for n in [r.actconn, r.feconn, r.beconn, r.srvconn] {
        decimal(u64::from(n), out);
        out.push(b'/');
    }
    partial(r.redispatched, u64::from(r.retries), out);
    out.push(b' ');
    decimal(u64::from(r.srv_queue), out);
    out.push(b'/');
    decimal(u64::from(r.backend_queue), out);
}

fn timer(ms: Option<u32>, out: &mut Vec<u8>) {
    match ms {
        Some(ms) => decimal(u64::from(ms), out),
        None => out.extend_from_slice(b"-1"),
    }
}

fn partial(plus: bool, n: u64, out: &mut Vec<u8>) {
    if plus {
        out.push(b'+');
    }
    decimal(n, out);
}

/// `ip:port`; IPv6 without brackets, as HAProxy prints it.
fn endpoint(addr: SocketAddr, out: &mut Vec<u8>) {
    ip(addr.ip(), out);
    out.push(b':');
    decimal(u64::from(addr.port()), out);
}

/// Appends an address.
pub fn ip(addr: IpAddr, out: &mut Vec<u8>) {
    match addr {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            for n in [a, b, c] {
                decimal(u64::from(n), out);
                out.push(b'.');
            }
            decimal(u64::from(d), out);
        }
        IpAddr::V6(v6) => {
            use std::io::Write;
            write!(out, "{v6}").expect("a Vec takes every write");
        }
    }
}

/// Appends `bytes` with everything outside 32..=126, `"` and `#` as `#XX` (manual section 8.6).
pub fn escaped(bytes: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let odd = |b: &u8| !matches!(*b, 32..=126) || *b == b'"' || *b == b'#';
    let mut rest = bytes;
    while let Some(n) = rest.iter().position(odd) {
        let b = rest[n];
        out.extend_from_slice(&rest[..n]);
        out.extend_from_slice(&[b'#', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        rest = &rest[n + 1..];
    }
    out.extend_from_slice(rest);
}

/// Appends `n` in decimal.
pub fn decimal(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What a syslog header says about the sender.
#[derive(Clone, Debug)]
pub struct Sender {
    /// `log-tag`.
    pub tag: String,
    /// Process id.
    pub pid: u32,
    /// `log-send-hostname`, resolved.
    pub host: Option<String>,
}

/// Appends a header for `framing`, then `message` and a line feed; the line without the line feed is
/// at most `len` bytes long.
pub fn frame(
    framing: LogFraming,
    sender: &Sender,
    priority: Priority,
    unix_us: u64,
    len: usize,
    message: &[u8],
    out: &mut Vec<u8>,
) {
    let start = out.len();
    match framing {
        LogFraming::Local | LogFraming::Rfc3164 => {
            number(priority.code(), out);
            syslog(unix_us, out);
            out.push(b' ');
            let host = match framing {
                // The field must be there; without `log-send-hostname` HAProxy fills it so.
                LogFraming::Rfc3164 => Some(sender.host.as_deref().unwrap_or("localhost")),
                _ => sender.host.as_deref(),
            };
            if let Some(host) = host {
                out.extend_from_slice(host.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(sender.tag.as_bytes());
            out.push(b'[');
            decimal(u64::from(sender.pid), out);
            out.extend_from_slice(b"]: ");
        }
        LogFraming::Rfc5424 => {
            number(priority.code(), out);
            out.extend_from_slice(b"1 ");
            iso8601(unix_us, out);
            out.push(b' ');
            out.extend_from_slice(sender.host.as_deref().unwrap_or("-").as_bytes());
            out.push(b' ');
            out.extend_from_slice(sender.tag.as_bytes());
            out.push(b' ');
            decimal(u64::from(sender.pid), out);
            out.extend_from_slice(b" - - ");
        }
        LogFraming::Priority => number(priority.code(), out),
        LogFraming::Short => number(u16::from(priority.level), out),
        LogFraming::Timed => {
            number(u16::from(priority.level), out);
            iso8601(unix_us, out);
            out.push(b' ');
        }
        LogFraming::Iso => {
            iso8601(unix_us, out);
            out.push(b' ');
        }
        LogFraming::Raw => {}
    }
    out.extend_from_slice(message);
    out.truncate((start + len).min(out.len()));
    out.push(b'\n');
}

fn number(n: u16, out: &mut Vec<u8>) {
    out.push(b'<');
    decimal(u64::from(n), out);
    out.push(b'>');
}

/// Facility and severity of one line for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// 0..=23.
    pub facility: u8,
    /// 0..=7.
    pub level: u8,
}

impl Priority {
    /// The number in `<…>`.
    pub fn code(self) -> u16 {
        u16::from(self.facility) * 8 + u16::from(self.level)
    }
}

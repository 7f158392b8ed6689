//! One probe: connect, and with `option httpchk` ask and read the status line.
//!
//! Never fails: whatever happens is a [`Report`]. A TCP check is broken off before the server's
//! application sees a connection: with quick acknowledgements off, the reset goes out in place of
//! the handshake's last segment.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use phalanx_config::model::{HttpCheck, Timeouts};
use phalanx_engine::agent::{MAX_LINE, Said};
use phalanx_engine::backend::Backend;
use phalanx_engine::health::{CheckStatus, Report};
use phalanx_engine::server::Server;
use phalanx_sys::net::{Connect, reset_on_close};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

/// What a probe found: status, HTTP code, text.
type Finding = (CheckStatus, Option<u16>, String);

/// Probes a server as its backend says.
pub(super) async fn run(backend: &Backend, server: &Server) -> Report {
    let (config, inter) = (backend.config().clone(), server.options().inter);
    let began = Instant::now();
    let limits = Limits::new(&config.timeouts, inter);
    let (status, code, info) = match &config.httpchk {
        None => tcp(server.check_addr(), began + limits.connect).await,
        Some(check) => http(server.check_addr(), &request(check), began, limits).await,
    };
    Report { status, code, info, duration: began.elapsed() }
}

/// Asks a server's agent. `None` beside the report when it gave no answer.
pub(super) async fn agent(backend: &Backend, server: &Server) -> (Option<Said>, Report) {
    let (agent, inter) = (server.agent(), server.options().agent_inter);
    let addr = SocketAddr::new(agent.ip.unwrap_or(server.addr().ip()), agent.port);
    let began = Instant::now();
    let limits = Limits::new(&backend.config().timeouts, inter);
    let connect_ends = began + limits.connect;
    let report = |status, code, info| Report { status, code, info, duration: began.elapsed() };
    let mut stream = match connect(addr, false, connect_ends).await {
        Ok(stream) => stream,
        Err((status, code, info)) => return (None, report(status, code, info)),
    };
    let ends = limits.read.map_or(connect_ends, |read| Instant::now() + read);
    match timeout_at(ends, ask_agent(&mut stream, agent.send.as_bytes())).await {
        Ok(Ok(line)) => {
            let said = Said::read(&line);
            let code = said.up.map(|_| 0);
            let report = report(said.status, code, said.info.clone());
            (Some(said), report)
        }
        Ok(Err(error)) => (None, report(CheckStatus::SockErr, None, plain(&error))),
        Err(_) => (None, report(CheckStatus::L7Tout, None, String::new())),
    }
}

/// Sends what is to be sent and reads a line.
async fn ask_agent(stream: &mut TcpStream, send: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(send).await?;
    let mut line = Vec::with_capacity(128);
    while !line.iter().any(|b| matches!(b, b'\r' | b'\n')) && line.len() < MAX_LINE {
        if stream.read_buf(&mut line).await? == 0 {
            break;
        }
    }
    Ok(line)
}

/// The longest that a probe may take.
pub(super) fn longest(backend: &Backend, server: &Server) -> Duration {
    let limits = Limits::new(&backend.config().timeouts, server.options().inter);
    limits.connect + limits.read.unwrap_or_default()
}

/// Time limits of a probe (manual, `timeout check`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    connect: Duration,
    /// From the established connection on; `None` = what is left of `connect`.
    read: Option<Duration>,
}

impl Limits {
    fn new(timeouts: &Timeouts, inter: Duration) -> Limits {
        match timeouts.check {
            None => Limits { connect: inter, read: None },
            read => Limits { connect: timeouts.connect.map_or(inter, |c| c.min(inter)), read },
        }
    }
}

async fn tcp(addr: SocketAddr, ends: Instant) -> Finding {
    match connect(addr, true, ends).await {
        Ok(_) => (CheckStatus::L4Ok, None, String::new()),
        Err(finding) => finding,
    }
}

async fn http(addr: SocketAddr, request: &[u8], began: Instant, limits: Limits) -> Finding {
    let connect_ends = began + limits.connect;
    let mut stream = match connect(addr, false, connect_ends).await {
        Ok(stream) => stream,
        Err(finding) => return finding,
    };
    let ends = limits.read.map_or(connect_ends, |read| Instant::now() + read);
    match timeout_at(ends, exchange(&mut stream, request)).await {
        Ok(Ok(head)) => judge(&head),
        Ok(Err(error)) => (CheckStatus::SockErr, None, plain(&error)),
        Err(_) => (CheckStatus::L7Tout, None, String::new()),
    }
}

/// Connects; `only` when nothing is to follow.
async fn connect(addr: SocketAddr, only: bool, ends: Instant) -> Result<TcpStream, Finding> {
    let socket = || -> io::Result<TcpSocket> {
        let socket = Connect::default().socket(addr)?;
        if only {
            socket.set_tcp_quickack(false)?;
            reset_on_close(&socket)?;
        }
        Ok(TcpSocket::from_std_stream(socket.into()))
    };
    let socket = socket().map_err(|e| (CheckStatus::SockErr, None, plain(&e)))?;
    match timeout_at(ends, socket.connect(addr)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err((CheckStatus::L4Con, None, plain(&error))),
        Err(_) => Err((CheckStatus::L4Tout, None, String::new())),
    }
}

/// Sends the request and reads to the end of the response's head, or until it cannot become one.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request).await?;
    let mut head = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut head).await? == 0 || !could_be_http(&head) || head.len() >= MAX_HEAD {
            return Ok(head);
        }
        if ends_head(&head) {
            return Ok(head);
        }
    }
}

fn could_be_http(head: &[u8]) -> bool {
    let n = head.len().min(HTTP.len());
    head[..n] == HTTP[..n]
}

fn ends_head(head: &[u8]) -> bool {
    head.windows(2).any(|w| w == b"\n\n") || head.windows(4).any(|w| w == b"\r\n\r\n")
}

/// 2xx and 3xx are a pass; the reason phrase of anything else goes into the report.
fn judge(head: &[u8]) -> Finding {
    let invalid = (CheckStatus::L7Rsp, None, String::new());
    if !ends_head(head) {
        return invalid;
    }
    let line = head.split(|&c| c == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.splitn(3, |&c| c == b' ');
    let (version, code, reason) = (words.next(), words.next(), words.next().unwrap_or_default());
    let version_is_valid = version.is_some_and(|v| {
        matches!(v.strip_prefix(HTTP), Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit())
    });
    let code = code.filter(|c| c.len() == 3 && c.iter().all(u8::is_ascii_digit));
    let (true, Some(code)) = (version_is_valid, code) else { return invalid };
    let code = code.iter().fold(0, |n, &c| n * 10 + u16::from(c - b'0'));
    if (200..400).contains(&code) {
        return (CheckStatus::L7Ok, Some(code), String::new());
    }
    let reason: String = String::from_utf8_lossy(reason).trim().chars().take(MAX_INFO).collect();
    (CheckStatus::L7Sts, Some(code), reason)
}

/// The request of `option httpchk`. Old configurations put header lines after the version.
fn request(check: &HttpCheck) -> Vec<u8> {
    let mut lines = check.version.split("\r\n");
    let version = lines.next().filter(|v| !v.is_empty()).unwrap_or("HTTP/1.0");
    let mut text = format!("{} {} {version}\r\n", check.method, check.uri);
    let mut has_host = false;
    for line in lines.filter(|l| !l.is_empty()) {
        let name = line.split(':').next().unwrap_or_default();
        has_host |= name.eq_ignore_ascii_case("host");
        text.push_str(line);
        text.push_str("\r\n");
    }
    if let Some(host) = check.host.as_ref().filter(|_| !has_host) {
        text.push_str(&format!("host: {host}\r\n"));
    }
    if version != "HTTP/1.0" {
        text.push_str("connection: close\r\n");
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// The system's words for an error, without the number that Rust adds.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

const HTTP: &[u8] = b"HTTP/";
/// Longest head that is waited for.
const MAX_HEAD: usize = 16 * 1024;
/// Longest text that is kept of a reason phrase.
const MAX_INFO: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judges_like_haproxy() {
        use CheckStatus::{L7Ok, L7Rsp, L7Sts};
        for (head, status, code, info) in [
            (&b"HTTP/1.0 200 OK\r\n\r\n"[..], L7Ok, Some(200), ""),
            (b"HTTP/1.1 302 Found\r\nA: b\r\n\r\n", L7Ok, Some(302), ""),
            (b"HTTP/1.1 204\n\n", L7Ok, Some(204), ""),
            (b"HTTP/1.1 404 Not Found\r\nA: b\r\n\r\n", L7Sts, Some(404), "Not Found"),
            (b"HTTP/1.1 503\r\n\r\n", L7Sts, Some(503), ""),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", L7Sts, Some(100), "Continue"),
            (b"HTTP/1.1 200", L7Rsp, None, ""),
            (b"", L7Rsp, None, ""),
            (b"SSH-2.0-x\r\n\r\n", L7Rsp, None, ""),
            (b"HTTP/1.1 2000 OK\r\n\r\n", L7Rsp, None, ""),
            (b"HTTP/11 200 OK\r\n\r\n", L7Rsp, None, ""),
            (b"HTTP/1.1 20x OK\r\n\r\n", L7Rsp, None, ""),
        ] {
            assert_eq!(judge(head), (status, code, info.to_string()), "{:?}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn any_bytes_are_judged_without_panic() {
        let seed = b"HTTP/1.1 404 Not Found\r\nServer: x\r\n\r\n";
        let mut state = 7u64;
        for _ in 0..20_000 {
            let mut head = seed.to_vec();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) as usize % head.len();
                head[at] = (state >> 24) as u8;
                head.truncate(head.len() - (state >> 60) as usize % 4);
            }
            let (status, code, _) = judge(&head);
            assert_eq!(code.is_some(), matches!(status, CheckStatus::L7Ok | CheckStatus::L7Sts));
        }
    }

    #[test]
    fn requests_read_like_haproxys() {
        let check = |version: &str, host: Option<&str>| HttpCheck {
            method: "OPTIONS".into(),
            uri: "/".into(),
            version: version.into(),
            host: host.map(Into::into),
        };
        for (check, expected) in [
            (check("HTTP/1.0", None), "OPTIONS / HTTP/1.0\r\n\r\n"),
            (check("", Some("h")), "OPTIONS / HTTP/1.0\r\nhost: h\r\n\r\n"),
            (check("HTTP/1.1", Some("h")), "OPTIONS / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"),
            (
                check("HTTP/1.1\r\nHost: www", Some("h")),
                "OPTIONS / HTTP/1.1\r\nHost: www\r\nconnection: close\r\n\r\n",
            ),
        ] {
            assert_eq!(String::from_utf8(request(&check)).unwrap(), expected);
        }
    }

    #[test]
    fn limits_follow_the_manual() {
        let ms = Duration::from_millis;
        let timeouts = |connect, check| Timeouts { connect, check, ..Timeouts::default() };
        for (timeouts, connect, read) in [
            (timeouts(Some(ms(50)), None), 2000, None),
            (timeouts(Some(ms(50)), Some(ms(300))), 50, Some(ms(300))),
            (timeouts(Some(ms(5000)), Some(ms(300))), 2000, Some(ms(300))),
            (timeouts(None, Some(ms(300))), 2000, Some(ms(300))),
        ] {
            assert_eq!(Limits::new(&timeouts, ms(2000)), Limits { connect: ms(connect), read });
        }
    }
}

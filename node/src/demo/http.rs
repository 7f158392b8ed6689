//! The demo web server: HTTP/1.1 with keep-alive, which answers with its name and what it was asked.
//!
//! `/healthz` says `ok`, `/slow?ms=N` waits, `/size?bytes=N` sends that many bytes, `/ws/echo`
//! upgrades to a WebSocket echo, and any other path gets a page that shows the request as it
//! arrived. Requests are bounded and read to their end, so that the connection can be kept.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::websocket;

/// Largest request head.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;
/// Longest `/slow`.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// A request head.
struct Request {
    method: String,
    target: String,
    http11: bool,
    headers: Vec<(String, String)>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The number of `name` in the query.
    fn number(&self, name: &str) -> Option<u64> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').filter_map(|p| p.split_once('=')).find(|(n, _)| *n == name)?.1.parse().ok()
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.header(name).is_some_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
    }

    fn keep_alive(&self) -> bool {
        if self.http11 {
            !self.has_token("connection", "close")
        } else {
            self.has_token("connection", "keep-alive")
        }
    }
}

/// Serves one connection.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    Connection { stream, peer, name, buffer: Vec::new(), served: 0 }.run().await
}

struct Connection<'a> {
    stream: TcpStream,
    peer: SocketAddr,
    name: &'a str,
    /// Received and not yet used: pipelined requests wait here.
    buffer: Vec<u8>,
    /// Requests answered, shown so that one sees whether a connection was reused.
    served: u64,
}

impl Connection<'_> {
    async fn run(mut self) -> io::Result<()> {
        loop {
            let request = match self.read_head().await? {
                Head::Request(request) => request,
                Head::Closed => return Ok(()),
                Head::Bad => {
                    self.respond(400, "Bad Request", &[], b"bad request\n", true, false).await?;
                    return Ok(());
                }
            };
            self.served += 1;
            if request.path() == "/ws/echo" {
                return self.websocket(&request).await;
            }
            if request.has_token("expect", "100-continue") {
                self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            let Some(body) = self.read_body(&request).await? else {
                return self.respond(400, "Bad Request", &[], b"bad body\n", true, false).await;
            };
            let keep = request.keep_alive();
            self.answer(&request, body, keep).await?;
            if !keep {
                return self.stream.shutdown().await;
            }
        }
    }

    async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    async fn read_head(&mut self) -> io::Result<Head> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut parsed = httparse::Request::new(&mut headers);
            match parsed.parse(&self.buffer) {
                Ok(httparse::Status::Complete(length)) => {
                    let request = Request {
                        method: parsed.method.unwrap_or_default().to_owned(),
                        target: parsed.path.unwrap_or_default().to_owned(),
                        http11: parsed.version == Some(1),
                        headers: parsed
                            .headers
                            .iter()
                            .map(|h| (h.name.to_owned(), String::from_utf8_lossy(h.value).into_owned()))
                            .collect(),
                    };
                    self.buffer.drain(..length);
                    return Ok(Head::Request(request));
                }
                Ok(httparse::Status::Partial) if self.buffer.len() < MAX_HEAD => {
                    if !self.fill().await? {
                        return Ok(Head::Closed);
                    }
                }
                _ => return Ok(Head::Bad),
            }
        }
    }

    /// Reads the body to its end and returns its length; `None` if its framing is broken.
    async fn read_body(&mut self, request: &Request) -> io::Result<Option<u64>> {
        if request.has_token("transfer-encoding", "chunked") {
            return self.read_chunks().await;
        }
        let Some(length) = request.header("content-length") else { return Ok(Some(0)) };
        let Ok(length) = length.parse::<u64>() else { return Ok(None) };
        Ok(self.skip(length).await?.then_some(length))
    }

    async fn skip(&mut self, mut length: u64) -> io::Result<bool> {
        loop {
            let take = length.min(self.buffer.len() as u64);
            self.buffer.drain(..take as usize);
            length -= take;
            if length == 0 {
                return Ok(true);
            }
            if !self.fill().await? {
                return Ok(false);
            }
        }
    }

    /// A line without its CRLF; `None` at the end of input or when it is too long.
    async fn read_line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_HEAD || !self.fill().await? {
                return Ok(None);
            }
        }
    }

    async fn read_chunks(&mut self) -> io::Result<Option<u64>> {
        let mut total = 0;
        loop {
            let Some(line) = self.read_line().await? else { return Ok(None) };
            let size = line.split(';').next().unwrap_or_default().trim();
            let Ok(size) = u64::from_str_radix(size, 16) else { return Ok(None) };
            if size == 0 {
                break;
            }
            if !self.skip(size).await? || self.read_line().await?.as_deref() != Some("") {
                return Ok(None);
            }
            total += size;
        }
        // Trailers.
        while let Some(line) = self.read_line().await? {
            if line.is_empty() {
                return Ok(Some(total));
            }
        }
        Ok(None)
    }

    async fn answer(&mut self, request: &Request, body: u64, keep: bool) -> io::Result<()> {
        let head_only = request.method == "HEAD";
        let close = !keep;
        match request.path() {
            "/healthz" => self.respond(200, "OK", &[], b"ok\n", close, head_only).await,
            "/size" => self.respond_size(request.number("bytes").unwrap_or(0), close, head_only).await,
            path => {
                if path == "/slow" {
                    let wait = Duration::from_millis(request.number("ms").unwrap_or(0)).min(MAX_WAIT);
                    tokio::time::sleep(wait).await;
                }
                let page = self.page(request, body);
                self.respond(200, "OK", &[], page.as_bytes(), close, head_only).await
            }
        }
    }

    /// What arrived, as text.
    fn page(&self, request: &Request, body: u64) -> String {
        let version = if request.http11 { "HTTP/1.1" } else { "HTTP/1.0" };
        let mut page = format!(
            "server: {}\nrequest: {} {} {version}\nfrom: {} (request {} on this connection)\nbody: {body} bytes\n",
            self.name, request.method, request.target, self.peer, self.served
        );
        for (name, value) in &request.headers {
            let _ = writeln!(page, "  {name}: {value}");
        }
        page
    }

    async fn respond(
        &mut self,
        status: u16,
        reason: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        close: bool,
        head_only: bool,
    ) -> io::Result<()> {
        let mut out = self.head(status, reason, body.len() as u64, close);
        for (name, value) in headers {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        out.push_str("\r\n");
        let mut out = out.into_bytes();
        if !head_only {
            out.extend_from_slice(body);
        }
        self.stream.write_all(&out).await
    }

    async fn respond_size(&mut self, bytes: u64, close: bool, head_only: bool) -> io::Result<()> {
        let mut head = self.head(200, "OK", bytes, close);
        head.push_str("\r\n");
        self.stream.write_all(head.as_bytes()).await?;
        let mut left = if head_only { 0 } else { bytes };
        while left > 0 {
            let take = left.min(FILLER.len() as u64) as usize;
            self.stream.write_all(&FILLER[..take]).await?;
            left -= take as u64;
        }
        Ok(())
    }

    fn head(&self, status: u16, reason: &str, length: u64, close: bool) -> String {
        let connection = if close { "close" } else { "keep-alive" };
        format!(
            "HTTP/1.1 {status} {reason}\r\nServer: phalanx-demo\r\nX-Server: {}\r\nX-Request-Number: {}\r\n\
             Content-Type: text/plain\r\nContent-Length: {length}\r\nConnection: {connection}\r\n",
            self.name, self.served
        )
    }

    async fn websocket(mut self, request: &Request) -> io::Result<()> {
        let key = request.header("sec-websocket-key");
        let asked = request.has_token("upgrade", "websocket") && request.has_token("connection", "upgrade");
        let (Some(key), true) = (key, asked) else {
            return self
                .respond(
                    426,
                    "Upgrade Required",
                    &[("Upgrade", "websocket")],
                    b"a websocket, please\n",
                    true,
                    false,
                )
                .await;
        };
        let reply = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\nX-Server: {}\r\n\r\n",
            websocket::accept_key(key),
            self.name
        );
        self.stream.write_all(reply.as_bytes()).await?;
        let (read, write) = self.stream.split();
        let mut stream =
            tokio::io::join(io::Cursor::new(std::mem::take(&mut self.buffer)).chain(read), write);
        websocket::echo(&mut stream).await
    }
}

/// What came instead of, or as, a request.
enum Head {
    Request(Request),
    Closed,
    Bad,
}

static FILLER: [u8; 16 * 1024] = [b'x'; 16 * 1024];

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Sends `bytes`, closes, and returns all that comes back.
    async fn exchange(bytes: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let server = tokio::spawn(async move { serve(stream, peer, "s1").await });
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        server.await.unwrap().unwrap();
        got
    }

    #[tokio::test]
    async fn pipelined_requests_are_answered_in_order_on_one_connection() {
        let got = exchange(
            b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\
              POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n\
              GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
        )
        .await;
        let (a, rest) = got.split_once("request: POST /a HTTP/1.1").unwrap();
        assert!(a.contains("X-Server: s1\r\n") && rest.contains("body: 3 bytes"), "{got}");
        let (_, rest) = rest.split_once("request: POST /b HTTP/1.1").unwrap();
        assert!(rest.contains("(request 2 on this connection)\nbody: 5 bytes"), "{got}");
        assert!(rest.ends_with("Connection: close\r\n\r\nok\n"), "{got}");
    }

    #[tokio::test]
    async fn size_sends_what_was_asked_and_head_sends_no_body() {
        let got = exchange(b"GET /size?bytes=20000 HTTP/1.1\r\nConnection: close\r\n\r\n").await;
        assert_eq!(got.split_once("\r\n\r\n").unwrap().1.len(), 20000);
        let got = exchange(b"HEAD /size?bytes=7 HTTP/1.0\r\n\r\n").await;
        assert!(got.contains("Content-Length: 7\r\n") && got.ends_with("\r\n\r\n"), "{got}");
    }

    #[tokio::test]
    async fn bad_input_gets_400() {
        for bad in [
            &b"nonsense\x00\r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert!(exchange(bad).await.starts_with("HTTP/1.1 400 "), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn upgrade_to_websocket_echoes_bytes_that_came_with_the_request() {
        let mut sent = b"GET /ws/echo HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
        sent.extend_from_slice(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i', 0x88, 0x80, 0, 0, 0, 0]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let server = tokio::spawn(async move { serve(stream, peer, "s1").await });
        client.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got.starts_with(b"HTTP/1.1 101 ") && got.ends_with(b"\x81\x02hi\x88\x00"), "{got:?}");
        server.await.unwrap().unwrap();
        assert!(exchange(b"GET /ws/echo HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 426 "));
    }
}

//! HTTP: what clients and servers see, and the `httplog` line.

use crate::exchange::{Case, compare};
use crate::script::Step::{self, *};

const GET: Step = Send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
const OK: Step = Serve("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Case: Yes\r\n\r\nok");

/// Why chunks differ.
const CHUNKS: &str = "chunks are checked and sent on as they came, without a copy";
/// Why ports differ.
const PORTS: &str = "a port in the target is not taken away";
/// Why a body that does not come is told otherwise.
const SLOW: &str = "manual section 8.5, cH: it was the client that was waited for";
/// A request that is none.
const REFUSED: &str = "[client 0]\nHTTP/1.1 400 Bad request\\r\nContent-length: 90\\r\nCache-Control: no-cache\\r\n\
     Connection: close\\r\nContent-Type: text/html\\r\n\\r\n<html><body><h1>400 Bad request</h1>\n\
     Your browser sent an invalid request.\n</body></html>\n<EOF>\n\
     [log] 127.0.0.1:PORT [DATE] FE FE/<NOSRV> -1/-1/-1/-1/n 400 0 - - PR-- n/1/0/0/0 0/0 \"<BADREQ>\"\n";

const CASES: &[Case] = &[
    // Plain exchanges and connection headers.
    Case::new("plain get", &[&[GET, Message, Open(100)]]).servers(&[&[OK]]),
    Case::new("two requests, one connection", &[&[GET, Message, GET, Message]]).servers(&[&[OK]]),
    Case::new("pipelined", &[&[Send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"), Message, Message, Open(100)]])
        .servers(&[&[OK]]),
    Case::new("client closes", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("1.0 client", &[&[Send("GET / HTTP/1.0\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("1.0 client with host", &[&[Send("GET / HTTP/1.0\r\nHost: a\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("1.0 keep-alive client", &[&[Send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), Message, Open(100)]]).servers(&[&[OK]]),
    Case::new("odd connection header", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-foo, Keep-Alive, TE\r\nX-Foo: 1\r\nTE: trailers\r\nKeep-Alive: 300\r\nProxy-Connection: keep-alive\r\n\r\n"), Message, Open(100)]]).servers(&[&[OK]]),
    Case::new("connection close and keep-alive", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("server closes", &[&[GET, Message, GET, Message]])
        .servers(&[&[Message, Send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")]]),
    Case::new("1.0 server", &[&[GET, Message, Open(100)]]).servers(&[&[Message, Send("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")]]),
    Case::new("1.0 keep-alive server", &[&[GET, Message, Open(100)]])
        .servers(&[&[Serve("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok")]]),
    Case::new("until close", &[&[GET, Message]]).servers(&[&[Message, Send("HTTP/1.1 200 OK\r\n\r\nbody")]]),
    Case::new("until close to 1.0", &[&[Send("GET / HTTP/1.0\r\n\r\n"), Message]]).servers(&[&[Message, Send("HTTP/1.0 200 OK\r\n\r\nbody")]]),
    Case::new("httpclose", &[&[GET, Message, Eof]]).front("option httpclose").servers(&[&[OK]]),
    Case::new("httpclose in the backend", &[&[GET, Message, Eof]]).back("option httpclose\n server s1 SERVER").servers(&[&[OK]]),
    Case::new("httpclose 1.0 client", &[&[Send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), Message, Eof]])
        .front("option httpclose").servers(&[&[OK]]),
    Case::new("http-server-close", &[&[GET, Message, GET, Message, Open(100)]]).back("option http-server-close\n server s1 SERVER").servers(&[&[OK]]),
    Case::new("http-server-close 1.0", &[&[Send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), Message, Open(100)]])
        .front("option http-server-close").servers(&[&[OK]]),
    Case::new("forwardfor", &[&[GET, Message]]).back("option forwardfor\n server s1 SERVER").servers(&[&[OK]]),
    Case::new("forwardfor twice", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nZ: 1\r\n\r\n"), Message]])
        .front("option forwardfor").back("option forwardfor header X-Real\n server s1 SERVER").servers(&[&[OK]]),
    Case::new("forwardfor if-none", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"), Message]])
        .front("option forwardfor if-none").servers(&[&[OK]]),
    Case::new("forwardfor except", &[&[GET, Message]]).front("option forwardfor except 127.0.0.0/8").servers(&[&[OK]]),
    // Methods, targets, bodies.
    Case::new("head", &[&[Send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), Head, GET, Message]])
        .servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), Head, Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), Wait(300)]]),
    Case::new("head error", &[&[Send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), Head, Open(100)]]),
    Case::new("204", &[&[GET, Message, GET, Message]]).servers(&[&[Serve("HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n")]]),
    Case::new("204 with length", &[&[GET, Message, GET, Message]]).servers(&[&[Serve("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")]]),
    Case::new("304 with length", &[&[GET, Message, GET, Message]]).servers(&[&[Serve("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"x\"\r\n\r\n")]]),
    Case::new("chunked down", &[&[GET, Message, GET, Message]])
        .servers(&[&[Serve("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n0005\r\ndefgh\r\n0\r\n\r\n")]])
        .differs(&[("8\\r\nabcdefgh\\r\n", "3;ext=1\\r\nabc\\r\n0005\\r\ndefgh\\r\n", CHUNKS)]),
    Case::new("chunked with trailers", &[&[GET, Message, GET, Message]])
        .servers(&[&[Serve("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\nOther: 2\r\n\r\n")]])
        .differs(&[("x-t: 1\\r\nother: 2", "X-T: 1\\r\nOther: 2", CHUNKS)]),
    Case::new("chunked to 1.0", &[&[Send("GET / HTTP/1.0\r\n\r\n"), Message]])
        .servers(&[&[Serve("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")]]),
    Case::new("chunked up", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"), Message, Open(50)]])
        .servers(&[&[OK]])
        .differs(&[("D\\r\nabc0123456789\\r\n", "3\\r\nabc\\r\nA\\r\n0123456789\\r\n", CHUNKS)]),
    Case::new("chunked cased", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), Message, Open(50)]])
        .servers(&[&[OK]]),
    Case::new("post", &[&[Send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd"), Message, GET, Message]]).servers(&[&[OK]]),
    Case::new("expect 100", &[&[Send("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"), Head, Send("abcd"), Message]])
        .servers(&[&[Head, Send("HTTP/1.1 100 Continue\r\n\r\n"), Bytes(4), Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), Wait(300)]]),
    Case::new("103", &[&[GET, Head, Message]])
        .servers(&[&[Head, Send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), Wait(300)]]),
    Case::new("websocket", &[&[Send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"), Head, Send("ping"), Bytes(4), Shut, Eof]])
        .servers(&[&[Head, Send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"), Bytes(4), Send("pong"), Eof]]),
    Case::new("upgrade refused", &[&[Send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n"), Message, Open(50)]])
        .servers(&[&[OK]]),
    Case::new("websocket without a key", &[&[Send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), Message, Open(50)]])
        .servers(&[&[OK]]),
    Case::new("connect method", &[&[Send("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"), Head, Send("ping"), Bytes(4), Shut, Eof]])
        .servers(&[&[Head, Send("HTTP/1.1 200 OK\r\n\r\n"), Bytes(4), Send("pong"), Eof]])
        .differs(&[("host: a\\r", "host: a:443\\r", PORTS)]),
    Case::new("absolute uri", &[&[Send("GET http://b.com/x?y HTTP/1.1\r\nHost: b.com\r\n\r\n"), Message]]).servers(&[&[OK]]),
    Case::new("absolute uri, other host", &[&[Send("GET http://b.com/x?y HTTP/1.1\r\nHost: c.com\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("absolute uri, no host", &[&[Send("GET http://b.com/x?y HTTP/1.1\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("absolute uri, default port", &[&[Send("GET http://b.com:80/x HTTP/1.1\r\nHost: b.com\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]])
        .differs(&[("GET http://b.com/x", "GET http://b.com:80/x", PORTS)]),
    Case::new("options *", &[&[Send("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), Message]]).servers(&[&[OK]]),
    Case::new("unknown method", &[&[Send("FOO /x HTTP/1.1\r\nHost: a\r\n\r\n"), Message]]).servers(&[&[OK]]),
    Case::new("lower case method", &[&[Send("get /x HTTP/1.1\r\nHost: a\r\n\r\n"), Message]]).servers(&[&[OK]]),
    Case::new("request header case and order", &[&[Send("GET /x HTTP/1.1\r\nZeta: 1\r\nHOST: A.b\r\nAccept:  two  words \r\nX-Empty:\r\nx_under: 1\r\nZeta: 2\r\n\r\n"), Message]])
        .servers(&[&[OK]]),
    Case::new("response header case and order", &[&[GET, Message]])
        .servers(&[&[Serve("HTTP/1.1 200 Fine Thing\r\nZeta: 1\r\nServer:  two  words \r\nX-Empty:\r\nSet-Cookie: A=1\r\nSET-COOKIE: b=2\r\nContent-Length: 0\r\n\r\n")]]),
    Case::new("response without reason", &[&[GET, Message]]).servers(&[&[Serve("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n")]]),
    Case::new("response folded", &[&[GET, Message]]).servers(&[&[Serve("HTTP/1.1 200 OK\r\nX: a\r\n  b\r\nContent-Length: 0\r\n\r\n")]]),
    Case::new("leading empty lines", &[&[Send("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Message]]).servers(&[&[OK]]),
    Case::new("bare lf", &[&[Send("GET / HTTP/1.1\nHost: a\n\n"), Message]]).servers(&[&[OK]]),
    Case::new("spaces in the request line", &[&[Send("GET   /x   HTTP/1.1\r\nHost: a\r\n\r\n"), Message]]).servers(&[&[OK]]),
    Case::new("keep-alive probe gets content-length twice", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("no host", &[&[Send("GET / HTTP/1.1\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("two equal hosts", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("empty host", &[&[Send("GET / HTTP/1.1\r\nHost:\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    // Refused requests.
    Case::new("garbage", &[&[Send("\u{16}\u{3}\u{1}garbage\r\n\r\n"), Message, Eof]]),
    Case::new("no version", &[&[Send("GET /\r\n\r\n"), Message, Eof]]),
    Case::new("bad version", &[&[Send("GET / HTTP/x.1\r\n\r\n"), Message, Eof]]),
    Case::new("version 2", &[&[Send("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("version 1.2", &[&[Send("GET / HTTP/1.2\r\nHost: a\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("rtsp", &[&[Send("OPTIONS rtsp://x/ RTSP/1.0\r\nCSeq: 1\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("fragment", &[&[Send("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("high byte in the uri", &[&[Send("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("control byte in the uri", &[&[Send("GET /\u{1} HTTP/1.1\r\nHost: a\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("relative uri", &[&[Send("GET foo HTTP/1.1\r\nHost: a\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("star get", &[&[Send("GET * HTTP/1.1\r\nHost: a\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("space before colon", &[&[Send("GET / HTTP/1.1\r\nHost : a\r\n\r\n"), Message, Eof]]),
    Case::new("empty header name", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n"), Message, Eof]]),
    Case::new("no colon", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nfoo\r\n\r\n"), Message, Eof]]),
    Case::new("odd header name", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX(y): a\r\n\r\n"), Message, Eof]]),
    Case::new("folded request", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n  b\r\n\r\n"), Message, Eof]]).servers(&[&[OK]])
        .instead(REFUSED, "RFC 9112 section 5.2 lets a server refuse what old and new readers see differently"),
    Case::new("folded first", &[&[Send("GET / HTTP/1.1\r\n Host: a\r\nX: a\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("nul in a value", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"), Message, Eof]]).servers(&[&[OK]])
        .instead(REFUSED, "RFC 9110 section 5.5; newer HAProxy refuses it as well"),
    Case::new("control in a value", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX: a\u{1}b\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("cr in a value", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("other lengths", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab"), Message, Eof]]),
    Case::new("lengths in a list", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nab"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("signed length", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nab"), Message, Eof]]),
    Case::new("empty length", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nab"), Message, Eof]]),
    Case::new("huge length", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nab"), Message, Eof]]),
    Case::new("both lengths", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"), Message, Eof]]).servers(&[&[OK]])
        .instead(REFUSED, "ambiguous framing is refused, RFC 9112 section 6.1"),
    Case::new("unknown coding", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: foo\r\n\r\n2\r\nab\r\n0\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("gzip, chunked", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("chunked twice", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("chunked in 1.0", &[&[Send("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"), Message, Eof]]).servers(&[&[OK]])
        .instead(REFUSED, "ambiguous framing is refused, RFC 9112 section 6.1"),
    Case::new("get with a body", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("get 1.0 with a body", &[&[Send("GET / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("bad chunk", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), Wait(250), Send("zz\r\nab\r\n0\r\n\r\n"), Message, Eof]])
        .servers(&[&[Head, Eof]]),
    Case::new("bad chunk at once", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n"), Message, Eof]])
        .servers(&[&[Head, Eof]]),
    Case::new("bad chunk end", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n"), Message, Eof]])
        .servers(&[&[Head, Eof]]),
    Case::new("huge head", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX: "), Fill(17000), Send("\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("large head", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nX: "), Fill(15100), Send("\r\n\r\n"), Message, Open(50)]]).servers(&[&[OK]]),
    Case::new("second request bad", &[&[GET, Message, Send("BAD\r\n\r\n"), Message, Eof]]).servers(&[&[OK]]),
    // Silent and slow clients.
    Case::new("silent client", &[&[Message, Eof]]),
    Case::new("silent client, dontlognull", &[&[Message, Eof]]).front("option dontlognull"),
    Case::new("connect and close", &[&[Shut, Message]]),
    Case::new("connect and close, dontlognull", &[&[Shut, Message]]).front("option dontlognull"),
    Case::new("http-request timeout", &[&[Send("GET / HT"), Message, Eof]]).front("timeout http-request 300ms"),
    Case::new("slow head", &[&[Send("GET / HT"), Message, Eof]]),
    Case::new("half a head, then close", &[&[Send("GET / HT"), Shut, Message, Eof]]),
    Case::new("idle keep-alive", &[&[GET, Message, Eof]]).front("timeout http-keep-alive 200ms").servers(&[&[OK]]),
    Case::new("half a second head", &[&[GET, Message, Send("GET"), Message, Eof]]).servers(&[&[OK]]),
    Case::new("slow body", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"), Message, Eof]]).servers(&[&[Head, Eof]])
        .differs(&[("504 Gateway Time-out", "408 Request Time-out", SLOW), ("content-length: 92", "content-length: 110", SLOW), ("The server didn\\'t respond in time.", "Your browser didn\\'t send a complete request in time.", SLOW), ("504 B - - sH", "408 B - - cH", SLOW)]),
    Case::new("half a body, then close", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"), Wait(100), Shut, Message, Eof]]).servers(&[&[Head, Eof]]),
    Case::new("half a body, then reset", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"), Wait(100), Reset]]).servers(&[&[Head, Eof]]),
    Case::new("half close after the request", &[&[GET, Shut, Message, Eof]]).servers(&[&[OK]]),
    Case::new("client resets while waiting", &[&[GET, Wait(100), Reset]]).servers(&[&[Head, Wait(300), Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]])
        .differs(&[("n/n/n/n/n 200 B - - CD", "n/n/n/-1/n -1 0 - - CD", "a reset is noticed at once, not when the response comes")]),
    Case::new("client resets in the response", &[&[GET, Bytes(40), Reset]])
        .servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok"), Wait(300), Eof]])
        .differs(&[("sD--", "CD--", "a reset is noticed at once, not by the server's timeout")]),
    // Servers that fail.
    Case::new("refused", &[&[GET, Message, Open(50)]]),
    Case::new("refused, 1.0", &[&[Send("GET / HTTP/1.0\r\n\r\n"), Message, Eof]]),
    Case::new("refused post", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd"), Message, Open(50)]]),
    Case::new("refused post, half a body", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"), Message, Open(50)]]),
    Case::new("refused, no retries", &[&[GET, Message]]).back("retries 0\n server s1 SERVER"),
    Case::new("refused, redispatch", &[&[GET, Message]])
        .back("balance roundrobin\n option redispatch\n retries 2\n server s0 127.0.0.1:1\n server s1 SERVER").servers(&[&[OK]]),
    Case::new("refused everywhere, 2 retries", &[&[GET, Message]]).back("balance roundrobin\n option redispatch 1\n retries 2\n server s0 127.0.0.1:1\n server s1 127.0.0.1:2"),
    Case::new("refused everywhere, 1 retries", &[&[GET, Message]]).back("balance roundrobin\n option redispatch 1\n retries 1\n server s0 127.0.0.1:1\n server s1 127.0.0.1:2"),
    Case::new("refused everywhere, redispatch", &[&[GET, Message]])
        .back("balance roundrobin\n option redispatch 1\n retries 3\n server s0 127.0.0.1:1\n server s1 127.0.0.1:2"),
    Case::new("no server", &[&[GET, Message, Open(50)]]).back(""),
    Case::new("disabled server", &[&[GET, Message, Open(50)]]).back("server s1 SERVER disabled"),
    Case::new("backup server", &[&[GET, Message]]).back("server s0 127.0.0.1:1 disabled\n server s1 SERVER backup").servers(&[&[OK]]),
    Case::new("empty response", &[&[GET, Message, Eof]]).servers(&[&[Head]]),
    Case::new("half a response head", &[&[GET, Message, Eof]]).servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nX:")]]),
    Case::new("bad response", &[&[GET, Message, Eof]]).servers(&[&[Head, Send("SSH-2.0-x\r\n\r\n"), Wait(100)]]),
    Case::new("bad status", &[&[GET, Message, Eof]]).servers(&[&[Head, Send("HTTP/1.1 2000 OK\r\n\r\n"), Wait(100)]])
        .instead("[client 0]\nHTTP/1.1 502 Bad Gateway\\r\ncontent-length: 107\\r\ncache-control: no-cache\\r\n\
         content-type: text/html\\r\n\\r\n<html><body><h1>502 Bad Gateway</h1>\n\
         The server returned an invalid or incomplete response.\n</body></html>\n<EOF>\n\
         [server 0]\nGET / HTTP/1.1\\r\nhost: a\\r\n\\r\n\n\
         [log] 127.0.0.1:PORT [DATE] FE BE/s1 n/n/n/-1/n 502 B - - PH-- n/1/0/0/0 0/0 \"GET / HTTP/1.1\"\n", "a status has three digits"),
    Case::new("bad response header", &[&[GET, Message, Eof]]).servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nFoo bar: x\r\n\r\n"), Wait(100)]]),
    Case::new("two lengths in the response", &[&[GET, Message, Eof]]).servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"), Wait(100)]]),
    Case::new("both lengths in the response", &[&[GET, Message, Open(50)]])
        .servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), Eof]])
        .differs(&[("<RESET>", "<EOF>", "the response was complete")]),
    Case::new("huge response head", &[&[GET, Message, Eof]]).servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nX: "), Fill(17000), Send("\r\n\r\n"), Wait(100)]]),
    Case::new("reset response", &[&[GET, Message, Eof]]).servers(&[&[Head, Reset]]),
    Case::new("server timeout", &[&[GET, Message, Eof]]).servers(&[&[Head, Eof]]),
    Case::new("server timeout in the body", &[&[GET, Eof]]).servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"), Eof]]),
    Case::new("server closes in the body", &[&[GET, Eof]]).servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")]]),
    Case::new("server closes in a chunk", &[&[GET, Eof]]).servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok")]])
        .differs(&[("2\\r\nok\\r\n<EOF>", "5\\r\nok<EOF>", CHUNKS)]),
    Case::new("bad chunk from the server", &[&[GET, Eof]])
        .servers(&[&[Head, Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), Wait(250), Send("zz\r\n"), Wait(100)]])
        .differs(&[("SD--", "PD--", "manual section 8.5, PD")]),
    Case::new("early response", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nab"), Message, Eof]])
        .servers(&[&[Head, Send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")]])
        .differs(&[("cD--", "----", "the rest of a body that the server does not take is not waited for")]),
    Case::new("connect timeout, queue", &[&[GET, Message], ]).back("timeout queue 300ms\n server s1 SERVER maxconn 1 disabled"),
    // Cookies.
    Case::new("cookie insert", &[&[GET, Message], &[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b; SRV=s1; c=d\r\n\r\n"), Message],
        &[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: SRV=zz\r\n\r\n"), Message]])
        .back("cookie SRV insert indirect nocache\n server s1 SERVER cookie s1").servers(&[&[OK]]),
    Case::new("cookie insert direct", &[&[GET, Message], &[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: SRV=s1; a=b\r\n\r\n"), Message]])
        .back("cookie SRV insert\n server s1 SERVER cookie s1").servers(&[&[OK]]),
    Case::new("cookie nocache", &[&[GET, Message]]).back("cookie SRV insert nocache\n server s1 SERVER cookie s1")
        .servers(&[&[Serve("HTTP/1.1 200 OK\r\nETag: \"x\"\r\nCache-Control: max-age=3\r\nContent-Length: 0\r\n\r\n")]]),
    Case::new("cookie attributes", &[&[GET, Message]])
        .back("cookie SRV insert indirect httponly secure domain .a.b domain .c.d attr SameSite=None\n server s1 SERVER cookie s1").servers(&[&[OK]]),
    Case::new("cookie without a value", &[&[GET, Message]]).back("cookie SRV insert indirect\n server s1 SERVER").servers(&[&[OK]]),
    Case::new("cookie prefix", &[&[GET, Message], &[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: ID=s1~abc; x=y\r\n\r\n"), Message],
        &[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: ID=abc\r\n\r\n"), Message]])
        .back("cookie ID prefix\n server s1 SERVER cookie s1")
        .servers(&[&[Serve("HTTP/1.1 200 OK\r\nSet-Cookie: ID=abc; path=/\r\nContent-Length: 0\r\n\r\n")]]),
    Case::new("cookie rewrite", &[&[GET, Message], &[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: ID=s1\r\n\r\n"), Message]])
        .back("cookie ID rewrite\n server s1 SERVER cookie s1")
        .servers(&[&[Serve("HTTP/1.1 200 OK\r\nSet-Cookie: ID=; path=/\r\nContent-Length: 0\r\n\r\n")]]),
    Case::new("cookie preserve", &[&[GET, Message]]).back("cookie ID insert indirect preserve\n server s1 SERVER cookie s1")
        .servers(&[&[Serve("HTTP/1.1 200 OK\r\nSet-Cookie: ID=; path=/\r\nContent-Length: 0\r\n\r\n")]]),
    Case::new("cookie of a disabled server", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: SRV=s0\r\n\r\n"), Message]])
        .back("cookie SRV insert indirect\n balance roundrobin\n option redispatch\n server s0 127.0.0.1:1 cookie s0 disabled\n server s1 SERVER cookie s1").servers(&[&[OK]]),
    Case::new("cookie of a dead server", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: SRV=s0\r\n\r\n"), Message]])
        .back("cookie SRV insert indirect\n balance roundrobin\n option redispatch\n server s0 127.0.0.1:1 cookie s0\n server s1 SERVER cookie s1").servers(&[&[OK]]),
    Case::new("cookie dynamic lifetimes", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\nCookie: SRV=s1|AAAAA|AAAAB\r\n\r\n"), Head]])
        .back("cookie SRV insert indirect maxidle 1h maxlife 8h\n server s1 SERVER cookie s1")
        .servers(&[&[Head, Send("HTTP/1.0 500 X\r\n\r\n")]]),
    // Other log formats and options.
    Case::new("tcplog in http mode", &[&[GET, Message]]).front("option tcplog").servers(&[&[OK]]),
    Case::new("dontlog-normal", &[&[GET, Message]]).front("option dontlog-normal").servers(&[&[OK]]),
    Case::new("logasap", &[&[GET, Message]]).front("option logasap").servers(&[&[OK]]),
    Case::new("escaped uri in the log", &[&[Send("GET /\"quoted\"{x} HTTP/1.1\r\nHost: a\r\n\r\n"), Message]]).servers(&[&[OK]]),
    Case::new("long uri in the log", &[&[Send("GET /"), Fill(3000), Send(" HTTP/1.1\r\nHost: a\r\n\r\n"), Message]]).servers(&[&[OK]]),
];

const ABORTS: &[Case] =
    &[
        Case::new("half close while the server works", &[&[GET, Wait(100), Shut, Message, Eof]])
            .servers(&[&[Head, Wait(300), Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]]),
        Case::new("close while the server works", &[&[GET, Wait(100)]]).servers(&[&[
            Head,
            Wait(300),
            Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ]]),
        Case::new("reset while the server works", &[&[GET, Wait(100), Reset]]).servers(&[&[
            Head,
            Wait(300),
            Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ]]),
    ];

const DEFAULTS: &str = " mode http\n option httplog\n timeout http-keep-alive 2s\n";

#[test]
fn http_is_forwarded_and_logged_as_haproxy_does() {
    compare(CASES, DEFAULTS);
}

#[test]
fn abortonclose_is_haproxys() {
    compare(ABORTS, &format!("{DEFAULTS} option abortonclose\n"));
}

//! TCP: what is carried, and the `tcplog` and default lines.

use crate::exchange::{Case, compare};
use crate::script::Step::*;

const CASES: &[Case] = &[
    Case::new("client ends", &[&[Send("hello"), Bytes(5), Shut, Eof]]).servers(&[&[
        Bytes(5),
        Send("world"),
        Eof,
    ]]),
    Case::new("server ends", &[&[Send("hello"), Eof]]).servers(&[&[Bytes(5), Send("world")]]),
    Case::new("half close", &[&[Send("hello"), Shut, Eof]]).servers(&[&[Eof, Send("late")]]),
    Case::new("server speaks first", &[&[Bytes(2), Send("hello"), Shut, Eof]]).servers(&[&[
        Send("hi"),
        Bytes(5),
        Eof,
    ]]),
    Case::new("acknowledgements saved on both sides", &[&[Send("hello"), Bytes(5), Send("more"), Eof]])
        .front("option tcp-smart-accept")
        .back("option tcp-smart-connect\n server s1 SERVER")
        .servers(&[&[Bytes(5), Send("world"), Bytes(4), Send("end")]]),
    Case::new("acknowledgements saved on neither side", &[&[Send("hello"), Bytes(5), Shut, Eof]])
        .front("no option tcp-smart-accept")
        .back("no option tcp-smart-connect\n server s1 SERVER")
        .servers(&[&[Bytes(5), Send("world"), Eof]]),
    Case::new("nothing is sent", &[&[Shut, Eof]]).servers(&[&[Eof]]),
    Case::new("nothing is sent, dontlognull", &[&[Shut, Eof]]).front("option dontlognull").servers(&[&[Eof]]),
    Case::new("refused", &[&[Send("hello"), Eof]]),
    Case::new("refused, redispatch", &[&[Send("hello"), Bytes(5), Shut, Eof]])
        .back("balance roundrobin\n option redispatch\n retries 2\n server s0 127.0.0.1:1\n server s1 SERVER")
        .servers(&[&[Bytes(5), Send("world"), Eof]]),
    Case::new("no server", &[&[Send("hello"), Eof]]).back(""),
    Case::new("disabled server", &[&[Send("hello"), Eof]]).back("server s1 SERVER disabled"),
    Case::new("silence", &[&[Eof]]).servers(&[&[Eof]]),
    Case::new("silent server", &[&[Send("hello"), Eof]]).servers(&[&[Bytes(5), Eof]]),
    Case::new("client timeout", &[&[Send("hello"), Eof]])
        .front("timeout client 200ms")
        .servers(&[&[Bytes(5), Eof]]),
    Case::new("server timeout", &[&[Send("hello"), Eof]])
        .back("timeout server 200ms\n server s1 SERVER")
        .servers(&[&[Bytes(5), Eof]]),
    // The answer shows that the connection stands.
    Case::new("client resets", &[&[Send("hello"), Bytes(1), Reset]]).servers(&[&[Bytes(5), Send("x"), Eof]]),
    Case::new("server resets", &[&[Send("hello"), Eof]]).servers(&[&[Bytes(5), Reset]]),
    // The first stays for much longer than a busy machine takes to bring the second.
    Case::new("queue", &[&[Send("a"), Bytes(1), Wait(2000), Shut, Eof], &[Send("b"), Eof]])
        .together()
        .front("timeout client 5s")
        .back("timeout queue 200ms\n timeout server 5s\n server s1 SERVER maxconn 1")
        .servers(&[&[Bytes(1), Send("x"), Eof]]),
    Case::new(
        "queue that moves",
        &[&[Send("a"), Bytes(1), Wait(1500), Shut, Eof], &[Send("b"), Bytes(1), Shut, Eof]],
    )
    .together()
    .front("timeout client 5s")
    .back("timeout queue 8s\n timeout server 5s\n server s1 SERVER maxconn 1")
    .servers(&[&[Bytes(1), Send("x"), Eof]]),
    Case::new(
        "leaves the queue",
        &[&[Send("a"), Bytes(1), Wait(2000), Shut, Eof], &[Send("b"), Wait(100), Reset]],
    )
    .together()
    .front("timeout client 5s")
    .back("timeout queue 8s\n timeout server 5s\n server s1 SERVER maxconn 1")
    .servers(&[&[Bytes(1), Send("x"), Eof]])
    .differs(&[("0 CD", "0 CQ", "manual section 8.5, CQ")]),
];

#[test]
fn tcp_is_carried_and_logged_as_haproxy_does() {
    compare(CASES, " mode tcp\n option tcplog\n");
}

const PLAIN: &[Case] = &[
    Case::new("default line", &[&[Send("hello"), Bytes(5), Shut, Eof]]).servers(&[&[
        Bytes(5),
        Send("world"),
        Eof,
    ]]),
    Case::new("default line, refused", &[&[Send("hello"), Eof]]),
    Case::new("default line, no server", &[&[Send("hello"), Eof]]).back(""),
    Case::new("default line, http", &[&[Send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Message]])
        .front("mode http")
        .back("mode http\n server s1 SERVER")
        .servers(&[&[Serve("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]]),
];

#[test]
fn the_default_line_is_haproxys() {
    compare(PLAIN, " mode tcp\n");
}

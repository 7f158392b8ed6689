//! Lines and headers against what HAProxy 2.6 wrote for the same sessions.

use super::*;

fn date(unix_us: u64) -> String {
    let mut out = Vec::new();
    bracketed(unix_us, &mut out);
    String::from_utf8(out).expect("ascii")
}

const AT: u64 = 1_795_234_948_433_900;

fn record() -> Record<'static> {
    Record {
        client: "127.0.0.1:40152".parse().expect("address"),
        destination: "127.0.0.1:18081".parse().expect("address"),
        mode: Mode::Http,
        unix_us: AT,
        frontend: "web",
        backend: "webservers",
        server: Some("s1"),
        timers: Timers { request: Some(0), queue: Some(0), connect: Some(0), response: Some(1), total: 1 },
        status: Some(200),
        bytes: 120,
        request_cookie: None,
        response_cookie: None,
        termination: *b"--NI",
        actconn: 1,
        feconn: 1,
        beconn: 0,
        srvconn: 0,
        retries: 0,
        redispatched: false,
        srv_queue: 0,
        backend_queue: 0,
        request: b"GET / HTTP/1.1",
        asap: false,
    }
}

fn text(format: LogFormat, r: &Record<'_>) -> String {
    let mut out = Vec::new();
    line(format, r, &mut out);
    String::from_utf8(out).expect("a line is ascii")
}

#[test]
fn http_line_of_a_served_request() {
    assert_eq!(
        text(LogFormat::Http, &record()),
        format!(
            "127.0.0.1:40152 {} web webservers/s1 0/0/0/1/1 200 120 - - --NI 1/1/0/0/0 0/0 \"GET / HTTP/1.1\"",
            date(AT)
        )
    );
}

#[test]
fn http_line_of_a_bad_request() {
    let r = Record {
        backend: "web",
        server: None,
        timers: Timers::default(),
        status: Some(400),
        bytes: 0,
        termination: *b"PR--",
        request: b"",
        ..record()
    };
    assert_eq!(
        text(LogFormat::Http, &r),
        format!(
            "127.0.0.1:40152 {} web web/<NOSRV> -1/-1/-1/-1/0 400 0 - - PR-- 1/1/0/0/0 0/0 \"<BADREQ>\"",
            date(AT)
        )
    );
}

#[test]
fn http_line_escapes_what_the_client_sent() {
    let r = Record {
        request: b"GET /\xc3{}|\"#\x01\x7f \t HTTP/1.1",
        request_cookie: Some(b"SRV=\"\n"),
        status: None,
        asap: true,
        redispatched: true,
        retries: 3,
        srv_queue: 4,
        backend_queue: 5,
        ..record()
    };
    assert_eq!(
        text(LogFormat::Http, &r),
        format!(
            "127.0.0.1:40152 {} web webservers/s1 0/0/0/1/+1 -1 +120 SRV=#22#0A - --NI 1/1/0/0/+3 4/5 \
             \"GET /#C3{{}}|#22#23#01#7F #09 HTTP/1.1\"",
            date(AT)
        )
    );
}

#[test]
fn an_endless_request_line_is_cut() {
    let long = vec![b'a'; 70_000];
    let r = Record { request: &long, ..record() };
    let text = text(LogFormat::Http, &r);
    assert!(text.ends_with("aa\""));
    assert!(text.len() < 1200, "{}", text.len());
}

#[test]
fn tcp_line() {
    let r = Record {
        client: "[2001:db8::1]:45884".parse().expect("address"),
        frontend: "t",
        backend: "t",
        timers: Timers { queue: Some(1), connect: Some(0), total: 1, ..Timers::default() },
        bytes: 117,
        termination: *b"--  ",
        ..record()
    };
    assert_eq!(
        text(LogFormat::Tcp, &r),
        format!("2001:db8::1:45884 {} t t/s1 1/0/1 117 -- 1/1/0/0/0 0/0", date(AT))
    );
}

#[test]
fn line_without_an_option() {
    let r = Record { frontend: "plain", ..record() };
    assert_eq!(text(LogFormat::Default, &r), "Connect from 127.0.0.1:40152 to 127.0.0.1:18081 (plain/HTTP)");
    let r = Record { mode: Mode::Tcp, ..r };
    assert_eq!(text(LogFormat::Default, &r), "Connect from 127.0.0.1:40152 to 127.0.0.1:18081 (plain/TCP)");
}

#[test]
fn headers_of_every_framing() {
    let sender = Sender { tag: "haproxy".into(), pid: 10778, host: None };
    let named = Sender { host: Some("lb1".into()), ..sender.clone() };
    let priority = Priority { facility: 16, level: INFO };
    let (mut day, mut iso) = (Vec::new(), Vec::new());
    syslog(AT, &mut day);
    iso8601(AT, &mut iso);
    let (day, iso) = (String::from_utf8_lossy(&day), String::from_utf8_lossy(&iso));
    for (framing, sender, want) in [
        (LogFraming::Local, &sender, format!("<134>{day} haproxy[10778]: hello\n")),
        (LogFraming::Local, &named, format!("<134>{day} lb1 haproxy[10778]: hello\n")),
        (LogFraming::Rfc3164, &sender, format!("<134>{day} localhost haproxy[10778]: hello\n")),
        (LogFraming::Rfc3164, &named, format!("<134>{day} lb1 haproxy[10778]: hello\n")),
        (LogFraming::Rfc5424, &sender, format!("<134>1 {iso} - haproxy 10778 - - hello\n")),
        (LogFraming::Rfc5424, &named, format!("<134>1 {iso} lb1 haproxy 10778 - - hello\n")),
        (LogFraming::Priority, &sender, "<134>hello\n".into()),
        (LogFraming::Short, &sender, "<6>hello\n".into()),
        (LogFraming::Timed, &sender, format!("<6>{iso} hello\n")),
        (LogFraming::Iso, &sender, format!("{iso} hello\n")),
        (LogFraming::Raw, &sender, "hello\n".into()),
    ] {
        let mut out = b"kept|".to_vec();
        frame(framing, sender, priority, AT, 1024, b"hello", &mut out);
        assert_eq!(String::from_utf8_lossy(&out), format!("kept|{want}"), "{framing:?}");
    }
}

#[test]
fn a_line_longer_than_len_is_cut_and_still_ends() {
    let sender = Sender { tag: "haproxy".into(), pid: 1, host: None };
    let priority = Priority { facility: 23, level: INFO };
    let message = [b'x'; 300];
    for framing in [LogFraming::Local, LogFraming::Raw, LogFraming::Rfc5424] {
        let mut out = Vec::new();
        frame(framing, &sender, priority, AT, 100, &message, &mut out);
        // HAProxy's `len 100` gives 100 bytes and the line feed.
        assert_eq!((out.len(), out.last()), (101, Some(&b'\n')));
    }
}

#[test]
fn addresses_are_written_as_display_does() {
    let mut all: Vec<IpAddr> =
        ["::", "::1", "2001:db8::17", "::ffff:192.0.2.1"].map(|a| a.parse().unwrap()).into();
    all.extend((0..=255u8).map(|n| IpAddr::from([n, 255 - n, n / 10, n.wrapping_mul(7)])));
    for ip in all {
        let mut out = b"kept ".to_vec();
        super::ip(ip, &mut out);
        assert_eq!(String::from_utf8_lossy(&out), format!("kept {ip}"));
    }
}

//! HTTP mode.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use phalanx_config::*;

use crate::harness::*;

#[test]
fn both_sides_are_kept_alive() {
    let plane = Plane::start(listen(Mode::Http, &[web("s1")]));
    let mut client = plane.client();
    let bodies: Vec<String> = (0..4).map(|_| get(&mut client, "/a").1).collect();
    // The first request of a connection goes over a new one, the others over that same one.
    assert!(bodies.iter().all(|b| b == "s1 0\nGET /a HTTP/1.1\r\nhost: x\r\n\r\n"), "{bodies:?}");
    let line = plane.log_line();
    assert!(line.contains(" l l/s1 ") && line.contains(" 200 ") && line.contains(" ---- "), "{line}");
    assert!(line.ends_with("\"GET /a HTTP/1.1\""), "{line}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let plane = Plane::start(listen(Mode::Http, &[web("s1"), web("s2")]));
    let mut client = plane.client();
    send(&mut client, &"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(5));
    let names: Vec<String> = (0..5).map(|_| response(&mut client).1[..2].to_string()).collect();
    assert_eq!(names, ["s1", "s2", "s1", "s2", "s1"]);
}

#[test]
fn close_and_http_1_0_are_honoured() {
    let plane = Plane::start(listen(Mode::Http, &[web("s1")]));
    for (request, connection) in [
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "connection: close"),
        ("GET / HTTP/1.0\r\n\r\n", "connection: close"),
    ] {
        let mut client = plane.client();
        send(&mut client, request);
        let text = read_all(&mut client);
        assert!(text.contains(connection), "{text}");
    }
    let mut client = plane.client();
    for _ in 0..2 {
        send(&mut client, "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        let (head, body) = response(&mut client);
        assert!(head.contains("connection: keep-alive"), "{head}");
        assert!(body.contains("GET / HTTP/1.0\r\nconnection: keep-alive\r\n"), "{body}");
    }
}

#[test]
fn the_connection_mode_is_followed() {
    for (mode, server_close, client_close) in [
        (ConnectionMode::ServerClose, true, false),
        (ConnectionMode::Close, true, true),
        (ConnectionMode::KeepAlive, false, false),
    ] {
        let plane = Plane::start(Proxy { connection_mode: mode, ..listen(Mode::Http, &[web("s1")]) });
        let mut client = plane.client();
        let (head, body) = get(&mut client, "/");
        assert_eq!(body.contains("connection: close"), server_close, "{mode:?} {body}");
        assert_eq!(head.contains("connection: close"), client_close, "{mode:?} {head}");
    }
}

#[test]
fn bodies_of_any_framing_pass_both_ways() {
    let echo = serve(|mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            if head.contains("transfer-encoding: chunked") {
                let body = read_until(&mut stream, "0\r\n\r\n");
                send(&mut stream, &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
            } else {
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
                let mut left: usize = length.parse().unwrap();
                send(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n"));
                let mut buf = vec![0; 1 << 16];
                while left > 0 {
                    let most = left.min(buf.len());
                    let n = stream.read(&mut buf[..most]).unwrap();
                    stream.write_all(&buf[..n]).unwrap();
                    left -= n;
                }
            }
        }
    });
    let plane = Plane::start(listen(Mode::Http, &[echo]));
    let mut client = plane.client();
    let chunks = "5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\n\r\n";
    for _ in 0..2 {
        send(&mut client, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        send(&mut client, chunks);
        assert!(read_until(&mut client, "\r\n\r\n").contains("transfer-encoding: chunked"));
        assert_eq!(read_until(&mut client, "0\r\n\r\n"), chunks);
    }
    let size = 4 << 20;
    send(&mut client, &format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"));
    let sent: Vec<u8> = (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let copy = sent.clone();
    let thread = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    read_until(&mut client, "\r\n\r\n");
    let mut received = vec![0; size];
    client.read_exact(&mut received).unwrap();
    thread.join().unwrap();
    assert!(received == sent);
    send(&mut client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(response(&mut client).1, "ok");
}

#[test]
fn a_response_without_length_ends_with_its_connection() {
    let plane = Plane::start(listen(Mode::Http, &[says("HTTP/1.1 200 OK\r\n\r\nuntil close", true)]));
    let mut client = plane.client();
    send(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(read_all(&mut client), "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil close");
    assert_eq!(plane.ended(), "----");
}

#[test]
fn expect_100_continue_passes_through() {
    let server = serve(|mut stream, _| {
        let head = read_head(&mut stream).unwrap();
        assert!(head.contains("expect: 100-continue"), "{head}");
        send(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n");
        read_until(&mut stream, "abc");
        send(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let plane = Plane::start(listen(Mode::Http, &[server]));
    let mut client = plane.client();
    send(&mut client, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(read_until(&mut client, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    send(&mut client, "abc");
    assert_eq!(response(&mut client).1, "ok");
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    let server = serve(|mut stream, _| {
        let head = read_head(&mut stream).unwrap();
        assert!(head.contains("connection: Upgrade\r\n") && head.contains("upgrade: websocket"), "{head}");
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst";
        send(&mut stream, answer);
        let text = read_until(&mut stream, ".");
        send(&mut stream, &text.to_uppercase());
    });
    let mut proxy = listen(Mode::Http, &[server]);
    proxy.timeouts.tunnel = Some(LIMIT);
    let plane = Plane::start(proxy);
    let mut client = plane.client();
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: k\r\n\r\nearly ";
    send(&mut client, request);
    let text = read_until(&mut client, "first");
    assert!(text.starts_with("HTTP/1.1 101 ") && text.contains("upgrade: websocket"), "{text}");
    send(&mut client, "late.");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), "EARLY LATE.");
    assert!(plane.log_line().contains(" 101 "));
}

#[test]
fn ambiguous_requests_are_refused_and_the_connection_is_closed() {
    let plane = Plane::start(listen(Mode::Http, &[web("s1")]));
    for request in [
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let mut client = plane.client();
        send(&mut client, request);
        assert_eq!(
            read_all(&mut client),
            "HTTP/1.1 400 Bad request\r\nContent-length: 90\r\nCache-Control: no-cache\r\n\
             Connection: close\r\nContent-Type: text/html\r\n\r\n\
             <html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>\n"
        );
        let line = plane.log_line();
        assert!(line.contains(" l l/<NOSRV> -1/-1/-1/-1/") && line.contains(" 400 0 - - PR-- "), "{line}");
        assert!(line.ends_with("\"<BADREQ>\""), "{line}");
    }
    let frontend = plane.state.plan().frontend("l").unwrap().clone();
    let error = frontend.last_error.lock().clone().expect("captured");
    assert_eq!((error.position, &error.bytes[..8]), (8, &b"nonsense"[..]));
    let mut client = plane.client();
    send(&mut client, "GET / HTTP/1.1\r\nHOst: x\r\nX-Bad-\u{1}: y\r\n\r\n");
    read_all(&mut client);
    let error = frontend.last_error.lock().clone().expect("captured");
    assert_eq!(error.bytes, b"GET / HTTP/1.1\r\nHOst: x\r\nX-Bad-\x01: y\r\n\r\n");
    assert_eq!((error.position, error.bytes[error.position]), (31, 1));
}

#[test]
fn a_refused_response_is_kept_as_it_came() {
    for answer in ["nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"] {
        let plane = Plane::start(listen(Mode::Http, &[says(answer, false)]));
        assert!(get(&mut plane.client(), "/").0.starts_with("HTTP/1.1 502 "));
        let error = plane.state.plan().backend("l").unwrap().last_error.lock().clone().expect("captured");
        assert_eq!(String::from_utf8_lossy(&error.bytes), answer);
        let named =
            |of: Option<(Arc<str>, u32)>| of.map(|(name, id)| format!("{name} {id}")).unwrap_or_default();
        assert_eq!((named(error.other), named(error.server)), ("l 2".to_owned(), "s1 1".to_owned()));
        assert_eq!(error.event, 0);
    }
}

#[test]
fn a_head_larger_than_the_buffer_is_refused() {
    let plane = Plane::start(listen(Mode::Http, &[web("s1")]));
    let mut client = plane.client();
    send(&mut client, &format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(16400)));
    assert!(read_all(&mut client).starts_with("HTTP/1.1 400 "));
}

/// An upload makes the buffer larger; heads are held to its first size all the same.
#[test]
fn a_head_after_a_large_upload_is_held_to_the_same_limit() {
    const UPLOAD: usize = 1 << 20;
    let server = serve(|mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let length = if head.starts_with("POST") { UPLOAD } else { 0 };
            stream.read_exact(&mut vec![0; length]).unwrap();
            send(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let plane = Plane::start(listen(Mode::Http, &[server]));
    for (length, status) in [(16_000, 200), (16_400, 400), (100_000, 400)] {
        let mut client = plane.client();
        send(&mut client, &format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {UPLOAD}\r\n\r\n"));
        client.write_all(&vec![b'x'; UPLOAD]).unwrap();
        assert_eq!(response(&mut client).1, "ok");
        // Part of it may be refused before all has been sent.
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(length));
        let _ = client.write_all(long.as_bytes());
        let head = read_until(&mut client, "\r\n\r\n");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{length}: {head}");
    }
}

#[test]
fn a_slow_request_gets_408_and_an_idle_connection_nothing() {
    let mut proxy = listen(Mode::Http, &[web("s1")]);
    proxy.timeouts.http_request = Some(Duration::from_millis(100));
    proxy.timeouts.http_keep_alive = Some(Duration::from_millis(100));
    let plane = Plane::start(proxy);
    let mut client = plane.client();
    send(&mut client, "GET / HT");
    assert!(read_all(&mut client).starts_with("HTTP/1.1 408 Request Time-out\r\n"));
    assert_eq!(plane.ended(), "cR--");
    let mut client = plane.client();
    get(&mut client, "/");
    assert_eq!(read_all(&mut client), "");
}

#[test]
fn failures_of_the_server_are_answered_as_haproxy_does() {
    let silent = serve(|mut stream, _| drop(read_all(&mut stream)));
    let cases = [
        (says("", true), 0, "502 Bad Gateway", "SH--"),
        (says("garbage\r\n\r\n", false), 0, "502 Bad Gateway", "PH--"),
        (silent, 200, "504 Gateway Time-out", "sH--"),
        (refusing(), 0, "503 Service Unavailable", "SC--"),
    ];
    for (server, timeout, status, code) in cases {
        let mut proxy = Proxy { retries: 0, ..listen(Mode::Http, &[server]) };
        if timeout > 0 {
            proxy.timeouts.server = Some(Duration::from_millis(timeout));
        }
        let plane = Plane::start(proxy);
        let mut client = plane.client();
        // The client's connection outlives the failure.
        for _ in 0..2 {
            let (head, _) = get(&mut client, "/");
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\ncontent-length: ")), "{head}");
            assert_eq!(plane.ended(), code, "{status}");
        }
    }
}

#[test]
fn a_response_cut_short_closes_the_client_as_well() {
    let plane =
        Plane::start(listen(Mode::Http, &[says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour", true)]));
    let mut client = plane.client();
    send(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(read_all(&mut client).ends_with("\r\n\r\nfour"));
    assert_eq!(plane.ended(), "SD--");
}

#[test]
fn requests_wait_for_a_place_and_give_it_back() {
    let server = serve(|mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            if head.contains("/slow") {
                std::thread::sleep(Duration::from_millis(50));
            }
            send(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let plane = Plane::start(with_servers(listen(Mode::Http, &[server]), |o| o.maxconn = 1));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = plane.client();
            std::thread::spawn(move || (0..3).for_each(|_| assert_eq!(get(&mut client, "/slow").1, "ok")))
        })
        .collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
    let server = plane.state.plan().backend("l").unwrap().server("s1").unwrap();
    until("all places are free", || server.served() == 0);
    assert_eq!(server.served_max(), 1);
}

#[test]
fn a_full_queue_times_out_with_503() {
    let silent = serve(|mut stream, _| drop(read_all(&mut stream)));
    let mut proxy = with_servers(listen(Mode::Http, &[silent]), |o| o.maxconn = 1);
    proxy.timeouts.queue = Some(Duration::from_millis(50));
    let plane = Plane::start(proxy);
    let mut first = plane.client();
    send(&mut first, "GET / HTTP/1.1\r\n\r\n");
    let server = plane.state.plan().backend("l").unwrap().server("s1").unwrap();
    until("the place is taken", || server.served() == 1);
    assert!(get(&mut plane.client(), "/").0.starts_with("HTTP/1.1 503 "));
    assert_eq!(plane.ended(), "sQ--");
}

#[test]
fn a_cookie_keeps_the_client_on_its_server() {
    let cookie = Cookie {
        name: "SRV".into(),
        mode: CookieMode::Insert,
        indirect: true,
        nocache: true,
        postonly: false,
        preserve: false,
        httponly: false,
        secure: false,
        domains: vec![],
        attrs: vec![],
        maxidle: None,
        maxlife: None,
    };
    let proxy = Proxy { cookie: Some(cookie), ..listen(Mode::Http, &[web("s1"), web("s2"), web("s3")]) };
    let plane = Plane::start(proxy);
    let (head, body) = get(&mut plane.client(), "/");
    assert!(head.contains("\r\nset-cookie: SRV=s1; path=/\r\n") && body.starts_with("s1"), "{head}");
    assert_eq!(plane.ended(), "--NI");
    for (value, name, code) in [("s3", "s3", "--VN"), ("s3", "s3", "--VN"), ("zz", "s2", "--II")] {
        let mut client = plane.client();
        send(&mut client, &format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: a=b; SRV={value}\r\n\r\n"));
        let (_, body) = response(&mut client);
        assert!(body.starts_with(name) && body.contains("\r\ncookie: a=b\r\n"), "{body}");
        assert_eq!(plane.ended(), code);
    }
}

#[test]
fn a_stick_table_keeps_a_session_on_its_server() {
    let expr = Expr {
        fetch: Fetch::Hdr(Named { response: false, name: Some("x-session-id".into()), occurrence: 0 }),
        converters: vec![],
        text: String::new(),
    };
    let table = StickTable {
        key: KeyType::String(32),
        size: 1000,
        expire: None,
        nopurge: false,
        peers: None,
        store: vec![DataType::ServerId, DataType::HttpReqCnt],
        write_to: None,
        recv_only: false,
        server_key: ServerKey::Name,
        brates_factor: 1,
        pos: Pos::default(),
    };
    let proxy = Proxy {
        stick_table: Some(table),
        stick_rules: vec![StickRule {
            kind: StickKind::On,
            expr: expr.clone(),
            table: "l".into(),
            condition: None,
        }],
        rules: Rules {
            http_request: vec![Rule::always(Action::Track(TrackRule {
                counter: 0,
                expr,
                table: Link::new("l"),
            }))],
            ..Rules::default()
        },
        ..listen(Mode::Http, &[web("s1"), web("s2"), web("s3")])
    };
    let plane = Plane::start(proxy);
    let ask = |session: &str| {
        let mut client = plane.client();
        send(&mut client, &format!("GET / HTTP/1.1\r\nHost: x\r\nX-Session-ID: {session}\r\n\r\n"));
        response(&mut client).1[..2].to_string()
    };
    let (one, two) = (ask("one"), ask("two"));
    assert_ne!(one, two);
    for _ in 0..3 {
        assert_eq!((ask("one"), ask("two")), (one.clone(), two.clone()));
    }
}

#[test]
fn a_backend_of_its_own_tracks_requests_as_well() {
    let (back, rule) =
        tracking_backend(Mode::Http, &[web("s1")], vec![DataType::ConnCnt, DataType::HttpReqCnt]);
    let back = Proxy { rules: Rules { http_request: vec![rule], ..Rules::default() }, ..back };
    let front = Proxy {
        kind: ProxyKind::Frontend,
        servers: vec![],
        default_backend: Some("b".into()),
        ..listen(Mode::Http, &[])
    };
    let plane = Plane::start_with(front, |config| config.proxies.push(Arc::new(back.clone())));
    let mut client = plane.client();
    get(&mut client, "/");
    get(&mut client, "/");
    let table = plane.state.tables().get("b").unwrap();
    let now = phalanx_engine::time::Now::default();
    let mut rows = Vec::new();
    table.dump(now, |row| rows.push(row.values.to_vec()));
    assert_eq!(rows, [[2, 2]]);
}

#[test]
fn a_reload_keeps_connections_and_they_take_the_new_plan() {
    let plane = Plane::start(listen(Mode::Http, &[web("s1")]));
    let mut client = plane.client();
    assert!(get(&mut client, "/").1.starts_with("s1"));
    let second = web("s2");
    plane.reload(|proxy| proxy.servers = vec![Arc::new(server(2, second))]);
    assert!(get(&mut client, "/").1.starts_with("s2"));
    plane.reload(|proxy| proxy.name = "other".into());
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert!(get(&mut plane.client(), "/").1.starts_with("s2"));
}

#[test]
fn a_stopping_plane_answers_what_is_under_way_and_closes_what_is_idle() {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let server = serve(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            if head.contains("/slow") {
                gone.lock().unwrap().recv().unwrap();
            }
            send(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let plane = Plane::start(listen(Mode::Http, &[server]));
    let (mut idle, mut asked, mut begun) = (plane.client(), plane.client(), plane.client());
    assert_eq!(get(&mut idle, "/").1, "ok");
    assert_eq!(get(&mut asked, "/").1, "ok");
    send(&mut asked, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    send(&mut begun, "GET / HT");
    let server = plane.state.plan().backend("l").unwrap().server("s1").unwrap();
    until("it is asked", || server.served() == 1);
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| plane.forwarder.finish_requests(LIMIT));
        assert_eq!(read_all(&mut idle), "");
        go.send(()).unwrap();
        assert_eq!(response(&mut asked).1, "ok");
        assert_eq!(read_all(&mut asked), "");
        assert_eq!(ended.join().unwrap(), 1, "the one whose request never came");
    });
    send(&mut begun, "TP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(response(&mut begun).1, "ok");
}

#[test]
fn no_request_is_cut_off_by_the_end_of_idle_connections() {
    for _ in 0..20 {
        let plane = Plane::start(listen(Mode::Http, &[web("s1")]));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let mut client = plane.client();
                std::thread::spawn(move || {
                    loop {
                        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
                        // Between two requests a connection may close at any time.
                        if client.write_all(request).is_err() {
                            return;
                        }
                        let Some(head) = read_head(&mut client) else { return };
                        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
                        client.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
                    }
                })
            })
            .collect();
        plane.log_line();
        plane.forwarder.finish_requests(LIMIT);
        clients.into_iter().for_each(|c| c.join().unwrap());
    }
}

#[test]
fn monitor_and_forwardfor_and_head_and_early_answers() {
    let proxy = Proxy {
        monitor_uri: Some("/alive".into()),
        forwardfor: Some(ForwardFor { header: "X-Forwarded-For".into(), except: None, if_none: false }),
        ..listen(Mode::Http, &[web("s1")])
    };
    let plane = Plane::start(proxy);
    let mut client = plane.client();
    assert!(get(&mut client, "/alive").0.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 58\r\n"));
    send(&mut client, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(read_until(&mut client, "\r\n\r\n").contains("content-length: "));
    assert!(get(&mut client, "/").1.contains("x-forwarded-for: 127.0.0.1\r\n"));
    // Answered before its body came: the answer arrives, then the connection closes.
    send(&mut client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this");
    let (head, _) = response(&mut client);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(read_all(&mut client), "");
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let silent = serve(|mut stream, _| drop(read_all(&mut stream)));
    let plane = Plane::start(Proxy { abortonclose: true, ..listen(Mode::Http, &[silent]) });
    let mut client = plane.client();
    send(&mut client, "GET / HTTP/1.1\r\n\r\n");
    let server = plane.state.plan().backend("l").unwrap().server("s1").unwrap();
    until("the place is taken", || server.served() == 1);
    drop(client);
    assert_eq!(plane.ended(), "CH--");
    until("the place is free", || server.served() == 0);
}

#[test]
fn logasap_logs_the_head_of_a_response() {
    let plane = Plane::start(Proxy { logasap: true, ..listen(Mode::Http, &[web("s1")]) });
    get(&mut plane.client(), "/");
    let line = plane.log_line();
    assert!(line.contains("/+") && line.contains(" 200 +") && line.ends_with("\"GET / HTTP/1.1\""), "{line}");
}

#[test]
fn the_statistics_page_is_served() {
    let stats = Stats {
        uri: "/haproxy?stats".into(),
        realm: "Strictly Private".into(),
        auth: vec![("A_Username".into(), "YourPassword".into())],
        refresh: None,
        hide_version: false,
        show_legends: false,
        show_node: None,
        scope: vec![],
    };
    let plane = Plane::start(Proxy { stats: Some(stats), ..listen(Mode::Http, &[web("s1")]) });
    let mut client = plane.client();
    assert!(get(&mut client, "/haproxy?stats").0.starts_with("HTTP/1.1 401 "));
    let key = "Authorization: Basic QV9Vc2VybmFtZTpZb3VyUGFzc3dvcmQ=";
    send(&mut client, &format!("GET /haproxy?stats;csv HTTP/1.1\r\nHost: x\r\n{key}\r\n\r\n"));
    let (head, body) = response(&mut client);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && body.contains("\nl,s1,"), "{head}{body}");
    assert!(plane.log_line().contains(" l/<STATS> "));
    assert!(get(&mut client, "/").1.starts_with("s1"));
}

/// Whatever a client or a server sends, the plane goes on.
#[test]
fn mangled_messages_do_not_stop_the_plane() {
    use rand::{RngExt, SeedableRng};
    let seeds = 0..150u64;
    let server = serve(|mut stream, n| {
        let mut rng = rand::rngs::StdRng::seed_from_u64(n as u64);
        while read_head(&mut stream).is_some() {
            let mut answer =
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec();
            for _ in 0..rng.random_range(0..3) {
                let at = rng.random_range(0..answer.len());
                answer[at] = rng.random();
            }
            if stream.write_all(&answer).is_err() || rng.random_range(0..3) == 0 {
                return;
            }
        }
    });
    let mut proxy = Proxy { retries: 0, ..listen(Mode::Http, &[server]) };
    let short = Some(Duration::from_millis(30));
    (proxy.timeouts.client, proxy.timeouts.server) = (short, short);
    let plane = Plane::start(proxy);
    for seed in seeds {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let mut request = b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
            2\r\nab\r\n0\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n"
            .to_vec();
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..request.len());
            request[at] = rng.random();
        }
        let mut client = plane.client();
        let cut = rng.random_range(0..request.len());
        let _ = client.write_all(&request[..cut]).and_then(|()| client.write_all(&request[cut..]));
        let _ = client.read_to_end(&mut Vec::new());
    }
    let server = plane.state.plan().backend("l").unwrap().server("s1").unwrap();
    let frontend = plane.state.plan().frontend("l").unwrap().clone();
    until("all places are given back", || server.served() == 0 && frontend.conns() == 0);
}

#[test]
fn an_errorfile_stands_for_the_page_of_its_status() {
    let file = ErrorFile {
        status: 503,
        head: b"HTTP/1.0 503 Gone Fishing\r\nx-own: 1\r\n".to_vec(),
        body: b"later".to_vec(),
        has_length: false,
        is_11: false,
    };
    let plane = Plane::start(Proxy { errorfiles: vec![Arc::new(file)], ..listen(Mode::Http, &[]) });
    let mut client = plane.client();
    send(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(read_all(&mut client), "HTTP/1.0 503 Gone Fishing\r\nx-own: 1\r\n\r\nlater");
}

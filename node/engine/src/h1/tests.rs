//! Tables of accepted and refused messages, splits and mutations.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

fn parse(text: &[u8]) -> Result<(Head, RequestFraming, Vec<u8>), Error> {
    let mut buf = text.to_vec();
    let mut head = Head::default();
    match request(&mut buf, &mut head)? {
        Parsed::Complete(_) => {}
        Parsed::Partial => return Err(Error::new(ErrorKind::TooLong, buf.len())),
    }
    let framing = request_framing(&buf, &head)?;
    Ok((head, framing, buf))
}

const ACCEPTED: &[(&str, Body, Persistence)] = &[
    ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("GET / HTTP/1.1\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("GET / HTTP/1.0\r\n\r\n", Body::None, Persistence::Close),
    ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("GET / HTTP/1.1\r\nConnection: foo , CLOSE\r\n\r\n", Body::None, Persistence::Close),
    ("\r\n\n\r\nGET / HTTP/1.1\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("GET / HTTP/1.1\nHost: x\n\n", Body::None, Persistence::KeepAlive),
    ("GET  /  HTTP/2.0\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", Body::Length(3), Persistence::KeepAlive),
    (
        "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\nContent-length:3\r\n\r\n",
        Body::Length(3),
        Persistence::KeepAlive,
    ),
    ("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", Body::Chunked, Persistence::KeepAlive),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: A\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("GET http://A.b:80/x HTTP/1.1\r\nHost: a.B\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Body::None, Persistence::KeepAlive),
    ("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", Body::None, Persistence::KeepAlive),
];

const REFUSED: &[(&str, ErrorKind)] = &[
    ("G@T / HTTP/1.1\r\n\r\n", ErrorKind::Method),
    (" / HTTP/1.1\r\n\r\n", ErrorKind::Method),
    ("\x16\x03\x01\x02", ErrorKind::Method),
    ("fjeiwofj\r\n\r\n", ErrorKind::Method),
    ("GET /\r\n\r\n", ErrorKind::Version),
    ("GET / http/1.1\r\n\r\n", ErrorKind::Version),
    ("GET / HTTP/0.9\r\n\r\n", ErrorKind::Version),
    ("GET / HTTP/1.1x\r\n\r\n", ErrorKind::Version),
    ("GET /a b HTTP/1.1\r\n\r\n", ErrorKind::Version),
    ("GET /a#b HTTP/1.1\r\n\r\n", ErrorKind::Target),
    ("GET /\u{e9} HTTP/1.1\r\n\r\n", ErrorKind::Target),
    ("GET foo HTTP/1.1\r\n\r\n", ErrorKind::Target),
    ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", ErrorKind::FieldName),
    ("GET / HTTP/1.1\r\n: x\r\n\r\n", ErrorKind::FieldName),
    ("GET / HTTP/1.1\r\n x: y\r\n\r\n", ErrorKind::FieldName),
    ("GET / HTTP/1.1\r\nnocolon\r\n\r\n", ErrorKind::FieldName),
    ("GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", ErrorKind::Folded),
    ("GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", ErrorKind::BareCr),
    ("GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", ErrorKind::FieldValue),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", ErrorKind::Host),
    ("GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", ErrorKind::Host),
    ("GET http:/// HTTP/1.1\r\nHost: x\r\n\r\n", ErrorKind::Target),
    ("POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", ErrorKind::ContentLength),
    ("POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n", ErrorKind::ContentLength),
    ("POST / HTTP/1.1\r\nContent-Length: 0x3\r\n\r\n", ErrorKind::ContentLength),
    ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", ErrorKind::ContentLength),
    ("POST / HTTP/1.1\r\nContent-Length: 3,\r\n\r\n", ErrorKind::ContentLength),
    ("POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n", ErrorKind::ContentLength),
    ("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", ErrorKind::BothLengths),
    ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", ErrorKind::TransferEncoding),
    ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", ErrorKind::TransferEncoding),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ErrorKind::TransferEncoding,
    ),
    ("POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n", ErrorKind::TransferEncoding),
    ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", ErrorKind::TransferEncoding),
    ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ErrorKind::TransferCoding),
    ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", ErrorKind::TransferEncoding),
    ("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", ErrorKind::Upgrade),
];

#[test]
fn requests_that_every_reader_frames_alike_are_accepted() {
    for (text, body, persistence) in ACCEPTED {
        let (_, framing, _) = parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert_eq!((framing.body, framing.persistence), (*body, *persistence), "{text:?}");
    }
}

#[test]
fn ambiguous_and_malformed_requests_are_refused() {
    for (text, kind) in REFUSED {
        let error = parse(text.as_bytes()).expect_err(text);
        assert_eq!(error.kind, *kind, "{text:?}");
        assert!(error.at <= text.len(), "{text:?}");
    }
}

#[test]
fn any_split_of_a_request_gives_the_same_result() {
    for text in ACCEPTED.iter().map(|a| a.0).chain(REFUSED.iter().map(|r| r.0)) {
        let whole = {
            let (mut buf, mut head) = (text.as_bytes().to_vec(), Head::default());
            request(&mut buf, &mut head).map(|p| (p, head, buf))
        };
        let (mut grown, mut head) = (Vec::new(), Head::default());
        let mut result = Ok(Parsed::Partial);
        for byte in text.as_bytes() {
            grown.push(*byte);
            result = request(&mut grown, &mut head);
            if result != Ok(Parsed::Partial) {
                break;
            }
        }
        match (whole, result) {
            (Ok((p, h, b)), Ok(q)) => {
                assert_eq!((p, &h.start, &h.fields), (q, &head.start, &head.fields), "{text:?}");
                assert_eq!(b[..grown.len()], grown[..], "{text:?}");
            }
            (Err(e), Err(f)) => assert_eq!(e.kind, f.kind, "{text:?}"),
            (w, r) => panic!("{text:?}: {w:?} against {r:?}"),
        }
    }
}

#[test]
fn a_hundred_fields_pass_and_one_more_does_not() {
    let text = |n: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
    assert!(parse(text(MAX_FIELDS).as_bytes()).is_ok());
    assert_eq!(parse(text(MAX_FIELDS + 1).as_bytes()).unwrap_err().kind, ErrorKind::TooManyFields);
}

fn respond(text: &str, method: &str, upgrade: bool) -> Result<ResponseFraming, Error> {
    let (mut buf, mut head) = (text.as_bytes().to_vec(), Head::default());
    assert!(matches!(response(&mut buf, &mut head)?, Parsed::Complete(_)), "{text:?}");
    response_framing(&buf, &head, method.as_bytes(), upgrade)
}

#[test]
fn responses_are_framed_by_method_status_and_fields() {
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", false, Body::Length(5)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", false, Body::None),
        ("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", "GET", false, Body::None),
        ("HTTP/1.1 304 NM\r\nContent-Length: 5\r\n\r\n", "GET", false, Body::None),
        ("HTTP/1.1 100 Continue\r\n\r\n", "POST", false, Body::None),
        ("HTTP/1.1 200 OK\r\n\r\n", "GET", false, Body::UntilClose),
        ("HTTP/1.1 200\r\n\r\n", "GET", false, Body::UntilClose),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", false, Body::Chunked),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "GET", false, Body::UntilClose),
        ("HTTP/1.1 200 OK\r\n\r\n", "CONNECT", false, Body::Tunnel),
        ("HTTP/1.1 101 SP\r\nConnection: upgrade\r\n\r\n", "GET", true, Body::Tunnel),
    ];
    for (text, method, upgrade, body) in cases {
        assert_eq!(respond(text, method, upgrade).map(|f| f.body), Ok(body), "{text:?} {method}");
    }
    assert!(respond("HTTP/1.1 101 SP\r\n\r\n", "GET", false).is_err());
    for text in
        ["garbage\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 099 OK\r\n\r\n"]
    {
        let (mut buf, mut head) = (text.as_bytes().to_vec(), Head::default());
        assert!(response(&mut buf, &mut head).is_err(), "{text:?}");
    }
    let both =
        respond("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", false);
    assert_eq!(
        both,
        Ok(ResponseFraming { body: Body::Chunked, persistence: Persistence::Close, drop_length: true })
    );
}

#[test]
fn a_folded_response_field_becomes_one_line() {
    let (mut buf, mut head) = (b"HTTP/1.1 200 OK\r\nX: a\r\n\tb \r\nY: c\r\n\r\n".to_vec(), Head::default());
    assert!(matches!(response(&mut buf, &mut head), Ok(Parsed::Complete(_))));
    let mut out = Vec::new();
    write_response(&buf, &head, &Edits::default(), &mut out);
    assert_eq!(out, b"HTTP/1.1 200 OK\r\nx: a  \tb\r\ny: c\r\n\r\n");
}

#[test]
fn edits_drop_replace_and_add_in_order() {
    for text in [
        "GET /p HTTP/1.1\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n\r\n",
        "GET  /p HTTP/1.1\nA:1\r\nB:  2\nC: 3 \r\nD: 4\r\n\n",
    ] {
        let (head, _, buf) = parse(text.as_bytes()).unwrap();
        let mut edits = Edits::default();
        edits.drop_named(&buf, &head, b"b");
        edits.replace(2, b"thirty");
        edits.add(b"e", &[b"5", b"6"]);
        let mut out = Vec::new();
        write_request(&buf, &head, &edits, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "GET /p HTTP/1.1\r\na: 1\r\nc: thirty\r\nd: 4\r\ne: 56\r\n\r\n");
        edits.clear();
        edits.drop_field(3);
        edits.replace(3, b"never");
        edits.drop_field(0);
        let mut out = Vec::new();
        write_request(&buf, &head, &edits, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "GET /p HTTP/1.1\r\nb: 2\r\nc: 3\r\n\r\n");
    }
}

#[test]
fn chunks_are_followed_in_any_split() {
    let body = b"5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nT: v\r\n\r\nNEXT";
    let end = body.len() - 4;
    assert_eq!(Chunked::default().scan(body), Ok(Scan { used: end, done: true }));
    for split in 0..body.len() {
        let mut chunked = Chunked::default();
        let first = chunked.scan(&body[..split]).unwrap();
        assert_eq!(first.used, split.min(end));
        let second = chunked.scan(&body[first.used..]).unwrap();
        assert_eq!((first.used + second.used, second.done), (end, true), "split at {split}");
    }
}

#[test]
fn malformed_chunks_are_refused() {
    for body in [
        "zz\r\n",
        "\r\n",
        "5\nhello",
        "5\r\nhelloX",
        "5\r\nhello\n",
        "-1\r\n",
        "5;a\nb\r\n",
        "80000000\r\n",
        "ffffffffffffffffff\r\n",
        "0\r\n bad: x\r\n\r\n",
        "0\r\nbad\r\n\r\n",
        "0\r\n\n",
        "5 \0\r\n",
    ] {
        assert!(Chunked::default().scan(body.as_bytes()).is_err(), "{body:?}");
    }
    let endless = format!("5;{}", "x".repeat(10_000));
    assert!(Chunked::default().scan(endless.as_bytes()).is_err());
}

/// Whatever is written on is read the same way again, and httparse agrees about it.
#[test]
fn mutated_requests_never_panic_and_are_written_unambiguously() {
    for seed in 0..4000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let texts: Vec<&str> = ACCEPTED.iter().map(|a| a.0).chain(REFUSED.iter().map(|r| r.0)).collect();
        let mut bytes = texts[rng.random_range(0..texts.len())].as_bytes().to_vec();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => bytes.insert(at, b"\r\n :\t\0,;HA0"[rng.random_range(0..11)]),
                _ => drop(bytes.remove(at)),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let (mut buf, mut head) = (bytes.clone(), Head::default());
        let _ = response(&mut buf, &mut head);
        let _ = Chunked::default().scan(&bytes);
        let Ok((head, framing, buf)) = parse(&bytes) else { continue };
        let mut out = Vec::new();
        write_request(&buf, &head, &Edits::default(), &mut out);
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut oracle = httparse::Request::new(&mut fields);
        let parsed = oracle.parse(&out);
        assert!(parsed.is_err() || parsed == Ok(httparse::Status::Complete(out.len())), "seed {seed}");
        let (again, same, _) = parse(&out).unwrap_or_else(|e| panic!("seed {seed}: {e}: {out:?}"));
        assert_eq!((again.fields.len(), same), (head.fields.len(), framing), "seed {seed}");
        assert!(again.canonical, "seed {seed}: {:?}", String::from_utf8_lossy(&out));
    }
}

//! Bytes that go through pipes: whole, in order, and ending as those that are copied.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use phalanx_config::*;

use crate::harness::*;

const BIG: usize = 6 << 20;

/// So many bytes of a sequence that no shift or swap of pieces leaves unchanged.
fn sequence(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

/// The configurations that must not differ in what is seen: spliced where it pays, always, never.
fn ways() -> [(&'static str, Splice); 3] {
    let auto = Splice::default();
    let all = Splice { request: true, response: true, ..auto };
    [("auto", auto), ("all", all), ("none", Splice { auto: Some(false), ..auto })]
}

fn plane(mode: Mode, splice: Splice, server: SocketAddr) -> Plane {
    Plane::start(Proxy { splice, ..listen(mode, &[server]) })
}

fn spliced(plane: &Plane) -> u64 {
    plane.state.process().spliced.load(std::sync::atomic::Ordering::Relaxed)
}

/// No pipe holds anything, and idle ones are closed.
fn rests(plane: &Plane) {
    let pipes = &plane.state.process().pipes;
    until("no pipe is used", || pipes.used() == 0);
    until("pipes are closed", || pipes.free() == 0);
}

/// Reads a head.
fn head(stream: &mut TcpStream) -> String {
    read_until(stream, "\r\n\r\n")
}

/// A server that answers each request with the body's digest, or for a GET with the sequence.
fn origin(framing: &'static str) -> SocketAddr {
    serve(move |mut stream, _| {
        let body = sequence(BIG);
        loop {
            let mut text = Vec::new();
            let mut byte = [0];
            while !text.ends_with(b"\r\n\r\n") {
                match stream.read(&mut byte) {
                    Ok(1) => text.push(byte[0]),
                    _ => return,
                }
            }
            let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
            if let Some((_, rest)) = text.split_once("content-length: ") {
                let mut received = vec![0; rest.split("\r\n").next().unwrap().parse().unwrap()];
                stream.read_exact(&mut received).unwrap();
                let answer = format!("{:016x}", digest(&received));
                send(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{answer}"));
                continue;
            }
            send(&mut stream, &format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
            let sent = match framing {
                "Transfer-Encoding: chunked" => body
                    .chunks(100_000)
                    .try_for_each(|chunk| {
                        write!(stream, "{:x}\r\n", chunk.len())?;
                        stream.write_all(chunk)?;
                        stream.write_all(b"\r\n")
                    })
                    .and_then(|()| stream.write_all(b"0\r\n\r\n")),
                _ => stream.write_all(&body),
            };
            if sent.is_err() || framing == "Connection: close" {
                return;
            }
        }
    })
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
}

#[test]
fn tunnels_carry_everything_and_close_on_their_own() {
    for (name, splice) in ways() {
        // The server reads all before it answers, so that each direction ends by itself.
        let server = serve(|mut stream, _| {
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            stream.write_all(&received).unwrap();
            send(&mut stream, "bye");
        });
        let plane = plane(Mode::Tcp, splice, server);
        let mut client = plane.client();
        let sent = sequence(BIG);
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert_eq!(digest(received.strip_suffix(b"bye").expect(name)), digest(&sent), "{name}");
        let line = plane.log_line();
        assert!(line.contains(&format!(" {} -- ", BIG + 3)), "{name}: {line}");
        assert_eq!(spliced(&plane) > BIG as u64 / 2, name != "none", "{name}: {}", spliced(&plane));
        rests(&plane);
    }
}

#[test]
fn urgent_data_neither_stalls_nor_cuts_what_is_spliced() {
    let all = Splice { request: true, response: true, ..Splice::default() };
    // In the middle of bulk, and with the end right behind it.
    for (before, after) in [(BIG / 2, BIG / 2), (100, 100), (0, 100)] {
        let (seen, saw) = mpsc::channel();
        let server = serve(move |mut stream, _| {
            let mut received = Vec::new();
            let _ = stream.read_to_end(&mut received);
            seen.send(received).unwrap();
        });
        let plane = plane(Mode::Tcp, all, server);
        let mut client = plane.client();
        let sent = sequence(before + after);
        client.write_all(&sent[..before]).unwrap();
        socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
        client.write_all(&sent[before..]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let received = saw.recv_timeout(LIMIT).unwrap();
        assert_eq!(received.len(), sent.len());
        assert_eq!(digest(&received), digest(&sent), "{before} {after}");
        rests(&plane);
    }
}

#[test]
fn what_a_slow_reader_does_not_take_is_not_lost() {
    let server = serve(|mut stream, _| {
        stream.write_all(&sequence(BIG)).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let plane = plane(Mode::Tcp, Splice::default(), server);
    let mut client = plane.client();
    let pipes = &plane.state.process().pipes;
    until("the pipe waits for the client", || pipes.used() == 1);
    // Longer than pipes are kept unused.
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(pipes.used(), 1);
    let mut received = vec![0; BIG];
    for part in received.chunks_mut(300_000) {
        client.read_exact(part).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(digest(&received), digest(&sequence(BIG)));
    rests(&plane);
}

#[test]
fn a_full_pipe_ends_with_its_session() {
    let (dead, died) = mpsc::channel();
    let server = serve(move |mut stream, _| {
        // Until the reset comes: the client left with bytes on their way to it.
        while stream.write_all(&[0; 65536]).is_ok() {}
        dead.send(()).unwrap();
    });
    for (mode, ask) in [(Mode::Tcp, false), (Mode::Http, true)] {
        let body = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
        let target = serve(move |mut stream, _| {
            head(&mut stream);
            send(&mut stream, body);
            while stream.write_all(&[0; 65536]).is_ok() {}
        });
        let plane = plane(mode, Splice::default(), if ask { target } else { server });
        let mut client = plane.client();
        if ask {
            send(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        }
        let pipes = &plane.state.process().pipes;
        until("the pipe waits for the client", || pipes.used() == 1);
        drop(client);
        let ended = plane.ended();
        assert!(ended.starts_with("CD"), "{mode:?}: {ended}");
        if !ask {
            died.recv_timeout(LIMIT).unwrap();
        }
        rests(&plane);
    }
}

#[test]
fn a_killed_session_ends_with_a_full_pipe() {
    let server = serve(|mut stream, _| while stream.write_all(&[0; 65536]).is_ok() {});
    let plane = plane(Mode::Tcp, Splice::default(), server);
    let client = plane.client();
    until("the pipe waits for the client", || plane.state.process().pipes.used() == 1);
    plane.state.sessions().all().iter().for_each(|session| session.kill());
    assert_eq!(plane.ended(), "KD");
    rests(&plane);
    drop(client);
}

#[test]
fn a_client_that_takes_nothing_times_out_with_a_full_pipe() {
    let server = serve(|mut stream, _| while stream.write_all(&[0; 65536]).is_ok() {});
    let mut proxy = listen(Mode::Tcp, &[server]);
    proxy.timeouts.client = Some(Duration::from_millis(300));
    let plane = Plane::start(proxy);
    let client = plane.client();
    assert_eq!(plane.ended(), "cD");
    rests(&plane);
    drop(client);
}

#[test]
fn without_pipes_bytes_are_copied() {
    let server = serve(|mut stream, _| stream.write_all(&sequence(BIG)).unwrap());
    let plane = Plane::start_with(listen(Mode::Tcp, &[server]), |config| config.global.nosplice = true);
    let mut received = Vec::new();
    plane.client().read_to_end(&mut received).unwrap();
    assert_eq!((digest(&received), spliced(&plane)), (digest(&sequence(BIG)), 0));
    let listen = listen(Mode::Tcp, &[server]);
    let plane = Plane::start_with(listen, |config| config.global.maxpipes = Some(1));
    let pipes = &plane.state.process().pipes;
    let slow = plane.client();
    until("the only pipe is used", || pipes.used() == 1);
    let mut received = Vec::new();
    plane.client().read_to_end(&mut received).unwrap();
    assert_eq!(digest(&received), digest(&sequence(BIG)));
    assert_eq!((pipes.used(), pipes.max()), (1, 1));
    drop(slow);
}

#[test]
fn bodies_of_every_framing_arrive_whole_and_the_connection_goes_on() {
    let expected = digest(&sequence(BIG));
    for (name, splice) in ways() {
        for framing in ["Content-Length: 6291456", "Transfer-Encoding: chunked", "Connection: close"] {
            let plane = plane(Mode::Http, splice, origin(framing));
            let mut client = plane.client();
            for _ in 0..2 {
                // The next request is sent while the body of this one is still on its way.
                send(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            }
            for turn in 0..2 {
                let text = head(&mut client);
                assert!(text.starts_with("HTTP/1.1 200"), "{name}: {text}");
                let body = match framing {
                    "Connection: close" => {
                        let mut body = Vec::new();
                        client.read_to_end(&mut body).unwrap();
                        body
                    }
                    "Transfer-Encoding: chunked" => {
                        let mut body = Vec::new();
                        while !body.ends_with(b"\r\n0\r\n\r\n") {
                            let mut part = [0; 4096];
                            // To the byte: the next response follows.
                            let at_most = if body.len() + part.len() < BIG { part.len() } else { 1 };
                            let n = client.read(&mut part[..at_most]).unwrap();
                            assert!(n > 0, "the end comes too early");
                            body.extend_from_slice(&part[..n]);
                        }
                        unchunked(&body)
                    }
                    _ => {
                        let mut body = vec![0; BIG];
                        client.read_exact(&mut body).unwrap();
                        body
                    }
                };
                assert_eq!(digest(&body), expected, "{name} {framing} {turn}");
                if framing == "Connection: close" {
                    break;
                }
            }
            let through = spliced(&plane);
            let any = name != "none" && framing != "Transfer-Encoding: chunked";
            until("the end is counted", || (spliced(&plane) > BIG as u64 / 2) == any);
            assert!(any || through == 0, "{name} {framing}: {through}");
            drop(client);
            rests(&plane);
        }
    }
}

#[test]
fn uploads_arrive_whole_and_the_next_request_follows_at_once() {
    let sent = sequence(BIG);
    for (name, splice) in ways() {
        let plane = plane(Mode::Http, splice, origin("Content-Length: 6291456"));
        let mut client = plane.client();
        for _ in 0..2 {
            let mut request =
                format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {BIG}\r\n\r\n").into_bytes();
            request.extend_from_slice(&sent);
            // One that was sent ahead: it must not be taken for a part of the body.
            request.extend_from_slice(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
            client.write_all(&request).unwrap();
            for expected in [digest(&sent), digest(b"abc")] {
                head(&mut client);
                let mut answer = [0; 16];
                client.read_exact(&mut answer).unwrap();
                assert_eq!(answer, *format!("{expected:016x}").as_bytes(), "{name}");
            }
        }
        drop(client);
        rests(&plane);
    }
}

#[test]
fn an_upload_that_breaks_off_is_told_apart_from_a_whole_one() {
    for (name, splice) in ways() {
        let (seen, saw) = mpsc::channel();
        let server = serve(move |mut stream, _| {
            head(&mut stream);
            let mut received = Vec::new();
            let result = stream.read_to_end(&mut received);
            seen.send((received.len(), result.is_err())).unwrap();
        });
        let plane = plane(Mode::Http, splice, server);
        let mut client = plane.client();
        send(&mut client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n");
        client.write_all(&sequence(BIG)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (received, reset) = saw.recv_timeout(LIMIT).unwrap();
        assert!(reset && received <= BIG, "{name}: {received} {reset}");
        assert!(plane.ended().starts_with('C'), "{name}");
        rests(&plane);
    }
}

#[test]
fn a_response_that_breaks_off_is_seen() {
    for (name, splice) in ways() {
        let server = serve(|mut stream, _| {
            head(&mut stream);
            send(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n");
            stream.write_all(&sequence(BIG)).unwrap();
        });
        let plane = plane(Mode::Http, splice, server);
        let mut client = plane.client();
        send(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        head(&mut client);
        let mut received = Vec::new();
        let _ = client.read_to_end(&mut received);
        assert_eq!(digest(&received), digest(&sequence(received.len())), "{name}");
        assert_eq!(received.len(), BIG, "{name}");
        let ended = plane.ended();
        assert!(ended.starts_with("SD"), "{name}: {ended}");
        rests(&plane);
    }
}

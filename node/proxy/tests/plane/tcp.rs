//! TCP mode.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use phalanx_config::{Announce, Cluster, DataType, Mode, Pos, Proxy, ProxyKind, Rules, Timeouts, Vip};

use crate::harness::*;

/// Says who it is, then echoes until the client closes, then says goodbye.
fn echo(name: &'static str) -> std::net::SocketAddr {
    serve(move |mut stream, _| {
        send(&mut stream, name);
        let mut buf = vec![0; 65536];
        loop {
            match stream.read(&mut buf) {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    if stream.write_all(&buf[..n]).is_err() {
                        return;
                    }
                }
            }
        }
        let _ = stream.write_all(b"bye");
    })
}

#[test]
fn both_ways_are_forwarded_and_close_on_their_own() {
    let plane = Plane::start(listen(Mode::Tcp, &[echo("s1;")]));
    let mut client = plane.client();
    assert_eq!(read_until(&mut client, ";"), "s1;");
    send(&mut client, "hello");
    assert_eq!(read_until(&mut client, "hello"), "hello");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), "bye");
    let line = plane.log_line();
    assert!(line.contains(" l l/s1 ") && line.contains(" 11 -- "), "{line}");
}

#[test]
fn a_backend_of_its_own_tracks_connections_as_well() {
    let (back, rule) = tracking_backend(Mode::Tcp, &[echo("s1;")], vec![DataType::ConnCnt]);
    let back = Proxy { rules: Rules { tcp_content: vec![rule], ..Rules::default() }, ..back };
    let front = Proxy {
        kind: ProxyKind::Frontend,
        servers: vec![],
        default_backend: Some("b".into()),
        ..listen(Mode::Tcp, &[])
    };
    let plane = Plane::start_with(front, |config| config.proxies.push(Arc::new(back.clone())));
    for _ in 0..2 {
        let mut client = plane.client();
        assert_eq!(read_until(&mut client, ";"), "s1;");
    }
    let mut rows = Vec::new();
    plane.state.tables().get("b").unwrap().dump(Default::default(), |row| rows.push(row.values.to_vec()));
    assert_eq!(rows, [[2]]);
}

#[test]
fn bulk_data_arrives_whole() {
    let plane = Plane::start(listen(Mode::Tcp, &[echo("")]));
    let mut client = plane.client();
    let sent: Vec<u8> = (0..8 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let copy = sent.clone();
    let thread = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    thread.join().unwrap();
    assert!(received.strip_suffix(b"bye") == Some(&sent));
}

#[test]
fn a_refused_connection_goes_to_the_other_server() {
    let proxy = Proxy { redispatch: Some(-1), ..listen(Mode::Tcp, &[refusing(), echo("s2;")]) };
    let plane = Plane::start(proxy);
    let mut redispatched = 0;
    for _ in 0..2 {
        assert_eq!(read_until(&mut plane.client(), ";"), "s2;");
        redispatched += usize::from(plane.log_line().contains("/+1 "));
    }
    assert_eq!(redispatched, 2);
}

#[test]
fn a_retry_on_the_only_server_is_no_redispatch() {
    let listen = listen(Mode::Tcp, &[refusing()]);
    let timeouts = Timeouts { connect: Some(Duration::from_millis(10)), ..listen.timeouts.clone() };
    let plane = Plane::start(Proxy { redispatch: Some(-1), retries: 1, timeouts, ..listen });
    drop(plane.client());
    let line = plane.log_line();
    assert!(line.contains(" SC ") && line.contains("/1 0/0"), "{line}");
    let server = plane.state.plan().backend("l").unwrap().server("s1").unwrap();
    let sum = server.counters().sum(phalanx_engine::time::Now::default());
    assert_eq!((sum.wretr, sum.wredis), (1, 0));
}

#[test]
fn without_a_server_the_client_is_closed_at_once() {
    let plane = Plane::start(Proxy { retries: 0, ..listen(Mode::Tcp, &[refusing()]) });
    assert_eq!(read_all(&mut plane.client()), "");
    assert_eq!(plane.ended(), "SC");
}

#[test]
fn idle_sessions_end_by_the_client_timeout() {
    let mut proxy = listen(Mode::Tcp, &[echo("s1;")]);
    proxy.timeouts.client = Some(Duration::from_millis(100));
    let plane = Plane::start(proxy);
    let mut client = plane.client();
    assert_eq!(read_all(&mut client), "s1;");
    assert_eq!(plane.ended(), "cD");
}

/// The scenario of long-lived connections, a server added by a reload, and a queue.
#[test]
fn a_reload_adds_a_server_and_the_queue_waits_for_a_place() {
    let proxy = listen(Mode::Tcp, &[echo("s1;"), echo("s2;")]);
    let plane = Plane::start(with_servers(proxy, |o| o.maxconn = 1));
    let mut clients = [plane.client(), plane.client()];
    let mut names: Vec<String> = clients.iter_mut().map(|c| read_until(c, ";")).collect();
    names.sort();
    assert_eq!(names, ["s1;", "s2;"]);
    let third = echo("s3;");
    plane.reload(|proxy| {
        let mut server = server(3, third);
        server.options.maxconn = 1;
        proxy.servers.push(Arc::new(server));
    });
    for client in &mut clients {
        send(client, "still here");
        assert_eq!(read_until(client, "here"), "still here");
    }
    let mut new = plane.client();
    assert_eq!(read_until(&mut new, ";"), "s3;");
    let mut waiting = plane.client();
    let backend = plane.state.plan().backend("l").unwrap().clone();
    until("a client waits", || backend.waiting() == 1);
    drop(new);
    assert_eq!(read_until(&mut waiting, ";"), "s3;");
    assert!(plane.log_line().contains(" l/s3 "));
}

#[test]
fn waiting_too_long_in_the_queue_ends_the_session() {
    let mut proxy = with_servers(listen(Mode::Tcp, &[echo("s1;")]), |o| o.maxconn = 1);
    proxy.timeouts.queue = Some(Duration::from_millis(50));
    let plane = Plane::start(proxy);
    let mut first = plane.client();
    read_until(&mut first, ";");
    assert_eq!(read_all(&mut plane.client()), "");
    assert_eq!(plane.ended(), "sQ");
}

#[test]
fn connections_beyond_maxconn_wait_in_the_kernel() {
    let plane = Plane::start(Proxy { maxconn: Some(2), ..listen(Mode::Tcp, &[echo("s1;")]) });
    let frontend = plane.state.plan().frontend("l").unwrap().clone();
    let mut held: Vec<_> = (0..2).map(|_| plane.client()).collect();
    held.iter_mut().for_each(|c| drop(read_until(c, ";")));
    let mut third = plane.client();
    third.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(third.read(&mut [0; 1]).is_err());
    assert_eq!(frontend.conns(), 2);
    third.set_read_timeout(Some(LIMIT)).unwrap();
    held.pop();
    assert_eq!(read_until(&mut third, ";"), "s1;");
}

#[test]
fn sessions_on_a_server_can_be_ended() {
    let plane = Plane::start(listen(Mode::Tcp, &[echo("s1;")]));
    let mut client = plane.client();
    read_until(&mut client, ";");
    let server = plane.state.plan().backend("l").unwrap().server("s1").unwrap();
    until("the session is noted", || plane.forwarder.shutdown_sessions(&server) == 1);
    assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert_eq!(plane.ended(), "KD");
}

#[test]
fn a_stopping_plane_finishes_its_sessions() {
    let plane = Plane::start(listen(Mode::Tcp, &[echo("s1;")]));
    let mut client = plane.client();
    read_until(&mut client, ";");
    assert_eq!(plane.forwarder.stop(Some(Duration::from_millis(50))), 1);
    assert!(std::net::TcpStream::connect(plane.addr).is_err());
    send(&mut client, "x");
    assert_eq!(read_until(&mut client, "x"), "x");
    drop(client);
    assert_eq!(plane.forwarder.stop(Some(LIMIT)), 0);
}

#[test]
fn a_bind_line_has_its_own_maxconn() {
    let mut proxy = listen(Mode::Tcp, &[echo("s1;")]);
    proxy.binds[0].maxconn = Some(1);
    let plane = Plane::start(proxy);
    let mut first = plane.client();
    read_until(&mut first, ";");
    let mut second = plane.client();
    second.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(second.read(&mut [0; 1]).is_err());
    plane.reload(|proxy| proxy.binds[0].maxconn = Some(2));
    second.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(read_until(&mut second, ";"), "s1;");
}

#[test]
fn logasap_logs_when_the_server_is_reached() {
    let plane = Plane::start(Proxy { logasap: true, ..listen(Mode::Tcp, &[echo("s1;")]) });
    let mut client = plane.client();
    read_until(&mut client, ";");
    let line = plane.log_line();
    assert!(line.contains("/+") && line.contains(" +0 -- "), "{line}");
}

#[test]
fn an_address_in_use_changes_nothing_and_is_named() {
    let plane = Plane::start(listen(Mode::Tcp, &[echo("s1;")]));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let mut config = (*plane.state.plan().config).clone();
    Arc::make_mut(&mut config.proxies[0]).binds.push(bind(addr));
    // Asked before anything changes, and where nobody asked.
    let error = plane.forwarder.reserve(&config).unwrap_err().to_string();
    assert!(error.starts_with(&format!("proxy 'l': cannot bind {addr}: ")), "{error}");
    let _ = plane.state.load(config, phalanx_engine::time::Now::default());
    let error = plane.forwarder.apply().unwrap_err().to_string();
    assert!(error.starts_with(&format!("proxy 'l': cannot bind {addr}: ")), "{error}");
    assert_eq!(plane.forwarder.addresses(), [plane.addr]);
    assert_eq!(read_until(&mut plane.client(), ";"), "s1;");
}

#[test]
fn a_gated_address_is_listened_on_only_while_the_gate_is_open() {
    let proxy = listen(Mode::Tcp, &[echo("s1;")]);
    let plane = Plane::start(proxy);
    let vip: std::net::IpAddr = "127.0.9.9".parse().unwrap();
    let port = std::net::TcpListener::bind((vip, 0)).unwrap().local_addr().unwrap().port();
    let addr = std::net::SocketAddr::new(vip, port);
    let mut config = (*plane.state.plan().config).clone();
    Arc::make_mut(&mut config.proxies[0]).binds.push(bind(addr));
    config.cluster = Some(Cluster {
        name: "c".into(),
        nodes: vec![],
        peers: vec![],
        join: false,
        data_dir: Default::default(),
        vips: vec![Vip {
            name: "v".into(),
            addr: vip,
            prefix: 32,
            interface: None,
            announce: Announce::Listen,
            prefer: None,
            hold: false,
            exec_timeout: std::time::Duration::from_secs(10),
            pos: Pos::default(),
        }],
        vip_lease: None,
        vip_drain: None,
        ssl: None,
        pos: Pos::default(),
    });
    let _ = plane.state.load(config, phalanx_engine::time::Now::default());
    plane.forwarder.apply().unwrap();
    for _ in 0..2 {
        assert!(std::net::TcpStream::connect(addr).is_err());
        assert!(plane.forwarder.gated_listeners(vip).is_empty());
        plane.forwarder.gate(vip, true).unwrap();
        assert_eq!(plane.forwarder.gated_listeners(vip).len(), 2);
        assert_eq!(read_until(&mut std::net::TcpStream::connect(addr).unwrap(), ";"), "s1;");
        plane.forwarder.gate(vip, false).unwrap();
    }
}

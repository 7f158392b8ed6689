//! Connections to servers that are used again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use phalanx_config::*;

use crate::harness::*;

#[test]
fn connections_kept_to_a_former_address_are_not_used() {
    let plane = Plane::start(listen(Mode::Http, &[web("s1")]));
    let mut client = plane.client();
    assert!((0..3).all(|_| get(&mut client, "/").1.starts_with("s1 0\n")), "one connection, kept");
    let plan = plane.state.plan_owned();
    let backend = plan.backend("l").unwrap();
    let server = backend.server("s1").unwrap();
    for name in ["s2", "s3"] {
        drop(backend.set_addr(&server, web(name)));
        assert!((0..3).all(|_| get(&mut client, "/").1.starts_with(&format!("{name} 0\n"))), "{name}");
    }
}

#[test]
fn a_dead_idle_connection_is_replaced_without_a_trace() {
    // Answers one request per connection and closes without saying so.
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let server = serve(move |mut stream, _| {
        if read_head(&mut stream).is_some() {
            counted.fetch_add(1, Ordering::Relaxed);
            send(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let plane = Plane::start(listen(Mode::Http, &[server]));
    let mut client = plane.client();
    for _ in 0..20 {
        assert_eq!(get(&mut client, "/").1, "ok");
    }
    assert_eq!(requests.load(Ordering::Relaxed), 20);
}

/// Connections that the server has seen after three clients, one after the other, have sent two
/// requests each.
fn connections_of_three_clients(strategy: HttpReuse) -> usize {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let server = serve(move |mut stream, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        while read_head(&mut stream).is_some() {
            send(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    // One worker sees all clients: idle connections belong to a worker.
    let proxy = Proxy { http_reuse: strategy, ..listen(Mode::Http, &[server]) };
    let plane = Plane::start_one(proxy);
    for _ in 0..3 {
        let mut client = plane.client();
        for _ in 0..2 {
            assert_eq!(get(&mut client, "/").1, "ok");
        }
    }
    connections.load(Ordering::Relaxed)
}

#[test]
fn http_reuse_says_whose_requests_share_connections() {
    // The second request of a session takes the connection that its first one, on its own, has left.
    assert_eq!(connections_of_three_clients(HttpReuse::Never), 3);
    assert_eq!(connections_of_three_clients(HttpReuse::Safe), 3);
    // The first connection has carried two requests when the second client comes.
    assert_eq!(connections_of_three_clients(HttpReuse::Aggressive), 1);
    assert_eq!(connections_of_three_clients(HttpReuse::Always), 1);
}

#[test]
fn a_session_that_does_not_share_loses_its_connection_with_itself() {
    let server = serve(|mut stream, number| {
        while read_head(&mut stream).is_some() {
            let body = format!("{number}");
            send(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let plane = Plane::start_one(Proxy { http_reuse: HttpReuse::Never, ..listen(Mode::Http, &[server]) });
    let (mut one, mut two) = (plane.client(), plane.client());
    let (first, second) = (get(&mut one, "/").1, get(&mut two, "/").1);
    assert_ne!(first, second);
    for _ in 0..3 {
        assert_eq!((get(&mut one, "/").1, get(&mut two, "/").1), (first.clone(), second.clone()));
    }
}

#[test]
fn bodies_longer_than_any_buffer_arrive_whole_on_a_connection_used_again() {
    let body: String = ('a'..='z').cycle().take(1_000_003).collect();
    let sent = body.clone();
    let server = serve(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let body = if head.contains("/long") { &sent[..] } else { "short" };
            send(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let plane = Plane::start(listen(Mode::Http, &[server]));
    let mut client = plane.client();
    for path in ["/long", "/long", "/short", "/long", "/short", "/short"] {
        let expected = if path == "/long" { &body[..] } else { "short" };
        assert!(get(&mut client, path).1 == expected, "{path}");
    }
}

#[test]
fn a_head_longer_than_a_buffer_is_refused_on_a_connection_that_brought_a_long_body() {
    let server = serve(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            if head.contains("/long") {
                send(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n{:50000}", ""));
            } else {
                send(&mut stream, &format!("HTTP/1.1 200 OK\r\nX: {:20000}\r\n\r\n", "x"));
            }
        }
    });
    let plane = Plane::start(listen(Mode::Http, &[server]));
    let mut client = plane.client();
    assert_eq!(get(&mut client, "/long").1.len(), 50_000);
    assert!(get(&mut client, "/").0.starts_with("HTTP/1.1 502 "));
}

#[test]
fn no_more_idle_connections_are_kept_than_were_needed_at_once() {
    let plane = Plane::start(listen(Mode::Http, &[web("s1")]));
    let server = plane.state.plan().backend("l").unwrap().server("s1").unwrap();
    let mut clients: Vec<_> = (0..20).map(|_| plane.client()).collect();
    clients.iter_mut().for_each(|c| drop(get(c, "/")));
    until("all places are given back", || server.served() == 0);
    let idle = server.idle.load(Ordering::Relaxed);
    assert!((1..=4).contains(&idle), "{idle} idle connections");
    clients.iter_mut().for_each(|c| drop(get(c, "/")));
}

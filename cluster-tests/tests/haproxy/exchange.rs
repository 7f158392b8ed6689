//! Runs a table of exchanges through both programs: each case has a frontend and a backend of its
//! own in one configuration, so that all run at the same time.

use std::collections::HashMap;
use std::net::{TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster_tests::until;

use crate::normal;
use crate::script::{Server, Step, Transcript, play};
use crate::side::{BOTH, Side, haproxy};

/// What is behind the proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Servers {
    /// Nothing listens.
    None,
    /// Scripts by connection.
    Script(&'static [&'static [Step]]),
}

/// One exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Lines of the frontend.
    pub(crate) front: &'static str,
    /// Lines of the backend; `SERVER` stands for the server's address.
    pub(crate) back: &'static str,
    pub(crate) servers: Servers,
    /// Clients, one after the other.
    pub(crate) clients: &'static [&'static [Step]],
    /// Purposeful differences: what HAProxy shows, what Phalanx shows, and why.
    pub(crate) differs: &'static [(&'static str, &'static str, &'static str)],
    /// What Phalanx shows in all, and why.
    pub(crate) instead: Option<(&'static str, &'static str)>,
    /// Clients come 50 ms apart, not when the one before has gone.
    pub(crate) together: bool,
}

/// The usual server line.
pub(crate) const S1: &str = "server s1 SERVER";

impl Case {
    pub(crate) const fn new(name: &'static str, clients: &'static [&'static [Step]]) -> Case {
        Case {
            name,
            front: "",
            back: S1,
            servers: Servers::None,
            clients,
            differs: &[],
            instead: None,
            together: false,
        }
    }

    pub(crate) const fn front(self, front: &'static str) -> Case {
        Case { front, ..self }
    }

    pub(crate) const fn back(self, back: &'static str) -> Case {
        Case { back, ..self }
    }

    pub(crate) const fn servers(self, scripts: &'static [&'static [Step]]) -> Case {
        Case { servers: Servers::Script(scripts), ..self }
    }

    pub(crate) const fn differs(
        self,
        differs: &'static [(&'static str, &'static str, &'static str)],
    ) -> Case {
        Case { differs, ..self }
    }

    pub(crate) const fn together(self) -> Case {
        Case { together: true, ..self }
    }

    pub(crate) const fn instead(self, all: &'static str, why: &'static str) -> Case {
        Case { instead: Some((all, why)), ..self }
    }
}

const FIRST_FRONT: u16 = 20_000;
const FIRST_SERVER: u16 = 30_000;
const READY: u16 = 19_999;

/// Runs all cases through both programs and compares what everybody saw. Those that differ run once more
/// by themselves: the machine may have been too slow for either program.
///
/// # Panics
/// With every case that differs twice.
pub(crate) fn compare(cases: &'static [Case], defaults: &str) {
    if haproxy().is_none() {
        return;
    }
    let only = std::env::var("CASE").ok();
    let cases: Vec<&'static Case> =
        cases.iter().filter(|c| only.as_deref().is_none_or(|o| c.name.contains(o))).collect();
    let first = differing(&cases, defaults, only.is_some());
    let mut again: Vec<&'static Case> = first.iter().map(|(case, _)| *case).collect();
    again.dedup_by(|a, b| std::ptr::eq(*a, *b));
    if again.is_empty() {
        return;
    }
    let failed: Vec<String> = differing(&again, defaults, false).into_iter().map(|(_, why)| why).collect();
    let first: Vec<String> = first.into_iter().map(|(_, why)| why).collect();
    assert!(failed.is_empty(), "{} of {} differ:\n{}", failed.len(), cases.len(), failed.join("\n"));
    println!("differed once, and not again:\n{}", first.join("\n"));
}

/// The cases that differ, and how.
fn differing(cases: &[&'static Case], defaults: &str, show: bool) -> Vec<(&'static Case, String)> {
    let seen = std::thread::scope(|s| {
        let running = BOTH.map(|kind| s.spawn(move || run(&mut Side::new(kind), cases, defaults)));
        running.map(|r| r.join().expect("a side runs"))
    });
    let [haproxy, phalanx] = seen;
    let mut failed = Vec::new();
    for (case, (expected, got)) in cases.iter().zip(haproxy.iter().zip(&phalanx)) {
        let mut wanted = expected.clone();
        for (theirs, ours, why) in case.differs {
            if !wanted.contains(theirs) {
                failed.push((*case, format!("{}: no longer so in HAProxy ({why}): {theirs}", case.name)));
            }
            wanted = wanted.replace(theirs, ours);
        }
        if let Some((all, why)) = case.instead {
            if wanted == all {
                failed.push((*case, format!("{}: HAProxy does the same ({why})", case.name)));
            }
            wanted = all.into();
        }
        if show {
            println!("== {}\n{}", case.name, normal::difference(expected, got));
        }
        if wanted != *got {
            failed.push((*case, format!("== {}\n{}", case.name, normal::difference(&wanted, got))));
        }
    }
    failed
}

fn run(side: &mut Side, cases: &[&'static Case], defaults: &str) -> Vec<String> {
    let logs = UdpSocket::bind(side.at(0)).expect("a socket for logs");
    let port = logs.local_addr().expect("it is bound").port();
    let mut config = format!(
        "global\n stats socket DIR/sock level admin\n log 127.0.0.1:{port} format raw local0\n\
         defaults\n log global\n timeout connect 500ms\n timeout client 700ms\n timeout server 800ms\n\
         retries 1\n{defaults}\n"
    );
    let servers: Vec<Option<Server>> = (FIRST_SERVER..)
        .zip(cases)
        .map(|(port, case)| match case.servers {
            Servers::None => None,
            Servers::Script(scripts) => Some(Server::start(&side.at(port), scripts)),
        })
        .collect();
    for (n, case) in cases.iter().enumerate() {
        let (front, server) = (FIRST_FRONT + n as u16, FIRST_SERVER + n as u16);
        config += &format!(
            "frontend f{n:03}\n bind 127.0.0.1:{front}\n default_backend b{n:03}\n{}\nbackend b{n:03}\n{}\n",
            case.front,
            case.back.replace("SERVER", &format!("127.0.0.1:{server}")),
        );
    }
    // The last to be opened: when it answers, all others do.
    config += &format!("frontend ready\n bind 127.0.0.1:{READY}\n no log\n");
    side.run(&config);
    until("the frontends listen", Duration::from_secs(10), || TcpStream::connect(side.at(READY)).is_ok());
    let lines = Logs::collect(logs, cases.len());
    let side: &Side = side;
    let clients: Vec<String> = std::thread::scope(|s| {
        let running: Vec<_> = (FIRST_FRONT..)
            .zip(cases)
            .map(|(port, case)| s.spawn(move || clients(&side.at(port), case)))
            .collect();
        running.into_iter().map(|r| r.join().expect("a client does not panic")).collect()
    });
    // Every line is there when HAProxy has had the time to log the longest wait.
    std::thread::sleep(Duration::from_millis(1200));
    let mut seen = Vec::new();
    for (n, (client, server)) in clients.iter().zip(&servers).enumerate() {
        let mut text = client.clone();
        for (k, conn) in server.iter().flat_map(Server::seen).enumerate() {
            text += &format!("[server {k}]\n{conn}\n");
        }
        for line in lines.of(n) {
            text += &format!("[log] {}\n", normal::log_line(&line));
        }
        let text = normal::cookie_dates(&text);
        seen.push(side.unmoved(&text).replace(&format!("f{n:03}"), "FE").replace(&format!("b{n:03}"), "BE"));
    }
    seen
}

fn clients(addr: &str, case: &Case) -> String {
    let seen: Vec<Transcript> = case.clients.iter().map(|_| Transcript::default()).collect();
    let one = |k: usize| match TcpStream::connect(addr) {
        Ok(stream) => play(stream, case.clients[k], &seen[k]),
        Err(e) => panic!("cannot connect to {addr}: {e}"),
    };
    // The one before is to be gone, or where it is to be, when connections are counted for the log.
    let pause = || std::thread::sleep(Duration::from_millis(50));
    if case.together {
        std::thread::scope(|s| {
            for k in 0..seen.len() {
                let one = &one;
                s.spawn(move || one(k));
                pause();
            }
        });
    } else {
        for k in 0..seen.len() {
            one(k);
            if k + 1 < seen.len() {
                pause();
            }
        }
    }
    let mut text = String::new();
    for (k, seen) in seen.iter().enumerate() {
        text += &format!("[client {k}]\n{}\n", seen.text());
    }
    text
}

/// Log lines by the frontend or backend that they name.
struct Logs(Arc<Mutex<HashMap<usize, Vec<String>>>>);

impl Logs {
    fn collect(socket: UdpSocket, cases: usize) -> Logs {
        let logs = Logs(Arc::default());
        let lines = logs.0.clone();
        std::thread::spawn(move || {
            let mut buf = [0; 65536];
            while let Ok((n, _)) = socket.recv_from(&mut buf) {
                let line = String::from_utf8_lossy(&buf[..n]).into_owned();
                let named = (0..cases)
                    .find(|n| line.contains(&format!("f{n:03}")) || line.contains(&format!("b{n:03}")));
                if let Some(case) = named {
                    lines.lock().expect("nobody panics here").entry(case).or_default().push(line);
                }
            }
        });
        logs
    }

    fn of(&self, case: usize) -> Vec<String> {
        let lines = self.0.lock().expect("nobody panics here");
        lines.get(&case).cloned().unwrap_or_default().into_iter().map(|l| l.trim_end().to_owned()).collect()
    }
}

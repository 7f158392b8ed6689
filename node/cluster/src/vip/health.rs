//! `announce health-port`: only the holder answers health checks, so that a load balancer in front sends
//! the VIP's traffic to it alone.
//!
//! `200` to whatever is asked, which a check of HTTP and one that merely connects both understand; on
//! the other nodes the port is closed. Checks are answered by threads of their own, a few at a time.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phalanx_sys::net::{self, Listen};
use tracing::warn;

use super::core::thread;
use super::guardian::Place;
use super::hands::Driver;

/// Checks answered at a time; who comes beside them is hung up on.
const AT_ONCE: usize = 32;

/// How long a check may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(1);

const ANSWER: &[u8] =
    b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nOK\n";

/// The driver of one VIP.
pub(super) struct Health {
    addr: SocketAddr,
    open: Option<TcpListener>,
}

impl Health {
    /// Of a VIP with this address.
    pub(super) fn new(vip: IpAddr, port: u16) -> Health {
        let any = match vip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Health { addr: SocketAddr::new(any, port), open: None }
    }
}

impl Driver for Health {
    fn missing(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn acquire(&mut self, _: u64, _: Duration) -> Result<Vec<OwnedFd>, String> {
        let failed = |e: std::io::Error| format!("health-port {}: {e}", self.addr.port());
        if self.open.is_none() {
            let listener = Listen::on(self.addr).open().map_err(failed)?;
            listener.set_nonblocking(false).map_err(failed)?;
            let serving = listener.try_clone().map_err(failed)?;
            thread("vip-health", move || serve(&serving))?;
            self.open = Some(listener);
        }
        let open = self.open.iter().map(|l| l.as_fd().try_clone_to_owned());
        open.collect::<Result<_, _>>().map_err(failed)
    }

    fn renew(&mut self, _: Duration) -> Result<(), String> {
        match &self.open {
            // The guardian ended it while this process stood still.
            Some(listener) if !net::is_listening(listener) => {
                Err("health-port was closed by the guardian".into())
            }
            _ => Ok(()),
        }
    }

    fn release(&mut self) -> Result<(), String> {
        if let Some(listener) = self.open.take()
            && net::is_listening(&listener)
        {
            net::shutdown(&listener).map_err(|e| format!("health-port {}: {e}", self.addr.port()))?;
        }
        Ok(())
    }

    fn place(&self) -> Place {
        Place::Listen
    }
}

/// Answers until the listener is shut down.
fn serve(listener: &TcpListener) {
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                if busy.fetch_add(1, Ordering::Relaxed) >= AT_ONCE {
                    busy.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let done = busy.clone();
                let answered = thread("vip-check", move || {
                    answer(stream);
                    done.fetch_sub(1, Ordering::Relaxed);
                });
                if let Err(why) = answered {
                    busy.fetch_sub(1, Ordering::Relaxed);
                    warn!("health-port: {why}");
                }
            }
            Err(_) if !net::is_listening(listener) => return,
            // Out of descriptors, or the check has gone again.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Reads the head of a request, or until the check falls silent or ends, and answers.
fn answer(mut stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let (mut head, mut buf) = (Vec::new(), [0; 1024]);
    while head.len() < 8 * 1024 && !head.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut buf) {
            Ok(n) if n > 0 => head.extend_from_slice(&buf[..n]),
            _ => break,
        }
    }
    if !head.is_empty() {
        let _ = stream.write_all(ANSWER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(port: u16) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn only_who_holds_answers_and_the_guardian_can_end_it() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut health = Health::new("192.0.2.1".parse().unwrap(), port);
        assert!(ask(port).is_err());
        for _ in 0..2 {
            let fds = health.acquire(1, Duration::ZERO).unwrap();
            assert!(health.acquire(2, Duration::ZERO).is_ok(), "a new epoch goes on with it");
            assert!(ask(port).unwrap().starts_with("HTTP/1.0 200 OK\r\n"));
            assert!(health.renew(Duration::ZERO).is_ok());
            // What only connects is content, and does not hold up the next.
            let silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
            assert!(ask(port).unwrap().ends_with("\r\n\r\nOK\n"));
            drop(silent);
            drop(fds);
            health.release().unwrap();
            assert!(ask(port).is_err());
        }
        let fds = health.acquire(3, Duration::ZERO).unwrap();
        net::shutdown(&fds[0]).unwrap();
        assert!(ask(port).is_err(), "shut in all duplicates");
        assert!(health.renew(Duration::ZERO).is_err(), "and noticed");
        health.release().unwrap();
    }
}

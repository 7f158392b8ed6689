//! Where log lines go: syslog over UDP or a unix datagram socket, stdout, stderr.
//!
//! Workers call [`Sink::send`], which never blocks: datagram sockets are per thread and
//! non-blocking, the standard streams take whole lines through bounded buffers that a thread of
//! their own writes out. What does not fit is dropped and counted.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use phalanx_config::{Global, LogFraming, LogReceiver, LogTarget};
use phalanx_engine::log::{Priority, Sender, frame};

mod stream;

use stream::Stream;

/// Sends log lines; a clone sends to the same places.
#[derive(Clone)]
pub struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    sender: Mutex<Arc<Sender>>,
    /// Changes with `sender`; unique over all sinks, so that threads can keep a copy.
    generation: AtomicU64,
    stdout: Stream,
    stderr: Stream,
    dropped: AtomicU64,
}

/// What a thread keeps between lines.
#[derive(Default)]
struct Local {
    line: Vec<u8>,
    sender: Option<(u64, Arc<Sender>)>,
    /// By receiver; those of the configuration in force.
    udp: Vec<(SocketAddr, UdpSocket)>,
    unix: Option<UnixDatagram>,
}

static NEXT_GENERATION: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::default();
}

impl Sink {
    /// A sink that signs its lines as `global` says.
    pub fn new(global: &Global) -> Sink {
        let shared = Shared {
            sender: Mutex::new(Arc::new(sender(global))),
            generation: AtomicU64::new(NEXT_GENERATION.fetch_add(1, Ordering::Relaxed)),
            stdout: Stream::stdout(),
            stderr: Stream::stderr(),
            dropped: AtomicU64::new(0),
        };
        Sink { shared: Arc::new(shared) }
    }

    /// Takes `log-tag` and `log-send-hostname` of a reloaded configuration.
    pub fn reload(&self, global: &Global) {
        *self.shared.sender.lock() = Arc::new(sender(global));
        self.shared.generation.store(NEXT_GENERATION.fetch_add(1, Ordering::Relaxed), Ordering::Release);
    }

    /// Sends `message`, a line without its end, of severity `level` to every target that takes it.
    pub fn send(&self, targets: &[LogTarget], level: u8, message: &[u8]) {
        if targets.iter().all(|t| level > t.level) {
            return;
        }
        LOCAL.with_borrow_mut(|local| {
            let (generation, sender) = self.shared.sender(local);
            let mut now = None;
            for target in targets.iter().filter(|t| level <= t.level) {
                let unix_us = match target.format {
                    LogFraming::Raw | LogFraming::Priority | LogFraming::Short => 0,
                    _ => *now.get_or_insert_with(unix_us),
                };
                let priority = Priority { facility: target.facility, level: level.max(target.min_level) };
                local.line.clear();
                frame(target.format, &sender, priority, unix_us, target.len, message, &mut local.line);
                if !self.shared.deliver(&target.to, local) {
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            local.sender = Some((generation, sender));
        });
    }

    /// Lines that could not be sent since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was sent to the standard streams is written, at most for `limit`. For the
    /// end of the process; it blocks.
    pub fn flush(&self, limit: Duration) {
        self.shared.stdout.flush(limit);
        self.shared.stderr.flush(limit);
    }
}

impl Shared {
    /// Takes the thread's copy, to be put back after use: its count is not shared with other threads.
    fn sender(&self, local: &mut Local) -> (u64, Arc<Sender>) {
        let generation = self.generation.load(Ordering::Acquire);
        match local.sender.take() {
            Some((kept, sender)) if kept == generation => (kept, sender),
            _ => {
                local.udp.clear();
                (generation, self.sender.lock().clone())
            }
        }
    }

    fn deliver(&self, to: &LogReceiver, local: &mut Local) -> bool {
        match to {
            LogReceiver::Udp(addr) => udp(local, *addr),
            LogReceiver::Unix(path) => unix(local, path),
            LogReceiver::Stdout => self.stdout.push(&local.line),
            LogReceiver::Stderr => self.stderr.push(&local.line),
        }
    }
}

/// Over a socket connected to each receiver: the kernel looks up the way once and not for each line.
fn udp(local: &mut Local, to: SocketAddr) -> bool {
    let found = local.udp.iter().position(|(at, _)| *at == to);
    let index = match found {
        Some(index) => index,
        None => match connected(to) {
            Ok(socket) => {
                local.udp.push((to, socket));
                local.udp.len() - 1
            }
            Err(_) => return false,
        },
    };
    let socket = &local.udp[index].1;
    match socket.send(&local.line) {
        Ok(_) => true,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
        // Nobody took the line before this one: that says nothing of this one.
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => socket.send(&local.line).is_ok(),
        // The address or route that it was connected by may be gone.
        Err(_) => {
            local.udp.swap_remove(index);
            found.is_some() && udp(local, to)
        }
    }
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    Ok(socket)
}

fn unix(local: &mut Local, path: &Path) -> bool {
    if local.unix.is_none() {
        local.unix = UnixDatagram::unbound().and_then(|s| s.set_nonblocking(true).map(|()| s)).ok();
    }
    local.unix.as_ref().is_some_and(|socket| socket.send_to(&local.line, path).is_ok())
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

fn sender(global: &Global) -> Sender {
    let system_host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned());
    Sender {
        // HAProxy's default: scripts that read its log look for it.
        tag: global.log_tag.clone().unwrap_or_else(|| "haproxy".to_owned()),
        pid: std::process::id(),
        host: global.log_send_hostname.as_ref().map(|h| h.clone().unwrap_or(system_host)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_engine::log::{ALERT, INFO, NOTICE, WARNING};

    fn target(to: LogReceiver, level: u8) -> LogTarget {
        LogTarget { to, format: LogFraming::Local, len: 1024, facility: 16, level, min_level: 0 }
    }

    fn receiver() -> (UdpSocket, LogReceiver) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
        let to = LogReceiver::Udp(socket.local_addr().expect("bound"));
        (socket, to)
    }

    fn read(socket: &UdpSocket) -> String {
        let mut buf = [0; 2048];
        let n = socket.recv(&mut buf).expect("a datagram within the deadline");
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    #[test]
    fn udp_line_has_header_and_end() {
        let sink = Sink::new(&Global::default());
        let (socket, to) = receiver();
        sink.send(&[target(to, 7)], INFO, b"hello");
        let line = read(&socket);
        let end = format!(" haproxy[{}]: hello\n", std::process::id());
        assert!(line.starts_with("<134>") && line.ends_with(&end), "{line:?}");
        assert_eq!(sink.dropped(), 0);
    }

    /// Every line after the first meets the error that the one before it has left.
    #[test]
    fn a_receiver_that_comes_back_misses_nothing_from_then_on() {
        let sink = Sink::new(&Global::default());
        let (socket, to) = receiver();
        let addr = socket.local_addr().expect("bound");
        let targets = [target(to, 7)];
        sink.send(&targets, INFO, b"first");
        read(&socket);
        drop(socket);
        sink.send(&targets, INFO, b"lost");
        sink.send(&targets, INFO, b"lost as well");
        let socket = UdpSocket::bind(addr).expect("the port is free again");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
        for line in ["second", "third"] {
            sink.send(&targets, INFO, line.as_bytes());
            assert!(read(&socket).ends_with(&format!("{line}\n")));
        }
    }

    #[test]
    fn notice_filter_keeps_traffic_out() {
        let sink = Sink::new(&Global::default());
        let (socket, to) = receiver();
        let targets = [target(to, NOTICE)];
        sink.send(&targets, INFO, b"traffic");
        sink.send(&targets, ALERT, b"server down");
        assert!(read(&socket).ends_with("server down\n"), "the first line to arrive is the alert");
    }

    #[test]
    fn min_level_caps_the_importance() {
        let sink = Sink::new(&Global::default());
        let (socket, to) = receiver();
        let mut t = target(to, 7);
        t.min_level = WARNING;
        sink.send(std::slice::from_ref(&t), ALERT, b"x");
        assert!(read(&socket).starts_with("<132>"));
    }

    #[test]
    fn reload_changes_the_tag() {
        let sink = Sink::new(&Global::default());
        let (socket, to) = receiver();
        let global = Global {
            log_tag: Some("edge".into()),
            log_send_hostname: Some(Some("h1".into())),
            ..Global::default()
        };
        sink.clone().reload(&global);
        sink.send(&[target(to, 7)], INFO, b"x");
        let line = read(&socket);
        assert!(line.contains(" h1 edge["), "{line:?}");
    }

    #[test]
    fn unix_datagram_arrives_and_a_missing_one_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let socket = UnixDatagram::bind(&path).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
        let sink = Sink::new(&Global::default());
        let missing = target(LogReceiver::Unix(dir.path().join("nobody")), 7);
        sink.send(&[missing, target(LogReceiver::Unix(path), 7)], INFO, b"over unix");
        let mut buf = [0; 256];
        let n = socket.recv(&mut buf).expect("a datagram within the deadline");
        assert!(buf[..n].ends_with(b"over unix\n"));
        assert_eq!(sink.dropped(), 1);
    }
}

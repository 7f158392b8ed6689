//! Where log lines go: syslog over UDP or a unix datagram socket, stdout, stderr.
//!
//! Workers call [`Sink::send`], which never blocks: datagram sockets are per thread and
//! non-blocking, the standard streams take whole lines through bounded buffers that a thread of
//! their own writes out. What does not fit is dropped and counted. A worker's lines to UDP receivers
//! go out together at the end of its turn ([`Sink::gather`]).

use std::cell::RefCell;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use phalanx_config::{Global, LogFraming, LogReceiver, LogTarget};
use phalanx_engine::log::{Priority, Sender, frame};
use tokio::sync::Notify;

mod stream;
mod udp;

use stream::Stream;
use udp::Receivers;

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
    /// Those of the configuration in force.
    udp: Receivers,
    unix: Option<UnixDatagram>,
    /// Told of the first line that waits for the end of the turn.
    gathering: Option<Rc<Notify>>,
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
                let out = match target.to {
                    LogReceiver::Udp(to) => local.udp.lines_to(to),
                    _ => Some(&mut local.line),
                };
                let framed =
                    out.map(|out| frame(target.format, &sender, priority, unix_us, target.len, message, out));
                let lost = framed.map_or(1, |()| self.shared.deliver(&target.to, local));
                self.shared.lost(lost);
            }
            local.sender = Some((generation, sender));
        });
    }

    /// From now on lines of this thread to UDP receivers wait until everything has run that was ready to run
    /// when the first of them came, and go out together. Runs on the thread's event loop, as long as that does.
    pub(crate) async fn gather(self) {
        let first = Rc::new(Notify::new());
        LOCAL.with_borrow_mut(|local| local.gathering = Some(first.clone()));
        let gathering = Gathering(self.shared);
        loop {
            first.notified().await;
            gathering.end_turn();
        }
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
                self.lost(local.udp.clear());
                (generation, self.sender.lock().clone())
            }
        }
    }

    /// Delivers the line; how many could not be sent.
    fn deliver(&self, to: &LogReceiver, local: &mut Local) -> u64 {
        let sent = match to {
            LogReceiver::Udp(addr) => return local.udp.end_line(*addr, local.gathering.as_deref()),
            LogReceiver::Unix(path) => unix(local, path),
            LogReceiver::Stdout => self.stdout.push(&local.line),
            LogReceiver::Stderr => self.stderr.push(&local.line),
        };
        u64::from(!sent)
    }

    fn lost(&self, lines: u64) {
        if lines > 0 {
            self.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

/// The thread gathers lines as long as this is there.
struct Gathering(Arc<Shared>);

impl Gathering {
    fn end_turn(&self) {
        LOCAL.with_borrow_mut(|local| self.0.lost(local.udp.send()));
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        // The thread may be ending: what it still has to say it says at once.
        let _ = LOCAL.try_with(|local| {
            let mut local = local.borrow_mut();
            local.gathering = None;
            self.0.lost(local.udp.send());
        });
    }
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
    use crate::runtime::{block_on, spawn, yield_now};
    use phalanx_engine::log::{ALERT, INFO, NOTICE, WARNING};

    use std::net::UdpSocket;

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

    /// Equal ones are cut up by the kernel, and a shorter one after them.
    #[test]
    fn lines_of_a_turn_go_out_together_and_in_order() {
        let sink = Sink::new(&Global::default());
        let (socket, to) = receiver();
        let words = ["a", "b", "ccc", "ddd", "ee", "", "ffff", "gg", "hh", "hh", "i"];
        let lines = || (0..20).flat_map(|_| words);
        let test = async {
            spawn(sink.clone().gather());
            yield_now().await;
            let targets = [target(to, 7)];
            lines().for_each(|word| sink.send(&targets, INFO, word.as_bytes()));
            socket.set_nonblocking(true).expect("a socket option");
            let early = (0..).take_while(|_| socket.recv(&mut [0; 64]).is_ok()).count();
            assert!(early < lines().count(), "nothing waited");
            socket.set_nonblocking(false).expect("a socket option");
            // The turn ends.
            yield_now().await;
            (early..lines().count()).map(|_| read(&socket)).collect()
        };
        let all: Vec<String> = block_on(test).expect("descriptors");
        let texts: Vec<&str> = all.iter().filter_map(|line| line.trim_end().split(']').nth(1)).collect();
        let wanted: Vec<String> = lines().map(|word| format!(": {word}").trim_end().to_owned()).collect();
        assert_eq!(texts, wanted[wanted.len() - texts.len()..]);
        assert_eq!(sink.dropped(), 0);
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

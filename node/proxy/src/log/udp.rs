//! UDP receivers of one thread, with the lines that wait for the end of its turn.
//!
//! What a line costs is its way through the kernel: 2.4 us over loopback, whether it has a call of its own or
//! not (`sendmmsg`). Datagrams of one length, and one after them that is shorter, take that way as one: four
//! are sent for 1.0 us each, sixteen for 0.6. Order stays; what can't go along with others goes alone. Never
//! blocks, and what waits is bounded.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use phalanx_sys::net;
use tokio::sync::Notify;

/// Lines of one call: as many datagrams as the kernel makes of one.
const MOST: usize = 64;
/// Bytes of one call: what fits into one datagram, with its headers.
const FULL: usize = 60_000;
/// Longer lines would be fragments on most ways, and those are not cut up.
const LONG: usize = 1_400;

/// The receivers that this thread has sent to.
#[derive(Default)]
pub(super) struct Receivers(Vec<Receiver>);

/// One of them. The socket is connected: the kernel looks up the way once and not for each line.
struct Receiver {
    at: SocketAddr,
    socket: UdpSocket,
    /// Lines that wait, one after the other, and how long each is.
    text: Vec<u8>,
    lengths: Vec<usize>,
    /// Bytes of `text` that have their length there: the rest is the line that is being written.
    whole: usize,
    /// The way takes several as one, as far as is known.
    together: bool,
}

impl Receivers {
    /// Where to append the next line to a receiver; `None` if there is no way to it.
    pub(super) fn lines_to(&mut self, to: SocketAddr) -> Option<&mut Vec<u8>> {
        let index = match self.0.iter().position(|receiver| receiver.at == to) {
            Some(index) => index,
            None => {
                self.0.push(Receiver::new(to).ok()?);
                self.0.len() - 1
            }
        };
        Some(&mut self.0[index].text)
    }

    /// The line is appended: it waits for [`Receivers::send`] if `gathering` can be told of it. How many lines
    /// could not be sent.
    pub(super) fn end_line(&mut self, to: SocketAddr, gathering: Option<&Notify>) -> u64 {
        let waited = self.0.iter().any(|receiver| !receiver.lengths.is_empty());
        let Some(receiver) = self.0.iter_mut().find(|receiver| receiver.at == to) else { return 0 };
        receiver.lengths.push(receiver.text.len() - receiver.whole);
        receiver.whole = receiver.text.len();
        match gathering {
            Some(gathering) if receiver.lengths.len() < MOST && receiver.text.len() < FULL / 2 => {
                if !waited {
                    gathering.notify_one();
                }
                0
            }
            _ => receiver.send(),
        }
    }

    /// Sends what waits; how many lines could not be sent.
    pub(super) fn send(&mut self) -> u64 {
        self.0.iter_mut().map(Receiver::send).sum()
    }

    /// Sends what waits and forgets all receivers; how many lines could not be sent.
    pub(super) fn clear(&mut self) -> u64 {
        let lost = self.send();
        self.0.clear();
        lost
    }
}

impl Receiver {
    fn new(at: SocketAddr) -> io::Result<Receiver> {
        let (text, lengths) = (Vec::new(), Vec::new());
        Ok(Receiver { at, socket: connected(at)?, text, lengths, whole: 0, together: true })
    }

    fn send(&mut self) -> u64 {
        let (mut text, mut lengths) = (std::mem::take(&mut self.text), std::mem::take(&mut self.lengths));
        let (mut rest, mut left, mut lost) = (&*text, &*lengths, 0);
        while let Some(&size) = left.first() {
            let lines = if self.together { fitting(left) } else { 1 };
            let (now, later) = rest.split_at(left[..lines].iter().sum());
            lost += if lines > 1 { self.send_cut(now, size) } else { u64::from(!self.send_one(now)) };
            (rest, left) = (later, &left[lines..]);
        }
        text.clear();
        lengths.clear();
        (self.text, self.lengths, self.whole) = (text, lengths, 0);
        lost
    }

    /// Sends lines of `size` bytes, of which the last may be shorter; how many could not be sent.
    fn send_cut(&mut self, lines: &[u8], size: usize) -> u64 {
        let count = lines.len().div_ceil(size) as u64;
        let cut = u16::try_from(size).unwrap_or(u16::MAX);
        let sent = match net::send_cut(&self.socket, lines, cut) {
            // As for one line.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => net::send_cut(&self.socket, lines, cut),
            sent => sent,
        };
        match sent {
            Ok(()) => 0,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) => {
                count
            }
            Err(_) => {
                self.together = false;
                lines.chunks(size).filter(|line| !self.send_one(line)).count() as u64
            }
        }
    }

    fn send_one(&mut self, line: &[u8]) -> bool {
        match self.socket.send(line) {
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            // Nobody took the line before this one: that says nothing of this one.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => self.socket.send(line).is_ok(),
            // The address or route that it was connected by may be gone.
            Err(_) => {
                let Ok(socket) = connected(self.at) else { return false };
                self.socket = socket;
                self.socket.send(line).is_ok()
            }
        }
    }
}

/// How many of the first lines go out as one: those of one length, and one behind them that is shorter.
fn fitting(lengths: &[usize]) -> usize {
    let Some(&size) = lengths.first().filter(|&&size| (1..=LONG).contains(&size)) else { return 1 };
    let most = MOST.min(FULL / size);
    let equal = lengths.iter().take(most).take_while(|&&len| len == size).count();
    let shorter = lengths.get(equal).is_some_and(|&len| equal < most && 0 < len && len < size);
    equal + usize::from(shorter)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_and_one_shorter_go_together() {
        for (lengths, want) in [
            (&[5][..], 1),
            (&[5, 5, 5], 3),
            (&[5, 5, 4, 4], 3),
            (&[5, 6], 1),
            (&[6, 5, 5], 2),
            (&[LONG, LONG, LONG], 3),
            (&[LONG + 1, LONG + 1], 1),
            (&[5; MOST + 1], MOST),
            (&[1_000; MOST], FULL / 1_000),
        ] {
            assert_eq!(fitting(lengths), want, "{lengths:?}");
        }
    }

    #[test]
    fn a_way_that_does_not_cut_gets_one_after_the_other() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a socket option");
        let mut receiver = Receiver::new(socket.local_addr().expect("bound")).expect("a socket");
        // More than the kernel makes of one.
        let lines: Vec<u8> = (0..150).collect();
        assert_eq!(receiver.send_cut(&lines, 1), 0);
        assert!(!receiver.together);
        for wanted in lines {
            let mut buf = [0; 64];
            assert_eq!(socket.recv(&mut buf).expect("a datagram within the deadline"), 1);
            assert_eq!(buf[0], wanted);
        }
    }
}

//! Connections to the cluster's port: accepted, counted, bounded, recognised.
//!
//! Anybody may connect to the port. So that strangers cannot take the descriptors that forwarding
//! needs, nor the places of the nodes, connections are bounded in all and per address; one above the
//! bound is closed at once. Its first byte tells what a connection speaks ([`greet`]): TLS is taken
//! on here, with a deadline, and beside accepting. An error of `accept` (no descriptors left, say) is a
//! pause, never the end of serving.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};

use crate::haproxy;
use crate::tls::{Tls, describe};

/// Connections in all.
const MAX: usize = 1024;

/// Connections from one address; a node uses five.
pub(super) const MAX_PER_ADDRESS: usize = 64;

/// After an error of `accept`.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may take until it has said what it speaks, TLS included.
const GREET_WITHIN: Duration = Duration::from_secs(5);

/// A connection that is refused may read the reason for so long.
const LINGER: Duration = Duration::from_secs(1);

/// Addresses whose problems are remembered, and problems of one address: each is told once.
const STRANGERS: usize = 64;
const REPORTED: usize = 8;

/// Warnings of strangers in [`REMEMBERED`]: a scan from many addresses must not fill the log.
const WARNINGS: u32 = 16;

/// What was told of an address is told again if it comes after so long, and good connections before.
const REMEMBERED: Duration = Duration::from_secs(60);

/// First byte of a TLS record with a handshake; HTTP/2 begins with `P`.
const TLS_HANDSHAKE: u8 = 0x16;

/// First byte of a session of HAProxy's peers protocol.
const HAPROXY: u8 = b'H';

/// How many connections each address has.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// The connections that are let in.
pub(super) fn incoming(
    listener: TcpListener,
    cluster: String,
    tls: Option<Tls>,
    haproxys: Option<haproxy::Handle>,
) -> impl Stream<Item = io::Result<Connection>> {
    let counts = Counts::default();
    let door = Door {
        listener,
        counts,
        cluster,
        tls,
        haproxys,
        greeted: FuturesUnordered::new(),
        strangers: Strangers::default(),
    };
    stream::unfold(door, async |mut door| {
        let connection = door.next().await;
        Some((Ok(connection), door))
    })
}

type Greeting = Pin<Box<dyn Future<Output = (IpAddr, Result<Connection, Refused>)> + Send>>;

struct Door {
    listener: TcpListener,
    counts: Counts,
    cluster: String,
    tls: Option<Tls>,
    haproxys: Option<haproxy::Handle>,
    greeted: FuturesUnordered<Greeting>,
    strangers: Strangers,
}

/// What was told of addresses: each problem of each once, the log shall not be filled from outside.
#[derive(Default)]
struct Strangers {
    /// Since it last did well, with when the last connection was refused.
    told: HashMap<IpAddr, (Instant, Vec<String>)>,
    /// When warnings began to be counted, how many there were since, and what went without one.
    window: Option<Instant>,
    warnings: u32,
    untold: u64,
}

impl Strangers {
    /// Whether a refused connection is worth a warning, and how many went without since the last one.
    fn tell(&mut self, from: IpAddr, why: &str, now: Instant) -> Option<u64> {
        if self.told.len() >= STRANGERS && !self.told.contains_key(&from) {
            let oldest = self.told.iter().min_by_key(|(_, (at, _))| *at).map(|(from, _)| *from);
            self.told.remove(&oldest?);
        }
        let (at, told) = self.told.entry(from).or_insert_with(|| (now, Vec::new()));
        *at = now;
        if told.len() >= REPORTED || told.iter().any(|known| known == why) {
            return None;
        }
        if self.window.is_none_or(|began| now.duration_since(began) >= REMEMBERED) {
            (self.window, self.warnings) = (Some(now), 0);
        }
        if self.warnings >= WARNINGS {
            // Not marked as told: it is, should it come again in better times.
            self.untold += 1;
            return None;
        }
        told.push(why.to_owned());
        self.warnings += 1;
        Some(std::mem::take(&mut self.untold))
    }

    /// Whether this address, that does well now, was told of. Not at once: whoever sends now this and now
    /// that would be told of each time.
    fn is_forgiven(&mut self, from: IpAddr, now: Instant) -> bool {
        let is_old =
            |(at, told): &(Instant, Vec<String>)| now.duration_since(*at) > REMEMBERED && !told.is_empty();
        self.told.get(&from).is_some_and(is_old) && self.told.remove(&from).is_some()
    }
}

/// Why a connection is not let in.
enum Refused {
    /// It ended, or said nothing: scanners and health checks do.
    Silent,
    /// In words that follow the address.
    For(String),
}

impl Door {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, from)) => self.accepted(stream, from.ip()),
                    Err(error) => {
                        debug!("accept on the cluster's port: {error}");
                        sleep(PAUSE).await;
                    }
                },
                Some((from, greeted)) = self.greeted.next(), if !self.greeted.is_empty() => match greeted {
                    Ok(connection) => {
                        self.did_well(from, &connection);
                        return connection;
                    }
                    Err(Refused::For(why)) => self.tell(from, why),
                    Err(Refused::Silent) => {}
                },
            }
        }
    }

    fn accepted(&mut self, stream: TcpStream, from: IpAddr) {
        // Without it a small answer waits for the acknowledgement of the one before.
        if let Some(place) = Place::take(&self.counts, from)
            && stream.set_nodelay(true).is_ok()
        {
            let (tls, haproxys) = (self.tls.clone(), self.haproxys.clone());
            self.greeted.push(Box::pin(async move {
                let greeted = timeout(GREET_WITHIN, greet(stream, place, tls, haproxys)).await;
                (from, greeted.unwrap_or(Err(Refused::Silent)))
            }));
        }
    }

    fn did_well(&mut self, from: IpAddr, connection: &Connection) {
        if connection.line.fits && self.strangers.is_forgiven(from, Instant::now()) {
            info!("cluster {}: connections from {from} are accepted again", self.cluster);
        }
    }

    fn tell(&mut self, from: IpAddr, why: String) {
        let Some(untold) = self.strangers.tell(from, &why, Instant::now()) else { return };
        let cluster = &self.cluster;
        match untold {
            0 => warn!("cluster {cluster}: connection from {from} refused: {why}"),
            _ => {
                warn!("cluster {cluster}: connection from {from} refused: {why} (and {untold} others before)")
            }
        }
    }
}

/// Finds out what a connection speaks, by its first byte, and takes on TLS where it is wanted. Plain
/// HTTP/2 where TLS is wanted is let in for [`Guard`](crate::identity::Guard) to refuse: only there it
/// has said who it is, and gets an answer that helps.
async fn greet(
    stream: TcpStream,
    place: Place,
    tls: Option<Tls>,
    haproxys: Option<haproxy::Handle>,
) -> Result<Connection, Refused> {
    let mut first = [0];
    if !matches!(stream.peek(&mut first).await, Ok(1)) {
        return Err(Refused::Silent);
    }
    let (io, line) = match (first[0], tls) {
        (HAPROXY, _) => {
            let Some(haproxys) = haproxys else {
                let why = "it speaks HAProxy's peers protocol, and there is no 'peer' line here";
                return Err(Refused::For(why.to_owned()));
            };
            // Not a node's: served beside the door, in its place.
            tokio::spawn(async move {
                haproxys.serve(stream).await;
                drop(place);
            });
            return Err(Refused::Silent);
        }
        (TLS_HANDSHAKE, Some(tls)) => {
            let stream = Box::new(take_on(stream, &tls).await?);
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = shown.map(|c| Arc::new(c.clone().into_owned()));
            (Io::Tls(stream), Line { fits: true, certificate })
        }
        (TLS_HANDSHAKE, None) => {
            linger(stream).await;
            let why = "it speaks TLS: 'ssl' is missing in the 'cluster' section here, or there too many";
            return Err(Refused::For(why.to_owned()));
        }
        (_, tls) => (Io::Plain(stream), Line { fits: tls.is_none(), certificate: None }),
    };
    Ok(Connection { io, line, _place: place })
}

/// The TLS handshake.
async fn take_on(stream: TcpStream, tls: &Tls) -> Result<TlsStream<TcpStream>, Refused> {
    let refused = |error: &io::Error| match crate::tls::within(error) {
        Some(_) => Refused::For(describe(error)),
        None => Refused::Silent,
    };
    match TlsAcceptor::from(tls.server()).accept(stream).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, stream)) => {
            linger(stream).await;
            Err(refused(&error))
        }
    }
}

/// Ends a connection so that the other side reads what was sent last: closing while it still sends
/// would take that away from it.
async fn linger(mut stream: TcpStream) {
    let read_to_end = async {
        let mut rest = [0; 512];
        stream.shutdown().await?;
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(LINGER, read_to_end).await;
}

/// One of the places for connections; given back when dropped.
struct Place {
    from: IpAddr,
    counts: Counts,
}

impl Place {
    fn take(counts: &Counts, from: IpAddr) -> Option<Place> {
        let mut held = counts.lock();
        if held.values().sum::<usize>() >= MAX {
            return None;
        }
        let count = held.entry(from).or_default();
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place { from, counts: counts.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.counts.lock();
        if let Some(count) = held.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.from);
            }
        }
    }
}

/// What a connection is, for those who judge the calls on it.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// It speaks TLS where TLS is wanted.
    pub(crate) fits: bool,
    /// What the other side has shown.
    pub(crate) certificate: Option<Arc<CertificateDer<'static>>>,
}

/// A connection with its place.
pub(super) struct Connection {
    io: Io,
    line: Line,
    _place: Place,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Calls the same method on either.
macro_rules! either {
    ($self:ident, $method:ident $(, $arg:expr)*) => {
        match &mut $self.get_mut().io {
            Io::Plain(io) => Pin::new(io).$method($($arg),*),
            Io::Tls(io) => Pin::new(io).$method($($arg),*),
        }
    };
}

impl Connected for Connection {
    type ConnectInfo = Line;

    fn connect_info(&self) -> Line {
        self.line.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, poll_write, cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write_vectored, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that has said something.
    async fn connect(addr: std::net::SocketAddr) -> TcpStream {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(b"PRI").await.unwrap();
        client
    }

    #[tokio::test]
    async fn connections_of_one_address_are_bounded_and_places_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(incoming(listener, "test".into(), None, None));
        let mut clients = Vec::new();
        let mut held = Vec::new();
        for _ in 0..MAX_PER_ADDRESS {
            clients.push(connect(addr).await);
            held.push(incoming.next().await.unwrap().unwrap());
        }
        // One too many: closed, not held.
        let above = connect(addr).await;
        let mut byte = [0];
        let closed = async {
            above.readable().await.unwrap();
            above.try_read(&mut byte)
        };
        tokio::select! {
            read = closed => assert!(!matches!(read, Ok(1..))),
            _ = incoming.next() => panic!("it was let in"),
        }
        held.pop();
        clients.push(connect(addr).await);
        assert!(incoming.next().await.unwrap().is_ok());
    }

    #[test]
    fn strangers_are_told_of_once_and_a_scan_does_not_fill_the_log() {
        let (mut strangers, start) = (Strangers::default(), Instant::now());
        let later = |s: u64| start + Duration::from_secs(s);
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        assert_eq!(strangers.tell(address(7), "a", start), Some(0));
        assert_eq!(strangers.tell(address(7), "a", start), None);
        assert_eq!(strangers.tell(address(7), "b", start), Some(0));
        // A scan: few are told of, and the node that was there before stays known while it comes.
        let warned = (100..1100).filter(|n| {
            let now = start + Duration::from_millis(u64::from(*n));
            assert_eq!(strangers.tell(address(7), "a", now), None);
            strangers.tell(address(*n), "a", now).is_some()
        });
        assert_eq!(warned.count(), WARNINGS as usize - 2);
        assert_eq!(strangers.told.len(), STRANGERS);
        assert!(!strangers.told.contains_key(&address(100)), "the oldest goes");
        assert!(strangers.told.contains_key(&address(1099)));
        // Those that nothing was said of are told of later, with how many there were.
        let untold = 1000 - u64::from(WARNINGS) + 2;
        assert_eq!(strangers.tell(address(1099), "a", later(61)), Some(untold));
        assert_eq!(strangers.tell(address(1098), "a", later(61)), Some(0));
        assert!(!strangers.is_forgiven(address(7), later(2)), "not at once");
        assert!(
            strangers.is_forgiven(address(7), later(62)) && !strangers.is_forgiven(address(7), later(62))
        );
        assert_eq!(strangers.tell(address(7), "a", later(63)), Some(0));
    }
}

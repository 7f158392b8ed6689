//! Connections to the cluster's port: accepted, counted, bounded.
//!
//! Anybody may connect to the port. So that strangers cannot take the descriptors that forwarding
//! needs, nor the places of the nodes, connections are bounded in all and per address; one above the
//! bound is closed at once. An error of `accept` (no descriptors left, say) is a pause, never the end
//! of serving.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::debug;

/// Connections in all.
const MAX: usize = 1024;

/// Connections from one address; a node uses three.
pub(super) const MAX_PER_ADDRESS: usize = 64;

/// After an error of `accept`.
const PAUSE: Duration = Duration::from_millis(100);

/// How many connections each address has.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// The connections that are let in.
pub(super) fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, Counts::default()), async |(listener, counts)| {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!("accept on the cluster's port: {error}");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            // Without it a small answer waits for the acknowledgement of the one before.
            if let Some(place) = Place::take(&counts, from.ip())
                && stream.set_nodelay(true).is_ok()
            {
                return Some((Ok(Connection { stream, _place: place }), (listener, counts)));
            }
        }
    })
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

/// A connection with its place.
pub(super) struct Connection {
    stream: TcpStream,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn connections_of_one_address_are_bounded_and_places_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(incoming(listener));
        let mut clients = Vec::new();
        let mut held = Vec::new();
        for _ in 0..MAX_PER_ADDRESS {
            clients.push(TcpStream::connect(addr).await.unwrap());
            held.push(incoming.next().await.unwrap().unwrap());
        }
        // One too many: closed, not held.
        let above = TcpStream::connect(addr).await.unwrap();
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
        clients.push(TcpStream::connect(addr).await.unwrap());
        assert!(incoming.next().await.unwrap().is_ok());
    }
}

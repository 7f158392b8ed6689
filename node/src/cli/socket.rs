//! The sockets of the Runtime API: opening them, accepting, a bound on connections.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use phalanx_config::{Level, StatsAddr, StatsSocket};
use phalanx_sys::unix;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{error, warn};

use super::Context;
use super::session::Session;

/// Connections of one socket at a time; the next ones wait in its backlog.
const MAX_CONNECTIONS: usize = 64;

/// How long commands may take to be answered when their socket is gone from the configuration.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A `stats socket` that could not be opened.
#[derive(Debug)]
pub(crate) struct Error {
    /// Its address, as in `show cli sockets`.
    pub(crate) address: String,
    /// Why.
    pub(crate) error: io::Error,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot bind stats socket '{}' ({})", self.address, self.error)
    }
}

impl std::error::Error for Error {}

/// An open `stats socket`. Opened before the process gives up its rights, served later.
pub(crate) struct Listener {
    config: StatsSocket,
    socket: Opened,
}

enum Opened {
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener),
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Its line of the configuration.
    pub(crate) fn config(&self) -> &StatsSocket {
        &self.config
    }

    /// The port that a TCP socket got, for `:0`.
    #[cfg(test)]
    pub(crate) fn port(&self) -> Option<u16> {
        match &self.socket {
            Opened::Tcp(listener) => listener.local_addr().ok().map(|a| a.port()),
            Opened::Unix(_) => None,
        }
    }
}

/// An address as `show cli sockets` prints it.
pub(super) fn address(addr: &StatsAddr) -> String {
    match addr {
        StatsAddr::Unix(path) => format!("unix@{}", path.display()),
        StatsAddr::Tcp(addr) if addr.is_ipv4() => format!("ipv4@{addr}"),
        StatsAddr::Tcp(addr) => format!("ipv6@{addr}"),
    }
}

/// Opens a socket.
///
/// # Errors
/// Which socket, and why.
pub(crate) fn listen(config: &StatsSocket) -> Result<Listener, Error> {
    let open = || -> io::Result<Opened> {
        match &config.addr {
            StatsAddr::Unix(path) => {
                let access = unix::Access { mode: config.mode, uid: config.uid, gid: config.gid };
                unix::listen(path, access).map(Opened::Unix)
            }
            StatsAddr::Tcp(addr) => {
                // Without SO_REUSEPORT: another process must not take half of the commands.
                let listener = std::net::TcpListener::bind(addr)?;
                listener.set_nonblocking(true)?;
                Ok(Opened::Tcp(listener))
            }
        }
    };
    match open() {
        Ok(socket) => Ok(Listener { config: config.clone(), socket }),
        Err(error) => Err(Error { address: address(&config.addr), error }),
    }
}

/// Serves a socket, new connections with the level that `levels` says, until it says none; commands that are under way may finish, within a limit.
pub(crate) async fn serve(listener: Listener, ctx: Arc<Context>, mut levels: watch::Receiver<Option<Level>>) {
    let address = address(&listener.config.addr);
    let socket = match listener.socket {
        Opened::Unix(socket) => UnixListener::from_std(socket).map(Socket::Unix),
        Opened::Tcp(socket) => TcpListener::from_std(socket).map(Socket::Tcp),
    };
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => return error!("stats socket '{address}': {error}"),
    };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            // The place first: a connection that cannot be served yet stays in the backlog.
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            accept(&socket).await.map(|stream| (stream, place))
        };
        let accepted = tokio::select! {
            _ = levels.wait_for(Option::is_none) => break,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let Some(level) = *levels.borrow() else { break };
                let ctx = ctx.clone();
                connections.spawn(async move {
                    let _place = place;
                    Session::new(stream, &ctx, level).run().await;
                });
            }
            Err(error) => {
                warn!("stats socket '{address}': accept failed: {error}");
                // Out of descriptors: trying at once again would only burn the processor.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(socket);
    // Who asked for the reload that removed this socket gets the answer.
    let answered = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
    connections.shutdown().await;
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for T {}

async fn accept(socket: &Socket) -> io::Result<Box<dyn Stream>> {
    match socket {
        Socket::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        Socket::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
    }
}

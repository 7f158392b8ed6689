//! The one gRPC port of a node: binds it, serves every service on it behind the [`Guard`], ends it.
//!
//! A port that cannot be bound, or a name that does not resolve yet, is a warning and another try:
//! the node forwards meanwhile. Bytes that are not gRPC end their own connection and nothing else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::Server;
use tracing::{info, warn};

use self::incoming::incoming;
use crate::Settings;
use crate::haproxy;
use crate::identity::Guard;

pub(crate) mod incoming;

/// Between two attempts to bind.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// hyper's graceful end can wait for ever for a connection (hyperium/hyper#4170): it gets this long.
const END_WITHIN: Duration = Duration::from_secs(1);

const BACKLOG: u32 = 256;

/// Serves `routes` on `addr` until `stop` turns true or its sender is gone.
pub(crate) async fn serve(
    settings: Arc<Settings>,
    addr: String,
    guard: Guard,
    routes: Routes,
    haproxys: Option<haproxy::Handle>,
    mut stop: watch::Receiver<bool>,
) {
    let cluster = &settings.name;
    let Some(listener) = bind_when_possible(&format!("cluster {cluster}"), &addr, &mut stop).await else {
        return;
    };
    info!("cluster {cluster}: listening on {addr}");
    let server = Server::builder()
        .layer(InterceptorLayer::new(guard))
        .max_concurrent_streams(256)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(4)))
        .add_routes(routes);
    let mut stopped = stop.clone();
    let serving = server.serve_with_incoming_shutdown(
        incoming(listener, cluster.clone(), settings.tls.clone(), haproxys),
        async move {
            ended(&mut stopped).await;
        },
    );
    let mut serving = std::pin::pin!(serving);
    let end = tokio::select! {
        end = &mut serving => Some(end),
        () = ended(&mut stop) => timeout(END_WITHIN, &mut serving).await.ok(),
    };
    if let Some(Err(error)) = end {
        warn!("cluster {cluster}: serving {addr} ended: {error}");
    }
}

/// Waits until `stop` turns true or its sender is gone.
pub(crate) async fn ended(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: stopped as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Binds `addr`, as soon as that can be done; `who` says in warnings for whom.
pub(crate) async fn bind_when_possible(
    who: &str,
    addr: &str,
    stop: &mut watch::Receiver<bool>,
) -> Option<TcpListener> {
    let mut last = String::new();
    loop {
        match bind(addr).await {
            Ok(listener) => return Some(listener),
            Err(error) => {
                let reason = error.to_string();
                if reason != last {
                    warn!("{who}: cannot listen on {addr}, trying again: {reason}");
                    last = reason;
                }
            }
        }
        tokio::select! {
            () = sleep(RETRY_EVERY) => {}
            () = ended(stop) => return None,
        }
    }
}

async fn bind(addr: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in lookup_host(addr).await? {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        match socket.bind(addr).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

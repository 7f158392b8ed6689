//! Connections to peers: over TLS where the cluster has it, else as tonic makes them.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::{Tls, describe};
use crate::{Node, Settings};

/// A channel to a node, connected when first used and again when lost.
pub(crate) fn channel(settings: &Settings, node: &Node, endpoint: &Endpoint) -> Channel {
    match &settings.tls {
        Some(tls) => endpoint.connect_with_connector_lazy(Connector::new(tls, node)),
        None => endpoint.connect_lazy(),
    }
}

/// A channel to the node of this name, connected.
pub(crate) async fn connect(
    settings: &Settings,
    node: &str,
    endpoint: &Endpoint,
) -> Result<Channel, tonic::transport::Error> {
    match (&settings.tls, settings.nodes.iter().find(|n| n.name == node)) {
        (Some(tls), Some(node)) => endpoint.connect_with_connector(Connector::new(tls, node)).await,
        // Not in the list: the endpoint has no address either.
        _ => endpoint.connect().await,
    }
}

/// Why TLS with a peer did not come about, in words.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Makes TLS connections to one peer.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    tls: Tls,
    addr: String,
    names: Vec<ServerName<'static>>,
}

impl Connector {
    pub(crate) fn new(tls: &Tls, node: &Node) -> Connector {
        Connector { tls: tls.clone(), addr: node.addr.clone(), names: node.tls_names() }
    }

    async fn connect(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(&self.addr).await?;
        stream.set_nodelay(true)?;
        // What is asked for is for the other side's choice among several certificates, and it has one.
        let Some(name) = self.names.first().cloned() else {
            return Err(io::Error::other("neither name nor host of the node can stand in a certificate"));
        };
        let connector = TlsConnector::from(self.tls.client(&self.names));
        let stream = connector.connect(name, stream).await;
        Ok(TokioIo::new(stream.map_err(|e| io::Error::new(e.kind(), Refusal(describe(&e))))?))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

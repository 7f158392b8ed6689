//! Servers to balance over when one has none: small web servers that say who they are, and TCP
//! echo servers that greet with their name.
//!
//! `phalanx cluster up` runs them in a process of their own (`phalanx demo …`), so that they share
//! nothing with a node. They are real servers, small ones: keep-alive, chunked bodies, WebSocket.
//! They must never be mistaken for something to put before users.

mod echo;
mod http;
mod websocket;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::Parser;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Runs demo servers until it is killed.
#[derive(Debug, Parser)]
#[command(name = "phalanx demo", about)]
struct Args {
    /// A web server, as NAME=ADDRESS:PORT; may be repeated
    #[arg(long, value_name = "NAME=ADDR:PORT")]
    http: Vec<Named>,
    /// A TCP echo server, as NAME=ADDRESS:PORT; may be repeated
    #[arg(long, value_name = "NAME=ADDR:PORT")]
    echo: Vec<Named>,
}

/// One server: what it calls itself and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    name: Arc<str>,
    addr: SocketAddr,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Named, String> {
        let (name, addr) = text.split_once('=').ok_or("expected NAME=ADDRESS:PORT")?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("invalid server name '{name}'"));
        }
        let addr = addr.parse().map_err(|_| format!("invalid address '{addr}', expected ADDRESS:PORT"))?;
        Ok(Named { name: name.into(), addr })
    }
}

/// Runs `phalanx demo` with the words that follow `demo`.
pub(crate) fn run(args: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let args = Args::parse_from(std::iter::once("phalanx demo".into()).chain(args));
    if args.http.is_empty() && args.echo.is_empty() {
        eprintln!("phalanx demo: nothing to serve: give --http or --echo");
        return ExitCode::FAILURE;
    }
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))
        .and_then(|runtime| runtime.block_on(serve(args)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("phalanx demo: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Binds everything first, so that one taken address fails the start as a whole, then says `ready`.
async fn serve(args: Args) -> Result<(), String> {
    let mut servers = JoinSet::new();
    let mut bound = Vec::new();
    for (kind, named) in
        args.http.into_iter().map(|n| (Kind::Http, n)).chain(args.echo.into_iter().map(|n| (Kind::Echo, n)))
    {
        let listener = TcpListener::bind(named.addr)
            .await
            .map_err(|e| format!("server '{}': cannot bind {}: {e}", named.name, named.addr))?;
        bound.push((kind, named.name, listener));
    }
    println!("ready");
    for (kind, name, listener) in bound {
        servers.spawn(accept(kind, name, listener));
    }
    while servers.join_next().await.is_some() {}
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Http,
    Echo,
}

async fn accept(kind: Kind, name: Arc<str>, listener: TcpListener) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors, most likely: let sessions end before trying again.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        // Small answers must not wait for the acknowledgement of the ones before.
        let _ = stream.set_nodelay(true);
        let name = name.clone();
        match kind {
            Kind::Http => drop(tokio::spawn(async move { http::serve(stream, peer, &name).await })),
            Kind::Echo => drop(tokio::spawn(async move { echo::serve(stream, &name).await })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_with_an_address() {
        let named: Named = "s1=127.0.0.1:9801".parse().unwrap();
        assert_eq!((&*named.name, named.addr), ("s1", "127.0.0.1:9801".parse().unwrap()));
        for bad in ["s1", "=127.0.0.1:1", "s1=127.0.0.1", "s1=host:80", "a b=127.0.0.1:1"] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
    }
}

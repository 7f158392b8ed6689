//! Asking a node over its Runtime API, with a deadline: a paused one never answers.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Longest answer.
const MAX: u64 = 4 << 20;

/// Runs one command on the Runtime API at `place`, a path or `address:port`.
pub(super) async fn command(place: &str, command: &str, limit: Duration) -> Result<String, String> {
    let exchange = async {
        if place.starts_with('/') {
            run(UnixStream::connect(place).await?, command).await
        } else {
            run(TcpStream::connect(place).await?, command).await
        }
    };
    match tokio::time::timeout(limit, exchange).await {
        Ok(result) => result.map_err(|e| format!("Runtime API at {place}: {e}")),
        Err(_) => Err(format!("Runtime API at {place}: no answer within {} ms", limit.as_millis())),
    }
}

async fn run(mut stream: impl AsyncRead + AsyncWrite + Unpin, command: &str) -> std::io::Result<String> {
    stream.write_all(format!("{command}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

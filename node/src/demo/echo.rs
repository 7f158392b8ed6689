//! The TCP echo server: `NAME ready` on connect, then every byte comes back.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Serves one connection until the client has closed its side and has everything back.
pub(super) async fn serve(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.write_all(format!("{name} ready\n").as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn greets_by_name_and_echoes_until_the_client_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let server = tokio::spawn(serve(stream, "nc1"));
        client.write_all(b"hello\n").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "nc1 ready\nhello\n");
        server.await.unwrap().unwrap();
    }
}

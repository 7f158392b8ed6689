//! Enough of RFC 6455 for an echo: the handshake's answer, and frames read, checked and sent back.
//!
//! Driven by the web server after an upgrade. Frames are bounded; what breaks the protocol is
//! answered with a close frame and the code that RFC 6455 section 7.4.1 gives.

use std::io;

use base64::Engine;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest frame that is taken.
const MAX_FRAME: usize = 1 << 20;
const PROTOCOL_ERROR: u16 = 1002;
const TOO_BIG: u16 = 1009;

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (section 4.2.2).
pub(super) fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(hash.finalize())
}

struct Frame {
    /// FIN and opcode as they came: fragments are echoed as fragments.
    first: u8,
    payload: Vec<u8>,
}

enum Received {
    Frame(Frame),
    Violation(u16),
}

/// Echoes messages until either side closes.
pub(super) async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    loop {
        let frame = match read_frame(stream).await? {
            Received::Frame(frame) => frame,
            Received::Violation(code) => {
                write_frame(stream, 0x88, &code.to_be_bytes()).await?;
                return stream.shutdown().await;
            }
        };
        match frame.first & 0x0f {
            // Continuation, text, binary.
            0..=2 => write_frame(stream, frame.first, &frame.payload).await?,
            8 => {
                write_frame(stream, 0x88, &frame.payload).await?;
                return stream.shutdown().await;
            }
            // Ping is answered by pong with the same payload.
            9 => write_frame(stream, 0x8a, &frame.payload).await?,
            // An unasked pong is allowed and needs no answer.
            _ => {}
        }
    }
}

async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Received> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    let (opcode, control) = (head[0] & 0x0f, head[0] & 0x08 != 0);
    let known = matches!(opcode, 0..=2 | 8..=10);
    let masked = head[1] & 0x80 != 0;
    if head[0] & 0x70 != 0 || !known || !masked || (control && (head[0] & 0x80 == 0 || head[1] & 0x7f > 125))
    {
        return Ok(Received::Violation(PROTOCOL_ERROR));
    }
    let length = match head[1] & 0x7f {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    if length > MAX_FRAME as u64 {
        return Ok(Received::Violation(TOO_BIG));
    }
    let mut mask = [0; 4];
    stream.read_exact(&mut mask).await?;
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    Ok(Received::Frame(Frame { first: head[0], payload }))
}

async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, first: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..=125 => frame.push(n as u8),
        n @ 126..=0xffff => {
            frame.push(126);
            frame.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            frame.push(127);
            frame.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    stream.write_all(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first];
        match payload.len() {
            n @ 0..=125 => frame.push(0x80 | n as u8),
            n => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(n as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        frame
    }

    async fn exchange(sent: &[u8]) -> Vec<u8> {
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let _ = echo(&mut server).await;
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        got
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn text_binary_and_fragments_come_back() {
        assert_eq!(exchange(&masked(0x81, b"hi")).await, b"\x81\x02hi");
        assert_eq!(exchange(&masked(0x02, b"ab")).await, b"\x02\x02ab");
        let long = exchange(&masked(0x82, &[7; 300])).await;
        assert_eq!((&long[..4], long.len()), (&[0x82, 126, 1, 44][..], 304));
    }

    #[tokio::test]
    async fn ping_is_answered_and_close_is_returned() {
        assert_eq!(exchange(&masked(0x89, b"p")).await, b"\x8a\x01p");
        assert_eq!(exchange(&masked(0x88, &1000u16.to_be_bytes())).await, b"\x88\x02\x03\xe8");
    }

    #[tokio::test]
    async fn violations_close_with_the_code_of_the_rfc() {
        let unmasked = b"\x81\x02hi";
        let reserved_bit = masked(0xc1, b"hi");
        let unknown_opcode = masked(0x83, b"hi");
        let fragmented_ping = masked(0x09, b"");
        for bad in [&unmasked[..], &reserved_bit, &unknown_opcode, &fragmented_ping] {
            assert_eq!(exchange(bad).await, b"\x88\x02\x03\xea", "{bad:?}");
        }
        let mut huge = vec![0x82, 0xff];
        huge.extend_from_slice(&(1u64 << 40).to_be_bytes());
        assert_eq!(exchange(&huge).await, b"\x88\x02\x03\xf1");
    }
}

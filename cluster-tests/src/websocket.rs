//! The client's half of a WebSocket: enough to see an echo.

use std::io::{self, Read, Write};

/// A handshake's headers, for [`crate::Client::get`].
pub const HANDSHAKE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];
/// What a server answers to that key (RFC 6455, section 1.3).
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Sends a text message of at most 125 bytes.
pub fn send_text(stream: &mut impl Write, text: &str) -> io::Result<()> {
    assert!(text.len() <= 125, "short messages only");
    let mask = [0x11, 0x22, 0x33, 0x44];
    let mut frame = vec![0x81, 0x80 | text.len() as u8];
    frame.extend_from_slice(&mask);
    frame.extend(text.bytes().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    stream.write_all(&frame)
}

/// Reads a short message.
pub fn read_text(stream: &mut impl Read) -> io::Result<String> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    if head[0] != 0x81 || head[1] > 125 {
        return Err(io::Error::other(format!("unexpected frame {head:x?}")));
    }
    let mut payload = vec![0; usize::from(head[1])];
    stream.read_exact(&mut payload)?;
    Ok(String::from_utf8_lossy(&payload).into_owned())
}

//! What the proxy itself answers: HAProxy's texts, byte for byte.

use std::time::Duration;

/// How long a client is given to take a refusal.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Most bytes thrown away after a refusal.
pub(crate) const DRAIN: usize = 1 << 20;

/// The answer to what is no request: sent as it is, and the connection is closed.
pub(crate) fn refusal(status: u16) -> Option<&'static [u8]> {
    Some(match status {
        400 => {
            b"HTTP/1.1 400 Bad request\r\nContent-length: 90\r\nCache-Control: no-cache\r\n\
              Connection: close\r\nContent-Type: text/html\r\n\r\n\
              <html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>\n"
        }
        408 => {
            b"HTTP/1.1 408 Request Time-out\r\nContent-length: 110\r\nCache-Control: no-cache\r\n\
              Connection: close\r\nContent-Type: text/html\r\n\r\n\
              <html><body><h1>408 Request Time-out</h1>\n\
              Your browser didn't send a complete request in time.\n</body></html>\n"
        }
        413 => {
            b"HTTP/1.1 413 Payload Too Large\r\nContent-length: 106\r\nCache-Control: no-cache\r\n\
              Content-Type: text/html\r\n\r\n\
              <html><body><h1>413 Payload Too Large</h1>\n\
              The request entity exceeds the maximum allowed.\n</body></html>\n"
        }
        422 => {
            b"HTTP/1.1 422 Unprocessable Content\r\nContent-length: 116\r\nCache-Control: no-cache\r\n\
              Content-Type: text/html\r\n\r\n\
              <html><body><h1>422 Unprocessable Content</h1>\n\
              The server cannot process the contained instructions.\n</body></html>\n"
        }
        _ => return None,
    })
}

/// Reason and body of a status that a valid request gets.
fn page(status: u16) -> (&'static str, &'static str) {
    match status {
        200 => ("OK", "<html><body><h1>200 OK</h1>\nService ready.\n</body></html>\n"),
        400 => (
            "Bad request",
            "<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>\n",
        ),
        408 => (
            "Request Time-out",
            "<html><body><h1>408 Request Time-out</h1>\n\
             Your browser didn't send a complete request in time.\n</body></html>\n",
        ),
        502 => (
            "Bad Gateway",
            "<html><body><h1>502 Bad Gateway</h1>\n\
             The server returned an invalid or incomplete response.\n</body></html>\n",
        ),
        503 => (
            "Service Unavailable",
            "<html><body><h1>503 Service Unavailable</h1>\n\
             No server is available to handle this request.\n</body></html>\n",
        ),
        504 => (
            "Gateway Time-out",
            "<html><body><h1>504 Gateway Time-out</h1>\n\
             The server didn't respond in time.\n</body></html>\n",
        ),
        _ => (
            "Internal Server Error",
            "<html><body><h1>500 Internal Server Error</h1>\nAn internal server error occurred.\n</body></html>\n",
        ),
    }
}

/// Appends the answer; `connection` is the value of its `connection` field, if it has one.
pub(crate) fn write(status: u16, with_body: bool, connection: Option<&str>, out: &mut Vec<u8>) {
    let (reason, body) = page(status);
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-length: {}\r\ncache-control: no-cache\r\ncontent-type: text/html\r\n",
        body.len()
    );
    out.extend_from_slice(head.as_bytes());
    if let Some(connection) = connection {
        out.extend_from_slice(b"connection: ");
        out.extend_from_slice(connection.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if with_body {
        out.extend_from_slice(body.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_bodies() {
        for status in [400, 408, 413, 422] {
            let text = std::str::from_utf8(refusal(status).unwrap()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-length: {}\r\n", body.len())), "{text}");
        }
        for (status, length) in [(502, 107), (503, 107), (504, 92), (200, 58)] {
            assert_eq!(page(status).1.len(), length, "{status}");
        }
    }
}

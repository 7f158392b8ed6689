//! What a client is told when the proxy itself answers: HAProxy's built-in error pages.
//!
//! Monitoring and browsers know these texts; `phalanx-proxy` puts them on the wire.

/// One answer of the proxy's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Reason phrase.
    pub reason: &'static str,
    /// Body, `text/html`.
    pub body: &'static str,
}

macro_rules! pages {
    ($($status:literal $reason:literal $text:literal,)*) => {
        const PAGES: &[Page] = &[$(Page {
            status: $status,
            reason: $reason,
            body: concat!(
                "<html><body><h1>", $status, " ", $reason, "</h1>\n", $text, "\n</body></html>\n"
            ),
        },)*];
    };
}

pages! {
    200 "OK" "Service ready.",
    400 "Bad request" "Your browser sent an invalid request.",
    401 "Unauthorized" "You need a valid user and password to access this content.",
    403 "Forbidden" "Request forbidden by administrative rules.",
    404 "Not Found" "The resource could not be found.",
    405 "Method Not Allowed" "A request was made of a resource using a request method not supported by that resource",
    408 "Request Time-out" "Your browser didn't send a complete request in time.",
    413 "Payload Too Large" "The request entity exceeds the maximum allowed.",
    422 "Unprocessable Content"
        "The server cannot process the contained instructions.",
    429 "Too Many Requests" "You have sent too many requests in a given amount of time.",
    500 "Internal Server Error" "An internal server error occurred.",
    501 "Not Implemented" "The server does not support the functionality required to fulfill the request.",
    502 "Bad Gateway" "The server returned an invalid or incomplete response.",
    503 "Service Unavailable" "No server is available to handle this request.",
    504 "Gateway Time-out" "The server didn't respond in time.",
}

/// The page of a status that has one.
pub fn has_page(status: u16) -> Option<&'static Page> {
    PAGES.iter().find(|p| p.status == status)
}

/// The page of a status; that of 500 for a status without one.
pub fn page(status: u16) -> &'static Page {
    let find = |wanted| PAGES.iter().find(|p| p.status == wanted);
    find(status).or_else(|| find(500)).unwrap_or(&PAGES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_as_long_as_haproxys() {
        let lengths = [
            (200, 58),
            (400, 90),
            (401, 112),
            (408, 110),
            (413, 106),
            (422, 116),
            (502, 107),
            (503, 107),
            (504, 92),
        ];
        for (status, length) in lengths {
            assert_eq!((page(status).status, page(status).body.len()), (status, length));
        }
        assert!(page(503).body.starts_with("<html><body><h1>503 Service Unavailable</h1>\nNo server"));
        assert_eq!(page(999).status, 500);
    }
}

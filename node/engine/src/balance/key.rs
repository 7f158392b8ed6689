//! The part of a request that `balance hdr()`, `uri` and `url_param` hash.
//!
//! Pure functions on borrowed bytes; `None` means that the request has no such part and takes the
//! round-robin way.

use memchr::{memchr, memrchr};
use phalanx_config::model::Balance;

/// The key of a request for this algorithm. `target` is the request target as received, `header`
/// gives the first field of a name.
pub fn of<'a>(
    balance: &Balance,
    target: &'a [u8],
    header: impl FnOnce(&str) -> Option<&'a [u8]>,
) -> Option<&'a [u8]> {
    match balance {
        Balance::Hdr { name, domain_only } => hdr(header(name)?, *domain_only),
        Balance::Uri { len, depth, whole, path_only } => Some(uri(target, *len, *depth, *whole, *path_only)),
        Balance::UrlParam(name) => url_param(target, name.as_bytes()),
        _ => None,
    }
}

/// First value of a comma-separated field; with `domain_only`, its label before the top level.
fn hdr(field: &[u8], domain_only: bool) -> Option<&[u8]> {
    let value = field[..memchr(b',', field).unwrap_or(field.len())].trim_ascii();
    if value.is_empty() {
        return None;
    }
    Some(if domain_only { second_level(value) } else { value })
}

/// `haproxy` of `www.haproxy.org`: the label before the last dot; all of it if there is none. As in
/// HAProxy a port is not looked for.
fn second_level(host: &[u8]) -> &[u8] {
    let Some(dot) = memrchr(b'.', host) else { return host };
    let start = memrchr(b'.', &host[..dot]).map_or(0, |at| at + 1);
    if start == dot { host } else { &host[start..dot] }
}

fn uri(target: &[u8], len: Option<usize>, depth: Option<u32>, whole: bool, path_only: bool) -> &[u8] {
    let mut uri = if path_only { path(target) } else { target };
    if let Some(len) = len {
        uri = &uri[..len.min(uri.len())];
    }
    let mut slashes = 0;
    for (at, &c) in uri.iter().enumerate() {
        match c {
            b'/' => {
                slashes += 1;
                if depth.is_some_and(|depth| depth > 0 && slashes == depth + 1) {
                    return &uri[..at];
                }
            }
            b'?' if !whole => return &uri[..at],
            _ => {}
        }
    }
    uri
}

/// Target without scheme and authority.
fn path(target: &[u8]) -> &[u8] {
    if target.first() == Some(&b'/') {
        return target;
    }
    let Some(at) = target.windows(3).position(|w| w == b"://") else { return target };
    let rest = &target[at + 3..];
    memchr(b'/', rest).map_or(&[], |slash| &rest[slash..])
}

fn url_param<'a>(target: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let query = &target[memchr(b'?', target)? + 1..];
    query.split(|&c| c == b'&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_the_first_value() {
        for (field, domain_only, key) in [
            (&b"abc"[..], false, Some(&b"abc"[..])),
            (b"abc , def", false, Some(b"abc")),
            (b"", false, None),
            (b" ,x", false, None),
            (b"www.haproxy.org:80", true, Some(b"haproxy")),
            (b"haproxy.org", true, Some(b"haproxy")),
            (b"localhost:81", true, Some(b"localhost:81")),
            (b"www.a:80.b", true, Some(b"a:80")),
            (b".com", true, Some(b".com")),
            (b"a.b.", true, Some(b"b")),
        ] {
            assert_eq!(hdr(field, domain_only), key, "{field:?}");
        }
    }

    #[test]
    fn uri_is_cut_as_told() {
        let target = b"/a/b/c/d?x=/y";
        assert_eq!(uri(target, None, None, false, false), b"/a/b/c/d");
        assert_eq!(uri(target, None, None, true, false), b"/a/b/c/d?x=/y");
        assert_eq!(uri(target, Some(4), None, false, false), b"/a/b");
        assert_eq!(uri(target, None, Some(2), false, false), b"/a/b");
        assert_eq!(uri(b"http://h/a?b", None, None, false, true), b"/a");
        assert_eq!(uri(b"http://h/a?b", None, None, false, false), b"http://h/a");
    }

    #[test]
    fn url_param_matches_the_whole_name() {
        assert_eq!(url_param(b"/p?xid=1&id=22&id=3", b"id"), Some(&b"22"[..]));
        assert_eq!(url_param(b"/p?id=", b"id"), Some(&b""[..]));
        assert_eq!(url_param(b"/p?xid=1", b"id"), None);
        assert_eq!(url_param(b"/p", b"id"), None);
    }
}

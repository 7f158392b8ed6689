//! Values that many keywords share: numbers, times (manual section 2.5), sizes (2.6), names, and
//! addresses (2.9).
//!
//! Errors are the tail of a sentence that the keyword begins: they do not name it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::known;

/// A number in a range.
pub(crate) fn number(text: &str, range: std::ops::RangeInclusive<i64>) -> Result<i64, String> {
    let (low, high) = (*range.start(), *range.end());
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("expects an integer, but got '{text}'"));
    }
    // All digits, so that it only fails when it is out of any range.
    match text.parse::<i64>() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ if high == i64::MAX => Err(format!("must be at least {low}, but got '{text}'")),
        _ => Err(format!("must be between {low} and {high}, but got '{text}'")),
    }
}

/// A number from 0 (or `low`) to what fits in 31 bits, as most of HAProxy's are.
pub(crate) fn count(text: &str, low: u32) -> Result<u32, String> {
    number(text, i64::from(low)..=i64::from(i32::MAX)).map(|value| value as u32)
}

/// Unit of a time without a suffix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Milliseconds, nearly everywhere.
    Milliseconds,
    /// Seconds.
    Seconds,
}

/// A time; `what` names the argument in the message.
pub(crate) fn time(text: &str, unit: Unit, what: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(match text.chars().next() {
            Some(c) => format!("unexpected character '{c}' in {what}"),
            None => format!("{what} expects a time, such as 500ms, 10s, 5m or 1h"),
        });
    }
    let suffix = &text[digits..];
    let micros: u64 = match suffix {
        "" if unit == Unit::Seconds => 1_000_000,
        "" | "ms" => 1_000,
        "us" => 1,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => {
            let culprit = suffix.chars().next().unwrap_or(' ');
            return Err(format!(
                "unexpected character '{culprit}' in {what} (units are us, ms, s, m, h and d)"
            ));
        }
    };
    let overflow = || {
        format!(
            "timer overflow in argument '{text}' to {what} (maximum value is 2147483647 ms or ~24.8 days)"
        )
    };
    let value: u64 = text[..digits].parse().map_err(|_| overflow())?;
    let micros = value.checked_mul(micros).ok_or_else(overflow)?;
    // Rounded up: a small time must not become none.
    let millis = micros.div_ceil(1_000);
    if millis > i32::MAX as u64 {
        return Err(overflow());
    }
    if micros > 0 && micros < 1_000 {
        return Err(format!(
            "timer underflow in argument '{text}' to {what} (minimum non-null value is 1 ms)"
        ));
    }
    Ok(Duration::from_millis(millis))
}

/// A size with an optional unit.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let shift = match &text[digits..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        rest => {
            let culprit = rest.chars().next().unwrap_or(' ');
            return Err(format!("unexpected character '{culprit}' (units are k, m and g)"));
        }
    };
    if digits == 0 {
        return Err("a size is expected, such as 100k or 1m".to_owned());
    }
    let value: u64 = text[..digits].parse().map_err(|_| format!("size '{text}' is too large"))?;
    value
        .checked_mul(1 << shift)
        .filter(|&v| v <= u32::MAX as u64)
        .ok_or_else(|| format!("size '{text}' is too large"))
}

/// The first character that a proxy or server name may not have.
pub(crate) fn invalid_name_char(name: &str) -> Option<char> {
    name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '-')))
}

/// An address with what followed its colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// As written, without prefix and port.
    pub(crate) host: String,
    /// Resolved.
    pub(crate) ip: IpAddr,
    /// First and last port.
    pub(crate) ports: Option<(u16, u16)>,
}

/// What a keyword allows after the address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortRule {
    /// One or several ports, needed.
    Range,
    /// One port, needed.
    One,
    /// One port or none.
    Optional,
}

/// Which family a prefix asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
}

/// Resolves a host name; an argument, since this crate touches no network.
pub(crate) type Resolve<'a> = &'a dyn Fn(&str) -> Result<IpAddr, String>;

/// Parses `[prefix@]host[:port[-port]]`.
pub(crate) fn address(text: &str, rule: PortRule, resolve: Resolve<'_>) -> Result<Address, String> {
    let (family, rest) = family(text)?;
    let (host, port) = split_port(rest, rule)?;
    let ports = match (port, rule) {
        (None | Some(""), PortRule::Optional) => None,
        (None | Some(""), _) => return Err(format!("missing port specification in '{text}'")),
        (Some(port), _) => Some(ports(port, rule, text)?),
    };
    let ip = host_address(host, family, resolve).map_err(|err| match err {
        HostError::Invalid => format!("invalid address: '{host}' in '{text}'"),
        HostError::Unresolved(why) => format!("could not resolve address '{host}' ({why})"),
        HostError::Family => format!("'{host}' is not of the family that '{text}' asks for"),
    })?;
    Ok(Address { host: host.to_owned(), ip, ports })
}

fn family(text: &str) -> Result<(Family, &str), String> {
    let Some((prefix, rest)) = text.split_once('@') else {
        if text.starts_with('/') {
            return Err(known::unsupported(&format!("the unix address '{text}'")));
        }
        return Ok((Family::Any, text));
    };
    // `stream+` is what a listener and a server have anyway.
    match prefix.strip_prefix("stream+").unwrap_or(prefix) {
        "ip" | "tcp" => Ok((Family::Any, rest)),
        "ipv4" | "tcp4" => Ok((Family::V4, rest)),
        "ipv6" | "tcp6" => Ok((Family::V6, rest)),
        _ => Err(known::unsupported(&format!("the address prefix '{prefix}@'"))),
    }
}

/// Cuts the port off. An IPv6 address may stand in brackets; without them its last colon counts.
fn split_port(text: &str, rule: PortRule) -> Result<(&str, Option<&str>), String> {
    if let Some(inner) = text.strip_prefix('[') {
        let Some((host, rest)) = inner.split_once(']') else {
            return Err(format!("missing closing bracket in '{text}'"));
        };
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(format!("unexpected '{rest}' after the closing bracket in '{text}'")),
        };
    }
    if rule == PortRule::Optional && text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text, None));
    }
    Ok(match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    })
}

fn ports(text: &str, rule: PortRule, whole: &str) -> Result<(u16, u16), String> {
    let one = |text: &str| -> Result<u16, String> {
        match text.parse::<u16>() {
            // `parse` takes a sign.
            Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(format!("invalid port '{text}'")),
        }
    };
    if text.starts_with(['+', '-']) {
        return Err(format!("port offset not permitted here in '{whole}'"));
    }
    match text.split_once('-') {
        None => one(text).map(|port| (port, port)),
        Some(_) if rule != PortRule::Range => Err(format!("port range not permitted here in '{whole}'")),
        Some((low, high)) => {
            let (low, high) = (one(low)?, one(high)?);
            if low > high {
                return Err(format!("invalid port range '{text}'"));
            }
            Ok((low, high))
        }
    }
}

enum HostError {
    Invalid,
    Family,
    Unresolved(String),
}

fn host_address(host: &str, family: Family, resolve: Resolve<'_>) -> Result<IpAddr, HostError> {
    let ip = match host {
        "" | "*" if family == Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        "" | "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => match host.parse::<IpAddr>() {
            Ok(ip) => ip,
            Err(_) if !is_host_name(host) => return Err(HostError::Invalid),
            Err(_) => resolve(host).map_err(HostError::Unresolved)?,
        },
    };
    match (family, ip) {
        (Family::V4, IpAddr::V6(_)) | (Family::V6, IpAddr::V4(_)) => Err(HostError::Family),
        _ => Ok(ip),
    }
}

/// Whether it may be a host name: letters, digits, `-`, `_` and dots, and not a mistyped IPv4 address.
pub(crate) fn is_host_name(text: &str) -> bool {
    text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && text.split('.').all(|label| label.len() <= 63)
        && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(host: &str) -> Result<IpAddr, String> {
        if host == "localhost" { Ok(Ipv4Addr::LOCALHOST.into()) } else { Err("name not known".into()) }
    }

    #[test]
    fn times() {
        let ms = |text| time(text, Unit::Milliseconds, "'x'").map(|d| d.as_millis());
        assert_eq!(ms("5000"), Ok(5000));
        assert_eq!(ms("5s"), Ok(5000));
        assert_eq!(ms("1500us"), Ok(2));
        assert_eq!(ms("24d"), Ok(2_073_600_000));
        assert_eq!(ms("0"), Ok(0));
        assert_eq!(ms("0us"), Ok(0));
        assert_eq!(time("3", Unit::Seconds, "'x'"), Ok(Duration::from_secs(3)));
        assert_eq!(ms("2147483647"), Ok(2_147_483_647));
        for (text, part) in [
            ("25d", "timer overflow in argument '25d' to 'x'"),
            ("2147483648", "timer overflow"),
            ("99999999999999999999", "timer overflow"),
            ("1us", "timer underflow"),
            ("1z", "unexpected character 'z' in 'x'"),
            ("1.5s", "unexpected character '.'"),
            ("-1", "unexpected character '-'"),
            ("s", "unexpected character 's'"),
            ("", "'x' expects a time"),
            ("5S", "unexpected character 'S'"),
        ] {
            let err = ms(text).expect_err(text);
            assert!(err.contains(part), "{text}: {err}");
        }
    }

    #[test]
    fn sizes_and_numbers() {
        assert_eq!(size("1m"), Ok(1 << 20));
        assert_eq!(size("3G"), Ok(3 << 30));
        assert_eq!(size("100"), Ok(100));
        for bad in ["", "k", "1z", "4g", "-1", "1.5k", "99999999999999999999k"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(number("-5", -10..=10), Ok(-5));
        for bad in ["", "+1", "a", "1a", "11", "0x1", "-", "99999999999999999999"] {
            assert!(number(bad, -10..=10).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        let ok = [
            (":80", PortRule::Range, "0.0.0.0", Some((80, 80))),
            ("*:80-82", PortRule::Range, "0.0.0.0", Some((80, 82))),
            ("[::]:80", PortRule::Range, "::", Some((80, 80))),
            (":::80", PortRule::Range, "::", Some((80, 80))),
            ("::1:80", PortRule::One, "::1", Some((80, 80))),
            ("ipv4@127.0.0.1:9999", PortRule::One, "127.0.0.1", Some((9999, 9999))),
            ("ipv6@:80", PortRule::Range, "::", Some((80, 80))),
            ("localhost:1", PortRule::One, "127.0.0.1", Some((1, 1))),
            ("10.0.0.1", PortRule::Optional, "10.0.0.1", None),
            ("fe80::1", PortRule::Optional, "fe80::1", None),
            ("[fe80::1]:5", PortRule::Optional, "fe80::1", Some((5, 5))),
            ("10.0.0.1:", PortRule::Optional, "10.0.0.1", None),
        ];
        for (text, rule, ip, ports) in ok {
            let got = address(text, rule, &resolve).expect(text);
            assert_eq!((got.ip, got.ports), (ip.parse().unwrap(), ports), "{text}");
        }
        let bad = [
            ("127.0.0.1", "missing port specification in '127.0.0.1'"),
            (":80-70", "invalid port range '80-70'"),
            (":0", "invalid port '0'"),
            (":99999", "invalid port '99999'"),
            (":+80", "port offset not permitted here in ':+80'"),
            ("foo:80", "could not resolve address 'foo' (name not known)"),
            ("256.1.1.1:4", "invalid address: '256.1.1.1' in '256.1.1.1:4'"),
            ("[::1:80", "missing closing bracket in '[::1:80'"),
            ("[::1]x", "unexpected 'x' after the closing bracket in '[::1]x'"),
            ("/tmp/x", "the unix address '/tmp/x' is not supported by Phalanx yet"),
            ("fd@3", "the address prefix 'fd@' is not supported by Phalanx yet"),
            ("ipv4@[::1]:80", "'::1' is not of the family that 'ipv4@[::1]:80' asks for"),
            (":", "missing port specification in ':'"),
        ];
        for (text, message) in bad {
            assert_eq!(address(text, PortRule::Range, &resolve), Err(message.to_owned()), "{text}");
        }
        assert_eq!(
            address("1.1.1.1:1-3", PortRule::One, &resolve),
            Err("port range not permitted here in '1.1.1.1:1-3'".into())
        );
    }
}

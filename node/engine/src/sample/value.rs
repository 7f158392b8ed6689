//! Values of samples and how one type becomes another, as HAProxy casts them.

use std::borrow::Cow;
use std::net::IpAddr;

use phalanx_config::pattern::Method;

use crate::log::{self, decimal};
use crate::pattern::Input;

/// The result of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// True or false.
    Bool(bool),
    /// A number.
    Int(i64),
    /// An address.
    Ip(IpAddr),
    /// Text.
    Str(Cow<'a, [u8]>),
    /// Bytes.
    Bin(Cow<'a, [u8]>),
}

impl<'a> Value<'a> {
    /// Borrowed text.
    pub(crate) fn text(bytes: &'a [u8]) -> Value<'a> {
        Value::Str(Cow::Borrowed(bytes))
    }

    /// Text of its own.
    pub(crate) fn owned(bytes: Vec<u8>) -> Value<'a> {
        Value::Str(Cow::Owned(bytes))
    }

    /// As text: bytes as they are, an address in its usual form.
    pub fn to_text(&self) -> Cow<'_, [u8]> {
        match self {
            Value::Bool(is) => Cow::Borrowed(if *is { b"1" } else { b"0" }),
            Value::Ip(ip) => {
                let mut text = Vec::with_capacity(40);
                log::ip(*ip, &mut text);
                Cow::Owned(text)
            }
            Value::Int(n) => {
                let mut text = Vec::with_capacity(20);
                integer(*n, &mut text);
                Cow::Owned(text)
            }
            Value::Str(text) | Value::Bin(text) => Cow::Borrowed(text),
        }
    }

    /// Appends it as text to what a request or a header is made of: control characters as `%XX`, as
    /// HAProxy has it.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::Bool(is) => out.push(b'0' + u8::from(*is)),
            Value::Ip(ip) => log::ip(*ip, out),
            Value::Int(n) => integer(*n, out),
            Value::Str(text) | Value::Bin(text) => printable(text, out),
        }
    }

    /// As text that is owned or borrowed from what it was read from.
    pub(crate) fn into_text(self) -> Cow<'a, [u8]> {
        match self {
            Value::Str(text) | Value::Bin(text) => text,
            other => Cow::Owned(other.to_text().into_owned()),
        }
    }

    /// As bytes: text as it is, a number in eight of them, highest first.
    pub(crate) fn into_bytes(self) -> Cow<'a, [u8]> {
        match self {
            Value::Str(bytes) | Value::Bin(bytes) => bytes,
            Value::Bool(is) => Cow::Owned(i64::from(is).to_be_bytes().to_vec()),
            Value::Int(n) => Cow::Owned(n.to_be_bytes().to_vec()),
            Value::Ip(IpAddr::V4(ip)) => Cow::Owned(ip.octets().to_vec()),
            Value::Ip(IpAddr::V6(ip)) => Cow::Owned(ip.octets().to_vec()),
        }
    }

    /// As a number; text by the digits that it begins with.
    pub fn to_int(&self) -> Option<i64> {
        match self {
            Value::Bool(is) => Some(i64::from(*is)),
            Value::Int(n) => Some(*n),
            Value::Ip(IpAddr::V4(ip)) => Some(i64::from(ip.to_bits())),
            Value::Ip(IpAddr::V6(_)) | Value::Bin(_) => None,
            Value::Str(text) => leading_int(text),
        }
    }

    /// As true or false.
    pub fn to_bool(&self) -> Option<bool> {
        match self {
            Value::Ip(_) | Value::Bin(_) => None,
            other => other.to_int().map(|n| n != 0),
        }
    }

    /// As an address.
    pub fn to_ip(&self) -> Option<IpAddr> {
        match self {
            Value::Ip(ip) => Some(*ip),
            Value::Int(n) => Some(IpAddr::V4((*n as u32).into())),
            Value::Str(text) => std::str::from_utf8(text).ok()?.parse().ok(),
            Value::Bool(_) | Value::Bin(_) => None,
        }
    }
}

/// Appends a number.
fn integer(n: i64, out: &mut Vec<u8>) {
    if n < 0 {
        out.push(b'-');
    }
    decimal(n.unsigned_abs(), out);
}

/// Appends text with control characters as `%XX`.
pub(crate) fn printable(text: &[u8], out: &mut Vec<u8>) {
    // Hardly any text has one: without a way out in the middle the look is a few instructions.
    if !text.iter().fold(false, |any, b| any | b.is_ascii_control()) {
        return out.extend_from_slice(text);
    }
    for &b in text {
        if b.is_ascii_control() {
            out.push(b'%');
            out.extend(hexadecimal(&[b]));
        } else {
            out.push(b);
        }
    }
}

/// A value as patterns of a method look at it, if it can be what they compare.
pub(crate) fn input_for<'v>(method: Method, value: &'v Value<'_>) -> Option<Input<'v>> {
    match method {
        Method::Int => value.to_int().map(Input::Int),
        Method::Ip => value.to_ip().map(Input::Ip),
        _ => Some(input(value)),
    }
}

/// A value as patterns look at it.
fn input<'v>(value: &'v Value<'_>) -> Input<'v> {
    match value {
        Value::Bool(is) => Input::Bool(*is),
        Value::Int(n) => Input::Int(*n),
        Value::Ip(ip) => Input::Ip(*ip),
        Value::Str(text) | Value::Bin(text) => Input::Text(text),
    }
}

/// The number that text begins with; 0 if it begins with none, `None` if it is empty.
fn leading_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    let mut n = 0i64;
    for digit in digits.iter().take_while(|b| b.is_ascii_digit()) {
        let digit = i64::from(digit - b'0');
        n = n.saturating_mul(10);
        n = if negative { n.saturating_sub(digit) } else { n.saturating_add(digit) };
    }
    Some(n)
}

/// Bytes in upper-case hexadecimal.
pub(crate) fn hexadecimal(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_text_without_line_ends() {
        let ip = |text: &str| Value::Ip(text.parse().unwrap());
        for (value, wanted) in [
            (Value::Bool(true), "1"),
            (Value::Int(0), "0"),
            (Value::Int(i64::MIN), "-9223372036854775808"),
            (ip("192.0.2.100"), "192.0.2.100"),
            (ip("2001:db8::1"), "2001:db8::1"),
            (Value::text(b"a b\xff"), "a b\u{fffd}"),
            (Value::text(b"a\r\nx: y\x7f"), "a%0D%0Ax: y%7F"),
        ] {
            let mut out = Vec::new();
            value.write(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), wanted);
        }
    }
}

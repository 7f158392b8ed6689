//! Values of samples and how one type becomes another, as HAProxy casts them.

use std::borrow::Cow;
use std::net::IpAddr;

use phalanx_config::pattern::Method;

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
            Value::Ip(ip) => Cow::Owned(ip.to_string().into_bytes()),
            Value::Int(n) => Cow::Owned(n.to_string().into_bytes()),
            Value::Str(text) | Value::Bin(text) => Cow::Borrowed(text),
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

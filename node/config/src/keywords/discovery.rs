//! Where a `server` or `server-template` line gets its address: literal, by `init-addr` at the start,
//! from `resolvers` or `consul(NAME)/SERVICE` at run time; and the `server-template` line itself
//! (manual sections 4.2, 5.2 and 5.3).

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::known;
use crate::model::{Discovery, InitAddr, Network, ServerOptions, ServiceHealth};
use crate::value::{self, PortRule};

/// What an address of a server line amounts to.
pub(crate) struct Target {
    /// As written, without the port.
    pub(crate) host: String,
    /// Unspecified if there is none at the start.
    pub(crate) addr: SocketAddr,
    pub(crate) discovered: Option<Arc<Discovery>>,
    /// What is worth a warning.
    pub(crate) warning: Option<String>,
}

/// Finds out what the address of a server line means, given its options.
pub(crate) fn target(
    text: &str,
    options: &ServerOptions,
    resolve: value::Resolve<'_>,
) -> Result<Target, String> {
    if let Some(source) = consul(text)? {
        let host = source.to_string();
        return Ok(Target { host, addr: NOWHERE, discovered: Some(Arc::new(source)), warning: None });
    }
    // Whether it is a name is known when the address is read.
    let asked: RefCell<Option<Result<(), String>>> = RefCell::new(None);
    let initial = |host: &str| {
        let found = initial(host, options, resolve);
        *asked.borrow_mut() = Some(found.as_ref().map(|_| ()).map_err(Clone::clone));
        found.or_else(|why| match options.resolvers {
            Some(_) => Ok(NOWHERE.ip()),
            None => Err(why),
        })
    };
    let address = value::address(text, PortRule::Optional, &initial)?;
    let asked = asked.into_inner();
    if address.ip.is_unspecified() && asked.is_none() {
        return Err(known::unsupported(&format!("the address '{text}' (the client's own destination)")));
    }
    let port = address.ports.map_or(0, |(port, _)| port);
    let name = address.host.trim_end_matches('.').to_ascii_lowercase();
    let discovered = match (&options.resolvers, &asked) {
        (Some(resolvers), Some(_)) => Some(Arc::new(Discovery::Dns {
            resolvers: resolvers.clone(),
            prefer: options.resolve_prefer,
            name,
        })),
        _ => None,
    };
    let warning = match (asked, &discovered) {
        (Some(Err(why)), Some(_)) => {
            Some(format!("could not resolve address '{}' ({why}), disabling server", address.host))
        }
        (Some(Ok(())), None) if address.host.starts_with('_') => {
            Some(format!("'{}' is an SRV label, which needs 'resolvers'", address.host))
        }
        _ => None,
    };
    Ok(Target { host: address.host, addr: (address.ip, port).into(), discovered, warning })
}

/// The address that a server of a host name starts with.
fn initial(host: &str, options: &ServerOptions, resolve: value::Resolve<'_>) -> Result<IpAddr, String> {
    // An SRV label has no address of its own.
    if host.starts_with('_') {
        return Ok(NOWHERE.ip());
    }
    let methods: &[InitAddr] = match options.init_addr.as_slice() {
        [] => &[InitAddr::Last, InitAddr::Libc],
        methods => methods,
    };
    let mut why = "'init-addr' leaves no way to find one".to_owned();
    for method in methods {
        match method {
            InitAddr::Last => {}
            InitAddr::Libc => match resolve(host) {
                Ok(ip) => return Ok(ip),
                Err(error) => why = error,
            },
            InitAddr::None => return Ok(NOWHERE.ip()),
            InitAddr::Ip(ip) => return Ok(*ip),
        }
    }
    Err(why)
}

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// `consul(NAME)/SERVICE[?tag=A&tag=B&health=H]`; `None` if it is something else.
fn consul(text: &str) -> Result<Option<Discovery>, String> {
    const FORM: &str = "expects consul(<name>)/<service>[?tag=<tag>&health=passing|warning|any]";
    let Some(rest) = text.strip_prefix("consul(") else { return Ok(None) };
    let Some((name, rest)) = rest.split_once(")/") else {
        return Err(format!("invalid address '{text}'; {FORM}"));
    };
    let (service, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || service.is_empty() || service.len() > 255 || !service.chars().all(plain) {
        return Err(format!("invalid service in '{text}'; {FORM}"));
    }
    let (mut tags, mut health) = (Vec::new(), ServiceHealth::Passing);
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        match parameter.split_once('=') {
            Some(("tag", tag)) if !tag.is_empty() => tags.push(tag.to_owned()),
            Some(("health", "passing")) => health = ServiceHealth::Passing,
            Some(("health", "warning")) => health = ServiceHealth::Warning,
            Some(("health", "any")) => health = ServiceHealth::Any,
            _ => return Err(format!("unknown parameter '{parameter}' in '{text}'; {FORM}")),
        }
    }
    tags.sort();
    tags.dedup();
    Ok(Some(Discovery::Consul { consul: name.to_owned(), service: service.to_owned(), tags, health }))
}

/// `server-template`'s `<num | range>`: first and last number.
pub(crate) fn range(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| -> Option<u32> {
        if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
    };
    let (low, high) = match text.split_once('-') {
        None => (1, number(text)?),
        Some((low, high)) => (number(low)?, number(high)?),
    };
    (low <= high && high - low < MAX_TEMPLATE).then_some((low, high))
}

/// Servers of one template.
pub(crate) const MAX_TEMPLATE: u32 = 10_000;

/// `init-addr`.
pub(crate) fn init_addr(text: &str) -> Result<Vec<InitAddr>, String> {
    let methods = text.split(',').filter(|word| !word.is_empty()).map(|word| match word {
        "last" => Ok(InitAddr::Last),
        "libc" => Ok(InitAddr::Libc),
        "none" => Ok(InitAddr::None),
        word => word.parse().map(InitAddr::Ip).map_err(|_| {
            format!(": unknown init-addr method '{word}', supported methods are 'libc', 'last', 'none', <ip>")
        }),
    });
    methods.collect()
}

/// `resolve-net`.
pub(crate) fn networks(text: &str) -> Result<Vec<Network>, String> {
    let one = |word: &str| {
        let (addr, length) = word.split_once('/').map_or((word, None), |(a, l)| (a, Some(l)));
        let addr: IpAddr = addr.parse().ok()?;
        let widest = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match length {
            None => widest,
            Some(length) => value::number(length, 0..=i64::from(widest)).ok()? as u8,
        };
        Some(Network { addr, prefix })
    };
    let networks = text.split(',').filter(|word| !word.is_empty());
    networks.map(|word| one(word).ok_or_else(|| format!(": invalid network '{word}'"))).collect()
}

/// `resolve-opts`.
pub(crate) fn resolve_opts(options: &mut ServerOptions, text: &str) -> Result<(), String> {
    for word in text.split(',').filter(|word| !word.is_empty()) {
        match word {
            "allow-dup-ip" => options.allow_dup_ip = true,
            "prevent-dup-ip" => options.allow_dup_ip = false,
            "ignore-weight" => options.ignore_weight = true,
            other => {
                return Err(format!(
                    ": unknown resolve-opts option '{other}', supported methods are 'allow-dup-ip', \
                     'ignore-weight', and 'prevent-dup-ip'"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;

    fn read(text: &str, options: &ServerOptions) -> Result<(String, Option<String>, bool), String> {
        let resolve = |host: &str| match host {
            "known.example" => Ok(IpAddr::from([10, 0, 0, 4])),
            _ => Err("name not known".to_owned()),
        };
        let target = target(text, options, &resolve)?;
        let source = target.discovered.map(|source| source.to_string());
        Ok((target.addr.to_string(), source, target.warning.is_some()))
    }

    #[test]
    fn addresses_are_literal_resolved_or_discovered() {
        let plain = ServerOptions::default();
        let dns = ServerOptions { resolvers: Some("d".into()), ..ServerOptions::default() };
        let none = ServerOptions { init_addr: vec![InitAddr::Last, InitAddr::None], ..dns.clone() };
        let v4 = ServerOptions { resolve_prefer: Family::V4, ..none.clone() };
        let ip = ServerOptions { init_addr: vec![InitAddr::Ip([10, 1, 1, 1].into())], ..plain.clone() };
        for (text, options, addr, source, warned) in [
            ("127.0.0.1:80", &plain, "127.0.0.1:80", None, false),
            ("known.example:80", &plain, "10.0.0.4:80", None, false),
            ("x.example:80", &ip, "10.1.1.1:80", None, false),
            ("127.0.0.1:80", &dns, "127.0.0.1:80", None, false),
            ("Known.example.:80", &none, "0.0.0.0:80", Some("dns(d)/known.example"), false),
            ("known.example:80", &dns, "10.0.0.4:80", Some("dns(d)/known.example"), false),
            ("x.example:80", &dns, "0.0.0.0:80", Some("dns(d)/x.example"), true),
            ("x.example:80", &v4, "0.0.0.0:80", Some("dns(d)/x.example?prefer=ipv4"), false),
            ("_http._tcp.x", &v4, "0.0.0.0:0", Some("dns(d)/_http._tcp.x?prefer=ipv4"), false),
            ("_http._tcp.x:1", &plain, "0.0.0.0:1", None, true),
            ("consul(c)/web", &plain, "0.0.0.0:0", Some("consul(c)/web"), false),
            (
                "consul(c)/web?tag=b&tag=a&health=any",
                &plain,
                "0.0.0.0:0",
                Some("consul(c)/web?tag=a&tag=b&health=any"),
                false,
            ),
        ] {
            let expected = (addr.to_owned(), source.map(str::to_owned), warned);
            assert_eq!(read(text, options), Ok(expected), "{text}");
        }
        for (text, options, part) in [
            ("x.example:80", &plain, "could not resolve address 'x.example' (name not known)"),
            ("0.0.0.0:80", &dns, "the client's own destination"),
            ("consul(c)", &plain, "expects consul(<name>)/<service>"),
            ("consul()/x", &plain, "invalid service"),
            ("consul(c)/a/b", &plain, "invalid service"),
            ("consul(c)/a?tag", &plain, "unknown parameter 'tag'"),
            ("consul(c)/a?health=good", &plain, "unknown parameter 'health=good'"),
        ] {
            let err = read(text, options).expect_err(text);
            assert!(err.contains(part), "{text}: {err}");
        }
    }

    #[test]
    fn ranges_of_a_template() {
        for (text, expected) in [
            ("3", Some((1, 3))),
            ("1-3", Some((1, 3))),
            ("7-7", Some((7, 7))),
            ("0-2", Some((0, 2))),
            ("0", None),
            ("3-1", None),
            ("x", None),
            ("", None),
            ("-", None),
            ("1-", None),
            ("+3", None),
            ("99999999999", None),
            ("1-10000", Some((1, 10_000))),
            ("0-10000", None),
        ] {
            assert_eq!(range(text), expected, "{text}");
        }
    }
}

//! The sample fetches that are built (manual sections 7.3.2 to 7.3.6).

use std::net::IpAddr;

use super::Arguments;
use crate::model::{Counter, CounterFetch, CounterKey, Fetch, Gauge, GaugeKind, Link, Named};
use crate::pattern::{self, Method, Pattern};

type Built = Result<Fetch, String>;

/// A sample fetch: its names, and what its arguments make of it.
struct Keyword {
    names: &'static [&'static str],
    build: fn(&mut Arguments<'_>) -> Built,
}

const fn fetch(names: &'static [&'static str], build: fn(&mut Arguments<'_>) -> Built) -> Keyword {
    Keyword { names, build }
}

/// The table.
const FETCHES: &[Keyword] = &[
    fetch(&["always_true"], |_| Ok(Fetch::Bool(true))),
    fetch(&["always_false"], |_| Ok(Fetch::Bool(false))),
    fetch(&["bool"], |a| match a.text()? {
        "1" | "true" | "yes" | "on" => Ok(Fetch::Bool(true)),
        "0" | "false" | "no" | "off" => Ok(Fetch::Bool(false)),
        other => Err(format!("expects 'true', 'false', '1' or '0', but got '{other}'")),
    }),
    fetch(&["int"], |a| Ok(Fetch::Int(a.int()?))),
    fetch(&["str"], |a| Ok(Fetch::Str(a.optional().unwrap_or_default().to_owned()))),
    fetch(&["meth"], |a| Ok(Fetch::Str(a.text()?.to_owned()))),
    fetch(&["bin"], |a| Ok(Fetch::Bin(bytes(a.text()?)?))),
    fetch(&["ipv4"], |a| address(a.parsed::<std::net::Ipv4Addr>("an IPv4 address")?)),
    fetch(&["ipv6"], |a| address(a.parsed::<std::net::Ipv6Addr>("an IPv6 address")?)),
    fetch(&["date"], |a| {
        let offset = a.optional_parsed("an offset")?.unwrap_or(0);
        let per_second = match a.optional().unwrap_or("s") {
            "s" | "" => 1,
            "ms" => 1_000,
            "us" => 1_000_000,
            other => return Err(format!("expects the unit 's', 'ms' or 'us', but got '{other}'")),
        };
        Ok(Fetch::Date { offset, per_second })
    }),
    fetch(&["rand"], |a| match a.optional_parsed::<u32>("a range")? {
        Some(0) => Err("expects a range of at least 1".to_owned()),
        range => Ok(Fetch::Rand(range)),
    }),
    fetch(&["uuid"], |a| match a.optional_parsed::<u8>("a version")? {
        None | Some(4) => Ok(Fetch::Uuid),
        Some(other) => Err(format!("version {other} is not built, only 4")),
    }),
    fetch(&["var"], |a| Ok(Fetch::Var(a.variable()?))),
    fetch(&["wait_end"], |_| Ok(Fetch::WaitEnd)),
    // Layer 4.
    fetch(&["src"], |_| Ok(Fetch::Src)),
    fetch(&["src_port"], |_| Ok(Fetch::SrcPort)),
    fetch(&["dst"], |_| Ok(Fetch::Dst)),
    fetch(&["dst_port"], |_| Ok(Fetch::DstPort)),
    fetch(&["src_is_local"], |_| Ok(Fetch::SrcIsLocal)),
    // Proxies and servers.
    fetch(&["act_conn"], |_| Ok(gauge(GaugeKind::ActConn, None))),
    fetch(&["dst_conn"], |_| Ok(gauge(GaugeKind::FeConn, None))),
    fetch(&["fe_id"], |_| Ok(gauge(GaugeKind::FeId, None))),
    fetch(&["fe_name"], |_| Ok(gauge(GaugeKind::FeName, None))),
    fetch(&["be_id"], |_| Ok(gauge(GaugeKind::BeId, None))),
    fetch(&["be_name"], |_| Ok(gauge(GaugeKind::BeName, None))),
    fetch(&["srv_id"], |_| Ok(gauge(GaugeKind::SrvId, None))),
    fetch(&["srv_name"], |_| Ok(gauge(GaugeKind::SrvName, None))),
    fetch(&["nbsrv"], |a| Ok(gauge(GaugeKind::NbSrv, a.optional()))),
    fetch(&["be_conn"], |a| Ok(gauge(GaugeKind::BeConn, a.optional()))),
    fetch(&["be_conn_free"], |a| Ok(gauge(GaugeKind::BeConnFree, a.optional()))),
    fetch(&["be_sess_rate"], |a| Ok(gauge(GaugeKind::BeSessRate, a.optional()))),
    fetch(&["queue"], |a| Ok(gauge(GaugeKind::Queue, a.optional()))),
    fetch(&["avg_queue"], |a| Ok(gauge(GaugeKind::AvgQueue, a.optional()))),
    fetch(&["connslots"], |a| Ok(gauge(GaugeKind::ConnSlots, a.optional()))),
    fetch(&["fe_conn"], |a| Ok(gauge(GaugeKind::FeConn, a.optional()))),
    fetch(&["fe_sess_rate"], |a| Ok(gauge(GaugeKind::FeSessRate, a.optional()))),
    fetch(&["fe_req_rate"], |a| Ok(gauge(GaugeKind::FeReqRate, a.optional()))),
    fetch(&["srv_conn"], |a| server(GaugeKind::SrvConn, a)),
    fetch(&["srv_conn_free"], |a| server(GaugeKind::SrvConnFree, a)),
    fetch(&["srv_queue"], |a| server(GaugeKind::SrvQueue, a)),
    fetch(&["srv_is_up"], |a| server(GaugeKind::SrvIsUp, a)),
    fetch(&["srv_weight", "srv_uweight"], |a| server(GaugeKind::SrvWeight, a)),
    fetch(&["srv_iweight"], |a| server(GaugeKind::SrvIweight, a)),
    fetch(&["srv_sess_rate"], |a| server(GaugeKind::SrvSessRate, a)),
    fetch(&["table_cnt"], |a| Ok(Fetch::TableCount(Link::some(a.optional())))),
    fetch(&["table_avl"], |a| Ok(Fetch::TableAvailable(Link::some(a.optional())))),
    // HTTP.
    fetch(&["req.hdr", "hdr"], |a| Ok(Fetch::Hdr(header(a, false)?))),
    fetch(&["res.hdr", "shdr"], |a| Ok(Fetch::Hdr(header(a, true)?))),
    fetch(&["req.fhdr", "fhdr"], |a| Ok(Fetch::FullHdr(header(a, false)?))),
    fetch(&["res.fhdr"], |a| Ok(Fetch::FullHdr(header(a, true)?))),
    fetch(&["req.hdr_cnt", "hdr_cnt"], |a| Ok(Fetch::HdrCount(header(a, false)?))),
    fetch(&["res.hdr_cnt", "shdr_cnt"], |a| Ok(Fetch::HdrCount(header(a, true)?))),
    fetch(&["req.fhdr_cnt", "fhdr_cnt"], |a| Ok(Fetch::FullHdrCount(header(a, false)?))),
    fetch(&["res.fhdr_cnt"], |a| Ok(Fetch::FullHdrCount(header(a, true)?))),
    fetch(&["req.hdr_ip", "hdr_ip"], |a| Ok(Fetch::HdrIp(header(a, false)?))),
    fetch(&["res.hdr_ip", "shdr_ip"], |a| Ok(Fetch::HdrIp(header(a, true)?))),
    fetch(&["req.hdr_val", "hdr_val"], |a| Ok(Fetch::HdrVal(header(a, false)?))),
    fetch(&["res.hdr_val", "shdr_val"], |a| Ok(Fetch::HdrVal(header(a, true)?))),
    fetch(&["req.hdr_names"], |a| Ok(names_of_headers(a, false))),
    fetch(&["res.hdr_names"], |a| Ok(names_of_headers(a, true))),
    fetch(&["req.cook", "cook"], |a| Ok(Fetch::Cook(cookie(a, false)))),
    fetch(&["res.cook", "scook"], |a| Ok(Fetch::Cook(cookie(a, true)))),
    fetch(&["req.cook_cnt", "cook_cnt"], |a| Ok(Fetch::CookCount(cookie(a, false)))),
    fetch(&["res.cook_cnt", "scook_cnt"], |a| Ok(Fetch::CookCount(cookie(a, true)))),
    fetch(&["req.cook_val", "cook_val"], |a| Ok(Fetch::CookVal(cookie(a, false)))),
    fetch(&["res.cook_val", "scook_val"], |a| Ok(Fetch::CookVal(cookie(a, true)))),
    fetch(&["path"], |_| Ok(Fetch::Path)),
    fetch(&["pathq"], |_| Ok(Fetch::PathQuery)),
    fetch(&["url"], |_| Ok(Fetch::Url)),
    fetch(&["query"], |_| Ok(Fetch::Query)),
    fetch(&["base"], |_| Ok(Fetch::Base)),
    fetch(&["base32"], |_| Ok(Fetch::Base32 { with_src: false })),
    fetch(&["base32+src"], |_| Ok(Fetch::Base32 { with_src: true })),
    fetch(&["method"], |_| Ok(Fetch::Method)),
    fetch(&["req.ver", "req_ver"], |_| Ok(Fetch::Version { response: false })),
    fetch(&["res.ver", "resp_ver"], |_| Ok(Fetch::Version { response: true })),
    fetch(&["url_param", "urlp"], |a| Ok(Fetch::UrlParam(param(a)))),
    fetch(&["urlp_val"], |a| Ok(Fetch::UrlParamVal(param(a)))),
    fetch(&["http_first_req"], |_| Ok(Fetch::FirstRequest)),
    fetch(&["status"], |_| Ok(Fetch::Status)),
    fetch(&["http_auth_user"], |_| Ok(Fetch::AuthUser)),
    fetch(&["http_auth_pass"], |_| Ok(Fetch::AuthPass)),
    fetch(&["http_auth_type"], |_| Ok(Fetch::AuthType)),
    fetch(&["req.body_size"], |_| Ok(Fetch::BodySize)),
    fetch(&["req.proto_http", "req_proto_http"], |_| Ok(Fetch::ProtoHttp)),
];

/// What may follow `sc_`, `sc0_` … and `src_`, and stands in a `table_` converter, too.
pub(super) const VALUES: &[(&str, CounterFetch)] = &[
    ("bytes_in_rate", CounterFetch::Value("bytes_in_rate")),
    ("bytes_out_rate", CounterFetch::Value("bytes_out_rate")),
    ("conn_cnt", CounterFetch::Value("conn_cnt")),
    ("conn_cur", CounterFetch::Value("conn_cur")),
    ("conn_rate", CounterFetch::Value("conn_rate")),
    ("gpc0_rate", CounterFetch::Value("gpc0_rate")),
    ("gpc1_rate", CounterFetch::Value("gpc1_rate")),
    ("http_err_cnt", CounterFetch::Value("http_err_cnt")),
    ("http_err_rate", CounterFetch::Value("http_err_rate")),
    ("http_fail_cnt", CounterFetch::Value("http_fail_cnt")),
    ("http_fail_rate", CounterFetch::Value("http_fail_rate")),
    ("http_req_cnt", CounterFetch::Value("http_req_cnt")),
    ("http_req_rate", CounterFetch::Value("http_req_rate")),
    ("sess_cnt", CounterFetch::Value("sess_cnt")),
    ("sess_rate", CounterFetch::Value("sess_rate")),
    ("clr_gpc0", CounterFetch::Clear("gpc0")),
    ("clr_gpc1", CounterFetch::Clear("gpc1")),
    ("inc_gpc0", CounterFetch::Inc("gpc0")),
    ("inc_gpc1", CounterFetch::Inc("gpc1")),
    ("kbytes_in", CounterFetch::Kilo("bytes_in_cnt")),
    ("kbytes_out", CounterFetch::Kilo("bytes_out_cnt")),
    ("trackers", CounterFetch::Trackers),
];

/// What may follow `sc_`, `sc0_` … and `src_` only.
const COUNTERS: &[(&str, CounterFetch)] = &[
    ("get_gpc0", CounterFetch::Value("gpc0")),
    ("get_gpc1", CounterFetch::Value("gpc1")),
    ("get_gpt0", CounterFetch::Value("gpt0")),
    ("tracked", CounterFetch::Tracked),
    ("updt_conn_cnt", CounterFetch::UpdateConnCnt),
];

/// What is fetched of an element by its index.
pub(super) type OfElement = fn(u8) -> CounterFetch;

/// What takes the index of an element first.
const ELEMENTS: &[(&str, OfElement)] = &[
    ("clr_gpc", CounterFetch::ClearElement),
    ("get_gpc", |index| CounterFetch::Element("gpc", index)),
    ("get_gpt", |index| CounterFetch::Element("gpt", index)),
    ("gpc_rate", |index| CounterFetch::Element("gpc_rate", index)),
    ("inc_gpc", CounterFetch::IncElement),
];

/// The fetch of this name; `None` when there is none.
pub(super) fn build(name: &str, args: &mut Arguments<'_>) -> Option<Built> {
    if let Some(keyword) = FETCHES.iter().find(|keyword| keyword.names.contains(&name)) {
        return Some((keyword.build)(args));
    }
    let (key, rest) = match name.strip_prefix("src_") {
        Some(rest) => (Some(CounterKey::Src), rest),
        None => match name.strip_prefix("sc")?.as_bytes() {
            [digit @ b'0'..=b'9', b'_', ..] => (Some(CounterKey::Tracked(digit - b'0')), &name[4..]),
            [b'_', ..] => (None, &name[3..]),
            _ => return None,
        },
    };
    let plain = VALUES.iter().chain(COUNTERS).find(|(name, _)| *name == rest).map(|(_, what)| *what);
    let element = ELEMENTS.iter().find(|(name, _)| *name == rest).map(|(_, what)| *what);
    match (plain, key) {
        (None, _) if element.is_none() => return None,
        (Some(CounterFetch::Tracked), Some(CounterKey::Src)) => return None,
        (Some(CounterFetch::UpdateConnCnt), None | Some(CounterKey::Tracked(_))) => return None,
        _ => {}
    }
    Some(counter_of(key, plain, element, args))
}

fn counter_of(
    key: Option<CounterKey>,
    plain: Option<CounterFetch>,
    element: Option<OfElement>,
    args: &mut Arguments<'_>,
) -> Built {
    let element = match element {
        Some(element) => Some(element(index(args)?)),
        None => None,
    };
    let key = match key {
        Some(key) => key,
        None => CounterKey::Tracked(args.parsed("a stick counter's number")?),
    };
    if let CounterKey::Tracked(number @ 3..) = key {
        return Err(format!("invalid stick table track ID '{number}', at most 2"));
    }
    let what = plain.or(element).ok_or("missing argument")?;
    counter(key, what, args)
}

/// The index of an element of an array.
pub(super) fn index(args: &mut Arguments<'_>) -> Result<u8, String> {
    match args.parsed::<u8>("the index of an element")? {
        index @ 0..100 => Ok(index),
        index => Err(format!("the index of an element is at most 99, but got '{index}'")),
    }
}

fn counter(of: CounterKey, what: CounterFetch, args: &mut Arguments<'_>) -> Built {
    let table = Link::some(args.optional());
    Ok(Fetch::Counter(Counter { of, table, what }))
}

/// Every name but those of counters.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FETCHES.iter().flat_map(|keyword| keyword.names).copied()
}

/// What follows `sc_` and `src_`.
pub(super) fn counters() -> impl Iterator<Item = &'static str> {
    let elements = ELEMENTS.iter().map(|(name, _)| *name);
    VALUES.iter().chain(COUNTERS).map(|(name, _)| *name).chain(elements)
}

/// A fetch whose name ends in how it is compared: `path_beg`, `hdr_end(host)`.
///
/// Gives the name without the ending, and the method. Only for those of which HAProxy has such names.
pub(crate) fn ends_in_match(name: &str) -> Option<(&str, Method)> {
    const WITH: &[&str] = &[
        "base",
        "cook",
        "fhdr",
        "hdr",
        "path",
        "req.cook",
        "req.fhdr",
        "req.hdr",
        "res.cook",
        "res.fhdr",
        "res.hdr",
        "scook",
        "shdr",
        "url",
        "url_param",
        "urlp",
    ];
    let (base, ending) = name.rsplit_once('_')?;
    let method = match ending {
        "beg" => Method::Beg,
        "dir" => Method::Dir,
        "dom" => Method::Dom,
        "end" => Method::End,
        "len" => Method::Len,
        "reg" => Method::Reg,
        "sub" => Method::Sub,
        _ => return None,
    };
    WITH.contains(&base).then_some((base, method))
}

fn address(ip: impl Into<IpAddr>) -> Built {
    Ok(Fetch::Ip(ip.into()))
}

fn gauge(kind: GaugeKind, proxy: Option<&str>) -> Fetch {
    let proxy = Link::some(proxy);
    Fetch::Gauge(Gauge { kind, proxy, server: None })
}

/// `[<backend>/]<server>`.
fn server(kind: GaugeKind, args: &mut Arguments<'_>) -> Built {
    let text = args.text()?;
    let (proxy, server) = match text.split_once('/') {
        Some((proxy, server)) => (Some(Link::new(proxy)), server),
        None => (None, text),
    };
    Ok(Fetch::Gauge(Gauge { kind, proxy, server: Some(Link::new(server)) }))
}

fn header(args: &mut Arguments<'_>, response: bool) -> Result<Named, String> {
    let name = args.optional().filter(|name| !name.is_empty()).map(str::to_ascii_lowercase);
    let occurrence = args.optional_parsed("an occurrence")?.unwrap_or(0);
    if occurrence < -100 {
        return Err(format!("occurrence must be at least -100, but got '{occurrence}'"));
    }
    Ok(Named { response, name, occurrence })
}

fn cookie(args: &mut Arguments<'_>, response: bool) -> Named {
    let name = args.optional().filter(|name| !name.is_empty()).map(str::to_owned);
    Named { response, name, occurrence: 0 }
}

fn names_of_headers(args: &mut Arguments<'_>, response: bool) -> Fetch {
    Fetch::HdrNames { response, delimiter: args.optional().unwrap_or(",").to_owned() }
}

fn param(args: &mut Arguments<'_>) -> Option<String> {
    args.optional().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Bytes written in hexadecimal.
fn bytes(text: &str) -> Result<Vec<u8>, String> {
    match pattern::parse(Method::Bin, false, text)? {
        Pattern::Bytes(bytes) => Ok(bytes),
        _ => Err(format!("expects hexadecimal digits, but got '{text}'")),
    }
}

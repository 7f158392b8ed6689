//! Sample expressions (manual section 7): a fetch, then converters, and log-format strings made of
//! them.
//!
//! What stands here has been checked: arguments are in range, regular expressions compile, and each
//! converter can take what comes before it. Proxies and tables are [`Link`]s.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Link, PatternUse};
use crate::pattern::{Method, Output};

/// A sample expression: a fetch and converters.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// Where the value comes from.
    pub fetch: Fetch,
    /// Applied in order.
    pub converters: Vec<Converter>,
    /// As written.
    pub text: String,
}

impl Expr {
    /// Type of the result.
    pub fn output(&self) -> Type {
        let converted = self.converters.iter().rev().find_map(Converter::output);
        converted.unwrap_or_else(|| self.fetch.output())
    }
}

/// Type of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only known when it is there (`var`).
    Any,
    /// True or false.
    Bool,
    /// A signed integer.
    Int,
    /// An address.
    Ip,
    /// Text.
    Str,
    /// Bytes.
    Bin,
}

impl Type {
    /// Whether a sample of this type can become one of another.
    pub fn casts_to(self, to: Type) -> bool {
        use Type::*;
        self == to
            || matches!(
                (self, to),
                (Any, _)
                    | (_, Any | Str)
                    | (Bool, Int | Bin)
                    | (Int, Bool | Ip | Bin)
                    | (Ip, Int | Bin)
                    | (Str, Bool | Int | Ip | Bin)
            )
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Any => "any",
            Type::Bool => "bool",
            Type::Int => "sint",
            Type::Ip => "addr",
            Type::Str => "string",
            Type::Bin => "binary",
        })
    }
}

/// What must be there before a fetch can find anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// A connection.
    Nothing,
    /// The head of an HTTP request.
    Request,
    /// The head of an HTTP response.
    Response,
}

/// Which occurrence of a header or cookie is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Whether it is the response's.
    pub response: bool,
    /// Name, in lower case for headers; `None` = any.
    pub name: Option<String>,
    /// From 1 on, or from -1 backwards; 0 = the last, or in an ACL every one.
    pub occurrence: i32,
}

/// A sample fetch (section 7.3).
#[derive(Clone, Debug, PartialEq)]
pub enum Fetch {
    /// `always_true`, `always_false`, `bool`.
    Bool(bool),
    /// `int`.
    Int(i64),
    /// `str`, and `env`, `hostname` and the like, which never change.
    Str(String),
    /// `bin`.
    Bin(Vec<u8>),
    /// `ipv4`, `ipv6`.
    Ip(IpAddr),
    /// `wait_end`: true once the inspection time is over.
    WaitEnd,
    /// `date`: seconds since the epoch, and what is added to them; `unit` per second.
    Date {
        /// Added, in the unit.
        offset: i64,
        /// 1 for seconds, 1000 for milliseconds, 1000000 for microseconds.
        per_second: i64,
    },
    /// `rand`: below the range; `None` = 32 bits.
    Rand(Option<u32>),
    /// `uuid`.
    Uuid,
    /// `var`.
    Var(Variable),
    /// `src`.
    Src,
    /// `src_port`.
    SrcPort,
    /// `dst`.
    Dst,
    /// `dst_port`.
    DstPort,
    /// `src_is_local`.
    SrcIsLocal,
    /// A gauge of a proxy or server.
    Gauge(Gauge),
    /// A value of a stick table's entry.
    Counter(Counter),
    /// `table_cnt`.
    TableCount(Option<Link>),
    /// `table_avl`.
    TableAvailable(Option<Link>),
    /// `req.hdr`, `res.hdr`: a value of a comma-separated list.
    Hdr(Named),
    /// `req.fhdr`, `res.fhdr`: a whole line.
    FullHdr(Named),
    /// `req.hdr_cnt`, `res.hdr_cnt`.
    HdrCount(Named),
    /// `req.fhdr_cnt`, `res.fhdr_cnt`.
    FullHdrCount(Named),
    /// `req.hdr_ip`.
    HdrIp(Named),
    /// `req.hdr_val`.
    HdrVal(Named),
    /// `req.hdr_names`, with a delimiter.
    HdrNames {
        /// Whether those of the response.
        response: bool,
        /// Between the names.
        delimiter: String,
    },
    /// `req.cook`, `res.cook`.
    Cook(Named),
    /// `req.cook_cnt`, `res.cook_cnt`.
    CookCount(Named),
    /// `req.cook_val`, `res.cook_val`.
    CookVal(Named),
    /// `path`.
    Path,
    /// `pathq`.
    PathQuery,
    /// `url`.
    Url,
    /// `query`.
    Query,
    /// `base`.
    Base,
    /// `base32`; with the source address after it: `base32+src`.
    Base32 {
        /// `base32+src`.
        with_src: bool,
    },
    /// `method`.
    Method,
    /// `req.ver`, `res.ver`.
    Version {
        /// That of the response.
        response: bool,
    },
    /// `urlp`, `url_param`: a parameter of the query; any without a name.
    UrlParam(Option<String>),
    /// `urlp_val`.
    UrlParamVal(Option<String>),
    /// `http_first_req`.
    FirstRequest,
    /// `status`.
    Status,
    /// `http_auth_user`.
    AuthUser,
    /// `http_auth_pass`.
    AuthPass,
    /// `http_auth_type`.
    AuthType,
    /// `req.body_size`: as announced.
    BodySize,
    /// `req.proto_http`: always so once a request was parsed.
    ProtoHttp,
}

impl Fetch {
    /// Whether it needs a parsed HTTP request.
    pub fn needs_http(&self) -> bool {
        self.needs() != Needs::Nothing
    }

    /// What must be there before it can find anything.
    pub fn needs(&self) -> Needs {
        use Fetch::*;
        match self {
            Hdr(n) | FullHdr(n) | HdrCount(n) | FullHdrCount(n) | HdrIp(n) | HdrVal(n) | Cook(n)
            | CookCount(n) | CookVal(n) => side(n.response),
            HdrNames { response, .. } | Version { response } => side(*response),
            Path
            | PathQuery
            | Url
            | Query
            | Base
            | Base32 { .. }
            | Method
            | UrlParam(_)
            | UrlParamVal(_)
            | FirstRequest
            | AuthUser
            | AuthPass
            | AuthType
            | BodySize
            | ProtoHttp => Needs::Request,
            Status => Needs::Response,
            _ => Needs::Nothing,
        }
    }

    /// Type of what it finds.
    pub fn output(&self) -> Type {
        use Fetch::*;
        match self {
            Bool(_) | WaitEnd | SrcIsLocal | FirstRequest | ProtoHttp => Type::Bool,
            Int(_) | Date { .. } | Rand(_) | SrcPort | DstPort | TableCount(_) | TableAvailable(_) => {
                Type::Int
            }
            HdrCount(_) | FullHdrCount(_) | HdrVal(_) | CookCount(_) | CookVal(_) | UrlParamVal(_) => {
                Type::Int
            }
            Status | BodySize | Base32 { with_src: false } => Type::Int,
            Gauge(gauge) => gauge.kind.output(),
            Counter(counter) => match counter.what {
                CounterFetch::Tracked => Type::Bool,
                _ => Type::Int,
            },
            Src | Dst | Ip(_) | HdrIp(_) => Type::Ip,
            Bin(_) | Base32 { with_src: true } => Type::Bin,
            Var(_) => Type::Any,
            _ => Type::Str,
        }
    }
}

fn side(response: bool) -> Needs {
    if response { Needs::Response } else { Needs::Request }
}

/// A number that a proxy or server has at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauge {
    /// Which number.
    pub kind: GaugeKind,
    /// Name of the proxy; `None` = the one that the rule stands in, or the backend chosen.
    pub proxy: Option<Link>,
    /// Name of the server.
    pub server: Option<Link>,
}

/// What a [`Gauge`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaugeKind {
    /// `act_conn`.
    ActConn,
    /// `nbsrv`.
    NbSrv,
    /// `be_conn`.
    BeConn,
    /// `be_conn_free`.
    BeConnFree,
    /// `be_sess_rate`.
    BeSessRate,
    /// `be_id`.
    BeId,
    /// `be_name`.
    BeName,
    /// `queue`.
    Queue,
    /// `avg_queue`.
    AvgQueue,
    /// `connslots`.
    ConnSlots,
    /// `fe_conn`, `dst_conn`.
    FeConn,
    /// `fe_sess_rate`.
    FeSessRate,
    /// `fe_req_rate`.
    FeReqRate,
    /// `fe_id`.
    FeId,
    /// `fe_name`.
    FeName,
    /// `srv_conn`.
    SrvConn,
    /// `srv_conn_free`.
    SrvConnFree,
    /// `srv_queue`.
    SrvQueue,
    /// `srv_is_up`.
    SrvIsUp,
    /// `srv_weight`, `srv_uweight`.
    SrvWeight,
    /// `srv_iweight`.
    SrvIweight,
    /// `srv_sess_rate`.
    SrvSessRate,
    /// `srv_id`.
    SrvId,
    /// `srv_name`.
    SrvName,
}

impl GaugeKind {
    fn output(self) -> Type {
        match self {
            GaugeKind::BeName | GaugeKind::FeName | GaugeKind::SrvName => Type::Str,
            GaugeKind::SrvIsUp => Type::Bool,
            _ => Type::Int,
        }
    }
}

/// A value of a stick table's entry: `sc_http_req_rate(0)`, `src_get_gpc0(t)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Whose entry.
    pub of: CounterKey,
    /// Name of the table's proxy; `None` = the one tracked in (`sc_`), or the proxy's own (`src_`).
    pub table: Option<Link>,
    /// What of it.
    pub what: CounterFetch,
}

/// Whose entry a [`Counter`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKey {
    /// That of `sc0`..`sc2`.
    Tracked(u8),
    /// That of the client's address.
    Src,
}

/// What of an entry is fetched, and what is done to it meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterFetch {
    /// A value by the name of its data type.
    Value(&'static str),
    /// An element of an array by the name of its data type.
    Element(&'static str, u8),
    /// A value in units of 1024.
    Kilo(&'static str),
    /// `inc_gpc0` and the like: one more, then the value.
    Inc(&'static str),
    /// `inc_gpc`.
    IncElement(u8),
    /// `clr_gpc0` and the like: the value, which becomes 0.
    Clear(&'static str),
    /// `clr_gpc`.
    ClearElement(u8),
    /// `tracked`.
    Tracked,
    /// `trackers`.
    Trackers,
    /// `updt_conn_cnt`.
    UpdateConnCnt,
    /// `table_expire`, in milliseconds.
    Expire,
    /// `table_idle`, in milliseconds.
    Idle,
}

/// A variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// How long it lives.
    pub scope: VarScope,
    /// Its name without the scope.
    pub name: Arc<str>,
}

/// How long a variable lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VarScope {
    /// The session.
    Sess,
    /// The transaction: request and response.
    Txn,
    /// The processing of the request.
    Req,
    /// The processing of the response.
    Res,
}

/// A compiled regular expression, equal to another of the same text.
#[derive(Clone)]
pub struct Regex(pub Arc<regex::bytes::Regex>);

impl Regex {
    /// Compiles; `icase` ignores case.
    ///
    /// # Errors
    /// What is wrong with the text, in one line.
    pub fn new(text: &str, icase: bool) -> Result<Regex, String> {
        crate::pattern::regex(text, icase).map(|regex| Regex(Arc::new(regex)))
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_str().fmt(f)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Regex) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// An operand: a number, or a variable that holds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A number.
    Int(i64),
    /// A variable.
    Var(Variable),
}

/// An operation on two integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `add`.
    Add,
    /// `sub`.
    Sub,
    /// `mul`.
    Mul,
    /// `div`.
    Div,
    /// `mod`.
    Mod,
    /// `and`.
    And,
    /// `or`.
    Or,
    /// `xor`.
    Xor,
}

/// A hash of text to a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashKind {
    /// `crc32`.
    Crc32,
    /// `djb2`.
    Djb2,
    /// `sdbm`.
    Sdbm,
}

/// A converter (section 7.3.1).
#[derive(Clone, Debug, PartialEq)]
pub enum Converter {
    /// `lower`.
    Lower,
    /// `upper`.
    Upper,
    /// `length`.
    Length,
    /// `ltrim`: characters taken away at the left.
    Ltrim(Vec<u8>),
    /// `rtrim`.
    Rtrim(Vec<u8>),
    /// `bytes`: offset and length.
    Bytes(usize, Option<usize>),
    /// `field`: index, delimiters, count.
    Field(i64, Vec<u8>, i64),
    /// `word`: index, delimiters, count.
    Word(i64, Vec<u8>, i64),
    /// `regsub`: pattern, replacement, and whether all occurrences are replaced.
    Regsub(Regex, String, bool),
    /// `concat`: before, variable, after.
    Concat(String, Option<Variable>, String),
    /// `strcmp` with a variable.
    Strcmp(Variable),
    /// `iif`: for true and for false.
    Iif(String, String),
    /// `hex`.
    Hex,
    /// `hex2i`.
    Hex2i,
    /// `base64`.
    Base64,
    /// `b64dec`.
    Base64Decode,
    /// `url_dec`; whether `+` always means a space.
    UrlDecode(bool),
    /// `url_enc`.
    UrlEncode,
    /// `param`: name and delimiters.
    Param(String, Vec<u8>),
    /// `host_only`.
    HostOnly,
    /// `port_only`.
    PortOnly,
    /// `ipmask`: prefixes for IPv4 and IPv6.
    Ipmask(u8, u8),
    /// An operation with an operand.
    Math(Arithmetic, Operand),
    /// `neg`.
    Neg,
    /// `cpl`.
    Cpl,
    /// `not`.
    Not,
    /// `bool`.
    Bool,
    /// `even`.
    Even,
    /// `odd`.
    Odd,
    /// A hash; whether it goes through the avalanche.
    Hash(HashKind, bool),
    /// `http_date`: offset added.
    HttpDate(i64),
    /// `ltime`, `utime`: format, offset, and whether in local time.
    Time(String, i64, bool),
    /// `set-var`.
    SetVar(Variable),
    /// `unset-var`.
    UnsetVar(Variable),
    /// `in_table`.
    InTable(Option<Link>),
    /// `table_http_req_rate` and the like: table (`None` = the proxy's own), what, and what it is for a key
    /// that is not there.
    TableValue(Option<Link>, CounterFetch, Option<i64>),
    /// `map…`.
    Map(Map),
}

impl Converter {
    /// Type that it takes.
    pub fn input(&self) -> Type {
        use Converter::*;
        match self {
            Lower | Upper | Ltrim(_) | Rtrim(_) | Field(..) | Word(..) | Regsub(..) | Concat(..)
            | Strcmp(_) | Hex2i | Base64Decode | UrlDecode(_) | UrlEncode | Param(..) | HostOnly
            | PortOnly => Type::Str,
            Length | Bytes(..) | Hex | Base64 | Hash(..) => Type::Bin,
            Iif(..) => Type::Bool,
            Ipmask(..) => Type::Ip,
            Math(..) | Neg | Cpl | Not | Bool | Even | Odd | HttpDate(_) | Time(..) => Type::Int,
            SetVar(_) | UnsetVar(_) | InTable(_) | TableValue(..) => Type::Any,
            Map(map) => map.input(),
        }
    }

    /// Type that it makes; `None` = that which it took.
    pub fn output(&self) -> Option<Type> {
        use Converter::*;
        Some(match self {
            Length | Strcmp(_) | Hex2i | PortOnly | Math(..) | Neg | Cpl | Hash(..) | TableValue(..) => {
                Type::Int
            }
            Not | Bool | Even | Odd | InTable(_) => Type::Bool,
            Ipmask(..) => Type::Ip,
            Base64Decode | Bytes(..) => Type::Bin,
            SetVar(_) | UnsetVar(_) => return None,
            Map(map) => map.output(),
            _ => Type::Str,
        })
    }
}

/// `map_str_int(file, default)` and the like.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// The file and how keys are compared.
    pub patterns: PatternUse,
    /// When nothing is found.
    pub default: Option<String>,
}

impl Map {
    fn input(&self) -> Type {
        match self.patterns.method {
            Method::Int => Type::Int,
            Method::Ip => Type::Ip,
            Method::Bin => Type::Bin,
            _ => Type::Str,
        }
    }

    fn output(&self) -> Type {
        match self.patterns.output {
            Some(Output::Int) => Type::Int,
            Some(Output::Ip) => Type::Ip,
            _ => Type::Str,
        }
    }
}

/// A log-format string.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Format {
    /// Its parts in order.
    pub pieces: Vec<Piece>,
    /// As written.
    pub text: String,
}

/// A part of a log-format string.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// As it is.
    Text(String),
    /// `%[expression]`; quoted with `{+Q}`.
    Expr {
        /// The expression.
        expr: Expr,
        /// `+Q`.
        quoted: bool,
    },
    /// `%ci` and the like.
    Var {
        /// Which.
        var: LogVar,
        /// `+Q`.
        quoted: bool,
    },
}

/// The variables of log-format strings (section 8.2.6) that rules can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogVar {
    /// `%ci`.
    ClientIp,
    /// `%cp`.
    ClientPort,
    /// `%fi`.
    FrontIp,
    /// `%fp`.
    FrontPort,
    /// `%f`, `%ft`.
    Frontend,
    /// `%b`.
    Backend,
    /// `%s`.
    Server,
    /// `%H`.
    Hostname,
    /// `%HM`.
    Method,
    /// `%HP`.
    Path,
    /// `%HPO`: without query.
    PathOnly,
    /// `%HQ`.
    Query,
    /// `%HU`.
    Uri,
    /// `%HV`.
    Version,
    /// `%r`.
    RequestLine,
    /// `%pid`.
    Pid,
    /// `%rt`: requests of the process.
    RequestCounter,
    /// `%T`: GMT date and time.
    Gmt,
    /// `%Ts`: seconds since the epoch.
    Timestamp,
    /// `%ms`: milliseconds of the second.
    Milliseconds,
    /// `%ST`.
    Status,
}

//! Sample expressions: a fetch and its converters, evaluated on borrowed bytes (manual section 7).
//!
//! The configuration was checked when it was read, so evaluation cannot fail, only find nothing.
//! [`evaluate`] gives one value; [`any`] is for ACLs, which look at every value of a list.

mod convert;
mod counter;
mod format;
mod gauge;
mod http;
mod value;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_config::{Expr, Fetch, VarScope, Variable};

use crate::backend::Backend;
use crate::h1::Head;
use crate::memory::Memory;
use crate::plan::{Plan, ProxyPlan};
use crate::server::Server;
use crate::state::State;
use crate::time::Now;

pub(crate) use self::convert::regsub_whole;
pub use self::counter::with_key;
pub use self::format::render;
pub use self::http::{last_value, path, query, url_param};
pub(crate) use self::http::{path_and_query, split_list};
pub use self::value::Value;
pub(crate) use self::value::input_for;

/// A message's bytes and its parsed head.
pub type Message<'a> = (&'a [u8], &'a Head);

/// What an expression may look at.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The client.
    pub src: SocketAddr,
    /// Where it connected to.
    pub dst: SocketAddr,
    /// The request; `None` before there is one.
    pub request: Option<Message<'a>>,
    /// The response; `None` before there is one.
    pub response: Option<Message<'a>>,
    /// The rest of the node.
    pub world: Option<World<'a>>,
    /// What the session remembers.
    pub session: &'a Memory,
    /// What the request remembers.
    pub memory: &'a Memory,
    /// The first request of its connection.
    pub first: bool,
    /// The time to wait for content is over (`wait_end`).
    pub waited: bool,
    /// The moment.
    pub now: Now,
    /// A random number.
    pub draw: u64,
}

/// The node around a session.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// What outlives plans.
    pub state: &'a State,
    /// The session's plan.
    pub plan: &'a Plan,
    /// The proxy whose rules are carried out.
    pub proxy: &'a ProxyPlan,
    /// The frontend's proxy.
    pub front: &'a ProxyPlan,
    /// The backend that was chosen.
    pub backend: Option<&'a Arc<Backend>>,
    /// The server that was reached.
    pub server: Option<&'a Arc<Server>>,
}

impl<'a> Context<'a> {
    /// Where a variable lives.
    pub(crate) fn memory_of(&self, variable: &Variable) -> &'a Memory {
        if variable.scope == VarScope::Sess { self.session } else { self.memory }
    }
}

/// Evaluates `expr`; `None` = the sample does not exist.
pub fn evaluate<'a>(expr: &'a Expr, at: &Context<'a>) -> Option<Value<'a>> {
    convert::all(&expr.converters, fetch(&expr.fetch, at)?, at)
}

/// Whether `test` holds for any value: headers, cookies and parameters may have several.
pub fn any<'a>(expr: &'a Expr, at: &Context<'a>, test: &mut dyn FnMut(&Value<'a>) -> bool) -> bool {
    let mut converted = |value| convert::all(&expr.converters, value, at).is_some_and(|value| test(&value));
    match http::each(&expr.fetch, at, &mut converted) {
        Some(found) => found,
        None => fetch(&expr.fetch, at).is_some_and(converted),
    }
}

fn fetch<'a>(fetch: &'a Fetch, at: &Context<'a>) -> Option<Value<'a>> {
    Some(match fetch {
        Fetch::Bool(is) => Value::Bool(*is),
        Fetch::Int(n) => Value::Int(*n),
        Fetch::Str(text) => Value::Str(Cow::Borrowed(text.as_bytes())),
        Fetch::Bin(bytes) => Value::Bin(Cow::Borrowed(bytes)),
        Fetch::Ip(ip) => Value::Ip(*ip),
        Fetch::Src => Value::Ip(at.src.ip().to_canonical()),
        Fetch::SrcPort => Value::Int(i64::from(at.src.port())),
        Fetch::Dst => Value::Ip(at.dst.ip().to_canonical()),
        Fetch::DstPort => Value::Int(i64::from(at.dst.port())),
        Fetch::SrcIsLocal => {
            Value::Bool(at.src.ip().to_canonical() == at.dst.ip().to_canonical() || at.src.ip().is_loopback())
        }
        Fetch::WaitEnd => Value::Bool(at.waited),
        Fetch::Date { offset, per_second } => {
            let now = i64::try_from(at.now.unix_us).unwrap_or(i64::MAX);
            Value::Int((now / (1_000_000 / per_second)).saturating_add(*offset))
        }
        Fetch::Rand(range) => Value::Int(match range {
            Some(range) => (((at.draw >> 32) * u64::from(*range)) >> 32) as i64,
            None => (at.draw >> 32) as i64,
        }),
        Fetch::Uuid => Value::Str(Cow::Owned(uuid(at.draw, at.now).into_bytes())),
        Fetch::Var(variable) => at.memory_of(variable).variable(variable)?,
        Fetch::FirstRequest => Value::Bool(at.first),
        Fetch::Gauge(gauge) => gauge::fetch(gauge, at.world.as_ref()?, at.now)?,
        Fetch::Counter(counter) => counter::fetch(counter, at)?,
        Fetch::TableCount(link) => Value::Int(counter::table(at, link.as_ref())?.used() as i64),
        Fetch::TableAvailable(link) => {
            let table = counter::table(at, link.as_ref())?;
            Value::Int(table.size().saturating_sub(table.used()) as i64)
        }
        _ => return http::fetch(fetch, at),
    })
}

/// A random UUID of version 4.
fn uuid(draw: u64, now: Now) -> String {
    let other = (draw ^ now.unix_us).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ draw;
    let (high, low) = (draw & !0xf000 | 0x4000, other & !(3 << 62) | 1 << 63);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

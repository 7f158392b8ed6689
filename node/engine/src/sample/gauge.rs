//! Fetches of what proxies and servers are doing (manual section 7.3.2).

use std::sync::Arc;

use phalanx_config::{Gauge, GaugeKind};

use super::{Value, World};
use crate::backend::Backend;
use crate::frontend::Frontend;
use crate::server::Server;
use crate::time::Now;

pub(super) fn fetch<'a>(gauge: &Gauge, world: &World<'a>, now: Now) -> Option<Value<'a>> {
    use GaugeKind::*;
    let int = |n: u32| Value::Int(i64::from(n));
    Some(match gauge.kind {
        ActConn => int(world.state.process().conns()),
        FeConn => int(frontend(gauge, world)?.conns()),
        FeSessRate => rate(frontend(gauge, world)?.counters().session_rate(now)),
        FeReqRate => rate(frontend(gauge, world)?.counters().request_rate(now)),
        FeId => int(world.front.config.id),
        FeName => Value::text(world.front.config.name.as_bytes()),
        BeId => int(world.backend?.id()),
        BeName => Value::text(world.backend?.name().as_bytes()),
        SrvId => int(world.server?.id()),
        SrvName => Value::text(world.server?.name().as_bytes()),
        NbSrv => {
            let (active, backup) = backend(gauge, world)?.usable_servers();
            int(if active > 0 { active } else { backup })
        }
        BeConn => int(backend(gauge, world)?.conns()),
        BeConnFree => slots(backend(gauge, world)?, |server, max| max.saturating_sub(server.served())),
        ConnSlots => slots(backend(gauge, world)?, |server, max| {
            let queue = server.maxqueue().saturating_sub(server.queued());
            max.saturating_sub(server.served()).saturating_add(queue)
        }),
        BeSessRate => rate(backend(gauge, world)?.counters().session_rate(now)),
        Queue => int(backend(gauge, world)?.queued()),
        AvgQueue => {
            let backend = backend(gauge, world)?;
            let (active, backup) = backend.usable_servers();
            let servers = if active > 0 { active } else { backup };
            int(backend.queued().div_ceil(servers.max(1)))
        }
        SrvConn => int(server(gauge, world)?.served()),
        SrvConnFree => {
            let server = server(gauge, world)?;
            match server.maxconn() {
                0 => Value::Int(-1),
                max => int(max.saturating_sub(server.served())),
            }
        }
        SrvQueue => int(server(gauge, world)?.queued()),
        SrvIsUp => Value::Bool(server(gauge, world)?.is_up()),
        SrvWeight => int(server(gauge, world)?.weight()),
        SrvIweight => int(server(gauge, world)?.initial_weight()),
        SrvSessRate => rate(server(gauge, world)?.counters().session_rate(now)),
    })
}

fn rate<'a>(n: u64) -> Value<'a> {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

/// The sum over the usable servers; -1 when one has no limit.
fn slots<'a>(backend: &Backend, free: impl Fn(&Server, u32) -> u32) -> Value<'a> {
    let mut sum = 0i64;
    for server in backend.servers().iter().filter(|server| server.usable()) {
        match server.maxconn() {
            0 => return Value::Int(-1),
            max => sum += i64::from(free(server, max)),
        }
    }
    Value::Int(sum)
}

/// The backend that is named, or the one chosen, or that of the rule's own proxy.
fn backend<'a>(gauge: &Gauge, world: &World<'a>) -> Option<&'a Arc<Backend>> {
    match &gauge.proxy {
        Some(link) => world.plan.linked(link)?.backend.as_ref(),
        None => world.backend.or(world.proxy.backend.as_ref()),
    }
}

fn frontend<'a>(gauge: &Gauge, world: &World<'a>) -> Option<&'a Arc<Frontend>> {
    match &gauge.proxy {
        Some(link) => world.plan.linked(link)?.frontend.as_ref(),
        None => world.front.frontend.as_ref(),
    }
}

fn server(gauge: &Gauge, world: &World<'_>) -> Option<Arc<Server>> {
    backend(gauge, world)?.linked(gauge.server.as_ref()?)
}

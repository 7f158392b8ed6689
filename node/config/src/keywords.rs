//! The keyword tables: one file per group, one entry per keyword.

pub(crate) mod balance;
pub(crate) mod bind;
pub(crate) mod cluster;
pub(crate) mod consul;
pub(crate) mod cookie;
pub(crate) mod discovery;
pub(crate) mod errorfile;
pub(crate) mod global;
pub(crate) mod http_check;
pub(crate) mod log;
pub(crate) mod option;
pub(crate) mod peers;
pub(crate) mod proxy;
pub(crate) mod resolvers;
pub(crate) mod rules;
pub(crate) mod server;
pub(crate) mod stats;
pub(crate) mod stick;
pub(crate) mod timeout;

use crate::keyword::Keyword;

/// Every table. The order is the order of the reference.
pub(crate) const TABLES: &[&[Keyword]] = &[
    // Before those of proxies, some of whose names it has too: where neither fits, the last is meant.
    peers::KEYWORDS,
    global::KEYWORDS,
    proxy::KEYWORDS,
    bind::KEYWORDS,
    server::KEYWORDS,
    balance::KEYWORDS,
    cookie::KEYWORDS,
    log::KEYWORDS,
    timeout::KEYWORDS,
    option::KEYWORDS,
    http_check::KEYWORDS,
    errorfile::KEYWORDS,
    stats::KEYWORDS,
    stick::KEYWORDS,
    rules::KEYWORDS,
    cluster::KEYWORDS,
    resolvers::KEYWORDS,
    consul::KEYWORDS,
];

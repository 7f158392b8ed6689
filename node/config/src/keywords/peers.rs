//! Keywords of a `peers` section (manual section 11.2), and the `peer` lines of a `cluster` section:
//! HAProxys that stick tables are shared with.

use crate::keyword::{Arity, CLUSTER, Keyword, PEERS};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::Peer;
use crate::parser::{At, Parser};
use crate::value;

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "peer",
        "<name> <addr>:<port>",
        PEERS | CLUSTER,
        Arity::AtLeast(2),
        "A HAProxy that stick tables are shared with; in a 'peers' section also this node.",
        |p, a| peer(p, a, false),
    ),
    Keyword::new(
        "server",
        "<name> [<addr>:<port>]",
        PEERS,
        Arity::AtLeast(1),
        "The same; without an address it is this node, whose address 'bind' gives.",
        |p, a| peer(p, a, true),
    ),
    Keyword::new(
        "bind",
        "<addr>:<port>",
        PEERS,
        Arity::AtLeast(1),
        "Where this node listens for its peers.",
        |p, a| {
            no_more(a, 1, "bind")?;
            if p.peers().bind.is_some() {
                return Err(a.named(0, ": one address is enough, and there is one already"));
            }
            let addr = address(a, 0)?;
            p.peers().bind = Some(addr);
            Ok(())
        },
    ),
    Keyword::new("disabled", "", PEERS, Arity::Exact(0), "Shares nothing.", |p, _| {
        p.peers().disabled = true;
        Ok(())
    }),
    Keyword::new("enabled", "", PEERS, Arity::Exact(0), "Undoes 'disabled'.", |p, _| {
        p.peers().disabled = false;
        Ok(())
    }),
];

fn no_more(args: &Args<'_>, allowed: usize, keyword: &str) -> Result<(), Fault> {
    match args.words.get(allowed) {
        None => Ok(()),
        Some(word) => {
            let what = format!("'{}' on the '{keyword}' line of a 'peers' section", word.text);
            Err(args.fault(allowed, known::unsupported(&what)))
        }
    }
}

fn address(args: &Args<'_>, index: usize) -> Result<String, Fault> {
    let text = args.text(index);
    // A host name is resolved when connecting: only its shape is looked at.
    let shape = |_: &str| Ok(std::net::Ipv4Addr::LOCALHOST.into());
    value::address(text, value::PortRule::One, &shape)
        .map_err(|err| args.named(index, format!(": {err}")).hint("expects <addr>:<port>"))?;
    Ok(text.to_owned())
}

fn peer(parser: &mut Parser<'_>, args: &Args<'_>, server: bool) -> Result<(), Fault> {
    let name = args.text(0).to_owned();
    if let Some(c) = value::invalid_name_char(&name) {
        let fault = args.named(0, format!(": character '{c}' is not permitted in the name '{name}'"));
        return Err(fault.hint("letters, digits, '-', '_', '.' and ':' are"));
    }
    let addr = if server && args.text(1).is_empty() { None } else { Some(address(args, 1)?) };
    no_more(args, 2, if server { "server" } else { "peer" })?;
    let pos = parser.pos();
    let in_cluster = matches!(parser.at, At::Cluster(_));
    if in_cluster && let Some(node) = parser.cluster().nodes.iter().find(|n| n.name == name).cloned() {
        let place = parser.place(node.pos);
        return Err(args.named(0, format!(": '{name}' is a node of the cluster, declared at {place}")));
    }
    let peers = if in_cluster { &mut parser.cluster().peers } else { &mut parser.peers().peers };
    if let Some(other) = peers.iter().find(|p| p.name == name).map(|p| p.pos) {
        let place = parser.place(other);
        return Err(args.named(0, format!(": '{name}' is declared already at {place}")));
    }
    peers.push(Peer { name, addr, pos });
    Ok(())
}

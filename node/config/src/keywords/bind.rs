//! `bind` lines and their options (manual sections 4.2 and 5.1).

use crate::draft::BindDraft;
use crate::keyword::{Arity, FRONTEND, Keyword, LISTEN};
use crate::known;
use crate::line::{Args, Fault};
use crate::model::Bind;
use crate::options::{self, OptionKeyword};
use crate::parser::Parser;
use crate::value::{self, PortRule};
use crate::words::Word;

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[Keyword::new(
    "bind",
    "[<address>]:<port>[-<port>][,...] [<options>]",
    FRONTEND | LISTEN,
    Arity::AtLeast(1),
    "Listens on addresses.",
    bind,
)];

/// Most listeners that one line may ask for.
const MAX_PER_LINE: usize = 65_535;

fn bind(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let word = &args.words[0];
    let mut binds = addresses(parser, word).map_err(|err| args.fault(0, format!("'bind' : {err}")))?;
    let subject = format!("'bind {}' in section '{}'", word.text, parser.section_name());
    let Some(mut template) = binds.first().cloned() else { return Ok(()) };
    let faults =
        options::apply_all(OPTIONS, &args.words[1..], &mut template, parser.env, &subject, known::BIND);
    if !faults.is_empty() {
        faults.into_iter().for_each(|fault| parser.alert(fault));
        return Ok(());
    }
    if let Some(id) = template.id {
        if binds.len() > 1 {
            return Err(args.fault(0, format!("{subject} : 'id' can be only used with a single socket")));
        }
        if let Some(other) = parser.proxy().binds.iter().find(|bind| bind.id == Some(id)).cloned() {
            let place = parser.place(other.bind.pos);
            let message =
                format!("{subject} : 'id' : custom id {id} already used at {place} ('bind {}')", other.text);
            return Err(args.fault(0, message));
        }
    }
    for bind in &mut binds {
        *bind = BindDraft {
            bind: Bind { addr: bind.bind.addr, ..template.bind.clone() },
            id: template.id,
            text: bind.text.clone(),
        };
    }
    parser.proxy().binds.extend(binds);
    Ok(())
}

/// The listeners that a comma-separated list of addresses stands for.
pub(crate) fn addresses(parser: &Parser<'_>, word: &Word) -> Result<Vec<BindDraft>, String> {
    let resolve = |host: &str| parser.env.resolve(host);
    let mut binds = Vec::new();
    for text in word.text.split(',') {
        let address = value::address(text, PortRule::Range, &resolve)?;
        let (low, high) = address.ports.unwrap_or_default();
        if binds.len() + usize::from(high - low) >= MAX_PER_LINE {
            return Err(format!("more than {MAX_PER_LINE} listeners on one line"));
        }
        binds.extend((low..=high).map(|port| BindDraft {
            bind: Bind {
                addr: (address.ip, port).into(),
                interface: None,
                name: None,
                id: 0,
                maxconn: None,
                backlog: None,
                transparent: false,
                v6only: None,
                pos: parser.pos(),
            },
            id: None,
            text: text.to_owned(),
        }));
    }
    Ok(binds)
}

/// Options of `bind`.
pub(crate) const OPTIONS: &[OptionKeyword<BindDraft>] = &[
    OptionKeyword {
        name: "name",
        usage: "<name>",
        doc: "Name shown by the statistics and logs.",
        apply: |bind, text, _| {
            bind.bind.name = Some(text.to_owned());
            Ok(())
        },
    },
    OptionKeyword {
        name: "id",
        usage: "<id>",
        doc: "Numeric id of the listener.",
        apply: |bind, text, _| {
            bind.id = Some(value::count(text, 1)?);
            Ok(())
        },
    },
    OptionKeyword {
        name: "interface",
        usage: "<interface>",
        doc: "Network interface to listen on.",
        apply: |bind, text, _| {
            bind.bind.interface = Some(interface(text)?);
            Ok(())
        },
    },
    OptionKeyword {
        name: "maxconn",
        usage: "<number>",
        doc: "Concurrent connections of the listener.",
        apply: |bind, text, _| {
            bind.bind.maxconn = Some(value::count(text, 1)?);
            Ok(())
        },
    },
    OptionKeyword {
        name: "backlog",
        usage: "<number>",
        doc: "Length of the kernel's queue of connections.",
        apply: |bind, text, _| {
            bind.bind.backlog = Some(value::count(text, 1)?);
            Ok(())
        },
    },
    OptionKeyword {
        name: "transparent",
        usage: "",
        doc: "Accepts connections to addresses that are not local.",
        apply: |bind, _, _| {
            bind.bind.transparent = true;
            Ok(())
        },
    },
    OptionKeyword {
        name: "v4v6",
        usage: "",
        doc: "Lets '::' accept IPv4 as well.",
        apply: |bind, _, _| {
            bind.bind.v6only = Some(false);
            Ok(())
        },
    },
    OptionKeyword {
        name: "v6only",
        usage: "",
        doc: "Keeps '::' to IPv6.",
        apply: |bind, _, _| {
            bind.bind.v6only = Some(true);
            Ok(())
        },
    },
];

/// A network interface's name, as the kernel limits it.
pub(crate) fn interface(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 15 || text.contains(['/', ' ']) {
        return Err(format!(
            "expects the name of a network interface (at most 15 characters), but got '{text}'"
        ));
    }
    Ok(text.to_owned())
}

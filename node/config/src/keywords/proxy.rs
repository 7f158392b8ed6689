//! Plain settings of proxies (manual section 4.2).

use super::global::{count, join};
use crate::draft::Placed;
use crate::keyword::{Arity, BACK, BACKEND, FRONT, FRONTEND, Keyword, LISTEN, PROXY};
use crate::known;
use crate::model::{HttpReuse, Mode};

use Arity::{AtLeast, Exact};

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new("mode", "tcp|http", PROXY, Exact(1), "What the proxy speaks.", |p, a| {
        p.settings().mode = match a.text(0) {
            "tcp" => Mode::Tcp,
            "http" => Mode::Http,
            mode @ ("log" | "spop" | "haterm") => {
                return Err(a.fault(0, known::unsupported(&format!("'mode {mode}'"))));
            }
            // HAProxy's own refusal of a mode that left long ago.
            "health" => {
                return Err(a
                    .fault(0, "mode 'health' doesn't exist anymore")
                    .hint("use 'http-request return'"));
            }
            mode => {
                return Err(a
                    .fault(0, format!("unknown proxy mode '{mode}'"))
                    .hint("expects 'tcp' or 'http'"));
            }
        };
        Ok(())
    }),
    Keyword::new("disabled", "", PROXY, Exact(0), "Keeps the proxy from starting.", |p, _| {
        p.settings().disabled = true;
        Ok(())
    }),
    Keyword::new("enabled", "", PROXY, Exact(0), "Undoes an inherited 'disabled'.", |p, _| {
        p.settings().disabled = false;
        Ok(())
    }),
    Keyword::new(
        "description",
        "<text>",
        FRONTEND | LISTEN | BACKEND,
        AtLeast(1),
        "Text shown by the statistics.",
        |p, a| {
            p.proxy().description = Some(join(a));
            Ok(())
        },
    ),
    Keyword::new(
        "id",
        "<number>",
        FRONTEND | LISTEN | BACKEND,
        Exact(1),
        "Numeric id of the proxy.",
        |p, a| {
            let id = count(a, 1)?;
            let start = p.proxy().pos;
            if let Some(other) =
                p.draft.proxies.iter().find(|proxy| proxy.id == Some(id) && proxy.pos != start)
            {
                let other =
                    format!("{} '{}' (declared at {})", other.kind_name(), other.name, p.place(other.pos));
                return Err(a.fault(0, format!("custom id {id} is already used by {other}")));
            }
            p.proxy().id = Some(id);
            Ok(())
        },
    ),
    Keyword::new(
        "maxconn",
        "<number>",
        FRONT,
        Exact(1),
        "Concurrent connections of the frontend.",
        |p, a| {
            p.settings().maxconn = Some(count(a, 0)?);
            Ok(())
        },
    ),
    Keyword::new(
        "fullconn",
        "<number>",
        BACK,
        Exact(1),
        "Load at which servers reach their 'maxconn'.",
        |p, a| {
            p.settings().fullconn = Some(count(a, 1)?);
            Ok(())
        },
    ),
    Keyword::new(
        "default_backend",
        "<backend>",
        FRONT,
        Exact(1),
        "Backend that takes the traffic.",
        |p, a| {
            let pos = p.pos();
            p.settings().default_backend = Some(Placed { value: a.text(0).to_owned(), pos });
            Ok(())
        },
    ),
    Keyword::new("retries", "<number>", BACK, Exact(1), "Connection attempts after the first.", |p, a| {
        p.settings().retries = Some(count(a, 0)?);
        Ok(())
    }),
    Keyword::new(
        "http-reuse",
        "never|safe|aggressive|always",
        BACK,
        Exact(1),
        "Which requests go over connections that others opened.",
        |p, a| {
            p.settings().http_reuse = match a.text(0) {
                "never" => HttpReuse::Never,
                "safe" => HttpReuse::Safe,
                "aggressive" => HttpReuse::Aggressive,
                "always" => HttpReuse::Always,
                other => {
                    let message =
                        format!("only supports 'never', 'safe', 'aggressive', 'always' (got '{other}')");
                    return Err(a.named(0, message));
                }
            };
            Ok(())
        },
    ),
    Keyword::new("monitor-uri", "<uri>", FRONT, Exact(1), "URI that is answered here, with 200.", |p, a| {
        p.settings().monitor_uri = Some(a.text(0).to_owned());
        Ok(())
    }),
];

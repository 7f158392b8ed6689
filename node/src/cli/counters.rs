//! `clear counters`.

use phalanx_config::Level;

use super::keyword::{Answer, Call, Keyword, Run};
use super::servers;

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["clear", "counters"],
        usage: "[all]",
        text: "clear max statistics counters (or all counters)",
        level: Level::Operator,
        run: Run::Now(clear),
    },
    Keyword {
        words: &["clear", "counters", "server"],
        usage: "<bk>/<srv>",
        text: "clear all counters of a server",
        level: Level::Admin,
        run: Run::Now(clear_server),
    },
];

fn clear(call: &Call<'_>) -> Answer {
    match call.arg(0) {
        "" => call.ctx.state.clear_counters(false),
        "all" if call.level < Level::Admin => return Answer::error("Permission denied"),
        "all" => call.ctx.state.clear_counters(true),
        other => {
            return Answer::error(format!(
                "'clear counters' expects nothing, 'all' or 'server', not '{other}'."
            ));
        }
    }
    Answer::done()
}

fn clear_server(call: &Call<'_>) -> Answer {
    match servers::find(call.ctx, call.arg(0)) {
        Ok((_, server)) => {
            server.clear_all();
            Answer::notice("Server counters cleared.")
        }
        Err(why) => Answer::error(why),
    }
}

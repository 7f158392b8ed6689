//! Commands on frontends: `enable|disable|shutdown frontend`, `set maxconn frontend|global`.
//!
//! Those on a frontend go through the [`Authority`](super::Authority) and concern all nodes; `maxconn
//! global` is a limit of this process, like its descriptors.

use std::sync::Arc;

use phalanx_config::Level;
use phalanx_engine::frontend::{Frontend, Status};
use phalanx_engine::registry::frontends::{Accepts, FrontendBase, FrontendChange, FrontendCommand};
use phalanx_engine::registry::{Command, Reply};

use super::keyword::{Answer, Call, Keyword, Run};

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["disable", "frontend"],
        usage: "<frontend>",
        text: "temporarily disable specific frontend",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(disable(call))),
    },
    Keyword {
        words: &["enable", "frontend"],
        usage: "<frontend>",
        text: "re-enable specific frontend",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(enable(call))),
    },
    Keyword {
        words: &["shutdown", "frontend"],
        usage: "<frontend>",
        text: "stop a specific frontend",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(shutdown(call))),
    },
    Keyword {
        words: &["set", "maxconn", "frontend"],
        usage: "<frontend> <value>",
        text: "change a frontend's maxconn setting",
        level: Level::Admin,
        run: Run::Later(|call| Box::pin(set_maxconn(call))),
    },
    Keyword {
        words: &["set", "maxconn", "global"],
        usage: "<value>",
        text: "change the per-process maxconn setting",
        level: Level::Admin,
        run: Run::Now(set_maxconn_global),
    },
];

fn find(call: &Call<'_>) -> Result<Arc<Frontend>, Answer> {
    let name = call.arg(0);
    if name.is_empty() {
        return Err(Answer::error("A frontend name is expected."));
    }
    call.ctx.state.plan().frontend(name).cloned().ok_or_else(|| Answer::error("No such frontend."))
}

/// Proposes a change, and waits until this node's listeners have followed.
async fn propose(call: &Call<'_>, frontend: &Frontend, change: FrontendChange, failure: &str) -> Answer {
    let base = FrontendBase::of(&frontend.config());
    let command = FrontendCommand { name: frontend.name().to_string(), base, change };
    match call.ctx.authority.propose(Command::Frontend(command)).await {
        Ok(Reply::Ok | Reply::Text(_)) => match (call.ctx.apply_listeners)() {
            Ok(()) => Answer::done(),
            // It is agreed on all the same: this node tries again at its next change or reload.
            Err(reason) => Answer::error(format!("{failure} {reason}")),
        },
        Ok(Reply::Refused(text)) => Answer::error(text),
        Err(reason) => Answer::error(format!("Not done: {reason}.")),
    }
}

async fn accepts(call: &Call<'_>, wanted: Accepts, refused: &[(Status, &str)], failure: &str) -> Answer {
    let frontend = match find(call) {
        Ok(frontend) => frontend,
        Err(answer) => return answer,
    };
    let status = frontend.status();
    match refused.iter().find(|(when, _)| *when == status) {
        Some((_, why)) => Answer::error(*why),
        None => propose(call, &frontend, FrontendChange::Accepts(wanted), failure).await,
    }
}

async fn disable(call: &Call<'_>) -> Answer {
    let refused = [
        (Status::Stopped, "Frontend was previously shut down, cannot disable."),
        (Status::Paused, "All sockets are already disabled."),
    ];
    accepts(call, Accepts::Paused, &refused, "Failed to pause frontend:").await
}

/// Also after `shutdown frontend`: unlike HAProxy's it outlives reloads, so there must be a way back.
async fn enable(call: &Call<'_>) -> Answer {
    let refused = [(Status::Open, "All sockets are already enabled.")];
    accepts(call, Accepts::Open, &refused, "Failed to resume frontend:").await
}

async fn shutdown(call: &Call<'_>) -> Answer {
    let refused = [(Status::Stopped, "Frontend was already shut down.")];
    accepts(call, Accepts::Stopped, &refused, "Failed to stop frontend:").await
}

async fn set_maxconn(call: &Call<'_>) -> Answer {
    let frontend = match find(call) {
        Ok(frontend) => frontend,
        Err(answer) => return answer,
    };
    match call.arg(1).parse::<u32>() {
        Ok(maxconn) => {
            let change = FrontendChange::Maxconn(maxconn);
            propose(call, &frontend, change, "Failed to change the limit:").await
        }
        Err(_) if call.arg(1).starts_with('-') => Answer::error("Value out of range."),
        Err(_) => Answer::error("Integer value expected."),
    }
}

fn set_maxconn_global(call: &Call<'_>) -> Answer {
    let Ok(wanted) = call.arg(0).parse::<i64>() else {
        return Answer::error("Expects an integer value.");
    };
    let hard = call.ctx.state.hard_maxconn();
    match u32::try_from(wanted) {
        Ok(0) => call.ctx.state.process().set_maxconn(hard),
        Ok(maxconn) if maxconn <= hard => call.ctx.state.process().set_maxconn(maxconn),
        _ => return Answer::error("Value out of range."),
    }
    Answer::done()
}

//! Commands on frontends: `enable|disable|shutdown frontend`, `set maxconn frontend|global`.
//!
//! They concern the listeners of this node, so they are not shared with the others.

use std::sync::Arc;

use phalanx_config::Level;
use phalanx_engine::frontend::{Frontend, Status};

use super::keyword::{Answer, Call, Keyword, Run};

pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["disable", "frontend"],
        usage: "<frontend>",
        text: "temporarily disable specific frontend",
        level: Level::Admin,
        run: Run::Now(disable),
    },
    Keyword {
        words: &["enable", "frontend"],
        usage: "<frontend>",
        text: "re-enable specific frontend",
        level: Level::Admin,
        run: Run::Now(enable),
    },
    Keyword {
        words: &["shutdown", "frontend"],
        usage: "<frontend>",
        text: "stop a specific frontend",
        level: Level::Admin,
        run: Run::Now(shutdown),
    },
    Keyword {
        words: &["set", "maxconn", "frontend"],
        usage: "<frontend> <value>",
        text: "change a frontend's maxconn setting",
        level: Level::Admin,
        run: Run::Now(set_maxconn),
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

fn change(call: &Call<'_>, frontend: &Frontend, status: Status, failure: &str) -> Answer {
    let before = frontend.status();
    frontend.set_status(status);
    match (call.ctx.apply_listeners)() {
        Ok(()) => Answer::done(),
        Err(reason) => {
            frontend.set_status(before);
            Answer::error(format!("{failure} {reason}"))
        }
    }
}

fn disable(call: &Call<'_>) -> Answer {
    let frontend = match find(call) {
        Ok(frontend) => frontend,
        Err(answer) => return answer,
    };
    match frontend.status() {
        Status::Stopped => Answer::error("Frontend was previously shut down, cannot disable."),
        Status::Paused => Answer::error("All sockets are already disabled."),
        Status::Open => change(call, &frontend, Status::Paused, "Failed to pause frontend:"),
    }
}

fn enable(call: &Call<'_>) -> Answer {
    let frontend = match find(call) {
        Ok(frontend) => frontend,
        Err(answer) => return answer,
    };
    match frontend.status() {
        Status::Stopped => Answer::error("Frontend was previously shut down, cannot enable."),
        Status::Open => Answer::error("All sockets are already enabled."),
        Status::Paused => change(call, &frontend, Status::Open, "Failed to resume frontend:"),
    }
}

fn shutdown(call: &Call<'_>) -> Answer {
    let frontend = match find(call) {
        Ok(frontend) => frontend,
        Err(answer) => return answer,
    };
    match frontend.status() {
        Status::Stopped => Answer::error("Frontend was already shut down."),
        _ => change(call, &frontend, Status::Stopped, "Failed to stop frontend:"),
    }
}

fn set_maxconn(call: &Call<'_>) -> Answer {
    let frontend = match find(call) {
        Ok(frontend) => frontend,
        Err(answer) => return answer,
    };
    match call.arg(1).parse::<u32>() {
        Ok(maxconn) => {
            frontend.set_maxconn(maxconn);
            Answer::done()
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

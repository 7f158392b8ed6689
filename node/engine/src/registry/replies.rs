//! Exactly once: the replies to recent commands, so that a retried command is not applied again.
//!
//! A node retries a command whose answer it did not get. It numbers its commands and says below
//! which number it has finished; replies above are kept, and a late copy of a finished command is
//! refused. Part of the replicated state, so that every node answers a retry alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CommandId, Reply};

/// Runs of one node's process that are remembered: a copy of a command from an earlier run can still
/// be on its way when the node is back.
const RUNS: usize = 4;

/// Replies kept per run. A node never has as many commands under way.
pub(super) const KEPT: usize = 8192;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replies {
    /// By node, then incarnation.
    nodes: BTreeMap<u64, BTreeMap<u64, Run>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// Revision of the last command of this run.
    last: u64,
    done_below: u64,
    replies: BTreeMap<u64, Reply>,
}

impl Replies {
    /// The reply to give without applying the command; `None` = it is new.
    pub(super) fn earlier(&mut self, id: &CommandId, done_below: u64) -> Option<Reply> {
        let run = self.nodes.entry(id.node).or_default().entry(id.incarnation).or_default();
        let earlier = match run.replies.get(&id.seq) {
            Some(reply) => Some(reply.clone()),
            None if id.seq < run.done_below => Some(Reply::refused("The command came too late.")),
            None => None,
        };
        // Never above its own number, whatever the sender says: it waits for this one.
        let done_below = done_below.min(id.seq);
        if done_below > run.done_below {
            run.done_below = done_below;
            run.replies = run.replies.split_off(&done_below);
        }
        earlier
    }

    /// Keeps the reply to a command that was applied as `revision`.
    pub(super) fn remember(&mut self, id: &CommandId, reply: &Reply, revision: u64) {
        let runs = self.nodes.entry(id.node).or_default();
        let run = runs.entry(id.incarnation).or_default();
        run.last = revision;
        run.replies.insert(id.seq, reply.clone());
        while run.replies.len() > KEPT {
            if let Some((seq, _)) = run.replies.pop_first() {
                run.done_below = run.done_below.max(seq + 1);
            }
        }
        while runs.len() > RUNS {
            let oldest = runs.iter().min_by_key(|(_, run)| run.last).map(|(incarnation, _)| *incarnation);
            if let Some(oldest) = oldest {
                runs.remove(&oldest);
            }
        }
    }
}

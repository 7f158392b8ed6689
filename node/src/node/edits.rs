//! Carries the edits of maps and ACLs that rules ask for to the authority.
//!
//! One task. It takes what has gathered, leaves out what is so already, and proposes the rest, a batch
//! at a time: while one is under way, the next gathers. A batch that can't be agreed on is dropped,
//! with a warning; so is what found the queue full.

use std::sync::Arc;
use std::time::Duration;

use phalanx_config::pattern;
use phalanx_engine::pattern::{Asked, Edit, PatternSet};
use phalanx_engine::registry::patterns::{KeyChange, KeyEdit, PatternAction, PatternCommand};
use phalanx_engine::registry::{Command, Reply};
use phalanx_engine::state::State;

use tokio::time::Instant;

use crate::cli;

/// Edits in one command.
const BATCH: usize = 256;

/// Bytes of keys and values in one command, roughly: far below what the log takes.
const MAX_BYTES: usize = 24 << 10;

/// Least time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Runs until the process ends.
pub(super) async fn carry(state: Arc<State>, context: Arc<cli::Context>) {
    let (mut lost, mut losses) = (0, Losses::default());
    loop {
        let asked = std::future::poll_fn(|cx| state.pattern_edits().poll(cx));
        let asked = match losses.due {
            // What is still to be said is said, even if no more comes.
            Some(due) => tokio::time::timeout_at(due, asked).await.unwrap_or_default(),
            None => asked.await,
        };
        for (set, edits) in by_set(&state, asked) {
            for edits in pieces(edits) {
                let count = edits.len() as u64;
                let action = PatternAction::Edit { version: None, edits };
                let command = PatternCommand { set: set.identity().to_owned(), file: set.file(), action };
                match context.authority.propose(Command::Patterns(command)).await {
                    Ok(Reply::Ok | Reply::Text(_)) => {}
                    Ok(Reply::Refused(why)) | Err(why) => {
                        lost += count;
                        losses.reason = Some(why);
                    }
                }
            }
        }
        if let Some(warning) = losses.warning(lost + state.pattern_edits().dropped(), Instant::now()) {
            tracing::warn!("{warning}");
        }
    }
}

/// What is said of edits that were dropped, and when.
#[derive(Default)]
struct Losses {
    /// How many were told of.
    said: u64,
    last: Option<Instant>,
    /// When the next warning is due.
    due: Option<Instant>,
    /// Why edits were dropped last that were not told of yet.
    reason: Option<String>,
}

impl Losses {
    /// What to say now that so many were dropped in all.
    fn warning(&mut self, all: u64, now: Instant) -> Option<String> {
        self.due = None;
        let count = all.checked_sub(self.said).filter(|count| *count > 0)?;
        if let Some(due) = self.last.map(|last| last + WARN_EVERY).filter(|due| *due > now) {
            self.due = Some(due);
            return None;
        }
        (self.said, self.last) = (all, Some(now));
        let why = self.reason.take().unwrap_or_else(|| "more came than the cluster can agree on".to_owned());
        Some(format!("{count} changes of maps and ACLs that rules asked for were dropped: {why}"))
    }
}

/// The edits that change something, by set.
fn by_set(state: &State, asked: Vec<Asked>) -> Vec<(Arc<PatternSet>, Vec<KeyEdit>)> {
    let plan = state.plan();
    let mut sets: Vec<(Arc<PatternSet>, Vec<KeyEdit>)> = Vec::new();
    for ((name, key), edit) in asked {
        if sets.last().is_none_or(|(set, _)| set.identity() != &*name) {
            // It may be gone since.
            let Some(set) = plan.patterns.iter().find(|set| set.identity() == &*name) else { continue };
            sets.push((set.clone(), Vec::new()));
        }
        let Some((set, edits)) = sets.last_mut() else { continue };
        let now = set.values(&key);
        let change = match edit {
            Edit::SetMap(value) if now.iter().any(|v| v.as_deref() != Some(&*value)) || now.is_empty() => {
                KeyChange::Put(Some(value))
            }
            Edit::AddAcl if now.is_empty() => KeyChange::Put(None),
            Edit::Delete if !now.is_empty() => KeyChange::Forget,
            _ => continue,
        };
        let source = set.source();
        let fits = |usage: &phalanx_config::model::PatternUse| {
            pattern::check(usage.method, usage.ignore_case, &key).is_ok()
        };
        if source.uses.iter().all(fits) {
            edits.push(KeyEdit { file: set.in_file(&key), key, change });
        }
    }
    sets
}

fn pieces(edits: Vec<KeyEdit>) -> Vec<Vec<KeyEdit>> {
    let (mut pieces, mut size) = (Vec::<Vec<KeyEdit>>::new(), usize::MAX);
    for edit in edits {
        let value = if let KeyChange::Put(Some(value)) = &edit.change { value.len() } else { 0 };
        let more = edit.key.len() + value + edit.file.iter().flatten().map(String::len).sum::<usize>() + 64;
        size = size.saturating_add(more);
        match pieces.last_mut() {
            Some(piece) if size <= MAX_BYTES && piece.len() < BATCH => piece.push(edit),
            _ => {
                size = more;
                pieces.push(vec![edit]);
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_that_has_to_wait_keeps_its_reason() {
        let (mut losses, start) = (Losses::default(), Instant::now());
        assert_eq!(losses.warning(0, start), None);
        let first = losses.warning(3, start).unwrap();
        assert!(first.starts_with("3 changes") && first.ends_with("more came than the cluster can agree on"));
        losses.reason = Some("no quorum".into());
        assert_eq!(losses.warning(5, start + WARN_EVERY / 2), None);
        assert_eq!(losses.due, Some(start + WARN_EVERY));
        // Others were dropped since, of a full queue.
        let second = losses.warning(6, start + WARN_EVERY).unwrap();
        assert!(second.starts_with("3 changes") && second.ends_with("no quorum"), "{second}");
        assert_eq!((losses.warning(6, start + WARN_EVERY * 3), losses.due), (None, None));
    }
}

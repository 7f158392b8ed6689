//! HAProxy's configuration language: text to a checked [`Config`], or positioned diagnostics.
//!
//! [`parse`] takes the bytes of the files and an [`Env`] and gives an [`Outcome`]. Pure: no file is
//! opened and no name is resolved here except through what the caller passes in. The way of a line:
//! `words` cuts it, `parser` finds its entry in the tables of `keywords`, which fills in a `draft`;
//! `finish` checks the whole and makes the [`Config`] of it.

mod acl;
mod condition;
mod diagnostic;
mod draft;
mod env;
mod expr;
mod finish;
mod format;
mod keyword;
mod keywords;
mod known;
mod line;
pub mod model;
mod options;
mod parser;
pub mod pattern;
mod section;
mod value;
mod words;

pub use diagnostic::{Diagnostic, Severity};
pub use env::{Env, Source, StaticEnv};
pub use expr::vocabulary;
pub use keyword::{Keyword, keywords};
pub use keywords::server::server_from_args;
pub use model::*;
pub use options::{OptionDoc, option_keywords};
pub use parser::parse;

/// What became of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The configuration; `None` when there is an alert among the diagnostics.
    pub config: Option<Config>,
    /// Everything there is to say: line by line, then what concerns several lines.
    pub diagnostics: Vec<Diagnostic>,
}

/// Evaluates a condition as `.if` and `-cc` have it; its environment variables are expanded already.
///
/// # Errors
/// What is wrong with its text.
pub fn evaluate_condition(text: &str, env: &dyn Env) -> Result<bool, String> {
    condition::evaluate(text, &|name| env.var(name).is_some())
}

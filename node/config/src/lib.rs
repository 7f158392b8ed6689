//! HAProxy's configuration language: text to a checked [`Config`], or positioned diagnostics.
//!
//! Pure: no file is opened and no name is resolved here except through what the caller passes in.

mod diagnostic;
mod env;
pub mod model;
mod parser;
mod words;

pub use diagnostic::{Diagnostic, Severity};
pub use env::{Env, Source, StaticEnv};
pub use model::*;
pub use parser::parse;

/// What became of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The configuration; `None` when there is an alert among the diagnostics.
    pub config: Option<Config>,
    /// Everything there is to say, in order of the text.
    pub diagnostics: Vec<Diagnostic>,
}

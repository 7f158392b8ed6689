//! HAProxy's configuration language: text to a checked [`Config`], or positioned diagnostics.
//!
//! Pure: no file is opened and no name is resolved here except through what the caller passes in.

pub mod model;

pub use model::*;

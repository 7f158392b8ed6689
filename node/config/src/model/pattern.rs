//! What ACLs and maps look samples up in.

use std::sync::Arc;

use crate::pattern::{Method, Output};

/// A set of patterns, or of keys with values: of a file, or of an ACL that lists them itself.
#[derive(Clone, Debug, PartialEq)]
pub struct PatternSource {
    /// The number that the Runtime API knows it by.
    pub id: u32,
    /// The file.
    pub file: Option<String>,
    /// What it is known by beyond this configuration: the file's name, or section and ACL.
    pub identity: String,
    /// Where it is used, as `show acl` has it.
    pub description: String,
    /// Whether entries have values.
    pub is_map: bool,
    /// In the file's order.
    pub entries: Arc<Vec<PatternEntry>>,
    /// How it is used, in order of appearance.
    pub uses: Vec<PatternUse>,
}

/// One entry of a file, or one pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternEntry {
    /// The pattern.
    pub key: Box<str>,
    /// What a map gives for it.
    pub value: Option<Box<str>>,
    /// Line of the file.
    pub line: u32,
}

/// How an ACL or a map uses a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternUse {
    /// Index in [`Config::patterns`](super::Config::patterns).
    pub set: usize,
    /// How samples are compared.
    pub method: Method,
    /// `-i`.
    pub ignore_case: bool,
    /// What a map converts values to; `None` for ACLs.
    pub output: Option<Output>,
}

//! Drives the parse: file after file, line after line, word lists to keywords.

use crate::diagnostic::{Diagnostic, Severity};
use crate::{Env, Outcome, Source, words};

/// Reads configuration files, in order, into a checked configuration.
pub fn parse(sources: &[Source], env: &dyn Env) -> Outcome {
    let mut diagnostics = Vec::new();
    for source in sources {
        for (index, line) in source.text.split(|&b| b == b'\n').enumerate() {
            let (at, word, message) = match words::split(line, &|name| env.var(name)) {
                Err(fault) => (fault.at, None, fault.message),
                Ok(words) => match words.into_iter().next() {
                    None => continue,
                    Some(word) => {
                        (word.at, Some(word.text.clone()), format!("unknown keyword '{}'", word.text))
                    }
                },
            };
            let text = String::from_utf8_lossy(line).into_owned();
            diagnostics.push(Diagnostic {
                severity: Severity::Alert,
                file: source.name.clone(),
                line: index as u32 + 1,
                column: String::from_utf8_lossy(&line[..at.min(line.len())]).chars().count() as u32 + 1,
                word,
                message,
                hint: None,
                excerpt: Some(text),
            });
        }
    }
    Outcome { config: None, diagnostics }
}

//! One line as a keyword sees it: its arguments, and how to complain about one of them.

use crate::words::Word;

/// A complaint about a line; the parser adds file, line and severity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Byte offset in the line, when one place is at fault.
    pub(crate) at: Option<usize>,
    /// The offending word.
    pub(crate) word: Option<String>,
    /// What is wrong.
    pub(crate) message: String,
    /// What would be accepted.
    pub(crate) hint: Option<String>,
}

impl Fault {
    /// A complaint about one word.
    pub(crate) fn about(word: &Word, message: impl Into<String>) -> Fault {
        let text = word.text.clone();
        Fault { at: Some(word.at), word: Some(text), message: message.into(), hint: None }
    }

    /// Adds what would be accepted.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Fault {
        self.hint = Some(hint.into());
        self
    }
}

/// Whether `no` or `default` stood before a keyword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polarity {
    /// Neither.
    Set,
    /// `no`.
    No,
    /// `default`.
    Default,
}

/// The words of a line that begin with a known keyword.
pub(crate) struct Args<'a> {
    /// Name of the keyword, for messages.
    pub(crate) name: &'static str,
    /// Whether it is negated.
    pub(crate) polarity: Polarity,
    /// The keyword's own words; never empty.
    pub(crate) own: &'a [Word],
    /// What follows them.
    pub(crate) words: &'a [Word],
}

impl<'a> Args<'a> {
    /// An argument's text; empty when missing.
    pub(crate) fn text(&self, index: usize) -> &'a str {
        self.words.get(index).map_or("", |word| word.text.as_str())
    }

    /// A complaint about an argument, or about the keyword if there is no such argument.
    pub(crate) fn fault(&self, index: usize, message: impl Into<String>) -> Fault {
        match self.words.get(index).or(self.own.last()) {
            Some(word) => Fault::about(word, message),
            None => Fault { message: message.into(), ..Fault::default() },
        }
    }

    /// A complaint about an argument that begins with the keyword's name.
    pub(crate) fn named(&self, index: usize, message: impl AsRef<str>) -> Fault {
        self.fault(index, format!("'{}' {}", self.name, message.as_ref()))
    }
}

//! What the parser has to say about a configuration: [`Diagnostic`]s with a position.
//!
//! They are collected, never printed: the caller renders them in HAProxy's form with its process id
//! and adds the closing `Fatal errors found in configuration.` itself.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Notice,
    /// Accepted, but probably not what was meant.
    Warning,
    /// The configuration cannot be used.
    Alert,
}

impl Severity {
    /// The tag in front of a rendered line, padded as HAProxy pads it.
    fn tag(self) -> &'static str {
        match self {
            Severity::Notice => "[NOTICE]  ",
            Severity::Warning => "[WARNING] ",
            Severity::Alert => "[ALERT]   ",
        }
    }
}

/// One message about one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as its [`crate::Source`] names it; empty when it concerns no file.
    pub file: String,
    /// Line from 1; 0 when it concerns no line.
    pub line: u32,
    /// Column in characters from 1; 0 when it concerns the whole line.
    pub column: u32,
    /// The offending word.
    pub word: Option<String>,
    /// What is wrong, naming the object.
    pub message: String,
    /// What would be accepted.
    pub hint: Option<String>,
    /// The source line, when the place in it matters.
    pub excerpt: Option<String>,
}

/// Longest source line that is quoted below a message.
const EXCERPT_MAX: usize = 200;

impl Diagnostic {
    /// HAProxy's form of the message: severity, process id and place, then the text, then, where a
    /// word is at fault, the line with a caret below the word. No line feed at the end.
    pub fn render(&self, pid: u32) -> String {
        use fmt::Write;
        let mut out = format!("{} ({pid}) : config : ", self.severity.tag());
        if self.line > 0 {
            let _ = write!(out, "parsing [{}:{}] : ", self.file, self.line);
        }
        out.push_str(&self.message);
        if let Some(hint) = &self.hint {
            let _ = write!(out, "; {hint}");
        }
        if let (Some(excerpt), true) = (&self.excerpt, self.column > 0)
            && excerpt.len() <= EXCERPT_MAX
        {
            // Tabs are copied so that the caret lines up whatever the reader's tab width is.
            let before = excerpt.chars().take(self.column as usize - 1);
            let pad: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let _ = write!(out, "\n  {excerpt}\n  {pad}^");
        }
        out
    }
}

impl fmt::Display for Diagnostic {
    /// `severity file:line:column: message; hint`, without a process id: for tests and tools.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Alert => "alert",
        };
        write!(f, "{severity}")?;
        if self.line > 0 {
            write!(f, " {}:{}:{}", self.file, self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

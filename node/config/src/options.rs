//! Options that follow a keyword on its line, as those of `bind`, `server` and `stats socket`: a
//! table of their own, read the same way for all.

use crate::known::{self, Names};
use crate::line::Fault;
use crate::words::Word;
use crate::{Env, keywords};

/// One option of a line that builds a `T`.
pub(crate) struct OptionKeyword<T> {
    pub(crate) name: &'static str,
    /// Its argument; empty when it has none. `<argument> [word]` may be followed by that very word.
    pub(crate) usage: &'static str,
    pub(crate) doc: &'static str,
    /// Takes the argument, or an empty text. An error is the tail of `'name' …`.
    pub(crate) apply: fn(&mut T, &str, &dyn Env) -> Result<(), String>,
}

/// An option for the reference.
pub struct OptionDoc {
    /// The keyword that it may follow.
    pub of: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its argument; empty when it has none.
    pub usage: &'static str,
    /// One sentence.
    pub doc: &'static str,
}

/// Every option of `bind`, `server` and `stats socket`: the reference is made from it.
pub fn option_keywords() -> impl Iterator<Item = OptionDoc> {
    fn docs<T>(of: &'static str, table: &'static [OptionKeyword<T>]) -> impl Iterator<Item = OptionDoc> {
        table.iter().map(move |o| OptionDoc { of, name: o.name, usage: o.usage, doc: o.doc })
    }
    docs("bind", keywords::bind::OPTIONS)
        .chain(docs("server", keywords::server::OPTIONS))
        .chain(docs("stats socket", keywords::global::SOCKET_OPTIONS))
}

/// Applies the options to `target`. `subject` begins every message; `names` are HAProxy's own.
/// Reads on after a bad argument, and stops at an unknown option, whose arguments nobody knows.
pub(crate) fn apply_all<T>(
    table: &[OptionKeyword<T>],
    words: &[Word],
    target: &mut T,
    env: &dyn Env,
    subject: &str,
    names: Names,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some(option) = table.iter().find(|option| option.name == word.text) else {
            faults.push(unknown(table, word, subject, names));
            break;
        };
        let argument = match option.usage {
            "" => None,
            usage => match words.next() {
                Some(argument) => Some(argument),
                None => {
                    let usage = usage.split_once(" [").map_or(usage, |(argument, _)| argument);
                    let message = format!("{subject} : '{}' expects {usage} as argument", option.name);
                    faults.push(Fault::about(word, message));
                    break;
                }
            },
        };
        let text = argument.map_or("", |argument| argument.text.as_str());
        let extra = option.usage.split_once(" [").map(|(_, word)| word.trim_end_matches(']'));
        let with_extra = words.next_if(|word| Some(word.text.as_str()) == extra);
        let text = with_extra.map_or(text.to_owned(), |word| format!("{text} {}", word.text));
        if let Err(message) = (option.apply)(target, &text, env) {
            let message = format!("{subject} : '{}' {message}", option.name);
            faults.push(Fault::about(argument.unwrap_or(word), message));
        }
    }
    faults
}

fn unknown<T>(table: &[OptionKeyword<T>], word: &Word, subject: &str, names: Names) -> Fault {
    if names.has(&word.text) {
        let message = format!("{subject} : {}", known::unsupported(&format!("'{}'", word.text)));
        return Fault::about(word, message);
    }
    let fault = Fault::about(word, format!("{subject} : unknown keyword '{}'", word.text));
    let candidates = table.iter().map(|option| option.name).chain(names.iter());
    match known::nearest(&word.text, candidates) {
        Some(near) => fault.hint(known::did_you_mean(near)),
        None => fault,
    }
}

//! ACLs and the conditions made of them (manual sections 7.1 and 7.2).

use crate::expr;
use crate::keywords::rules::Set;
use crate::known;
use crate::line::Fault;
use crate::model::{Acl, AclTest, Condition, Term, Type};
use crate::parser::Parser;
use crate::pattern::{self, Columns, FileUse, Inline, Method};
use crate::words::Word;

/// ACLs that need no declaration.
const PREDEFINED: &[(&str, &[&str])] = &[
    ("FALSE", &["always_false"]),
    ("HTTP", &["req.proto_http"]),
    ("HTTP_1.0", &["req.ver", "1.0"]),
    ("HTTP_1.1", &["req.ver", "1.1"]),
    ("HTTP_2.0", &["req.ver", "2.0"]),
    ("HTTP_3.0", &["req.ver", "3.0"]),
    ("HTTP_CONTENT", &["req.hdr_val(content-length)", "gt", "0"]),
    ("HTTP_URL_ABS", &["url_reg", "^[^/:]*://"]),
    ("HTTP_URL_SLASH", &["url_beg", "/"]),
    ("HTTP_URL_STAR", &["url", "*"]),
    ("LOCALHOST", &["src", "127.0.0.1/8", "::1"]),
    ("METH_CONNECT", &["method", "CONNECT"]),
    ("METH_DELETE", &["method", "DELETE"]),
    ("METH_GET", &["method", "GET", "HEAD"]),
    ("METH_HEAD", &["method", "HEAD"]),
    ("METH_OPTIONS", &["method", "OPTIONS"]),
    ("METH_POST", &["method", "POST"]),
    ("METH_PUT", &["method", "PUT"]),
    ("METH_TRACE", &["method", "TRACE"]),
    ("TRUE", &["always_true"]),
    ("WAIT_END", &["wait_end"]),
];

/// Declares one more test of the ACL that the first word names.
pub(crate) fn declare(parser: &mut Parser<'_>, words: &[Word]) -> Result<(), Fault> {
    let (name, rest) = words.split_first().expect("its arity is checked");
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if let Some(bad) = name.text.chars().find(|&c| !valid(c)) {
        let message = format!("character '{bad}' is not permitted in acl name '{}'", name.text);
        return Err(Fault::about(name, message));
    }
    if matches!(name.text.as_str(), "or" | "if" | "unless") {
        let message = format!("acl name '{}' is a word of conditions and could never be used", name.text);
        return Err(Fault::about(name, message));
    }
    let test = test(parser, rest, name)?;
    let acls = &mut parser.proxy().acls;
    match acls.iter_mut().find(|acl| acl.name == name.text) {
        Some(acl) => acl.tests.push(test),
        None => acls.push(Acl { name: name.text.clone(), tests: vec![test] }),
    }
    Ok(())
}

/// Parses what follows `if` or `unless`, the word before `words`.
pub(crate) fn condition(
    parser: &mut Parser<'_>,
    keyword: &Word,
    words: &[Word],
    set: Set,
) -> Result<Condition, Fault> {
    let mut any: Vec<Vec<Term>> = vec![Vec::new()];
    let mut last = keyword;
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let alternative = any.last_mut().expect("never empty");
        if matches!(word.text.as_str(), "or" | "||") {
            if alternative.is_empty() {
                return Err(Fault::about(word, format!("missing ACL before '{}'", word.text)));
            }
            any.push(Vec::new());
            last = word;
            continue;
        }
        last = word;
        let name = word.text.trim_start_matches('!');
        let mut negated = (word.text.len() - name.len()) % 2 == 1;
        let mut name = (name, word);
        while name.0.is_empty() {
            // `! acl` in two words.
            let Some(next) = rest.next() else {
                return Err(Fault::about(word, format!("missing ACL after '{}'", word.text)));
            };
            let text = next.text.trim_start_matches('!');
            negated ^= (next.text.len() - text.len()) % 2 == 1;
            name = (text, next);
        }
        let acl = if name.0 == "{" {
            let words = rest.as_slice();
            let Some(end) = words.iter().position(|word| word.text == "}") else {
                return Err(Fault::about(name.1, "missing closing '}' in condition"));
            };
            let test = test(parser, &words[..end], name.1)?;
            rest = words[end + 1..].iter();
            anonymous(parser, test)
        } else {
            named(parser, name.0, name.1)?
        };
        check_needs(parser, acl, set, word);
        any.last_mut().expect("never empty").push(Term { negated, acl });
    }
    if any.last().is_some_and(Vec::is_empty) {
        return Err(Fault::about(last, format!("missing ACL after '{}'", last.text)));
    }
    Ok(Condition { unless: keyword.text == "unless", any })
}

fn anonymous(parser: &mut Parser<'_>, test: AclTest) -> usize {
    let acls = &mut parser.proxy().acls;
    acls.push(Acl { name: String::new(), tests: vec![test] });
    acls.len() - 1
}

/// The ACL of this name, declared before or predefined.
fn named(parser: &mut Parser<'_>, name: &str, word: &Word) -> Result<usize, Fault> {
    if let Some(index) = parser.proxy().acls.iter().position(|acl| acl.name == name) {
        return Ok(index);
    }
    let Some((_, text)) = PREDEFINED.iter().find(|(known, _)| *known == name) else {
        let refused = parser.settings().refused.iter().any(|word| word == "acl");
        let declared =
            parser.proxy().acls.iter().map(|acl| acl.name.as_str()).filter(|name| !name.is_empty());
        let near = known::nearest(name, declared.chain(PREDEFINED.iter().map(|(name, _)| *name)));
        let fault = Fault::about(word, format!("no such ACL : '{name}'"));
        return Err(match near {
            Some(near) => fault.hint(known::did_you_mean(near)),
            None if refused => fault.hint("an 'acl' line of this section was refused"),
            None => fault.hint("an 'acl' line must come before the rules that use it"),
        });
    };
    let words: Vec<Word> = text.iter().map(|text| Word { text: (*text).to_owned(), at: word.at }).collect();
    let test = test(parser, &words, word)?;
    Ok(anonymous(parser, test))
}

/// An ACL that can never match where it is used is said to, as in HAProxy.
fn check_needs(parser: &mut Parser<'_>, acl: usize, set: Set, word: &Word) {
    let acl = &parser.proxy().acls[acl];
    let Some(test) = acl.tests.iter().find(|test| !set.offers(test.expr.fetch.needs())) else { return };
    let who = if acl.name.is_empty() { "anonymous acl".to_owned() } else { format!("acl '{}'", acl.name) };
    let message = format!(
        "{who} will never match because it uses keyword '{}' which is incompatible with '{}' rules",
        test.expr.text,
        set.name()
    );
    parser.warn(Fault::about(word, message));
}

/// Flags of an ACL line.
#[derive(Default)]
struct Flags {
    ignore_case: bool,
    no_dns: bool,
    two_columns: bool,
    method: Option<Method>,
    files: Vec<usize>,
    id: Option<u32>,
    /// `--`: what follows are patterns, also if there are none.
    ended: bool,
}

/// Parses `criterion [flags] [operator] pattern...`; `before` is the word before it.
fn test(parser: &mut Parser<'_>, words: &[Word], before: &Word) -> Result<AclTest, Fault> {
    let Some((first, rest)) = words.split_first() else {
        return Err(Fault::about(before, "missing fetch method in ACL expression"));
    };
    let (expr, implied) = criterion(parser, first)?;
    let (mut flags, taken) = flags(rest)?;
    flags.method = flags.method.or(implied);
    let method = match (flags.method, expr.output()) {
        (Some(method), _) => method,
        (None, Type::Bool) => Method::Bool,
        (None, Type::Int) => Method::Int,
        (None, Type::Ip) => Method::Ip,
        (None, Type::Str) => Method::Str,
        (None, Type::Bin) => Method::Bin,
        (None, Type::Any) => {
            let message = format!("matching method must be specified first (using '-m') for '{}'", expr.text);
            return Err(Fault::about(first, message));
        }
    };
    let wanted = match method {
        Method::Found => Type::Any,
        Method::Bool => Type::Bool,
        Method::Int => Type::Int,
        Method::Ip => Type::Ip,
        Method::Bin | Method::Len => Type::Bin,
        _ => Type::Str,
    };
    if !expr.output().casts_to(wanted) {
        let message = format!(
            "matching method '{}' cannot be used with '{}' ({})",
            method.name(),
            expr.text,
            expr.output()
        );
        return Err(Fault::about(first, message));
    }
    let mut patterns = Vec::new();
    let pos = parser.pos();
    for &index in &flags.files {
        let file = FileUse {
            name: &rest[index].text,
            columns: if flags.two_columns { Columns::Two } else { Columns::One },
            method,
            ignore_case: flags.ignore_case,
            output: None,
            resolve: !flags.no_dns,
        };
        let set = parser.pattern_file(&file).map_err(|err| Fault::about(&rest[index], err))?;
        patterns.push(set);
    }
    let texts = texts(method, &rest[taken..])?;
    if let (false, Some(extra)) = (method.takes_patterns(), rest.get(taken)) {
        let message =
            format!("matching method '{}' takes no pattern, but got '{}'", method.name(), extra.text);
        return Err(Fault::about(extra, message));
    }
    if method.takes_patterns() && texts.is_empty() && patterns.is_empty() && !flags.ended {
        let message = format!("acl '{}' has no pattern to match against, so it will never match", first.text);
        let hint = "'-m found' tells whether it exists, '-m bool' whether a number is not 0, '--' that none is meant";
        parser.warn(Fault::about(first, message).hint(hint));
    }
    // Also without a pattern: commands may add some.
    let scope = format!("{} '{}'", parser.section_name(), parser.proxy().name);
    let inline = Inline {
        scope: &scope,
        keyword: &first.text,
        patterns: &texts,
        method,
        ignore_case: flags.ignore_case,
        id: flags.id,
        resolve: !flags.no_dns,
    };
    let set = parser.inline_patterns(&inline).map_err(|err| {
        let at = rest[taken..].iter().find(|word| err.contains(&word.text)).unwrap_or(first);
        Fault::about(at, err)
    })?;
    patterns.push(set);
    Ok(AclTest { expr, method, patterns, pos })
}

/// The sample expression, and the method that its name implies (`path_beg`).
fn criterion(parser: &mut Parser<'_>, word: &Word) -> Result<(crate::model::Expr, Option<Method>), Fault> {
    let end = word.text.find(['(', ',']).unwrap_or(word.text.len());
    let (name, rest) = word.text.split_at(end);
    let (text, method) = match expr::ends_in_match(name) {
        Some((base, method)) => (format!("{base}{rest}"), Some(method)),
        None => (word.text.clone(), None),
    };
    let mut expr = parser.expr(&text).map_err(|err| Fault::about(word, err))?;
    expr.text.clone_from(&word.text);
    Ok((expr, method))
}

/// The flags, and how many words they take.
fn flags(words: &[Word]) -> Result<(Flags, usize), Fault> {
    let mut flags = Flags::default();
    let mut next = 0;
    while let Some(word) = words.get(next) {
        let argument = words.get(next + 1);
        let missing = || Fault::about(word, format!("missing argument after '{}'", word.text));
        next += 1;
        match word.text.as_str() {
            "-i" => flags.ignore_case = true,
            "-n" => flags.no_dns = true,
            "-M" => flags.two_columns = true,
            "-f" => {
                argument.ok_or_else(missing)?;
                flags.files.push(next);
                next += 1;
            }
            "-m" => {
                let argument = argument.ok_or_else(missing)?;
                let Some(method) = Method::named(&argument.text) else {
                    let message = format!("unknown matching method '{}'", argument.text);
                    let names: Vec<&str> = pattern::METHODS.iter().map(|(name, _)| *name).collect();
                    let hint = format!("expects {}", crate::parser::one_of(&names));
                    return Err(Fault::about(argument, message).hint(hint));
                };
                flags.method = Some(method);
                next += 1;
            }
            "-u" => {
                let argument = argument.ok_or_else(missing)?;
                let Ok(id) = argument.text.parse() else {
                    return Err(Fault::about(
                        argument,
                        format!("'-u' expects a number, but got '{}'", argument.text),
                    ));
                };
                flags.id = Some(id);
                next += 1;
            }
            "--" => {
                flags.ended = true;
                break;
            }
            _ => {
                next -= 1;
                break;
            }
        }
    }
    Ok((flags, next))
}

/// The patterns of a line, operators resolved.
fn texts(method: Method, words: &[Word]) -> Result<Vec<String>, Fault> {
    if !matches!(method, Method::Int | Method::Len) {
        return Ok(words.iter().map(|word| word.text.clone()).collect());
    }
    let mut operator: Option<&Word> = None;
    let mut texts = Vec::new();
    for word in words {
        if pattern::with_operator(&word.text, "0").is_some() {
            operator = Some(word);
            continue;
        }
        match operator.and_then(|operator| pattern::with_operator(&operator.text, &word.text)) {
            None => texts.push(word.text.clone()),
            Some(Ok(text)) => texts.push(text),
            Some(Err(err)) => return Err(Fault::about(word, err)),
        }
    }
    match operator {
        Some(operator) if texts.is_empty() => {
            Err(Fault::about(operator, format!("missing number after '{}'", operator.text)))
        }
        _ => Ok(texts),
    }
}

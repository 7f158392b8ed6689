//! A line of the Runtime API: commands between `;`, words between blanks, `\` before what is meant
//! literally, `<<` for a payload.

/// Most words of one command; more is junk.
const MAX_WORDS: usize = 256;

/// The commands of a line, each as its words. An empty command (`;;`, or `;` at the end) is none.
pub(super) fn split(line: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.get_or_insert_default().push(chars.next().unwrap_or('\\')),
            ';' => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    for words in &mut commands {
        words.truncate(MAX_WORDS);
    }
    commands
}

/// If the line announces a payload, the line without the mark, and what ends the payload.
pub(super) fn payload(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_end();
    let at = line.rfind("<<")?;
    let (head, end) = (&line[..at], &line[at + 2..]);
    // Glued to a word it is part of the word, and a pattern is one short word.
    let apart = head.is_empty() || head.ends_with([' ', '\t']);
    (apart && end.len() <= 64 && !end.contains([' ', '\t'])).then_some((head, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_split_into_commands_and_words() {
        for (line, want) in [
            ("show info", "show|info"),
            ("  show   info\t ", "show|info"),
            ("show info;show stat", "show|info/show|stat"),
            ("show info ; ;show stat;", "show|info/show|stat"),
            (r"set table t key a\;b", "set|table|t|key|a;b"),
            (r"echo a\ b \\ c\", r"echo|a b|\|c\"),
            (r"echo \ ", "echo| "),
            ("", ""),
            (" ; ;", ""),
        ] {
            let got: Vec<String> = split(line).iter().map(|words| words.join("|")).collect();
            assert_eq!(got.join("/"), want, "{line:?}");
        }
    }

    #[test]
    fn payload_is_marked_at_the_end_and_apart() {
        for (line, want) in [
            ("set table t <<", Some(("set table t ", ""))),
            ("set table t <<%EOF%", Some(("set table t ", "%EOF%"))),
            ("<<", Some(("", ""))),
            ("set table t<<", None),
            ("echo << x", None),
            ("show info", None),
        ] {
            assert_eq!(payload(line), want, "{line:?}");
        }
    }

    #[test]
    fn any_text_splits_without_panic() {
        let mut seed = 7u64;
        for _ in 0..5000 {
            let text: String = (0..40)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    ['a', ' ', ';', '\\', '<', 'é', '\t', '\0'][(seed >> 33) as usize % 8]
                })
                .collect();
            for words in split(&text) {
                assert!(!words.is_empty());
            }
            let _ = payload(&text);
        }
    }
}

//! Takes out of texts what differs from run to run: dates, ports, durations.

/// A log line: its date becomes `DATE`, the client's port `PORT`, each timer `n` unless it is -1; of the
/// connection counts the process's becomes `n`. Bytes become `B` unless there are none: HAProxy counts
/// them in a form of the message that is never on the wire.
pub(crate) fn log_line(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let mut groups = 0;
    let mut bytes = None;
    for (at, word) in words.iter_mut().enumerate() {
        if word.starts_with('[') && word.ends_with(']') && word.matches(':').count() == 3 {
            *word = "[DATE]".into();
        } else if is_numbers(word) {
            groups += 1;
            if groups == 1 {
                let timers = word.split('/').map(|t| if t == "-1" { "-1" } else { "n" });
                let timers = timers.collect::<Vec<_>>();
                bytes = Some(at + if timers.len() == 5 { 2 } else { 1 });
                *word = timers.join("/");
            } else if let Some((_, rest)) = word.split_once('/') {
                *word = format!("n/{rest}");
            }
        } else if let Some((ip, port)) = word.split_once(':')
            && ip.starts_with("127.")
            && port.parse::<u16>().is_ok()
        {
            *word = format!("{ip}:PORT");
        }
    }
    if let Some(word) = bytes.and_then(|at| words.get_mut(at))
        && word != "0"
    {
        *word = if word.starts_with('+') { "+B".into() } else { "B".into() };
    }
    let mut line = words.join(" ");
    // Where a long one is cut depends on the width of what was taken out.
    if line.len() > 900 {
        line.truncate(900);
    }
    line
}

/// `0/0/1/2/3` or `0/1/+2`.
fn is_numbers(word: &str) -> bool {
    let parts: Vec<_> = word.split('/').collect();
    matches!(parts.len(), 3 | 5) && parts.iter().all(|p| p.trim_start_matches('+').parse::<i64>().is_ok())
}

/// The dates in a persistence cookie, which change every four seconds.
pub(crate) fn cookie_dates(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("SRV=s1|").filter(|at| rest.len() > at + 18) {
        out += &rest[..at + 7];
        out += "DATES";
        rest = &rest[at + 18..];
    }
    out + rest
}

/// Two texts as one: lines that only the first has begin with `-`, those of the second with `+`.
pub(crate) fn difference(haproxy: &str, phalanx: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (haproxy.lines().collect(), phalanx.lines().collect());
    // Longest common subsequence; the texts are short.
    let mut longest = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i][j] = match a[i] == b[j] {
                true => longest[i + 1][j + 1] + 1,
                false => longest[i + 1][j].max(longest[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            out += &format!("  {}\n", a[i]);
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && longest[i + 1][j] >= longest[i][j + 1] {
            out += &format!("- {}\n", a[i]);
            i += 1;
        } else {
            out += &format!("+ {}\n", b[j]);
            j += 1;
        }
    }
    out
}

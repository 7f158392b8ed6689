use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use phalanx_config::pattern::{Pattern, parse};

use super::*;
use crate::registry::patterns::{KeyChange, KeyEdit, PatternAction, PatternCommand};
use crate::registry::{Command, Registry, Reply};

const NAME: &str = "file";

fn source(entries: &[(&str, Option<&str>)]) -> Arc<PatternSource> {
    let entry = |(key, value): &(&str, Option<&str>)| PatternEntry {
        key: (*key).into(),
        value: value.map(Into::into),
        line: 0,
    };
    Arc::new(PatternSource {
        id: 0,
        file: Some(NAME.into()),
        identity: NAME.into(),
        description: String::new(),
        is_map: entries.iter().any(|e| e.1.is_some()),
        entries: Arc::new(entries.iter().map(entry).collect()),
        uses: Vec::new(),
    })
}

fn set(keys: &[&str]) -> PatternSet {
    let entries: Vec<_> = keys.iter().map(|key| (*key, None)).collect();
    PatternSet::new(source(&entries), 7)
}

fn found(set: &PatternSet, method: &str, ignore_case: bool, input: Input<'_>) -> Option<String> {
    let matcher = set.matcher(Method::named(method).unwrap(), ignore_case);
    matcher.find(&input, |entry| entry.key().to_owned())
}

#[test]
fn texts_match_as_the_manual_says() {
    let path = "/images/png/logo/32x32.png";
    let url = "http://www1.dc-eu.example.com:80/blah";
    for (method, keys, text, want) in [
        ("str", &["a", "B"][..], "B", Some("B")),
        ("str", &["a", "B"], "b", None),
        ("beg", &["/a", "/abc", "/ab"], "/abcd", Some("/abc")),
        ("beg", &["", "x"], "/abcd", Some("")),
        ("end", &["png", ".png"], path, Some("png")),
        ("sub", &["logo", "png"], path, Some("logo")),
        ("dir", &["png"], path, Some("png")),
        ("dir", &["32x32"], path, None),
        ("dir", &["/images"], path, Some("/images")),
        ("dir", &["images/png"], path, Some("images/png")),
        ("dir", &["logo/32x32.png"], path, Some("logo/32x32.png")),
        ("dir", &["ng/logo"], path, None),
        ("dir", &["/"], path, None),
        ("dom", &["dc"], url, None),
        ("dom", &["eu"], url, None),
        ("dom", &[".www1"], url, Some(".www1")),
        ("dom", &[":www1:"], url, Some(":www1:")),
        ("dom", &["dc-eu.example"], url, Some("dc-eu.example")),
        ("dom", &["dc-eu.example:80"], url, None),
        ("dom", &["80"], url, Some("80")),
        ("dom", &["http"], url, Some("http")),
        ("dom", &["blah"], url, Some("blah")),
        ("reg", &["^x", "b.*h$"], url, Some("b.*h$")),
        ("bin", &["48656c"], "Hel", Some("48656c")),
        ("len", &["3:5", "4"], "abcd", Some("3:5")),
        ("int", &["80", "443:445"], "444", Some("443:445")),
        ("int", &["80"], "80x", None),
        ("ip", &["10.0.0.0/8"], "10.1.2.3", Some("10.0.0.0/8")),
        ("ip", &["10.0.0.0/8"], "nonsense", None),
    ] {
        let got = found(&set(keys), method, false, Input::Text(text.as_bytes()));
        assert_eq!(got.as_deref(), want, "{method} {keys:?} {text}");
    }
    for (method, keys, text, want) in [
        ("str", &["a", "B"][..], "b", Some("B")),
        ("beg", &["/A", "/ABC"], "/abcd", Some("/A")),
        ("end", &[".JPG"], "x.jpg", Some(".JPG")),
        ("sub", &["OGO"], "/Logo", Some("OGO")),
        ("dom", &["EXAMPLE"], "www.Example.com", Some("EXAMPLE")),
        ("reg", &["^AB"], "abc", Some("^AB")),
    ] {
        let got = found(&set(keys), method, true, Input::Text(text.as_bytes()));
        assert_eq!(got.as_deref(), want, "-i {method} {keys:?} {text}");
    }
}

#[test]
fn addresses_find_the_smallest_network_of_either_family() {
    let nets = set(&[
        "10.0.0.0/8",
        "10.1.0.0/16",
        "0.0.0.0/0",
        "2001:db8::/32",
        "::ffff:192.0.2.0/120",
        "172.16.0.3/255.240.0.255",
    ]);
    for (addr, want) in [
        ("10.1.2.3", "10.1.0.0/16"),
        ("10.2.2.3", "10.0.0.0/8"),
        ("1.1.1.1", "0.0.0.0/0"),
        ("2001:db8::7", "2001:db8::/32"),
        ("::ffff:10.1.2.3", "10.1.0.0/16"),
        ("2002:a01:203::", "10.1.0.0/16"),
        ("::10.2.0.1", "10.0.0.0/8"),
    ] {
        assert_eq!(
            found(&nets, "ip", false, Input::Ip(addr.parse().unwrap())).as_deref(),
            Some(want),
            "{addr}"
        );
    }
    assert_eq!(found(&nets, "ip", false, Input::Ip("2001:db9::7".parse().unwrap())), None);
    let some = set(&["::ffff:192.0.2.0/120", "172.16.0.3/255.240.0.255"]);
    for (addr, hit) in [("192.0.2.9", true), ("172.20.9.3", true), ("172.20.9.4", false)] {
        assert_eq!(found(&some, "ip", false, Input::Ip(addr.parse().unwrap())).is_some(), hit, "{addr}");
    }
}

#[test]
fn other_types_are_cast_to_what_the_method_wants() {
    let ip = Input::Ip("192.0.2.1".parse().unwrap());
    assert!(found(&set(&["192.0.2."]), "beg", false, ip).is_some());
    assert!(found(&set(&["9"]), "len", false, ip).is_some());
    assert!(found(&set(&["1"]), "int", false, Input::Bool(true)).is_some());
    assert!(found(&set(&["-12"]), "str", false, Input::Int(-12)).is_some());
    assert!(found(&set(&["192.0.2.1"]), "ip", false, Input::Int(1)).is_none());
    let none = set(&[]);
    for (input, is) in [(Input::Bool(false), false), (Input::Int(2), true), (Input::Text(b"0"), false)] {
        assert_eq!(none.matcher(Method::Bool, false).matches(&input), is);
        assert!(none.matcher(Method::Found, false).matches(&input));
    }
}

#[test]
fn a_value_takes_in_what_the_groups_matched() {
    let set = PatternSet::new(source(&[("^/([a-z]+)/([0-9]+)", Some(r"\2-\1\\x\9"))]), 7);
    let matcher = set.matcher(Method::Reg, false);
    assert_eq!(matcher.expand(&Input::Text(b"/ab/12/x")).unwrap(), br"12-ab\x");
    assert!(matcher.expand(&Input::Text(b"nope")).is_none());
}

/// What a text matches when every entry is tried in turn.
fn naive(entries: &[Arc<Entry>], method: Method, ignore_case: bool, input: &Input<'_>) -> Option<u64> {
    let mut space = Space { bytes: [0; 48], len: 0 };
    let text = space.text(input).to_vec();
    let fold = |t: &[u8]| if ignore_case { t.to_ascii_lowercase() } else { t.to_vec() };
    let subject = fold(&text);
    let word = |pattern: &[u8], delimiters: &[u8]| {
        let is = |b: &u8| delimiters.contains(b);
        let Some(from) = pattern.iter().position(|b| !is(b)) else { return false };
        let to = pattern.iter().rposition(|b| !is(b)).unwrap() + 1;
        let pattern = &pattern[from..to];
        (0..subject.len()).any(|at| {
            subject[at..].starts_with(pattern)
                && (at == 0 || is(&subject[at - 1]))
                && subject.get(at + pattern.len()).is_none_or(is)
        })
    };
    // The more specific one first, then the earlier one.
    let hit = |entry: &Arc<Entry>| -> Option<(u64, u64)> {
        let pattern = fold(entry.key().as_bytes());
        let parsed = parse(method, ignore_case, entry.key()).ok()?;
        let finer = |is: bool, specific: usize| is.then_some((u64::MAX - specific as u64, entry.order()));
        match (method, parsed) {
            (Method::Str, _) => finer(subject == pattern, 0),
            (Method::Beg, _) => {
                finer(subject.starts_with(&pattern), if ignore_case { 0 } else { pattern.len() })
            }
            (Method::End, _) => finer(subject.ends_with(&pattern), 0),
            (Method::Sub, _) => {
                let is = pattern.is_empty() || subject.windows(pattern.len()).any(|w| w == pattern);
                finer(is, 0)
            }
            (Method::Dir, _) => finer(word(&pattern, b"/"), 0),
            (Method::Dom, _) => finer(word(&pattern, b"/?.:"), 0),
            (Method::Int, Pattern::Range(from, to)) => {
                finer(number(&text).is_some_and(|n| n >= from && n <= to), 0)
            }
            (Method::Len, Pattern::Range(from, to)) => finer((from..=to).contains(&(text.len() as i64)), 0),
            (Method::Ip, Pattern::Net4(net, mask)) => match std::str::from_utf8(&text).ok()?.parse().ok()? {
                IpAddr::V4(v4) => finer(u32::from(v4) & mask == net, mask.count_ones() as usize),
                IpAddr::V6(_) => None,
            },
            _ => None,
        }
    };
    entries.iter().filter_map(hit).min().map(|(_, order)| order)
}

const KEYS: [&str; 14] = [
    "a",
    "A",
    "ab",
    "abc/",
    "/a",
    "b.a",
    "b",
    "",
    "3",
    "2:5",
    "10.0.0.0/8",
    "10.0.0.1",
    "10.0.0.0/30",
    "a.b",
];
const TEXTS: [&str; 12] =
    ["a", "ab", "abc/a", "/a/b", "b.a.b", "B", "", "3", "4", "10.0.0.1", "10.0.0.2", "10.9.9.9"];

fn command(rng: &mut SmallRng, set: &PatternSet) -> PatternCommand {
    let value = |rng: &mut SmallRng| format!("v{}", rng.random_range(0..3));
    let edit = |rng: &mut SmallRng| {
        let key = KEYS[rng.random_range(0..KEYS.len())].to_owned();
        let change = match rng.random_range(0..6) {
            0 | 1 => KeyChange::Add(Some(value(rng))),
            2 => KeyChange::Set(value(rng)),
            3 => KeyChange::Delete,
            4 => KeyChange::DeleteAt(rng.random_range(0..3)),
            _ => KeyChange::SetAt(rng.random_range(0..3), value(rng)),
        };
        KeyEdit { file: set.in_file(&key), key, change }
    };
    let version = if rng.random_range(0..4) == 0 { Some(rng.random_range(0..4)) } else { None };
    let action = match rng.random_range(0..24) {
        0 => PatternAction::Clear { version },
        1 | 2 => PatternAction::Prepare,
        3 => PatternAction::Commit { version: rng.random_range(0..5) },
        _ => PatternAction::Edit { version, edits: (0..rng.random_range(1..3)).map(|_| edit(rng)).collect() },
    };
    PatternCommand { set: NAME.into(), file: set.file(), action }
}

/// Commands and reloads at random: what the indexes find is what trying every entry finds, and a
/// node that starts now has the same set.
#[test]
fn sets_follow_commands_and_files() {
    for seed in 0..40 {
        // As a worker, which holds what it looked into, or as another thread.
        if seed == 20 {
            near::keep();
        }
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut registry = Registry::new();
        let file = |rng: &mut SmallRng| {
            let mut entries = Vec::new();
            for _ in 0..rng.random_range(0..8) {
                entries.push((
                    KEYS[rng.random_range(0..KEYS.len())],
                    Some(["v0", "v1"][rng.random_range(0..2)]),
                ));
            }
            source(&entries)
        };
        let mut said = file(&mut rng);
        let set = PatternSet::new(said.clone(), seed);
        let methods = [
            Method::Str,
            Method::Beg,
            Method::End,
            Method::Sub,
            Method::Dir,
            Method::Dom,
            Method::Int,
            Method::Len,
            Method::Ip,
        ];
        let matchers: Vec<_> =
            methods.iter().flat_map(|m| [false, true].map(|ci| set.matcher(*m, ci))).collect();
        for step in 0..60 {
            if rng.random_range(0..12) == 0 {
                said = file(&mut rng);
                set.load(&said, registry.patterns());
            } else {
                let command = command(&mut rng, &set);
                registry.apply(&Command::Patterns(command));
                set.follow(registry.patterns());
            }
            let entries: Vec<_> = set.entries().iter().map(|(_, e)| e.clone()).collect();
            for matcher in &matchers {
                for text in TEXTS {
                    let input = Input::Text(text.as_bytes());
                    let want = naive(&entries, matcher.method, matcher.ignore_case, &input);
                    let got = matcher.find(&input, Entry::order);
                    assert_eq!(got, want, "seed {seed} step {step} {matcher:?} {text}");
                    assert_eq!(matcher.matches(&input), want.is_some(), "seed {seed} step {step} {text}");
                    if let Ok(addr) = text.parse().map(Input::Ip) {
                        let is = matcher.find(&addr, |_| ()).is_some();
                        assert_eq!(matcher.matches(&addr), is, "seed {seed} step {step} {text}");
                    }
                }
            }
            let fresh = PatternSet::new(said.clone(), !seed);
            fresh.follow(registry.patterns());
            assert_eq!(fresh.digest(), set.digest(), "seed {seed} step {step}");
        }
    }
}

#[test]
fn a_reference_names_one_entry_of_several() {
    let set = PatternSet::new(source(&[("k", Some("1")), ("k", Some("2")), ("l", Some("3"))]), 7);
    let second = set.entries().iter().nth(1).unwrap().1.reference();
    let (entry, at) = set.by_reference(second).unwrap();
    assert_eq!((entry.key(), entry.value(), at), ("k", Some("2"), 1));
    assert!(set.by_reference(1).is_none());
    let mut registry = Registry::new();
    let edit = KeyEdit { key: "k".into(), file: set.in_file("k"), change: KeyChange::DeleteAt(at) };
    let action = PatternAction::Edit { version: None, edits: vec![edit] };
    let command = PatternCommand { set: NAME.into(), file: set.file(), action };
    assert_eq!(registry.apply(&Command::Patterns(command)), Reply::Ok);
    set.follow(registry.patterns());
    let left: Vec<_> = set.entries().iter().map(|(_, e)| e.value().unwrap().to_owned()).collect();
    assert_eq!(left, ["1", "3"]);
}

#[test]
fn who_keeps_an_index_sees_changes_and_can_let_go() {
    near::keep();
    let set = PatternSet::new(source(&[("k", Some("1"))]), 7);
    let matcher = set.matcher(Method::Str, false);
    let is = |key: &str| matcher.matches(&Input::Text(key.as_bytes()));
    assert!(is("k") && !is("l"));
    let held = Arc::downgrade(&matcher.index.load_full());
    set.load(&source(&[("l", Some("1"))]), Registry::new().patterns());
    assert_eq!(held.strong_count(), 1, "until the next look");
    assert!(is("l") && !is("k"));
    assert_eq!(held.strong_count(), 0);
    let inside = matcher.find(&Input::Text(b"l"), |_| is("l"));
    assert_eq!(inside, Some(true), "a look from within a look");
    let held = Arc::downgrade(&matcher.index.load_full());
    near::let_go();
    assert_eq!(held.strong_count(), 1, "only the matcher");
    assert!(is("l"));
}

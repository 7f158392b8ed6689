use super::*;

fn edit(key: &str, file: &[&str], change: KeyChange) -> KeyEdit {
    KeyEdit { key: key.into(), file: file.iter().map(|v| Some((*v).to_owned())).collect(), change }
}

fn one(file: u64, edit: KeyEdit) -> PatternCommand {
    PatternCommand { set: "f".into(), file, action: PatternAction::Edit { version: None, edits: vec![edit] } }
}

fn act(file: u64, action: PatternAction) -> PatternCommand {
    PatternCommand { set: "f".into(), file, action }
}

fn values(patterns: &Patterns, file: u64, key: &str) -> Option<Vec<String>> {
    let keys = match patterns.set("f")?.layer(file) {
        Layer::Alone(keys) | Layer::File(keys) => keys,
    };
    Some(keys.get(&key.to_owned())?.now.iter().map(|(_, v)| v.clone().unwrap_or_default()).collect())
}

fn digest_of(values: &[&str]) -> u64 {
    digest(values.iter().map(|v| Some(*v)))
}

#[test]
fn edits_start_from_the_file_and_undoing_them_leaves_nothing() {
    let mut p = Patterns::default();
    let add = KeyChange::Add(Some("x".into()));
    assert_eq!(p.apply(&one(1, edit("k", &["a"], add))), Reply::Ok);
    assert_eq!(values(&p, 1, "k").unwrap(), ["a", "x"]);
    assert_eq!(p.apply(&one(1, edit("k", &["a"], KeyChange::Set("y".into())))), Reply::Ok);
    assert_eq!(values(&p, 1, "k").unwrap(), ["y", "y"]);
    assert_eq!(p.apply(&one(1, edit("k", &["a"], KeyChange::DeleteAt(1)))), Reply::Ok);
    assert_eq!(p.apply(&one(1, edit("k", &["a"], KeyChange::DeleteAt(1)))), Reply::refused(NOT_FOUND));
    assert_eq!(p.apply(&one(1, edit("none", &[], KeyChange::Delete))), Reply::refused(NOT_FOUND));
    assert_eq!(p.apply(&one(1, edit("k", &["a"], KeyChange::SetAt(0, "a".into())))), Reply::Ok);
    assert_eq!((p.set("f").unwrap().edited.len(), p.bytes), (0, 0));
}

#[test]
fn the_file_wins_for_a_key_that_it_changed() {
    let mut p = Patterns::default();
    p.apply(&one(1, edit("k", &["a"], KeyChange::Set("run".into()))));
    p.apply(&one(1, edit("l", &["a"], KeyChange::Set("run".into()))));
    // The file changes `k` on a node that reloads, and back again.
    let (a, b) = (digest_of(&["a"]), digest_of(&["b"]));
    p.apply(&act(2, PatternAction::Rebase { from: 1, keys: vec![("k".into(), a, b)] }));
    assert_eq!(values(&p, 1, "k").unwrap(), ["run"], "nodes that have not reloaded go on");
    assert!(p.set("f").unwrap().edited.get(&"k".to_owned()).unwrap().left);
    p.apply(&act(1, PatternAction::Rebase { from: 2, keys: vec![("k".into(), b, a)] }));
    assert_eq!(values(&p, 1, "k"), None, "an old command does not come to life again");
    assert_eq!(values(&p, 1, "l").unwrap(), ["run"]);
}

#[test]
fn versions_are_prepared_and_committed_as_a_whole() {
    let mut p = Patterns::default();
    assert_eq!(p.apply(&act(1, PatternAction::Prepare)), Reply::Text("New version created: 1".into()));
    assert_eq!(p.apply(&act(1, PatternAction::Prepare)), Reply::Text("New version created: 2".into()));
    let add = |version, key: &str| {
        let edits = vec![edit(key, &["a"], KeyChange::Add(Some("n".into())))];
        act(1, PatternAction::Edit { version: Some(version), edits })
    };
    assert_eq!(p.apply(&add(1, "one")), Reply::Ok);
    assert_eq!(p.apply(&add(2, "two")), Reply::Ok);
    assert_eq!(p.apply(&add(3, "x")), Reply::refused(RANGE));
    p.apply(&one(1, edit("k", &["a"], KeyChange::Set("run".into()))));
    for version in [0, 3] {
        assert_eq!(p.apply(&act(1, PatternAction::Commit { version })), Reply::refused(RANGE));
    }
    assert_eq!(p.apply(&act(1, PatternAction::Commit { version: 2 })), Reply::Ok);
    let set = p.set("f").unwrap();
    assert_eq!((set.current, set.next, set.prepared.len()), (2, 2, 0));
    assert_eq!(values(&p, 1, "two").unwrap(), ["n"], "without what the file says");
    assert_eq!((values(&p, 1, "one"), values(&p, 1, "k")), (None, None));
    assert!(matches!(set.layer(2), Layer::File(keys) if keys.is_empty()), "another file counts");
    // The file changes and comes back.
    p.apply(&act(2, PatternAction::Rebase { from: 1, keys: Vec::new() }));
    assert_eq!(values(&p, 1, "two").unwrap(), ["n"]);
    p.apply(&act(1, PatternAction::Rebase { from: 2, keys: Vec::new() }));
    assert!(p.set("f").unwrap().replaced.is_none());
    assert_eq!(p.bytes, 0);
}

#[test]
fn what_commands_add_is_bounded() {
    let mut p = Patterns::default();
    let value = "v".repeat(60 << 10);
    let mut count = 0;
    let refused = loop {
        let add = KeyChange::Add(Some(value.clone()));
        match p.apply(&one(1, edit(&format!("k{count}"), &[], add))) {
            Reply::Ok => count += 1,
            reply => break reply,
        }
    };
    assert!(matches!(refused, Reply::Refused(why) if why.contains("put it into the file")));
    assert!(count > 1000 && p.bytes <= MAX_BYTES as u64);
    assert_eq!(p.apply(&act(1, PatternAction::Clear { version: None })), Reply::Ok);
    assert_eq!(p.bytes, 0);
    for _ in 0..MAX_PER_KEY {
        assert_eq!(p.apply(&one(1, edit("k", &[], KeyChange::Add(None)))), Reply::Ok);
    }
    assert!(matches!(p.apply(&one(1, edit("k", &[], KeyChange::Add(None)))), Reply::Refused(_)));
}

#[test]
fn a_reload_tells_what_the_file_changed_of_edited_keys() {
    let source = |entries: &[(&str, &str)]| {
        let entry = |(key, value): &(&str, &str)| PatternEntry {
            key: (*key).into(),
            value: Some((*value).into()),
            line: 0,
        };
        vec![Arc::new(PatternSource {
            id: 0,
            file: Some("f".into()),
            identity: "f".into(),
            description: String::new(),
            is_map: true,
            entries: Arc::new(entries.iter().map(entry).collect()),
            uses: Vec::new(),
        })]
    };
    let old = source(&[("k", "a"), ("l", "a"), ("m", "a")]);
    let new = source(&[("k", "b"), ("l", "a"), ("m", "b")]);
    let mut p = Patterns::default();
    for key in ["k", "l"] {
        p.apply(&one(1, edit(key, &["a"], KeyChange::Set("run".into()))));
    }
    p.apply(&one(1, edit("new", &[], KeyChange::Add(Some("run".into())))));
    assert!(p.rebase_commands(&old, &old).is_empty());
    let commands = p.rebase_commands(&old, &new);
    let [PatternCommand { action: PatternAction::Rebase { keys, .. }, .. }] = &commands[..] else {
        panic!("{commands:?}");
    };
    assert_eq!(keys, &[("k".to_owned(), digest_of(&["a"]), digest_of(&["b"]))]);
    commands.iter().for_each(|c| drop(p.apply(c)));
    let left: Vec<_> = p.set("f").unwrap().edited.iter().map(|(k, e)| (k.as_str(), e.left)).collect();
    assert_eq!(left, [("k", true), ("l", false), ("new", false)]);
}

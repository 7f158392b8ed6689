//! Commands on maps and ACLs. The replies are HAProxy 2.6's, references aside; the manual says why
//! where they are not.

use phalanx_config::Level;
use phalanx_config::pattern::{At, Columns, FileUse, Inline, Method, Output, Patterns};

use super::*;

fn sets(config: &mut phalanx_config::Config) {
    let mut env = StaticEnv::default();
    env.files
        .insert("/m.map".into(), b"key1 value one\nkey2 v2\nkey1 again\nkey3\n/a v1\n/abc v2\n".to_vec());
    env.files.insert("/ip.map".into(), b"10.0.0.0/8 1\n10.1.0.0/16 2\n".to_vec());
    env.files.insert("/l.acl".into(), b"10.0.0.1\n10.0.0.3\n".to_vec());
    let mut sets = Patterns::default();
    let at = |line| At { file: "h.cfg", line };
    let mut file = |name, columns, method, output, line| {
        let usage = FileUse { name, columns, method, ignore_case: false, output, resolve: true };
        sets.file(&env, &usage, at(line)).unwrap();
    };
    file("/l.acl", Columns::One, Method::Ip, None, 10);
    file("/m.map", Columns::Two, Method::Str, None, 15);
    file("/m.map", Columns::Two, Method::Beg, Some(Output::Str), 20);
    file("/ip.map", Columns::Two, Method::Ip, Some(Output::Int), 22);
    let texts = [".Jpg".to_owned()];
    let inline = Inline {
        scope: "frontend 'f'",
        keyword: "path",
        patterns: &texts,
        method: Method::End,
        ignore_case: true,
        id: Some(77),
        resolve: true,
    };
    sets.inline(&env, &inline, at(12)).unwrap();
    config.patterns = sets.finish();
}

/// With references made alike.
fn plain(answer: &str) -> String {
    let lines = answer.trim_end().lines().map(|line| match line.split_once(' ') {
        Some((reference, rest)) if reference.starts_with("0x") => format!("REF {rest}"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn maps_and_acls_are_shown_and_changed() {
    let api = Api::with(Level::Admin, sets);
    let listed = "# id (file) description\n\
         1 (/m.map) pattern loaded from file '/m.map' used by map at file 'h.cfg' line 15, by map at file 'h.cfg' \
         line 20. curr_ver=0 next_ver=0 entry_cnt=6\n\
         2 (/ip.map) pattern loaded from file '/ip.map' used by map at file 'h.cfg' line 22. curr_ver=0 next_ver=0 \
         entry_cnt=2";
    let add_map = "'add map' expects three parameters (map identifier, key and value) or one parameter (map \
         identifier) and a payload";
    let unknown = "Unknown map identifier. Please use #<id> or <file>.";
    for (asked, want) in [
        ("show map", listed),
        ("show map #1", "REF key1 value one\nREF key2 v2\nREF key1 again\nREF key3 \nREF /a v1\nREF /abc v2"),
        (
            "show map /m.map",
            "REF key1 value one\nREF key2 v2\nREF key1 again\nREF key3 \nREF /a v1\nREF /abc v2",
        ),
        ("show map #-1", unknown),
        ("show map #0", unknown),
        ("show acl #0", "REF 10.0.0.1\nREF 10.0.0.3"),
        ("show acl #77", "REF .Jpg"),
        (
            "get map #1 key1",
            "type=str, case=sensitive, found=yes, idx=tree, key=\"key1\", value=none\n\
             type=beg, case=sensitive, found=yes, idx=tree, key=\"key1\", value=\"value one\", type=\"str\"",
        ),
        (
            "get map /m.map /abcd",
            "type=str, case=sensitive, found=no\n\
             type=beg, case=sensitive, found=yes, idx=tree, key=\"/abc\", value=\"v2\", type=\"str\"",
        ),
        (
            "get map /ip.map 10.1.2.3",
            "type=ip, case=sensitive, found=yes, idx=tree, key=\"10.1.0.0/16\", value=\"2\", type=\"sint\"",
        ),
        ("get acl #77 a.JPG", "type=end, case=insensitive, match=yes, idx=list, pattern=\".Jpg\""),
        ("get acl #0 1.1.1.1", "type=ip, case=sensitive, match=no"),
        ("get map", "Missing map identifier and/or key."),
        ("get acl nope x", "Unknown ACL identifier. Please use #<id> or <file>."),
        ("add map #1 k", add_map),
        ("add map nope a b", unknown),
        ("add map #1 knew v new words", ""),
        ("add map #1 knew second", ""),
        ("set map #1 knew xx", ""),
        ("set map #1 knew", "'set map' expects three parameters: map identifier, key and value."),
        ("set map #1 nokey v", "entry not found."),
        ("set map #1 #0x1 v", "key or pattern not found."),
        (
            "show map #1",
            "REF key1 value one\nREF key2 v2\nREF key1 again\nREF key3 \nREF /a v1\nREF /abc v2\nREF knew xx\nREF knew xx",
        ),
        ("del map #1 knew", ""),
        ("del map #1 knew", "Key not found."),
        ("del map #1 #0x1", "Key not found."),
        ("del map #1", "This command expects two parameters: map identifier and key."),
        ("add acl #0 foo", "'foo' is not a valid IPv4 or IPv6 address."),
        ("add acl #0", "'add acl' expects two parameters: ACL identifier and pattern."),
        (
            "add acl /m.map x",
            "This ACL is shared with a map containing samples. You must use the command 'add map' to add values.",
        ),
        ("add acl #0 9.9.9.9", ""),
        ("get acl #0 9.9.9.9", "type=ip, case=sensitive, match=yes, idx=tree, pattern=\"9.9.9.9\""),
        ("add map #2 11.0.0.0/8 foo", "unable to parse 'foo'."),
        ("set map #2 10.0.0.0/8 foo", "unable to parse 'foo'."),
        ("del acl /m.map key2", ""),
        ("clear map", "Missing map identifier."),
        ("clear acl", "Missing ACL identifier."),
        ("clear acl /m.map", ""),
        ("show map /m.map", ""),
        ("add map #2 <<\n11.0.0.0/8 3\n12.0.0.0/8   4  \n", ""),
        (
            "add map #2 <<E\n13.0.0.0/8 5\nbad 6\n14.0.0.0/8 7\nE",
            "'bad' is not a valid IPv4 or IPv6 address.",
        ),
        ("add map #2 <<\n15.0.0.0/8\n", "Missing value for key '15.0.0.0/8'."),
        (
            "show map #2",
            "REF 10.0.0.0/8 1\nREF 10.1.0.0/16 2\nREF 11.0.0.0/8 3\nREF 12.0.0.0/8 4\nREF 13.0.0.0/8 5",
        ),
        ("add map #1 k\\ sp v", ""),
        ("show map #1", "REF k sp v"),
    ] {
        assert_eq!(plain(&api.ask(asked)), want, "{asked}");
    }
}

#[test]
fn versions_replace_the_whole_at_once() {
    let api = Api::with(Level::Operator, sets);
    for (asked, want) in [
        ("prepare map #1", "New version created: 1"),
        ("prepare acl /m.map", "New version created: 2"),
        ("prepare map #0", "Unknown map identifier. Please use #<id> or <file>."),
        ("add map @1 #1 a 1", ""),
        ("add map @2 #1 b 2", ""),
        ("add map @2 #1 c 3", ""),
        ("add map @3 #1 c 3", "Version number out of range."),
        ("add map @x #1 c 3", "Version number out of range."),
        ("add map @0 #1 now 1", ""),
        ("show map @2 #1", "REF b 2\nREF c 3"),
        ("show map @9 #1", ""),
        ("get map #1 b", "type=str, case=sensitive, found=no\ntype=beg, case=sensitive, found=no"),
        ("clear map @1 #1", ""),
        ("show map @1 #1", ""),
        ("commit map #1", "Missing version number."),
        ("commit map @0 #1", "Version number out of range."),
        ("commit map @9 #1", "Version number out of range."),
        ("commit map @1 nope", "Unknown map identifier. Please use #<id> or <file>."),
        ("commit map @2 #1", ""),
        ("show map #1", "REF b 2\nREF c 3"),
        ("show map @2 #1", "REF b 2\nREF c 3"),
        ("commit map @1 #1", "Version number out of range."),
    ] {
        assert_eq!(plain(&api.ask(asked)), want, "{asked}");
    }
    assert!(api.ask("show map").contains("curr_ver=2 next_ver=2 entry_cnt=2"));
}

#[test]
fn a_reference_means_one_entry() {
    let api = Api::with(Level::Operator, sets);
    let second = api.ask("show map #1").lines().nth(2).unwrap().split(' ').next().unwrap().to_owned();
    assert_eq!(api.ask(&format!("set map #1 #{second} other")), "\n");
    assert_eq!(plain(&api.ask("show map #1")).lines().nth(2).unwrap(), "REF key1 other");
    let second = api.ask("show map #1").lines().nth(2).unwrap().split(' ').next().unwrap().to_owned();
    assert_eq!(api.ask(&format!("del map #1 #{second}")), "\n");
    assert!(api.ask("show map #1").contains("key1 value one"));
    assert!(!api.ask("show map #1").contains("key1 other"));
}

#[test]
fn a_large_payload_is_proposed_in_pieces() {
    let api = Api::with(Level::Operator, sets);
    let lines: String = (0..3000).map(|n| format!("key-{n} some value {n}\n")).collect();
    assert_eq!(api.ask(&format!("add map #1 <<\n{lines}")), "\n");
    assert!(api.ask("show map").contains("entry_cnt=3006"));
    assert!(api.ask("get map #1 key-2999").contains("some value 2999"));
    assert!(api.ask("clear map #1\n").starts_with('\n'));
    assert!(api.ask("show map").contains("entry_cnt=0"));
}

#[test]
fn who_may_only_look_changes_nothing() {
    let api = Api::with(Level::User, sets);
    for command in [
        "add map #1 a b",
        "clear acl #0",
        "prepare map #1",
        "commit map @1 #1",
        "del map #1 a",
        "set map #1 a b",
    ] {
        assert_eq!(api.ask(command), "Permission denied\n\n", "{command}");
    }
    assert!(api.ask("show map #1").contains("key1"));
}

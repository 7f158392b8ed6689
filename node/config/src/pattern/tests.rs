use super::*;
use crate::StaticEnv;

#[test]
fn patterns_are_read_or_refused() {
    let shown = |pattern: Pattern| match pattern {
        Pattern::Range(from, to) => format!("{from}..{to}"),
        Pattern::Net4(addr, mask) => format!("{}/{}", Ipv4Addr::from(addr), Ipv4Addr::from(mask)),
        Pattern::Net6(addr, len) => format!("{}/{len}", Ipv6Addr::from(addr)),
        Pattern::Bytes(bytes) => format!("{bytes:?}"),
        Pattern::Text(text) => text,
        Pattern::Regex(regex) => regex.to_string(),
    };
    for (method, text, want) in [
        ("int", "5", Some("5..5")),
        ("int", "-5", Some("-5..-5")),
        ("int", "5:", Some("5..9223372036854775807")),
        ("int", ":5", Some("-9223372036854775808..5")),
        ("len", "3:5", Some("3..5")),
        ("int", "5:3", None),
        ("int", "x", None),
        ("int", "", None),
        ("int", "99999999999999999999", None),
        ("ip", "10.0.0.1", Some("10.0.0.1/255.255.255.255")),
        ("ip", "10.12", Some("10.0.0.12/255.255.255.255")),
        ("ip", "192.168.1/22", Some("192.168.0.0/255.255.252.0")),
        ("ip", "10.1.2.3/255.0.0.255", Some("10.0.0.3/255.0.0.255")),
        ("ip", "0.0.0.0/0", Some("0.0.0.0/0.0.0.0")),
        ("ip", "2001:db8::1/32", Some("2001:db8::/32")),
        ("ip", "::/0", Some("::/0")),
        ("ip", "10.0.0.1/33", None),
        ("ip", "10.0.0.1/+8", None),
        ("ip", "::1/129", None),
        ("ip", "12", None),
        ("ip", "1.2.3.4.5", None),
        ("ip", "example.com", None),
        ("bin", "48656c", Some("[72, 101, 108]")),
        ("bin", "486", None),
        ("bin", "4g", None),
        ("str", "a b", Some("a b")),
        ("reg", "^a.*b$", Some("^a.*b$")),
        ("reg", "a(b", None),
        ("reg", "(?=x)", None),
    ] {
        let method = Method::named(method).unwrap();
        assert_eq!(parse(method, false, text).ok().map(shown).as_deref(), want, "{method:?} {text}");
    }
}

#[test]
fn operators_become_ranges() {
    for (operator, text, want) in [
        ("eq", "5", Some("5")),
        ("eq", "5:7", Some("5:7")),
        ("eq", "5:", Some("5:")),
        ("ge", "5", Some("5:")),
        ("gt", "5", Some("6:")),
        ("le", "5", Some(":5")),
        ("lt", "0", Some(":-1")),
        ("lt", "5:7", None),
        ("gt", "9223372036854775807", None),
        ("gt", "x", None),
    ] {
        assert_eq!(with_operator(operator, text).unwrap().ok().as_deref(), want, "{operator} {text}");
    }
    assert!(with_operator("ne", "5").is_none());
    assert_eq!(dotted("3.1"), Some((3 << 16) + 1));
}

#[test]
fn files_are_cut_into_entries() {
    let text = b"# c\nkey1 value one  \n  key2\tv2\r\n\n \t \nkey3\n #x y\nlast v";
    let show = |columns| -> Vec<String> {
        let entries = entries(text, columns).unwrap();
        entries.iter().map(|e| format!("{}:{}={:?}", e.line, e.key, e.value.as_deref())).collect()
    };
    assert_eq!(
        show(Columns::Two),
        [
            "2:key1=Some(\"value one\")",
            "3:key2=Some(\"v2\")",
            "6:key3=Some(\"\")",
            "7:#x=Some(\"y\")",
            "8:last=Some(\"v\")"
        ]
    );
    assert_eq!(show(Columns::One)[0], "2:key1 value one  =None");
    assert!(entries(b"a\nb\xff", Columns::One).unwrap_err().contains("line 2"));
}

fn usage<'a>(name: &'a str, columns: Columns, method: Method, output: Option<Output>) -> FileUse<'a> {
    FileUse { name, columns, method, ignore_case: false, output, resolve: true }
}

#[test]
fn a_file_is_one_set_and_its_faults_are_named() {
    let mut env = StaticEnv::default();
    env.files.insert("m".into(), b"a 1\nb 2\n".to_vec());
    env.files.insert("bad".into(), b"10.0.0.1\n\nnowhere\nhost\n".to_vec());
    env.files.insert("ips".into(), b"host\n10.0.0.0/8\n".to_vec());
    env.hosts.insert("host".into(), "192.0.2.1".parse().unwrap());
    let at = At { file: "f.cfg", line: 7 };
    let mut sets = Patterns::default();
    let first = sets.file(&env, &usage("m", Columns::Two, Method::Str, Some(Output::Int)), at).unwrap();
    let second = sets.file(&env, &usage("m", Columns::Two, Method::Beg, None), at).unwrap();
    assert_eq!((first.set, second.set), (0, 0));
    let clash = sets.file(&env, &usage("m", Columns::One, Method::Str, None), at).unwrap_err();
    assert!(clash.contains("already used as two column file"), "{clash}");
    let value = sets.file(&env, &usage("m", Columns::Two, Method::Str, Some(Output::Ip)), at).unwrap_err();
    assert_eq!(value, "unable to parse '1' at line 1 of file 'm'");
    let bad = sets.file(&env, &usage("bad", Columns::One, Method::Ip, None), at).unwrap_err();
    assert_eq!(bad, "'nowhere' is not a valid IPv4 or IPv6 address at line 3 of file 'bad'");
    assert!(
        sets.file(&env, &usage("none", Columns::One, Method::Ip, None), at).unwrap_err().contains("none")
    );
    let mut sets = Patterns::default();
    sets.file(&env, &usage("ips", Columns::One, Method::Ip, None), at).unwrap();
    let texts = ["80".to_owned()];
    let inline = Inline {
        scope: "frontend 'f'",
        keyword: "dst_port",
        patterns: &texts,
        method: Method::Int,
        ignore_case: false,
        id: Some(0),
        resolve: true,
    };
    sets.inline(&env, &inline, at).unwrap();
    sets.inline(&env, &Inline { id: None, ..inline }, at).unwrap();
    assert!(sets.inline(&env, &inline, at).is_err(), "id 0 twice");
    let sets = sets.finish();
    let ids: Vec<_> = sets.iter().map(|s| (s.id, s.identity.as_str())).collect();
    assert_eq!(ids, [(1, "ips"), (0, "frontend 'f' acl 'dst_port' 1"), (2, "frontend 'f' acl 'dst_port' 2")]);
    assert_eq!(&*sets[0].entries[0].key, "192.0.2.1");
    assert_eq!(sets[1].description, "acl 'dst_port' file 'f.cfg' line 7");
}

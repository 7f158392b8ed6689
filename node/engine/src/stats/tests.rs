//! The shape of what tools parse.

use super::*;

#[test]
fn columns_are_haproxys_in_its_order() {
    let mut out = String::new();
    csv(&[], &mut out);
    assert_eq!(COLUMNS.len(), 119);
    assert!(out.starts_with("# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,"));
    assert!(out.ends_with(",reqbin,reqbout,resbin,resbout,cache_hint_hits,-,\n"));
    for (column, name, at) in
        [(Status, "status", 17), (Type, "type", 32), (Addr, "addr", 73), (Srid, "srid", 103)]
    {
        assert_eq!((COLUMNS[column as usize].name, column as usize), (name, at));
    }
}

fn sample() -> Row {
    let mut row = Row::new(Kind::Server, 4, 1, Mode::Http, "webservers", "s1");
    row.set(Stot, 2u64);
    row.set(Status, "UP");
    row.set(LastChk, "a \"b\", c\nd");
    row.values[Lastsess as usize] = Value::S32(-1);
    row
}

#[test]
fn csv_quotes_only_what_is_ambiguous_and_never_splits_a_row() {
    let mut out = String::new();
    csv(&[sample()], &mut out);
    let line = out.lines().nth(1).expect("one row");
    assert_eq!(out.lines().count(), 2);
    assert!(line.starts_with("webservers,s1,,,,,,2,,,,,,,,,,UP,"), "{line}");
    assert!(line.contains(",-1,\"a \"\"b\"\", c d\","), "{line}");
    assert!(line.ends_with(",-,"));
}

#[test]
fn typed_lines_name_object_field_and_nature() {
    let mut out = String::new();
    typed(&[sample()], false, &mut out);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "S.4.1.0.pxname.1:KNSV:str:webservers");
    assert!(lines.contains(&"S.4.1.7.stot.1:MCPV:u64:2"));
    assert!(lines.contains(&"S.4.1.55.lastsess.1:MAPV:s32:-1"));
    assert!(lines.contains(&"S.4.1.56.last_chk.1:MOPV:str:a \"b\", c d"));
}

#[test]
fn json_is_escaped_and_nested_as_haproxys() {
    let mut out = String::new();
    json(&[sample(), sample()], &mut out);
    assert!(out.starts_with(
        "[[{\"objType\":\"Server\",\"proxyId\":4,\"id\":1,\"field\":{\"pos\":0,\"name\":\"pxname\"},\
         \"processNum\":1,\"tags\":{\"origin\":\"Key\",\"nature\":\"Name\",\"scope\":\"Service\"},\
         \"value\":{\"type\":\"str\",\"value\":\"webservers\"}},"
    ));
    assert!(out.contains("\"a \\\"b\\\", c\\u000ad\""));
    assert_eq!(out.matches("],[").count(), 1);
}

//! Who gets the page, and in which form.

use super::*;

fn stats(auth: &[(&str, &str)]) -> Stats {
    Stats {
        uri: "/haproxy?stats".into(),
        realm: "Strictly \"Private\"\r\nX: y".into(),
        auth: auth.iter().map(|(u, p)| (u.to_string(), p.to_string())).collect(),
        refresh: None,
        hide_version: false,
        show_legends: false,
        show_node: None,
        scope: Vec::new(),
    }
}

#[test]
fn uri_is_matched_as_a_prefix_behind_the_authority() {
    let s = stats(&[]);
    for (uri, wanted) in [
        ("/haproxy?stats", true),
        ("/haproxy?stats;csv", true),
        ("http://lb.example:8080/haproxy?stats", true),
        ("/haproxy", false),
        ("/", false),
        ("*", false),
        ("", false),
        ("http://lb.example", false),
    ] {
        assert_eq!(matches(&s, uri.as_bytes()), wanted, "{uri}");
    }
}

#[test]
fn only_a_listed_user_with_its_password_gets_in() {
    let s = stats(&[("A_Username", "YourPassword"), ("Another_User", "passwd")]);
    let basic =
        |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text)).into_bytes();
    for (header, wanted) in [
        (None, false),
        (Some(basic("A_Username:YourPassword")), true),
        (Some(basic("Another_User:passwd")), true),
        (Some(b"bAsIc QV9Vc2VybmFtZTpZb3VyUGFzc3dvcmQ=".to_vec()), true),
        (Some(basic("A_Username:passwd")), false),
        (Some(basic("A_Username:YourPasswordX")), false),
        (Some(basic("")), false),
        (Some(b"Basic".to_vec()), false),
        (Some(b"Basic ====".to_vec()), false),
        (Some(b"Bearer QV9Vc2VybmFtZTpZb3VyUGFzc3dvcmQ=".to_vec()), false),
        (Some(vec![0xff; 300]), false),
    ] {
        assert_eq!(authorized(&s, header.as_deref()), wanted, "{header:?}");
    }
    assert!(authorized(&stats(&[]), None), "no `stats auth`: open to all");
}

#[test]
fn refusal_asks_for_credentials_and_the_realm_cannot_break_out() {
    let response = unauthorized(&stats(&[("a", "b")]));
    assert_eq!(response.status, 401);
    let realm = response.headers.iter().find(|(n, _)| *n == "www-authenticate").map(|(_, v)| v.as_str());
    assert_eq!(realm, Some("Basic realm=\"Strictly PrivateX: y\""));
    assert!(response.body.starts_with(b"<html><body><h1>401 Unauthorized</h1>"));
}

#[test]
fn flags_follow_the_uri() {
    let flags = |rest: &str| {
        let f = Flags::of(rest.as_bytes());
        (f.format == Format::Csv, f.format == Format::Json, f.norefresh, f.up, f.no_maint)
    };
    assert_eq!(flags(""), (false, false, false, false, false));
    assert_eq!(flags(";csv"), (true, false, false, false, false));
    assert_eq!(flags(";csv;norefresh"), (true, false, true, false, false));
    assert_eq!(flags(";json;up;no-maint"), (false, true, false, true, true));
    assert_eq!(flags(";csvx"), (false, false, false, false, false));
}

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

const CONFIG: &str = "
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen app
    bind 127.0.0.1:8080
    description 'a <b>\"bold\"</b> & plain'
    stats enable
    stats uri /st
    stats refresh 7s
    stats show-legends
    balance roundrobin
    cookie SRV insert
    server s1 127.0.0.1:9801 check cookie s<1>
backend other
    server x 127.0.0.1:9802
";

fn state(text: &str) -> std::sync::Arc<State> {
    use phalanx_config::{Source, StaticEnv, parse};
    use phalanx_engine::state::Setup;
    let outcome = parse(&[Source::new("test.cfg", text)], &StaticEnv::default());
    let config = outcome.config.unwrap_or_else(|| panic!("{:?}", outcome.diagnostics));
    let setup = Setup { workers: 1, seed: 1, default_maxconn: 100, node: "n<1>".into() };
    let tables = phalanx_engine::stick::Tables::new("n1", 1, 1);
    State::new(config, setup, tables, Now::default())
}

fn get(state: &State, rest: &str) -> (Response, String) {
    let plan = state.plan_owned();
    let proxy = &plan.proxy("app").expect("configured").config;
    let stats = proxy.stats.as_ref().expect("stats");
    let uri = format!("{}{rest}", stats.uri);
    let response = respond(state, stats, proxy, uri.as_bytes(), None, Now::default());
    let body = String::from_utf8(response.body.clone()).expect("utf-8");
    (response, body)
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
}

#[test]
fn page_shows_every_proxy_and_escapes_what_is_not_its_own() {
    use phalanx_engine::health::{CheckStatus, Report};
    let state = state(CONFIG);
    let backend = state.plan().backend("app").cloned().expect("configured");
    let server = backend.server("s1").expect("configured");
    let info = "<script>alert('x')</script>".to_owned();
    let report = Report { status: CheckStatus::L7Sts, code: Some(500), info, ..Report::default() };
    let _ = backend.check_result(&server, report, Now::default());
    let (response, body) = get(&state, "");
    assert_eq!((response.status, header(&response, "refresh")), (200, Some("7")));
    for part in [
        "a &lt;b&gt;&quot;bold&quot;&lt;/b&gt; &amp; plain",
        "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;",
        "cookie s&lt;1&gt;",
        "127.0.0.1:9801",
        "balance roundrobin",
        "L7STS/500 in 0ms",
        "DOWN",
        "<h2>other",
        "stop refreshing",
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
    assert!(!body.contains("<script") && !body.contains("<b>"));
}

#[test]
fn csv_and_json_carry_the_same_rows_as_the_runtime_api() {
    let state = state(CONFIG);
    let (response, body) = get(&state, ";csv;norefresh");
    assert_eq!(header(&response, "content-type"), Some("text/plain"));
    assert_eq!(header(&response, "refresh"), None);
    let names: Vec<&str> = body.lines().skip(1).map(|l| l.split(',').nth(1).unwrap_or("")).collect();
    assert_eq!(names, ["FRONTEND", "s1", "BACKEND", "x", "BACKEND"]);
    let (response, body) = get(&state, ";json");
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    assert!(body.starts_with("[[{\"objType\":\"Frontend\""));
}

#[test]
fn scope_and_legends_limit_what_is_told() {
    let text = CONFIG.replace("    stats show-legends\n", "    stats scope .\n    stats hide-version\n");
    let state = state(&text);
    let (_, body) = get(&state, ";csv");
    assert_eq!(body.lines().count(), 4, "the proxy with the page only: {body}");
    assert!(!body.contains("9801") && !body.contains("roundrobin"));
    let (_, body) = get(&state, "");
    assert!(!body.contains("<h2>other") && !body.contains(phalanx_engine::stats::info::VERSION));
}

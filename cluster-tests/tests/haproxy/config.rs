//! `-c`: what is a valid configuration, and the exit code.

use std::process::Command;

use crate::side::{BOTH, haproxy};

/// Lines of a file; both programs must agree on whether they are valid.
const FILES: &[&str] = &[
    "",
    "# nothing\n",
    "global\n",
    "nonsense\n",
    "global\n maxconn x\n",
    "global\n maxconn 10 20\n",
    "global\n maxconn 10\n maxconn 20\n",
    "frontend f\n bind 127.0.0.1:1\n timeout client 1s\n",
    "frontend f\n mode http\n bind :1\n",
    "frontend f\n bind 127.0.0.1:1\n default_backend nope\n",
    "frontend f\n bind 127.0.0.1:99999\n",
    "frontend f\n bind 127.0.0.1\n",
    "frontend f\nfrontend f\n",
    "backend b\nbackend b\n",
    "frontend b\n bind 127.0.0.1:1\nbackend b\n",
    "frontend\n",
    "frontend a b\n",
    "frontend a/b\n bind 127.0.0.1:1\n",
    "backend b\n server s 127.0.0.1:1\n server s 127.0.0.1:2\n",
    "backend b\n server s\n",
    "backend b\n server s 127.0.0.1:1 nonsense\n",
    "backend b\n server s 127.0.0.1:1 weight 257\n",
    "backend b\n server s 127.0.0.1:1 weight x\n",
    "backend b\n server s 127.0.0.1:1 check inter 0\n",
    "backend b\n server s 127.0.0.1:1 check inter 2w\n",
    "backend b\n server s 127.0.0.1:1 check rise 0\n",
    "backend b\n server s 127.0.0.1:1 id 0\n",
    "backend b\n server s 127.0.0.1:1 id 5\n server t 127.0.0.1:2 id 5\n",
    "backend b\n server s host.invalid:1\n",
    "backend b\n server s 127.0.0.1\n",
    "backend b\n server s :80\n",
    "backend b\n server s 127.0.0.1:+1\n",
    "backend b\n balance nonsense\n",
    "backend b\n balance roundrobin x\n",
    "backend b\n balance hdr\n",
    "backend b\n balance uri len x\n",
    "backend b\n hash-type nonsense\n",
    "backend b\n cookie\n",
    "backend b\n mode http\n cookie A nonsense\n",
    "backend b\n mode http\n cookie A insert rewrite\n",
    "backend b\n mode http\n cookie A insert indirect nocache\n",
    "backend b\n option nonsense\n",
    "backend b\n no option redispatch\n",
    "backend b\n option redispatch x\n",
    "backend b\n timeout connect\n",
    "backend b\n timeout connect 5x\n",
    "backend b\n timeout connect 5000000000s\n",
    "backend b\n timeout nonsense 5s\n",
    "backend b\n timeout server 1d\n",
    "backend b\n retries -1\n",
    "backend b\n retries x\n",
    "backend b\n stick-table type ip size 1k\n",
    "backend b\n stick-table type ip\n",
    "backend b\n stick-table type nonsense size 1k\n",
    "backend b\n stick-table type ip size 1k store nonsense\n",
    "backend b\n stick on src\n",
    "backend b\n stick-table type ip size 1k\n stick on src\n",
    "backend b\n stick-table type ip size 1k\n stick on nonsense\n",
    "backend b\n mode nonsense\n",
    "backend b\n mode health\n",
    "listen l\n bind 127.0.0.1:1\n server s 127.0.0.1:2\n",
    "listen l 127.0.0.1:1\n",
    "defaults\n mode http\ndefaults\n mode tcp\nbackend b\n",
    "defaults d\nbackend b from d\n",
    "backend b from nope\n",
    "defaults\n server s 127.0.0.1:1\n",
    "global\n log 127.0.0.1 local0\n",
    "global\n log 127.0.0.1 nonsense\n",
    "global\n log 127.0.0.1 local0 nonsense\n",
    "global\n log 127.0.0.1\n",
    "backend b\n log global\n",
    // Words.
    "backend \"b\"\n",
    "backend 'b'\n",
    "backend b\\ c\n",
    "backend \"b\n",
    "backend 'b\n",
    "backend b\\\n",
    "backend b # comment\n",
    "backend b\\#c\n",
    "backend \"${NOT_SET_ANYWHERE}\"\n",
    "backend \"x${NOT_SET_ANYWHERE}\"\n",
    "backend \"${HOME\"\n",
    "backend \"${NOT_SET_ANYWHERE-b}\"\n",
    "backend \"$\"\n",
    "backend b\\x41\n",
    "backend b\\xzz\n",
    "backend b\\q\n",
    ".if 1\nbackend b\n.endif\n",
    ".if 0\nnonsense\n.endif\n",
    ".if 1\nbackend b\n",
    ".else\n",
    ".endif\n",
    ".nonsense\n",
    ".notice hello\n",
    ".warning hello\n",
    ".alert hello\n",
    "backend b",
    "backend b\r\n",
    "\tbackend\tb\n",
];

/// Files that only one takes: what Phalanx's exit code is, and why.
const DIFFERS: &[(&str, i32, &str)] = &[
    ("global\n maxconn x\n", 1, NUMBERS),
    ("backend b\n server s 127.0.0.1:1 weight x\n", 1, NUMBERS),
    ("backend b\n option redispatch x\n", 1, NUMBERS),
    ("backend b\n retries -1\n", 1, NUMBERS),
    ("backend b\n retries x\n", 1, NUMBERS),
    ("backend b\n balance roundrobin x\n", 1, "nothing is ignored"),
    ("frontend b\n bind 127.0.0.1:1\nbackend b\n", 1, "newer HAProxy refuses it as well"),
    ("frontend a b\n", 1, "an alert is fatal"),
    ("listen l 127.0.0.1:1\n", 0, "an address there still opens a listener, with a warning"),
    ("backend b\n server s :80\n", 1, "not built yet"),
    ("backend b\n server s 127.0.0.1:+1\n", 1, "not built yet"),
    ("backend \"${NOT_SET_ANYWHERE-b}\"\n", 2, "manual section 2.3, default values"),
];
/// Why what is no number is refused.
const NUMBERS: &str = "HAProxy reads it as 0";

#[test]
fn the_same_files_are_valid() {
    if haproxy().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("haproxy.cfg");
    let mut failed = String::new();
    for text in FILES {
        std::fs::write(&path, text).expect("a configuration file");
        let [theirs, ours] = BOTH.map(|kind| {
            let out = Command::new(kind.program()).arg("-c").arg("-f").arg(&path).output().expect("it runs");
            (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
        });
        let differs = DIFFERS.iter().find(|d| d.0 == *text);
        let wanted = differs.map_or(theirs.0, |d| Some(d.1));
        if differs.is_some_and(|d| theirs.0 == Some(d.1)) {
            failed += &format!("{text:?}: HAProxy does the same\n");
        }
        if ours.0 != wanted {
            failed += &format!(
                "{text:?}\n  haproxy {:?} {}\n  phalanx {:?} {}\n",
                theirs.0, theirs.1, ours.0, ours.1
            );
        }
    }
    assert!(failed.is_empty(), "exit codes differ:\n{failed}");
}

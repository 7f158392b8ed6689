//! A disk that is full at run time costs a node its runtime commands, until there is room again, and
//! nothing else. Needs root, for a small file system to fill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cluster_tests::{Base, Demo, Node, get, until};

const SOON: Duration = Duration::from_secs(40);

/// A file system of some megabytes, gone with the test.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Disk {
        fs::create_dir(at).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(at).status();
        assert!(status.unwrap().success(), "tmpfs on {}", at.display());
        Disk(at.to_owned())
    }

    fn fill(&self) {
        let mut size = 1 << 20;
        let mut all = Vec::new();
        while size > 0 {
            // The write that fails has written what there was room for.
            all.resize(all.len() + size, 0u8);
            if fs::write(self.0.join("filler"), &all).is_err() {
                size /= 2;
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fills_up_costs_commands_and_only_as_long_as_it_is_full() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: mounting a file system needs root");
        return;
    }
    let base = Base::free();
    let _servers = Demo::start(&[("s1", base.at(1, 9801))], &[]);
    let web = base.at(11, 8080);
    let config = format!(
        "global\n    localpeer n1\n    stats socket DIR/sock mode 600 level admin\n\
         cluster prod\n    node n1 {}\n    data-dir DIR/disk/data\n\
         defaults\n    mode http\n    timeout connect 2s\n    timeout client 10s\n    timeout server 10s\n\
         listen web\n    bind {web}\n    server s1 {}\n",
        base.at(11, 7100),
        base.at(1, 9801),
    );
    let mut disk = None;
    let mut node = Node::start_with(&config, &web, |dir| {
        disk = Some(Disk::mount(&dir.join("disk")));
        Ok(())
    });
    let disk = disk.unwrap();
    let weight = |n: u32| node_answer(&node, &format!("set weight web/s1 {n}"));
    until("commands are taken", SOON, || weight(7).is_empty());

    disk.fill();
    let mut refused = String::new();
    until("commands are refused", SOON, || {
        refused = weight(9);
        refused.contains("No space left") || refused.contains("log")
    });
    println!("{refused}\n{}", node.api("show cluster"));
    let shown = node.api("show cluster");
    assert!(shown.contains("No space left"), "{shown}");
    assert_eq!(get(&web, "/", &[]).unwrap().status, 200);
    assert!(node.api("get weight web/s1").starts_with('7') || node.api("get weight web/s1").starts_with('9'));

    fs::remove_file(disk.0.join("filler")).unwrap();
    until("commands are taken again", SOON, || weight(5).is_empty());
    assert!(node.api("get weight web/s1").starts_with('5'));
    assert!(node.runs() && !node.output().contains("panicked"), "{}", node.output());
    println!("{}", node.output());
}

fn node_answer(node: &Node, command: &str) -> String {
    node.api(command).trim().to_owned()
}

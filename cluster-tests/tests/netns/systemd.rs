//! `deploy/systemd/phalanx.service` under a real systemd: the first process of namespaces of its own, over a
//! copy-on-write view of this machine's files. It starts, reloads, restarts a node that stands still or died,
//! and stops; the floating address is off whenever the node is not well.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::{phalanx, until};

/// On a machine with ten programs for each CPU each look takes a second.
const SOON: Duration = Duration::from_secs(90);

const CONFIG: &str = "\
global
    stats socket /run/phalanx/admin.sock mode 660 level admin
cluster c
    node n1 127.0.0.1:7100
    data-dir /var/lib/phalanx
    vip web 198.51.100.7/24 interface eth0 announce arp
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
listen web
    bind 198.51.100.7:80
    http-request return status 200 content-type text/plain string first
";

/// Run in the namespaces, with the directory of the test, the program, the unit and the configuration: makes
/// the root directory and becomes systemd.
const INIT: &str = r#"
set -e
dir=$1 program=$2 unit=$3 root=$1/root
mkdir "$root" "$dir/rw"
mount -t tmpfs none "$dir/rw"
mkdir "$dir/rw/upper" "$dir/rw/work"
mount -t overlay none -o "lowerdir=/,upperdir=$dir/rw/upper,workdir=$dir/rw/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 none "$root/run"
mount -t tmpfs -o mode=1777 none "$root/tmp"
mount -t tmpfs -o mode=755 none "$root/dev"
for d in null zero full random urandom tty; do
    : > "$root/dev/$d"
    mount --bind "/dev/$d" "$root/dev/$d"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs none "$root/dev/shm"
mkdir -p "$root/usr/local/sbin" "$root/etc/phalanx" "$root/etc/systemd/system" "$root/etc/default"
: > "$root/usr/local/sbin/phalanx"
mount --bind "$program" "$root/usr/local/sbin/phalanx"
cp "$unit" "$root/etc/systemd/system/phalanx.service"
cp "$dir/phalanx.cfg" "$root/etc/phalanx/phalanx.cfg"
echo 'OPTIONS=-L n1' > "$root/etc/default/phalanx"
printf '[Unit]\nRequires=basic.target\nWants=phalanx.service\nAfter=basic.target\n' \
    > "$root/etc/systemd/system/try.target"
: > "$root/etc/fstab"
: > "$root/etc/machine-id"
# The far end of the link is here, too, and is not to answer for what is not its own.
echo 1 > "$root/proc/sys/net/ipv4/conf/all/arp_ignore"
ip link set lo up
ip link add eth0 type veth peer name far
ip link set far up
ip addr add 198.51.100.1/24 dev eth0
ip link set eth0 up
cd "$root"
mkdir .old
pivot_root . .old
umount -l /.old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=try.target --show-status=no --log-target=journal
"#;

/// A machine that runs nothing but systemd and the unit.
struct Machine {
    outer: Child,
    init: u32,
    cgroup: PathBuf,
    dir: tempfile::TempDir,
    began: Instant,
}

impl Machine {
    /// # Errors
    /// Why it cannot be run here.
    fn start() -> Result<Machine, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("it needs root".into());
        }
        let programs = ["systemctl", "unshare", "nsenter", "ip", "nft", "curl", "pgrep"];
        let found = |name: &str| {
            ["/bin", "/sbin", "/usr/bin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(name).exists())
        };
        if let Some(missing) = programs.into_iter().find(|program| !found(program)) {
            return Err(format!("the program '{missing}' is missing"));
        }
        if !Path::new("/lib/systemd/systemd").exists() {
            return Err("/lib/systemd/systemd is missing".into());
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let cgroups = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|m| m[2] == "cgroup2");
        let cgroups = PathBuf::from(cgroups.ok_or("no cgroup2 is mounted")?[1]);
        let cgroup = cgroups.join(format!("phalanx-test-{}", std::process::id()));
        fs::create_dir(&cgroup).map_err(|e| format!("{}: {e}", cgroup.display()))?;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("phalanx.cfg"), CONFIG).unwrap();
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/phalanx.service");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let outer = Command::new("sh")
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&cgroup)
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation", "private"])
            .args(["--cgroup", "--net", "--uts", "--ipc", "sh", "-c", INIT, "init"])
            .args([dir.path(), phalanx(), &unit])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let mut machine = Machine { outer, init: 0, cgroup, dir, began: Instant::now() };
        let deadline = Instant::now() + SOON;
        while machine.init == 0 {
            let ended = machine.outer.try_wait().unwrap().is_some();
            if ended || Instant::now() > deadline {
                return Err(fs::read_to_string(machine.dir.path().join("log")).unwrap_or_default());
            }
            let pid = machine.outer.id();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let child = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
            let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            machine.init = child.filter(|&pid| name(pid).trim() == "systemd").unwrap_or(0);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(machine)
    }

    /// Runs a line of shell there; what it printed, and whether it went well.
    fn try_run(&self, line: &str) -> (String, bool) {
        let init = self.init.to_string();
        let out = Command::new("nsenter")
            .args(["-t", &init, "-p", "-m", "-C", "-n", "-u", "-i", "-r", "-w", "sh", "-c", line])
            .output()
            .unwrap();
        let text = [out.stdout, out.stderr].concat();
        (String::from_utf8_lossy(&text).trim().to_owned(), out.status.success())
    }

    fn run(&self, line: &str) -> String {
        self.try_run(line).0
    }

    /// A property of the unit, as `systemctl` calls it.
    fn property(&self, name: &str) -> String {
        self.run(&format!("systemctl show -p {name} --value phalanx"))
    }

    fn main_pid(&self) -> String {
        self.property("MainPID")
    }

    fn has_vip(&self) -> bool {
        self.run("ip -o addr show dev eth0").contains(" 198.51.100.7/")
    }

    fn answer(&self) -> String {
        self.run("curl -s --max-time 1 http://198.51.100.7/")
    }

    /// The unit runs, holds the address and answers so.
    fn well(&self, what: &str, answer: &str) {
        let well = || self.property("SubState") == "running" && self.has_vip() && self.answer() == answer;
        let deadline = Instant::now() + SOON;
        while !well() {
            assert!(Instant::now() < deadline, "{what}: {}", self.told());
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("{what}: after {:?}", self.began.elapsed());
    }

    fn told(&self) -> String {
        self.run("systemctl --no-pager -l status phalanx; journalctl --no-pager -n 60")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process ends with it, and with that one all others.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !remove(&self.cgroup) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Removes a control group and those below it.
fn remove(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    fs::remove_dir(cgroup).is_ok()
}

#[test]
fn the_unit_runs_under_a_real_systemd() {
    let machine = match Machine::start() {
        Ok(machine) => machine,
        Err(why) => return eprintln!("not run: {why}"),
    };
    machine.well("it starts", "first");
    let status = machine.run(&format!("cat /proc/{}/status", machine.main_pid()));
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN and CAP_NET_RAW, and no way to more.
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000003400", "{set}");
    }
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    assert!(!field("Uid").starts_with('0'), "{status}");
    // Nothing was missing for the address: the kernel holds the lease.
    assert!(machine.run("nft list tables").contains("phalanx_vip"), "{}", machine.told());
    until("it says what it does", SOON, || machine.property("StatusText").contains("floating IPs here: web"));

    // A reload, and one of a file with errors, which changes nothing.
    let pid = machine.main_pid();
    let config = "/etc/phalanx/phalanx.cfg";
    assert!(machine.try_run(&format!("sed -i 's/string first/string second/' {config}")).1);
    assert!(machine.try_run("systemctl reload phalanx").1, "{}", machine.told());
    machine.well("it reloads", "second");
    machine.run(&format!("cp {config} /run/good; echo nonsense >> {config}"));
    assert!(!machine.try_run("systemctl reload phalanx").1, "a file with errors is refused");
    machine.run(&format!("cp /run/good {config}"));
    machine.well("it goes on", "second");
    assert_eq!(machine.main_pid(), pid, "without a restart");

    // Without its guardian it starts another; that is no reason to restart.
    let guardian = machine.run("pgrep -f '[e]xe guardian'");
    assert!(machine.try_run(&format!("kill -KILL {guardian}")).1, "{guardian}");
    until("another guardian", SOON, || {
        let other = machine.run("pgrep -f '[e]xe guardian'");
        !other.is_empty() && other != guardian
    });
    assert_eq!(machine.main_pid(), pid);
    machine.well("it has another guardian", "second");

    // It dies: what is left of it takes the address off, and it starts again.
    assert!(machine.try_run(&format!("kill -KILL {pid}")).1);
    until("the address is off", SOON, || !machine.has_vip() || machine.main_pid() != pid);
    until("another process", SOON, || !["0", &pid].contains(&machine.main_pid().as_str()));
    machine.well("it is there again", "second");
    assert_eq!(machine.property("NRestarts"), "1", "{}", machine.told());

    // It stands still: the address is off long before the watchdog barks.
    let pid = machine.main_pid();
    let stopped = Instant::now();
    assert!(machine.try_run(&format!("kill -STOP {pid}")).1);
    until("the address is off", Duration::from_secs(9), || !machine.has_vip());
    until("another process", SOON, || !["0", &pid].contains(&machine.main_pid().as_str()));
    println!("restarted {:?} after it was stopped", stopped.elapsed());
    machine.well("the watchdog has restarted it", "second");
    assert_eq!(machine.property("NRestarts"), "2", "{}", machine.told());

    // It stops, and leaves nothing behind.
    assert!(machine.try_run("systemctl stop phalanx").1, "{}", machine.told());
    assert_eq!(machine.property("Result"), "success", "{}", machine.told());
    assert!(!machine.has_vip() && machine.run("pgrep phalanx").is_empty(), "{}", machine.told());
    assert!(!machine.run("nft list tables").contains("phalanx"), "{}", machine.told());
}

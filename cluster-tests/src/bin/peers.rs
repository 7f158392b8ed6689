//! Stick tables between two nodes: Phalanx beside Debian's HAProxy and its `peers` section.
//!
//! `cargo run --release -p cluster-tests --bin peers`. Both get the same requests, each of which tracks
//! three keys of one table (`type ip`, `store http_req_rate`) and is answered by the proxy itself. The
//! teacher is filled once; then rounds alternate, A B A B, each with a fresh learner: it is taught
//! everything while requests go on, then updates are timed from the request to the learner's Runtime
//! API, alone and under load, and CPU time is read. Where there are two CPUs the teacher has one to
//! itself; learner, clients and watchers share the other, and clients and watchers go first there: their
//! own waiting is not to be measured. Shown are medians with least and most, and beside each row that has
//! a target whether our median meets it. `cluster-tests/README.md` has the method and what came out.

use std::io::{IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use cluster_tests::bench::{Running, Spread, find};
use cluster_tests::{Base, phalanx};
use nix::sys::socket::sockopt::Timestamping;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, TimestampingFlag, Timestamps, recvmsg, setsockopt};
use serde_json::json;

/// Measures the replication of stick tables beside HAProxy's.
#[derive(Debug, Parser)]
struct Args {
    /// Entries to teach
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=8_000_000))]
    entries: u32,
    /// Rounds of each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Updates a second while busy
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    updates: u32,
    /// Fresh nodes to teach in a round, one after the other
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=50))]
    learners: u32,
    /// Only requests before and while nodes are taught: many rounds in little time
    #[arg(long)]
    teaching: bool,
    /// Another build of Phalanx in the place of HAProxy, to compare two in turn
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    /// Seconds of load for CPU time
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Write the figures here too
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("peers: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What is measured in a round, in the order of [`Round`]; of a round that only teaches the first
/// [`TEACHING`].
const FIGURES: [&str; 15] = [
    "teach: s from start to all entries",
    "teach: s from first to last entry",
    "teach: us CPU an entry, teacher",
    "teach: us CPU an entry, learner",
    "request p99 before, ms",
    "request p99 while teaching, ms",
    "as clients saw it, before, ms",
    "as clients saw it, while teaching, ms",
    "update to visible, quiet, p50 ms",
    "update to visible, quiet, p99 ms",
    "update to visible, busy, p50 ms",
    "update to visible, busy, p99 ms",
    "us CPU an update more at the sender",
    "us CPU an update at the receiver",
    "bytes an entry at the learner",
];

/// Figures that `--teaching` takes.
const TEACHING: usize = 8;

type Round = Vec<f64>;

/// What a figure of ours is to be at most.
#[derive(Clone, Copy)]
enum Target {
    /// So many times HAProxy's in the same run.
    OfTheirs(f64),
    /// So many times another figure of ours.
    OfOurs(&'static str, f64),
    /// So much.
    Plain(f64),
}

/// Targets of the rows that have one.
const TARGETS: [(&str, Target); 7] = [
    ("teach: s from start to all entries", Target::OfTheirs(1.0)),
    ("request p99 while teaching, ms", Target::OfOurs("request p99 before, ms", 1.5)),
    ("update to visible, quiet, p99 ms", Target::Plain(2.0)),
    ("update to visible, busy, p99 ms", Target::Plain(20.0)),
    ("us CPU an update more at the sender", Target::OfTheirs(1.0)),
    ("us CPU an update at the receiver", Target::OfTheirs(1.0)),
    ("bytes an entry at the learner", Target::OfTheirs(0.7)),
];

/// One row of what is shown.
struct Shown {
    what: &'static str,
    other: &'static str,
    ours: Spread,
    theirs: Spread,
}

impl Shown {
    /// What it is to be at most, and why so, if there is a target.
    fn limit(&self, all: &[Shown]) -> Option<(f64, String)> {
        let (_, target) = TARGETS.iter().find(|(what, _)| *what == self.what)?;
        Some(match target {
            Target::OfTheirs(times) => (self.theirs.median * times, format!("{times} x {}'s", self.other)),
            Target::OfOurs(other, times) => {
                let before = all.iter().find(|shown| shown.what == *other)?;
                (before.ours.median * times, format!("{times} x '{other}'"))
            }
            Target::Plain(value) => (*value, "given".to_string()),
        })
    }

    /// Prints the row, and whether the target is met; returns it for `--json`.
    fn print(&self, all: &[Shown]) -> serde_json::Value {
        let Shown { what, other, ours, theirs } = self;
        let ratio = ours.median / theirs.median;
        let limit = self.limit(all);
        let met = limit.as_ref().map(|(most, _)| ours.median <= *most);
        let verdict = match (&limit, met) {
            (Some((most, why)), Some(met)) => {
                format!("  {} (at most {most:.2}: {why})", if met { "met" } else { "MISSED" })
            }
            _ => String::new(),
        };
        println!("{what:<36} phalanx {ours}  {other} {theirs}  ratio {ratio:.2}{verdict}");
        json!({
            "what": what, "phalanx": ours.json(), *other: theirs.json(), "ratio": ratio,
            "target": limit.map(|(most, why)| json!({ "at_most": most, "why": why })), "met": met,
        })
    }
}

fn run(args: &Args) -> Result<(), String> {
    if args.beside.is_none() && find(HAPROXY).is_none() {
        return Err("needs the program 'haproxy': apt-get install haproxy".into());
    }
    let placed = place()?;
    if cfg!(debug_assertions) {
        eprintln!("peers: this is a debug build: the figures mean little, use --release");
    }
    let mut sides = [
        Side::new("phalanx", phalanx(), args, placed)?,
        match &args.beside {
            Some(other) => Side::new("other", other, args, placed)?,
            None => Side::new(HAPROXY, Path::new(HAPROXY), args, placed)?,
        },
    ];
    println!(
        "{} entries, {} rounds A B A B, busy = {} updates/s; nodes with nbthread 1; {}",
        args.entries,
        args.rounds,
        args.updates,
        if placed { "teacher and learner on a CPU each" } else { "all on whatever CPU" },
    );
    let mut memory = Vec::new();
    for side in &mut sides {
        memory.push(side.fill()?);
    }
    let mut rounds: [Vec<Round>; 2] = Default::default();
    for _ in 0..args.rounds {
        for (side, figures) in sides.iter_mut().zip(&mut rounds) {
            let round = if args.teaching { side.round_of_teaching() } else { side.round() };
            if args.teaching {
                side.learner = None;
            }
            figures.push(round.map_err(|e| format!("{}: {e}\n{}", side.name, side.output()))?);
        }
    }
    let [ours, theirs] = &rounds;
    let of = |rounds: &[Round], index: usize| Spread::of(rounds.iter().map(|f| f[index]));
    let other = sides[1].name;
    let row = |(index, &what)| Shown { what, other, ours: of(ours, index), theirs: of(theirs, index) };
    let taken = if args.teaching { TEACHING } else { FIGURES.len() };
    let mut all: Vec<Shown> = FIGURES[..taken].iter().enumerate().map(row).collect();
    let [ours, theirs] = [0, 1].map(|side: usize| Spread::of(std::iter::once(memory[side])));
    all.push(Shown { what: "bytes an entry at the teacher", other, ours, theirs });
    let results: Vec<_> = all.iter().map(|shown| shown.print(&all)).collect();
    let missed = results.iter().filter(|result| result["met"] == false).count();
    let targets = results.iter().filter(|result| !result["met"].is_null()).count();
    println!("{targets} targets, {missed} missed");
    if let Some(path) = &args.json {
        let text = json!({ "entries": args.entries, "rounds": args.rounds, "updates": args.updates, "results": results });
        std::fs::write(path, format!("{text:#}\n"))
            .map_err(|e| format!("cannot write '{}': {e}", path.display()))?;
    }
    Ok(())
}

/// CPUs of the teacher, and of all else.
const CPUS: [&str; 2] = ["0", "1"];
/// Set for the run of this program that has its place.
const PLACED: &str = "PEERS_PLACED";

/// Moves this process to the second CPU, where it goes before whatever else runs there; whether it is
/// there. Without two CPUs, or the right to do so, all run wherever the kernel puts them.
fn place() -> Result<bool, String> {
    if std::env::var_os(PLACED).is_some() {
        return Ok(true);
    }
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut moved = Command::new("taskset");
    moved.args(["-c", CPUS[1], "chrt", "--fifo", "1"]);
    let mut tried = Command::new("taskset");
    tried.args(["-c", CPUS[0], "taskset", "-c", CPUS[1], "chrt", "--fifo", "1", "true"]);
    let tried = tried.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!(
            "peers: needs two CPUs, 'taskset' and 'chrt' (and to be root) to keep teacher and learner apart"
        );
        return Ok(false);
    }
    moved.arg(own).args(std::env::args_os().skip(1)).env(PLACED, "1");
    Err(format!("cannot run taskset: {}", moved.exec()))
}

/// Two nodes of one product.
struct Side {
    name: &'static str,
    placed: bool,
    program: PathBuf,
    base: Base,
    dir: tempfile::TempDir,
    entries: u32,
    updates: u32,
    seconds: u64,
    learners: u32,
    teacher: Option<Running>,
    learner: Option<Running>,
    /// Bytes that an entry costs the learner.
    bytes: f64,
    /// Next key that nobody has asked for.
    fresh: u32,
}

/// The other side, and its program, unless `--beside` says another.
const HAPROXY: &str = "haproxy";
/// Keys that one request tracks.
const KEYS: u32 = 3;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Updates timed in a round, alone and under load.
const PROBES: u32 = 1000;

/// A fresh learner was taught everything.
struct Lesson {
    /// Seconds from its start and from its first entry, CPU time of teacher and learner by entry.
    figures: [f64; 4],
    /// When its first entry was seen.
    from: SystemTime,
    /// When all were there.
    to: SystemTime,
}

/// A request that was due at `at`, and how long it took, in milliseconds.
struct Timed {
    at: SystemTime,
    /// Until the teacher sent the answer; see [`Punctual`].
    teacher: f64,
    /// From when it was due until the client had the answer.
    client: f64,
}

impl Side {
    fn new(name: &'static str, program: &Path, args: &Args, placed: bool) -> Result<Side, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        Ok(Side {
            name,
            placed,
            program: program.to_owned(),
            base: Base::free(),
            dir,
            entries: args.entries,
            updates: args.updates,
            seconds: args.seconds,
            learners: args.learners,
            teacher: None,
            learner: None,
            bytes: 0.0,
            fresh: args.entries,
        })
    }

    fn start(&self, node: u8) -> Result<Running, String> {
        let dir = self.dir.path().join(format!("n{node}"));
        // A learner begins from nothing, its raft log included.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let shown = dir.display();
        let (a, b) = (self.base.at(11, 7100), self.base.at(12, 7100));
        let section = if self.name == HAPROXY {
            format!("peers bench\n    peer n1 {a}\n    peer n2 {b}\n")
        } else {
            format!("cluster bench\n    node n1 {a}\n    node n2 {b}\n    data-dir {shown}/data\n")
        };
        let text = format!(
            "global\n    nbthread 1\n    maxconn 1000\n    stats socket {shown}/sock mode 600 level admin\n{section}\
             defaults\n    mode http\n    timeout connect 5s\n    timeout client 600s\n    timeout server 60s\n\
             listen t\n    bind {}\n    http-request track-sc0 req.hdr(a) table t\n\
             \x20   http-request track-sc1 req.hdr(b) table t\n    http-request track-sc2 req.hdr(c) table t\n\
             \x20   stick-table type ip size {} expire 1h store http_req_rate(10s) peers bench\n",
            self.base.at(10 + node, 8080),
            u64::from(self.entries) * 5 / 4 + 100_000,
        );
        let file = dir.join("proxy.cfg");
        std::fs::write(&file, text).map_err(|e| e.to_string())?;
        let mut command = if self.placed {
            let mut command = Command::new("taskset");
            command.args(["-c", CPUS[usize::from(node - 1)], "chrt", "--other", "0"]).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.arg("-f").arg(&file).args(["-db", "-L", &format!("n{node}")]);
        Running::start(&mut command, &dir)
    }

    /// Starts the teacher and makes its entries; returns the bytes that each costs.
    fn fill(&mut self) -> Result<f64, String> {
        let teacher = self.start(1)?;
        teacher.wait_for(&self.base.at(11, 8080));
        // What the first requests allocate is not the table's.
        requests(&self.web(), (0..64).map(|_| [0; 3]))?;
        let before = teacher.resident()?;
        let began = Instant::now();
        let all = (0..self.entries.div_ceil(KEYS)).map(|i| [i * KEYS, i * KEYS + 1, i * KEYS + 2]);
        requests(&self.web(), all)?;
        self.fresh = self.entries.next_multiple_of(KEYS);
        let used = Api::open(&self.sock(1))?.used()?;
        if used < self.entries {
            return Err(format!("{}: the table has {used} entries, not {}", self.name, self.entries));
        }
        let bytes = (teacher.resident()?.saturating_sub(before)) as f64 / f64::from(used);
        println!("{}: filled in {:.1} s", self.name, began.elapsed().as_secs_f64());
        self.teacher = Some(teacher);
        Ok(bytes)
    }

    /// The first [`TEACHING`] figures; the last learner stays.
    fn round_of_teaching(&mut self) -> Result<Round, String> {
        let before = self.requests_for(Duration::from_secs(2))?;
        let (mut lessons, mut meanwhile) = (Vec::new(), Vec::new());
        for _ in 0..self.learners {
            self.learner = None;
            let load = Paced::start(&self.web(), 4, 2_000 / 4);
            let lesson = self.teach()?;
            // What came before the first entry and after the last would make little of the rest.
            let within = |timed: &Timed| lesson.from <= timed.at && timed.at <= lesson.to;
            meanwhile.extend(load.finish()?.into_iter().filter(within));
            lessons.push(lesson.figures);
        }
        let middle = |i: usize| Spread::of(lessons.iter().map(|figures| figures[i])).median;
        let p99 = |times: &[Timed], of: fn(&Timed) -> f64| percentile(times.iter().map(of).collect(), 99);
        let (teacher, client) = (|t: &Timed| t.teacher, |t: &Timed| t.client);
        let p99s =
            [p99(&before, teacher), p99(&meanwhile, teacher), p99(&before, client), p99(&meanwhile, client)];
        Ok((0..4).map(middle).chain(p99s).collect())
    }

    fn round(&mut self) -> Result<Round, String> {
        let alone = self.cpu_under_load(None)?;
        let mut figures = self.round_of_teaching()?;
        let quiet = self.probe(Duration::from_millis(3))?;
        let flood = Flood::start(&self.web(), self.updates / KEYS, self.entries)?;
        std::thread::sleep(Duration::from_millis(300));
        let busy = self.probe(Duration::from_millis(3));
        flood.finish()?;
        let busy = busy?;
        let learner = self.learner.as_ref().ok_or("no learner")?;
        let together = self.cpu_under_load(Some(learner))?;
        self.learner = None;
        // Before and after, so that what drifts does not count as the peer's doing.
        let alone = (alone[0] + self.cpu_under_load(None)?[0]) / 2.0;
        let bytes = self.bytes;
        figures.extend([
            percentile(quiet.clone(), 50),
            percentile(quiet, 99),
            percentile(busy.clone(), 50),
            percentile(busy, 99),
            together[0] - alone,
            together[1],
            bytes,
        ]);
        Ok(figures)
    }

    /// A fresh learner is taught everything: seconds from its start and from its first entry, CPU time of
    /// teacher and learner by entry.
    fn teach(&mut self) -> Result<Lesson, String> {
        let teacher = self.teacher.as_ref().ok_or("no teacher")?;
        let wanted = Api::open(&self.sock(1))?.used()?;
        let cpu = teacher.cpu()?;
        let began = Instant::now();
        let learner = self.start(2)?;
        let mut api = loop {
            match Api::open(&self.sock(2)) {
                Ok(api) => break api,
                Err(e) if began.elapsed() > LIMIT => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let empty = learner.resident()?;
        let mut first = None;
        loop {
            let used = api.used()?;
            if used > 0 {
                first.get_or_insert_with(|| (Instant::now(), SystemTime::now()));
            }
            if used >= wanted {
                break;
            }
            if began.elapsed() > LIMIT {
                return Err(format!("only {used} of {wanted} entries are taught"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let n = f64::from(wanted);
        let figures = [
            began.elapsed().as_secs_f64(),
            first.map_or(0.0, |(first, _)| first.elapsed().as_secs_f64()),
            (teacher.cpu()? - cpu) * 1e6 / n,
            learner.cpu()? * 1e6 / n,
        ];
        let (from, to) = (first.map_or(UNIX_EPOCH, |(_, first)| first), SystemTime::now());
        self.bytes = learner.resident()?.saturating_sub(empty) as f64 / n;
        self.learner = Some(learner);
        Ok(Lesson { figures, from, to })
    }

    /// Times from a request for a key that is new to its being seen on the learner, in milliseconds.
    fn probe(&mut self, pause: Duration) -> Result<Vec<f64>, String> {
        let mut client = Client::connect(&self.web())?;
        let mut api = Api::open(&self.sock(2))?;
        let mut times = Vec::new();
        for _ in 0..PROBES {
            let key = self.fresh;
            self.fresh += 1;
            let command = format!("show table t key {}\n", address(key));
            let began = Instant::now();
            client.ask(&[[key; 3]])?;
            while !api.ask(&command)?.contains("key=") {
                if began.elapsed() > LIMIT {
                    return Err(format!("an update was not seen within {LIMIT:?}"));
                }
                // Watching must not take the CPU from what is watched.
                std::thread::sleep(Duration::from_micros(50));
            }
            times.push(began.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(pause);
        }
        Ok(times)
    }

    /// CPU time by update of teacher and learner while updates come at the busy rate.
    fn cpu_under_load(&self, learner: Option<&Running>) -> Result<[f64; 2], String> {
        let teacher = self.teacher.as_ref().ok_or("no teacher")?;
        let flood = Flood::start(&self.web(), self.updates / KEYS, self.entries)?;
        std::thread::sleep(Duration::from_millis(300));
        let cpu = || Ok::<_, String>([teacher.cpu()?, learner.map_or(Ok(0.0), Running::cpu)?]);
        let (before, sent) = (cpu()?, flood.sent());
        std::thread::sleep(Duration::from_secs(self.seconds));
        let (after, sent) = (cpu()?, (flood.sent() - sent) * u64::from(KEYS));
        flood.finish()?;
        Ok([0, 1].map(|i| (after[i] - before[i]) * 1e6 / sent.max(1) as f64))
    }

    fn requests_for(&self, time: Duration) -> Result<Vec<Timed>, String> {
        let load = Paced::start(&self.web(), 4, 2_000 / 4);
        std::thread::sleep(time);
        load.finish()
    }

    fn web(&self) -> String {
        self.base.at(11, 8080)
    }

    fn sock(&self, node: u8) -> PathBuf {
        self.dir.path().join(format!("n{node}/sock"))
    }

    fn output(&self) -> String {
        [&self.teacher, &self.learner].into_iter().flatten().map(Running::output).collect()
    }
}

/// In milliseconds of whatever is in `times`; the highest when there are few.
fn percentile(mut times: Vec<f64>, p: usize) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get((times.len() * p / 100).min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn address(key: u32) -> String {
    std::net::Ipv4Addr::from(0x0a00_0000 + key).to_string()
}

/// A kept connection; the length of an answer is that of the first.
struct Client {
    stream: TcpStream,
    answer: usize,
    out: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(addr: &str) -> Result<Client, String> {
        let stream = TcpStream::connect(addr).map_err(|e| format!("{addr}: {e}"))?;
        let set = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(LIMIT)));
        set.map_err(|e| e.to_string())?;
        let mut client = Client { stream, answer: 0, out: Vec::new(), buffer: vec![0; 64 * 1024] };
        // Alone, so that whatever comes is one answer.
        client.write(&[[0; 3]])?;
        while client.answer == 0 || !client.buffer[..client.answer].ends_with(b"</html>\n") {
            let n = client.stream.read(&mut client.buffer[client.answer..]).map_err(|e| e.to_string())?;
            if n == 0 {
                return Err("the proxy closed the connection".into());
            }
            client.answer += n;
        }
        Ok(client)
    }

    fn write(&mut self, requests: &[[u32; 3]]) -> Result<(), String> {
        self.out.clear();
        for [a, b, c] in requests.iter().map(|keys| keys.map(address)) {
            let _ = write!(self.out, "GET / HTTP/1.1\r\nhost: x\r\na: {a}\r\nb: {b}\r\nc: {c}\r\n\r\n");
        }
        self.stream.write_all(&self.out).map_err(|e| e.to_string())
    }

    /// Sends requests at once and reads all answers.
    fn ask(&mut self, requests: &[[u32; 3]]) -> Result<(), String> {
        self.write(requests)?;
        let mut left = requests.len() * self.answer;
        while left > 0 {
            let room = left.min(self.buffer.len());
            match self.stream.read(&mut self.buffer[..room]) {
                Ok(0) => return Err("the proxy closed the connection".into()),
                Ok(n) => left -= n,
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }
}

impl Client {
    /// Has the kernel note when data came: on the loopback, when the other side sent it.
    fn stamp(&mut self) -> Result<(), String> {
        let flags =
            TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
        setsockopt(&self.stream, Timestamping, &flags).map_err(|e| format!("SO_TIMESTAMPING: {e}"))?;
        // It takes the kernel a moment.
        let began = Instant::now();
        while self.ask_stamped([0; 3])?.is_none() {
            if began.elapsed() > Duration::from_secs(1) {
                return Err("the kernel does not say when data came".to_string());
            }
        }
        Ok(())
    }

    /// Sends a request and reads its answer; returns when the end of that came.
    fn ask_stamped(&mut self, request: [u32; 3]) -> Result<Option<SystemTime>, String> {
        self.write(&[request])?;
        let (mut left, mut came) = (self.answer, None);
        let mut control = nix::cmsg_space!(Timestamps);
        while left > 0 {
            let fd = self.stream.as_raw_fd();
            let mut into = [IoSliceMut::new(&mut self.buffer[..left])];
            let got = recvmsg::<()>(fd, &mut into, Some(&mut control), MsgFlags::empty());
            let got = got.map_err(|e| e.to_string())?;
            if got.bytes == 0 {
                return Err("the proxy closed the connection".into());
            }
            left -= got.bytes;
            for message in got.cmsgs().map_err(|e| e.to_string())? {
                if let ControlMessageOwned::ScmTimestampsns(stamps) = message {
                    came = Some(UNIX_EPOCH + Duration::from(stamps.system));
                }
            }
        }
        Ok(came)
    }
}

/// Sends all of these, as fast as they are taken.
fn requests(addr: &str, all: impl Iterator<Item = [u32; 3]>) -> Result<(), String> {
    let mut client = Client::connect(addr)?;
    let mut some = Vec::with_capacity(64);
    for keys in all {
        some.push(keys);
        if some.len() == 64 {
            client.ask(&some)?;
            some.clear();
        }
    }
    client.ask(&some)
}

/// What requests at a steady pace on one connection would have waited for the proxy if the client had
/// been punctual: each is sent when it is due, or when the one before it is answered. A late answer counts
/// for all that wait behind it; a client that itself came late to send, however late, counts for none.
#[derive(Debug, Default)]
struct Punctual {
    /// When the last answer would have been there, from the same beginning as `due`.
    free: Duration,
}

impl Punctual {
    /// A request that was due at `due` was answered `took` after it was sent; returns its time.
    fn answered(&mut self, due: Duration, took: Duration) -> Duration {
        self.free = self.free.max(due) + took;
        self.free - due
    }
}

/// Requests at a steady pace on a few connections.
struct Paced {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Timed>, String>>>,
}

impl Paced {
    fn start(addr: &str, threads: u32, each: u32) -> Paced {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..threads).map(|thread| {
            let (addr, stop) = (addr.to_owned(), stop.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(&addr)?;
                client.stamp()?;
                let mut times = Vec::new();
                let (began, mut punctual) = (SystemTime::now(), Punctual::default());
                for i in 0u32.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let due = Duration::from_secs(1) / each * i;
                    let at = began + due;
                    std::thread::sleep(at.duration_since(SystemTime::now()).unwrap_or_default());
                    let sent = SystemTime::now();
                    let came = client.ask_stamped([i % 1000 * KEYS + thread; 3])?;
                    let answered = came.ok_or("the kernel does not say any more when data came")?;
                    let took = answered.duration_since(sent).unwrap_or_default();
                    let teacher = punctual.answered(due, took).as_secs_f64() * 1e3;
                    times.push(Timed { at, teacher, client: ms(at, SystemTime::now()) });
                }
                Ok(times)
            })
        });
        Paced { threads: threads.collect(), stop }
    }

    fn finish(self) -> Result<Vec<Timed>, String> {
        self.stop.store(true, Relaxed);
        let mut all = Vec::new();
        for thread in self.threads {
            all.extend(thread.join().map_err(|_| "a client panicked")??);
        }
        Ok(all)
    }
}

/// Milliseconds between two times of the wall clock, which nobody sets meanwhile.
fn ms(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64() * 1e3
}

/// Requests at a high rate on one connection, a millisecond's worth at a time: always as many in one go,
/// so that what they cost does not depend on how punctual the clients are.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), String>>,
}

impl Flood {
    fn start(addr: &str, rate: u32, entries: u32) -> Result<Flood, String> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), sent.clone());
        let mut client = Client::connect(addr)?;
        let each = (rate / 1000).clamp(1, 256);
        let thread = std::thread::spawn(move || {
            let (began, mut key) = (Instant::now(), 0u32);
            for turn in 0u32.. {
                if stopped.load(Relaxed) {
                    break;
                }
                let due = began + Duration::from_secs(1) / (rate / each) * turn;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let next = |_| {
                    key = (key + KEYS) % (entries / KEYS * KEYS);
                    [key, key + 1, key + 2]
                };
                let some: Vec<_> = (0..each).map(next).collect();
                client.ask(&some)?;
                count.fetch_add(some.len() as u64, Relaxed);
            }
            Ok(())
        });
        Ok(Flood { stop, sent, thread })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    fn finish(self) -> Result<(), String> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| "a client panicked")?
    }
}

/// A Runtime API connection that stays open.
struct Api {
    stream: UnixStream,
    answer: Vec<u8>,
}

impl Api {
    fn open(path: &Path) -> Result<Api, String> {
        let stream = UnixStream::connect(path).map_err(|e| format!("{}: {e}", path.display()))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(|e| e.to_string())?;
        let mut api = Api { stream, answer: Vec::new() };
        api.ask("prompt\n")?;
        Ok(api)
    }

    fn ask(&mut self, command: &str) -> Result<&str, String> {
        self.stream.write_all(command.as_bytes()).map_err(|e| e.to_string())?;
        self.answer.clear();
        let mut some = [0; 4096];
        while !self.answer.ends_with(b"> ") {
            match self.stream.read(&mut some) {
                Ok(0) => return Err("the Runtime API closed the connection".into()),
                Ok(n) => self.answer.extend_from_slice(&some[..n]),
                Err(e) => return Err(e.to_string()),
            }
        }
        std::str::from_utf8(&self.answer).map_err(|e| e.to_string())
    }

    /// Entries of the table.
    fn used(&mut self) -> Result<u32, String> {
        let shown = self.ask("show table\n")?;
        let used = shown.split_once("used:").and_then(|(_, rest)| rest.split_whitespace().next());
        used.and_then(|n| n.parse().ok()).ok_or_else(|| format!("no 'used' in: {shown}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_counts_for_those_behind_it_and_a_late_client_for_none() {
        let ms = Duration::from_millis;
        let mut punctual = Punctual::default();
        assert_eq!(punctual.answered(ms(0), ms(1)), ms(1));
        // The proxy takes 5 ms: the next two were due meanwhile.
        assert_eq!(punctual.answered(ms(2), ms(5)), ms(5));
        assert_eq!(punctual.answered(ms(4), ms(1)), ms(4));
        assert_eq!(punctual.answered(ms(6), ms(1)), ms(3));
        // Whenever these were sent: the proxy took 1 ms for each.
        assert_eq!(punctual.answered(ms(8), ms(1)), ms(2));
        assert_eq!(punctual.answered(ms(10), ms(1)), ms(1));
    }
}

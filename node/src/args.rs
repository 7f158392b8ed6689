//! The command line: HAProxy's own options (management manual, section 3), and subcommands for
//! people.
//!
//! HAProxy's options do not follow any library's grammar (`-sf` takes all the numbers that follow,
//! `-dr` is not `-d -r`), so they are read here by hand; `phalanx cluster …` is `clap`'s.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use phalanx_config::Config;
use phalanx_sys::process::hostname;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Request {
    /// Run, or check, a configuration.
    Run(Box<Options>),
    /// `-v`.
    Version,
    /// `-vv`.
    Build,
    /// `-h`, `--help`.
    Help,
}

/// HAProxy's options.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    /// `-f` and what follows `--`: files and directories, in order.
    pub files: Vec<PathBuf>,
    /// `-C`: directory to change to before reading files.
    pub dir: Option<PathBuf>,
    /// `-c`: check the configuration and exit.
    pub check: bool,
    /// `-D`: daemon.
    pub daemon: bool,
    /// `-db`: stay in the foreground whatever the configuration says.
    pub foreground: bool,
    /// `-W`, `-Ws`: HAProxy's master-worker mode. One process does both here; accepted so that
    /// service files work, `-Ws` tells systemd when it is ready.
    pub notify: bool,
    /// `-L`: name of the local node.
    pub node: Option<String>,
    /// `-n`: process-wide maxconn, wins over the configuration.
    pub maxconn: Option<u32>,
    /// `-N`: default of a frontend's maxconn.
    pub proxy_maxconn: Option<u32>,
    /// `-p`: file to write the pid to.
    pub pidfile: Option<PathBuf>,
    /// `-sf`: processes told to finish (SIGUSR1) once this one is ready.
    pub finish: Vec<i32>,
    /// `-st`: processes told to terminate (SIGTERM) once this one is ready.
    pub terminate: Vec<i32>,
    /// `-q`: no messages.
    pub quiet: bool,
    /// `-V`: more messages.
    pub verbose: bool,
    /// `-d`: debug messages on standard error.
    pub debug: bool,
    /// `-dW`: warnings are errors.
    pub zero_warning: bool,
    /// `-dr`: a server name that does not resolve is not fatal.
    pub ignore_resolve: bool,
    /// `-dS`: as `nosplice`.
    pub nosplice: bool,
}

impl Options {
    /// Puts in what the command line decides, whatever the configuration says.
    pub(crate) fn override_in(&self, config: &mut Config) {
        let name = self.node.clone().or_else(|| config.global.localpeer.clone()).unwrap_or_else(hostname);
        if config.cluster.iter().flat_map(|c| &c.nodes).any(|n| n.witness && n.name == name) {
            // A witness votes and takes no traffic, whatever its configuration has for the others.
            config.proxies.clear();
        }
        config.global.nosplice |= self.nosplice;
        if self.maxconn.is_some() {
            config.global.maxconn = self.maxconn;
        }
        if let Some(maxconn) = self.proxy_maxconn {
            for proxy in config.proxies.iter_mut().filter(|p| p.maxconn.is_none() && p.kind.is_frontend()) {
                Arc::make_mut(proxy).maxconn = Some(maxconn);
            }
        }
    }
}

/// A command line that can't be carried out: one line for the user.
#[derive(Debug, PartialEq)]
pub(crate) struct Error(pub String);

/// Reads the words after the program's name.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, Error> {
    let mut options = Options::default();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let mut value =
            |what: &str| words.next().ok_or_else(|| Error(format!("option '{text}' needs {what}")));
        match text.as_str() {
            "-f" => options.files.push(value("a file or a directory")?.into()),
            "--" => {
                options.files.extend(words.by_ref().map(PathBuf::from));
            }
            "-C" => options.dir = Some(value("a directory")?.into()),
            "-c" => options.check = true,
            "-D" => options.daemon = true,
            "-db" => options.foreground = true,
            "-W" => {}
            "-Ws" => options.notify = true,
            "-L" => options.node = Some(text_of(value("a node name")?)?),
            "-n" => options.maxconn = Some(number(&text, value("a number of connections")?)?),
            "-N" => options.proxy_maxconn = Some(number(&text, value("a number of connections")?)?),
            "-p" => options.pidfile = Some(value("a file")?.into()),
            "-sf" | "-st" => {
                let list = if text == "-sf" { &mut options.finish } else { &mut options.terminate };
                while let Some(pid) =
                    words.peek().and_then(|w| w.to_str()).and_then(|w| w.parse::<i32>().ok())
                {
                    words.next();
                    if pid > 0 {
                        list.push(pid);
                    }
                }
            }
            "-q" => options.quiet = true,
            "-V" => options.verbose = true,
            "-d" => options.debug = true,
            "-dW" => options.zero_warning = true,
            "-dr" => options.ignore_resolve = true,
            "-dS" => options.nosplice = true,
            "-v" => return Ok(Request::Version),
            "-vv" => return Ok(Request::Build),
            "-h" | "--help" => return Ok(Request::Help),
            other if UNSUPPORTED.contains(&other) => {
                return Err(Error(format!("option '{other}' of HAProxy is not supported by Phalanx")));
            }
            other => {
                return Err(Error(format!(
                    "unknown option or command '{other}'; 'phalanx -h' lists what there is"
                )));
            }
        }
    }
    Ok(Request::Run(Box::new(options)))
}

fn text_of(word: OsString) -> Result<String, Error> {
    word.into_string().map_err(|w| Error(format!("'{}' is not valid UTF-8", w.to_string_lossy())))
}

fn number(option: &str, word: OsString) -> Result<u32, Error> {
    let text = word.to_string_lossy();
    text.parse()
        .map_err(|_| Error(format!("option '{option}': '{text}' is not a number from 0 to {}", u32::MAX)))
}

/// Options of HAProxy that mean something which is not here.
const UNSUPPORTED: [&str; 19] = [
    "-4", "-cc", "-dA", "-dC", "-dF", "-dG", "-dI", "-dK", "-dL", "-dM", "-dR", "-dT", "-dV", "-de", "-dp",
    "-dt", "-m", "-S", "-x",
];

/// The text of `phalanx -h`.
pub(crate) const HELP: &str = "\
Usage: phalanx -f FILE [-f FILE ...] [OPTIONS] [-- FILE ...]
       phalanx cluster up|status|kill|start|pause|resume|partition|heal|failover|down
       phalanx ctl [-S SOCKET | -f FILE] COMMAND...
       phalanx vip [-S SOCKET | -f FILE] status|move VIP [NODE]|maintenance NODE on|off
       phalanx keywords [WORD]...
       phalanx demo --http NAME=ADDR:PORT | --echo NAME=ADDR:PORT

HAProxy's options:
  -f FILE      read a configuration file, or all *.cfg of a directory; may be repeated
  -c           check the configuration and exit: 0 valid, 1 not, 2 no listener (-V says so on success)
  -C DIR       change to DIR before reading the files
  -D           run in the background        -db          stay in the foreground
  -L NAME      name of this node            -p FILE      write the pid to FILE
  -n N         process-wide maxconn         -N N         default maxconn of frontends
  -sf PID...   once ready, ask these processes to finish (SIGUSR1)
  -st PID...   once ready, ask these processes to terminate (SIGTERM)
  -W, -Ws      accepted: reload happens in this process; -Ws notifies systemd
  -q quiet     -V verbose     -d debug     -dW warnings are errors
  -dr          a server name that does not resolve is no error
  -v           version        -vv          version and build

Signals: SIGHUP and SIGUSR2 reload the configuration in place, SIGUSR1 stops listening and
leaves when the last session ends, SIGTERM and SIGINT leave at once. Either moves floating IPs to other nodes first.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Result<Request, Error> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn haproxy_command_lines_are_read() {
        let Ok(Request::Run(o)) =
            run(&["-f", "a.cfg", "-D", "-p", "/run/x.pid", "-sf", "12", "13", "-n", "500", "--", "b.cfg"])
        else {
            panic!("not a run request");
        };
        assert_eq!(o.files, [PathBuf::from("a.cfg"), PathBuf::from("b.cfg")]);
        assert_eq!((o.daemon, o.maxconn, o.finish.as_slice()), (true, Some(500), &[12, 13][..]));
    }

    #[test]
    fn finish_list_may_be_empty_and_ends_at_the_next_option() {
        let Ok(Request::Run(o)) = run(&["-sf", "-c", "-f", "x"]) else { panic!("not a run request") };
        assert!(o.finish.is_empty() && o.check);
    }

    #[test]
    fn errors_name_the_option() {
        for (words, part) in [
            (&["-f"][..], "'-f' needs"),
            (&["-n", "many"], "'many' is not a number"),
            (&["-x", "s"], "'-x' of HAProxy is not supported"),
            (&["--frobnicate"], "unknown option or command '--frobnicate'"),
        ] {
            let Err(Error(text)) = run(words) else { panic!("{words:?} was accepted") };
            assert!(text.contains(part), "{text}");
        }
    }
}

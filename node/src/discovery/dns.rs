//! Reads a name from its `resolvers` section: all name servers are asked at once, the first valid
//! answer counts (manual section 5.3.2).
//!
//! Input and output only: `engine::discovery` decides what is asked next and how long an old answer
//! holds. Every question goes out from a port of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use phalanx_config::model::{self, Family, Resolvers};
use phalanx_engine::discovery::Instance;
use phalanx_engine::discovery::lookup::{Failure, Kind, Lookup, Memory, Step, srv_weight};
use phalanx_engine::discovery::message::{self, Answer, Target, Unfit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, sleep_until};

use super::status::{Nameserver, count};
use super::{Handle, Job, Report};

/// Hosts of SRV records that are resolved at once.
const HOSTS_AT_ONCE: usize = 16;

/// Hosts of SRV records that are followed.
const MAX_HOSTS: usize = 1000;

/// Follows a name until it is dropped.
pub(super) async fn read(job: Job, section: Arc<Resolvers>, name: String, prefer: Family) {
    let resolver = Resolver::new(&job.handle, section.clone(), prefer);
    let known = job.known.clone().unwrap_or_default();
    let mut memory = Memory::new(section.hold, &known, job.now());
    // Of the hosts of SRV records.
    let mut hosts: BTreeMap<String, Memory> = known
        .iter()
        .filter(|i| !i.host.is_empty())
        .map(|i| (i.host.clone(), Memory::new(section.hold, &addresses(&i.ips), job.now())))
        .collect();
    let mut last = known;
    loop {
        let kind = if name.starts_with('_') { Kind::Srv } else { resolver.preferred };
        match resolver.resolve(&name, kind, section.retries).await {
            Ok((found, server)) => {
                let instances = match found {
                    Valid::Ips(ips) => addresses(&ips),
                    Valid::Targets(targets) => resolver.targets(targets, &mut hosts, &job).await,
                };
                memory.handle_answer(instances, job.now());
                job.succeeded(0);
                let instances = memory.instances();
                if instances != last {
                    count(&resolver.counters[server].update);
                    last.clone_from(&instances);
                }
                job.publish(Report { instances, index: 0, why: None });
            }
            Err(failure) => {
                job.failed(&failure.to_string());
                if memory.handle_failure(failure, job.now()) {
                    last.clear();
                    job.publish(Report { instances: Vec::new(), index: 0, why: Some(failure.to_string()) });
                }
            }
        }
        sleep(section.resolve).await;
    }
}

fn addresses(ips: &[IpAddr]) -> Vec<Instance> {
    ips.iter().map(|ip| Instance::at(*ip, 0, None)).collect()
}

/// A valid answer.
enum Valid {
    Ips(Vec<IpAddr>),
    Targets(Vec<Target>),
}

struct Resolver {
    section: Arc<Resolvers>,
    /// Which addresses are asked for first.
    preferred: Kind,
    counters: Vec<Arc<Nameserver>>,
}

impl Resolver {
    fn new(handle: &Handle, section: Arc<Resolvers>, prefer: Family) -> Resolver {
        let preferred = if prefer == Family::V4 { Kind::A } else { Kind::Aaaa };
        let counters = section.nameservers.iter().map(|n| handle.nameserver(&section.name, &n.name));
        Resolver { counters: counters.collect(), section, preferred }
    }

    /// The hosts of SRV records with their addresses: those that came along, else by questions of
    /// their own, else those that they had.
    async fn targets(
        &self,
        mut targets: Vec<Target>,
        hosts: &mut BTreeMap<String, Memory>,
        job: &Job,
    ) -> Vec<Instance> {
        targets.truncate(MAX_HOSTS);
        hosts.retain(|host, _| targets.iter().any(|t| t.host == *host));
        let mut wanted: Vec<String> = Vec::new();
        for target in &targets {
            if !target.ips.is_empty() {
                let memory = Memory::new(self.section.hold, &addresses(&target.ips), job.now());
                hosts.insert(target.host.clone(), memory);
            } else if !wanted.contains(&target.host) {
                wanted.push(target.host.clone());
            }
        }
        let questions = wanted.into_iter().map(|host| async move {
            // One round: the next is due in a moment, and the others should not wait for this one.
            let found = self.resolve(&host, self.preferred, 1).await;
            (host, found)
        });
        let mut found = futures_util::stream::iter(questions).buffer_unordered(HOSTS_AT_ONCE);
        while let Some((host, found)) = found.next().await {
            let fresh = || Memory::new(self.section.hold, &[], job.now());
            let memory = hosts.entry(host).or_insert_with(fresh);
            match found {
                Ok((Valid::Ips(ips), _)) => memory.handle_answer(addresses(&ips), job.now()),
                Ok((Valid::Targets(_), _)) => {}
                Err(failure) => drop(memory.handle_failure(failure, job.now())),
            }
        }
        let ips = |host: &String| -> Vec<IpAddr> {
            let known = hosts.get(host).map(Memory::instances).unwrap_or_default();
            known.into_iter().flat_map(|i| i.ips).collect()
        };
        let instance = |t: Target| Instance {
            ips: ips(&t.host),
            weight: Some(srv_weight(t.weight)),
            port: t.port,
            host: t.host,
        };
        targets.into_iter().map(instance).collect()
    }

    /// One resolution; the valid answer, and which name server gave it.
    async fn resolve(&self, name: &str, kind: Kind, rounds: u32) -> Result<(Valid, usize), Failure> {
        let servers = &self.section.nameservers;
        if servers.is_empty() || !message::is_askable(name) {
            return Err(Failure::Other);
        }
        let mut lookup = Lookup::new(kind, servers.len(), rounds);
        'question: loop {
            let kind = lookup.kind();
            let mut answers: FuturesUnordered<_> =
                servers.iter().enumerate().map(|(n, server)| self.ask(n, server, name, kind)).collect();
            let mut silent = vec![true; servers.len()];
            let ends = Instant::now() + self.section.retry;
            loop {
                let step = tokio::select! {
                    Some((server, answer)) = answers.next() => {
                        silent[server] = false;
                        match answer {
                            Ok(valid) => return Ok((valid, server)),
                            Err(failure) => lookup.handle_failure(failure),
                        }
                    }
                    () = sleep_until(ends) => {
                        let silent = silent.iter().zip(&self.counters).filter(|(silent, _)| **silent);
                        silent.for_each(|(_, counters)| count(&counters.timeout));
                        lookup.handle_timeout()
                    }
                };
                match step {
                    Step::Wait => {}
                    Step::Ask(_) => continue 'question,
                    Step::Failed(failure) => return Err(failure),
                }
            }
        }
    }

    /// Asks one name server; waits for ever if it does not answer.
    async fn ask(
        &self,
        n: usize,
        server: &model::Nameserver,
        name: &str,
        kind: Kind,
    ) -> (usize, Result<Valid, Failure>) {
        let counters = &self.counters[n];
        let id: u16 = rand::random();
        let Some(question) = message::question(id, name, kind, self.section.payload_size) else {
            return (n, Err(Failure::Other));
        };
        count(&counters.sent);
        let judge = |bytes: &[u8]| message::answer(bytes, id, name, kind);
        let exchanged = match server.tcp {
            true => self.over_tcp(server.addr, &question, &judge).await,
            false => match self.over_udp(server.addr, &question, &judge, counters).await {
                Ok(Answer::Truncated) => {
                    count(&counters.truncated);
                    self.over_tcp(server.addr, &question, &judge).await
                }
                other => other,
            },
        };
        let answer = match exchanged {
            Ok(answer) => answer,
            // A server that can't be reached counts as one that is silent.
            Err(Broken::Unreachable) => {
                count(&counters.snd_error);
                std::future::pending().await
            }
            Err(Broken::Invalid(unfit)) => {
                count(if unfit == Unfit::Alias { &counters.cname_error } else { &counters.invalid });
                return (n, Err(Failure::Other));
            }
        };
        let valid = match answer {
            Answer::Ips(ips) => Ok(Valid::Ips(ips)),
            Answer::Targets(targets) => Ok(Valid::Targets(targets)),
            Answer::Empty => {
                count(&counters.any_err);
                Err(Failure::Other)
            }
            Answer::Truncated => {
                count(&counters.too_big);
                Err(Failure::Other)
            }
            Answer::Error(3) => {
                count(&counters.nx);
                Err(Failure::Nx)
            }
            Answer::Error(5) => {
                count(&counters.refused);
                Err(Failure::Refused)
            }
            Answer::Error(_) => {
                count(&counters.other);
                Err(Failure::Other)
            }
        };
        if valid.is_ok() {
            count(&counters.valid);
        }
        (n, valid)
    }

    async fn over_udp(
        &self,
        to: SocketAddr,
        question: &[u8],
        judge: &dyn Judge,
        counters: &Nameserver,
    ) -> Result<Answer, Broken> {
        let from: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(from).await?;
        socket.connect(to).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; usize::from(self.section.payload_size.max(512)) + 1];
        loop {
            let Ok(length) = socket.recv(&mut buffer).await else {
                // Refused by the host: the server may be there again for the next question.
                return Err(Broken::Unreachable);
            };
            if length == buffer.len() {
                count(&counters.too_big);
                return Ok(Answer::Truncated);
            }
            match judge(&buffer[..length]) {
                Ok(answer) => return Ok(answer),
                Err(Unfit::Other) => count(&counters.outdated),
                Err(unfit) => return Err(Broken::Invalid(unfit)),
            }
        }
    }

    async fn over_tcp(&self, to: SocketAddr, question: &[u8], judge: &dyn Judge) -> Result<Answer, Broken> {
        let mut stream = TcpStream::connect(to).await?;
        let mut framed = (question.len() as u16).to_be_bytes().to_vec();
        framed.extend(question);
        stream.write_all(&framed).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        judge(&answer).map_err(Broken::Invalid)
    }
}

trait Judge: Fn(&[u8]) -> Result<Answer, Unfit> + Sync {}

impl<T: Fn(&[u8]) -> Result<Answer, Unfit> + Sync> Judge for T {}

/// Why there is no answer.
enum Broken {
    Unreachable,
    Invalid(Unfit),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Broken {
        Broken::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Duration;

    use super::*;

    /// A name server that answers A questions for anything with 10.0.0.9: over UDP only that the
    /// answer is too long, over TCP with it.
    async fn truncating() -> SocketAddr {
        let (tcp, udp) = loop {
            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let addr = udp.local_addr().unwrap();
        let reply = |question: &[u8], truncated: bool| {
            let mut out = question[..2].to_vec();
            out.extend([
                0x81 | if truncated { 2 } else { 0 },
                0x80,
                0,
                1,
                0,
                u8::from(!truncated),
                0,
                0,
                0,
                0,
            ]);
            out.extend(&question[12..question.len() - 11]);
            if !truncated {
                out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, 9]);
            }
            out
        };
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let _ = udp.send_to(&reply(&buffer[..length], true), from).await;
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut question = vec![0; usize::from(length)];
                stream.read_exact(&mut question).await.unwrap();
                let answer = reply(&question, false);
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        addr
    }

    fn resolver(addrs: &[SocketAddr]) -> Resolver {
        let mut section = Resolvers::new("dns", model::Pos::default());
        section.retry = Duration::from_millis(200);
        let server = |(n, addr): (usize, &SocketAddr)| model::Nameserver {
            name: format!("ns{n}"),
            addr: *addr,
            tcp: false,
        };
        section.nameservers = addrs.iter().enumerate().map(server).collect();
        Resolver::new(&Handle::default(), Arc::new(section), Family::V6)
    }

    #[tokio::test]
    async fn what_does_not_fit_is_asked_for_over_tcp() {
        let resolver = resolver(&[truncating().await]);
        let Ok((Valid::Ips(ips), 0)) = resolver.resolve("web.test", Kind::A, 2).await else {
            panic!("no answer")
        };
        assert_eq!(ips, [IpAddr::from([10, 0, 0, 9])]);
        assert_eq!(resolver.counters[0].truncated.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_dead_name_server_delays_nothing() {
        let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let resolver = resolver(&[dead.local_addr().unwrap(), truncating().await]);
        let began = Instant::now();
        assert!(matches!(resolver.resolve("web.test", Kind::A, 2).await, Ok((Valid::Ips(_), 1))));
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn silence_is_a_timeout() {
        let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let resolver = resolver(&[dead.local_addr().unwrap()]);
        assert!(matches!(resolver.resolve("web.test", Kind::A, 2).await, Err(Failure::Timeout)));
        let sent = resolver.counters[0].sent.load(Relaxed);
        assert_eq!((sent, resolver.counters[0].timeout.load(Relaxed)), (2, 2));
        assert!(matches!(resolver.resolve("a..b", Kind::A, 2).await, Err(Failure::Other)));
    }
}

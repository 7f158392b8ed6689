//! A name server for tests: A, AAAA and SRV over UDP and TCP, and the ways in which it may fail.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::Base;

/// What is answered for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Addresses.
    Ips(Vec<IpAddr>),
    /// Weight, port and host of each.
    Srv(Vec<(u16, u16, String)>),
    /// This error code: 2 = server failure, 3 = no such name, 5 = refused.
    Error(u8),
    /// Nothing at all.
    Silent,
    /// Over UDP only that it is too long, over TCP these addresses.
    Long(Vec<IpAddr>),
}

impl Zone {
    /// Addresses from text.
    ///
    /// # Panics
    /// When one is none.
    pub fn ips(text: &str) -> Zone {
        Zone::Ips(text.split_whitespace().map(|ip| ip.parse().expect("an address")).collect())
    }

    /// `weight:port:host` of each.
    ///
    /// # Panics
    /// When one is none.
    pub fn srv(text: &str) -> Zone {
        let one = |word: &str| {
            let mut parts = word.splitn(3, ':');
            let mut number = || parts.next().and_then(|p| p.parse().ok()).expect("a number");
            let (weight, port) = (number(), number());
            (weight, port, parts.next().expect("a host").to_owned())
        };
        Zone::Srv(text.split_whitespace().map(one).collect())
    }
}

type Names = Arc<Mutex<BTreeMap<String, Zone>>>;

/// The server; it ends with the test.
#[derive(Debug)]
pub struct Dns {
    base: Base,
    names: Names,
    stop: Arc<AtomicBool>,
}

impl Dns {
    /// Starts it.
    ///
    /// # Panics
    /// When its address is taken.
    pub fn start() -> Dns {
        let base = Base::free();
        let udp = UdpSocket::bind(base.at(1, 5353)).expect("a free port");
        let tcp = TcpListener::bind(base.at(1, 5353)).expect("a free port");
        udp.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let (names, stop): (Names, Arc<AtomicBool>) = Default::default();
        let (zone, ends) = (names.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !ends.load(Ordering::Relaxed) {
                let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
                if let Some(answer) = answer(&buffer[..length], &zone, false) {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        let (zone, ends) = (names.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = over_tcp(&mut stream, &zone);
            }
        });
        Dns { base, names, stop }
    }

    /// Its address.
    pub fn addr(&self) -> String {
        self.base.at(1, 5353)
    }

    /// What it answers for a name from now on.
    pub fn set(&self, name: &str, zone: Zone) {
        lock(&self.names).insert(name.to_owned(), zone);
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr());
    }
}

fn lock(names: &Names) -> MutexGuard<'_, BTreeMap<String, Zone>> {
    names.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn over_tcp(stream: &mut TcpStream, names: &Names) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question)?;
    if let Some(answer) = answer(&question, names, true) {
        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

fn answer(question: &[u8], names: &Names, tcp: bool) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    while *question.get(at)? > 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(question.get(at + 1..at + 1 + length)?).to_lowercase());
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([*question.get(at + 1)?, *question.get(at + 2)?]);
    let zone = lock(names).get(&labels.join(".")).cloned().unwrap_or(Zone::Error(3));
    let (mut code, mut records): (u8, Vec<Vec<u8>>) = (0, Vec::new());
    let mut truncated = false;
    let mut addresses = |ips: Vec<IpAddr>| {
        for ip in ips {
            match ip {
                IpAddr::V4(ip) if kind == 1 => records.push(ip.octets().to_vec()),
                IpAddr::V6(ip) if kind == 28 => records.push(ip.octets().to_vec()),
                _ => {}
            }
        }
    };
    match zone {
        Zone::Silent => return None,
        Zone::Error(error) => code = error,
        Zone::Long(ips) if tcp => addresses(ips),
        Zone::Long(_) => truncated = true,
        Zone::Ips(ips) => addresses(ips),
        Zone::Srv(targets) if kind == 33 => {
            for (weight, port, host) in targets {
                let mut data = [1u16.to_be_bytes(), weight.to_be_bytes(), port.to_be_bytes()].concat();
                for label in host.split('.') {
                    data.push(label.len() as u8);
                    data.extend(label.bytes());
                }
                data.push(0);
                records.push(data);
            }
        }
        Zone::Srv(_) => {}
    }
    let mut out = question[..2].to_vec();
    out.extend([0x81 | if truncated { 2 } else { 0 }, 0x80 | code, 0, 1]);
    out.extend((records.len() as u16).to_be_bytes());
    out.extend([0, 0, 0, 0]);
    out.extend(question.get(12..at + 5)?);
    for data in records {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 1]);
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

//! The TCP connections of an address (`NETLINK_SOCK_DIAG`): which there are, and whether they go on.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::sys::socket::SockProtocol;

use super::nft::pass::Flow;
use super::route::octets;
use super::{Builder, Netlink, array};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_DUMP: u16 = 0x300;
const REQ_BYTECODE: u16 = 1;
const BC_S_COND: u8 = 7;

const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// A connection with this host's end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its ends.
    pub flow: Flow,
    /// Something may still be said on it that the peer must get.
    pub open: bool,
    /// It is over (`TIME_WAIT`): the peer may use its port for another, and to another host.
    pub over: bool,
}

/// Calls `each` for every TCP connection of this host (of its network namespace) whose local address
/// is `addr`, those that are just beginning included.
///
/// # Errors
/// What the kernel said: it may be built without.
pub fn connections(addr: IpAddr, mut each: impl FnMut(Connection)) -> io::Result<()> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    // Sockets for both families may have connections of the older.
    let families: &[i32] = if addr.is_ipv4() { &[libc::AF_INET, libc::AF_INET6] } else { &[libc::AF_INET6] };
    for family in families {
        let sequence = netlink.next_sequence();
        let mut b = Builder::default();
        request(&mut b, sequence, *family as u8, addr);
        netlink.send(b.finish())?;
        netlink.answers(sequence, sequence, |kind, body| {
            if kind == SOCK_DIAG_BY_FAMILY
                && let Some(connection) = connection(body)
                && connection.flow.local.ip() == addr
            {
                each(connection);
            }
        })?;
    }
    Ok(())
}

fn request(b: &mut Builder, sequence: u32, family: u8, addr: IpAddr) {
    b.message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, sequence);
    // inet_diag_req_v2: family, protocol, extensions, padding, states, then an empty socket id of 48 bytes.
    let states: u32 = !((1 << LISTEN) | (1 << CLOSE));
    b.put(&[family, libc::IPPROTO_TCP as u8, 0, 0]).put(&states.to_ne_bytes()).put(&[0; 48]);
    // One condition: the source address. inet_diag_bc_op { code, length when true, length when false: past
    // the end }, inet_diag_hostcond { family, prefix length, port: any, address }.
    let address = octets(addr);
    let length = 4 + 8 + address.len();
    let mut program = vec![BC_S_COND, length as u8];
    program.extend((length as u16 + 4).to_ne_bytes());
    program.extend([family_of(addr), address.len() as u8 * 8, 0, 0]);
    program.extend((-1i32).to_ne_bytes());
    program.extend(address);
    b.attr(REQ_BYTECODE, &program);
}

fn family_of(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// inet_diag_msg: family, state, timer, retransmits, then ports at 4 and 6, addresses at 8 and 24.
fn connection(body: &[u8]) -> Option<Connection> {
    if body.len() < 40 {
        return None;
    }
    let (family, state) = (i32::from(body[0]), body[1]);
    let ip = |at: usize| {
        if family == libc::AF_INET {
            return IpAddr::from(array::<4>(&body[at..at + 4]));
        }
        IpAddr::V6(Ipv6Addr::from(array::<16>(&body[at..at + 16]))).to_canonical()
    };
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let flow = Flow { local: SocketAddr::new(ip(8), port(4)), peer: SocketAddr::new(ip(24), port(6)) };
    Some(Connection {
        flow,
        open: !matches!(state, FIN_WAIT2 | TIME_WAIT | CLOSE | LISTEN),
        over: state == TIME_WAIT,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn all(addr: &str) -> Vec<Connection> {
        let mut all = Vec::new();
        connections(addr.parse().unwrap(), |c| all.push(c)).unwrap();
        all
    }

    #[test]
    fn connections_of_an_address_are_found_and_those_of_others_are_not() {
        let listener = TcpListener::bind("127.93.7.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(all("127.93.7.1"), []);
        let client = TcpStream::connect(addr).unwrap();
        let flow = Flow { local: addr, peer: client.local_addr().unwrap() };
        // Not accepted yet.
        assert_eq!(all("127.93.7.1"), [Connection { flow, open: true, over: false }]);
        assert_eq!(all("127.93.7.2"), []);
        let (server, _) = listener.accept().unwrap();
        drop(server);
        drop(client);
        assert!(all("127.93.7.1").iter().all(|c| !c.open));
    }

    #[test]
    fn connections_of_a_socket_for_both_families_are_found() {
        let Ok(listener) = TcpListener::bind("[::]:0") else { return };
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.93.7.3", port)).unwrap();
        let flow = Flow { local: ([127, 93, 7, 3], port).into(), peer: client.local_addr().unwrap() };
        assert_eq!(all("127.93.7.3"), [Connection { flow, open: true, over: false }]);
    }

    #[test]
    fn any_bytes_are_read() {
        for length in 0..100 {
            let _ = connection(&vec![0xff; length]);
        }
    }
}

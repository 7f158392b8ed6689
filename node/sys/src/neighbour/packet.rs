//! Packet sockets: frames of one interface, in and out (`CAP_NET_RAW`).

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Of a filter: all frames that do not match end here.
const REJECT: u8 = u8::MAX;

/// Frames kept for a reader, in bytes as the kernel counts them.
const ROOM: i32 = 4 << 20;

/// A step of a filter program: a load, or a comparison.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// Loads a byte, two, or four, at an offset from the Ethernet header (or of the kernel's own).
    Load(u8, i32),
    /// Remembers the length of the IPv4 header that begins at this offset.
    Skip(u32),
    /// Loads the byte this far behind the header that was skipped.
    LoadBehind(u32),
    /// Keeps these bits of what was loaded.
    And(u32),
    /// Goes on when what was loaded is this.
    Is(u32),
    /// Goes on when none of these bits is set.
    None(u32),
}

fn program(steps: &[Step]) -> Vec<libc::sock_filter> {
    use libc::{
        BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX,
        BPF_MSH, BPF_RET, BPF_W,
    };
    let code = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program: Vec<libc::sock_filter> = steps
        .iter()
        .map(|step| match *step {
            Step::Load(1, at) => code(BPF_LD | BPF_B | BPF_ABS, 0, 0, at as u32),
            Step::Load(2, at) => code(BPF_LD | BPF_H | BPF_ABS, 0, 0, at as u32),
            Step::Load(_, at) => code(BPF_LD | BPF_W | BPF_ABS, 0, 0, at as u32),
            Step::Skip(at) => code(BPF_LDX | BPF_B | BPF_MSH, 0, 0, at),
            Step::LoadBehind(at) => code(BPF_LD | BPF_B | BPF_IND, 0, 0, at),
            Step::And(bits) => code(BPF_ALU | BPF_AND | BPF_K, 0, 0, bits),
            Step::Is(value) => code(BPF_JMP | BPF_JEQ | BPF_K, 0, REJECT, value),
            Step::None(bits) => code(BPF_JMP | BPF_JSET | BPF_K, REJECT, 0, bits),
        })
        .collect();
    program.push(code(BPF_RET | BPF_K, 0, 0, u32::from(u16::MAX)));
    let reject = program.len();
    for (at, step) in program.iter_mut().enumerate() {
        let to = (reject - at).saturating_sub(1) as u8;
        for jump in [&mut step.jt, &mut step.jf] {
            if *jump == REJECT {
                *jump = to;
            }
        }
    }
    program.push(code(BPF_RET | BPF_K, 0, 0, 0));
    program
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes three integers; protocol 0 receives nothing before it is bound.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened by us and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn place(index: u32, ethertype: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    }
}

/// A socket that gets the frames of an interface that pass the filter, from now on.
pub(super) fn listen(index: u32, ethertype: u16, steps: &[Step]) -> io::Result<OwnedFd> {
    let socket = open()?;
    let mut program = program(steps);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set(&socket, libc::SO_ATTACH_FILTER, &filter)?;
    // Without the privilege for more, the usual size must do.
    let _ = set(&socket, libc::SO_RCVBUFFORCE, &ROOM);
    let place = place(index, ethertype);
    // SAFETY: the address is live for the call, and its length is its own.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const place).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value, and for a filter what it points to, is live for the call, which copies it; the
    // length is that of its type.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const *value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next frame, if one is there; one that is longer than the buffer is cut off.
pub(super) fn receive<'b>(socket: &OwnedFd, buf: &'b mut [u8]) -> Option<&'b [u8]> {
    // SAFETY: the buffer is live for the call, and its length is its own.
    let n = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buf.as_mut_ptr().cast(),
            buf.len(),
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
        )
    };
    let n = usize::try_from(n).ok()?;
    Some(&buf[..n.min(buf.len())])
}

thread_local! {
    /// For sending. Kept, because closing one waits for every processor.
    static SENDER: OnceCell<OwnedFd> = const { OnceCell::new() };
}

/// Sends a frame on an interface.
pub(super) fn send(index: u32, ethertype: u16, frame: &[u8]) -> io::Result<()> {
    SENDER.with(|sender| {
        if sender.get().is_none() {
            let _ = sender.set(open()?);
        }
        let socket = sender.get().ok_or(io::ErrorKind::Other)?;
        let to = place(index, ethertype);
        // SAFETY: the frame and the address are live for the call, and their lengths are their own.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    })
}

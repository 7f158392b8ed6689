//! nftables transactions: tables, sets, chains, rules and elements, as netlink messages.
//!
//! Knows the numbers of the kernel's attributes and nothing of what they are used for.

use std::io;
use std::time::Duration;

use crate::netlink::{Builder, NLM_F_ACK, Netlink, attributes};

const SUBSYS: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYS;
const DELTABLE: u16 = SUBSYS | 2;
const NEWCHAIN: u16 = SUBSYS | 3;
const NEWRULE: u16 = SUBSYS | 6;
const NEWSET: u16 = SUBSYS | 9;
const NEWSETELEM: u16 = SUBSYS | 12;
const GETSETELEM: u16 = SUBSYS | 13;
const DELSETELEM: u16 = SUBSYS | 14;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP: u16 = 0x300;

pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_ARP: u8 = 3;
pub(super) const NFPROTO_NETDEV: u8 = 5;
pub(super) const NFPROTO_IPV6: u8 = 10;

const REG_VERDICT: u32 = 0;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// The first of sixteen registers of four bytes.
pub(super) const REG: u32 = 8;

/// Where an offset in a packet counts from.
#[derive(Clone, Copy)]
pub(super) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// A set or map; elements may run out.
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) id: u32,
    /// Bytes of a key, each of its parts filled up to a multiple of four.
    pub(super) key: u32,
    /// Bytes of a value; 0: a set.
    pub(super) value: u32,
    /// Filled by rules, with at most so many elements; 0: not by rules.
    pub(super) dynamic: u32,
}

/// A chain at a hook.
pub(super) struct Hook<'a> {
    pub(super) chain: &'a str,
    pub(super) number: u32,
    pub(super) priority: i32,
    /// Of the `netdev` family.
    pub(super) device: Option<&'a str>,
}

/// An element: its key, and its value when it is one of a map.
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// A transaction on the table of one name: all of it or nothing.
pub(super) struct Batch<'a> {
    socket: &'a mut Netlink,
    table: &'static str,
    builder: Builder,
    first: u32,
    last: u32,
}

impl<'a> Batch<'a> {
    pub(super) fn new(socket: &'a mut Netlink, table: &'static str) -> Batch<'a> {
        let first = socket.next_sequence();
        let mut builder = Builder::default();
        builder.message(BATCH_BEGIN, 0, first).put(&nfgenmsg(0, 10));
        Batch { socket, table, builder, first, last: first }
    }

    fn object(&mut self, kind: u16, flags: u16, family: u8) -> &mut Builder {
        self.last = self.socket.next_sequence();
        let table = self.table;
        let object = self.builder.message(kind, flags | NLM_F_ACK, self.last).put(&nfgenmsg(family, 0));
        // The table's name is attribute 1 of every object.
        object.text(1, table)
    }

    pub(super) fn table(&mut self, family: u8) {
        self.object(NEWTABLE, NLM_F_CREATE, family);
    }

    /// Deletes the table, whether it is there or not.
    pub(super) fn no_table(&mut self, family: u8) {
        // Added first, so that deleting it cannot fail.
        self.table(family);
        self.object(DELTABLE, 0, family);
    }

    pub(super) fn set(&mut self, family: u8, set: &Set) {
        // Flags: 0x10 timeout, 0x8 map, 0x20 filled by rules.
        let mut flags = 0x10;
        flags |= if set.value > 0 { 0x8 } else { 0 };
        flags |= if set.dynamic > 0 { 0x20 } else { 0 };
        // NFTA_SET_*: name 2, flags 3, key type 4 and length 5, data type 6 and length 7, desc 9 { size 1 },
        // id 10. Types are for people: 7 = ipv4_addr, 8 = ipv6_addr, 9 = ether_addr, 13 = inet_service, six bits each.
        let flow = |addr: u32| (addr << 18) | (addr << 12) | (13 << 6) | 13;
        let kind = |bytes| match (bytes, set.dynamic) {
            (4, _) => 7,
            (6, _) => 9,
            (16, 0) => 8,
            (16, _) => flow(7),
            _ => flow(8),
        };
        let object = self.object(NEWSET, NLM_F_CREATE, family).text(2, set.name).be32(3, flags);
        object.be32(4, kind(set.key)).be32(5, set.key);
        if set.value > 0 {
            object.be32(6, kind(set.value)).be32(7, set.value);
        }
        if set.dynamic > 0 {
            object.nest(9, |b| {
                b.be32(1, set.dynamic);
            });
        }
        object.be32(10, set.id);
    }

    pub(super) fn chain(&mut self, family: u8, hook: &Hook<'_>) {
        // NFTA_CHAIN_*: name 3, hook 4 { number 1, priority 2, device 3 }, policy 5, type 7.
        let chain = self.object(NEWCHAIN, NLM_F_CREATE, family).text(3, hook.chain);
        chain.nest(4, |b| {
            b.be32(1, hook.number).attr(2, &hook.priority.to_be_bytes());
            if let Some(device) = hook.device {
                b.text(3, device);
            }
        });
        chain.be32(5, NF_ACCEPT).text(7, "filter");
    }

    pub(super) fn rule(&mut self, family: u8, chain: &str, rule: impl FnOnce(&mut Rule<'_>)) {
        // NFTA_RULE_*: chain 2, expressions 4.
        let object = self.object(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family).text(2, chain);
        object.nest(4, |b| rule(&mut Rule(b)));
    }

    /// Adds elements, or removes them. One that is there keeps its timeout on most kernels.
    fn elements(
        &mut self,
        add: bool,
        family: u8,
        set: &str,
        elements: &[Element],
        timeout: Option<Duration>,
    ) {
        // NFTA_SET_ELEM_LIST_*: set 2, elements 3; NFTA_SET_ELEM_*: key 1 { value 1 }, data 2 { value 1 },
        // timeout 4.
        let (kind, flags) = if add { (NEWSETELEM, NLM_F_CREATE) } else { (DELSETELEM, 0) };
        self.object(kind, flags, family).text(2, set).nest(3, |b| {
            for element in elements {
                b.nest(1, |b| {
                    b.nest(1, |b| {
                        b.attr(1, &element.key);
                    });
                    if let (true, Some(value)) = (add, &element.value) {
                        b.nest(2, |b| {
                            b.attr(1, value);
                        });
                    }
                    if let Some(timeout) = timeout {
                        b.attr(4, &(timeout.as_millis().max(1) as u64).to_be_bytes());
                    }
                });
            }
        });
    }

    /// Elements that are there for `timeout` from now, whether they were before or not; of a map, with
    /// the value that they had.
    pub(super) fn renew(&mut self, family: u8, set: &str, elements: &[Element], timeout: Duration) {
        // One that is missing cannot be deleted, one that is there is not renewed: add, delete, add.
        self.elements(true, family, set, elements, None);
        self.elements(false, family, set, elements, None);
        self.elements(true, family, set, elements, Some(timeout));
    }

    /// Removes elements, whether they are there or not; of a map, with the value that they had.
    pub(super) fn remove(&mut self, family: u8, set: &str, elements: &[Element]) {
        self.elements(true, family, set, elements, None);
        self.elements(false, family, set, elements, None);
    }

    /// Removes elements that are there.
    pub(super) fn remove_present(&mut self, family: u8, set: &str, elements: &[Element]) {
        self.elements(false, family, set, elements, None);
    }

    pub(super) fn commit(mut self) -> io::Result<()> {
        let end = self.socket.next_sequence();
        self.builder.message(BATCH_END, 0, end).put(&nfgenmsg(0, 10));
        self.socket.send(self.builder.finish())?;
        self.socket.answers(self.first, self.last, |_, _| {})
    }
}

/// The keys of all elements of a set.
pub(super) fn keys(
    socket: &mut Netlink,
    (family, table, set): (u8, &str, &str),
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let sequence = socket.next_sequence();
    let mut b = Builder::default();
    // NFTA_SET_ELEM_LIST_*: table 1, set 2, elements 3; NFTA_SET_ELEM_*: key 1 { value 1 }.
    b.message(GETSETELEM, NLM_F_DUMP, sequence).put(&nfgenmsg(family, 0)).text(1, table).text(2, set);
    socket.send(b.finish())?;
    socket.answers(sequence, sequence, |kind, body| {
        let inner = |bytes, wanted| attributes(bytes).find(|(k, _)| *k == wanted).map(|(_, value)| value);
        let list = (kind == NEWSETELEM).then(|| inner(body.get(4..).unwrap_or_default(), 3)).flatten();
        for (_, element) in attributes(list.unwrap_or_default()) {
            if let Some(key) = inner(element, 1).and_then(|key| inner(key, 1)) {
                each(key);
            }
        }
    })
}

fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// A rule under construction: expressions in a row, each of which may end it.
pub(super) struct Rule<'a>(&'a mut Builder);

impl Rule<'_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Builder)) -> &mut Self {
        // NFTA_LIST_ELEM 1 { NFTA_EXPR_NAME 1, NFTA_EXPR_DATA 2 }.
        self.0.nest(1, |b| {
            b.text(1, name).nest(2, data);
        });
        self
    }

    /// Loads bytes of the packet into registers.
    pub(super) fn load(&mut self, base: Base, offset: u32, length: u32, register: u32) -> &mut Self {
        self.expression("payload", |b| {
            b.be32(1, register).be32(2, base as u32).be32(3, offset).be32(4, length);
        })
    }

    /// Writes a register into the packet. `pseudo`: the address is part of a transport checksum.
    pub(super) fn write(
        &mut self,
        register: u32,
        base: Base,
        offset: u32,
        length: u32,
        pseudo: bool,
    ) -> &mut Self {
        // NFTA_PAYLOAD_*: base 2, offset 3, length 4, source register 5, checksum type 6 and offset 7,
        // flags 8 (1: transport checksum over a pseudo header).
        self.expression("payload", |b| {
            b.be32(2, base as u32).be32(3, offset).be32(4, length).be32(5, register).be32(6, 0).be32(7, 0);
            b.be32(8, u32::from(pseudo));
        })
    }

    /// The bytes here are these.
    pub(super) fn is(&mut self, base: Base, offset: u32, value: &[u8]) -> &mut Self {
        self.load(base, offset, value.len() as u32, REG).equals(value)
    }

    /// The first register is this.
    pub(super) fn equals(&mut self, value: &[u8]) -> &mut Self {
        self.compare(0, value)
    }

    /// The first register is at most this.
    pub(super) fn at_most(&mut self, value: &[u8]) -> &mut Self {
        self.compare(3, value)
    }

    /// NFTA_CMP_*: source register 1, operator 2, data 3 { value 1 }.
    fn compare(&mut self, operator: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |b| {
            b.be32(1, REG).be32(2, operator).nest(3, |b| {
                b.attr(1, value);
            });
        })
    }

    /// The TCP segment begins a connection (or, `not`, does not): SYN without ACK.
    pub(super) fn begins(&mut self, not: bool) -> &mut Self {
        // NFTA_BITWISE_*: source 1, destination 2, length 3, mask 4 { value 1 }, xor 5 { value 1 }.
        self.load(Base::Transport, 13, 1, REG).expression("bitwise", |b| {
            b.be32(1, REG).be32(2, REG).be32(3, 1);
            b.nest(4, |b| {
                b.attr(1, &[0x12]);
            });
            b.nest(5, |b| {
                b.attr(1, &[0]);
            });
        });
        self.compare(u32::from(not), &[0x02])
    }

    /// A property of the packet is this. Keys: protocol 1, type 19.
    pub(super) fn meta(&mut self, key: u32, value: &[u8]) -> &mut Self {
        // NFTA_META_*: destination register 1, key 2.
        self.expression("meta", |b| {
            b.be32(1, REG).be32(2, key);
        });
        self.equals(value)
    }

    /// A number in a register.
    pub(super) fn constant(&mut self, register: u32, value: u32) -> &mut Self {
        // NFTA_IMMEDIATE_*: destination 1, data 2 { value 1 }.
        self.expression("immediate", |b| {
            b.be32(1, register).nest(2, |b| {
                b.attr(1, &value.to_ne_bytes());
            });
        })
    }

    /// What stands in registers from `register` on is an element of the set.
    pub(super) fn is_in(&mut self, set: &str, register: u32) -> &mut Self {
        // NFTA_LOOKUP_*: set 1, source register 2, destination register 3, flags 5 (1: inverted).
        self.expression("lookup", |b| {
            b.text(1, set).be32(2, register);
        })
    }

    /// It is not.
    pub(super) fn is_not_in(&mut self, set: &str, register: u32) -> &mut Self {
        self.expression("lookup", |b| {
            b.text(1, set).be32(2, register).be32(5, 1);
        })
    }

    /// It is a key of the map, whose value goes into registers from `to` on.
    pub(super) fn map(&mut self, map: &str, register: u32, to: u32) -> &mut Self {
        self.expression("lookup", |b| {
            b.text(1, map).be32(2, register).be32(3, to);
        })
    }

    /// Adds it to the set, or renews it there.
    pub(super) fn add_to(&mut self, set: &str, register: u32, timeout: Duration) -> &mut Self {
        // NFTA_DYNSET_*: set 1, operation 3 (1: update), key register 4, timeout 6.
        self.expression("dynset", |b| {
            b.text(1, set).be32(3, 1).be32(4, register);
            b.attr(6, &(timeout.as_millis() as u64).to_be_bytes());
        })
    }

    /// Sends the packet to the neighbour whose address stands in a register, on the interface whose
    /// number stands in another, and is done with it.
    pub(super) fn forward(&mut self, device: u32, neighbour: u32, family: u8) {
        self.expression("fwd", |b| {
            b.be32(1, device).be32(2, neighbour).be32(3, u32::from(family));
        });
    }

    pub(super) fn accept(&mut self) {
        self.verdict(NF_ACCEPT);
    }

    pub(super) fn drop(&mut self) {
        self.verdict(NF_DROP);
    }

    fn verdict(&mut self, code: u32) {
        // NFTA_IMMEDIATE_*: destination 1, data 2 { verdict 2 { code 1 } }.
        self.expression("immediate", |b| {
            b.be32(1, REG_VERDICT).nest(2, |b| {
                b.nest(2, |b| {
                    b.be32(1, code);
                });
            });
        });
    }
}

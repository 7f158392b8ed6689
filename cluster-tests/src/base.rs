//! A piece of the loopback network for one test: 127.B.C.0/24.

use std::net::TcpListener;

/// Reserved for as long as it lives: every process that plays by these rules holds a listener on the
/// same port of its piece.
#[derive(Debug)]
pub struct Base {
    prefix: String,
    _reserved: TcpListener,
}

const RESERVING_PORT: u16 = 65_001;

impl Base {
    /// Reserves a piece that nobody uses.
    ///
    /// # Panics
    /// When a hundred tries find none.
    pub fn free() -> Base {
        for _ in 0..100 {
            // 127.0 and 127.1 are used by people.
            let (b, c) = (rand::random_range(2..=254u8), rand::random_range(0..=255u8));
            let prefix = format!("127.{b}.{c}");
            if let Ok(reserved) = TcpListener::bind(format!("{prefix}.250:{RESERVING_PORT}")) {
                return Base { prefix, _reserved: reserved };
            }
        }
        panic!("no free piece of 127.0.0.0/8");
    }

    /// The first three numbers.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// An address in it.
    pub fn ip(&self, last: u8) -> String {
        format!("{}.{last}", self.prefix)
    }

    /// An address and port in it.
    pub fn at(&self, last: u8, port: u16) -> String {
        format!("{}.{last}:{port}", self.prefix)
    }
}

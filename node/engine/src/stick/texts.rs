//! The dictionary of `server_key`: each text that a slot holds once, by number.
//!
//! Numbers are of this process; on the wire and in digests the text itself stands. 0 is no text. Names
//! and addresses of servers are few; what peers send beyond [`LIMIT`] is taken for none.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

const LIMIT: usize = 65_536;
/// Longest text: a name of a server, or an address with its port.
pub(crate) const LONGEST: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Texts(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    list: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
}

impl Texts {
    /// The number of a text, given to it if it has none.
    pub(crate) fn intern(&self, text: &str) -> u32 {
        if text.is_empty() || text.len() > LONGEST {
            return 0;
        }
        if let Some(&number) = self.0.read().numbers.get(text) {
            return number;
        }
        let mut known = self.0.write();
        if let Some(&number) = known.numbers.get(text) {
            return number;
        }
        if known.list.len() >= LIMIT {
            return 0;
        }
        let text: Arc<str> = text.into();
        known.list.push(text.clone());
        let number = known.list.len() as u32;
        known.numbers.insert(text, number);
        number
    }

    /// The text of a number.
    pub(crate) fn get(&self, number: u32) -> Option<Arc<str>> {
        self.0.read().list.get((number as usize).checked_sub(1)?).cloned()
    }
}

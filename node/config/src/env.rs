//! What a configuration is read from, and what the parser may ask of the world.
//!
//! The parser itself opens nothing and resolves nothing: the program hands it the bytes of the files
//! as [`Source`]s and an [`Env`] that answers for variables, accounts and host names. Tests use
//! [`StaticEnv`].

use std::collections::HashMap;
use std::net::IpAddr;

/// One configuration file: its name, for messages, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// As given on the command line.
    pub name: String,
    /// The content, unchecked.
    pub text: Vec<u8>,
}

impl Source {
    /// A source from a name and any kind of text.
    pub fn new(name: impl Into<String>, text: impl Into<Vec<u8>>) -> Source {
        Source { name: name.into(), text: text.into() }
    }
}

/// The world as far as a configuration refers to it.
pub trait Env {
    /// Value of an environment variable.
    fn var(&self, name: &str) -> Option<String>;

    /// User id of an account name.
    fn user(&self, name: &str) -> Option<u32>;

    /// Group id of a group name.
    fn group(&self, name: &str) -> Option<u32>;

    /// First address of a host name that is not a literal address.
    ///
    /// # Errors
    /// Why it does not resolve.
    fn resolve(&self, host: &str) -> Result<IpAddr, String>;

    /// The content of a file that the configuration names, at most `max` bytes of it.
    ///
    /// # Errors
    /// Why it can't be read.
    fn read(&self, file: &str, max: u64) -> Result<Vec<u8>, String> {
        let _ = (file, max);
        Err("files can't be read here".to_owned())
    }
}

/// An [`Env`] of fixed answers.
#[derive(Clone, Debug, Default)]
pub struct StaticEnv {
    /// Environment variables.
    pub vars: HashMap<String, String>,
    /// User ids by name.
    pub users: HashMap<String, u32>,
    /// Group ids by name.
    pub groups: HashMap<String, u32>,
    /// Addresses by host name.
    pub hosts: HashMap<String, IpAddr>,
    /// Files by name.
    pub files: HashMap<String, Vec<u8>>,
}

impl Env for StaticEnv {
    fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).cloned()
    }

    fn user(&self, name: &str) -> Option<u32> {
        self.users.get(name).copied()
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.groups.get(name).copied()
    }

    fn resolve(&self, host: &str) -> Result<IpAddr, String> {
        self.hosts.get(host).copied().ok_or_else(|| "name not known".to_owned())
    }

    fn read(&self, file: &str, max: u64) -> Result<Vec<u8>, String> {
        match self.files.get(file) {
            Some(text) if text.len() as u64 > max => Err(format!("longer than {max} bytes")),
            Some(text) => Ok(text.clone()),
            None => Err("No such file or directory".to_owned()),
        }
    }
}

//! Tests on loopback, without special rights.

mod bad_peers;
mod checks;
mod cloud;
mod cluster_command;
mod config;
mod configurations;
mod discovery;
mod durability;
mod failover;
mod full_disk;
mod hash;
mod layers;
mod members;
mod membership;
mod patterns;
mod places;
mod reload;
mod remote;
mod scaling;
mod secured;
mod service;
mod stick;
mod tls;

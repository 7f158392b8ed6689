//! The forwarding plane: moves bytes as the engine decides.

pub mod log;
pub mod stats_page;

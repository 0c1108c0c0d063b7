//! Ringlock: hardware-accelerated TLS termination. The modules below are in layer order; imports go down only
//! (`tests/tidy.rs`). ARCHITECTURE.md has the map.

pub mod cli;
pub mod config;
pub mod error;
pub mod limits;
pub mod metrics;

//! Ringlock: hardware-accelerated TLS termination. The modules below are in layer order, lowest first; imports go down
//! only (`tests/tidy.rs`). ARCHITECTURE.md has the map.

pub mod limits;
pub mod mutants;

pub mod error;

pub mod address;
pub mod buffers;
pub mod config;
pub mod metrics;
pub mod record;
pub mod timestamp;

pub mod crypto;
pub mod identity;
pub mod snapshot;
pub mod tls;

pub mod net;
pub mod proxy;

pub mod worker;

pub mod cli;
pub mod control;
pub mod server;

//! Ringlock: hardware-accelerated TLS termination. The modules below are in layer order; imports go down only
//! (`tests/tidy.rs`). ARCHITECTURE.md has the map.

pub mod buffers;
pub mod config;
pub mod crypto;
pub mod error;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod net;
pub mod record;
pub mod proxy;
pub mod tls;
pub mod record;

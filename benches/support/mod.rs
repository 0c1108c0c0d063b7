//! What the benches share.
#![allow(dead_code, reason = "each bench uses a part of it")]

pub(crate) mod cpu;
pub(crate) mod engines;
pub(crate) mod hellos;
pub(crate) mod records;
pub(crate) mod tls;
pub(crate) mod worker;

//! Key custody.

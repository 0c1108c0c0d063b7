//! aws-lc cleans up when a thread ends, which may be after a test has unloaded the module: so it stays loaded.

#![allow(clippy::print_stdout, reason = "this is how to tell cargo")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

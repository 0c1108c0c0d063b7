//! Any bytes as a file of revocation lists: read or refused, without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringlock::identity::client_auth::RevocationList;

fuzz_target!(|file: &[u8]| {
    if let Ok(lists) = RevocationList::all_in(file, "fuzz.crl") {
        assert!(!lists.is_empty());
    }
});

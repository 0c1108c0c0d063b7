//! Any text as a PKCS#11 URI and as the source of a PIN: no panic, no PIN taken, and what was read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringlock_hsm::uri::{PinSource, Uri};

/// As in the parser: encoding can make a URI longer than it may be.
const URI_BYTES_MAX: usize = 4096;

fuzz_target!(|text: &str| {
    if let Ok(source) = PinSource::parse(text) {
        assert_eq!(PinSource::parse(&source.to_string()), Ok(source));
    }
    let Ok(mut uri) = Uri::parse(text) else { return };
    let query = text.split_once('?').map_or("", |(_, query)| query);
    assert!(
        !query.split('&').any(|attribute| attribute.starts_with("pin-value=")),
        "a PIN was taken"
    );
    let written = uri.to_string();
    if written.len() <= URI_BYTES_MAX {
        // What nothing is compared with is not written.
        uri.ignored.clear();
        assert_eq!(Uri::parse(&written), Ok(uri));
    }
});

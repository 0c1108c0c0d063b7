//! Any bytes as what gateway and signer tell each other, however they are cut: no panic, and what was read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringlock_hsm::protocol::{self, Order, Reader, Report, Request, Response};

fuzz_target!(|input: (usize, Vec<u8>)| {
    let (piece, bytes) = input;
    let mut reader = Reader::default();
    for received in bytes.chunks(piece % 64 + 1) {
        reader.push(received);
        while let Ok(Some(message)) = reader.next_bytes() {
            if let Ok(order) = protocol::decode::<Order>(message) {
                assert_eq!(again(&order), Ok(Some(order)));
            }
            if let Ok(report) = protocol::decode::<Report>(message) {
                assert_eq!(again(&report), Ok(Some(report)));
            }
            let _ = protocol::decode::<Request<'_>>(message);
            let _ = protocol::decode::<Response<'_>>(message);
        }
    }
});

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(message: &T) -> Result<Option<T>, protocol::Garbled> {
    let mut bytes = Vec::new();
    protocol::write(message, &mut bytes);
    let mut reader = Reader::default();
    reader.push(&bytes);
    reader.next_message()
}

//! Records: their boundaries, and rustls' connection driven over them.

use rustls::AlertDescription;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

use super::Outboxes;
use crate::buffers::Sink;
use crate::limits::RECORD_BYTES_MAX;

/// Bytes of a record's header: type, version, length.
pub const HEADER_BYTES: usize = 5;
/// Expansion of one record by header, nonce, content type and tag, at most; for the suites we have.
const EXPANSION_BYTES: usize = 29;
/// Payload of a full record.
const FRAGMENT_BYTES: usize = 16 * 1024;

/// Where the record that starts at `at` ends, if `bytes` has its header and all of it.
#[must_use]
pub fn record_end(bytes: &[u8], at: usize) -> Option<usize> {
    let end = at + HEADER_BYTES + declared(bytes, at)?;
    (end <= bytes.len()).then_some(end)
}

/// The record that starts at `at` says that it is longer than any may be: it is not worth waiting for.
#[must_use]
pub fn is_oversized(bytes: &[u8], at: usize) -> bool {
    declared(bytes, at).is_some_and(|length| HEADER_BYTES + length > RECORD_BYTES_MAX)
}

fn declared(bytes: &[u8], at: usize) -> Option<usize> {
    let length = bytes.get(at + 3..at + 5)?;
    Some(usize::from(u16::from_be_bytes([length[0], length[1]])))
}

/// How many bytes `bytes`, which starts at a record, lacks to the end of its last record. Zero when it ends with one.
#[must_use]
pub fn missing(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(end) = record_end(bytes, at) {
        at = end;
    }
    match declared(bytes, at) {
        Some(length) => at + HEADER_BYTES + length - bytes.len(),
        None if at == bytes.len() => 0,
        None => at + HEADER_BYTES - bytes.len(),
    }
}

/// What one call of rustls came to.
pub(super) struct Processed {
    /// Bytes used up.
    pub(super) discard: usize,
    /// Application data came out.
    pub(super) data: bool,
    /// The peer's close_notify came.
    pub(super) closed: bool,
    /// The connection is over, by rustls' word; its alert is sealed.
    pub(super) error: Option<rustls::Error>,
}

/// Gives `received` to rustls until it wants more.
pub(super) fn process(
    connection: &mut UnbufferedServerConnection,
    received: &mut [u8],
    outboxes: &mut Outboxes<'_>,
) -> Processed {
    let mut processed = Processed {
        discard: 0,
        data: false,
        closed: false,
        error: None,
    };
    loop {
        let UnbufferedStatus { mut discard, state } =
            connection.process_tls_records(&mut received[processed.discard..]);
        let mut waiting = false;
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(Ok(record)) = traffic.next_record() {
                    discard += record.discard;
                    outboxes.plain.sink(outboxes.pool).write(record.payload);
                    processed.data = true;
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut data, &mut outboxes.sealed.sink(outboxes.pool));
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
            Ok(ConnectionState::PeerClosed) => processed.closed = true,
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => {
                waiting = true;
            }
            // Early data is never offered (max_early_data_size is 0).
            Ok(_) => waiting = true,
            Err(error) => processed.error = Some(error),
        }
        processed.discard += discard;
        // What rustls queued before it failed, its alert last, is still handed out. Then it must not see the same input
        // again: it would fail anew and queue another alert.
        let failed = processed.error.is_some() && !connection.wants_write();
        // Data asks for no answer: when nothing is left to read, another call would only say that rustls waits.
        let read = processed.data && processed.discard == received.len();
        if waiting || failed || read {
            return processed;
        }
    }
}

fn encode(
    data: &mut rustls::unbuffered::EncodeTlsData<'_, rustls::server::ServerConnectionData>,
    sealed: &mut Sink<'_>,
) {
    let mut room = 2048;
    loop {
        let space = sealed.space(room);
        match data.encode(space) {
            Ok(written) => {
                if let [21, 3, _, 0, 2, 2, description] = &mut space[..written]
                    && *description == u8::from(AlertDescription::AccessDenied)
                {
                    // rustls' word when no certificate fits the client. RFC 8446 section 6.2 has another for "unable to
                    // negotiate an acceptable set of security parameters".
                    *description = u8::from(AlertDescription::HandshakeFailure);
                }
                return sealed.commit(written);
            }
            Err(EncodeError::InsufficientSize(error)) => room = error.required_size,
            Err(EncodeError::AlreadyEncoded) => return sealed.commit(0),
        }
    }
}

/// Seals application data, or with `None` the close_notify. Nothing comes out once the keys are used up or our direction has ended.
pub(super) fn seal(connection: &mut UnbufferedServerConnection, plain: Option<&[u8]>, sealed: &mut Sink<'_>) {
    let length = plain.map_or(0, <[u8]>::len);
    let mut room = length + (length / FRAGMENT_BYTES + 1) * EXPANSION_BYTES;
    loop {
        match connection.process_tls_records(&mut []).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let space = sealed.space(room);
                let written = match plain {
                    Some(plain) => traffic.encrypt(plain, space),
                    None => traffic.queue_close_notify(space),
                };
                match written {
                    Ok(written) => return sealed.commit(written),
                    Err(EncryptError::InsufficientSize(error)) => room = error.required_size,
                    Err(EncryptError::EncryptExhausted) => return sealed.commit(0),
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, sealed),
            Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_counts_to_the_end_of_the_last_record() {
        assert_eq!(missing(&[]), 0);
        assert_eq!(missing(&[23, 3]), 3);
        assert_eq!(missing(&[23, 3, 3, 0, 2]), 2);
        assert_eq!(missing(&[23, 3, 3, 0, 2, 9]), 1);
        assert_eq!(missing(&[23, 3, 3, 0, 2, 9, 9]), 0);
        assert_eq!(missing(&[23, 3, 3, 0, 2, 9, 9, 23]), 4);
        assert_eq!(record_end(&[23, 3, 3, 0, 2, 9, 9, 23], 0), Some(7));
        assert_eq!(record_end(&[23, 3, 3, 0, 2, 9, 9, 23], 7), None);
        assert!(is_oversized(&[23, 3, 3, 255, 255], 0) && !is_oversized(&[23, 3, 3, 64, 255], 0));
    }
}

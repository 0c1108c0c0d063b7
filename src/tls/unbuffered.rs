//! rustls' connection, driven over the records of a handshake.

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{AlertDescription, Error};

/// What one call of rustls came to.
pub(super) struct Processed {
    /// Bytes used up.
    pub(super) discard: usize,
    /// The peer's close_notify came.
    pub(super) closed: bool,
    /// The connection is over, by rustls' word; its alert is in the output.
    pub(super) error: Option<rustls::Error>,
    /// Bytes for the peer.
    pub(super) output: Vec<u8>,
}

/// Gives `received` to rustls until it wants more.
pub(super) fn process(connection: &mut UnbufferedServerConnection, received: &mut [u8]) -> Processed {
    let mut processed = Processed {
        discard: 0,
        closed: false,
        error: None,
        output: Vec::new(),
    };
    loop {
        let UnbufferedStatus { discard, state } = connection.process_tls_records(&mut received[processed.discard..]);
        let mut waiting = false;
        match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let start = processed.output.len();
                encode(&mut data, &mut processed.output);
                if !matches!(processed.error, Some(Error::InvalidCertificate(_))) {
                    correct_alert(&mut processed.output[start..]);
                }
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
            Ok(ConnectionState::PeerClosed) => processed.closed = true,
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => {
                waiting = true;
            }
            // Data comes after the handshake, and early data is never offered (max_early_data_size is 0).
            Ok(_) => waiting = true,
            Err(error) => processed.error = Some(error),
        }
        processed.discard += discard;
        // What rustls queued before it failed, its alert last, is still handed out. Then it must not see the same input
        // again: it would fail anew and queue another alert.
        let failed = processed.error.is_some() && !connection.wants_write();
        if waiting || failed {
            return processed;
        }
    }
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, output: &mut Vec<u8>) {
    let start = output.len();
    let mut room = 1024;
    loop {
        output.resize(start + room, 0);
        match data.encode(&mut output[start..]) {
            Ok(written) => {
                output.truncate(start + written);
                return;
            }
            Err(EncodeError::InsufficientSize(error)) => room = error.required_size,
            Err(EncodeError::AlreadyEncoded) => return output.truncate(start),
        }
    }
}

/// rustls' word when no certificate of ours fits the client is access_denied. RFC 8446 section 6.2 has another for "unable to negotiate
/// an acceptable set of security parameters".
fn correct_alert(record: &mut [u8]) {
    if let [21, 3, _, 0, 2, 2, description] = record
        && *description == u8::from(AlertDescription::AccessDenied)
    {
        *description = u8::from(AlertDescription::HandshakeFailure);
    }
}

//! rustls' connection, driven over the records of a handshake.

use rustls::AlertDescription;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};

use crate::buffers::Sink;

/// What one call of rustls came to.
pub(super) struct Processed {
    /// Bytes used up.
    pub(super) discard: usize,
    /// The peer's close_notify came.
    pub(super) closed: bool,
    /// The connection is over, by rustls' word; its alert is sealed.
    pub(super) error: Option<rustls::Error>,
}

/// Gives `received` to rustls until it wants more.
pub(super) fn process(
    connection: &mut UnbufferedServerConnection,
    received: &mut [u8],
    sealed: &mut Sink<'_>,
) -> Processed {
    let mut processed = Processed {
        discard: 0,
        closed: false,
        error: None,
    };
    loop {
        let UnbufferedStatus { discard, state } = connection.process_tls_records(&mut received[processed.discard..]);
        let mut waiting = false;
        match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut data, sealed);
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

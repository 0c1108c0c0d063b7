//! Records as they come from the server: where each ends, and what those say that are not encrypted.

use super::script::alert_name;

/// Type of a change_cipher_spec record.
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
/// Type of an alert record.
pub(super) const ALERT: u8 = 21;
/// Type of a handshake record.
pub(super) const HANDSHAKE: u8 = 22;
/// Type of a record with data, and of every encrypted one of TLS 1.3.
pub(super) const APPLICATION_DATA: u8 = 23;

/// Length of a record's header.
pub(super) const HEADER: usize = 5;

/// What an encrypted alert of TLS 1.3 takes: level, description, the inner type and the tag. No handshake message is as short.
const ENCRYPTED_ALERT: usize = 2 + 1 + 16;

/// Bytes of a stream, cut into records.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// What came last, behind the begin of a record if there was one.
    buffer: Vec<u8>,
    /// Bytes of it that were handed out, 0 <= taken <= buffer.len()
    taken: usize,
    /// True as soon as something came that is no record. Nothing is kept from there on.
    nonsense: bool,
}

impl Records {
    /// Takes what was received.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !self.nonsense {
            // Once for all records that came before: there may be thousands of them in one piece.
            self.buffer.drain(..self.taken);
            self.taken = 0;
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole record, with its header.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let left = &self.buffer[self.taken..];
        if let Some(kind) = left.first()
            && !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(kind)
        {
            *self = Self {
                nonsense: true,
                ..Self::default()
            };
            return None;
        }
        let &[_, _, _, high, low, ..] = left else {
            return None;
        };
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        let record = left.get(..length)?.to_vec();
        self.taken += length;
        Some(record)
    }
}

/// A record with its header, for one that is sent.
pub(super) fn record(kind: u8, version: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("records are made of at most 2^14 bytes and a tag");
    let mut record = vec![kind, version[0], version[1]];
    record.extend(length.to_be_bytes());
    record.extend_from_slice(payload);
    record
}

/// The alert in a record that nobody can open, if it is one: `encrypted` when only its length tells.
pub(super) fn plain_alert(record: &[u8]) -> Option<String> {
    match record {
        [ALERT, _, _, 0, 2, _, description] => Some(alert_name(*description)),
        [APPLICATION_DATA, ..] if record.len() == HEADER + ENCRYPTED_ALERT => Some("encrypted".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn records_are_found_however_they_come_in_pieces() {
        let first = record(HANDSHAKE, [3, 3], &[7; 300]);
        let second = record(ALERT, [3, 3], &[2, 40]);
        let stream = [first.clone(), second.clone()].concat();
        for size in [1, 2, 5, 6, 304, 305, 400] {
            let mut records = Records::default();
            let mut found = Vec::new();
            for piece in stream.chunks(size) {
                records.push(piece);
                found.extend(std::iter::from_fn(|| records.next()));
            }
            assert_eq!(found, [first.clone(), second.clone()], "in pieces of {size}");
        }
        assert_eq!(plain_alert(&first), None);
        assert_eq!(plain_alert(&second).unwrap(), "handshake_failure");
        assert_eq!(
            plain_alert(&record(APPLICATION_DATA, [3, 3], &[0; 19])).unwrap(),
            "encrypted"
        );
    }

    #[test]
    fn many_records_in_one_piece_take_no_longer_each() {
        const COUNT: usize = 350_000;
        let begin = Instant::now();
        let mut records = Records::default();
        records.push(&record(ALERT, [3, 3], &[0]).repeat(COUNT));
        assert_eq!(std::iter::from_fn(|| records.next()).count(), COUNT);
        // If each moved all that is behind it, that would be 370 GB.
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
        records.push(&[]);
        assert!(records.buffer.is_empty());
    }

    #[test]
    fn what_is_no_record_is_not_kept() {
        let mut records = Records::default();
        records.push(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        assert_eq!(records.next(), None);
        records.push(&[0; 100_000]);
        assert!(records.buffer.is_empty());
    }
}

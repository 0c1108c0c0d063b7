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
    /// At most one incomplete record and what came with its last byte.
    buffer: Vec<u8>,
    /// True as soon as something came that is no record. Nothing is kept from there on.
    nonsense: bool,
}

impl Records {
    /// Takes what was received.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !self.nonsense {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole record, with its header.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(kind) = self.buffer.first()
            && !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(kind)
        {
            self.nonsense = true;
            self.buffer = Vec::new();
        }
        let &[_, _, _, high, low, ..] = self.buffer.as_slice() else {
            return None;
        };
        let end = HEADER + usize::from(u16::from_be_bytes([high, low]));
        if self.buffer.len() < end {
            return None;
        }
        let rest = self.buffer.split_off(end);
        Some(std::mem::replace(&mut self.buffer, rest))
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
    fn what_is_no_record_is_not_kept() {
        let mut records = Records::default();
        records.push(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        assert_eq!(records.next(), None);
        records.push(&[0; 100_000]);
        assert!(records.buffer.is_empty());
    }
}

//! Attacks on the beginning of a connection. The ClientHello is the same one in all connections and no answer needs a key, so
//! they cost next to nothing on this side.

use std::sync::Arc;

use super::records::{HANDSHAKE, HEADER, Records, plain_alert};
use super::script::{Next, Script};

/// Most bytes that are handed to the kernel at once.
const STEP: usize = 64 * 1024;

/// Handshake message type of a ServerHello.
const SERVER_HELLO: u8 = 2;

/// Extension of a ServerHello of TLS 1.3 by which the server resumes (RFC 8446 section 4.2.11).
const PRE_SHARED_KEY: u16 = 41;

/// What a connection is to send, and what then.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    variant: &'static str,
    bytes: Arc<[u8]>,
    goal: Goal,
    /// One byte at a time, with a pause behind each.
    slow: bool,
}

/// When a connection has done what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Never: it is held.
    Hold,
    /// When all is sent: RST.
    ResetWhenSent,
    /// When the server's answer begins: RST.
    ResetWhenAnswered,
    /// When the server answers with a ServerHello.
    SeeWhetherAnswered,
    /// The same, whose contents tell whether it resumes.
    SeeWhetherResumed,
}

impl Opening {
    /// Sends `bytes`.
    pub(super) fn new(variant: &'static str, bytes: impl Into<Arc<[u8]>>, goal: Goal) -> Self {
        Self {
            variant,
            bytes: bytes.into(),
            goal,
            slow: false,
        }
    }

    /// One byte at a time.
    pub(super) fn slowly(mut self) -> Self {
        self.slow = true;
        self
    }

    /// The script of one connection.
    pub(super) fn script(&self) -> OpeningScript {
        OpeningScript {
            opening: self.clone(),
            sent: 0,
            records: Records::default(),
            alert: None,
        }
    }
}

/// One connection.
pub(super) struct OpeningScript {
    opening: Opening,
    /// 0 <= sent <= opening.bytes.len()
    sent: usize,
    records: Records,
    alert: Option<String>,
}

impl Script for OpeningScript {
    fn variant(&self) -> &'static str {
        self.opening.variant
    }

    fn ready(&mut self, out: &mut Vec<u8>) -> Next {
        let left = &self.opening.bytes[self.sent..];
        if left.is_empty() {
            return match self.opening.goal {
                Goal::ResetWhenSent => Next::Reset,
                Goal::Hold | Goal::ResetWhenAnswered | Goal::SeeWhetherAnswered | Goal::SeeWhetherResumed => Next::Wait,
            };
        }
        let (step, next) = if self.opening.slow {
            (1, Next::SendThenPause)
        } else {
            (STEP, Next::Send)
        };
        let step = step.min(left.len());
        out.extend_from_slice(&left[..step]);
        self.sent += step;
        next
    }

    fn received(&mut self, bytes: &[u8], _: &mut Vec<u8>) -> Next {
        self.records.push(bytes);
        while let Some(record) = self.records.next() {
            self.alert = plain_alert(&record).or(self.alert.take());
            let Some(answer) = server_hello(&record) else { continue };
            match self.opening.goal {
                Goal::SeeWhetherAnswered => return Next::Done("answered"),
                Goal::SeeWhetherResumed => {
                    let resumes = resumes(answer, &self.opening.bytes);
                    return Next::Done(if resumes { "resumed" } else { "full_handshake" });
                }
                Goal::Hold | Goal::ResetWhenSent | Goal::ResetWhenAnswered => {}
            }
        }
        match self.opening.goal {
            Goal::ResetWhenAnswered if self.alert.is_none() => Next::Reset,
            Goal::Hold
            | Goal::ResetWhenSent
            | Goal::ResetWhenAnswered
            | Goal::SeeWhetherAnswered
            | Goal::SeeWhetherResumed => Next::Wait,
        }
    }

    fn alert(&self) -> Option<String> {
        self.alert.clone()
    }
}

/// The ServerHello at the begin of a record.
fn server_hello(record: &[u8]) -> Option<&[u8]> {
    match record {
        [HANDSHAKE, _, _, _, _, SERVER_HELLO, a, b, c, body @ ..] => {
            body.get(..u32::from_be_bytes([0, *a, *b, *c]) as usize)
        }
        _ => None,
    }
}

/// Whether the server resumes what the ClientHello (in its record) offers. In TLS 1.2 it repeats the session's id (RFC 5077 section 3.4); in
/// TLS 1.3 it repeats any id, and names the key.
fn resumes(server_hello: &[u8], client_hello: &[u8]) -> bool {
    let Some((id, rest)) = session_id(server_hello) else {
        return false;
    };
    // The suite, the compression, the length of the extensions.
    let mut extensions = rest.get(5..).unwrap_or_default();
    let mut kinds = Vec::new();
    while let [kind_high, kind_low, high, low, body @ ..] = extensions {
        kinds.push(u16::from_be_bytes([*kind_high, *kind_low]));
        extensions = body
            .get(usize::from(u16::from_be_bytes([*high, *low]))..)
            .unwrap_or_default();
    }
    const SUPPORTED_VERSIONS: u16 = 43;
    if kinds.contains(&SUPPORTED_VERSIONS) {
        return kinds.contains(&PRE_SHARED_KEY);
    }
    let offered = client_hello.get(HEADER + 4..).and_then(session_id);
    !id.is_empty() && offered.is_some_and(|(offered, _)| offered == id)
}

/// The session id of a hello, and what is behind it: version and random are before.
fn session_id(hello: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = hello.get(2 + 32..)?.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::records::record;

    fn hello(id: &[u8], extensions: &[u16]) -> Vec<u8> {
        let mut body = [&[3, 3][..], &[7; 32], &[id.len() as u8], id, &[0x13, 1, 0]].concat();
        body.extend((extensions.len() as u16 * 4).to_be_bytes());
        body.extend(
            extensions
                .iter()
                .flat_map(|kind| [(kind >> 8) as u8, *kind as u8, 0, 0]),
        );
        body
    }

    fn in_record(kind: u8, body: &[u8]) -> Vec<u8> {
        let message = [&[kind, 0, 0, body.len() as u8], body].concat();
        record(HANDSHAKE, [3, 3], &message)
    }

    #[test]
    fn a_resumption_shows_in_the_server_hello() {
        let offered = in_record(1, &hello(b"mine", &[]));
        assert!(resumes(&hello(b"mine", &[]), &offered), "TLS 1.2, the id comes back");
        assert!(!resumes(&hello(b"other", &[]), &offered), "TLS 1.2, another id");
        assert!(
            !resumes(&hello(b"", &[]), &in_record(1, &hello(b"", &[]))),
            "TLS 1.2, none"
        );
        assert!(
            !resumes(&hello(b"mine", &[43, 51]), &offered),
            "TLS 1.3, any id comes back"
        );
        assert!(
            resumes(&hello(b"mine", &[51, 41, 43]), &offered),
            "TLS 1.3, the key is named"
        );
        assert!(!resumes(&[], &offered));
    }

    fn sent(script: &mut OpeningScript) -> (Vec<u8>, Vec<Next>) {
        let (mut all, mut steps) = (Vec::new(), Vec::new());
        loop {
            let mut out = Vec::new();
            steps.push(script.ready(&mut out));
            if out.is_empty() {
                return (all, steps);
            }
            all.extend(out);
        }
    }

    #[test]
    fn a_slow_opening_pauses_behind_each_byte() {
        let mut script = Opening::new("hello", *b"abc", Goal::Hold).slowly().script();
        let (bytes, steps) = sent(&mut script);
        assert_eq!(bytes, b"abc");
        assert_eq!(
            steps,
            [
                Next::SendThenPause,
                Next::SendThenPause,
                Next::SendThenPause,
                Next::Wait
            ]
        );
    }

    #[test]
    fn goals_end_a_connection_when_they_are_reached() {
        let script = |goal| Opening::new("hello", in_record(1, &hello(b"mine", &[])), goal).script();
        let answer = in_record(SERVER_HELLO, &hello(b"mine", &[]));
        let alert = record(super::super::records::ALERT, [3, 3], &[2, 50]);
        let out = &mut Vec::new();
        assert_eq!(sent(&mut script(Goal::ResetWhenSent)).1, [Next::Send, Next::Reset]);
        assert_eq!(script(Goal::ResetWhenAnswered).received(&answer[..1], out), Next::Reset);
        assert_eq!(script(Goal::Hold).received(&answer, out), Next::Wait);
        assert_eq!(
            script(Goal::SeeWhetherAnswered).received(&answer, out),
            Next::Done("answered")
        );
        assert_eq!(
            script(Goal::SeeWhetherResumed).received(&answer, out),
            Next::Done("resumed")
        );
        let mut refused = script(Goal::SeeWhetherAnswered);
        assert_eq!(refused.received(&alert, out), Next::Wait);
        assert_eq!(refused.alert().unwrap(), "decode_error");
        assert!(out.is_empty());
    }
}

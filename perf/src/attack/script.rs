//! What one connection of an attack does: bytes in, bytes out. Scripts know no socket and no clock.

use rustls::AlertDescription;

/// One connection of an attack.
pub(super) trait Script {
    /// Which way of the mode this is.
    fn variant(&self) -> &'static str;

    /// The connection is there, or what was to be sent is, and the pause after it is over. Puts what comes next into `out`.
    fn ready(&mut self, out: &mut Vec<u8>) -> Next;

    /// The server has sent something. [`Next::Wait`] changes nothing about what is under way.
    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Next;

    /// The alert that the server has sent.
    fn alert(&self) -> Option<String>;

    /// How often the thing was done that the mode repeats.
    fn messages(&self) -> u64 {
        0
    }
}

/// What a script wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Send `out`, then [`Script::ready`].
    Send,
    /// The same with a pause before [`Script::ready`].
    SendThenPause,
    /// Nothing, until the server says something.
    Wait,
    /// Send a RST: that was it.
    Reset,
    /// Close: that was it, and it has come to this.
    Done(&'static str),
}

/// An alert by its name in the RFCs.
pub(super) fn alert_name(description: u8) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", AlertDescription::from(description)).chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_have_the_names_of_the_rfcs() {
        assert_eq!(alert_name(50), "decode_error");
        assert_eq!(alert_name(100), "no_renegotiation");
        assert_eq!(alert_name(47), "illegal_parameter");
    }
}

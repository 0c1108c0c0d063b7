//! What a simulated network does to its users, drawn once per seed.

use std::time::Duration;

use super::random::Random;
use crate::limits::RECEIVE_BYTES_MAX;

/// Sizes, delays, and how often things go wrong (in a thousand). Some are zero for a seed, so that what one fault hides from the
/// others is seen as well.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Longest way of a segment.
    pub latency_max: Duration,
    /// Bytes that one direction of a connection holds.
    pub window: usize,
    /// Largest segment.
    pub segment_max: usize,
    /// Most that one receive brings.
    pub receive_max: usize,
    /// Buffers that receives share.
    pub receive_buffers: usize,
    /// A send takes less than there is room for.
    pub partial_send: usize,
    /// An operation completes later than it could.
    pub late: usize,
    /// By this much at most.
    pub late_max: Duration,
    /// A receive says that more is there, and nothing is.
    pub spurious_more: usize,
    /// A receive does not say that more is there.
    pub missing_more: usize,
    /// A cancelled operation completes normally if it can.
    pub cancel_race: usize,
    /// A receive fails, and the connection with it.
    pub receive_error: usize,
    /// A send fails, for lack of memory or with the connection.
    pub send_error: usize,
    /// A connection attempt fails before it begins.
    pub connect_error: usize,
    /// Accepting fails for lack of descriptors.
    pub accept_error: usize,
}

impl Faults {
    /// The faults of a seed.
    #[must_use]
    pub fn draw(random: &mut Random) -> Faults {
        let mut ratio = |most: usize| {
            let value = random.between(1, most);
            if random.chance(500) { value } else { 0 }
        };
        let (partial_send, late) = (ratio(700), ratio(300));
        let (spurious_more, missing_more) = (ratio(300), ratio(900));
        let (receive_error, send_error) = (ratio(8), ratio(8));
        let (connect_error, accept_error) = (ratio(100), ratio(300));
        let cancel_race = ratio(900);
        Faults {
            latency_max: Duration::from_micros(random.pick(&[0, 100, 1_000, 20_000])),
            window: random.pick(&[4 * 1024, 16 * 1024, 64 * 1024, 256 * 1024]),
            segment_max: random.pick(&[400, 1460, 16 * 1024, 128 * 1024]),
            receive_max: random.pick(&[64, 1000, 16 * 1024, RECEIVE_BYTES_MAX]),
            receive_buffers: random.pick(&[1, 3, 32]),
            partial_send,
            late,
            late_max: Duration::from_millis(5),
            spurious_more,
            missing_more,
            cancel_race,
            receive_error,
            send_error,
            connect_error,
            accept_error,
        }
    }

    /// The network carries large streams in few steps.
    #[must_use]
    pub fn carries_bulk(&self) -> bool {
        self.segment_max.min(self.receive_max).min(self.window) >= 16 * 1024
    }
}

//! Clients that were let in and are revoked by a later snapshot: their sessions end, where listeners want that.

use super::Worker;
use crate::limits::{SESSIONS_LOOKED_AT_PER_TURN, TURN_BUDGET};
use crate::net::driver::Driver;
use crate::proxy::session::Input;
use crate::tls::Tls;

impl<D: Driver, T: Tls> Worker<D, T> {
    /// Goes on with looking through the sessions that are older than the current snapshot, for as long as traffic may be kept waiting.
    pub(super) fn look_for_revoked(&mut self) {
        for _ in 0..SESSIONS_LOOKED_AT_PER_TURN {
            let Some(slot) = self.unchecked else { return };
            let Some(entry) = self.slots.get(slot as usize) else {
                self.unchecked = None;
                return;
            };
            self.unchecked = Some(slot + 1);
            if entry.live.is_some() {
                self.obey_session(slot);
            }
            if self.driver.busy() >= TURN_BUDGET {
                return;
            }
        }
    }

    /// Once for each snapshot that comes while the session lives. One that is in its handshake is looked at when that is complete: it has
    /// been verified by the rules that it began with.
    pub(super) fn end_if_revoked(&mut self, slot: u32) {
        let Some(live) = self.slots[slot as usize].live.as_mut() else {
            return;
        };
        if live.client_good_in == self.epoch || live.session.client_chain().is_empty() {
            return;
        }
        live.client_good_in = self.epoch;
        let session = &live.session;
        let snapshot = |position: usize| {
            self.generations[position]
                .as_ref()
                .map(|generation| &generation.snapshot)
        };
        let own = snapshot(live.config).expect("a live session's generation is kept");
        let own = &own.listeners[session.listener()];
        let now = snapshot(self.current).and_then(|snapshot| snapshot.listener(&own.name));
        let revoked = now.and_then(|now| {
            let name = session.tls().server_name();
            now.admission(name).revokes(own.admission(name), session.client_chain())
        });
        let Some(why) = revoked else { return };
        self.tell(slot, Input::Revoked(why));
    }
}

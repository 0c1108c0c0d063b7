//! Certificates, CAs of clients and revocation lists that near their end while the gateway runs: each stage is told once, so that whoever
//! never reloads is warned, too.

use std::collections::HashMap;

use crate::identity::Identity;
use crate::identity::expiry::{Stage, Validity, span};
use crate::identity::facts::CertificateFacts;
use crate::limits::EXPIRY_LINES_MAX;
use crate::snapshot::Snapshot;

/// What has been told of what is in force.
#[derive(Debug, Default)]
pub(super) struct Expiries {
    /// By fingerprint, as identities share CAs; or by what else tells one from another.
    told: HashMap<String, Stage>,
    /// When the next stage of one of them begins, seconds since 1970.
    next: Option<i64>,
}

impl Expiries {
    /// Of a snapshot of which everything has been told at `now`.
    pub(super) fn told(snapshot: &Snapshot, now: i64) -> Expiries {
        let mut expiries = Expiries::default();
        expiries.note(snapshot, now);
        expiries
    }

    /// There is another snapshot, of which everything has been told at `now`.
    pub(super) fn note(&mut self, snapshot: &Snapshot, now: i64) {
        // Somebody else has said the same.
        let _ = self.look(snapshot, now);
    }

    /// There is another snapshot, of which nothing has been told.
    pub(super) fn look_again(&mut self) {
        self.next = Some(i64::MIN);
    }

    /// Warns of what has not been told. Costs nothing until there is something.
    pub(super) fn warn(&mut self, snapshot: &Snapshot, now: i64) {
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        let lines = self.look(snapshot, now);
        for line in lines.iter().take(EXPIRY_LINES_MAX) {
            tracing::warn!("{line}");
        }
        if lines.len() > EXPIRY_LINES_MAX {
            tracing::warn!(
                "{} more certificates or revocation lists near their end or have expired: `ringlock certs --config FILE` shows them",
                lines.len() - EXPIRY_LINES_MAX
            );
        }
    }

    /// What is to be told at `now`.
    fn look(&mut self, snapshot: &Snapshot, now: i64) -> Vec<String> {
        let before = std::mem::take(self);
        let mut lines = Vec::new();
        for identity in &snapshot.identities {
            for (position, certificate) in identity.facts.chain.iter().enumerate() {
                // Nobody looks at the end of a root that is sent.
                if position > 0 && certificate.self_signed {
                    continue;
                }
                let validity = Validity::of(certificate);
                let stage = validity.stage(now);
                if self.is_news(
                    &before,
                    certificate.fingerprint.clone(),
                    stage,
                    validity.next_stage(now),
                ) {
                    lines.push(line(identity, certificate, position, now));
                }
            }
        }
        for end in snapshot.ends_of_clients(now) {
            let is_news = self.is_news(&before, end.id, end.stage, end.next_stage);
            lines.extend(end.warning.filter(|_| is_news).map(|warning| warning.to_string()));
        }
        lines
    }

    /// Notes the stage of one of them; whether it has not been told.
    fn is_news(&mut self, before: &Expiries, id: String, stage: Stage, next: Option<i64>) -> bool {
        let told = before.told.get(&id).copied().unwrap_or(Stage::Fresh);
        self.next = self.next.into_iter().chain(next).min();
        // A clock that is set back repeats nothing.
        let is_first = self.told.insert(id, stage.max(told)).is_none();
        is_first && stage > told
    }
}

fn line(identity: &Identity, certificate: &CertificateFacts, position: usize, now: i64) -> String {
    let whose = match position {
        0 => String::new(),
        _ => format!("has the CA {}, which ", certificate.subject),
    };
    let (end, remedy) = match certificate.not_after.saturating_sub(now) {
        left @ ..0 => (
            format!("has expired {} ago: clients refuse it", span(-left)),
            "renew it",
        ),
        left => (
            format!("expires in {}", span(left)),
            "renew it, and find out why that has not happened yet",
        ),
    };
    format!(
        "identity \"{}\": {} {whose}{end}; {remedy}",
        identity.name, identity.facts.source
    )
}

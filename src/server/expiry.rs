//! Certificates that near their end while the gateway runs: each stage is told once, so that whoever never reloads is warned, too.

use std::collections::HashMap;
use std::sync::Arc;

use crate::identity::Identity;
use crate::identity::expiry::{Stage, Validity, span};
use crate::identity::facts::CertificateFacts;
use crate::limits::EXPIRY_LINES_MAX;

/// What has been told of the certificates in force.
#[derive(Debug)]
pub(super) struct Expiries {
    /// By fingerprint: identities share CAs.
    told: HashMap<String, Stage>,
    /// When the next stage of one of them begins, seconds since 1970.
    next: Option<i64>,
}

impl Expiries {
    /// Of certificates of which everything has been told at `now`.
    pub(super) fn told(identities: &[Arc<Identity>], now: i64) -> Expiries {
        let mut expiries = Expiries {
            told: HashMap::new(),
            next: None,
        };
        expiries.note(identities, now);
        expiries
    }

    /// There are other certificates, of which everything has been told at `now`.
    pub(super) fn note(&mut self, identities: &[Arc<Identity>], now: i64) {
        // Somebody else has said the same.
        let _ = self.look(identities, now);
    }

    /// There are other certificates, of which nothing has been told.
    pub(super) fn look_again(&mut self) {
        self.next = Some(i64::MIN);
    }

    /// Warns of what has not been told. Costs nothing until there is something.
    pub(super) fn warn(&mut self, identities: &[Arc<Identity>], now: i64) {
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        let lines = self.look(identities, now);
        for line in lines.iter().take(EXPIRY_LINES_MAX) {
            tracing::warn!("{line}");
        }
        if lines.len() > EXPIRY_LINES_MAX {
            tracing::warn!(
                "{} more certificates near their end or have expired: `ringlock certs --config FILE` shows them",
                lines.len() - EXPIRY_LINES_MAX
            );
        }
    }

    /// What is to be told at `now`.
    fn look(&mut self, identities: &[Arc<Identity>], now: i64) -> Vec<String> {
        let mut lines = Vec::new();
        let mut told = HashMap::with_capacity(identities.len());
        self.next = None;
        for identity in identities {
            for (position, certificate) in identity.facts.chain.iter().enumerate() {
                // Nobody looks at the end of a root that is sent.
                if told.contains_key(&certificate.fingerprint) || (position > 0 && certificate.self_signed) {
                    continue;
                }
                let validity = Validity::of(certificate);
                let stage = validity.stage(now);
                let before = self.told.get(&certificate.fingerprint).copied().unwrap_or(Stage::Fresh);
                if stage > before {
                    lines.push(line(identity, certificate, position, now));
                }
                // A clock that is set back repeats nothing.
                told.insert(certificate.fingerprint.clone(), stage.max(before));
                self.next = self.next.into_iter().chain(validity.next_stage(now)).min();
            }
        }
        self.told = told;
        lines
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

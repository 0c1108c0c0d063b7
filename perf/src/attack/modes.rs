//! From a mode and its variants to the scripts of its connections.

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};
use rustls_pki_types::ServerName;

use super::Plan;
use super::args::{AttackArgs, Mode};
use super::established::EstablishedScript;
use super::hello::{client_hello, config, huge};
use super::key_update::KeyUpdates;
use super::opening::{Goal, Opening};
use super::renegotiation::Renegotiation;
use super::replay::recorded;
use super::report::LeftOut;
use super::script::Script;
use crate::error::PerfError;

/// Makes the scripts of an attack's connections.
pub(super) struct Scripts {
    /// One for each variant, at least one.
    kinds: Vec<Kind>,
    name: ServerName<'static>,
}

/// What a connection does.
enum Kind {
    Opening(Opening),
    KeyUpdates(&'static str, ClientConfig),
    Renegotiation(ClientConfig),
}

impl Scripts {
    /// Of this mode. Variants that the server does not offer are left out.
    ///
    /// # Errors
    /// When that are all.
    pub(super) fn new(args: &AttackArgs, plan: &Plan) -> Result<(Self, Vec<LeftOut>), PerfError> {
        let usual = client_hello(config(&[&TLS12, &TLS13])?, &plan.name)?;
        let half = &usual[..usual.len() / 2];
        let (mut kinds, mut left_out) = (Vec::new(), Vec::new());
        for &variant in &plan.variants {
            let opening = |bytes: &[u8], goal| Kind::Opening(Opening::new(variant, bytes, goal));
            kinds.push(match args.mode {
                Mode::StalledHello => opening(half, Goal::Hold),
                Mode::SlowHello => Kind::Opening(Opening::new(variant, usual.as_slice(), Goal::Hold).slowly()),
                Mode::HalfOpen => opening(&client_hello(config(&[version(variant)])?, &plan.name)?, Goal::Hold),
                Mode::HugeHello => opening(&huge(variant, &usual), Goal::SeeWhetherAnswered),
                Mode::Reset => match variant {
                    "connected" => opening(&[], Goal::ResetWhenSent),
                    "half-hello" => opening(half, Goal::ResetWhenSent),
                    "hello" => opening(&usual, Goal::ResetWhenSent),
                    _ => opening(&usual, Goal::ResetWhenAnswered),
                },
                Mode::KeyUpdate => Kind::KeyUpdates(variant, config(&[&TLS13])?),
                Mode::Renegotiation => Kind::Renegotiation(config(&[&TLS12])?),
                Mode::TicketReplay => {
                    let hello = recorded(plan.bounds.target, &plan.name, version(variant), args.witness_timeout);
                    match hello {
                        Ok(Some(hello)) => opening(&hello, Goal::SeeWhetherResumed),
                        Ok(None) => {
                            left_out.push(not_possible(variant, "the server gives no session".to_owned()));
                            continue;
                        }
                        Err(error) => {
                            left_out.push(not_possible(variant, error.to_string()));
                            continue;
                        }
                    }
                }
            });
        }
        if kinds.is_empty() {
            let why: Vec<String> = left_out
                .iter()
                .map(|left| format!("{}: {}", left.variant, left.why))
                .collect();
            return Err(PerfError::GaveUp(format!("nothing to attack with: {}", why.join("; "))));
        }
        let name = plan.name.clone();
        Ok((Self { kinds, name }, left_out))
    }

    /// The script of the connection with this number: variants take turns.
    pub(super) fn script(&self, number: u64) -> Result<Box<dyn Script>, PerfError> {
        let kind = &self.kinds[(number % self.kinds.len() as u64) as usize];
        Ok(match kind {
            Kind::Opening(opening) => Box::new(opening.script()),
            Kind::KeyUpdates(variant, config) => {
                Box::new(EstablishedScript::new(config, &self.name, KeyUpdates::new(variant))?)
            }
            Kind::Renegotiation(config) => {
                let renegotiation = Renegotiation::new(self.name.clone());
                Box::new(EstablishedScript::new(config, &self.name, renegotiation)?)
            }
        })
    }
}

fn version(variant: &str) -> &'static SupportedProtocolVersion {
    if variant == "tls12" { &TLS12 } else { &TLS13 }
}

fn not_possible(variant: &str, why: String) -> LeftOut {
    LeftOut {
        variant: variant.to_owned(),
        why,
    }
}

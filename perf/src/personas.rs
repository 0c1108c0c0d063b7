//! Who connects: each connection is one of the plan's personas, drawn by their weights. A persona has a TLS version, what it
//! offers to resume, a certificate to show, and the name that it asks for.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::{Resumption, Tls12Resumption};
use rustls_pki_types::ServerName;

use crate::args::{ClientArgs, Offer, TlsVersion, Weighted};
use crate::error::PerfError;
use crate::sessions::Sessions;
use crate::tls;

/// All personas of a thread, and the sessions that they were given.
pub(crate) struct Personas {
    variants: Choice<Variant>,
    names: Choice<ServerName<'static>>,
}

/// One connection's.
pub(crate) struct Persona<'a> {
    pub(crate) tls: &'a Arc<ClientConfig>,
    pub(crate) server_name: &'a ServerName<'static>,
    pub(crate) offer: Offer,
}

/// A version and an offer.
struct Variant {
    offer: Offer,
    /// One for each certificate that clients show, one if they show none; never empty. rustls resumes a session only with
    /// the certificate with which it began.
    clients: Vec<Client>,
}

struct Client {
    tls: Arc<ClientConfig>,
    /// `None` exactly when the offer is a full handshake.
    sessions: Option<Arc<Sessions>>,
}

impl Personas {
    /// Reads what the flags name, and keeps at most `sessions_max` sessions of each variant, certificate and name.
    pub(crate) fn new(args: &ClientArgs, mix: &[Weighted<Offer>], sessions_max: usize) -> Result<Self, PerfError> {
        let names = args.server_name.iter().map(|name| {
            let legal = ServerName::try_from(name.value.clone()).map_err(|_| PerfError::Flag {
                flag: "--server-name",
                found: name.value.clone(),
                expected: "a DNS name or an IP address".to_owned(),
            })?;
            Ok((legal, name.weight))
        });
        let names = Choice::new(names.collect::<Result<_, PerfError>>()?);
        let credentials = tls::credentials(args)?;
        let mut variants = Vec::new();
        let knows_session_ids = args.tls.iter().any(|version| version.value == TlsVersion::Tls12);
        for version in &args.tls {
            let configs = tls::client_configs(args, version.value, &credentials)?;
            for offer in mix {
                let weight = version.weight.saturating_mul(offer.weight);
                let mut offer = offer.value;
                if offer == Offer::SessionId && version.value == TlsVersion::Tls13 {
                    if !knows_session_ids {
                        return Err(PerfError::Flag {
                            flag: "--mix",
                            found: "session-id".to_owned(),
                            expected: "full or ticket: session ids are of TLS 1.2 (--tls 1.2, or both versions)"
                                .to_owned(),
                        });
                    }
                    // Clients that come back do so over TLS 1.3, too.
                    offer = Offer::Ticket;
                }
                let client = |config: &ClientConfig| Client::new(config.clone(), offer, sessions_max);
                let clients = configs.iter().map(client).collect();
                variants.push((Variant { offer, clients }, weight));
            }
        }
        let variants = Choice::new(variants);
        Ok(Self { variants, names })
    }

    /// The same personas without their sessions, for another thread with `sessions_max` each.
    pub(crate) fn fork(&self, sessions_max: usize) -> Self {
        let client = |client: &Client, offer| Client::new((*client.tls).clone(), offer, sessions_max);
        let variant = |variant: &Variant| Variant {
            offer: variant.offer,
            clients: variant.clients.iter().map(|one| client(one, variant.offer)).collect(),
        };
        Self {
            variants: self.variants.map(variant),
            names: self.names.map(Clone::clone),
        }
    }

    /// The next connection's.
    pub(crate) fn draw(&self) -> Persona<'_> {
        let variant = self.variants.draw();
        let client = match variant.clients.as_slice() {
            [only] => only,
            several => &several[fastrand::usize(..several.len())],
        };
        Persona {
            tls: &client.tls,
            server_name: self.names.draw(),
            offer: variant.offer,
        }
    }

    /// Sessions that wait for a connection.
    pub(crate) fn sessions_waiting(&self) -> usize {
        let clients = self.variants.values().flat_map(|variant| &variant.clients);
        clients
            .filter_map(|client| client.sessions.as_ref())
            .map(|sessions| sessions.waiting())
            .sum()
    }

    /// The share of connections that offer a session, 0 to 1.
    pub(crate) fn resuming(&self) -> f64 {
        self.variants.share(|variant| variant.offer != Offer::Full)
    }
}

impl Client {
    fn new(mut config: ClientConfig, offer: Offer, sessions_max: usize) -> Self {
        let sessions = (offer != Offer::Full).then(|| Arc::new(Sessions::new(sessions_max)));
        config.resumption = match &sessions {
            None => Resumption::disabled(),
            Some(sessions) => Resumption::store(sessions.clone()).tls12_resumption(match offer {
                Offer::SessionId => Tls12Resumption::SessionIdOnly,
                Offer::Full | Offer::Ticket => Tls12Resumption::SessionIdOrTickets,
            }),
        };
        Self {
            tls: Arc::new(config),
            sessions,
        }
    }
}

/// Values drawn by their weights.
struct Choice<T> {
    /// Each with the sum of the weights up to and with it, which grow; never empty.
    values: Vec<(T, u64)>,
}

impl<T> Choice<T> {
    /// `values` are not empty and no weight is 0: flags have a default, and [`Weighted`] knows no 0.
    fn new(values: Vec<(T, u32)>) -> Self {
        debug_assert!(!values.is_empty(), "a flag with a list has a default");
        let mut sum = 0;
        let summed = values.into_iter().map(|(value, weight)| {
            sum += u64::from(weight);
            (value, sum)
        });
        Self {
            values: summed.collect(),
        }
    }

    fn draw(&self) -> &T {
        if let [(only, _)] = self.values.as_slice() {
            return only;
        }
        let total = self.values.last().map_or(1, |&(_, sum)| sum);
        let drawn = fastrand::u64(..total);
        let at = self.values.partition_point(|&(_, sum)| sum <= drawn);
        &self.values[at].0
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|(value, _)| value)
    }

    fn map<U>(&self, change: impl Fn(&T) -> U) -> Choice<U> {
        Choice {
            values: self.values.iter().map(|(value, sum)| (change(value), *sum)).collect(),
        }
    }

    /// The share of what `counts` is true for.
    fn share(&self, counts: impl Fn(&T) -> bool) -> f64 {
        let (mut before, mut counted) = (0, 0);
        for (value, sum) in &self.values {
            if counts(value) {
                counted += sum - before;
            }
            before = *sum;
        }
        counted as f64 / before as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_tls_1_3_a_ticket_takes_the_place_of_a_session_id() {
        use clap::Parser;

        use crate::args::{Cli, Command};

        let personas = |flags: &str| {
            let line = format!("ringlock-perf handshake --target a:1 --insecure {flags}");
            let Command::Handshake(args) = Cli::parse_from(line.split(' ')).command else {
                panic!("handshake is a command")
            };
            Personas::new(&args.handshakes.client, &args.mix, 1)
        };
        let both = personas("--tls 1.3=3,1.2=1 --mix full=1,session-id=3").unwrap();
        let share = |offer| both.variants.share(|variant| variant.offer == offer);
        let shares = [Offer::Full, Offer::Ticket, Offer::SessionId].map(share);
        assert_eq!(shares, [4.0 / 16.0, 9.0 / 16.0, 3.0 / 16.0]);
        let alone = personas("--tls 1.3 --mix full=1,session-id=3")
            .err()
            .unwrap()
            .to_string();
        assert!(alone.contains("--mix") && alone.contains("--tls 1.2"), "{alone}");
    }

    #[test]
    fn values_are_drawn_by_their_weights_and_by_the_seed() {
        let choice = Choice::new(vec![("a", 1), ("b", 3)]);
        let draw = || {
            fastrand::seed(7);
            (0..4000).map(|_| *choice.draw()).collect::<Vec<_>>()
        };
        let drawn = draw();
        let often = drawn.iter().filter(|&&value| value == "b").count();
        assert!((2850..3150).contains(&often), "{often}");
        assert_eq!(drawn, draw());
        assert_eq!(choice.share(|&value| value == "b"), 0.75);
    }
}

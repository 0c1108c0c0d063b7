//! The secret of tickets: made here, or read from a file and read again when the file is replaced.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlock_hsm::regular_file;
use zeroize::Zeroizing;

use super::stamp::{Look, Sighting, Stamp};
use crate::config::{self, Config, Problem, TicketSecret};
use crate::crypto;
use crate::limits::{TICKET_SECRET_BYTES_MAX, TICKET_SECRET_BYTES_MIN, TICKET_SECRET_CHECK_INTERVAL};
use crate::timestamp::Timestamp;
use crate::tls::tickets::{Secrets, Tickets};

/// A secret as the configuration has it.
type Bytes = Zeroizing<Vec<u8>>;

/// What the tickets of this process are sealed with.
pub(super) struct TicketSecrets {
    secrets: Secrets,
    settings: config::Tickets,
    /// Of the file, if there is one.
    sighting: Sighting,
    /// When it is looked at again.
    look_at: Instant,
}

/// What was read.
pub struct Loaded {
    secret: Option<Bytes>,
    stamp: Option<Stamp>,
}

/// Reads the secret that the configuration names.
///
/// # Errors
/// It cannot be used.
pub fn read(config: &Config) -> Result<Loaded, Problem> {
    let TicketSecret::File(path) = &config.tickets.secret else {
        return Ok(Loaded {
            secret: None,
            stamp: None,
        });
    };
    let (secret, stamp) = read_file(path).map_err(|found| {
        let expected = format!("a file of {TICKET_SECRET_BYTES_MIN} to {TICKET_SECRET_BYTES_MAX} random bytes");
        let remedy = format!(
            "check path and permissions; a new one is made with: openssl rand -out {} 48",
            path.display()
        );
        let found = format!("{found} in {}", path.display());
        config.places.problem("tickets.secret", found, expected, remedy)
    })?;
    Ok(Loaded {
        secret: Some(secret),
        stamp: Some(stamp),
    })
}

impl TicketSecrets {
    /// Publishes to `tickets` what was loaded.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn new(tickets: Arc<Tickets>, settings: &config::Tickets, loaded: Loaded) -> io::Result<TicketSecrets> {
        let mut this = TicketSecrets {
            secrets: Secrets::new(tickets),
            settings: settings.clone(),
            sighting: Sighting::new(loaded.stamp),
            look_at: Instant::now(),
        };
        let secret = loaded.secret.unwrap_or_else(random);
        this.secrets.replace(&secret, settings.rotation, unix_now())?;
        Ok(this)
    }

    /// A configuration is in force for which this was loaded. A secret that was made here is kept.
    pub(super) fn reload(&mut self, settings: &config::Tickets, loaded: Loaded) -> io::Result<()> {
        let same = self.settings.secret == settings.secret && self.settings.rotation == settings.rotation;
        self.settings = settings.clone();
        match loaded.secret {
            Some(secret) => self.use_file(&secret, loaded.stamp),
            None if same => Ok(()),
            None => {
                self.secrets.replace(&random(), settings.rotation, unix_now())?;
                Ok(())
            }
        }
    }

    /// Opens and closes epochs, and looks whether the file has been replaced. Returns when to call again.
    pub(super) fn tick(&mut self, now: Instant) -> Duration {
        let due = self.secrets.advance(unix_now()).unwrap_or_else(|error| {
            tracing::error!(error = %error, "the epoch of session tickets cannot be changed");
            1
        });
        let TicketSecret::File(path) = self.settings.secret.clone() else {
            return Duration::from_secs(due);
        };
        if now >= self.look_at {
            self.look(&path, now);
            self.look_at = now + TICKET_SECRET_CHECK_INTERVAL;
        }
        Duration::from_secs(due).min(self.look_at - now)
    }

    fn look(&mut self, path: &Path, now: Instant) {
        // What cannot be looked at stays as it was.
        let Ok(found) = Stamp::at(path) else { return };
        match self.sighting.look(now, found, TICKET_SECRET_CHECK_INTERVAL) {
            Look::Same | Look::Changing(_) => return,
            // Told once for each change, whatever comes of it.
            Look::Settled => self.sighting.read(),
        }
        match read_file(path) {
            Ok((secret, stamp)) => match self.use_file(&secret, Some(stamp)) {
                Ok(()) => {}
                Err(error) => tracing::error!(error = %error, "the new secret of session tickets cannot be used"),
            },
            Err(found) => tracing::error!(
                file = %path.display(),
                "the secret of session tickets was replaced by what cannot be used ({found}): the old one stays in use"
            ),
        }
    }

    fn use_file(&mut self, secret: &[u8], stamp: Option<Stamp>) -> io::Result<()> {
        self.sighting = Sighting::new(stamp);
        if self.secrets.replace(secret, self.settings.rotation, unix_now())? {
            tracing::info!(
                "a new secret of session tickets is accepted from now on, and used from the next epoch on; tickets of the old one are accepted until their time is over"
            );
        }
        Ok(())
    }
}

/// The content of a file, or what was found in place of a secret.
fn read_file(path: &Path) -> Result<(Bytes, Stamp), String> {
    let unreadable = |error: io::Error| format!("nothing readable ({error})");
    let file = regular_file::open(path).map_err(unreadable)?;
    let file = file.ok_or("no regular file")?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mut secret = Zeroizing::new(Vec::with_capacity(TICKET_SECRET_BYTES_MAX + 1));
    file.take(TICKET_SECRET_BYTES_MAX as u64 + 1)
        .read_to_end(&mut secret)
        .map_err(unreadable)?;
    if secret.len() > TICKET_SECRET_BYTES_MAX {
        Err(format!("more than {TICKET_SECRET_BYTES_MAX} bytes"))
    } else if secret.len() < TICKET_SECRET_BYTES_MIN {
        Err(format!("{} bytes", secret.len()))
    } else if secret.iter().all(|byte| *byte == secret[0]) {
        Err("the same byte again and again".into())
    } else {
        Ok((secret, Stamp::of(&metadata)))
    }
}

fn random() -> Bytes {
    let mut secret = Zeroizing::new(vec![0; TICKET_SECRET_BYTES_MIN]);
    crypto::random(&mut secret);
    secret
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    Timestamp::now().0.unsigned_abs()
}

//! `ringlock keys bench`: signatures per second of a key by number of sessions, and how many sessions that makes right.

use std::fmt::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ringlock_hsm::custody::{Custody, OpenedKey, launcher};
use ringlock_hsm::pkcs11::Pkcs11Module;
use ringlock_hsm::protocol::{Fault, FaultKind, KeyPlace, TokenSettings};
use ringlock_hsm::remote::{Isolation, SignerSpec, Token, TokenSpec};
use ringlock_hsm::scheme::KeyKind;
use ringlock_hsm::signer;
use ringlock_hsm::token::{FoundKey, Module, Session};
use ringlock_hsm::uri::ObjectMatch;
use rustls::SignatureScheme;
use serde::Serialize;

use super::load::{Load, Remote, of_sessions};
use super::{Answer, KeysError, group};
use crate::control::table::{printable, table};

/// Of the best rate, what is as good: more sessions than that takes are only more threads.
const GOOD_ENOUGH: f64 = 0.95;

/// How often signers are looked after.
const TICK: Duration = Duration::from_millis(50);

/// Sessions of the signer are open after this, and what a login takes.
const OPENING_TIMEOUT: Duration = Duration::from_secs(30);

/// What is to be measured.
pub(super) struct Wanted<'a> {
    pub(super) token: TokenSpec,
    pub(super) object: ObjectMatch,
    /// By its name; the key's best one when absent.
    pub(super) scheme: Option<&'a str>,
    pub(super) sessions: &'a [u32],
    pub(super) duration: Duration,
}

#[derive(Serialize)]
struct Report {
    token: String,
    kind: Option<String>,
    scheme: String,
    mechanism: String,
    duration_ms: u64,
    rows: Vec<Row>,
    /// Sessions that the token has, when it has fewer than were asked for.
    sessions_max: Option<Limit>,
    recommended: Option<Recommended>,
    /// Why there are no more rows.
    trouble: Option<String>,
}

#[derive(Serialize)]
struct Row {
    sessions: u32,
    /// In this process, without a signer.
    raw: Load,
    signer: Load,
    verified: Load,
    /// Of the signer's rate and the raw one.
    ratio: f64,
}

#[derive(Clone, Serialize)]
struct Limit {
    sessions: u32,
    /// What the token said to one more.
    error: String,
}

#[derive(Serialize)]
struct Recommended {
    sessions: u32,
    /// A full handshake takes one signature.
    handshakes_per_second: f64,
}

pub(super) fn run(wanted: &Wanted<'_>, json: bool) -> Result<Answer, KeysError> {
    let mut numbers = wanted.sessions.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    let (scheme, mut report) = begin(wanted)?;
    for sessions in numbers {
        match measure(wanted, sessions, scheme, &mut report) {
            Ok(()) if report.sessions_max.is_some() => break,
            Ok(()) => {}
            Err(fault) => {
                report.trouble = Some(format!("sessions = {sessions}: {}", KeysError::from(fault)));
                break;
            }
        }
    }
    report.recommended = Recommended::of(&report.rows);
    Ok(Answer {
        text: if json {
            format!("{:#}\n", serde_json::json!(report))
        } else {
            report.text()
        },
        whole: report.trouble.is_none(),
    })
}

/// A key in a token, with the module in this process.
struct Opened {
    // In this order: sessions end before their module does.
    sessions: Vec<Box<dyn Session>>,
    key: FoundKey,
    module: Pkcs11Module,
}

impl Opened {
    fn new(token: &TokenSpec, object: ObjectMatch) -> Result<Opened, Fault> {
        let path = token.signer.module.as_deref();
        let module = Pkcs11Module::load(path.expect("keys in tokens have a module"))?;
        let mut session = module.open(&token.settings)?;
        let key = session.find(&KeyPlace::Object(object))?;
        Ok(Opened {
            sessions: vec![session],
            key,
            module,
        })
    }

    /// Opens more sessions; fewer than that when the token has no more.
    fn extend(&mut self, sessions: u32, settings: &TokenSettings) -> Result<Option<Limit>, Fault> {
        for opened in 1..sessions {
            match self.module.open(settings) {
                Ok(session) => self.sessions.push(session),
                Err(fault) if fault.kind == FaultKind::Pin => return Err(fault),
                Err(fault) => {
                    let error = fault.ckr.unwrap_or(fault.found);
                    let sessions = opened;
                    return Ok(Some(Limit { sessions, error }));
                }
            }
        }
        Ok(None)
    }
}

/// Chooses the scheme. The signer tries the key first: a module that hangs or crashes does so there, and is told of.
fn begin(wanted: &Wanted<'_>) -> Result<(SignatureScheme, Report), KeysError> {
    let mut custody = Custody::new(0, launcher(signer::on_thread));
    let group = custody.group(&group(in_process(wanted, 1)));
    let key = custody.examine(&group.tokens[0], &KeyPlace::Object(wanted.object.clone()))?;
    let is_named = |scheme: SignatureScheme| {
        wanted
            .scheme
            .is_none_or(|name| name.eq_ignore_ascii_case(&format!("{scheme:?}")))
    };
    let schemes = key.schemes()?;
    let Some(chosen) = key.trials.iter().find(|trial| is_named(trial.scheme)) else {
        let known: Vec<String> = schemes.iter().map(|scheme| format!("{scheme:?}")).collect();
        let found = format!("found {:?} as --scheme", wanted.scheme.unwrap_or_default());
        let remedy = format!("write one that this key can in its token: {}", known.join(", "));
        return Err(KeysError::new(found, remedy));
    };
    let report = Report {
        token: key.token,
        kind: KeyKind::of(&key.public).map(|kind| kind.to_string()),
        scheme: format!("{:?}", chosen.scheme),
        mechanism: chosen.mechanism.clone(),
        duration_ms: u64::try_from(wanted.duration.as_millis()).unwrap_or(u64::MAX),
        rows: Vec::new(),
        sessions_max: None,
        recommended: None,
        trouble: None,
    };
    Ok((chosen.scheme, report))
}

/// Measures with so many sessions, or as many as the token has. The module here has ended before the signer logs in: the token has never
/// more sessions of ours than these.
fn measure(wanted: &Wanted<'_>, sessions: u32, scheme: SignatureScheme, report: &mut Report) -> Result<(), Fault> {
    let known: Vec<u32> = report.rows.iter().map(|row| row.sessions).collect();
    let (raw, limit) = alone(wanted, sessions, scheme, known)?;
    let sessions = limit.as_ref().map_or(sessions, |limit| limit.sessions);
    report.sessions_max = limit;
    let Some(raw) = raw else { return Ok(()) };
    let [signer, verified] = through_signer(wanted, sessions, scheme)?;
    report.rows.push(Row {
        sessions,
        raw,
        signer,
        verified,
        ratio: signer.per_second / raw.per_second,
    });
    Ok(())
}

/// Without a signer; nothing when the token has only as many sessions as one of the known numbers.
fn alone(
    wanted: &Wanted<'_>,
    sessions: u32,
    scheme: SignatureScheme,
    known: Vec<u32>,
) -> Result<(Option<Load>, Option<Limit>), Fault> {
    let (token, object, duration) = (wanted.token.clone(), wanted.object.clone(), wanted.duration);
    let settings = token.settings.clone();
    let patience = OPENING_TIMEOUT + duration + 2 * settings.timeout;
    let work = move || {
        let mut opened = Opened::new(&token, object)?;
        let limit = opened.extend(sessions, &settings)?;
        if limit.as_ref().is_some_and(|limit| known.contains(&limit.sessions)) {
            return Ok((None, limit));
        }
        let load = of_sessions(opened.sessions, &opened.key, scheme, duration)?;
        drop(opened.module);
        Ok((Some(load), limit))
    };
    // A thread that is not waited for: a call into the module may never return, and ends with this process.
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new().spawn(move || {
        // Nobody receives it when it has taken too long.
        let _ = sender.send(work());
    });
    spawned.map_err(|error| Fault::new(FaultKind::Module, format!("no thread for the module ({error})")))?;
    receiver.recv_timeout(patience).unwrap_or_else(|_| {
        let found = format!("no answer from the module within {patience:?}");
        Err(Fault::new(FaultKind::Timeout, found))
    })
}

/// The token with so many sessions of a signer that is a process: on a thread it would share the module with this one.
fn in_process(wanted: &Wanted<'_>, sessions: u32) -> TokenSpec {
    TokenSpec {
        name: wanted.token.name.clone(),
        signer: SignerSpec {
            isolation: Isolation::Process,
            ..wanted.token.signer.clone()
        },
        settings: TokenSettings {
            sessions,
            ..wanted.token.settings.clone()
        },
    }
}

/// Without and with verification.
fn through_signer(wanted: &Wanted<'_>, sessions: u32, scheme: SignatureScheme) -> Result<[Load; 2], Fault> {
    let mut custody = Custody::new(1, launcher(signer::on_thread));
    let group = custody.group(&group(in_process(wanted, sessions)));
    let token = &group.tokens[0];
    let OpenedKey { handle, public, .. } = custody.open(token, &KeyPlace::Object(wanted.object.clone()))?;
    wait_for_sessions(&mut custody, token)?;
    let channels = custody.take_channels();
    let channel = channels
        .into_iter()
        .next()
        .expect("a signer that answers has a channel");
    let mut channel = UnixStream::from(channel.socket);
    let remote = Remote {
        key: handle.number,
        public: &public,
        scheme,
        window: token.window(),
        timeout: token.spec.settings.timeout,
    };
    thread::scope(|scope| {
        let loads = scope.spawn(|| {
            let plain = remote.of_channel(&mut channel, false, wanted.duration)?;
            Ok([plain, remote.of_channel(&mut channel, true, wanted.duration)?])
        });
        while !loads.is_finished() {
            custody.tick(Instant::now());
            thread::sleep(TICK);
        }
        loads.join().expect("no thread panics")
    })
}

fn wait_for_sessions(custody: &mut Custody, token: &Arc<Token>) -> Result<(), Fault> {
    let wanted = token.spec.settings.sessions;
    let deadline = Instant::now() + OPENING_TIMEOUT;
    loop {
        custody.tick(Instant::now());
        let status = token.status();
        if status.sessions >= wanted {
            return Ok(());
        }
        if Instant::now() >= deadline || status.pin_refused {
            let why = status.trouble.unwrap_or_else(|| "it does not say why".to_owned());
            let found = format!("{} of {wanted} sessions open in the signer ({why})", status.sessions);
            return Err(Fault::new(FaultKind::Device, found));
        }
        thread::sleep(TICK / 10);
    }
}

impl Recommended {
    fn of(rows: &[Row]) -> Option<Recommended> {
        let best = rows.iter().map(|row| row.signer.per_second).fold(0.0, f64::max);
        let enough = rows.iter().find(|row| row.signer.per_second >= GOOD_ENOUGH * best)?;
        Some(Recommended {
            sessions: enough.sessions,
            handshakes_per_second: enough.signer.per_second,
        })
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!(
            "{} in {}, {} by {}, {} ms for each rate\n",
            self.kind.as_deref().unwrap_or("a key"),
            printable(&self.token),
            self.scheme,
            self.mechanism,
            self.duration_ms
        );
        if !self.rows.is_empty() {
            let head = [
                "sessions",
                "token alone",
                "median",
                "p99",
                "by signer",
                "median",
                "p99",
                "of alone",
                "verified",
            ];
            text.push_str(&table(&head, self.rows.iter().map(Row::cells).collect(), 2, 0));
        }
        if let Some(Limit { sessions, error }) = &self.sessions_max {
            let _ = writeln!(
                text,
                "The token has {sessions} sessions and no more ({}): larger numbers are left out.",
                printable(error)
            );
        }
        if let Some(trouble) = &self.trouble {
            let _ = writeln!(text, "error: {}", printable(trouble));
        }
        if let Some(recommended) = &self.recommended {
            let _ = writeln!(
                text,
                "Configure sessions = {}, the fewest that reach {:.0} % of the best: about {:.0} full handshakes per second, one signature each.",
                recommended.sessions,
                GOOD_ENOUGH * 100.0,
                recommended.handshakes_per_second
            );
        }
        text
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let rate = |load: &Load| format!("{:.0}/s", load.per_second);
        let ms = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
        vec![
            self.sessions.to_string(),
            rate(&self.raw),
            ms(self.raw.median_us),
            ms(self.raw.p99_us),
            rate(&self.signer),
            ms(self.signer.median_us),
            ms(self.signer.p99_us),
            format!("{:.0} %", self.ratio * 100.0),
            rate(&self.verified),
        ]
    }
}

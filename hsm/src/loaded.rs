//! A loaded module, as the pools of its tokens share it: who has sessions open, beginning anew, and what the control connection is told.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use crate::pool::Pool;
use crate::protocol::{Fault, FaultKind, Report};
use crate::remote::Isolation;
use crate::token::Module;

/// Beginning anew closes the sessions of every token of the module. While another one serves, it is interrupted this often and not more.
const RESET_INTERVAL_BESIDE_OTHERS: Duration = Duration::from_secs(30);

/// While none serves, nobody is interrupted; attempts have their own back-off, and this keeps two dead tokens from resetting in turns.
const RESET_INTERVAL: Duration = Duration::from_secs(1);

/// The module of a signer.
pub(crate) struct Loaded {
    module: Box<dyn Module>,
    isolation: Isolation,
    gate: Mutex<Gate>,
    moved: Condvar,
    /// Resets that have begun. A session that is older than the last one is closed.
    resets: AtomicU64,
    pools: Mutex<Vec<Weak<Pool>>>,
    mail: Mutex<Mail>,
    /// An eventfd: the control connection's thread looks into `mail`.
    bell: OwnedFd,
}

struct Gate {
    /// Sessions that are open or are being opened or closed.
    inside: usize,
    resetting: bool,
    last_reset: Instant,
}

#[derive(Default)]
struct Mail {
    reports: Vec<Report>,
    end: Option<End>,
}

/// Why a signer cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Calls into the module do not return, and nothing but a new process helps.
    Hung(String),
    /// A defect: a thread of ours, or the module in it, has panicked.
    Panicked,
}

impl Loaded {
    /// `bell` is an eventfd that does not block.
    pub(crate) fn new(module: Box<dyn Module>, isolation: Isolation, bell: OwnedFd) -> Loaded {
        Loaded {
            module,
            isolation,
            gate: Mutex::new(Gate {
                inside: 0,
                resetting: false,
                last_reset: Instant::now(),
            }),
            moved: Condvar::new(),
            resets: AtomicU64::new(0),
            pools: Mutex::default(),
            mail: Mutex::default(),
            bell,
        }
    }

    pub(crate) fn module(&self) -> &dyn Module {
        &*self.module
    }

    pub(crate) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    pub(crate) fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    pub(crate) fn add(&self, pool: &Arc<Pool>) {
        let mut pools = self.pools();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
    }

    /// To be held for as long as a session is open, and while it is being opened. Waits for a reset that is under way.
    pub(crate) fn enter(self: &Arc<Self>) -> Pass {
        let mut gate = self.gate();
        while gate.resetting {
            gate = self.moved.wait(gate).expect("nobody panics while holding this lock");
        }
        gate.inside += 1;
        Pass {
            loaded: Arc::clone(self),
            resets: self.resets(),
        }
    }

    /// Another token of this module serves.
    pub(crate) fn others_serve(&self, pool: &Pool) -> bool {
        self.each_pool()
            .iter()
            .any(|other| !std::ptr::eq(&**other, pool) && other.serves())
    }

    /// A reset on behalf of this pool is allowed by now.
    pub(crate) fn may_reset(&self, pool: &Pool) -> bool {
        let interval = if self.others_serve(pool) {
            RESET_INTERVAL_BESIDE_OTHERS
        } else {
            RESET_INTERVAL
        };
        self.gate().last_reset.elapsed() >= interval
    }

    /// Begins anew, once every session is closed. The caller holds no session.
    ///
    /// # Errors
    /// A session is in a call for longer than `patience`, or the module does not come up again.
    pub(crate) fn reset(&self, patience: Duration) -> Result<(), Fault> {
        if self.each_pool().iter().any(|pool| pool.hangs()) {
            // The others would be interrupted in vain.
            return Err(self.cannot_reset());
        }
        let mut gate = self.gate();
        if gate.resetting {
            // Another token's: as good as one of our own.
            while gate.resetting {
                gate = self.moved.wait(gate).expect("nobody panics while holding this lock");
            }
            return Ok(());
        }
        gate.resetting = true;
        self.resets.fetch_add(1, Ordering::AcqRel);
        drop(gate);
        for pool in self.each_pool() {
            pool.rouse();
        }
        let everybody_left = self
            .moved
            .wait_timeout_while(self.gate(), patience, |gate| gate.inside > 0);
        let (gate, _) = everybody_left.expect("nobody panics while holding this lock");
        let inside = gate.inside;
        drop(gate);
        let outcome = if inside == 0 {
            self.module.reset()
        } else {
            Err(self.cannot_reset())
        };
        let mut gate = self.gate();
        gate.resetting = false;
        gate.last_reset = Instant::now();
        self.moved.notify_all();
        outcome
    }

    fn cannot_reset(&self) -> Fault {
        let found = "a call into the module that does not return, so that the module cannot be reset";
        self.hung(found);
        Fault::new(FaultKind::Timeout, found)
    }

    pub(crate) fn report(&self, report: Report) {
        self.mail().reports.push(report);
        self.ring();
    }

    /// Calls hang and nothing in this process helps: a signer that is a process ends, to be started again.
    pub(crate) fn hung(&self, found: &str) {
        match self.isolation {
            Isolation::Process => self.end(End::Hung(found.to_owned())),
            Isolation::Thread => {}
        }
    }

    /// The first reason counts.
    pub(crate) fn end(&self, end: End) {
        self.mail().end.get_or_insert(end);
        self.ring();
    }

    /// Something has changed that the gateway wants to know.
    pub(crate) fn ring(&self) {
        // A full counter rings as well.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// What has been reported since the last call, and whether this is the end.
    pub(crate) fn collect(&self) -> (Vec<Report>, Option<End>) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let mut mail = self.mail();
        (std::mem::take(&mut mail.reports), mail.end.clone())
    }

    fn each_pool(&self) -> Vec<Arc<Pool>> {
        self.pools().iter().filter_map(Weak::upgrade).collect()
    }

    fn pools(&self) -> MutexGuard<'_, Vec<Weak<Pool>>> {
        self.pools.lock().expect("nobody panics while holding this lock")
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().expect("nobody panics while holding this lock")
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().expect("nobody panics while holding this lock")
    }
}

/// Keeps the module from being reset.
pub(crate) struct Pass {
    loaded: Arc<Loaded>,
    /// The resets before it.
    pub(crate) resets: u64,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.loaded.gate().inside -= 1;
        self.loaded.moved.notify_all();
    }
}

//! Calls that can be left in the middle. rustls asks for a signature from deep inside a call, and wants it at once; here that call runs
//! on a stack of its own, is left with a [`CryptoOp`] and goes on when there is an answer. At that point only Rust frames
//! are on the stack, no lock is held, and a stack never leaves its thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use corosensei::stack::{Stack, StackPointer};
use corosensei::{Coroutine, CoroutineResult, Yielder};
use rustls::Error;

use super::{CryptoOp, CryptoResult, inline};
use crate::limits::{SUSPENDED_CALLS_MAX, SUSPENDED_STACK_BYTES, SUSPENDED_STACK_GUARD_BYTES, SUSPENDED_STACKS_KEEP};
use crate::tls::resumption;

/// What has become of a call.
pub enum Progress<T> {
    /// It has returned.
    Done(T),
    /// It has panicked. The panic has been reported.
    Panicked,
    /// It goes on with the answer to this.
    Waits(Suspended<T>, CryptoOp),
}

/// A call that waits. When it is dropped it is told so, and returns.
pub struct Suspended<T>(Option<Call<T>>);

type Call<T> = Coroutine<CryptoResult, CryptoOp, Option<T>, GuardedStack>;

thread_local! {
    /// Who runs on a stack of its own right now; nobody while the worker itself runs.
    static RUNNING: Cell<Option<NonNull<Yielder<CryptoResult, CryptoOp>>>> = const { Cell::new(None) };
    static FREE_STACKS: RefCell<Vec<GuardedStack>> = const { RefCell::new(Vec::new()) };
    static SUSPENDED: Cell<usize> = const { Cell::new(0) };
    static ALLOWED: Cell<bool> = const { Cell::new(false) };
}

/// Whether there is an engine, on this thread, for whose answers it is worth leaving a call.
pub fn allow(allowed: bool) {
    ALLOWED.set(allowed);
}

/// See [`allow`].
#[must_use]
pub fn is_allowed() -> bool {
    ALLOWED.get()
}

/// Runs `call`, on a stack of its own. Where there is none (too many wait, or no memory is left) it runs on this one, and
/// what it asks for is computed inline.
pub fn run<T: 'static>(call: impl FnOnce() -> T + 'static) -> Progress<T> {
    let caught = || catch_unwind(AssertUnwindSafe(call)).ok();
    let Some(stack) = take_stack() else {
        return caught().map_or(Progress::Panicked, Progress::Done);
    };
    let call = Coroutine::with_stack(stack, |yielder, _first: CryptoResult| {
        RUNNING.set(Some(NonNull::from(yielder)));
        let result = caught();
        RUNNING.set(None);
        result
    });
    SUSPENDED.set(SUSPENDED.get() + 1);
    Suspended(Some(call)).resume(CryptoResult::Abandoned)
}

/// The answer to `op`: from whoever resumes this call or, for a call that was not begun with [`run`], computed inline.
#[must_use]
#[expect(
    unsafe_code,
    reason = "rustls' calls carry no reference to the coroutine they run on"
)]
pub fn ask(op: CryptoOp) -> CryptoResult {
    let Some(yielder) = RUNNING.take() else {
        return inline::run(&op);
    };
    // SAFETY: the yielder belongs to the coroutine that runs this function. It lives at the bottom of that coroutine's stack until
    // the coroutine is over, which sets RUNNING to None; and nobody else has set it, for the other stacks of this thread have
    // taken theirs out before they were left.
    let present = unsafe { yielder.as_ref() };
    let answer = resumption::aside(|| present.suspend(op));
    RUNNING.set(Some(yielder));
    answer
}

/// The signature that `op` asks for, by [`ask`].
///
/// # Errors
/// As the engine or token says; or nobody waits for it any more.
pub fn signature(op: CryptoOp) -> Result<Vec<u8>, Error> {
    match ask(op) {
        CryptoResult::Signature(answer) => answer,
        CryptoResult::Abandoned => Err(Error::General("the connection is over".into())),
        CryptoResult::KeyExchange(_) | CryptoResult::Verified(_) => {
            unreachable!("the answer is of the operation's kind")
        }
    }
}

impl<T> Suspended<T> {
    /// Goes on with the call.
    #[must_use]
    pub fn resume(mut self, answer: CryptoResult) -> Progress<T> {
        let call = self.0.as_mut().expect("a call that waits has not returned");
        match call.resume(answer) {
            CoroutineResult::Yield(op) => Progress::Waits(self, op),
            CoroutineResult::Return(result) => {
                self.finish();
                result.map_or(Progress::Panicked, Progress::Done)
            }
        }
    }

    fn finish(&mut self) {
        if let Some(call) = self.0.take() {
            SUSPENDED.set(SUSPENDED.get() - 1);
            give_stack(call.into_stack());
        }
    }
}

impl<T> Drop for Suspended<T> {
    fn drop(&mut self) {
        // A stack that is left for good would keep what lies on it: the call is told that nobody waits, and ends by itself.
        while let Some(call) = &mut self.0
            && let CoroutineResult::Yield(_) = call.resume(CryptoResult::Abandoned)
        {}
        self.finish();
    }
}

/// Calls that wait, on this thread.
#[must_use]
pub fn waiting() -> usize {
    SUSPENDED.get()
}

/// The most that any call has used of a stack that is free again, on this thread, in bytes.
#[must_use]
pub fn stack_high_water() -> usize {
    FREE_STACKS.with_borrow(|free| free.iter().map(GuardedStack::used).max().unwrap_or_default())
}

fn take_stack() -> Option<GuardedStack> {
    if SUSPENDED.get() >= SUSPENDED_CALLS_MAX || RUNNING.get().is_some() {
        return None;
    }
    let free = FREE_STACKS.with_borrow_mut(Vec::pop);
    free.or_else(|| GuardedStack::new().ok())
}

fn give_stack(stack: GuardedStack) {
    FREE_STACKS.with_borrow_mut(|free| {
        if free.len() < SUSPENDED_STACKS_KEEP {
            free.push(stack);
        }
    });
}

/// Memory for a stack, above memory that cannot be touched: frames of C code are not probed page by page.
struct GuardedStack {
    lowest: NonNull<libc::c_void>,
}

const MAPPED_BYTES: usize = SUSPENDED_STACK_GUARD_BYTES + SUSPENDED_STACK_BYTES;

impl GuardedStack {
    #[expect(unsafe_code, reason = "the standard library maps no memory")]
    fn new() -> io::Result<GuardedStack> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        // SAFETY: a new mapping touches nothing that exists.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), MAPPED_BYTES, libc::PROT_NONE, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = GuardedStack {
            lowest: NonNull::new(mapped).expect("the kernel maps nothing at zero unless asked to"),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range lies in the mapping made above, which nobody else knows.
        let usable = unsafe {
            let start = mapped.byte_add(SUSPENDED_STACK_GUARD_BYTES);
            libc::mprotect(start, SUSPENDED_STACK_BYTES, protection)
        };
        if usable != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// Bytes above the lowest that is not zero any more.
    #[expect(unsafe_code, reason = "nothing else looks into this memory while nothing runs on it")]
    fn used(&self) -> usize {
        // SAFETY: the mapping has these bytes behind the guard, new ones are zero, and nobody writes there: nothing runs on a stack
        // that is not borrowed by a coroutine.
        let bytes = unsafe {
            let lowest = self.lowest.as_ptr().byte_add(SUSPENDED_STACK_GUARD_BYTES);
            std::slice::from_raw_parts(lowest.cast::<u8>(), SUSPENDED_STACK_BYTES)
        };
        let untouched = bytes.iter().take_while(|&&byte| byte == 0).count();
        bytes.len() - untouched
    }
}

impl Drop for GuardedStack {
    #[expect(unsafe_code, reason = "unmaps what new mapped")]
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and a stack is dropped only when nothing runs on it.
        let unmapped = unsafe { libc::munmap(self.lowest.as_ptr(), MAPPED_BYTES) };
        debug_assert_eq!(unmapped, 0);
    }
}

// SAFETY: the mapping lives as long as this value, is as long as said here, and both of its ends are on page boundaries.
// corosensei asks for an unsafe implementation because it cannot see that.
#[expect(unsafe_code, reason = "corosensei relies on what is said here of the memory")]
unsafe impl Stack for GuardedStack {
    fn base(&self) -> StackPointer {
        let top = self.lowest.as_ptr() as usize + MAPPED_BYTES;
        StackPointer::new(top).expect("the end of a mapping is not zero")
    }

    fn limit(&self) -> StackPointer {
        StackPointer::new(self.lowest.as_ptr() as usize).expect("a mapping does not start at zero")
    }
}

#[cfg(test)]
mod tests;

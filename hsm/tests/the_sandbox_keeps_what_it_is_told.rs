//! What a process can still do after it has kept some system calls and given up the others. Alone in its process, because there is no way
//! back.

use std::process::Command;
use std::sync::mpsc;

use ringlock_hsm::sandbox::{self, Kept};
use rustix::io::Errno;

/// What threads, the test's own output and this test need.
const KEPT: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_poll,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_pipe2,
    libc::SYS_socketpair,
    libc::SYS_dup3,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

#[test]
fn the_others_are_as_if_the_kernel_had_none_on_all_threads() {
    sandbox::gain_no_rights().unwrap();
    let (ask, asked) = mpsc::channel::<()>();
    let earlier = std::thread::spawn(move || {
        asked.recv().unwrap();
        rustix::process::chroot("/")
    });
    let some = [
        Kept::OneOf(
            libc::SYS_prctl,
            0,
            &[libc::PR_SET_NAME as u32, libc::PR_GET_NO_NEW_PRIVS as u32],
        ),
        Kept::Bits(libc::SYS_clone, 0, libc::CLONE_THREAD as u64),
    ];
    sandbox::keep_system_calls(KEPT.iter().copied().map(Kept::Always).chain(some)).unwrap();

    ask.send(()).unwrap();
    assert_eq!(earlier.join().unwrap(), Err(Errno::NOSYS));
    assert_eq!(rustix::process::chroot("/"), Err(Errno::NOSYS));
    // By arguments.
    rustix::thread::set_name(c"confined").unwrap();
    assert!(rustix::thread::no_new_privs().unwrap());
    assert_eq!(
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable),
        Err(Errno::NOSYS)
    );
    // Threads, and no processes.
    std::thread::spawn(|| ()).join().unwrap();
    Command::new("true").status().unwrap_err();
    std::fs::read("/proc/self/status").unwrap();
}

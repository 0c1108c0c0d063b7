//! What processes give up: a user, and in a signer whatever would give a defect in a module, or somebody who looks at the process, more than
//! signatures.

use std::collections::BTreeMap;
use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, initgroups, setgid, setuid};
use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_no_new_privs};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter_all_threads};

/// What no module needs to sign: starting programs, reading other processes, changing what the kernel or the file system is, and the
/// kernel's larger attack surfaces.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_nfsservctl,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_personality,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_lookup_dcookie,
    libc::SYS_fanotify_init,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Of this architecture only.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// The x32 calls of an x86-64 kernel are the same ones with this bit.
#[cfg(target_arch = "x86_64")]
const ALIASES: &[libc::c_long] = &[0, 0x4000_0000];
#[cfg(not(target_arch = "x86_64"))]
const ALIASES: &[libc::c_long] = &[0];

/// Why the process is not protected as it should be.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A system call has failed.
    #[error("{0} failed ({1})")]
    Call(&'static str, rustix::io::Errno),
    /// The filter of system calls.
    #[error("seccomp failed ({0})")]
    Seccomp(String),
}

/// Keeps the memory of this process to itself: no core dump, no other process of the same user that reads it, no program started from
/// here that has more rights.
///
/// # Errors
/// The kernel refuses one of them.
pub fn keep_to_itself() -> Result<(), SandboxError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(|error| SandboxError::Call("setrlimit(RLIMIT_CORE)", error))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| SandboxError::Call("prctl(PR_SET_DUMPABLE)", error))?;
    set_no_new_privs(true).map_err(|error| SandboxError::Call("prctl(PR_SET_NO_NEW_PRIVS)", error))
}

/// Makes this process the user's, for good. Nothing is done if it is already.
///
/// # Errors
/// It may not.
pub fn become_user(user: &User) -> nix::Result<()> {
    if Uid::effective() == user.uid {
        return Ok(());
    }
    let login = CString::new(user.name.clone()).expect("a user's name holds no NUL");
    initgroups(&login, user.gid)?;
    setgid(user.gid)?;
    setuid(user.uid)?;
    assert!(
        Uid::effective() == user.uid && Gid::effective() == user.gid,
        "the kernel said that it did"
    );
    Ok(())
}

/// Lets processes that this one starts lock all of their memory, where it may allow that.
pub fn allow_locked_memory() {
    let everything = Rlimit {
        current: None,
        maximum: None,
    };
    // Fails without CAP_SYS_RESOURCE: then the limit stays what it is, and whoever wants to lock memory says so.
    let _ = setrlimit(Resource::Memlock, everything);
}

/// Keeps the memory of this process, also what it gets later, out of swap.
///
/// # Errors
/// The limit is too low, and what to do: a process that locks all it gets must not have one, as it would fail at some later allocation.
pub fn lock_memory() -> Result<(), String> {
    let limit = getrlimit(Resource::Memlock).current;
    let privileged = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if let (Some(bytes), false) = (limit, privileged) {
        return Err(format!(
            "memory is not locked and may reach swap: found a limit of {bytes} bytes, expected none; set LimitMEMLOCK=infinity"
        ));
    }
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    rustix::mm::mlockall(flags)
        .map_err(|error| format!("memory is not locked and may reach swap: mlockall failed ({error})"))
}

/// Gives up, for all threads and for good, system calls that no module needs. They fail with EPERM.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn refuse_system_calls() -> Result<(), SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(&error))?;
    let filter =
        SeccompFilter::new(rules(), SeccompAction::Allow, refused, architecture).map_err(|error| failed(&error))?;
    let program = BpfProgram::try_from(filter).map_err(|error| failed(&error))?;
    apply_filter_all_threads(&program).map_err(|error| failed(&error))
}

fn rules() -> BTreeMap<i64, Vec<seccompiler::SeccompRule>> {
    let calls = REFUSED.iter().chain(REFUSED_HERE);
    let aliases = |call: &libc::c_long| ALIASES.iter().map(|bit| (call | bit, Vec::new())).collect::<Vec<_>>();
    calls.flat_map(aliases).collect()
}

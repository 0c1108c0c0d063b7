//! What processes give up: root, capabilities, files, system calls. In a signer that is whatever would give a defect in a module, or somebody
//! who looks at the process, more than signatures; what a gateway gives up is chosen in its `server/confine.rs`.

use std::collections::BTreeMap;
use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, initgroups, setgid, setuid};
use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

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
    /// What puts files out of reach.
    #[error("Landlock failed ({0})")]
    Landlock(String),
}

/// Keeps the memory of this process to itself: no core dump, no other process of the same user that reads it, no program started from
/// here that has more rights.
///
/// # Errors
/// The kernel refuses one of them.
pub fn keep_to_itself() -> Result<(), SandboxError> {
    keep_memory_to_itself()?;
    gain_no_rights()
}

/// No core dump, and no other process of the same user that reads the memory of this one.
///
/// # Errors
/// The kernel refuses one of them.
pub fn keep_memory_to_itself() -> Result<(), SandboxError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(|error| SandboxError::Call("setrlimit(RLIMIT_CORE)", error))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| SandboxError::Call("prctl(PR_SET_DUMPABLE)", error))
}

/// The contrary of the half of [`keep_memory_to_itself`] that can be undone, for whoever becomes another user and wants to be debugged: that
/// hides the memory, too.
///
/// # Errors
/// The kernel refuses.
pub fn show_memory() -> Result<(), SandboxError> {
    set_dumpable_behavior(DumpableBehavior::Dumpable)
        .map_err(|error| SandboxError::Call("prctl(PR_SET_DUMPABLE)", error))
}

/// No program that is started from here has more rights: set-user-ID bits and file capabilities count for nothing.
///
/// # Errors
/// The kernel refuses.
pub fn gain_no_rights() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(|error| SandboxError::Call("prctl(PR_SET_NO_NEW_PRIVS)", error))
}

/// Makes this process the user's, for good, with the user's groups; `group` is the main one, the user's own if none is given. Nothing is
/// done if it is already.
///
/// # Errors
/// It may not.
pub fn become_user(user: &User, group: Option<Gid>) -> nix::Result<()> {
    let gid = group.unwrap_or(user.gid);
    if Uid::effective() == user.uid && group.is_none_or(|gid| Gid::effective() == gid) {
        return Ok(());
    }
    let login = CString::new(user.name.clone()).expect("a user's name holds no NUL");
    initgroups(&login, gid)?;
    setgid(gid)?;
    setuid(user.uid)?;
    assert!(
        Uid::effective() == user.uid && Gid::effective() == gid,
        "the kernel said that it did"
    );
    Ok(())
}

/// Gives up capabilities that programs started from here could have, as far as this process may. To be called while it is root: without
/// CAP_SETPCAP nothing happens, and [`gain_no_rights`] is what keeps them away.
///
/// # Errors
/// The kernel refuses for another reason.
pub fn empty_bounding_set() -> Result<(), SandboxError> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(false) => {}
            Ok(true) => match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                Err(rustix::io::Errno::PERM) => return Ok(()),
                Err(error) => return Err(SandboxError::Call("prctl(PR_CAPBSET_DROP)", error)),
            },
            // The kernel knows no more.
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// Gives up every capability of this thread, and of those that it starts.
///
/// # Errors
/// The kernel refuses.
pub fn drop_capabilities() -> Result<(), SandboxError> {
    // Fails where ambient capabilities are not known; then there are none.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| SandboxError::Call("capset", error))
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
    let calls = REFUSED.iter().chain(REFUSED_HERE);
    let aliases = |call: &libc::c_long| ALIASES.iter().map(|bit| (call | bit, Vec::new())).collect::<Vec<_>>();
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    filter(calls.flat_map(aliases).collect(), SeccompAction::Allow, refused)
}

/// Calls that a process keeps.
#[derive(Clone, Copy, Debug)]
pub enum Kept {
    /// Whatever its arguments are.
    Always(libc::c_long),
    /// Where this argument, counted from zero, is one of these.
    OneOf(libc::c_long, u8, &'static [u32]),
    /// Where all of these bits are set in this argument.
    Bits(libc::c_long, u8, u64),
}

/// Gives up, for all threads and for good, every system call but these. The others fail with ENOSYS, as on a kernel that does not have them:
/// libraries that try a newer call first go on with the older one.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn keep_system_calls(kept: impl IntoIterator<Item = Kept>) -> Result<(), SandboxError> {
    let unknown = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let mut rules = BTreeMap::new();
    for one in kept {
        let (call, conditions) = one.conditions();
        let conditions: Result<Vec<_>, _> = conditions.into_iter().map(|one| SeccompRule::new(vec![one?])).collect();
        rules.insert(
            call,
            conditions.map_err(|error| SandboxError::Seccomp(error.to_string()))?,
        );
    }
    filter(rules, unknown, SeccompAction::Allow)
}

impl Kept {
    /// The call, and conditions of which one has to hold; none, if it is always kept.
    fn conditions(self) -> (libc::c_long, Vec<Result<SeccompCondition, seccompiler::BackendError>>) {
        match self {
            Kept::Always(call) => (call, Vec::new()),
            Kept::OneOf(call, argument, values) => {
                let equal = |&value: &u32| {
                    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value))
                };
                (call, values.iter().map(equal).collect())
            }
            Kept::Bits(call, argument, bits) => {
                let set = SeccompCmpOp::MaskedEq(bits);
                let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, set, bits);
                (call, vec![condition])
            }
        }
    }
}

/// What happens to calls that no rule fits, and to those that one does.
fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    those: SeccompAction,
) -> Result<(), SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(&error))?;
    let filter = SeccompFilter::new(rules, others, those, architecture).map_err(|error| failed(&error))?;
    let program = BpfProgram::try_from(filter).map_err(|error| failed(&error))?;
    apply_filter_all_threads(&program).map_err(|error| failed(&error))
}

//! Memory for secrets that wait: out of swap, core dumps and children of this process, and wiped when it is given back. Where the kernel
//! has secret memory (memfd_secret), it is also out of reach of debuggers, of `/proc/PID/mem` and of the kernel's own mistakes: no other
//! mapping of these pages exists.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{FromRawFd, OwnedFd};

use memmap2::{Advice, MmapMut, MmapOptions};
use zeroize::Zeroize;

/// See the module. Zero at first.
pub struct SecretMemory(MmapMut);

impl SecretMemory {
    /// So many bytes.
    ///
    /// # Errors
    /// There is no memory, or none that can be locked (RLIMIT_MEMLOCK), or the kernel cannot keep it from children (before Linux 4.14).
    pub fn new(bytes: usize) -> io::Result<SecretMemory> {
        SecretMemory::in_secret_memory(bytes).or_else(|_| {
            // It is switched off, forbidden, or used up.
            let memory = SecretMemory::unlocked(bytes)?;
            memory.0.lock()?;
            Ok(memory)
        })
    }

    /// So many bytes, which may be swapped out.
    ///
    /// # Errors
    /// There is no memory, or the kernel cannot keep it from children (before Linux 4.14).
    pub fn unlocked(bytes: usize) -> io::Result<SecretMemory> {
        let memory = MmapMut::map_anon(bytes)?;
        wipe_on_fork(&memory)?;
        memory.advise(Advice::DontDump)?;
        Ok(SecretMemory(memory))
    }

    /// The kernel keeps it locked and out of core dumps. It is shared memory, which a child would share: it gets none, and ends if it
    /// looks there.
    fn in_secret_memory(bytes: usize) -> io::Result<SecretMemory> {
        let file = secret_file()?;
        file.set_len(bytes as u64)?;
        let mut memory = map(&file, bytes)?;
        memory.advise(Advice::DontFork)?;
        // Its pages come now, when it can still be done without, and not when a secret is written.
        memory.fill(0);
        Ok(SecretMemory(memory))
    }
}

impl Deref for SecretMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for SecretMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for SecretMemory {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[expect(unsafe_code, reason = "neither rustix nor memmap2 knows this system call")]
fn secret_file() -> io::Result<File> {
    // SAFETY: the call takes flags only, and touches no memory of this process.
    let number = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    match i32::try_from(number) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(number) if number >= 0 => Ok(File::from(unsafe { OwnedFd::from_raw_fd(number) })),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

#[expect(unsafe_code, reason = "whoever has a mapped file could change it")]
fn map(file: &File, bytes: usize) -> io::Result<MmapMut> {
    // SAFETY: the file has this length and no name, and its only descriptor is closed as soon as it is mapped: nobody else maps or
    // truncates it.
    unsafe { MmapOptions::new().len(bytes).map_mut(file) }
}

#[expect(unsafe_code, reason = "memmap2 does not know this advice")]
fn wipe_on_fork(memory: &MmapMut) -> io::Result<()> {
    let start = memory.as_ptr().cast_mut().cast();
    // SAFETY: the range is that of a private anonymous mapping which is all ours. In this process the advice changes nothing; in
    // a child, which has pages of its own, they are zero, and zeros are as good bytes as any.
    unsafe { rustix::mm::madvise(start, memory.len(), rustix::mm::Advice::LinuxWipeOnFork)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// The lines about a mapping, the first with its name.
    fn entry(memory: &SecretMemory) -> (String, Vec<String>) {
        let start = format!("{:x}-", memory.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let entry: Vec<&str> = maps.lines().skip_while(|line| !line.starts_with(&start)).collect();
        let flags = entry.iter().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        (entry[0].to_owned(), flags)
    }

    fn read_through_proc(memory: &SecretMemory) -> io::Result<[u8; 6]> {
        let mut found = [0; 6];
        let file = File::open("/proc/self/mem").unwrap();
        file.read_exact_at(&mut found, memory.as_ptr().addr() as u64)?;
        Ok(found)
    }

    #[test]
    fn without_secret_memory_it_is_wiped_in_children_left_out_of_core_dumps_and_locked() {
        let mut memory = SecretMemory::unlocked(64).unwrap();
        memory.0.lock().unwrap();
        memory[..6].copy_from_slice(b"secret");
        let (_, flags) = entry(&memory);
        for flag in ["wf", "dd", "lo"] {
            assert!(flags.iter().any(|one| one == flag), "{flag} is not in {flags:?}");
        }
        assert_eq!(read_through_proc(&memory).unwrap(), *b"secret");
    }

    #[test]
    fn secret_memory_is_out_of_reach_of_children_core_dumps_and_whoever_reads_the_process() {
        let mut memory = match SecretMemory::in_secret_memory(3 * 4096 + 64) {
            Ok(memory) => memory,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "the kernel has it");
                return;
            }
        };
        memory[..6].copy_from_slice(b"secret");
        *memory.last_mut().unwrap() = 7;
        let (name, flags) = entry(&memory);
        assert!(name.contains("secretmem"), "{name}");
        for flag in ["dc", "dd", "lo"] {
            assert!(flags.iter().any(|one| one == flag), "{flag} is not in {flags:?}");
        }
        assert!(read_through_proc(&memory).is_err());
        assert_eq!(memory[..6], *b"secret");
    }

    #[test]
    fn new_takes_secret_memory_where_the_kernel_has_it() {
        let memory = SecretMemory::new(64).unwrap();
        let (name, _) = entry(&memory);
        assert_eq!(name.contains("secretmem"), secret_file().is_ok(), "{name}");
        assert!(memory.iter().all(|&byte| byte == 0));
    }
}

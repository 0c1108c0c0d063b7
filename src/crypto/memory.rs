//! Memory for secrets that wait: locked, left out of core dumps, zero in a child of this process, wiped when it is given back.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};
use zeroize::Zeroize;

/// See the module. Zero at first.
pub struct SecretMemory(MmapMut);

impl SecretMemory {
    /// So many bytes.
    ///
    /// # Errors
    /// There is no memory, or none that can be locked (RLIMIT_MEMLOCK), or the kernel cannot keep it from children (before Linux 4.14).
    pub fn new(bytes: usize) -> io::Result<SecretMemory> {
        let memory = SecretMemory::unlocked(bytes)?;
        memory.0.lock()?;
        Ok(memory)
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
    use super::*;

    #[test]
    fn it_is_wiped_in_children_left_out_of_core_dumps_and_locked() {
        let memory = SecretMemory::new(64).unwrap();
        let start = format!("{:x}-", memory.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let entry: Vec<&str> = maps.lines().skip_while(|line| !line.starts_with(&start)).collect();
        let flags = entry.iter().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        for flag in ["wf", "dd", "lo"] {
            assert!(flags.contains(&flag), "{flag} is not in {flags:?}");
        }
    }
}

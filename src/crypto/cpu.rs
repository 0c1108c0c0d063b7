//! What this processor has.

/// Instructions that decide which cipher suite is the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// AES and carry-less multiplication: AES-GCM in hardware.
    pub aes: bool,
    /// SHA-256 in hardware.
    pub sha: bool,
}

/// Whether this is a virtual machine, which may be copied while it runs. What cannot be told is taken for one.
#[must_use]
pub fn is_virtual() -> bool {
    #[cfg(target_arch = "x86_64")]
    let is_virtual = std::arch::x86_64::__cpuid(1).ecx >> 31 == 1;
    #[cfg(not(target_arch = "x86_64"))]
    let is_virtual = true;
    is_virtual
}

impl Cpu {
    /// This machine.
    #[must_use]
    pub fn detect() -> Cpu {
        #[cfg(target_arch = "x86_64")]
        let cpu = Cpu {
            aes: is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq"),
            sha: is_x86_feature_detected!("sha"),
        };
        #[cfg(target_arch = "aarch64")]
        let cpu = Cpu {
            aes: std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull"),
            sha: std::arch::is_aarch64_feature_detected!("sha2"),
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let cpu = Cpu { aes: false, sha: false };
        cpu
    }
}

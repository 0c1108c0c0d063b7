//! What this processor has, and what AWS-LC is told that it lacks.

/// Instruction sets that cryptography is fast with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// AES rounds.
    pub aes: bool,
    /// Carry-less multiplication: PCLMULQDQ, or PMULL.
    pub clmul: bool,
    /// AES rounds on wide registers.
    pub vaes: bool,
    /// Carry-less multiplication on wide registers.
    pub vpclmulqdq: bool,
    /// SHA-256.
    pub sha256: bool,
    /// SHA-512, which SHA-384 is computed with. AWS-LC has no code for x86-64's.
    pub sha512: bool,
    /// BMI2.
    pub bmi2: bool,
    /// ADX.
    pub adx: bool,
    /// AVX2, with the operating system saving its registers.
    pub avx2: bool,
    /// AVX-512 Foundation, with the operating system saving its registers.
    pub avx512f: bool,
    /// AVX-512 DQ.
    pub avx512dq: bool,
    /// AVX-512 BW.
    pub avx512bw: bool,
    /// AVX-512 IFMA: eight products of 52 bits at once.
    pub avx512ifma: bool,
    /// AVX-512 VBMI2.
    pub avx512vbmi2: bool,
}

/// An instruction set in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// As its maker calls it.
    pub name: &'static str,
    /// The processor has it, and the operating system lets programs use it.
    pub present: bool,
    /// What is fast with it.
    pub serves: &'static str,
    /// Where it stands in the numbers of [`Mask`].
    place: Option<Place>,
}

/// A bit of what CPUID says: of leaf 1, or of leaf 7. The low half of either is one register, the high half the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Leaf1(u32),
    Leaf7(u32),
}

impl Processor {
    /// This machine's.
    #[must_use]
    pub fn detect() -> Processor {
        #[cfg(target_arch = "x86_64")]
        let processor = Processor {
            aes: is_x86_feature_detected!("aes"),
            clmul: is_x86_feature_detected!("pclmulqdq"),
            vaes: is_x86_feature_detected!("vaes"),
            vpclmulqdq: is_x86_feature_detected!("vpclmulqdq"),
            sha256: is_x86_feature_detected!("sha"),
            bmi2: is_x86_feature_detected!("bmi2"),
            adx: is_x86_feature_detected!("adx"),
            avx2: is_x86_feature_detected!("avx2"),
            avx512f: is_x86_feature_detected!("avx512f"),
            avx512dq: is_x86_feature_detected!("avx512dq"),
            avx512bw: is_x86_feature_detected!("avx512bw"),
            avx512ifma: is_x86_feature_detected!("avx512ifma"),
            avx512vbmi2: is_x86_feature_detected!("avx512vbmi2"),
            ..Processor::default()
        };
        #[cfg(target_arch = "aarch64")]
        let processor = Processor {
            aes: std::arch::is_aarch64_feature_detected!("aes"),
            clmul: std::arch::is_aarch64_feature_detected!("pmull"),
            sha256: std::arch::is_aarch64_feature_detected!("sha2"),
            sha512: std::arch::is_aarch64_feature_detected!("sha3"),
            ..Processor::default()
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let processor = Processor::default();
        processor
    }

    /// Each that there can be on this architecture.
    #[must_use]
    pub fn features(self) -> Vec<Feature> {
        use Place::{Leaf1, Leaf7};
        let feature = |name, present, serves, place| Feature {
            name,
            present,
            serves,
            place,
        };
        if cfg!(target_arch = "x86_64") {
            let wide = "AES-GCM on wide registers";
            let numbers = "RSA, P-256, P-384, X25519";
            let lanes = "batches; AES-GCM on wide registers";
            vec![
                feature("AES", self.aes, "AES-GCM", Some(Leaf1(32 + 25))),
                feature("PCLMULQDQ", self.clmul, "AES-GCM", Some(Leaf1(32 + 1))),
                feature("VAES", self.vaes, wide, Some(Leaf7(32 + 9))),
                feature("VPCLMULQDQ", self.vpclmulqdq, wide, Some(Leaf7(32 + 10))),
                feature("SHA-NI", self.sha256, "SHA-256", Some(Leaf7(29))),
                feature("BMI2", self.bmi2, numbers, Some(Leaf7(8))),
                feature("ADX", self.adx, numbers, Some(Leaf7(19))),
                feature("AVX2", self.avx2, "ChaCha20-Poly1305", Some(Leaf7(5))),
                feature("AVX-512 F", self.avx512f, lanes, Some(Leaf7(16))),
                feature("AVX-512 DQ", self.avx512dq, lanes, Some(Leaf7(17))),
                feature("AVX-512 BW", self.avx512bw, lanes, Some(Leaf7(30))),
                feature("AVX-512 IFMA", self.avx512ifma, "batches; RSA", Some(Leaf7(21))),
                feature("AVX-512 VBMI2", self.avx512vbmi2, "batches", Some(Leaf7(32 + 6))),
            ]
        } else {
            vec![
                feature("AES", self.aes, "AES-GCM", None),
                feature("PMULL", self.clmul, "AES-GCM", None),
                feature("SHA-256", self.sha256, "SHA-256", None),
                feature("SHA-512", self.sha512, "SHA-384", None),
            ]
        }
    }
}

/// Instructions that decide which cipher suite is the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// AES and carry-less multiplication: AES-GCM in hardware.
    pub aes: bool,
    /// SHA-256 in hardware.
    pub sha: bool,
}

impl Cpu {
    /// This machine.
    #[must_use]
    pub fn detect() -> Cpu {
        let processor = Processor::detect();
        Cpu {
            aes: processor.aes && processor.clmul,
            sha: processor.sha256,
        }
    }
}

/// The processor says that a hypervisor lends it: CPUID, leaf 1, the highest bit of ECX. Nothing on an architecture that has no
/// such bit.
#[must_use]
pub fn has_hypervisor() -> Option<bool> {
    #[cfg(target_arch = "x86_64")]
    let has = Some(std::arch::x86_64::__cpuid(1).ecx >> 31 == 1);
    #[cfg(not(target_arch = "x86_64"))]
    let has = None;
    has
}

/// Whether this is a virtual machine, which may be copied while it runs. What cannot be told is taken for one.
#[must_use]
pub fn is_virtual() -> bool {
    has_hypervisor().unwrap_or(true)
}

/// The value of the environment variable that says which instructions AWS-LC shall not use. It is for tests of AWS-LC; inherited by
/// accident it makes a server slow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask(String);

impl Mask {
    /// The variable.
    pub const VARIABLE: &'static str = if cfg!(target_arch = "aarch64") {
        "OPENSSL_armcap"
    } else {
        "OPENSSL_ia32cap"
    };

    /// Of this process.
    #[must_use]
    pub fn from_environment() -> Option<Mask> {
        let value = std::env::var_os(Self::VARIABLE)?;
        Some(Mask(value.to_string_lossy().into_owned()))
    }

    /// As it was set.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.0
    }

    /// The names of what the processor has and AWS-LC does not see for this.
    #[must_use]
    pub fn hides(&self, processor: Processor) -> Vec<&'static str> {
        // One or two numbers, as in aws-lc/crypto/fipsmodule/cpucap/cpu_intel.c.
        let mut numbers = self.0.splitn(2, ':').map(Number::read);
        let [leaf1, leaf7] = [(); 2].map(|()| numbers.next().flatten());
        let is_hidden = |place| match place {
            Place::Leaf1(bit) => leaf1.is_some_and(|number| number.hides(bit)),
            Place::Leaf7(bit) => leaf7.is_some_and(|number| number.hides(bit)),
        };
        let features = processor.features().into_iter();
        let hidden = features.filter(|feature| feature.present && feature.place.is_some_and(is_hidden));
        hidden.map(|feature| feature.name).collect()
    }

    /// What it does, as half a sentence after the variable's name.
    #[must_use]
    pub fn effect(&self, processor: Processor) -> String {
        let hidden = match self.hides(processor) {
            names if names.is_empty() => "none that Ringlock knows".to_owned(),
            names => names.join(", "),
        };
        format!(
            "it is \"{}\", and AWS-LC does not use the instructions that this hides: {hidden}",
            self.0.escape_debug()
        )
    }
}

/// How a number of [`Mask`] changes what CPUID says.
#[derive(Clone, Copy)]
enum Number {
    /// `~`: without these bits.
    Without(u64),
    /// `|`: with these bits, too.
    With,
    /// These bits only.
    Only(u64),
}

impl Number {
    /// As `sscanf` reads it: the digits in front, if there are any.
    fn read(text: &str) -> Option<Number> {
        let digits = text.trim_start_matches(['~', '|']);
        let (digits, radix) = match digits.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (digits, 10),
        };
        let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        let bits = match &digits[..end] {
            "" => return None,
            digits => u64::from_str_radix(digits, radix).unwrap_or(u64::MAX),
        };
        Some(match text.as_bytes()[0] {
            b'~' => Number::Without(bits),
            b'|' => Number::With,
            _ => Number::Only(bits),
        })
    }

    fn hides(self, bit: u32) -> bool {
        match self {
            Number::Without(bits) => bits >> bit & 1 == 1,
            Number::With => false,
            Number::Only(bits) => bits >> bit & 1 == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_mask_hides_what_its_numbers_say() {
        let all = Processor {
            aes: true,
            clmul: true,
            vaes: true,
            sha256: true,
            avx512ifma: true,
            ..Processor::default()
        };
        let names = ["AES", "PCLMULQDQ", "VAES", "SHA-NI", "AVX-512 IFMA"];
        for (value, hidden) in [
            ("~0x0:~0x200000", &["AVX-512 IFMA"][..]),
            ("~0x0:~0x20000000000", &["VAES"]),
            ("~0x200000200000000", &["AES", "PCLMULQDQ"]),
            ("~144115188075855872", &["AES"]),
            (":~0x20200000", &["SHA-NI", "AVX-512 IFMA"]),
            ("~0", &[]),
            ("|0x0:|0x0", &[]),
            ("0", &["AES", "PCLMULQDQ"]),
            ("0x0:0", &names),
            (
                "0x200000000000000:0x20000000000",
                &["PCLMULQDQ", "SHA-NI", "AVX-512 IFMA"],
            ),
            ("~0xfffffffffffffffffff", &["AES", "PCLMULQDQ"]),
            ("", &[]),
            ("~", &[]),
            ("nothing", &[]),
        ] {
            assert_eq!(Mask(value.to_owned()).hides(all), hidden, "{value:?}");
        }
        let without = Processor { vaes: false, ..all };
        let mask = Mask("~0x0:~0x20000000000".to_owned());
        assert!(mask.hides(without).is_empty(), "what is not there is not hidden");
        assert!(mask.effect(all).ends_with(": VAES"), "{}", mask.effect(all));
    }

    #[test]
    fn each_instruction_set_has_a_name_and_a_bit_of_its_own() {
        let features = Processor::detect().features();
        for (position, feature) in features.iter().enumerate() {
            for other in &features[..position] {
                assert_ne!(feature.name, other.name);
                assert!(
                    feature.place.is_none() || feature.place != other.place,
                    "{feature:?}, {other:?}"
                );
            }
        }
    }

    /// The kernel reads the same instruction.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_kernel_says_the_same() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap();
        let says = |flag: &str| flags.split_whitespace().any(|word| word == flag);
        assert_eq!(has_hypervisor(), Some(says("hypervisor")));
        let processor = Processor::detect();
        for (flag, present) in [
            ("aes", processor.aes),
            ("vpclmulqdq", processor.vpclmulqdq),
            ("sha_ni", processor.sha256),
            ("adx", processor.adx),
            ("avx512ifma", processor.avx512ifma),
            ("avx512_vbmi2", processor.avx512vbmi2),
        ] {
            assert_eq!(present, says(flag), "{flag}");
        }
    }
}

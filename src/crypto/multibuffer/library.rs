//! The one place that calls into libcrypto_mb: it opens the library, and each of its functions is called by one safe
//! function here. The prototypes are those of Intel's headers (`crypto_mb/*.h`, Apache-2.0).
//!
//! Every function takes eight pointers for each argument. A null pointer leaves a lane out; its status says so, and its
//! output may be written all the same. No pointer is kept by the library. It is never closed again: its functions stay
//! where they are for as long as the process lives, and it keeps no state that they change, so that threads may share it.

#![expect(
    unsafe_code,
    reason = "a library that is found at run time is called through its addresses"
)]

use std::ffi::{CStr, CString, c_int, c_void};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::LANES;
use super::curve::{Curve, P256, P384};
use super::load::LoadError;

/// One input of each lane; `None` leaves the lane out. It is laid out as an array of pointers that may be null.
pub(super) type Inputs<'a, T> = [Option<&'a T>; LANES];

/// What became of each lane: four bits for each, zero when it is well.
#[derive(Clone, Copy)]
pub(super) struct Status(u32);

impl Status {
    pub(super) fn is_ok(self, lane: usize) -> bool {
        debug_assert!(lane < LANES);
        self.0 >> (4 * lane) & 0xf == 0
    }
}

type In<T> = *const *const T;
type Out<T> = *const *mut T;

/// `mbxVersion` up to what is read of it.
#[repr(C)]
struct Version {
    major: c_int,
    minor: c_int,
    patch: c_int,
}

/// An `mbx_RSA_Method`, of which nothing is known.
#[repr(C)]
struct RsaMethod {
    _opaque: [u8; 0],
}

/// What one curve's functions are called with; limbs and bytes are of the curve's size, the scratch buffer is not used.
pub(super) struct CurveFunctions {
    public_key: unsafe extern "C" fn(Out<u64>, Out<u64>, Out<u64>, In<u64>, *mut u8) -> u32,
    ecdh: unsafe extern "C" fn(Out<u8>, In<u64>, In<u64>, In<u64>, In<u64>, *mut u8) -> u32,
    sign_setup: unsafe extern "C" fn(Out<u64>, Out<u64>, In<u64>, *mut u8) -> u32,
    sign_complete: unsafe extern "C" fn(Out<u8>, Out<u8>, In<u8>, In<u64>, In<u64>, In<u64>, *mut u8) -> u32,
    sign: unsafe extern "C" fn(Out<u8>, Out<u8>, In<u8>, In<u64>, In<u64>, *mut u8) -> u32,
    verify: unsafe extern "C" fn(In<u8>, In<u8>, In<u8>, In<u64>, In<u64>, In<u64>, *mut u8) -> u32,
}

type RsaMethodOf = unsafe extern "C" fn(c_int) -> *const RsaMethod;
type RsaPrivateCrt = unsafe extern "C" fn(
    In<u8>,
    Out<u8>,
    In<u64>,
    In<u64>,
    In<u64>,
    In<u64>,
    In<u64>,
    c_int,
    *const RsaMethod,
    *mut u8,
) -> u32;
type RsaPublic = unsafe extern "C" fn(In<u8>, Out<u8>, In<u64>, c_int, *const RsaMethod, *mut u8) -> u32;

/// The library, opened, with every function that is used.
pub(super) struct Library {
    x25519_public_key: unsafe extern "C" fn(Out<u8>, In<u8>) -> u32,
    x25519: unsafe extern "C" fn(Out<u8>, In<u8>, In<u8>) -> u32,
    p256: CurveFunctions,
    p384: CurveFunctions,
    ed25519_sign: unsafe extern "C" fn(Out<u8>, Out<u8>, In<u8>, *const u32, In<u8>, In<u8>) -> u32,
    rsa_private_crt: RsaPrivateCrt,
    rsa_public: RsaPublic,
    rsa_methods: [RsaMethods; 3],
}

/// Of one size of keys.
#[derive(Clone, Copy)]
struct RsaMethods {
    bits: usize,
    private_crt: *const RsaMethod,
    public: *const RsaMethod,
    /// The larger of what the two want as a scratch buffer.
    scratch: usize,
}

// SAFETY: the pointers lead to tables of the library, which nothing changes and which is never closed; safe code cannot
// say so of a pointer.
unsafe impl Send for Library {}
// SAFETY: as for `Send`; the functions work on what they are called with alone.
unsafe impl Sync for Library {}

/// A curve of which the library has functions.
pub(super) trait Batched: Curve {
    fn functions(library: &Library) -> &CurveFunctions;
}

impl Batched for P256 {
    fn functions(library: &Library) -> &CurveFunctions {
        &library.p256
    }
}

impl Batched for P384 {
    fn functions(library: &Library) -> &CurveFunctions {
        &library.p384
    }
}

/// The largest modulus, in bytes.
pub(super) const RSA_BYTES_MAX: usize = 512;
/// The limbs of the largest modulus.
pub(super) const RSA_LIMBS_MAX: usize = RSA_BYTES_MAX / 8;

/// The two primes, their exponents, and the inverse of the second modulo the first, of each lane.
pub(super) struct RsaInputs<'a> {
    pub(super) p: Inputs<'a, [u64; RSA_LIMBS_MAX / 2]>,
    pub(super) q: Inputs<'a, [u64; RSA_LIMBS_MAX / 2]>,
    pub(super) dp: Inputs<'a, [u64; RSA_LIMBS_MAX / 2]>,
    pub(super) dq: Inputs<'a, [u64; RSA_LIMBS_MAX / 2]>,
    pub(super) q_inverse: Inputs<'a, [u64; RSA_LIMBS_MAX / 2]>,
}

impl Library {
    pub(super) fn x25519_public_key(&self, public: &mut [[u8; 32]; LANES], private: &Inputs<[u8; 32]>) -> Status {
        let public = pointers(public);
        // SAFETY: eight pointers each, to 32 bytes each or null.
        Status(unsafe { (self.x25519_public_key)(public.as_ptr().cast(), private.as_ptr().cast()) })
    }

    pub(super) fn x25519(
        &self,
        shared: &mut [[u8; 32]; LANES],
        private: &Inputs<[u8; 32]>,
        peer: &Inputs<[u8; 32]>,
    ) -> Status {
        let shared = pointers(shared);
        let (private, peer) = (private.as_ptr().cast(), peer.as_ptr().cast());
        // SAFETY: eight pointers each, to 32 bytes each or null.
        Status(unsafe { (self.x25519)(shared.as_ptr().cast(), private, peer) })
    }

    pub(super) fn public_key<C: Batched>(
        &self,
        x: &mut [C::Limbs; LANES],
        y: &mut [C::Limbs; LANES],
        private: &Inputs<C::Limbs>,
    ) -> Status {
        let (x, y) = (pointers(x), pointers(y));
        let (x, y, private) = (x.as_ptr().cast(), y.as_ptr().cast(), private.as_ptr().cast());
        let function = C::functions(self).public_key;
        // SAFETY: eight pointers each, to as many limbs as this curve has, or null. Without an array for Z the result is affine.
        Status(unsafe { function(x, y, std::ptr::null(), private, std::ptr::null_mut()) })
    }

    pub(super) fn ecdh<C: Batched>(
        &self,
        shared: &mut [C::Bytes; LANES],
        private: &Inputs<C::Limbs>,
        x: &Inputs<C::Limbs>,
        y: &Inputs<C::Limbs>,
    ) -> Status {
        let shared = pointers(shared);
        let (private, x, y) = (private.as_ptr().cast(), x.as_ptr().cast(), y.as_ptr().cast());
        let (affine, scratch) = (std::ptr::null(), std::ptr::null_mut());
        let function = C::functions(self).ecdh;
        // SAFETY: eight pointers each, to as many limbs or bytes as this curve has, or null; without an array for Z the
        // points are affine.
        Status(unsafe { function(shared.as_ptr().cast(), private, x, y, affine, scratch) })
    }

    pub(super) fn sign_setup<C: Batched>(
        &self,
        inverse: &mut [C::Limbs; LANES],
        r: &mut [C::Limbs; LANES],
        nonce: &Inputs<C::Limbs>,
    ) -> Status {
        let (inverse, r) = (pointers(inverse), pointers(r));
        let (inverse, r, nonce) = (inverse.as_ptr().cast(), r.as_ptr().cast(), nonce.as_ptr().cast());
        let function = C::functions(self).sign_setup;
        // SAFETY: eight pointers each, to as many limbs as this curve has, or null.
        Status(unsafe { function(inverse, r, nonce, std::ptr::null_mut()) })
    }

    pub(super) fn sign_complete<C: Batched>(
        &self,
        (r, s): (&mut [C::Bytes; LANES], &mut [C::Bytes; LANES]),
        digest: &Inputs<C::Bytes>,
        setup_r: &Inputs<C::Limbs>,
        inverse: &Inputs<C::Limbs>,
        key: &Inputs<C::Limbs>,
    ) -> Status {
        let (r, s) = (pointers(r), pointers(s));
        let (r, s, digest) = (r.as_ptr().cast(), s.as_ptr().cast(), digest.as_ptr().cast());
        let (setup_r, inverse, key) = (setup_r.as_ptr().cast(), inverse.as_ptr().cast(), key.as_ptr().cast());
        let function = C::functions(self).sign_complete;
        // SAFETY: eight pointers each, to as many limbs or bytes as this curve has, or null.
        Status(unsafe { function(r, s, digest, setup_r, inverse, key, std::ptr::null_mut()) })
    }

    pub(super) fn sign<C: Batched>(
        &self,
        (r, s): (&mut [C::Bytes; LANES], &mut [C::Bytes; LANES]),
        digest: &Inputs<C::Bytes>,
        nonce: &Inputs<C::Limbs>,
        key: &Inputs<C::Limbs>,
    ) -> Status {
        let (r, s) = (pointers(r), pointers(s));
        let (r, s, digest) = (r.as_ptr().cast(), s.as_ptr().cast(), digest.as_ptr().cast());
        let (nonce, key) = (nonce.as_ptr().cast(), key.as_ptr().cast());
        let function = C::functions(self).sign;
        // SAFETY: eight pointers each, to as many limbs or bytes as this curve has, or null.
        Status(unsafe { function(r, s, digest, nonce, key, std::ptr::null_mut()) })
    }

    pub(super) fn verify<C: Batched>(
        &self,
        (r, s): (&Inputs<C::Bytes>, &Inputs<C::Bytes>),
        digest: &Inputs<C::Bytes>,
        (x, y): (&Inputs<C::Limbs>, &Inputs<C::Limbs>),
    ) -> Status {
        let (r, s, digest) = (r.as_ptr().cast(), s.as_ptr().cast(), digest.as_ptr().cast());
        let (x, y) = (x.as_ptr().cast(), y.as_ptr().cast());
        let (affine, scratch) = (std::ptr::null(), std::ptr::null_mut());
        let function = C::functions(self).verify;
        // SAFETY: eight pointers each, to as many limbs or bytes as this curve has, or null; without an array for Z the
        // points are affine.
        Status(unsafe { function(r, s, digest, x, y, affine, scratch) })
    }

    /// `private` are seeds.
    pub(super) fn ed25519_sign(
        &self,
        (r, s): (&mut [[u8; 32]; LANES], &mut [[u8; 32]; LANES]),
        messages: [Option<&[u8]>; LANES],
        private: &Inputs<[u8; 32]>,
        public: &Inputs<[u8; 32]>,
    ) -> Status {
        let (r, s) = (pointers(r), pointers(s));
        let lengths = messages.map(|message| {
            let length = message.map_or(0, <[u8]>::len);
            u32::try_from(length).expect("messages that are signed are short")
        });
        let messages = messages.map(|message| message.map_or(std::ptr::null(), <[u8]>::as_ptr));
        let (r, s, messages) = (r.as_ptr().cast(), s.as_ptr().cast(), messages.as_ptr());
        let (private, public) = (private.as_ptr().cast(), public.as_ptr().cast());
        // SAFETY: eight pointers each, to 32 bytes each or null; to messages of the lengths given, or null with length zero.
        Status(unsafe { (self.ed25519_sign)(r, s, messages, lengths.as_ptr(), private, public) })
    }

    /// The size of the scratch buffer that the RSA functions want for the largest key.
    pub(super) fn rsa_scratch(&self) -> usize {
        self.rsa_methods
            .iter()
            .map(|methods| methods.scratch)
            .max()
            .unwrap_or_default()
    }

    /// The private operation with keys of `bits`. No lane may be left out: the library divides by what is given.
    pub(super) fn rsa_private_crt(
        &self,
        bits: usize,
        out: &mut [[u8; RSA_BYTES_MAX]; LANES],
        blocks: &[&[u8]; LANES],
        keys: &RsaInputs,
        scratch: &mut [u8],
    ) -> Status {
        let methods = self.rsa_methods(bits, scratch);
        assert!(
            blocks.iter().all(|block| block.len() == bits / 8),
            "a block is as long as the modulus"
        );
        let out = pointers(out);
        let blocks = blocks.map(<[u8]>::as_ptr);
        // SAFETY: eight pointers each: to blocks as long as the modulus, to outputs as long as the largest, and to numbers with
        // the limbs of the largest; the scratch buffer has the size that the method asks for.
        Status(unsafe {
            (self.rsa_private_crt)(
                blocks.as_ptr(),
                out.as_ptr().cast(),
                keys.p.as_ptr().cast(),
                keys.q.as_ptr().cast(),
                keys.dp.as_ptr().cast(),
                keys.dq.as_ptr().cast(),
                keys.q_inverse.as_ptr().cast(),
                int(bits),
                methods.private_crt,
                scratch.as_mut_ptr(),
            )
        })
    }

    /// The public operation with exponent 65537. No lane may be left out.
    pub(super) fn rsa_public(
        &self,
        bits: usize,
        out: &mut [[u8; RSA_BYTES_MAX]; LANES],
        signed: &[[u8; RSA_BYTES_MAX]; LANES],
        modulus: &Inputs<[u64; RSA_LIMBS_MAX]>,
        scratch: &mut [u8],
    ) -> Status {
        let methods = self.rsa_methods(bits, scratch);
        let out = pointers(out);
        let signed = signed.each_ref();
        let (signed, out, modulus) = (signed.as_ptr().cast(), out.as_ptr().cast(), modulus.as_ptr().cast());
        // SAFETY: eight pointers each, to bytes and limbs of the largest modulus; the scratch buffer has the size that the
        // method asks for.
        Status(unsafe { (self.rsa_public)(signed, out, modulus, int(bits), methods.public, scratch.as_mut_ptr()) })
    }

    fn rsa_methods(&self, bits: usize, scratch: &[u8]) -> RsaMethods {
        let methods = self.rsa_methods.iter().find(|methods| methods.bits == bits);
        let methods = *methods.expect("keys of other sizes are not made");
        assert!(
            scratch.len() >= methods.scratch,
            "the scratch buffer is made for the largest key"
        );
        methods
    }
}

/// Opens the library at `path`; a name without a slash is looked for where the system keeps its libraries. Functions are
/// looked up, none but the version's is called.
pub(super) fn open(path: &Path) -> Result<Library, LoadError> {
    if path.components().count() > 1 {
        is_whole(path)?;
        open_runtime(path)?;
    }
    let handle = dlopen(path)?;
    check_version(path, handle)?;
    // SAFETY: each function's type is that of its prototype in Intel's headers.
    unsafe {
        let applicable: unsafe extern "C" fn(u64) -> c_int = symbol(path, handle, c"mbx_is_crypto_mb_applicable")?;
        // Zero: the processor that this runs on.
        if applicable(0) == 0 {
            return Err(LoadError::NotApplicable {
                missing: "what mbx_is_crypto_mb_applicable() asks for".to_owned(),
            });
        }
        Ok(Library {
            x25519_public_key: symbol(path, handle, c"mbx_x25519_public_key_mb8")?,
            x25519: symbol(path, handle, c"mbx_x25519_mb8")?,
            p256: CurveFunctions {
                public_key: symbol(path, handle, c"mbx_nistp256_ecpublic_key_mb8")?,
                ecdh: symbol(path, handle, c"mbx_nistp256_ecdh_mb8")?,
                sign_setup: symbol(path, handle, c"mbx_nistp256_ecdsa_sign_setup_mb8")?,
                sign_complete: symbol(path, handle, c"mbx_nistp256_ecdsa_sign_complete_mb8")?,
                sign: symbol(path, handle, c"mbx_nistp256_ecdsa_sign_mb8")?,
                verify: symbol(path, handle, c"mbx_nistp256_ecdsa_verify_mb8")?,
            },
            p384: CurveFunctions {
                public_key: symbol(path, handle, c"mbx_nistp384_ecpublic_key_mb8")?,
                ecdh: symbol(path, handle, c"mbx_nistp384_ecdh_mb8")?,
                sign_setup: symbol(path, handle, c"mbx_nistp384_ecdsa_sign_setup_mb8")?,
                sign_complete: symbol(path, handle, c"mbx_nistp384_ecdsa_sign_complete_mb8")?,
                sign: symbol(path, handle, c"mbx_nistp384_ecdsa_sign_mb8")?,
                verify: symbol(path, handle, c"mbx_nistp384_ecdsa_verify_mb8")?,
            },
            ed25519_sign: symbol(path, handle, c"mbx_ed25519_sign_mb8")?,
            rsa_private_crt: symbol(path, handle, c"mbx_rsa_private_crt_mb8")?,
            rsa_public: symbol(path, handle, c"mbx_rsa_public_mb8")?,
            rsa_methods: [
                rsa_methods(path, handle, 2048)?,
                rsa_methods(path, handle, 3072)?,
                rsa_methods(path, handle, 4096)?,
            ],
        })
    }
}

/// The runtime that Intel's compiler links the library with, in the order in which they need each other.
const RUNTIME: [&str; 4] = ["libintlc.so.5", "libirng.so", "libimf.so", "libsvml.so"];

/// Opens what lies beside the library of the runtime that it was linked with: what has been opened under a name is found by
/// that name, whatever the search path says.
fn open_runtime(path: &Path) -> Result<(), LoadError> {
    for name in RUNTIME {
        let sibling = path.with_file_name(name);
        if sibling.exists() {
            is_whole(&sibling)?;
            dlopen(&sibling)?;
        }
    }
    Ok(())
}

fn dlopen(path: &Path) -> Result<*mut c_void, LoadError> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| broken(path, "its path has a zero byte"))?;
    // SAFETY: the name ends with a zero byte. What the library does on being opened is the trust that is put in it by naming
    // it; there is no safe way to open one.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: it returns null, or a string that lives until this thread's next call of this kind.
    let reason = unsafe { libc::dlerror().as_ref().map(|reason| CStr::from_ptr(reason)) };
    let reason = reason.map_or("no reason given".into(), CStr::to_string_lossy);
    Err(broken(path, &reason))
}

fn check_version(path: &Path, handle: *mut c_void) -> Result<(), LoadError> {
    // SAFETY: the type is that of the prototype; the structure is the library's and constant.
    let version = unsafe {
        let version: unsafe extern "C" fn() -> *const Version = symbol(path, handle, c"mbx_getversion")?;
        version().as_ref()
    };
    let found = version.map(|version| (version.major, version.minor, version.patch));
    match found {
        Some((1, 1.., _) | (2, ..)) => Ok(()),
        _ => Err(LoadError::Version {
            path: path.to_owned(),
            found: found.map_or("none".to_owned(), |(major, minor, patch)| {
                format!("{major}.{minor}.{patch}")
            }),
        }),
    }
}

/// # Safety
/// The functions have the types of their prototypes.
unsafe fn rsa_methods(path: &Path, handle: *mut c_void, bits: usize) -> Result<RsaMethods, LoadError> {
    // SAFETY: as the caller says; null is checked for.
    unsafe {
        let private_crt: RsaMethodOf = symbol(path, handle, c"mbx_RSA_private_crt_Method")?;
        let public: RsaMethodOf = symbol(path, handle, c"mbx_RSA_pub65537_Method")?;
        let size: unsafe extern "C" fn(*const RsaMethod) -> c_int = symbol(path, handle, c"mbx_RSA_Method_BufSize")?;
        let (private_crt, public) = (private_crt(int(bits)), public(int(bits)));
        if private_crt.is_null() || public.is_null() {
            return Err(LoadError::SelfCheck {
                path: path.to_owned(),
                operation: format!("RSA-{bits}"),
            });
        }
        let scratch = size(private_crt).max(size(public));
        Ok(RsaMethods {
            bits,
            private_crt,
            public,
            scratch: usize::try_from(scratch).unwrap_or_default(),
        })
    }
}

/// # Safety
/// `F` is the type of a function that takes and returns what the library's function of this name does.
unsafe fn symbol<F: Copy>(path: &Path, handle: *mut c_void, name: &CStr) -> Result<F, LoadError> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "F is a function pointer") };
    // SAFETY: the handle is open and the name ends with a zero byte.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if address.is_null() {
        return Err(LoadError::Symbol {
            path: path.to_owned(),
            name: name.to_string_lossy().into_owned(),
        });
    }
    // SAFETY: an address that is not null, as a function pointer of the same size; that the type is right is what the caller
    // says.
    Ok(unsafe { std::mem::transmute_copy(&address) })
}

/// Whether the file holds every segment that it announces. The loader maps them without looking, and a program that reads a
/// page behind a file's end is killed.
fn is_whole(path: &Path) -> Result<(), LoadError> {
    let io = |error: std::io::Error| broken(path, &error.to_string());
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut header = [0; 64];
    let no_library = |_| broken(path, "it is no shared library for this machine");
    file.read_exact_at(&mut header, 0).map_err(no_library)?;
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Err(no_library(std::io::ErrorKind::InvalidData.into()));
    }
    let word = |bytes: &[u8], at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (table, entry_size, entries) = (word(&header, 32), half(54), half(56));
    let mut end = 64;
    for entry in 0..entries {
        let mut segment = [0; 56];
        let at = table.saturating_add(entry * entry_size);
        file.read_exact_at(&mut segment, at).map_err(|_| cut(path, length))?;
        // PT_LOAD, its place in the file and its length there.
        if segment[..4] == [1, 0, 0, 0] {
            end = end.max(word(&segment, 8).saturating_add(word(&segment, 32)));
        }
    }
    if end > length { Err(cut(path, length)) } else { Ok(()) }
}

fn cut(path: &Path, length: u64) -> LoadError {
    broken(path, &format!("it is cut off after {length} bytes"))
}

fn broken(path: &Path, reason: &str) -> LoadError {
    LoadError::Broken {
        path: PathBuf::from(path),
        reason: reason.to_owned(),
    }
}

fn int(bits: usize) -> c_int {
    c_int::try_from(bits).expect("a key has some thousand bits")
}

fn pointers<T>(lanes: &mut [T; LANES]) -> [*mut T; LANES] {
    lanes.each_mut().map(std::ptr::from_mut)
}

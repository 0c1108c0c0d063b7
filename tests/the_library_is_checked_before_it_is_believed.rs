//! What is wrong with a libcrypto_mb is said, and everything works without it.

use crate::support::multibuffer;

use std::path::{Path, PathBuf};

use crate::support::*;
use ringlock::crypto::multibuffer::{LoadError, Multibuffer, Processor};
use tempfile::TempDir;

/// Builds a library from C, as `libcrypto_mb.so.13` of a folder of its own.
fn built(folder: &TempDir, source: &str) -> PathBuf {
    let (input, output) = (folder.path().join("source.c"), folder.path().join("libcrypto_mb.so.13"));
    std::fs::write(&input, source).unwrap();
    let arguments = [
        "-shared",
        "-fPIC",
        "-o",
        output.to_str().unwrap(),
        input.to_str().unwrap(),
    ];
    run("cc", &arguments, b"").ok();
    output
}

fn version(numbers: &str) -> String {
    format!(
        "struct version {{ int major, minor, patch; const char *name, *date, *target; }};
         const struct version *mbx_getversion(void) {{ static struct version v = {{ {numbers} }}; return &v; }}
         int mbx_is_crypto_mb_applicable(unsigned long features) {{ return 1; }}"
    )
}

#[track_caller]
fn refused(path: &Path) -> LoadError {
    Multibuffer::load(Some(path)).err().expect("it is not to be used")
}

fn processor_can() -> bool {
    let missing = Processor::detect().missing();
    if let Some(missing) = &missing {
        eprintln!("not tested: this processor lacks {missing}");
    }
    missing.is_none()
}

#[test]
fn a_library_that_is_not_there() {
    if !processor_can() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let error = refused(&folder.path().join("libcrypto_mb.so.13"));
    assert!(matches!(error, LoadError::NoLibrary { .. }), "{error:?}");
    assert!(error.to_string().contains("scripts/setup-multibuffer"), "{error}");
    let error = refused(folder.path());
    let LoadError::NoLibrary { looked_for } = error else {
        panic!("{error:?}")
    };
    assert!(looked_for.contains("libcrypto_mb.so.13"), "{looked_for}");
}

#[test]
fn files_that_are_no_library_or_only_a_part_of_one() {
    if !processor_can() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("libcrypto_mb.so.13");
    for content in [&b""[..], b"text", &[0x7f; 100], b"\x7fELF\x01\x01"] {
        std::fs::write(&path, content).unwrap();
        let error = refused(&path);
        assert!(matches!(error, LoadError::Broken { .. }), "{error:?}");
    }
    let whole = std::fs::read(built(&folder, &version("2, 3, 0"))).unwrap();
    for length in [20, 64, 100, 1000, whole.len() / 2] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = refused(&path);
        assert!(matches!(error, LoadError::Broken { .. }), "{length}: {error:?}");
    }
}

#[test]
fn another_version() {
    if !processor_can() {
        return;
    }
    for numbers in ["3, 0, 0", "1, 0, 9", "0, 0, 0"] {
        let folder = TempDir::new().unwrap();
        let error = refused(&built(&folder, &version(numbers)));
        let LoadError::Version { found, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(found, numbers.replace(", ", "."));
    }
}

#[test]
fn a_library_that_lacks_a_function() {
    if !processor_can() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let error = refused(&built(&folder, &version("2, 3, 0")));
    let LoadError::Symbol { name, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(name, "mbx_x25519_public_key_mb8");
}

/// Every function there is, each saying that all went well and doing nothing.
fn does_nothing(applicable: u32) -> String {
    let mut source = version("2, 3, 0").replace("return 1;", &format!("return {applicable};"));
    let curves = ["nistp256", "nistp384"].into_iter().flat_map(|curve| {
        [
            "ecpublic_key",
            "ecdh",
            "ecdsa_sign_setup",
            "ecdsa_sign_complete",
            "ecdsa_sign",
            "ecdsa_verify",
        ]
        .map(|function| format!("{curve}_{function}_mb8"))
    });
    let others = [
        "x25519_public_key_mb8",
        "x25519_mb8",
        "ed25519_sign_mb8",
        "rsa_private_crt_mb8",
        "rsa_public_mb8",
    ];
    for name in curves.chain(others.map(str::to_owned)) {
        source += &format!("unsigned mbx_{name}() {{ return 0; }}\n");
    }
    for name in ["RSA_private_crt_Method", "RSA_pub65537_Method"] {
        source += &format!("void *mbx_{name}(int bits) {{ static int method; return &method; }}\n");
    }
    source + "int mbx_RSA_Method_BufSize(void *method) { return 4096; }\n"
}

#[test]
fn a_library_that_computes_something_else() {
    if !processor_can() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let error = refused(&built(&folder, &does_nothing(1)));
    let LoadError::SelfCheck { operation, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(operation, "X25519 public keys");
}

#[test]
fn a_library_that_says_it_cannot_run_here() {
    if !processor_can() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let error = refused(&built(&folder, &does_nothing(0)));
    assert!(matches!(error, LoadError::NotApplicable { .. }), "{error:?}");
}

#[test]
fn a_processor_that_lacks_an_instruction() {
    let all = Processor {
        bmi2: true,
        avx512f: true,
        avx512dq: true,
        avx512bw: true,
        avx512ifma: true,
        avx512vbmi2: true,
        ..Processor::default()
    };
    assert_eq!(all.missing(), None);
    let without = Processor {
        avx512ifma: false,
        ..all
    };
    assert_eq!(without.missing().unwrap(), "AVX-512 IFMA");
    let error = Multibuffer::load_on(without, None).err().expect("it is not to be used");
    assert!(error.to_string().contains("AVX-512 IFMA"), "{error}");
}

/// What the operator named is used or refused; what was only looked for is done without.
#[test]
fn a_gateway_refuses_the_library_it_was_told_to_use_and_does_without_one_it_looked_for() {
    let folder = TempDir::new().unwrap();
    let origin = Origin::echo();
    let setup = |lines: &str| Setup::new(Io::Epoll, &[origin.address()]).more(&format!("[crypto]\n{lines}"));
    let toml = setup("multibuffer = \"libcrypto_mb.so.13\"").to_toml(free_address(), free_address());
    Ca::new(folder.path()).issue("site", &[SITE], KeyKind::Ecdsa);
    let config = folder.path().join("ringlock.toml");
    std::fs::write(&config, toml).unwrap();
    std::fs::write(folder.path().join("libcrypto_mb.so.13"), "text").unwrap();
    for command in ["check", "run"] {
        let said = ringlock(&[command, "--config", config.to_str().unwrap()]);
        assert_eq!(said.status.code(), Some(1), "{said:#?}");
        let said = said.says("crypto.multibuffer: found").says("libcrypto_mb.so.13");
        if processor_can() {
            said.says("it is no shared library for this machine")
                .says("\"auto\" or \"off\"");
        }
    }
    for lines in ["multibuffer = \"off\"", "multibuffer = \"auto\""] {
        let gateway = setup(lines).start();
        let line = gateway.wait_for_line("what computes", |line| line["engine"].is_string());
        exchange(&gateway);
        let metrics = gateway.metrics();
        if lines.contains("off") {
            assert_eq!(line["engine"], "one by one", "{line}");
            assert!(metrics.count("ringlock_crypto_operations_total", &[("engine", "inline")]) > 0);
        }
    }
}

#[test]
fn features_that_are_masked_for_aws_lc_are_no_hindrance() {
    let origin = Origin::echo();
    // Without IFMA, without VAES, and without any of AVX.
    for mask in ["~0x0:~0x200000", "~0x0:~0x20000000000", "~0x1000000000000000:~0x0"] {
        let mut setup = Setup::new(Io::Epoll, &[origin.address()]).environment("OPENSSL_ia32cap", mask);
        if let Some(path) = multibuffer::library() {
            setup = setup.more(&format!("[crypto]\nmultibuffer = {path:?}"));
        }
        let gateway = setup.start();
        for _ in 0..3 {
            exchange(&gateway);
        }
    }
}

//! The tokens of the tests are what they are taken for: a key that is in one of them signs for the certificate that was issued for it.

use crate::support::*;

/// Issues a certificate for a key in this token, signs with pkcs11-tool, and has openssl compare.
fn signs(token: &dyn Token, kind: KeyKind, mechanism: &str) {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new(folder.path());
    token.issue(&ca, "site", &[SITE], kind);
    assert!(!ca.key_file("site").exists(), "the key is in the token only");
    signs_for(token, &folder.path().join("site.pem"), mechanism);
}

fn signs_for(token: &dyn Token, certificate: &std::path::Path, mechanism: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (hash, signature) = (file("hash"), file("signature"));
    std::fs::write(&hash, pattern(32)).unwrap();
    let mut sign = vec!["--sign", "--mechanism", mechanism, "--signature-format", "openssl"];
    if mechanism == "RSA-PKCS-PSS" {
        sign.extend(["--hash-algorithm", "SHA256", "--mgf", "MGF1-SHA256", "--salt-len", "-1"]);
    }
    sign.extend(["--input-file", &hash, "--output-file", &signature]);
    token.pkcs11_tool(&sign);
    let certificate = certificate.to_str().unwrap();
    let mut verify = vec![
        "pkeyutl",
        "-verify",
        "-certin",
        "-inkey",
        certificate,
        "-in",
        &hash,
        "-sigfile",
        &signature,
    ];
    if mechanism == "RSA-PKCS-PSS" {
        verify.extend([
            "-pkeyopt",
            "rsa_padding_mode:pss",
            "-pkeyopt",
            "rsa_pss_saltlen:digest",
            "-pkeyopt",
            "digest:sha256",
        ]);
    }
    run("openssl", &verify, b"").ok();
}

#[test]
fn softhsm_signs() {
    signs(&SoftHsm::new("edge"), KeyKind::Ecdsa, "ECDSA");
}

#[test]
fn softhsm_takes_every_kind_of_key() {
    let hsm = SoftHsm::new("edge");
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new(folder.path());
    let kinds = [KeyKind::P384, KeyKind::Ed25519, KeyKind::Rsa, KeyKind::Rsa3072];
    for (index, kind) in kinds.into_iter().enumerate() {
        hsm.issue(&ca, &format!("key{index}"), &[SITE], kind);
    }
    let listed = hsm.pkcs11_tool(&["--list-objects", "--type", "privkey"]).stdout;
    assert_eq!(listed.matches("Private Key Object").count(), kinds.len(), "{listed}");
}

#[test]
fn a_softhsm_token_made_anew_has_the_same_keys() {
    let hsm = SoftHsm::new("edge");
    let folder = tempfile::tempdir().unwrap();
    hsm.issue(&Ca::new(folder.path()), "site", &[SITE], KeyKind::Ecdsa);
    hsm.remove();
    let module = hsm.module().display().to_string();
    let slots = run_with(
        &hsm.environment(),
        "pkcs11-tool",
        &["--module", &module, "--list-token-slots"],
        b"",
    );
    assert!(!slots.text().contains("edge"), "{slots:?}");
    hsm.recreate();
    signs_for(&hsm, &folder.path().join("site.pem"), "ECDSA");
}

#[test]
fn a_token_behind_p11_kit_signs_again_after_its_server_was_killed() {
    let hsm = SoftHsm::new("edge");
    let kit = P11Kit::new(&hsm);
    signs(&kit, KeyKind::Ecdsa, "ECDSA");
    kit.kill();
    kit.start();
    let listed = kit.pkcs11_tool(&["--list-objects", "--type", "privkey"]).stdout;
    assert!(listed.contains("site"), "{listed}");
}

#[test]
fn a_tpm_signs_with_ecdsa() {
    signs(&Tpm::new("edge"), KeyKind::Ecdsa, "ECDSA");
}

#[test]
fn a_tpm_signs_with_pss_and_keeps_its_keys_over_a_restart() {
    let tpm = Tpm::new("edge");
    signs(&tpm, KeyKind::Rsa, "RSA-PKCS-PSS");
    tpm.restart();
    let listed = tpm.pkcs11_tool(&["--list-objects", "--type", "privkey"]).stdout;
    assert!(listed.contains("site"), "{listed}");
}

#[test]
fn two_faulty_tokens_of_one_module_fail_by_themselves() {
    let (first, folder) = (Faulty::new("first"), tempfile::tempdir().unwrap());
    let second = first.another("second");
    let ca = Ca::new(folder.path());
    signs(&first, KeyKind::Ecdsa, "ECDSA");
    second.issue(&ca, "other", &[SITE], KeyKind::Rsa);
    first.cue("absent");
    let listed = second.pkcs11_tool(&["--list-objects", "--type", "privkey"]).stdout;
    assert!(listed.contains("other"), "{listed}");
    assert_eq!((first.calls("C_Sign"), second.calls("C_Sign")), (1, 0));
}

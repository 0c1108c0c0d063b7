//! One configuration with several modules and tokens, and with a key in a file: each module has a process of its own, and PINs come from
//! wherever the configuration says.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::*;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

both_drivers!(
    two_modules_with_three_tokens_and_a_file_serve_side_by_side,
    a_signer_that_is_killed_takes_no_other_module_with_it,
);

const NAMES: [&str; 4] = ["alpha.example", "beta.example", "gamma.example", "local.example"];

/// What is started once and used by a gateway.
struct Tokens {
    alpha: SoftHsm,
    beta: SoftHsm,
    gamma: Faulty,
    credentials: tempfile::TempDir,
}

impl Tokens {
    fn new() -> Tokens {
        let alpha = SoftHsm::new("alpha");
        let beta = alpha.another("beta", "271828");
        let gamma = Faulty::new("gamma");
        let credentials = tempfile::tempdir().unwrap();
        let credential = credentials.path().join("gamma-pin");
        // As systemd has them: readable for one user alone.
        std::fs::copy(gamma.pin_file(), &credential).unwrap();
        std::fs::set_permissions(credential, std::fs::Permissions::from_mode(0o400)).unwrap();
        Tokens {
            alpha,
            beta,
            gamma,
            credentials,
        }
    }

    /// The PIN of `alpha` is in its table, that of `beta` in the URI, that of `gamma` a credential of the service.
    fn gateway(&self, io: Io, origin: &Origin) -> Gateway {
        let setup = Setup::new(io, &[origin.address()]).no_identities();
        let setup = setup
            .token(&self.alpha, "sessions = 2")
            .more(&format!("[keys.beta]\nmodule = {:?}\n", self.beta.module()))
            .more(&format!(
                "[keys.gamma]\nmodule = {:?}\npin_source = \"credential:gamma-pin\"\n",
                self.gamma.module()
            ))
            .environment("CREDENTIALS_DIRECTORY", self.credentials.path().to_str().unwrap());
        self.alpha.issue(setup.ca(), "alpha", &[NAMES[0]], KeyKind::Ecdsa);
        self.alpha.put_certificate(setup.ca(), "alpha");
        self.beta.issue(setup.ca(), "beta", &[NAMES[1]], KeyKind::Rsa);
        self.gamma.issue(setup.ca(), "gamma", &[NAMES[2]], KeyKind::P384);
        // The certificate is in the token, and nowhere else.
        let in_file = setup.ca().certificate_file("alpha");
        std::fs::rename(in_file, setup.folder().join("expected.pem")).unwrap();
        let beta = format!(
            "{}?pin-source=file:{}",
            self.beta.uri("beta"),
            self.beta.pin_file().display()
        );
        setup
            .issued_identity(
                "alpha",
                "pkcs11:token=alpha;object=alpha;type=cert",
                &self.alpha.uri("alpha"),
                "",
            )
            .issued_identity("beta", "beta.pem", &beta, "")
            .issued_identity("gamma", "gamma.pem", &self.gamma.uri("gamma"), "")
            .identity("local", &[NAMES[3]], KeyKind::Ecdsa)
            .start()
    }
}

/// The processes that hold keys, with what they were told to load.
fn signers(gateway: &Gateway) -> Vec<(u32, String)> {
    let with_command = |id| (id, command_line(id));
    crate::support::signers(gateway).into_iter().map(with_command).collect()
}

fn two_modules_with_three_tokens_and_a_file_serve_side_by_side(io: Io) {
    let (origin, tokens) = (Origin::echo(), Tokens::new());
    let gateway = tokens.gateway(io, &origin);
    std::thread::scope(|scope| {
        for name in NAMES {
            let gateway = &gateway;
            scope.spawn(move || {
                for _ in 0..10 {
                    for client in [Client::new(gateway).tls12(), Client::new(gateway).tls13()] {
                        let client = client.name(name);
                        try_exchange(&client).unwrap_or_else(|error| panic!("{name}: {error}\n{}", gateway.log()));
                    }
                }
            });
        }
    });
    let shown = Client::new(&gateway).name(NAMES[0]).connect();
    let expected = CertificateDer::from_pem_file(gateway.folder().join("expected.pem")).unwrap();
    assert!(shown.certificate() == &*expected, "not the certificate of the token");
    shown.finish();

    let signers = signers(&gateway);
    assert_eq!(
        signers.len(),
        2,
        "one for each module, none for keys in files: {signers:?}"
    );
    for module in [tokens.alpha.module(), tokens.gamma.module()] {
        let module = module.display().to_string();
        let of_module = signers.iter().filter(|(_, command)| command.contains(&module));
        assert_eq!(of_module.count(), 1, "{module}: {signers:?}");
    }
    let metrics = gateway.wait_until_quiet();
    for (group, count) in [("alpha", 21), ("beta", 20), ("gamma", 20)] {
        let labels = [("group", group), ("result", "signed")];
        assert_eq!(
            metrics.count("ringlock_key_requests_total", &labels),
            count,
            "{group}\n{}",
            metrics.text()
        );
    }
}

fn a_signer_that_is_killed_takes_no_other_module_with_it(io: Io) {
    let (origin, tokens) = (Origin::echo(), Tokens::new());
    let gateway = tokens.gateway(io, &origin);
    let before = signers(&gateway);
    let module = tokens.gamma.module().display().to_string();
    let (victim, _) = before.iter().find(|(_, command)| command.contains(&module)).unwrap();
    let victim = rustix::process::Pid::from_raw(i32::try_from(*victim).unwrap()).unwrap();
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
    for name in NAMES {
        let client = Client::new(&gateway).name(name);
        try_exchange(&client).unwrap_or_else(|error| panic!("{name}: {error}\n{}", gateway.log()));
    }
    let survivor = |signers: &[(u32, String)]| signers.iter().find(|(_, command)| !command.contains(&module)).cloned();
    let after = signers(&gateway);
    assert_eq!(after.len(), 2, "{after:?}");
    assert_eq!(survivor(&before), survivor(&after));
    let restarts = |token| {
        gateway
            .metrics()
            .count("ringlock_signer_restarts_total", &[("token", token)])
    };
    assert_eq!(
        (restarts("alpha"), restarts("beta"), restarts("gamma")),
        (0, 0, 1),
        "{}",
        gateway.log()
    );
}

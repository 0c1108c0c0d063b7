//! Everything that can be wrong with what a client shows, by everybody's clients: the alert that they get, the words in the log, and
//! the counter.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::support::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, KeyUsagePurpose};
use rcgen::{NameConstraints, SanType};
use rustls::AlertDescription as Alert;
use rustls_pki_types::CertificateDer;

both_drivers!(
    every_refusal_has_its_alert_its_words_and_its_counter,
    optional_is_no_excuse_for_a_bad_one,
    a_clock_that_goes_on_ends_what_was_good,
);

/// What a client shows.
enum Shows {
    Nothing,
    Chain(Shown),
    /// What only openssl makes, and rustls does not sign for.
    Files(PathBuf, PathBuf),
    /// What only a client shows that does not look at it.
    Odd(Shown),
}

struct Row {
    shows: Shows,
    alert: Alert,
    words: &'static str,
    reason: &'static str,
}

/// In `ca.pem` is a root; each of what is signed by it or below it has one thing wrong.
struct Pki {
    files: ClientFiles,
    rows: Vec<Row>,
    keys: String,
}

fn named(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
}

impl Pki {
    fn new() -> Pki {
        let files = ClientFiles::new();
        let root = &files.root;
        let now = SystemTime::now();
        let with = |change: &dyn Fn(&mut CertificateParams)| root.client_with(KeyKind::Ecdsa, change);
        let below = |name: &str| root.below(name, KeyKind::Ecdsa);
        let [gone, listless, stale, one] = ["gone", "listless", "stale", "one"].map(below);
        let two = one.below("two", KeyKind::Ecdsa);
        let must_not = root.below_with("must not", KeyKind::Ecdsa, |params| {
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        });
        let constrained = root.below_with("constrained", KeyKind::Ecdsa, |params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("a.example".into())],
                excluded_subtrees: Vec::new(),
            });
        });
        let no_ca = root.below_with("no CA", KeyKind::Ecdsa, |params| params.is_ca = rcgen::IsCa::NoCa);
        let revoked = root.client();
        let short_of_time = |list: &mut rcgen::CertificateRevocationListParams| {
            list.this_update = (now - 9 * DAY).into();
            list.next_update = (now - 2 * DAY).into();
        };
        let lists = files.lists(&[
            root.list(&[&revoked.chain[0], gone.der()]),
            gone.list(&[]),
            stale.list_with(&[], short_of_time),
            one.list(&[]),
            two.list(&[]),
            must_not.list(&[]),
            constrained.list(&[]),
            no_ca.list(&[]),
        ]);
        let keys =
            format!("{lists}, verify_depth = 1, allow = [\"cn:a client\", \"cn:batch-7\"], deny = [\"cn:batch-7\"]");
        let cut = |shown: Shown| {
            let length = shown.chain[0].len() - 1;
            let cut = CertificateDer::from(shown.chain[0][..length].to_vec());
            shown.with_chain(vec![cut])
        };
        let other = |name: &'static str| with(&move |params| named(params, name));
        let chain = |shown| Shows::Chain(shown);
        let row = |shows, alert, words, reason| Row {
            shows,
            alert,
            words,
            reason,
        };
        let unsure = "client certificate whose revocation is unknown: crl has no list of \"CN=listless\"";
        let (short_key, weak_hash) = (
            weak(&files, "short", 1024, "-sha256"),
            weak(&files, "sha1", 2048, "-sha1"),
        );
        let rows = vec![
            row(
                Shows::Nothing,
                Alert::CertificateRequired,
                "client sent no certificate, which is required",
                "no_certificate",
            ),
            row(
                chain(with(&|params| {
                    params.not_before = (now - 30 * DAY).into();
                    params.not_after = (now - 3 * DAY).into();
                })),
                Alert::CertificateExpired,
                "client certificate expired 3 d ago",
                "expired",
            ),
            row(
                chain(with(&|params| params.not_before = (now + 5 * DAY / 2).into())),
                Alert::CertificateExpired,
                "client certificate not valid yet, for another 2 d",
                "not_yet_valid",
            ),
            row(
                chain(Authority::root("others").client()),
                Alert::UnknownCA,
                "client certificate of an unknown issuer: \"CN=others\" is not in ca",
                "unknown_issuer",
            ),
            row(
                chain(Authority::root("clients").client()),
                Alert::DecryptError,
                "client certificate with a signature that is wrong (its issuer's",
                "signature",
            ),
            row(
                Shows::Odd(root.client().signing_as(&root.client())),
                Alert::DecryptError,
                "client certificate with a signature that is wrong (the client's own",
                "proof",
            ),
            row(
                Shows::Odd(cut(root.client())),
                Alert::BadCertificate,
                "client certificate malformed",
                "malformed",
            ),
            row(
                chain(with(&|params| {
                    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                })),
                Alert::UnsupportedCertificate,
                "client certificate not for clients",
                "purpose",
            ),
            row(
                chain(two.client()),
                Alert::UnknownCA,
                "client certificate with too many CAs between it and one in ca: depth 2 > 1",
                "depth",
            ),
            row(
                chain(revoked),
                Alert::CertificateRevoked,
                "client certificate revoked (serial ",
                "revoked",
            ),
            row(
                chain(gone.client()),
                Alert::CertificateRevoked,
                "client certificate below a CA that is revoked (serial ",
                "revoked",
            ),
            row(chain(listless.client()), Alert::UnknownCA, unsure, "crl_missing"),
            row(
                chain(stale.client()),
                Alert::UnknownCA,
                "client certificate whose CA's revocation list (or that of one of its chain) has expired 2 d ago",
                "crl_expired",
            ),
            row(
                chain(must_not.client()),
                Alert::UnknownCA,
                "client certificate whose CA signs its revocation lists and must not",
                "crl_unusable",
            ),
            row(
                chain(other("batch-8")),
                Alert::AccessDenied,
                "client certificate not on the allow-list: CN \"batch-8\"",
                "not_allowed",
            ),
            row(
                chain(other("batch-7")),
                Alert::AccessDenied,
                "client certificate denied: \"cn:batch-7\" (deny)",
                "denied",
            ),
            row(
                weak_hash,
                Alert::BadCertificate,
                "client certificate with a signature algorithm that is not supported (ecdsa-with-SHA1)",
                "algorithm",
            ),
            row(
                short_key,
                Alert::BadCertificate,
                "client certificate with a key that is too short (RSA, 1024 bits; 2048 is the least)",
                "weak_key",
            ),
            row(
                chain(constrained.client_with(KeyKind::Ecdsa, |params| {
                    params.subject_alt_names = vec![SanType::DnsName("b.example".try_into().unwrap())];
                })),
                Alert::CertificateUnknown,
                "client certificate with a name that one of its CAs must not give (name constraints)",
                "name_constraints",
            ),
            row(
                chain(no_ca.client()),
                Alert::CertificateUnknown,
                "client certificate not acceptable (EndEntityUsedAsCa)",
                "invalid",
            ),
        ];
        Pki { files, rows, keys }
    }
}

/// A client of the root with an RSA key of so many bits, whose certificate is signed over such a hash.
fn weak(files: &ClientFiles, name: &str, bits: u32, hash: &str) -> Shows {
    let path = |suffix: &str| files.path(&format!("{name}.{suffix}"));
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (chain, key) = (path("pem"), path("key"));
    files.write("ca.key", files.root.key_pem());
    files.write(
        "extensions",
        "extendedKeyUsage = clientAuth\nkeyUsage = digitalSignature\n",
    );
    let bits = format!("rsa:{bits}");
    let (request, key_text) = (text(path("csr")), text(key.clone()));
    let own = ["-nodes", "-newkey", &bits, "-keyout", &key_text, "-out", &request];
    run(
        "openssl",
        &[&["req", "-new", "-subj", "/CN=a client"], &own[..]].concat(),
        b"",
    )
    .ok();
    let (ca, ca_key, extensions) = (files.path("ca.pem"), files.path("ca.key"), files.path("extensions"));
    let [ca, ca_key, extensions, out] = [ca, ca_key, extensions, chain.clone()].map(text);
    let signer = [
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-days",
        "2",
        "-extfile",
        &extensions,
        "-out",
        &out,
    ];
    run(
        "openssl",
        &[&["x509", "-req", "-in", &request, hash], &signer[..]].concat(),
        b"",
    )
    .ok();
    Shows::Files(chain, key)
}

/// Python's own TLS. What it says is the end of its standard output.
const PYTHON: &str = r#"
import socket, ssl, sys
host, port, name, ca, version, chain, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.set_ciphers("DEFAULT@SECLEVEL=0")
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
if chain:
    context.load_cert_chain(chain, key)
try:
    with socket.create_connection((host, int(port)), 30) as plain:
        with context.wrap_socket(plain, server_hostname=name) as client:
            print("received", client.recv(64))
except ssl.SSLError as error:
    print(error)
"#;

/// How OpenSSL calls an alert.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "there are more alerts than clients are refused with"
)]
fn in_words(alert: Alert) -> &'static str {
    match alert {
        Alert::BadCertificate => "alert bad certificate",
        Alert::UnsupportedCertificate => "alert unsupported certificate",
        Alert::CertificateRevoked => "alert certificate revoked",
        Alert::CertificateExpired => "alert certificate expired",
        Alert::CertificateUnknown => "alert certificate unknown",
        Alert::UnknownCA => "alert unknown ca",
        Alert::AccessDenied => "alert access denied",
        Alert::DecryptError => "alert decrypt error",
        Alert::CertificateRequired => "alert certificate required",
        other => panic!("no client is told {other:?}"),
    }
}

/// Connects by other people's programs, with these files: each is told by this alert. curl has no way to show what OpenSSL finds too weak
/// by default. How many have connected.
fn others_are_told(gateway: &Gateway, shown: Option<(&Path, &Path)>, alert: Alert, curl_shows_it: bool) -> u64 {
    let (host, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
    let ca = gateway.ca.file();
    let ca = ca.to_str().unwrap();
    let (chain, key) = shown.map_or(("", ""), |(chain, key)| {
        (chain.to_str().unwrap(), key.to_str().unwrap())
    });
    let words = in_words(alert);
    let with = |flags: &[&'static str; 2]| match shown {
        Some(_) => vec![flags[0], chain, flags[1], key],
        None => Vec::new(),
    };
    let mut connected = 0;
    for version in ["-tls1_2", "-tls1_3"] {
        let flags = [
            &[version, "-cipher", "DEFAULT@SECLEVEL=0"],
            &with(&["-cert", "-key"])[..],
        ]
        .concat();
        let chained = if shown.is_some() {
            vec!["-cert_chain", chain]
        } else {
            Vec::new()
        };
        let flags = [flags, chained].concat();
        Program::start("openssl", &s_client_arguments(gateway, &flags)).wait_for(words);
        connected += 1;
    }
    for version in ["TLSv1_2", "TLSv1_3"] {
        let said = python(PYTHON, &[&host, &port, SITE, ca, version, chain, key]);
        assert!(said.contains(words), "{words:?} not in {said:?}");
        connected += 1;
    }
    for version in ["1.2", "1.3"] {
        // A key of 1,024 bits is too short for PSS with SHA-512, which would be its first choice.
        let signatures =
            "-SIGN-ALL:+SIGN-RSA-PSS-RSAE-SHA256:+SIGN-RSA-SHA256:+SIGN-ECDSA-SHA256:+SIGN-ECDSA-SECP256R1-SHA256";
        let priority = format!("NORMAL:%VERIFY_ALLOW_BROKEN:{signatures}:-VERS-ALL:+VERS-TLS{version}");
        let fixed = [
            "--port",
            &port,
            "--x509cafile",
            ca,
            "--sni-hostname",
            SITE,
            "--verify-hostname",
            SITE,
        ];
        let own = with(&["--x509certfile", "--x509keyfile"]);
        let all = [&fixed[..], &["--priority", &priority], &own, &[&host]].concat();
        let client = Program::start("gnutls-cli", &all);
        client.wait_for(&format!("Received alert [{}]", u8::from(alert)));
        connected += 1;
    }
    if !curl_shows_it {
        return connected;
    }
    let (resolve, url) = (format!("{SITE}:{port}:{host}"), format!("https://{SITE}:{port}/"));
    let own = with(&["--cert", "--key"]);
    let fixed = ["--silent", "--show-error", "--cacert", ca, "--resolve", &resolve, &url];
    let ran = run("curl", &[&own[..], &fixed].concat(), b"");
    assert!(
        !ran.status.success() && ran.text().contains(words),
        "{words:?} not in {ran:?}"
    );
    connected + 1
}

fn every_refusal_has_its_alert_its_words_and_its_counter(io: Io) {
    let origin = Origin::echo();
    let Pki { files, rows, keys } = Pki::new();
    let gateway = files.setup(io, &origin, &keys).start();
    let refused = |reason: &str| {
        gateway
            .metrics()
            .count("ringlock_client_certificates_refused_total", &[("reason", reason)])
    };
    let said = |words: &str| {
        let lines = gateway.log_lines();
        let of_it = |line: &&serde_json::Value| line["cause"].as_str().is_some_and(|cause| cause.starts_with(words));
        lines.iter().filter(of_it).count() as u64
    };
    let client = Client::new(&gateway);
    for Row {
        shows,
        alert,
        words,
        reason,
    } in &rows
    {
        let before = refused(reason);
        let ours = match shows {
            Shows::Nothing => Some(client.clone()),
            Shows::Chain(shown) | Shows::Odd(shown) => Some(client.clone().shows(shown)),
            Shows::Files(..) => None,
        };
        let mut connected = 0;
        for client in ours
            .into_iter()
            .flat_map(|client| [client.clone().tls12(), client.tls13()])
        {
            assert_eq!(client.refused_after_its_flight(), *alert, "{words}");
            connected += 1;
        }
        connected += match shows {
            Shows::Nothing => others_are_told(&gateway, None, *alert, true),
            Shows::Chain(shown) => {
                let (chain, key) = shown.write(files.folder(), "client");
                others_are_told(&gateway, Some((&chain, &key)), *alert, true)
            }
            Shows::Files(chain, key) => others_are_told(&gateway, Some((chain, key)), *alert, false),
            Shows::Odd(_) => 0,
        };
        gateway.wait_until_quiet();
        assert_eq!(refused(reason) - before, connected, "{words}");
        eventually(&format!("{connected} lines with {words:?}"), || {
            (said(words) == connected).then_some(())
        });
    }
    let metrics = gateway.metrics();
    let failures = metrics.sum("ringlock_handshake_failures_total", &[]);
    let of_certificates = metrics.sum("ringlock_client_certificates_refused_total", &[]);
    assert_eq!(failures, of_certificates, "nothing else went wrong");
    // None of them reached a server.
    assert_eq!(origin.accepted(), 0);
    let_in(&gateway, &files.root.client());
}

/// Who shows none gets in, as it may; who shows one that is not right has something to hide, or to repair.
fn optional_is_no_excuse_for_a_bad_one(io: Io) {
    let origin = Origin::echo();
    let Pki { files, rows, keys } = Pki::new();
    let optional = format!(
        "client_auth = {{ mode = \"optional\", ca = {:?}, {keys} }}",
        files.path("ca.pem")
    );
    let gateway = Setup::new(io, &[origin.address()]).listener(&optional).start();
    let client = Client::new(&gateway);
    for row in &rows {
        let (Shows::Chain(shown) | Shows::Odd(shown)) = &row.shows else {
            continue;
        };
        for client in [client.clone().tls12(), client.clone().tls13()] {
            assert_eq!(
                client.shows(shown).refused_after_its_flight(),
                row.alert,
                "{}",
                row.words
            );
        }
    }
    assert_eq!(origin.accepted(), 0);
    for client in [client.clone().tls12(), client.tls13()] {
        try_exchange(&client).unwrap();
    }
    let_in(&gateway, &files.root.client());
}

/// What is right today is not in ten days, by the clock of the gateway alone.
fn a_clock_that_goes_on_ends_what_was_good(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let now = SystemTime::now();
    let shown = files
        .root
        .client_with(KeyKind::Ecdsa, |params| params.not_after = (now + 5 * DAY).into());
    let lists = files.lists(&[files.root.list(&[])]);
    let later = |days: &str, keys: &str| files.setup(io, &origin, keys).clock(&format!("{days}d")).start();
    let_in(&later("+1", &lists), &shown);
    let of_list = "whose CA's revocation list (or that of one of its chain) has expired ";
    refused(&later("+4", &lists), &shown, Alert::UnknownCA, of_list);
    let_in(&later("+4", ""), &shown);
    refused(&later("+10", ""), &shown, Alert::CertificateExpired, "expired ");
    refused(
        &later("-2", ""),
        &shown,
        Alert::CertificateExpired,
        "not valid yet, for another ",
    );
}

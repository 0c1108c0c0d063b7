//! Chromium and Node with client certificates: the right ones get in, the others are refused and the log says why.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::*;

both_drivers!(chromium_shows_its_certificate, node_shows_its_certificate);

const DAY: Duration = Duration::from_hours(24);
const PAGE: &str = "a page for clients that are known";

/// What clients have, and gateways that know the root and its list.
struct Clients {
    files: ClientFiles,
    keys: String,
    good: Shown,
    revoked: Shown,
    expired: Shown,
    stranger: Shown,
    /// Of another CA with the root's name, which a browser takes for the root.
    namesake: Shown,
}

impl Clients {
    fn new() -> Clients {
        let files = ClientFiles::new();
        let now = SystemTime::now();
        let revoked = files.root.client();
        let keys = files.lists(&[files.root.list(&[&revoked.chain[0]])]);
        Clients {
            good: files.root.client(),
            revoked,
            expired: files.root.client_with(KeyKind::Ecdsa, |params| {
                params.not_before = (now - 30 * DAY).into();
                params.not_after = (now - 3 * DAY).into();
            }),
            stranger: Authority::root("others").client(),
            namesake: Authority::root("clients").client(),
            files,
            keys,
        }
    }

    /// Each gets what the gateway says to it, or the page. `None`: it gets in.
    fn all_are_answered(&self, io: Io, cases: &[Case<'_>], visit: impl Fn(&Gateway, &Path, &Path) -> Ran) {
        let origin = Origin::http(PAGE);
        let gateway = self.files.setup(io, &origin, &self.keys).start();
        for (number, Case { shown, refusal }) in cases.iter().enumerate() {
            let (chain, key) = shown.write(self.files.folder(), &format!("client{number}"));
            let before = origin.accepted();
            let said = visit(&gateway, &chain, &key);
            gateway.wait_until_quiet();
            match refusal {
                None => _ = said.says(PAGE),
                Some((client, log)) => {
                    said.says(client);
                    assert_eq!(origin.accepted(), before, "{client} has reached the origin");
                    gateway.wait_for_line(log, |line| {
                        line["cause"].as_str().is_some_and(|cause| cause.starts_with(log))
                    });
                }
            }
        }
    }
}

struct Case<'a> {
    shown: &'a Shown,
    /// The words of the client, and the beginning of the cause in the log.
    refusal: Option<(&'a str, &'a str)>,
}

/// A certificate that has expired, or that is of no CA that the gateway names, is not sent by Chromium: for the gateway there is none.
fn chromium_shows_its_certificate(io: Io) {
    let clients = Clients::new();
    // Which of its errors it shows depends on whether it has read the alert before it sends its request.
    let refused = |shown, log| Case {
        shown,
        refusal: Some(("Page load failed", log)),
    };
    let absent = "client sent no certificate, which is required";
    let cases = [
        Case {
            shown: &clients.good,
            refusal: None,
        },
        refused(&clients.revoked, "client certificate revoked (serial "),
        refused(&clients.namesake, "client certificate with a signature that is wrong"),
        refused(&clients.expired, absent),
        refused(&clients.stranger, absent),
    ];
    clients.all_are_answered(io, &cases, chromium);
}

/// Visits the gateway with a profile of its own. Certificates are in an NSS database in the home folder. Which of them is sent
/// without asking anybody is for a policy to say, and policies are read from /etc: from one that only this process sees.
fn chromium(gateway: &Gateway, chain: &Path, key: &Path) -> Ran {
    let home = chain.with_extension("home");
    let (bundle, policy) = (chain.with_extension("p12"), chain.with_extension("json"));
    let database = home.join(".pki/nssdb");
    std::fs::create_dir_all(&database).unwrap();
    let export = ["pkcs12", "-export", "-passout", "pass:", "-name", "client"];
    let of = ["-in", text(chain), "-inkey", text(key), "-out", text(&bundle)];
    run("openssl", &[&export[..], &of].concat(), b"").ok();
    let database = format!("sql:{}", database.display());
    run("certutil", &["-N", "-d", &database, "--empty-password"], b"").ok();
    run(
        "pk12util",
        &["-i", text(&bundle), "-d", &database, "-W", "", "-K", ""],
        b"",
    )
    .ok();
    std::fs::write(
        &policy,
        r#"{"AutoSelectCertificateForUrls":["{\"pattern\":\"*\",\"filter\":{}}"]}"#,
    )
    .unwrap();
    let script = "mount -t tmpfs none /etc/chromium && mkdir -p /etc/chromium/policies/managed && \
                  cp \"$1\" /etc/chromium/policies/managed/ && shift && exec chromium \"$@\"";
    let (ip, port) = (gateway.address.ip(), gateway.address.port());
    let arguments = [
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        text(&policy),
        "--headless",
        // Chromium's own sandbox does not work for root, nor in a container.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--ignore-certificate-errors",
        "--dump-dom",
        &format!("--user-data-dir={}", home.join("profile").display()),
        &format!("--host-resolver-rules=MAP {SITE} {ip}"),
        &format!("https://{SITE}:{port}/"),
    ];
    run_with(
        &[("HOME".to_owned(), text(&home).to_owned())],
        "unshare",
        &arguments,
        b"",
    )
}

/// Asks for the page in one version of TLS.
const NODE: &str = r#"
const [host, port, servername, ca, cert, key, version] = process.argv.slice(1);
const read = require('fs').readFileSync;
require('https').get({
    host, port, servername, agent: false, ca: read(ca), cert: read(cert), key: read(key),
    minVersion: version, maxVersion: version,
}, answer => answer.pipe(process.stdout)).on('error', error => console.log(error.message));
"#;

/// Node sends what it has, whatever it is.
fn node_shows_its_certificate(io: Io) {
    let clients = Clients::new();
    let refused = |shown, client, log| Case {
        shown,
        refusal: Some((client, log)),
    };
    let cases = [
        Case {
            shown: &clients.good,
            refusal: None,
        },
        refused(
            &clients.revoked,
            "alert certificate revoked",
            "client certificate revoked (serial ",
        ),
        refused(
            &clients.expired,
            "alert certificate expired",
            "client certificate expired 3 d ago",
        ),
        refused(
            &clients.stranger,
            "alert unknown ca",
            "client certificate of an unknown issuer: \"CN=others\" is not in ca",
        ),
    ];
    for version in ["TLSv1.2", "TLSv1.3"] {
        clients.all_are_answered(io, &cases, |gateway, chain, key| {
            let (ip, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
            let ca = gateway.ca.file();
            let asked = [&ip, &port, SITE, text(&ca), text(chain), text(key), version];
            run("node", &[&["-e", NODE], &asked[..]].concat(), b"")
        });
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have such names")
}

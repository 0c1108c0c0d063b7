//! A session is resumed under the policy that it was made under, and under no other: listener, CAs of clients and whether they
//! are required, revocation lists, names that are allowed, identity. Wherever else it is offered a full handshake follows.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::support::*;
use rcgen::{PublicKeyData as _, SanType};
use rustls::AlertDescription as Alert;
use tempfile::TempDir;

both_drivers!(
    nothing_of_tls_1_2_is_resumed_under_other_rules_for_clients,
    nothing_of_tls_1_3_is_resumed_under_other_rules_for_clients,
    nothing_is_resumed_at_another_listener_or_for_another_name,
    a_session_of_nobody_opens_no_door,
    a_cache_knows_policies_too,
    an_identity_may_be_renewed_but_not_replaced,
    what_does_not_matter_may_change,
);

/// What the second listener is called.
const SECOND: &str = "second";
const OFF: &str = "client_auth = { mode = \"off\" }";

/// Rules for clients, as a listener may have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    Off,
    On {
        mode: &'static str,
        /// Names of files.
        ca: &'static str,
        lists: Option<[&'static str; 2]>,
        allow: &'static str,
    },
}

impl Rules {
    /// All combinations.
    fn all() -> Vec<Rules> {
        let mut all = vec![Rules::Off];
        for mode in ["optional", "required"] {
            for ca in ["a.pem", "b.pem", "both.pem"] {
                for lists in [None, Some(["a1.crl", "b1.crl"]), Some(["a2.crl", "b2.crl"])] {
                    for allow in ["dns:one.clients.example", "dns:two.clients.example"] {
                        all.push(Rules::On { mode, ca, lists, allow });
                    }
                }
            }
        }
        all
    }
}

/// Two CAs of clients and a client of each, which has both names that may be allowed and is on no list.
struct Clients {
    a: Shown,
    b: Shown,
    folder: TempDir,
}

impl Clients {
    fn new() -> Clients {
        let folder = TempDir::new().unwrap();
        let [a, b] = ["a", "b"].map(|name| {
            let ca = Authority::root(&format!("clients {name}"));
            let client = ca.client_with(KeyKind::Ecdsa, |params| {
                let names = ["one.clients.example", "two.clients.example"];
                params.subject_alt_names = names.map(|name| SanType::DnsName(name.try_into().unwrap())).into();
            });
            let write = |file: String, bytes: &[u8]| std::fs::write(folder.path().join(file), bytes).unwrap();
            write(format!("{name}.pem"), ca.pem().as_bytes());
            for number in [1_u64, 2] {
                let list = ca.list_with(&[], |params| params.crl_number = number.into());
                write(format!("{name}{number}.crl"), &list);
            }
            (client, ca.pem())
        });
        std::fs::write(folder.path().join("both.pem"), a.1 + &b.1).unwrap();
        Clients { a: a.0, b: b.0, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As a line of `[[listener]]`.
    fn line(&self, rules: Rules) -> String {
        let Rules::On { mode, ca, lists, allow } = rules else {
            return OFF.into();
        };
        let ca = self.file(ca);
        let lists = lists.map(|lists| lists.map(|list| self.file(list)));
        let lists = lists.map(|lists| format!(", crl = {lists:?}")).unwrap_or_default();
        format!("client_auth = {{ mode = {mode:?}, ca = {ca:?}, allow = [{allow:?}]{lists} }}")
    }

    /// Who is let in.
    fn of(&self, rules: Rules) -> &Shown {
        match rules {
            Rules::On { ca: "b.pem", .. } => &self.b,
            Rules::On { .. } | Rules::Off => &self.a,
        }
    }
}

/// A gateway with two listeners of the same settings and three identities.
struct Site {
    gateway: Gateway,
    second: SocketAddr,
    clients: Clients,
    /// The configuration as it was started with.
    text: String,
    origin: Origin,
}

impl Site {
    fn new(io: Io, tls: &str) -> Site {
        let origin = Origin::echo();
        let second = free_address();
        let gateway = Setup::new(io, &[origin.address()])
            .identity("one", &["one.example"], KeyKind::Ecdsa)
            .identity("two", &["two.example"], KeyKind::Ecdsa)
            // CAs come with reloads, from a folder of their own.
            .global("unsafe_no_landlock = true")
            .listener(OFF)
            .tls(tls)
            .more(&format!(
                "[[listener]]\nname = {SECOND:?}\naddress = \"{second}\"\nidentities = [\"site\", \"one\", \"two\"]\n\
                 upstream = \"app\"\n{OFF}\n[listener.tls]\n{tls}"
            ))
            .start();
        Site {
            second,
            clients: Clients::new(),
            text: std::fs::read_to_string(gateway.config_file()).unwrap(),
            gateway,
            origin,
        }
    }

    /// These rules are in force at both listeners.
    #[track_caller]
    fn rules(&self, rules: Rules) {
        let text = self.text.replace(OFF, &self.clients.line(rules));
        std::fs::write(self.gateway.config_file(), text).unwrap();
        reload(&self.gateway);
        settle(&self.gateway);
    }

    fn client(&self, version: &str, wallet: &Wallet) -> Client<'_> {
        let client = Client::new(&self.gateway).wallet(wallet);
        if version == "1.2" {
            client.tls12()
        } else {
            client.tls13()
        }
    }

    fn wallet(&self) -> Wallet {
        Wallet::new(&self.gateway.ca)
    }
}

/// The only worker has heard of the last reload: it looks for that at the end of the turn in which it accepts somebody.
fn settle(gateway: &Gateway) {
    let _ = Client::new(gateway).try_connect();
}

/// Sessions resumed so far, and sessions offered in vain.
fn counted(gateway: &Gateway) -> [u64; 2] {
    ["ringlock_sessions_accepted_total", "ringlock_sessions_declined_total"]
        .map(|name| gateway.metrics().count(name, &[]))
}

fn nothing_of_tls_1_2_is_resumed_under_other_rules_for_clients(io: Io) {
    nothing_is_resumed_under_other_rules_for_clients(io, "1.2");
}

fn nothing_of_tls_1_3_is_resumed_under_other_rules_for_clients(io: Io) {
    nothing_is_resumed_under_other_rules_for_clients(io, "1.3");
}

/// Every pair of rules, at one listener whose configuration is reloaded.
fn nothing_is_resumed_under_other_rules_for_clients(io: Io, version: &str) {
    let site = Site::new(io, "");
    let all = Rules::all();
    // For each of the rules that sessions are made under, a wallet and a session for each of those that it is offered under.
    let mut sessions = Vec::new();
    for &rules in &all {
        site.rules(rules);
        let wallet = site.wallet();
        let client = site.client(version, &wallet).shows(site.clients.of(rules));
        let get = |_: &Rules| {
            assert_eq!(client.visit(), Visit::Full, "{rules:?}");
            wallet.take()
        };
        let own: Vec<Session> = all.iter().map(get).collect();
        sessions.push((wallet, own));
    }
    assert_eq!(counted(&site.gateway), [0, 0], "nothing was offered yet");
    for &rules in &all {
        site.rules(rules);
        for (made_under, (wallet, own)) in all.iter().zip(&mut sessions) {
            wallet.clear();
            wallet.put(own.pop().expect("there is one for each of the rules"));
            let visit = site.client(version, wallet).shows(site.clients.of(rules)).visit();
            let expected = if rules == *made_under {
                Visit::Resumed
            } else {
                Visit::Full
            };
            assert_eq!(visit, expected, "{made_under:?} offered under {rules:?}");
            assert_eq!(wallet.count(), 1, "there is one for the next time");
        }
    }
    let (own, pairs) = (all.len() as u64, (all.len() * all.len()) as u64);
    assert_eq!(counted(&site.gateway), [own, pairs - own]);
}

/// A listener, and a name that is asked for there.
type Door = (SocketAddr, Option<&'static str>);

fn nothing_is_resumed_at_another_listener_or_for_another_name(io: Io) {
    let site = Site::new(io, "");
    let names = [Some(SITE), None, Some("one.example"), Some("two.example")];
    let addresses = [site.gateway.address, site.second];
    let doors: Vec<Door> = addresses
        .iter()
        .flat_map(|&address| names.map(|name| (address, name)))
        .collect();
    let at = |(address, name): Door, version, wallet: &Wallet| {
        let client = site.client(version, wallet).to(address).shows(&site.clients.a);
        match name {
            Some(name) => client.name(name),
            None => client.no_name(),
        }
    };
    let required = Rules::On {
        mode: "required",
        ca: "both.pem",
        lists: Some(["a1.crl", "b1.crl"]),
        allow: "dns:one.clients.example",
    };
    for rules in [Rules::Off, required] {
        for version in ["1.2", "1.3"] {
            site.rules(rules);
            let before = counted(&site.gateway);
            let mut sessions = Vec::new();
            for &door in &doors {
                let wallet = site.wallet();
                let get = |_| {
                    assert_eq!(at(door, version, &wallet).visit(), Visit::Full);
                    wallet.take()
                };
                let own: Vec<Session> = (0..2 * doors.len()).map(get).collect();
                sessions.push((wallet, own));
            }
            // Before a reload and after it.
            for _ in 0..2 {
                for &door in &doors {
                    for (&made_at, (wallet, own)) in doors.iter().zip(&mut sessions) {
                        wallet.clear();
                        wallet.put(own.pop().expect("there are two for each door"));
                        let expected = if door == made_at { Visit::Resumed } else { Visit::Full };
                        let visit = at(door, version, wallet).visit();
                        assert_eq!(visit, expected, "{version}: of {made_at:?} at {door:?}, {rules:?}");
                        assert_eq!(wallet.count(), 1, "{version}: there is one for the next time");
                    }
                }
                site.rules(rules);
            }
            let own = 2 * doors.len() as u64;
            let pairs = own * doors.len() as u64;
            assert_eq!(counted(&site.gateway), [before[0] + own, before[1] + pairs - own]);
        }
    }
}

/// One that was made without a certificate, where certificates are required.
fn a_session_of_nobody_opens_no_door(io: Io) {
    let site = Site::new(io, "");
    let rules = |mode, lists| Rules::On {
        mode,
        ca: "a.pem",
        lists,
        allow: "dns:one.clients.example",
    };
    for version in ["1.2", "1.3"] {
        for nobodys in [Rules::Off, rules("optional", None)] {
            site.rules(nobodys);
            let wallet = site.wallet();
            let nobody = site.client(version, &wallet);
            assert_eq!(nobody.visit(), Visit::Full);
            assert_eq!(nobody.visit(), Visit::Resumed);
            site.rules(rules("required", None));
            assert_eq!(wallet.count(), 1);
            assert_eq!(nobody.visit(), Visit::Refused(Alert::CertificateRequired));
            assert_eq!(wallet.count(), 0, "it was offered");
        }
        // Lists do not matter to whom they cannot name.
        site.rules(rules("optional", Some(["a1.crl", "b1.crl"])));
        let wallet = site.wallet();
        let nobody = site.client(version, &wallet);
        assert_eq!(nobody.visit(), Visit::Full);
        site.rules(rules("optional", Some(["a2.crl", "b2.crl"])));
        assert_eq!(nobody.visit(), Visit::Resumed);
    }
}

/// Sessions that the gateway keeps itself.
fn a_cache_knows_policies_too(io: Io) {
    let site = Site::new(io, "tickets = false\nsession_cache = \"4MiB\"");
    let rules = |ca, list, allow| Rules::On {
        mode: "required",
        ca,
        lists: list,
        allow,
    };
    let [one, two] = ["dns:one.clients.example", "dns:two.clients.example"];
    let first = Some(["a1.crl", "b1.crl"]);
    let made_under = rules("both.pem", first, one);
    let others = [
        Rules::Off,
        rules("a.pem", first, one),
        rules("both.pem", None, one),
        rules("both.pem", Some(["a2.crl", "b2.crl"]), one),
        rules("both.pem", first, two),
    ];
    for version in ["1.2", "1.3"] {
        let wallet = site.wallet();
        let client = site.client(version, &wallet).shows(&site.clients.a);
        let offered_in_vain = |client: &Client<'_>| {
            let before = counted(&site.gateway);
            assert_eq!(wallet.count(), 1);
            assert_eq!(client.visit(), Visit::Full);
            assert_eq!(counted(&site.gateway), [before[0], before[1] + 1]);
        };
        let made = || {
            wallet.clear();
            assert_eq!(client.visit(), Visit::Full);
        };
        for other in others {
            site.rules(made_under);
            made();
            site.rules(other);
            offered_in_vain(&client);
        }
        site.rules(made_under);
        made();
        offered_in_vain(&client.clone().to(site.second));
        made();
        offered_in_vain(&client.clone().name("one.example"));
        made();
        assert_eq!(client.visit(), Visit::Resumed);
        site.rules(made_under);
        assert_eq!(client.visit(), Visit::Resumed, "a reload that changes nothing");
    }
}

fn an_identity_may_be_renewed_but_not_replaced(io: Io) {
    let site = Site::new(io, "");
    let (gateway, ca) = (&site.gateway, &site.gateway.ca);
    let replaced = || {
        reload(gateway);
        settle(gateway);
    };
    let public_key = || {
        let key = std::fs::read_to_string(ca.key_file("site")).unwrap();
        rcgen::KeyPair::from_pem(&key).unwrap().subject_public_key_info()
    };
    for version in ["1.2", "1.3"] {
        let wallet = site.wallet();
        let client = site.client(version, &wallet);
        assert_eq!(client.visit(), Visit::Full);
        ca.certify("site", &[SITE], KeyKind::Ecdsa, &public_key());
        replaced();
        assert_eq!(
            client.visit(),
            Visit::Resumed,
            "another certificate for the same key and name"
        );
        ca.certify("site", &[SITE, "more.example"], KeyKind::Ecdsa, &public_key());
        replaced();
        assert_eq!(client.visit(), Visit::Full, "more names");
        assert_eq!(client.visit(), Visit::Resumed);
        ca.issue("site", &[SITE, "more.example"], KeyKind::Ecdsa);
        replaced();
        assert_eq!(client.visit(), Visit::Full, "another key");
        assert_eq!(client.visit(), Visit::Resumed);
        ca.issue("site", &[SITE], KeyKind::Ecdsa);
        replaced();
    }
    let declined = gateway.metrics();
    let policy = [("kind", "ticket"), ("cause", "policy")];
    assert_eq!(declined.count("ringlock_sessions_declined_total", &policy), 4);
}

/// What a session is not bound to.
fn what_does_not_matter_may_change(io: Io) {
    let site = Site::new(io, "");
    let other_origin = Origin::echo();
    let rules = Rules::On {
        mode: "required",
        ca: "both.pem",
        lists: Some(["a1.crl", "b1.crl"]),
        allow: "dns:one.clients.example",
    };
    let wallets = ["1.2", "1.3"].map(|version| (version, site.wallet()));
    let visits = |expected: Visit, what: &str| {
        for (version, wallet) in &wallets {
            let client = site.client(version, wallet).shows(&site.clients.a);
            assert_eq!(client.visit(), expected, "{version}: {what}");
        }
    };
    site.rules(rules);
    visits(Visit::Full, "the first time");
    let text = std::fs::read_to_string(site.gateway.config_file()).unwrap();
    let origin = site.origin.address().to_string();
    let changes = [
        ("servers", text.replace(&origin, &other_origin.address().to_string())),
        (
            "a timeout",
            text.replace("name = \"edge\"", "name = \"edge\"\nhandshake_timeout = \"9s\""),
        ),
        ("the order of identities", {
            text.replace(
                "identities = [\"site\", \"one\", \"two\"]",
                "identities = [\"site\", \"two\", \"one\"]",
            )
        }),
        (
            "protocols",
            text.replace("[listener.tls]", "[listener.tls]\nalpn = [\"h2\", \"http/1.1\"]"),
        ),
        ("the order of lists", {
            let [a, b] = ["a1.crl", "b1.crl"].map(|list| format!("{:?}", site.clients.file(list)));
            text.replace(&format!("{a}, {b}"), &format!("{b}, {a}"))
        }),
    ];
    for (what, changed) in changes {
        assert_ne!(changed, text, "{what}");
        std::fs::write(site.gateway.config_file(), changed).unwrap();
        reload(&site.gateway);
        settle(&site.gateway);
        visits(Visit::Resumed, what);
    }
    // The same CAs in another order.
    let [a, b] = ["a.pem", "b.pem"].map(|name| std::fs::read_to_string(site.clients.file(name)).unwrap());
    std::fs::write(site.clients.file("both.pem"), b + &a).unwrap();
    reload(&site.gateway);
    settle(&site.gateway);
    visits(Visit::Resumed, "the order of CAs");
}

//! Tokens, and what refers to them.

use super::*;

/// Reads tables of tokens, with an identity for each key.
fn with_tokens(tables: &str, keys: &[&str]) -> (Config, Vec<Warning>) {
    let identities = keys
        .iter()
        .enumerate()
        .map(|(index, key)| format!("[[identity]]\nname = \"{index}\"\ncertificate = \"c\"\nkey = \"{key}\"\n"));
    let text = format!("{tables}\n{}{BASE}", identities.collect::<String>());
    let text = text.replacen(
        "[\"site\"]",
        &format!(
            "{:?}",
            (0..keys.len())
                .map(|i| i.to_string())
                .chain(["site".to_owned()])
                .collect::<Vec<_>>()
        ),
        1,
    );
    parse(&text, Path::new("/etc/ringlock.toml")).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn a_token_has_its_settings_or_their_defaults() {
    let tables = r#"
        [keys.edge]
        module = "p11.so"
        [keys."the other"]
        module = "/lib/other.so"
        token = "pkcs11:serial=0123;model=A%20B;slot-id=7"
        group = "both"
        pin_source = "file:secret/pin"
        sessions = 1024
        isolation = "thread"
        timeout = "250ms"
        queue = 65536
        when_down = "fail"
        keep_alive = "0s"
        sandbox = "off"
        [keys.third]
        module = "/lib/third.so"
        token = "A label"
        pin_source = "credential:third"
        user = "signer"
    "#;
    let (config, _) = with_tokens(tables, &[]);
    let edge = TokenConfig {
        name: "edge".to_owned(),
        module: "/etc/p11.so".into(),
        find: TokenMatch {
            label: Some("edge".to_owned()),
            ..TokenMatch::default()
        },
        group: None,
        pin: None,
        sessions: 8,
        isolation: Isolation::Process,
        timeout: Duration::from_secs(2),
        queue: 1024,
        when_down: WhenDown::Wait,
        keep_alive: Some(Duration::from_secs(20)),
        user: None,
        sandbox: true,
    };
    let other = TokenConfig {
        name: "the other".to_owned(),
        module: "/lib/other.so".into(),
        find: TokenMatch {
            serial: Some("0123".to_owned()),
            model: Some("A B".to_owned()),
            slot_id: Some(7),
            ..TokenMatch::default()
        },
        group: Some("both".to_owned()),
        pin: Some(PinSource::File("/etc/secret/pin".into())),
        sessions: 1024,
        isolation: Isolation::Thread,
        timeout: Duration::from_millis(250),
        queue: 65_536,
        when_down: WhenDown::Fail,
        keep_alive: None,
        user: None,
        sandbox: false,
    };
    let third = TokenConfig {
        name: "third".to_owned(),
        module: "/lib/third.so".into(),
        find: TokenMatch {
            label: Some("A label".to_owned()),
            ..TokenMatch::default()
        },
        pin: Some(PinSource::Credential("third".to_owned())),
        user: Some("signer".to_owned()),
        ..edge.clone()
    };
    assert_eq!(other.key("pin_source"), "keys.\"the other\".pin_source");
    let place = config.places.position(&other.key("pin_source"));
    assert_eq!(place.map(|place| place.line), Some(8));
    assert_eq!(config.tokens, [edge, other, third]);
}

#[test]
fn a_uri_finds_the_tokens_that_it_means() {
    let tables = r#"
        [keys.a]
        module = "/lib/liba.so"
        [keys.b]
        module = "/lib/libb.so.2"
        token = "pkcs11:token=shared;serial=1"
        group = "pair"
        [keys.c]
        module = "/lib/libc.so"
        token = "pkcs11:token=shared;serial=2"
        group = "pair"
        [keys.d]
        module = "/lib/libd.so"
        token = "a"
    "#;
    let table: &[(&str, &[usize])] = &[
        ("pkcs11:token=a", &[0]),
        ("pkcs11:token=b;object=site", &[1]),
        ("pkcs11:token=pair;object=site", &[1, 2]),
        ("pkcs11:token=shared", &[1, 2]),
        ("pkcs11:token=shared;serial=2", &[2]),
        ("pkcs11:token=pair;serial=1", &[1]),
        ("pkcs11:serial=1", &[1]),
        // The label of the token of [keys.d]; the name of [keys.a] comes first, unless that is in another module.
        ("pkcs11:token=a?module-name=d", &[3]),
        ("pkcs11:object=site?module-path=/lib/libd.so", &[3]),
        ("pkcs11:?module-name=b", &[1]),
    ];
    for (uri, tokens) in table {
        let (config, _) = with_tokens(tables, &[uri]);
        let KeySource::Tokens(found) = &config.identities[0].key else {
            panic!("{uri} is in a token")
        };
        let expected: Vec<TokenId> = tokens.iter().map(|&index| TokenId(index)).collect();
        assert_eq!(found.tokens, expected, "{uri}");
    }
}

#[test]
fn keys_and_certificates_are_in_files_or_in_tokens() {
    let text = BASE
        .replacen("\"site.pem\"", "\"PKCS11:token=edge;id=%01%02;type=cert\"", 1)
        .replacen(
            "\"site.key\"",
            "\"pkcs11:token=edge;object=A%20key;type=private?pin-source=pin\"",
            1,
        );
    let text = format!("[keys.edge]\nmodule = \"/lib/p11.so\"\n{text}");
    let (config, warnings) = parse(&text, Path::new("/etc/ringlock.toml")).expect("it is legal");
    assert_eq!(warnings, []);
    let certificate = InTokens {
        tokens: vec![TokenId(0)],
        object: ObjectMatch {
            label: None,
            id: Some(vec![1, 2]),
        },
        uri: "pkcs11:token=edge;id=%01%02;type=cert".to_owned(),
    };
    let key = InTokens {
        tokens: vec![TokenId(0)],
        object: ObjectMatch {
            label: Some("A key".to_owned()),
            id: None,
        },
        uri: "pkcs11:token=edge;object=A%20key;type=private".to_owned(),
    };
    assert_eq!(config.identities[0].key.to_string(), key.uri);
    assert_eq!(config.identities[0].certificate.to_string(), certificate.uri);
    assert_eq!(config.identities[0].certificate, CertificateSource::Tokens(certificate));
    assert_eq!(config.identities[0].key, KeySource::Tokens(key));
    assert_eq!(config.tokens[0].pin, Some(PinSource::File("/etc/pin".into())));

    for (isolation, key) in [
        ("none", KeySource::File("site.key".into())),
        ("process", KeySource::Signer("site.key".into())),
    ] {
        let added = format!("key = \"site.key\"\nkey_isolation = \"{isolation}\"");
        let (config, _) = changed("key = \"site.key\"", &added).expect("it is legal");
        assert_eq!(config.identities[0].key, key);
    }
}

#[test]
fn tokens_of_one_group_take_the_pin_source_of_a_uri_unless_they_have_the_same() {
    let tables = r#"
        [keys.a]
        module = "/lib/a.so"
        group = "pair"
        pin_source = "/etc/pin"
        [keys.b]
        module = "/lib/b.so"
        group = "pair"
    "#;
    let (config, warnings) = with_tokens(tables, &["pkcs11:token=pair?pin-source=file:pin"]);
    assert_eq!(warnings, []);
    let pin = Some(PinSource::File("/etc/pin".into()));
    assert_eq!([&config.tokens[0].pin, &config.tokens[1].pin], [&pin, &pin]);
}

#[test]
fn a_token_that_is_refused_makes_no_other_problems() {
    let text = format!(
        "[keys.edge]\nmodule = 7\n{}",
        BASE.replacen("site.key", "pkcs11:token=edge;serial=1?module-name=a&pin-source=a", 1)
    );
    let problems = parse(&text, Path::new("ringlock.toml")).expect_err("the module is no path");
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["keys.edge.module"]);
}

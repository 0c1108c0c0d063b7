//! One test for each message, on a file in which one thing is changed.

use super::tests::{BASE, changed};

/// What follows is read with the change that is named, and this is the whole text: `in_…` adds a line to that table
/// (to the file for `in_file`), `replaced` exchanges a part of the file.
macro_rules! messages {
    ($outcome:ident: $($name:ident: $change:ident($($part:expr),+) => $text:expr;)+) => {
        $(
            #[test]
            fn $name() {
                assert_eq!($outcome($change($($part),+)), $text);
            }
        )+
    };
}

type Outcome = Result<(super::Config, Vec<super::Warning>), super::Problems>;

fn refused(outcome: Outcome) -> String {
    outcome.expect_err("this file is refused").to_string()
}

fn warned(outcome: Outcome) -> String {
    let (_, warnings) = outcome.expect("this file is accepted");
    warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn in_file(added: &str) -> Outcome {
    changed("", &format!("{added}\n"))
}

fn in_global(added: &str) -> Outcome {
    in_file(&format!("[global]\n{added}"))
}

fn in_listener(added: &str) -> Outcome {
    after("upstream = \"app\"\n", added)
}

fn in_tls(added: &str) -> Outcome {
    in_listener(&format!("[listener.tls]\n{added}"))
}

fn in_client_auth(added: &str) -> Outcome {
    in_listener(&format!(
        "[listener.client_auth]\nmode = \"required\"\nca = \"ca.pem\"\n{added}"
    ))
}

fn in_identity(added: &str) -> Outcome {
    after("key = \"site.key\"\n", added)
}

fn in_upstream(added: &str) -> Outcome {
    after("servers = [\"127.0.0.1:8080\"]\n", added)
}

fn after(line: &str, added: &str) -> Outcome {
    changed(line, &format!("{line}{added}\n"))
}

/// The file with these tables in front and this value for the key.
fn with_tokens(tables: &str, key: &str) -> Outcome {
    let text = format!("{tables}{}", BASE.replacen("site.key", key, 1));
    super::parse(&text, std::path::Path::new("ringlock.toml"))
}

const EDGE: &str = "[keys.edge]\nmodule = \"/lib/p11.so\"\n";

fn in_token(added: &str) -> Outcome {
    with_tokens(&format!("{EDGE}{added}\n"), "pkcs11:token=edge;object=site")
}

fn with_edge(key: &str) -> Outcome {
    with_tokens(EDGE, key)
}

fn two_pins(first: &str, other: &str) -> Outcome {
    let second = format!(
        "[[identity]]\nname = \"b\"\ncertificate = \"b\"\nkey = \"pkcs11:token=edge;object=b?pin-source={other}\"\n"
    );
    with_tokens(
        &format!("{EDGE}{second}"),
        &format!("pkcs11:token=edge?pin-source={first}"),
    )
}

/// [keys.edge] and another one.
fn beside_edge(other: &str) -> Outcome {
    with_tokens(&format!("{EDGE}{other}\n"), "pkcs11:token=edge")
}

fn replaced(from: &str, to: &str) -> Outcome {
    changed(from, to)
}

messages! { refused:
    a_duration_with_an_unknown_unit: in_listener(r#"handshake_timeout = "10x""#) =>
        r#"ringlock.toml:6: listener "edge": handshake_timeout: found "10x", expected a duration above zero such as "10s" or "250ms"; write a whole number and one of the units ms, s, m, h, d"#;
    a_duration_without_a_unit: in_listener("idle_timeout = 300") =>
        r#"ringlock.toml:6: listener "edge": idle_timeout: found 300, expected a duration above zero such as "10s" or "250ms"; write it with its unit in double quotes, such as "10s" for seconds"#;
    a_duration_of_zero: in_listener(r#"write_timeout = "0s""#) =>
        r#"ringlock.toml:6: listener "edge": write_timeout: found "0s", expected a duration above zero such as "10s" or "250ms"; write how long it may take"#;
    a_duration_beyond_a_year: in_listener(r#"linger_timeout = "400d""#) =>
        r#"ringlock.toml:6: listener "edge": linger_timeout: found "400d", expected a duration such as "10s" or "250ms"; write at most "365d""#;
    a_duration_that_is_a_list: in_listener(r#"linger_timeout = ["1s"]"#) =>
        r#"ringlock.toml:6: listener "edge": linger_timeout: found a list, expected a duration such as "10s" or "250ms"; write it as one string in double quotes"#;
    a_misspelt_key: in_listener(r#"handshake_timeot = "10s""#) =>
        r#"ringlock.toml:6: listener "edge": handshake_timeot: found an unknown key, expected "handshake_timeout" (the nearest legal key); correct its name or remove it"#;
    a_key_that_resembles_none: in_listener("banana = 1") =>
        r#"ringlock.toml:6: listener "edge": banana: found an unknown key, expected "name", "address", "mode", "accept_proxy", "identities", "strict_sni", "upstream", "routes", "connections_max", "handshake_timeout", "idle_timeout", "write_timeout", "linger_timeout", "connection_age_max", "congestion_control", "tls" or "client_auth"; correct its name or remove it"#;
    a_key_of_another_table: in_listener(r#"servers = ["127.0.0.1:1"]"#) =>
        r#"ringlock.toml:6: listener "edge": servers: found an unknown key, expected "name", "address", "mode", "accept_proxy", "identities", "strict_sni", "upstream", "routes", "connections_max", "handshake_timeout", "idle_timeout", "write_timeout", "linger_timeout", "connection_age_max", "congestion_control", "tls" or "client_auth"; move it to [[upstream]] or remove it"#;
    a_misspelt_table: replaced("[[upstream]]", "[[upstreams]]") =>
        "ringlock.toml:5: listener \"edge\": upstream: found \"app\", expected the name of an [[upstream]], of which there is none; correct the name, or add an [[upstream]] with it\nringlock.toml:12: upstreams: found an unknown key, expected \"upstream\" (the nearest legal key); correct its name or remove it";
    a_misspelt_key_in_a_sub_table: in_tls(r#"min_verson = "1.3""#) =>
        r#"ringlock.toml:7: listener "edge": tls.min_verson: found an unknown key, expected "min_version" (the nearest legal key); correct its name or remove it"#;
    a_misspelt_key_in_a_route: in_listener(r#"routes = [{ sn = "a.example", upstream = "app" }]"#) =>
        "ringlock.toml:6: listener \"edge\": routes[0].sni: found nothing, expected a host name such as \"api.example.com\" or \"*.example.com\", or a list of them; add \"sni\" to this table\nringlock.toml:6: listener \"edge\": routes[0].sn: found an unknown key, expected \"sni\" (the nearest legal key); correct its name or remove it";
    a_flag_in_quotes: in_listener(r#"accept_proxy = "yes""#) =>
        r#"ringlock.toml:6: listener "edge": accept_proxy: found "yes", expected true or false; write true or false without quotes"#;
    mode_http: in_listener(r#"mode = "http""#) =>
        r#"ringlock.toml:6: listener "edge": mode: found "http", which is not supported yet, expected "tcp"; write "tcp" until a later version supports it"#;
    an_unknown_mode: in_listener(r#"mode = "udp""#) =>
        r#"ringlock.toml:6: listener "edge": mode: found "udp", expected "tcp"; write one of them, or remove the key for the default"#;
    a_mode_that_is_no_string: in_listener("mode = 4") =>
        r#"ringlock.toml:6: listener "edge": mode: found 4, expected "tcp"; write one of them in double quotes"#;
    a_missing_address: replaced("address = \"127.0.0.1:8443\"\n", "") =>
        r#"ringlock.toml:1: listener "edge": address: found nothing, expected an IP address and port such as "0.0.0.0:443" or "[::]:443", or a list of them; add "address" to this table"#;
    a_missing_name: replaced("name = \"edge\"\n", "") =>
        r#"ringlock.toml:1: listener[0]: name: found nothing, expected a name of 1 to 64 characters; add "name" to this table"#;
    an_empty_name: replaced(r#""edge""#, r#""""#) =>
        r#"ringlock.toml:2: listener "": name: found "", expected a name of 1 to 64 characters; fill it in"#;
    a_name_that_is_no_string: replaced(r#""edge""#, "7") =>
        "ringlock.toml:2: listener[0]: name: found 7, expected a name of 1 to 64 characters; write it as one string in double quotes";
    a_long_name: replaced(r#""edge""#, r#""eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee""#) =>
        r#"ringlock.toml:2: listener "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"…: name: found "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"…, expected a name of 1 to 64 characters; shorten it"#;
    a_name_with_control_characters: replaced(r#""edge""#, r#""e\u0007dge""#) =>
        r#"ringlock.toml:2: listener "e\u{7}dge": name: found "e\u{7}dge", expected a name of 1 to 64 characters; remove the control characters"#;
    a_second_listener_of_the_same_name: replaced("[[identity]]", r#"[[listener]]
name = "edge"
address = "127.0.0.1:1"
identities = ["site"]
upstream = "app"

[[identity]]"#) =>
        r#"ringlock.toml:8: listener "edge": name: found "edge", the name of another listener in line 2, expected a name of its own; rename one of the two"#;
    a_second_identity_of_the_same_name: replaced("[[upstream]]", r#"[[identity]]
name = "site"
certificate = "a"
key = "b"

[[upstream]]"#) =>
        r#"ringlock.toml:13: identity "site": name: found "site", the name of another identity in line 8, expected a name of its own; rename one of the two"#;
    a_second_upstream_of_the_same_name: replaced("[[identity]]", r#"[[upstream]]
name = "app"
servers = ["127.0.0.1:1"]

[[identity]]"#) =>
        r#"ringlock.toml:17: upstream "app": name: found "app", the name of another upstream in line 8, expected a name of its own; rename one of the two"#;
    an_address_without_a_port: replaced(r#""127.0.0.1:8443""#, r#""127.0.0.1""#) =>
        r#"ringlock.toml:3: listener "edge": address: found "127.0.0.1", expected an IP address and port such as "0.0.0.0:443" or "[::]:443"; add the port: "127.0.0.1:443""#;
    an_address_that_is_only_a_port: replaced(r#""127.0.0.1:8443""#, r#"":443""#) =>
        r#"ringlock.toml:3: listener "edge": address: found ":443", expected an IP address and port such as "0.0.0.0:443" or "[::]:443"; for every address write "0.0.0.0:443" or "[::]:443""#;
    an_ipv6_address_without_brackets: replaced(r#""127.0.0.1:8443""#, r#""::1""#) =>
        r#"ringlock.toml:3: listener "edge": address: found "::1", expected an IP address and port such as "0.0.0.0:443" or "[::]:443"; put the IPv6 address in brackets and add :port"#;
    an_address_that_is_a_name: replaced(r#""127.0.0.1:8443""#, r#""localhost:443""#) =>
        r#"ringlock.toml:3: listener "edge": address: found "localhost:443", expected an IP address and port such as "0.0.0.0:443" or "[::]:443"; write the IP address itself (names are not looked up here) and a port up to 65535"#;
    an_address_that_is_a_number: replaced(r#""127.0.0.1:8443""#, "443") =>
        r#"ringlock.toml:3: listener "edge": address: found 443, expected an IP address and port such as "0.0.0.0:443" or "[::]:443", or a list of them; write it in double quotes"#;
    an_empty_list_of_addresses: replaced(r#""127.0.0.1:8443""#, "[]") =>
        r#"ringlock.toml:3: listener "edge": address: found an empty list, expected an IP address and port such as "0.0.0.0:443" or "[::]:443", or a list of them; name at least one"#;
    an_address_twice_in_one_list: replaced(r#""127.0.0.1:8443""#, r#"["127.0.0.1:1", "127.0.0.1:1"]"#) =>
        r#"ringlock.toml:3: listener "edge": address[1]: found "127.0.0.1:1", which listener "edge": address[0] has in line 3, expected an address that nothing else in this file binds; change or remove one of the two"#;
    an_address_of_two_listeners: replaced("[[identity]]", r#"[[listener]]
name = "other"
address = ["127.0.0.1:1", "127.0.0.1:8443"]
identities = ["site"]
upstream = "app"

[[identity]]"#) =>
        r#"ringlock.toml:9: listener "other": address[1]: found "127.0.0.1:8443", which listener "edge": address has in line 3, expected an address that nothing else in this file binds; change or remove one of the two"#;
    an_address_of_a_listener_and_the_administrator: in_global(r#"admin = "127.0.0.1:8443""#) =>
        r#"ringlock.toml:5: listener "edge": address: found "127.0.0.1:8443", which global.admin has in line 2, expected an address that nothing else in this file binds; change or remove one of the two"#;
    an_unknown_identity: replaced(r#"["site"]"#, r#"["sight"]"#) =>
        r#"ringlock.toml:4: listener "edge": identities[0]: found "sight", expected "site"; correct the name, or add an [[identity]] with it"#;
    an_unknown_identity_that_resembles_none: replaced(r#"["site"]"#, r#"["example.com"]"#) =>
        r#"ringlock.toml:4: listener "edge": identities[0]: found "example.com", expected "site"; correct the name, or add an [[identity]] with it"#;
    an_identity_twice_in_one_list: replaced(r#"["site"]"#, r#"["site", "site"]"#) =>
        r#"ringlock.toml:4: listener "edge": identities[1]: found "site" a second time, expected each entry once; remove one of the two"#;
    an_empty_list_of_identities: replaced(r#"["site"]"#, "[]") =>
        r#"ringlock.toml:4: listener "edge": identities: found an empty list, expected a list of at least one string, each the name of an [[identity]]; name at least one"#;
    identities_that_are_a_string: replaced(r#"["site"]"#, r#""site""#) =>
        r#"ringlock.toml:4: listener "edge": identities: found "site", expected a list of at least one string, each the name of an [[identity]]; write a list of strings: ["…", "…"]"#;
    identities_that_are_numbers: replaced(r#"["site"]"#, "[1]") =>
        r#"ringlock.toml:4: listener "edge": identities[0]: found 1, expected a list of at least one string, each the name of an [[identity]]; write a string in double quotes that is not empty"#;
    an_unknown_upstream: replaced(r#"upstream = "app""#, r#"upstream = "ap""#) =>
        r#"ringlock.toml:5: listener "edge": upstream: found "ap", expected "app" (the nearest name of an [[upstream]]); correct the name, or add an [[upstream]] with it"#;
    an_upstream_when_there_is_none: replaced(r#"[[upstream]]
name = "app"
servers = ["127.0.0.1:8080"]
"#, "") =>
        r#"ringlock.toml:5: listener "edge": upstream: found "app", expected the name of an [[upstream]], of which there is none; correct the name, or add an [[upstream]] with it"#;
    an_unknown_upstream_of_a_route: in_listener(r#"routes = [{ sni = "a.example", upstream = "api" }]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[0].upstream: found "api", expected "app" (the nearest name of an [[upstream]]); correct the name, or add an [[upstream]] with it"#;
    a_route_without_upstream: in_listener(r#"routes = [{ sni = "a.example" }]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[0].upstream: found nothing, expected the name of an [[upstream]]; add "upstream" to this table"#;
    a_route_that_is_a_string: in_listener(r#"routes = ["a.example"]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[0]: found "a.example", expected a table; write each as { sni = … }"#;
    routes_that_are_a_table: in_listener(r#"routes = { sni = "a.example", upstream = "app" }"#) =>
        r#"ringlock.toml:6: listener "edge": routes: found a table, expected a list of tables; write each below a header with two brackets: [[listener.routes]]"#;
    a_wildcard_in_the_middle: in_listener(r#"routes = [{ sni = "api.*.example", upstream = "app" }]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[0].sni: found "api.*.example", expected a host name such as "api.example.com" or "*.example.com"; let the wildcard be the whole leftmost label and nothing else"#;
    a_name_of_a_list_that_is_none: in_listener(r#"routes = [{ sni = ["a.example", "b.example:443"], upstream = "app" }]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[0].sni[1]: found "b.example:443", expected a host name such as "api.example.com" or "*.example.com"; remove the port: SNI has none"#;
    a_route_whose_clients_have_no_mode: in_listener("[[listener.routes]]\nsni = \"a.example\"\nupstream = \"app\"\n[listener.routes.client_auth]") =>
        r#"ringlock.toml:9: listener "edge": routes[0].client_auth.mode: found nothing, expected "off", "optional" or "required"; add "mode" to this table: who asks for these names is let in by its keys alone, not by the listener's"#;
    a_route_whose_clients_have_no_ca: in_listener("[[listener.routes]]\nsni = \"a.example\"\nupstream = \"app\"\nclient_auth.mode = \"required\"") =>
        r#"ringlock.toml:9: listener "edge": routes[0].client_auth.ca: found nothing, expected the path of a PEM file with the CAs whose clients are accepted; add "ca" to this table, or write mode = "off""#;
    a_name_that_is_not_punycode: in_listener(r#"routes = [{ sni = "bücher.example", upstream = "app" }]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[0].sni: found "bücher.example", expected a host name such as "api.example.com" or "*.example.com"; write it as punycode (xn--…), as it is sent in SNI"#;
    connections_max_of_zero: in_listener("connections_max = 0") =>
        r#"ringlock.toml:6: listener "edge": connections_max: found 0, expected a whole number from 1 to 10000000; write a whole number in that range, without quotes"#;
    connections_max_below_zero: in_listener("connections_max = -1") =>
        r#"ringlock.toml:6: listener "edge": connections_max: found -1, expected a whole number from 1 to 10000000; write a whole number in that range, without quotes"#;
    connections_max_in_quotes: in_listener(r#"connections_max = "1000""#) =>
        r#"ringlock.toml:6: listener "edge": connections_max: found "1000", expected a whole number from 1 to 10000000; write a whole number in that range, without quotes"#;
    an_empty_congestion_control: in_listener(r#"congestion_control = """#) =>
        r#"ringlock.toml:6: listener "edge": congestion_control: found "", expected the name of a TCP congestion control of this kernel; fill it in"#;
    a_congestion_control_that_is_no_name: in_listener(r#"congestion_control = "cubic or bbr maybe""#) =>
        r#"ringlock.toml:6: listener "edge": congestion_control: found "cubic or bbr maybe", expected the name of a TCP congestion control of this kernel; take one from /proc/sys/net/ipv4/tcp_available_congestion_control"#;
    max_version_below_min_version: in_tls("min_version = \"1.3\"\nmax_version = \"1.2\"") =>
        r#"ringlock.toml:8: listener "edge": tls.max_version: found "1.2", below min_version "1.3", expected at least "1.3"; raise max_version or lower min_version"#;
    a_version_before_tls_1_2: in_tls(r#"min_version = "1.1""#) =>
        r#"ringlock.toml:7: listener "edge": tls.min_version: found "1.1", expected "1.2" or "1.3"; versions before TLS 1.2 are insecure and not implemented (RFC 8996): write "1.2""#;
    a_version_as_nginx_writes_it: in_tls(r#"min_version = "TLSv1.3""#) =>
        r#"ringlock.toml:7: listener "edge": tls.min_version: found "TLSv1.3", expected "1.2" or "1.3"; write "1.3""#;
    a_version_that_is_a_number: in_tls("min_version = 1.2") =>
        r#"ringlock.toml:7: listener "edge": tls.min_version: found 1.2, expected "1.2" or "1.3"; write it in double quotes"#;
    an_unknown_version: in_tls(r#"max_version = "1.4""#) =>
        r#"ringlock.toml:7: listener "edge": tls.max_version: found "1.4", expected "1.2" or "1.3"; write one of them, or remove the key for the default"#;
    a_misspelt_cipher_suite: in_tls("cipher_suites = [\"TLS_AES_128_GCM_SHA265\"]\nmin_version = \"1.3\"") =>
        r#"ringlock.toml:7: listener "edge": tls.cipher_suites[0]: found "TLS_AES_128_GCM_SHA265", expected "TLS_AES_128_GCM_SHA256" (the nearest suite there is); correct or remove it, or write "auto" for the whole key"#;
    a_cipher_suite_by_its_openssl_name: in_tls(r#"cipher_suites = ["ECDHE-RSA-AES128-GCM-SHA256"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.cipher_suites[0]: found "ECDHE-RSA-AES128-GCM-SHA256", expected "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" (its IANA name); correct or remove it, or write "auto" for the whole key"#;
    a_cipher_suite_twice: in_tls(r#"cipher_suites = ["TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.cipher_suites[1]: found "TLS_AES_128_GCM_SHA256" a second time, expected each entry once; remove one of the two"#;
    an_empty_list_of_cipher_suites: in_tls("cipher_suites = []") =>
        r#"ringlock.toml:7: listener "edge": tls.cipher_suites: found an empty list, expected "auto", or a list of "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" or "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"; name at least one"#;
    cipher_suites_that_are_another_word: in_tls(r#"cipher_suites = "fast""#) =>
        r#"ringlock.toml:7: listener "edge": tls.cipher_suites: found "fast", expected "auto", or a list of "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" or "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"; write a list of strings: ["…", "…"]"#;
    cipher_suites_without_one_for_tls_1_2: in_tls(r#"cipher_suites = ["TLS_AES_128_GCM_SHA256"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.cipher_suites: found no suite for TLS 1.2, which is enabled, expected at least one suite for each enabled version; add one such as "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", or set min_version = "1.3""#;
    cipher_suites_without_one_for_tls_1_3: in_tls(r#"cipher_suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.cipher_suites: found no suite for TLS 1.3, which is enabled, expected at least one suite for each enabled version; add one such as "TLS_AES_128_GCM_SHA256", or set max_version = "1.2""#;
    tls_1_3_alone_with_suites_of_tls_1_2: in_tls("min_version = \"1.3\"\ncipher_suites = [\"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\"]") =>
        r#"ringlock.toml:8: listener "edge": tls.cipher_suites: found no suite for TLS 1.3, which is enabled, expected at least one suite for each enabled version; add one such as "TLS_AES_128_GCM_SHA256", or set max_version = "1.2""#;
    an_unknown_group: in_tls(r#"groups = ["secp521r1"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.groups[0]: found "secp521r1", expected "secp256r1" (the nearest group there is); correct or remove it, or write "auto" for the whole key"#;
    a_group_by_another_name: in_tls(r#"groups = ["prime256v1"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.groups[0]: found "prime256v1", expected "secp256r1" (its IANA name); correct or remove it, or write "auto" for the whole key"#;
    a_group_that_resembles_none: in_tls(r#"groups = ["ffdhe2048"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.groups[0]: found "ffdhe2048", expected "X25519MLKEM768", "X25519", "secp256r1" or "secp384r1"; correct or remove it, or write "auto" for the whole key"#;
    a_group_twice: in_tls(r#"groups = ["X25519", "X25519"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.groups[1]: found "X25519" a second time, expected each entry once; remove one of the two"#;
    groups_without_one_for_tls_1_2: in_tls(r#"groups = ["X25519MLKEM768"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.groups: found no group for TLS 1.2, which is enabled, expected at least one group for each enabled version; add one such as "X25519", or set min_version = "1.3""#;
    an_empty_protocol: in_tls(r#"alpn = ["h2", ""]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.alpn[1]: found "", expected a list of strings, each a protocol of 1 to 255 bytes such as "h2"; write a string in double quotes that is not empty"#;
    a_protocol_twice: in_tls(r#"alpn = ["h2", "h2"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.alpn[1]: found "h2" a second time, expected each entry once; remove one of the two"#;
    a_protocol_that_is_too_long: in_tls(r#"alpn = ["hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"]"#) =>
        r#"ringlock.toml:7: listener "edge": tls.alpn[0]: found "hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"… of 256 bytes, expected a protocol of 1 to 255 bytes such as "h2"; shorten it"#;
    tickets_in_quotes: in_tls("tickets = \"on\"") =>
        r#"ringlock.toml:7: listener "edge": tls.tickets: found "on", expected true or false; write true or false without quotes"#;
    a_session_cache_without_a_unit: in_tls("session_cache = \"64\"") =>
        r#"ringlock.toml:7: listener "edge": tls.session_cache: found "64", expected "off", or a size from "1MiB" to "1TiB" such as "64MiB"; write a whole number and one of the units B, KiB, MiB, GiB, TiB"#;
    a_session_cache_that_is_a_number: in_tls("session_cache = 64") =>
        r#"ringlock.toml:7: listener "edge": tls.session_cache: found 64, expected "off", or a size from "1MiB" to "1TiB" such as "64MiB"; write it as one string in double quotes"#;
    a_session_cache_that_is_tiny: in_tls("session_cache = \"1KiB\"") =>
        r#"ringlock.toml:7: listener "edge": tls.session_cache: found "1KiB", expected "off", or a size from "1MiB" to "1TiB" such as "64MiB"; write a size in that range"#;
    tls_that_is_a_string: in_listener(r#"tls = "on""#) =>
        r#"ringlock.toml:6: listener "edge": tls: found "on", expected a table; write its keys below the header [listener.tls]"#;
    client_auth_by_a_word_of_others: in_listener("[listener.client_auth]\nmode = \"on\"") =>
        r#"ringlock.toml:7: listener "edge": client_auth.mode: found "on", expected "off", "optional" or "required"; write one of them, or remove the key for the default"#;
    client_auth_without_a_ca: in_listener("[listener.client_auth]\nmode = \"required\"") =>
        r#"ringlock.toml:6: listener "edge": client_auth.ca: found nothing, expected the path of a PEM file with the CAs whose clients are accepted; add "ca" to this table, or write mode = "off""#;
    optional_client_auth_without_a_ca: in_listener("[listener.client_auth]\nmode = \"optional\"") =>
        r#"ringlock.toml:6: listener "edge": client_auth.ca: found nothing, expected the path of a PEM file with the CAs whose clients are accepted; add "ca" to this table, or write mode = "off""#;
    a_crl_without_a_list: in_client_auth("crl = \"a.crl\"") =>
        r#"ringlock.toml:9: listener "edge": client_auth.crl: found "a.crl", expected a list of at least one string, each the path of a PEM or DER file with revocation lists; write a list of strings: ["…", "…"]"#;
    no_crls: in_client_auth("crl = []") =>
        r#"ringlock.toml:9: listener "edge": client_auth.crl: found an empty list, expected a list of at least one string, each the path of a PEM or DER file with revocation lists; name at least one"#;
    a_crl_twice: in_client_auth("crl = [\"a.crl\", \"a.crl\"]") =>
        r#"ringlock.toml:9: listener "edge": client_auth.crl[1]: found "a.crl" a second time, expected each entry once; remove one of the two"#;
    a_verify_depth_beyond_what_is_built: in_client_auth("verify_depth = 7") =>
        r#"ringlock.toml:9: listener "edge": client_auth.verify_depth: found 7, expected a whole number from 0 to 6; write a whole number in that range, without quotes"#;
    nobody_is_allowed: in_client_auth("allow = []") =>
        r#"ringlock.toml:9: listener "edge": client_auth.allow: found an empty list, expected a list of at least one string, each a name such as "spiffe://example.org/ns/prod/*", "uri:https://example.org/a", "dns:*.clients.example.com", "email:ops@example.com", "cn:batch-7", "o:Example Corp", "ou:Payments", "spki:sha256/BASE64" or "issuer:CN=clients,O=Example Corp"; name at least one"#;
    a_name_without_its_kind: in_client_auth("allow = [\"cn:batch-7\", \"batch-8\"]") =>
        r#"ringlock.toml:9: listener "edge": client_auth.allow[1]: found "batch-8", expected a name such as "spiffe://example.org/ns/prod/*", "uri:https://example.org/a", "dns:*.clients.example.com", "email:ops@example.com", "cn:batch-7", "o:Example Corp", "ou:Payments", "spki:sha256/BASE64" or "issuer:CN=clients,O=Example Corp"; begin it with what it is: spiffe://, uri:, dns:, email:, cn:, o:, ou:, spki:, issuer: or serial:"#;
    a_serial_number_that_is_allowed: in_client_auth("allow = [\"serial:0A1B\"]") =>
        r#"ringlock.toml:9: listener "edge": client_auth.allow[0]: found "serial:0A1B", expected a name such as "spiffe://example.org/ns/prod/*", "uri:https://example.org/a", "dns:*.clients.example.com", "email:ops@example.com", "cn:batch-7", "o:Example Corp", "ou:Payments", "spki:sha256/BASE64" or "issuer:CN=clients,O=Example Corp"; pin the public key of one certificate with spki:, or move the entry to deny"#;
    a_serial_number_in_decimal: in_client_auth("deny = [\"serial:12 34\"]") =>
        r#"ringlock.toml:9: listener "edge": client_auth.deny[0]: found "serial:12 34", expected "serial:0A1B", "serial:0A1B@CN=clients,O=Example Corp", or what "allow" takes such as "spki:sha256/BASE64" or "cn:batch-7"; write the serial number in hexadecimal, as `openssl x509 -noout -serial` prints it behind serial="#;
    expired_lists_by_a_word_of_others: in_client_auth("crl_expired = \"ignore\"") =>
        r#"ringlock.toml:9: listener "edge": client_auth.crl_expired: found "ignore", expected "refuse" or "accept"; write one of them, or remove the key for the default"#;
    a_name_in_two_forms: in_client_auth("allow = [\"dns:a.example\", \"dns:A.example\"]") =>
        r#"ringlock.toml:9: listener "edge": client_auth.allow[1]: found "dns:A.example" a second time, expected each entry once; remove one of the two"#;
    a_ticket_secret_in_the_file_itself: in_file("[tickets]\nsecret = \"hunter2\"") =>
        r#"ringlock.toml:2: tickets.secret: found "hunter2", expected "random", or "file:PATH" of a file with at least 32 random bytes; write "random", or "file:" and the path of the file behind it"#;
    a_ticket_secret_without_a_path: in_file("[tickets]\nsecret = \"file:\"") =>
        r#"ringlock.toml:2: tickets.secret: found "file:", expected "random", or "file:PATH" of a file with at least 32 random bytes; write "random", or "file:" and the path of the file behind it"#;
    a_rotation_of_less_than_a_second: in_file("[tickets]\nrotation = \"10ms\"") =>
        r#"ringlock.toml:2: tickets.rotation: found "10ms", expected a duration of whole seconds from "1s" to "7d", such as "1h"; write a duration in that range"#;
    a_rotation_of_no_unit: in_file("[tickets]\nrotation = 3600") =>
        r#"ringlock.toml:2: tickets.rotation: found 3600, expected a duration of whole seconds from "1s" to "7d", such as "1h"; write it with its unit in double quotes, such as "10s" for seconds"#;
    a_ticket_lifetime_that_is_too_long: in_file("[tickets]\nlifetime = \"8d\"") =>
        r#"ringlock.toml:2: tickets.lifetime: found "8d", expected a duration of whole seconds from "1s" to "7d", such as "1h"; write a duration in that range"#;
    an_ocsp_that_is_no_text: in_identity("ocsp = true") =>
        r#"ringlock.toml:11: identity "site": ocsp: found true, expected "off", "auto", or the path of a DER file with an OCSP response; write it as one string in double quotes"#;
    an_ocsp_proxy_of_another_kind: in_global(r#"ocsp_proxy = "socks5://proxy:1080""#) =>
        r#"ringlock.toml:2: global.ocsp_proxy: found "socks5://proxy:1080", expected the address of an HTTP proxy such as "http://proxy.example.com:3128"; begin it with http://"#;
    a_key_in_the_file_itself: replaced(r#""site.key""#, "\"\"\"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqG\n-----END PRIVATE KEY-----\"\"\"") =>
        r#"ringlock.toml:10: identity "site": key: found PEM text itself, expected the path of a file with the private key (PEM, DER or PKCS#12), or the URI of a key in a token such as "pkcs11:token=edge;object=site;type=private"; write it to a file that only its owner can read, and its path here"#;
    a_missing_certificate: replaced("certificate = \"site.pem\"\n", "") =>
        r#"ringlock.toml:7: identity "site": certificate: found nothing, expected the path of a file with the certificate chain (PEM, DER or PKCS#12), or the URI of a certificate in a token such as "pkcs11:token=edge;object=site;type=cert"; add "certificate" to this table, or "certificates" with the path of a folder"#;
    a_missing_key_of_a_certificate_in_a_token: with_edge("pkcs11:token=edge;object=site\"\n[[identity]]\nname = \"b\"\ncertificate = \"pkcs11:token=edge;object=b") =>
        r#"ringlock.toml:13: identity "b": key: found nothing, expected the path of a file with the private key (PEM, DER or PKCS#12), or the URI of a key in a token such as "pkcs11:token=edge;object=site;type=private"; add "key" to this table"#;
    a_folder_beside_a_certificate: in_identity("certificates = \"d\"") =>
        r#"ringlock.toml:11: identity "site": certificates: found a folder beside certificate, expected either certificate or certificates; remove one of the two"#;
    a_folder_beside_a_key: replaced("certificate = \"site.pem\"", "certificates = \"d\"") =>
        r#"ringlock.toml:10: identity "site": key: found a key, expected nothing: the folder in certificates has the keys, too; remove it, or name one file by certificate"#;
    a_key_that_is_to_be_apart_and_is_not: replaced("key = \"site.key\"\n", "key_isolation = \"process\"\n") =>
        r#"ringlock.toml:10: identity "site": key_isolation: found "process" beside a key in the file of the certificate, expected the key in a file of its own, which the gateway does not read; write the key to another file and name it by key"#;
    a_pass_phrase_for_a_token: with_edge("pkcs11:token=edge;object=site\"\n[[identity]]\nname = \"b\"\ncertificate = \"pkcs11:token=edge;object=b\"\nkey = \"pkcs11:token=edge;object=b\"\npassphrase_file = \"p") =>
        r#"ringlock.toml:17: identity "b": passphrase_file: found the file of a pass phrase, expected nothing: both certificate and key are in tokens, which have PINs (pin_source); remove it"#;
    a_path_with_nul: replaced(r#""site.pem""#, r#""site\u0000.pem""#) =>
        r#"ringlock.toml:9: identity "site": certificate: found "site\0.pem", expected the path of a file with the certificate chain (PEM, DER or PKCS#12), or the URI of a certificate in a token such as "pkcs11:token=edge;object=site;type=cert"; remove the NUL character"#;
    a_path_that_is_a_number: replaced(r#""site.pem""#, "7") =>
        r#"ringlock.toml:9: identity "site": certificate: found 7, expected the path of a file with the certificate chain (PEM, DER or PKCS#12), or the URI of a certificate in a token such as "pkcs11:token=edge;object=site;type=cert"; write it as one string in double quotes"#;
    a_server_without_a_port: replaced("servers = [\"127.0.0.1:8080\"]\n", "servers = [\"127.0.0.1\"]\n") =>
        r#"ringlock.toml:14: upstream "app": servers[0]: found "127.0.0.1", expected "host:port" such as "127.0.0.1:8080" or "[::1]:8080", or "unix:/path/of.socket"; add the port"#;
    a_server_with_a_scheme: replaced("servers = [\"127.0.0.1:8080\"]\n", "servers = [\"https://app:80\"]\n") =>
        r#"ringlock.toml:14: upstream "app": servers[0]: found "https://app:80", expected "host:port" such as "127.0.0.1:8080" or "[::1]:8080", or "unix:/path/of.socket"; remove the scheme: bytes are passed on as they are"#;
    a_server_that_is_a_path: replaced("servers = [\"127.0.0.1:8080\"]\n", "servers = [\"/run/app.sock\"]\n") =>
        r#"ringlock.toml:14: upstream "app": servers[0]: found "/run/app.sock", expected "host:port" such as "127.0.0.1:8080" or "[::1]:8080", or "unix:/path/of.socket"; for a UNIX socket put unix: in front of its path; a server has no other path"#;
    a_server_twice: replaced("servers = [\"127.0.0.1:8080\"]\n", "servers = [\"app:80\", \"APP:80\"]\n") =>
        r#"ringlock.toml:14: upstream "app": servers[1]: found "APP:80" a second time, expected each entry once; remove one of the two"#;
    too_many_servers: replaced(r#"["127.0.0.1:8080"]"#, &format!("[{}]", r#""app:1","#.repeat(4097))) =>
        r#"ringlock.toml:14: upstream "app": servers: found 4097 entries, expected at most 4096; shorten the list"#;
    a_server_port_of_zero: replaced("servers = [\"127.0.0.1:8080\"]\n", "servers = [\"app:0\"]\n") =>
        r#"ringlock.toml:14: upstream "app": servers[0]: found "app:0", expected "host:port" such as "127.0.0.1:8080" or "[::1]:8080", or "unix:/path/of.socket"; write a port from 1 to 65535 after the colon"#;
    a_server_path_that_is_too_long: replaced("servers = [\"127.0.0.1:8080\"]\n", "servers = [\"unix:/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"]\n") =>
        r#"ringlock.toml:14: upstream "app": servers[0]: found "unix:/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"…, expected "host:port" such as "127.0.0.1:8080" or "[::1]:8080", or "unix:/path/of.socket"; shorten the path: with its folder it has 108 bytes, a UNIX socket can have 107"#;
    an_unknown_balance: in_upstream(r#"balance = "round-robin""#) =>
        r#"ringlock.toml:15: upstream "app": balance: found "round-robin", expected "round_robin" or "least_connections"; "round_robin" is the nearest"#;
    an_unknown_connect_on: in_upstream(r#"connect_on = "accept""#) =>
        r#"ringlock.toml:15: upstream "app": connect_on: found "accept", expected "handshake" or "first_byte"; write one of them, or remove the key for the default"#;
    an_unknown_send_proxy: in_upstream(r#"send_proxy = "v3""#) =>
        r#"ringlock.toml:15: upstream "app": send_proxy: found "v3", expected "off", "v1", "v2" or "v2_certificate"; write one of them, or remove the key for the default"#;
    a_connect_timeout_of_zero: in_upstream(r#"connect_timeout = "0ms""#) =>
        r#"ringlock.toml:15: upstream "app": connect_timeout: found "0ms", expected a duration above zero such as "10s" or "250ms"; write how long it may take"#;
    zero_workers: in_global("workers = 0") =>
        r#"ringlock.toml:2: global.workers: found 0, expected "auto", a number of threads, or a list of processors such as "0-3,8"; write a number from 1 to 1024"#;
    workers_below_zero: in_global("workers = -2") =>
        r#"ringlock.toml:2: global.workers: found -2, expected "auto", a number of threads, or a list of processors such as "0-3,8"; write a number from 1 to 1024"#;
    more_workers_than_processors_can_be: in_global("workers = 5000") =>
        r#"ringlock.toml:2: global.workers: found 5000, expected "auto", a number of threads, or a list of processors such as "0-3,8"; write a number from 1 to 1024"#;
    workers_that_are_another_word: in_global(r#"workers = "all""#) =>
        r#"ringlock.toml:2: global.workers: found "all", expected "auto", a number of threads, or a list of processors such as "0-3,8"; write processors and ranges with commas between, such as "0-3,8""#;
    a_processor_twice: in_global(r#"workers = "0-3,2""#) =>
        r#"ringlock.toml:2: global.workers: found "0-3,2", expected "auto", a number of threads, or a list of processors such as "0-3,8"; name processor 2 once"#;
    an_unknown_io: in_global(r#"io = "kqueue""#) =>
        r#"ringlock.toml:2: global.io: found "kqueue", expected "auto", "io_uring" or "epoll"; write one of them, or remove the key for the default"#;
    a_misspelt_io: in_global(r#"io = "iouring""#) =>
        r#"ringlock.toml:2: global.io: found "iouring", expected "auto", "io_uring" or "epoll"; "io_uring" is the nearest"#;
    an_admin_address_without_a_port: in_global(r#"admin = "localhost""#) =>
        r#"ringlock.toml:2: global.admin: found "localhost", expected an IP address and port such as "127.0.0.1:9180", or the path of a socket such as "/run/ringlock/admin.sock"; write the IP address itself (names are not looked up here) and a port up to 65535"#;
    an_admin_path_that_is_too_long: in_global(r#"admin = "/run/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa""#) =>
        r#"ringlock.toml:2: global.admin: found "/run/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"…, expected an IP address and port such as "127.0.0.1:9180", or the path of a socket such as "/run/ringlock/admin.sock"; shorten the path: with its folder it has 112 bytes, a UNIX socket can have 107"#;
    an_empty_user: in_global(r#"user = """#) =>
        r#"ringlock.toml:2: global.user: found "", expected the name of a user; fill it in"#;
    an_unknown_log_format: in_global(r#"log.format = "logfmt""#) =>
        r#"ringlock.toml:2: global.log.format: found "logfmt", expected "text" or "json"; write one of them, or remove the key for the default"#;
    an_unknown_log_level: in_global(r#"log.level = "trace""#) =>
        r#"ringlock.toml:2: global.log.level: found "trace", expected "error", "warn", "info" or "debug"; write one of them, or remove the key for the default"#;
    an_unknown_choice_of_connections: in_global(r#"log.connections = "some""#) =>
        r#"ringlock.toml:2: global.log.connections: found "some", expected "off", "failures" or "all"; write one of them, or remove the key for the default"#;
    a_sample_above_one: in_global("log.connections_sample = 1.5") =>
        "ringlock.toml:2: global.log.connections_sample: found 1.5, expected a number from 0.0 to 1.0; write a share such as 0.01 for one in a hundred, without quotes";
    a_sample_that_is_no_number: in_global("log.connections_sample = nan") =>
        "ringlock.toml:2: global.log.connections_sample: found nan, expected a number from 0.0 to 1.0; write a share such as 0.01 for one in a hundred, without quotes";
    a_multibuffer_that_is_no_path: in_file("[crypto]\nmultibuffer = true") =>
        r#"ringlock.toml:2: crypto.multibuffer: found true, expected "auto", "off", or the path of libcrypto_mb.so; write it as one string in double quotes"#;
    an_unknown_made_ahead: in_file("[crypto]\nmade_ahead = \"always\"") =>
        r#"ringlock.toml:2: crypto.made_ahead: found "always", expected "auto", "on" or "off"; write one of them, or remove the key for the default"#;
    no_listener: replaced(BASE, "") =>
        "ringlock.toml:1: listener: found none, expected at least one [[listener]]; add a [[listener]] table";
    a_listener_with_single_brackets: replaced("[[listener]]", "[listener]") =>
        "ringlock.toml:1: listener: found a table, expected a list of tables; write each below a header with two brackets: [[listener]]";
    an_empty_list_of_listeners: replaced(BASE, "listener = []\n") =>
        "ringlock.toml:1: listener: found none, expected at least one [[listener]]; add a [[listener]] table";
    a_syntax_error: replaced(r#""edge""#, r#""edge"#) =>
        r#"ringlock.toml:2: found a syntax error (invalid basic string), expected `"`; correct the line, or one before it (toml.io describes the format)"#;
    a_key_twice: replaced("name = \"edge\"\n", "name = \"edge\"\nname = \"edge\"\n") =>
        r#"ringlock.toml:3: found "name" a second time, expected each key once; remove one of the two, or merge them"#;
    a_table_twice: in_file("[global]\n[global]") =>
        r#"ringlock.toml:2: found "global" a second time, expected each key once; remove one of the two, or merge them"#;
}

messages! { warned:
    an_unused_identity: replaced("[[upstream]]", r#"[[identity]]
name = "spare"
certificate = "a"
key = "b"

[[upstream]]"#) =>
        r#"ringlock.toml:13: identity "spare": name: no listener uses this identity; refer to it from a [[listener]], or remove it"#;
    an_unused_upstream: replaced("[[identity]]", r#"[[upstream]]
name = "spare"
servers = ["app:80"]

[[identity]]"#) =>
        r#"ringlock.toml:8: upstream "spare": name: no listener uses this upstream; refer to it from a [[listener]], or remove it"#;
    an_admin_address_for_everyone: in_global(r#"admin = "0.0.0.0:9180""#) =>
        r#"ringlock.toml:2: global.admin: 0.0.0.0 is every address of this machine: metrics are open to whoever can reach it; name one address such as "127.0.0.1:9180", or the path of a UNIX socket"#;
    port_zero: replaced(r#""127.0.0.1:8443""#, r#""127.0.0.1:0""#) =>
        r#"ringlock.toml:3: listener "edge": address: port 0 makes the kernel choose a free port at every start; name the port"#;
    one_processor_in_quotes: in_global(r#"workers = "4""#) =>
        "ringlock.toml:2: global.workers: this is one worker, on processor 4; for 4 workers write 4 without quotes";
    a_sample_of_lines_that_are_not_logged: in_global("log.connections = \"failures\"\nlog.connections_sample = 0.5") =>
        r#"ringlock.toml:3: global.log.connections_sample: it has no effect: successful connections are not logged; set connections = "all" or remove it"#;
    suites_of_a_version_that_is_not_enabled: in_tls("min_version = \"1.3\"\ncipher_suites = [\"TLS_AES_128_GCM_SHA256\", \"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\"]") =>
        r#"ringlock.toml:8: listener "edge": tls.cipher_suites: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" has no effect: TLS 1.2 is not enabled; remove it, or change min_version or max_version"#;
    a_ca_without_a_mode: in_listener("[listener.client_auth]\nca = \"ca.pem\"") =>
        r#"ringlock.toml:7: listener "edge": client_auth.ca: it has no effect: mode is "off" when it is absent; add mode = "required" or mode = "optional", or mode = "off" to say that this is meant"#;
    names_that_are_allowed_without_a_mode: in_listener("[listener.client_auth]\nallow = [\"cn:batch-7\"]") =>
        r#"ringlock.toml:7: listener "edge": client_auth.allow: it has no effect: mode is "off" when it is absent; add mode = "required" or mode = "optional", or mode = "off" to say that this is meant"#;
    a_route_whose_name_an_earlier_one_has: in_listener(r#"routes = [{ sni = ["b.example", "a.example"], upstream = "api" }, { sni = "a.example", upstream = "app" }]
[[upstream]]
name = "api"
servers = ["api:80"]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[1].sni: this route has no effect: listener "edge": routes[0] takes its names first; remove it, or move it to the front"#;
    a_name_that_an_earlier_route_has: in_listener(r#"routes = [{ sni = "*.example", upstream = "api" }, { sni = ["a.example", "*.example"], upstream = "app" }]
[[upstream]]
name = "api"
servers = ["api:80"]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[1].sni: *.example has no effect here: listener "edge": routes[0] takes it first; remove it, or move it to the front"#;
    a_route_to_where_its_names_go_anyway: in_listener(r#"routes = [{ sni = "a.example", upstream = "app" }]"#) =>
        r#"ringlock.toml:6: listener "edge": routes[0].sni: this route has no effect: its upstream is the listener's; remove it or change its upstream"#;
}

messages! { refused:
    a_pkcs11_key_with_its_pin: with_edge("pkcs11:token=edge;object=site?pin-value=1234") =>
        r#"ringlock.toml:12: identity "site": key: found a pkcs11: URI with a PIN in it (pin-value), expected the path of a file with the private key (PEM, DER or PKCS#12), or the URI of a key in a token such as "pkcs11:token=edge;object=site;type=private"; a PIN in the configuration can be read by whoever reads the file: write it to a file of its own and name that by pin-source"#;
    a_pin_source_that_is_a_pin: in_token("pin_source = \"1234\"") =>
        r#"ringlock.toml:3: keys.edge.pin_source: found what looks like a PIN itself, expected "file:PATH" of a file whose first line is the PIN, or "credential:NAME" of a systemd credential; a PIN in the configuration can be read by whoever reads the file: write it to a file of its own and name that by pin-source"#;
    a_pin_source_that_is_a_number: in_token("pin_source = 1234") =>
        r#"ringlock.toml:3: keys.edge.pin_source: found a value that is no string, expected "file:PATH" of a file whose first line is the PIN, or "credential:NAME" of a systemd credential; write the PIN to a file of its own, and its path here in double quotes"#;
    a_pin_source_that_is_a_command: in_token("pin_source = \"|cat pin\"") =>
        r#"ringlock.toml:3: keys.edge.pin_source: found a command as the source of a PIN, expected "file:PATH" of a file whose first line is the PIN, or "credential:NAME" of a systemd credential; write the PIN to a file that only its reader can read, and name that"#;
    an_empty_pin_source: in_token("pin_source = \"\"") =>
        r#"ringlock.toml:3: keys.edge.pin_source: found no source that a PIN can be read from, expected "file:PATH" of a file whose first line is the PIN, or "credential:NAME" of a systemd credential; write file: and the path of a file, or credential: and the name of a systemd credential"#;
    a_misspelt_key_of_a_token: in_token("modul = \"a\"") =>
        r#"ringlock.toml:3: keys.edge.modul: found an unknown key, expected "module" (the nearest legal key); correct its name or remove it"#;
    a_key_of_an_identity_in_a_token: in_token("certificate = \"a\"") =>
        r#"ringlock.toml:3: keys.edge.certificate: found an unknown key, expected "module", "token", "group", "pin_source", "sessions", "isolation", "timeout", "queue", "when_down", "keep_alive", "user" or "sandbox"; move it to [[identity]] or remove it"#;
    a_token_without_module: with_tokens("[keys.edge]\n", "pkcs11:token=edge") =>
        r#"ringlock.toml:1: keys.edge.module: found nothing, expected the path of a PKCS#11 module such as "/usr/lib/softhsm/libsofthsm2.so"; add "module" to this table"#;
    keys_that_are_no_tables: in_file("keys = \"edge\"") =>
        r#"ringlock.toml:1: keys: found "edge", expected tables with names; write each below a header with its name: [keys.NAME]"#;
    a_token_without_name: in_file("[keys]\nmodule = \"/lib/p11.so\"") =>
        r#"ringlock.toml:2: keys.module: found "/lib/p11.so", expected a table [keys.NAME]; write a name of your choice for the token between keys. and the closing bracket"#;
    a_token_with_an_empty_name: beside_edge("[keys.\"\"]\nmodule = \"/a\"") =>
        r#"ringlock.toml:3: keys."": found "" as the name of a table, expected a name of 1 to 64 characters; fill it in"#;
    a_token_by_a_uri_of_an_object: in_token("token = \"pkcs11:token=a;object=b\"") =>
        r#"ringlock.toml:3: keys.edge.token: found a pkcs11: URI of more than a token, expected the label of a token, or a URI with what it is known by such as "pkcs11:serial=0123"; leave out all but token, serial, manufacturer, model and slot-id"#;
    a_token_by_a_uri_that_is_none: in_token("token = \"pkcs11:label=a\"") =>
        r#"ringlock.toml:3: keys.edge.token: found a pkcs11: URI with an attribute that does not exist there (label), expected the label of a token, or a URI with what it is known by such as "pkcs11:serial=0123"; correct or remove it; there are token, serial, manufacturer, model, slot-id, object, id, type"#;
    sessions_of_zero: in_token("sessions = 0") =>
        r#"ringlock.toml:3: keys.edge.sessions: found 0, expected a whole number from 1 to 1024; write a whole number in that range, without quotes"#;
    more_sessions_than_may_be: in_token("sessions = 1025") =>
        r#"ringlock.toml:3: keys.edge.sessions: found 1025, expected a whole number from 1 to 1024; write a whole number in that range, without quotes"#;
    a_longer_queue_than_may_be: in_token("queue = 65537") =>
        r#"ringlock.toml:3: keys.edge.queue: found 65537, expected a whole number from 1 to 65536; write a whole number in that range, without quotes"#;
    a_signature_without_time: in_token("timeout = \"0s\"") =>
        r#"ringlock.toml:3: keys.edge.timeout: found "0s", expected a duration above zero such as "10s" or "250ms"; write how long it may take"#;
    an_unknown_isolation: in_token("isolation = \"thraed\"") =>
        r#"ringlock.toml:3: keys.edge.isolation: found "thraed", expected "process" or "thread"; "thread" is the nearest"#;
    an_unknown_when_down: in_token("when_down = \"retry\"") =>
        r#"ringlock.toml:3: keys.edge.when_down: found "retry", expected "wait" or "fail"; write one of them, or remove the key for the default"#;
    an_unknown_sandbox: in_token("sandbox = true") =>
        r#"ringlock.toml:3: keys.edge.sandbox: found true, expected "auto" or "off"; write one of them in double quotes"#;
    a_token_that_is_another_one: beside_edge("[keys.b]\nmodule = \"/lib/p11.so\"\ntoken = \"edge\"") =>
        r#"ringlock.toml:3: keys.b: found the token that keys.edge is in line 1, expected a token of its own; remove one of the two tables, or say by token which token each is"#;
    two_isolations_of_one_module: beside_edge("[keys.b]\nmodule = \"/lib/p11.so\"\nisolation = \"thread\"") =>
        r#"ringlock.toml:5: keys.b.isolation: found another isolation than keys.edge has in line 1, expected the same: both tokens are of one module, which is loaded once; change one of the two"#;
    two_users_of_one_module: beside_edge("[keys.b]\nmodule = \"/lib/p11.so\"\nuser = \"signer\"") =>
        r#"ringlock.toml:5: keys.b.user: found another user than keys.edge has in line 1, expected the same: both tokens are of one module, which is loaded once; change one of the two"#;
    two_sandboxes_of_one_module: beside_edge("[keys.b]\nmodule = \"/lib/p11.so\"\nsandbox = \"off\"") =>
        r#"ringlock.toml:5: keys.b.sandbox: found another sandbox than keys.edge has in line 1, expected the same: both tokens are of one module, which is loaded once; change one of the two"#;
    a_group_named_like_a_token: beside_edge("[keys.b]\nmodule = \"/b.so\"\ngroup = \"edge\"") =>
        r#"ringlock.toml:5: keys.b.group: found the name of keys.edge in line 1, expected a name that no table [keys.NAME] has: URIs may have either; rename one of the two"#;
    a_token_named_like_a_group: beside_edge("group = \"b\"\n[keys.b]\nmodule = \"/b.so\"") =>
        r#"ringlock.toml:4: keys.b: found the name of the group of keys.edge in line 1, expected a name that no group has: URIs may have either; rename one of the two"#;
    a_key_in_a_token_when_there_is_none: with_tokens("", "pkcs11:token=edge;object=site") =>
        r#"ringlock.toml:10: identity "site": key: found the token pkcs11:token=edge, expected the token of a table [keys.NAME], of which there is none; correct the URI, or add a table [keys.edge] with module = the path of the token's module"#;
    a_key_in_any_token_when_there_is_none: with_tokens("", "pkcs11:object=site") =>
        r#"ringlock.toml:10: identity "site": key: found a pkcs11: URI without a token, expected the token of a table [keys.NAME], of which there is none; add a table [keys.NAME] with module = the path of the token's module"#;
    a_key_in_a_misspelt_token: with_edge("pkcs11:token=egde;object=site") =>
        r#"ringlock.toml:12: identity "site": key: found the token pkcs11:token=egde, expected token="edge" (the nearest name of a table [keys.NAME]); correct the URI, or add a table [keys.egde] with module = the path of the token's module"#;
    a_key_in_an_unknown_token: with_edge("pkcs11:token=My%20Token;object=site") =>
        r#"ringlock.toml:12: identity "site": key: found the token pkcs11:token=My%20Token, expected token="edge"; correct the URI, or add a table [keys."My Token"] with module = the path of the token's module"#;
    a_key_in_a_token_of_another_serial: with_edge("pkcs11:token=edge;serial=0123;object=site") =>
        r#"ringlock.toml:12: identity "site": key: found the token pkcs11:token=edge;serial=0123, of which keys.edge does not say all that, expected nothing of the token that the table [keys.edge] does not say; leave out all but token=edge, or write token = "pkcs11:token=edge;serial=0123" in the table"#;
    a_key_in_a_token_known_by_its_serial: with_edge("pkcs11:serial=0123;object=site") =>
        r#"ringlock.toml:12: identity "site": key: found the token pkcs11:serial=0123, expected token="edge"; correct the URI, or add a table [keys.NAME] with module = the path of the token's module and token = "pkcs11:serial=0123""#;
    a_key_in_another_module: with_edge("pkcs11:token=edge?module-path=/lib/other.so") =>
        r#"ringlock.toml:12: identity "site": key: found a pkcs11: URI with another module than keys.edge has, expected the module /lib/p11.so; leave module-path and module-name out, or correct them"#;
    a_key_in_several_tokens: with_tokens(&format!("{EDGE}[keys.b]\nmodule = \"/b.so\"\n"), "pkcs11:object=site") =>
        r#"ringlock.toml:14: identity "site": key: found a pkcs11: URI that fits several tokens (keys.edge, keys.b), expected the URI of one token, or of those of one group; begin the URI with pkcs11:token=NAME; for the NAME of one table, or give them the same group"#;
    a_key_of_type_cert: with_edge("pkcs11:token=edge;object=site;type=cert") =>
        r#"ringlock.toml:12: identity "site": key: found a pkcs11: URI with type=cert, expected one with type=private, or without type; correct the URI"#;
    a_key_with_an_attribute_twice: with_edge("pkcs11:token=edge;token=edge") =>
        r#"ringlock.toml:12: identity "site": key: found a pkcs11: URI with token twice, expected the path of a file with the private key (PEM, DER or PKCS#12), or the URI of a key in a token such as "pkcs11:token=edge;object=site;type=private"; remove one of the two"#;
    another_pin_source_than_the_tokens: with_tokens(&format!("{EDGE}pin_source = \"a\"\n"), "pkcs11:token=edge?pin-source=b") =>
        r#"ringlock.toml:13: identity "site": key: found a pkcs11: URI with another pin-source than keys.edge.pin_source has in line 3, expected one source of the PIN of a token; remove one of the two"#;
    two_pin_sources_of_two_identities: two_pins("credential:a", "b") =>
        r#"ringlock.toml:16: identity "site": key: found a pkcs11: URI with another pin-source than identity "b": key has in line 6, expected one source of the PIN of a token; remove one of the two"#;
    the_signer_process_for_a_key_in_a_token: with_edge("pkcs11:token=edge\"\nkey_isolation = \"process") =>
        r#"ringlock.toml:13: identity "site": key_isolation: found "process" beside a key in a token, expected that it is absent: the token's table says by isolation where its keys are used; remove it"#;
    an_unknown_key_isolation: in_identity("key_isolation = \"thread\"") =>
        r#"ringlock.toml:11: identity "site": key_isolation: found "thread", expected "none" or "process"; write one of them, or remove the key for the default"#;
}

messages! { warned:
    an_unused_token: beside_edge("[keys.\"b c\"]\nmodule = \"/b.so\"") =>
        r#"ringlock.toml:3: keys."b c": no identity uses this token; refer to it from an [[identity]] by key = "pkcs11:token=b%20c;object=…", or remove it"#;
    a_user_of_a_thread: in_token("isolation = \"thread\"\nuser = \"signer\"") =>
        r#"ringlock.toml:4: keys.edge.user: it has no effect: with isolation = "thread" there is no signer process; remove it, or isolation"#;
    an_attribute_that_nothing_is_compared_with: with_edge("pkcs11:token=edge;library-version=1;slot-description=a;object=site") =>
        r#"ringlock.toml:12: identity "site": key: nothing is compared with library-version and slot-description; remove it from the URI; a token is known by its label and serial"#;
    an_attribute_of_a_token_that_nothing_is_compared_with: in_token("token = \"pkcs11:token=edge;library-version=1\"") =>
        r#"ringlock.toml:3: keys.edge.token: nothing is compared with library-version; remove it from the URI; a token is known by its label and serial"#;
}

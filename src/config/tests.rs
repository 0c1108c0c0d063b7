//! Whole files: what becomes of a right one, and that no text at all makes the reader panic.

use super::*;

/// A small file without a warning; the tests of messages change one thing in it.
pub(super) const BASE: &str = r#"[[listener]]
name = "edge"
address = "127.0.0.1:8443"
identities = ["site"]
upstream = "app"

[[identity]]
name = "site"
certificate = "site.pem"
key = "site.key"

[[upstream]]
name = "app"
servers = ["127.0.0.1:8080"]
"#;

/// Reads [`BASE`] with the first `from` replaced by `to`; an empty `from` puts `to` in front.
pub(super) fn changed(from: &str, to: &str) -> Result<(Config, Vec<Warning>), Problems> {
    assert!(BASE.contains(from), "{from:?} is in the file");
    parse(&BASE.replacen(from, to, 1), Path::new("ringlock.toml"))
}

#[test]
fn dump() {
    for (n, from, to) in DUMP {
        let r = std::panic::catch_unwind(|| changed(from, to));
        match r {
            Err(_) => println!("@@{n}@@PANIC"),
            Ok(Err(p)) => println!("@@{n}@@{p}"),
            Ok(Ok((_, w))) => println!(
                "@@{n}@@{}",
                w.iter().map(|w| w.to_string()).collect::<Vec<_>>().join("\n")
            ),
        }
    }
}
const DUMP: &[(&str, &str, &str)] = &[
    (
        "a_duration_with_an_unknown_unit",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
handshake_timeout = "10x"
"#,
    ),
    (
        "a_duration_without_a_unit",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
idle_timeout = 300
"#,
    ),
    (
        "a_duration_of_zero",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
write_timeout = "0s"
"#,
    ),
    (
        "a_duration_beyond_a_year",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
linger_timeout = "400d"
"#,
    ),
    (
        "a_duration_that_is_a_list",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
linger_timeout = ["1s"]
"#,
    ),
    (
        "a_misspelt_key",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
handshake_timeot = "10s"
"#,
    ),
    (
        "a_key_that_resembles_none",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
banana = 1
"#,
    ),
    (
        "a_key_of_another_table",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
servers = ["127.0.0.1:1"]
"#,
    ),
    ("a_misspelt_table", "[[upstream]]", "[[upstreams]]"),
    (
        "a_misspelt_key_in_a_sub_table",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
min_verson = "1.3"
"#,
    ),
    (
        "a_misspelt_key_in_a_route",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = [{ sn = "a.example", upstream = "app" }]
"#,
    ),
    (
        "a_flag_in_quotes",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
accept_proxy = "yes"
"#,
    ),
    (
        "mode_http",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
mode = "http"
"#,
    ),
    (
        "an_unknown_mode",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
mode = "udp"
"#,
    ),
    (
        "a_mode_that_is_no_string",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
mode = 4
"#,
    ),
    (
        "a_missing_address",
        r#"address = "127.0.0.1:8443"
"#,
        "",
    ),
    (
        "a_missing_name",
        r#"name = "edge"
"#,
        "",
    ),
    ("an_empty_name", r#""edge""#, r#""""#),
    ("a_name_that_is_no_string", r#""edge""#, "7"),
    (
        "a_long_name",
        r#""edge""#,
        r#""eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee""#,
    ),
    ("a_name_with_control_characters", r#""edge""#, r#""e\u0007dge""#),
    (
        "a_second_listener_of_the_same_name",
        "[[identity]]",
        r#"[[listener]]
name = "edge"
address = "127.0.0.1:1"
identities = ["site"]
upstream = "app"

[[identity]]"#,
    ),
    (
        "a_second_identity_of_the_same_name",
        "[[upstream]]",
        r#"[[identity]]
name = "site"
certificate = "a"
key = "b"

[[upstream]]"#,
    ),
    (
        "a_second_upstream_of_the_same_name",
        "[[identity]]",
        r#"[[upstream]]
name = "app"
servers = ["127.0.0.1:1"]

[[identity]]"#,
    ),
    ("an_address_without_a_port", r#""127.0.0.1:8443""#, r#""127.0.0.1""#),
    ("an_address_that_is_only_a_port", r#""127.0.0.1:8443""#, r#"":443""#),
    ("an_ipv6_address_without_brackets", r#""127.0.0.1:8443""#, r#""::1""#),
    ("an_address_that_is_a_name", r#""127.0.0.1:8443""#, r#""localhost:443""#),
    ("an_address_that_is_a_number", r#""127.0.0.1:8443""#, "443"),
    ("an_empty_list_of_addresses", r#""127.0.0.1:8443""#, "[]"),
    (
        "an_address_twice_in_one_list",
        r#""127.0.0.1:8443""#,
        r#"["127.0.0.1:1", "127.0.0.1:1"]"#,
    ),
    (
        "an_address_of_two_listeners",
        "[[identity]]",
        r#"[[listener]]
name = "other"
address = ["127.0.0.1:1", "127.0.0.1:8443"]
identities = ["site"]
upstream = "app"

[[identity]]"#,
    ),
    (
        "an_address_of_a_listener_and_the_administrator",
        "",
        r#"[global]
admin = "127.0.0.1:8443"
"#,
    ),
    ("an_unknown_identity", r#"["site"]"#, r#"["sight"]"#),
    (
        "an_unknown_identity_that_resembles_none",
        r#"["site"]"#,
        r#"["example.com"]"#,
    ),
    ("an_identity_twice_in_one_list", r#"["site"]"#, r#"["site", "site"]"#),
    ("an_empty_list_of_identities", r#"["site"]"#, "[]"),
    ("identities_that_are_a_string", r#"["site"]"#, r#""site""#),
    ("identities_that_are_numbers", r#"["site"]"#, "[1]"),
    ("an_unknown_upstream", r#"upstream = "app""#, r#"upstream = "ap""#),
    (
        "an_upstream_when_there_is_none",
        r#"[[upstream]]
name = "app"
servers = ["127.0.0.1:8080"]
"#,
        "",
    ),
    (
        "an_unknown_upstream_of_a_route",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = [{ sni = "a.example", upstream = "api" }]
"#,
    ),
    (
        "a_route_without_upstream",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = [{ sni = "a.example" }]
"#,
    ),
    (
        "a_route_that_is_a_string",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = ["a.example"]
"#,
    ),
    (
        "routes_that_are_a_table",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = { sni = "a.example", upstream = "app" }
"#,
    ),
    (
        "a_wildcard_in_the_middle",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = [{ sni = "api.*.example", upstream = "app" }]
"#,
    ),
    (
        "a_name_that_is_not_punycode",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = [{ sni = "bücher.example", upstream = "app" }]
"#,
    ),
    (
        "connections_max_of_zero",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
connections_max = 0
"#,
    ),
    (
        "connections_max_below_zero",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
connections_max = -1
"#,
    ),
    (
        "connections_max_in_quotes",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
connections_max = "1000"
"#,
    ),
    (
        "an_empty_congestion_control",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
congestion_control = ""
"#,
    ),
    (
        "a_congestion_control_that_is_no_name",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
congestion_control = "cubic or bbr maybe"
"#,
    ),
    (
        "max_version_below_min_version",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
min_version = "1.3"
max_version = "1.2"
"#,
    ),
    (
        "a_version_before_tls_1_2",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
min_version = "1.1"
"#,
    ),
    (
        "a_version_as_nginx_writes_it",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
min_version = "TLSv1.3"
"#,
    ),
    (
        "a_version_that_is_a_number",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
min_version = 1.2
"#,
    ),
    (
        "an_unknown_version",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
max_version = "1.4"
"#,
    ),
    (
        "a_misspelt_cipher_suite",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
cipher_suites = ["TLS_AES_128_GCM_SHA265"]
min_version = "1.3"
"#,
    ),
    (
        "a_cipher_suite_by_its_openssl_name",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
cipher_suites = ["ECDHE-RSA-AES128-GCM-SHA256"]
"#,
    ),
    (
        "a_cipher_suite_twice",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
cipher_suites = ["TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"]
"#,
    ),
    (
        "an_empty_list_of_cipher_suites",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
cipher_suites = []
"#,
    ),
    (
        "cipher_suites_that_are_another_word",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
cipher_suites = "fast"
"#,
    ),
    (
        "cipher_suites_without_one_for_tls_1_2",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
cipher_suites = ["TLS_AES_128_GCM_SHA256"]
"#,
    ),
    (
        "cipher_suites_without_one_for_tls_1_3",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
cipher_suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
"#,
    ),
    (
        "tls_1_3_alone_with_suites_of_tls_1_2",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
min_version = "1.3"
cipher_suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
"#,
    ),
    (
        "an_unknown_group",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
groups = ["secp521r1"]
"#,
    ),
    (
        "a_group_by_another_name",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
groups = ["prime256v1"]
"#,
    ),
    (
        "a_group_that_resembles_none",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
groups = ["ffdhe2048"]
"#,
    ),
    (
        "a_group_twice",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
groups = ["X25519", "X25519"]
"#,
    ),
    (
        "groups_without_one_for_tls_1_2",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
groups = ["X25519MLKEM768"]
"#,
    ),
    (
        "an_empty_protocol",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
alpn = ["h2", ""]
"#,
    ),
    (
        "a_protocol_twice",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
alpn = ["h2", "h2"]
"#,
    ),
    (
        "a_protocol_that_is_too_long",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
alpn = ["hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"]
"#,
    ),
    (
        "tickets",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
tickets = true
"#,
    ),
    (
        "tls_that_is_a_string",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
tls = "on"
"#,
    ),
    (
        "client_auth",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.client_auth]
mode = "required"
"#,
    ),
    (
        "the_other_keys_of_client_auth",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.client_auth]
ca = "ca.pem"
"#,
    ),
    (
        "the_tickets_section",
        "",
        r#"[tickets]
secret = "random"
"#,
    ),
    (
        "a_token",
        "",
        r#"[keys.edge]
module = "/usr/lib/softhsm/libsofthsm2.so"
"#,
    ),
    (
        "ocsp_auto",
        r#"key = "site.key"
"#,
        r#"key = "site.key"
ocsp = "auto"
"#,
    ),
    (
        "ocsp_from_a_file",
        r#"key = "site.key"
"#,
        r#"key = "site.key"
ocsp = "staple.der"
"#,
    ),
    ("a_pkcs12_certificate", r#""site.pem""#, r#""site.P12""#),
    (
        "a_pkcs11_key_without_its_pin",
        r#""site.key""#,
        r#""pkcs11:token=edge;object=site?pin-value=1234""#,
    ),
    (
        "a_key_in_the_file_itself",
        r#""site.key""#,
        r#""""-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqG
-----END PRIVATE KEY-----""""#,
    ),
    (
        "a_missing_key",
        r#"key = "site.key"
"#,
        "",
    ),
    ("a_path_with_nul", r#""site.pem""#, r#""site\u0000.pem""#),
    ("a_path_that_is_a_number", r#""site.pem""#, "7"),
    (
        "a_server_without_a_port",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["127.0.0.1"]
"#,
    ),
    (
        "a_server_with_a_scheme",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["https://app:80"]
"#,
    ),
    (
        "a_server_that_is_a_path",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["/run/app.sock"]
"#,
    ),
    (
        "a_server_twice",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["app:80", "APP:80"]
"#,
    ),
    (
        "a_server_port_of_zero",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["app:0"]
"#,
    ),
    (
        "a_server_path_that_is_too_long",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["unix:/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
"#,
    ),
    (
        "an_unknown_balance",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["127.0.0.1:8080"]
balance = "round-robin"
"#,
    ),
    (
        "an_unknown_connect_on",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["127.0.0.1:8080"]
connect_on = "accept"
"#,
    ),
    (
        "an_unknown_send_proxy",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["127.0.0.1:8080"]
send_proxy = "v3"
"#,
    ),
    (
        "a_connect_timeout_of_zero",
        r#"servers = ["127.0.0.1:8080"]
"#,
        r#"servers = ["127.0.0.1:8080"]
connect_timeout = "0ms"
"#,
    ),
    (
        "zero_workers",
        "",
        r#"[global]
workers = 0
"#,
    ),
    (
        "workers_below_zero",
        "",
        r#"[global]
workers = -2
"#,
    ),
    (
        "more_workers_than_processors_can_be",
        "",
        r#"[global]
workers = 5000
"#,
    ),
    (
        "workers_that_are_another_word",
        "",
        r#"[global]
workers = "all"
"#,
    ),
    (
        "a_processor_twice",
        "",
        r#"[global]
workers = "0-3,2"
"#,
    ),
    (
        "an_unknown_io",
        "",
        r#"[global]
io = "kqueue"
"#,
    ),
    (
        "a_misspelt_io",
        "",
        r#"[global]
io = "iouring"
"#,
    ),
    (
        "an_admin_address_without_a_port",
        "",
        r#"[global]
admin = "localhost"
"#,
    ),
    (
        "an_admin_path_that_is_too_long",
        "",
        r#"[global]
admin = "/run/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
"#,
    ),
    (
        "an_empty_user",
        "",
        r#"[global]
user = ""
"#,
    ),
    (
        "an_unknown_log_format",
        "",
        r#"[global]
log.format = "logfmt"
"#,
    ),
    (
        "an_unknown_log_level",
        "",
        r#"[global]
log.level = "trace"
"#,
    ),
    (
        "an_unknown_choice_of_connections",
        "",
        r#"[global]
log.connections = "some"
"#,
    ),
    (
        "a_sample_above_one",
        "",
        r#"[global]
log.connections_sample = 1.5
"#,
    ),
    (
        "a_sample_that_is_no_number",
        "",
        r#"[global]
log.connections_sample = nan
"#,
    ),
    (
        "a_multibuffer_library",
        "",
        r#"[crypto]
multibuffer = "/usr/lib/libcrypto_mb.so"
"#,
    ),
    (
        "made_ahead_on",
        "",
        r#"[crypto]
made_ahead = "on"
"#,
    ),
    (
        "no_listener",
        r#"[[listener]]
name = "edge"
address = "127.0.0.1:8443"
identities = ["site"]
upstream = "app"

[[identity]]
name = "site"
certificate = "site.pem"
key = "site.key"

[[upstream]]
name = "app"
servers = ["127.0.0.1:8080"]
"#,
        "",
    ),
    ("a_listener_with_single_brackets", "[[listener]]", "[listener]"),
    (
        "an_empty_list_of_listeners",
        r#"[[listener]]
name = "edge"
address = "127.0.0.1:8443"
identities = ["site"]
upstream = "app"

[[identity]]
name = "site"
certificate = "site.pem"
key = "site.key"

[[upstream]]
name = "app"
servers = ["127.0.0.1:8080"]
"#,
        r#"listener = []
"#,
    ),
    ("a_syntax_error", r#""edge""#, r#""edge"#),
    (
        "a_key_twice",
        r#"name = "edge"
"#,
        r#"name = "edge"
name = "edge"
"#,
    ),
    (
        "a_table_twice",
        "",
        r#"[global]
[global]
"#,
    ),
    (
        "an_unused_identity",
        "[[upstream]]",
        r#"[[identity]]
name = "spare"
certificate = "a"
key = "b"

[[upstream]]"#,
    ),
    (
        "an_unused_upstream",
        "[[identity]]",
        r#"[[upstream]]
name = "spare"
servers = ["app:80"]

[[identity]]"#,
    ),
    (
        "an_admin_address_for_everyone",
        "",
        r#"[global]
admin = "0.0.0.0:9180"
"#,
    ),
    ("port_zero", r#""127.0.0.1:8443""#, r#""127.0.0.1:0""#),
    (
        "one_processor_in_quotes",
        "",
        r#"[global]
workers = "4"
"#,
    ),
    (
        "a_sample_of_lines_that_are_not_logged",
        "",
        r#"[global]
log.connections = "failures"
log.connections_sample = 0.5
"#,
    ),
    (
        "suites_of_a_version_that_is_not_enabled",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
[listener.tls]
min_version = "1.3"
cipher_suites = ["TLS_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
"#,
    ),
    (
        "a_route_that_an_earlier_one_covers",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = [{ sni = "*.example", upstream = "api" }, { sni = "a.example", upstream = "app" }]
[[upstream]]
name = "api"
servers = ["api:80"]
"#,
    ),
    (
        "a_route_to_where_its_names_go_anyway",
        r#"upstream = "app"
"#,
        r#"upstream = "app"
routes = [{ sni = "a.example", upstream = "app" }]
"#,
    ),
];

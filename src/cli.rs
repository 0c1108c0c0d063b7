//! The command line: what was asked, and how problems of a configuration are shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Severity};

use crate::config::{Position, Problem, Warning, parse_duration, schema};

/// Terminates TLS in front of TCP services.
///
/// Without a command it runs a demo: a certificate of its own, a small web server behind it, and the lines to try
/// it with.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(
    name = "ringlock",
    version,
    after_help = "Signals: SIGTERM drains and ends, SIGHUP reloads the configuration, SIGUSR1 reopens log files, SIGUSR2 begins and ends a profile (docs/profiling.md)."
)]
pub struct Args {
    /// What to do; the demo when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the gateway
    Run {
        /// Configuration file (TOML)
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
    },
    /// Tell everything for which `run` would refuse a configuration, and what is probably not meant
    ///
    /// Each message names file, line and key, what was found, what was expected and what to do. The exit code is 0
    /// when there is nothing to tell, 1 when `run` would refuse the configuration, 2 when there are only warnings and
    /// --strict is given.
    Check {
        /// Configuration file (TOML)
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
        /// Exit with code 2 when there are only warnings
        #[arg(long)]
        strict: bool,
    },
    /// Show the certificates that a configuration uses: names, how long they are valid, where they are used
    ///
    /// Also the CAs and revocation lists that clients are verified with. Reads what `run` would load; keys in tokens are not opened, so no
    /// PIN is used. What cannot be loaded comes first, then what ends first. The exit code is 1 when something cannot be loaded, and 2
    /// when --strict is given and something shown has expired, is not valid yet, or should have been renewed.
    Certs {
        /// Configuration file (TOML)
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show only what ends within this time, such as 30d, has expired, is not valid yet or cannot be loaded
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires_within: Option<Duration>,
        /// Exit with code 2 when something has expired, is not valid yet, or ends soon
        #[arg(long)]
        strict: bool,
    },
    /// Show what this processor is good at, measured, and what Ringlock will use of it
    ///
    /// Takes less than five seconds. The figures are those of one core that does nothing else: stop what else runs on this
    /// machine. With a configuration its `io`, `multibuffer` and `made_ahead` are used, otherwise "auto".
    Hw {
        /// Configuration file (TOML)
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keys in PKCS#11 tokens: see what is there, make keys, ask for certificates, try keys and measure them
    ///
    /// A PIN that is refused is not tried again.
    Keys {
        /// What about them.
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// About the configuration file
    Config {
        /// What about it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Hold keys and sign with them; started by ringlock itself
    #[command(hide = true)]
    Signer {
        /// Become this user
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Belong to this process, instead of to the one that starts it
        #[arg(long, value_name = "PID")]
        gateway: Option<u32>,
        /// What it signs with, for whoever looks at the list of processes
        module: Option<PathBuf>,
    },
    /// Start signers for a gateway that starts no programs any more; started by ringlock itself
    #[command(hide = true)]
    SignerLauncher {
        /// Whom to become first
        #[arg(long)]
        user: Option<String>,
        /// Signers may stay whom this process is
        #[arg(long)]
        itself: bool,
        /// Whom signers may become
        users: Vec<String>,
    },
}

/// What about keys in tokens.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum KeysCommand {
    /// Show tokens with the keys and certificates they hold
    ///
    /// Of a token whose PIN is not known only public objects. The exit code is 1 when a token cannot be read.
    List {
        /// Which tokens.
        #[command(flatten)]
        tokens: KeysTokens,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a key pair in a token, which it never leaves
    Generate {
        /// Which tokens.
        #[command(flatten)]
        tokens: KeysTokens,
        /// The token: the NAME of [keys.NAME], a label, or a pkcs11: URI
        #[arg(long, value_name = "NAME|URI")]
        key: Option<String>,
        /// Algorithm, with size or curve
        #[arg(long = "type", value_name = "TYPE")]
        kind: KeyType,
        /// CKA_LABEL, which no key of the token may have
        #[arg(long)]
        label: String,
        /// CKA_ID in hexadecimal digits, which no key of the token may have; random when absent
        #[arg(long, value_name = "HEX")]
        id: Option<String>,
    },
    /// Print a request for a certificate (PKCS#10), signed by a key in a token
    Csr {
        /// Which tokens.
        #[command(flatten)]
        tokens: KeysTokens,
        /// The key: a pkcs11: URI with object= or id=
        #[arg(long, value_name = "URI")]
        key: String,
        /// DNS names and IP addresses that the certificate is to have
        #[arg(long, required = true, num_args = 1.., value_name = "NAME")]
        name: Vec<String>,
        /// Subject, such as "CN=www.example.com,O=Example,C=DE"; by default the first name as CN
        #[arg(long)]
        subject: Option<String>,
        /// Write to this file, which must not exist, instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Have keys sign through the signer, as the gateway has them, and verify what they signed
    ///
    /// Every key of the configuration that is in a token or behind a signer, or the one of --key; with each scheme that key and token can. The
    /// exit code is 1 when one does not work.
    Test {
        /// Which tokens.
        #[command(flatten)]
        tokens: KeysTokens,
        /// The key: a pkcs11: URI with object= or id=
        #[arg(long, value_name = "URI")]
        key: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure signatures per second by number of sessions, and tell how many sessions to configure
    ///
    /// Three figures for each number: of the token by itself, through the signer, and through the signer with each signature verified. Stop
    /// what else uses the token and this machine.
    Bench {
        /// Which tokens.
        #[command(flatten)]
        tokens: KeysTokens,
        /// The key: a pkcs11: URI with object= or id=
        #[arg(long, value_name = "URI")]
        key: String,
        /// Signature scheme, such as ECDSA_NISTP256_SHA256; by default the best one of the key
        #[arg(long, value_name = "NAME")]
        scheme: Option<String>,
        /// Numbers of sessions
        #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,2,4,8,16,32",
            value_parser = clap::value_parser!(u32).range(1..=1024))]
        sessions: Vec<u32>,
        /// How long each figure is measured
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
        duration: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl KeysCommand {
    /// Which tokens it is about.
    #[must_use]
    pub fn tokens(&self) -> &KeysTokens {
        match self {
            KeysCommand::List { tokens, .. }
            | KeysCommand::Generate { tokens, .. }
            | KeysCommand::Csr { tokens, .. }
            | KeysCommand::Test { tokens, .. }
            | KeysCommand::Bench { tokens, .. } => tokens,
        }
    }
}

/// A time that is not zero, as in the configuration.
fn duration(text: &str) -> Result<Duration, &'static str> {
    match parse_duration(text)? {
        Duration::ZERO => Err("write how long it may take"),
        duration => Ok(duration),
    }
}

/// Which tokens: those of a configuration, or of one module.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct KeysTokens {
    /// Configuration file (TOML): the tokens of its [keys.NAME]
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["module", "token", "pin_source"])]
    pub config: Option<PathBuf>,
    /// PKCS#11 module
    #[arg(long, value_name = "PATH")]
    pub module: Option<PathBuf>,
    /// Token of the module, by its label or a pkcs11: URI
    #[arg(long, value_name = "LABEL|URI")]
    pub token: Option<String>,
    /// Where the PIN is: file:PATH or credential:NAME
    #[arg(long, value_name = "SOURCE")]
    pub pin_source: Option<String>,
}

/// Kinds of keys that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyType {
    /// ECDSA on P-256
    P256,
    /// ECDSA on P-384
    P384,
    /// RSA with 2,048 bits
    Rsa2048,
    /// RSA with 3,072 bits
    Rsa3072,
    /// RSA with 4,096 bits
    Rsa4096,
    /// Ed25519
    Ed25519,
}

/// What about the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Print its JSON Schema, for editors and other tools
    Schema,
}

/// What `ringlock config schema` prints: indented JSON and a newline.
#[must_use]
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

/// Exit code of `check`: 0 when the configuration is accepted, 1 when it is refused, 2 when `strict` and there are
/// warnings.
#[must_use]
pub fn check_exit_code(problems: &[Problem], warnings: &[Warning], strict: bool) -> u8 {
    if !problems.is_empty() {
        1
    } else if strict && !warnings.is_empty() {
        2
    } else {
        0
    }
}

/// How messages are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One line each, for log files and other programs.
    Plain,
    /// With the line of the file, for people.
    Terminal {
        /// With colours; false where `NO_COLOR` asks for none.
        colour: bool,
    },
}

/// Problems and warnings as text, problems first, each ending with a newline; empty when there are none.
///
/// [`Style::Terminal`] reads the files again to show their lines; of a file that seems to hold a key or a PIN none are.
#[must_use]
pub fn messages(problems: &[Problem], warnings: &[Warning], style: Style) -> String {
    let mut text = String::new();
    let mut files = BTreeMap::new();
    for problem in problems {
        let plain = format!("error: {problem}");
        let message = Message {
            severity: Severity::Error,
            position: problem.position.as_ref(),
            file: &problem.file,
            title: titled(
                &problem.key,
                &format!("found {}, expected {}", problem.found, problem.expected),
            ),
            remedy: &problem.remedy,
        };
        push_message(&mut text, &plain, &message, style, &mut files);
    }
    for warning in warnings {
        let plain = format!("warning: {warning}");
        let message = Message {
            severity: Severity::Warning,
            position: warning.position.as_ref(),
            file: &warning.file,
            title: titled(&warning.key, &warning.what),
            remedy: &warning.remedy,
        };
        push_message(&mut text, &plain, &message, style, &mut files);
    }
    text
}

/// The last line of `check`: what came of it.
#[must_use]
pub fn summary(file: &Path, problems: &[Problem], warnings: &[Warning]) -> String {
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    };
    let verdict = match (problems.len(), warnings.len()) {
        (0, 0) => "no errors, no warnings".to_owned(),
        (0, warnings) => format!("no errors, {}", count(warnings, "warning")),
        (errors, 0) => count(errors, "error"),
        (errors, warnings) => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
    };
    format!("{}: {verdict}\n", file.display())
}

struct Message<'m> {
    severity: Severity,
    position: Option<&'m Position>,
    file: &'m Path,
    title: String,
    remedy: &'m str,
}

fn titled(key: &str, what: &str) -> String {
    if key.is_empty() {
        what.to_owned()
    } else {
        format!("{key}: {what}")
    }
}

fn push_message<'m>(
    text: &mut String,
    plain: &str,
    message: &Message<'m>,
    style: Style,
    files: &mut BTreeMap<&'m Path, Option<String>>,
) {
    let snippet = match style {
        Style::Plain => None,
        Style::Terminal { colour } => {
            let source = files.entry(message.file).or_insert_with(|| showable_text(message.file));
            source
                .as_deref()
                .zip(message.position)
                .and_then(|(source, position)| graphical(message, source, position, colour))
        }
    };
    match snippet {
        Some(snippet) => text.push_str(&snippet),
        None => writeln!(text, "{plain}").expect("writing to a string does not fail"),
    }
}

/// The text of the file; `None` when it cannot be read, or when a line that is shown could hold a secret.
fn showable_text(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let secret = text.contains("PRIVATE KEY") || seems_to_hold_a_pin(&text);
    (!secret).then_some(text)
}

/// Whether something is called a PIN and is not evidently the place of one.
fn seems_to_hold_a_pin(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.match_indices("pin").any(|(start, _)| {
        let is_name = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
        let rest = text[start..].trim_start_matches(is_name).trim_start();
        rest.strip_prefix('=').is_some_and(|value| {
            let value = value.trim_start_matches([' ', '\t', '"', '\'']);
            !["file:", "credential:", "/"]
                .iter()
                .any(|place| value.starts_with(place))
        })
    })
}

/// `None` when the file has changed, so that the position is not in it any more.
fn graphical(message: &Message<'_>, source: &str, position: &Position, colour: bool) -> Option<String> {
    let value = source.get(position.span.clone())?;
    let first_line_bytes = value.lines().next().map_or(0, str::len);
    let mut diagnostic = MietteDiagnostic::new(message.title.clone()).with_severity(message.severity);
    diagnostic = diagnostic.with_help(message.remedy);
    diagnostic = diagnostic.with_label(LabeledSpan::new(None, position.span.start, first_line_bytes));
    let source = NamedSource::new(message.file.display().to_string(), source.to_owned());
    let theme = if colour {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let mut text = String::new();
    GraphicalReportHandler::new_themed(theme)
        .with_context_lines(1)
        .render_report(
            &mut text,
            miette::Report::new(diagnostic).with_source_code(source).as_ref(),
        )
        .ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::load;

    fn args(line: &[&str]) -> Result<Args, String> {
        Args::try_parse_from([&["ringlock"], line].concat()).map_err(|error| error.to_string())
    }

    fn command(line: &[&str]) -> Option<Command> {
        args(line).expect("it is legal").command
    }

    #[test]
    fn clap_finds_no_fault_in_the_definition() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_is_understood() {
        let config = || PathBuf::from("a.toml");
        assert_eq!(command(&[]), None);
        assert_eq!(
            command(&["run", "--config", "a.toml"]),
            Some(Command::Run { config: config() })
        );
        assert_eq!(
            command(&["check", "-c", "a.toml"]),
            Some(Command::Check {
                config: config(),
                strict: false
            })
        );
        assert_eq!(
            command(&["check", "--strict", "--config=a.toml"]),
            Some(Command::Check {
                config: config(),
                strict: true
            })
        );
        assert_eq!(
            command(&["hw"]),
            Some(Command::Hw {
                config: None,
                json: false
            })
        );
        assert_eq!(
            command(&["hw", "--json", "-c", "a.toml"]),
            Some(Command::Hw {
                config: Some(config()),
                json: true
            })
        );
        assert_eq!(
            command(&["signer", "--user", "keys", "a.so"]),
            Some(Command::Signer {
                user: Some("keys".to_owned()),
                gateway: None,
                module: Some("a.so".into())
            })
        );
        assert_eq!(
            command(&["signer-launcher", "--itself", "keys", "other"]),
            Some(Command::SignerLauncher {
                user: None,
                itself: true,
                users: vec!["keys".to_owned(), "other".to_owned()]
            })
        );
        assert_eq!(
            command(&["config", "schema"]),
            Some(Command::Config {
                command: ConfigCommand::Schema
            })
        );
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        for (line, named) in [
            (&["run"][..], "--config <FILE>"),
            (&["chekc"], "'check'"),
            (&["check", "--config", "a", "--strickt"], "'--strict'"),
            (&["config"], "schema"),
        ] {
            let error = args(line).expect_err("it is refused");
            assert!(error.contains(named), "{line:?}: {error}");
        }
        assert!(
            args(&["--version"])
                .expect_err("clap ends here")
                .contains(env!("CARGO_PKG_VERSION"))
        );
    }

    fn problem(file: &Path) -> Vec<Problem> {
        load(file).expect_err("it is refused").as_slice().to_vec()
    }

    fn warning() -> Warning {
        Warning {
            file: "ringlock.toml".into(),
            position: None,
            key: "global.admin".to_owned(),
            what: "it is open".to_owned(),
            remedy: "close it".to_owned(),
        }
    }

    #[test]
    fn exit_codes_of_check() {
        let problems = problem(Path::new("/nonexistent"));
        assert_eq!(check_exit_code(&[], &[], true), 0);
        assert_eq!(check_exit_code(&[], &[warning()], false), 0);
        assert_eq!(check_exit_code(&[], &[warning()], true), 2);
        assert_eq!(check_exit_code(&problems, &[], false), 1);
        assert_eq!(check_exit_code(&problems, &[warning()], true), 1);
    }

    #[test]
    fn plain_messages_have_one_line_each_and_a_summary() {
        let problems = problem(Path::new("/nonexistent"));
        assert_eq!(
            messages(&problems, &[warning()], Style::Plain),
            "error: /nonexistent: found that it cannot be read (No such file or directory (os error 2)), \
             expected a TOML file; check the path and its permissions\n\
             warning: ringlock.toml: global.admin: it is open; close it\n"
        );
        let file = Path::new("a.toml");
        assert_eq!(summary(file, &problems, &[warning()]), "a.toml: 1 error, 1 warning\n");
        assert_eq!(
            summary(file, &[problems.clone(), problems].concat(), &[]),
            "a.toml: 2 errors\n"
        );
        assert_eq!(
            summary(file, &[], &[warning(), warning()]),
            "a.toml: no errors, 2 warnings\n"
        );
        assert_eq!(summary(file, &[], &[]), "a.toml: no errors, no warnings\n");
    }

    #[test]
    fn a_terminal_gets_the_line_of_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ringlock.toml");
        std::fs::write(&file, "listener = []\n\n[global]\nio = \"kqueue\"\n").expect("written");
        let problems = problem(&file);
        let text = messages(&problems, &[], Style::Terminal { colour: false });
        assert!(text.contains("global.io: found \"kqueue\", expected"), "{text}");
        assert!(text.contains("io = \"kqueue\"\n"), "{text}");
        assert!(text.contains("help: write one of them"), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours: {text}");
        assert!(messages(&problems, &[], Style::Terminal { colour: true }).contains('\u{1b}'));

        std::fs::write(&file, "").expect("the file changes meanwhile");
        let text = messages(&problems[1..], &[], Style::Terminal { colour: false });
        assert_eq!(text, messages(&problems[1..], &[], Style::Plain));
    }

    #[test]
    fn a_terminal_gets_no_line_that_could_hold_a_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ringlock.toml");
        for (secret, found) in [
            (
                "identity = [{ name = \"a\", certificate = \"c\", key = \"pkcs11:?pin-value=1234\" }]\n",
                "a pkcs11: URI",
            ),
            (
                "identity = [{ name = \"a\", certificate = \"c\", key = \"pkcs11:?pin-source=1234\" }]\n",
                "a PIN itself",
            ),
            ("[keys.edge]\nmodule = \"a\"\npin_source = \"1234\"\n", "a PIN itself"),
            ("[keys.edge]\nmodule = \"a\"\npin_source = 1234\n", "no string"),
            ("[keys.edge]\nmodule = \"a\"\nPIN = \"1234\"\n", "an unknown key"),
        ] {
            std::fs::write(&file, secret).expect("written");
            let problems = problem(&file);
            let text = messages(&problems, &[], Style::Terminal { colour: false });
            assert!(text.contains(found) && !text.contains("1234"), "{text}");
        }
        std::fs::write(&file, "[keys.edge]\nmodule = 7\npin_source = \"file:pin\"\n").expect("written");
        let text = messages(&problem(&file), &[], Style::Terminal { colour: false });
        assert!(text.contains("module = 7\n"), "the place of a PIN is no secret: {text}");
    }

    #[test]
    fn the_schema_is_printed_as_json() {
        let value: serde_json::Value = serde_json::from_str(&schema_text()).expect("it is JSON");
        assert_eq!(value, schema());
    }
}

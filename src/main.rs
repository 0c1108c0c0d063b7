//! The gateway's command line: `run`, `check`, `certs`, `hw`, `keys`, `config schema`, and the demo.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ringlock::cli::{self, Args, Command, ConfigCommand, KeysCommand, Style};
use ringlock::config::{self, Problem, Warning};
use ringlock::control::admin::Admin;
use ringlock::control::certs::Inventory;
use ringlock::control::hardware::{Hardware, Settings};
use ringlock::control::keys::{self, Answer};
use ringlock::control::log::Logging;
use ringlock::control::{
    self,
    demo::{self, Demo},
};
use ringlock::server::{self, Inherited, Server, StartError, host};
use ringlock::timestamp::Timestamp;
use ringlock_hsm::launcher::{self, Whom};
use ringlock_hsm::signer;

fn main() -> ExitCode {
    match Args::parse().command {
        None => run_demo(),
        Some(Command::Run { config }) => run(&config, None),
        Some(Command::Check { config, strict }) => check(&config, strict),
        Some(Command::Certs {
            config,
            json,
            expires_within,
            strict,
        }) => certs(&config, json, expires_within, strict),
        Some(Command::Hw { config, json }) => hardware(config.as_deref(), json),
        Some(Command::Keys { command }) => keys(&command),
        Some(Command::Config {
            command: ConfigCommand::Schema,
        }) => print(&cli::schema_text()),
        Some(Command::Signer { user, gateway, .. }) => signer::main(user.as_deref(), gateway),
        Some(Command::SignerLauncher { user, itself, users }) => launcher::main(&Whom {
            process: user,
            itself,
            users,
        }),
    }
}

fn run_demo() -> ExitCode {
    match demo::prepare() {
        // The demo's files and its origin go when it is dropped, after the gateway has ended.
        Ok(demo) => run(&demo.configuration(), Some(&demo)),
        Err(error) => fail(&error),
    }
}

/// The gateway, until a signal or a failure ends it. The demo's banner is printed once it listens.
fn run(path: &Path, demo: Option<&Demo>) -> ExitCode {
    // First, while every other descriptor is still closed.
    let inherited = Inherited::take();
    let (config, warnings) = match config::load(path) {
        Ok(loaded) => loaded,
        Err(problems) => return refuse(problems.as_slice(), &[]),
    };
    let mut logging = match Logging::install(&config.global.log) {
        Ok(logging) => logging,
        Err(error) => return fail(&error),
    };
    for warning in warnings.iter().chain(&host::warnings(&config)) {
        tracing::warn!("{warning}");
    }
    let admin = match config.global.admin.as_ref().map(Admin::bind).transpose() {
        Ok(admin) => admin,
        Err(error) => return fail(&error),
    };
    let file = path.to_owned();
    let loader = Box::new(move || config::load(&file).map(|(config, _)| config));
    let temporary = demo.map(Demo::folder);
    let server = match Server::start(config, inherited, loader, &mut logging, temporary) {
        Ok(server) => server,
        Err(StartError::Problems(problems)) => return refuse(&problems, &[]),
        Err(error @ (StartError::Thread(_) | StartError::Confine(_) | StartError::Memory(_))) => return fail(&error),
    };
    for warning in server.snapshot().warnings(Timestamp::now().0) {
        tracing::warn!("{warning}");
    }
    if let Some(demo) = demo {
        print(&demo.banner());
    }
    control::run(server, admin, &mut logging).unwrap_or_else(|error| fail(&error))
}

fn check(path: &Path, strict: bool) -> ExitCode {
    let (problems, warnings) = match config::load(path) {
        Err(problems) => (problems.as_slice().to_vec(), Vec::new()),
        Ok((config, mut warnings)) => {
            warnings.extend(host::warnings(&config));
            match server::load(config) {
                Err(problems) => (problems, warnings),
                Ok(loaded) => {
                    warnings.extend(loaded.snapshot.warnings(Timestamp::now().0));
                    (Vec::new(), warnings)
                }
            }
        }
    };
    show(&problems, &warnings);
    print(&cli::summary(path, &problems, &warnings));
    ExitCode::from(cli::check_exit_code(&problems, &warnings, strict))
}

/// The certificates that a configuration uses.
fn certs(path: &Path, json: bool, within: Option<Duration>, strict: bool) -> ExitCode {
    let config = match config::load(path) {
        Ok((config, _)) => config,
        Err(problems) => return refuse(problems.as_slice(), &[]),
    };
    let mut inventory = Inventory::of_config(&config, Timestamp::now().0, within);
    if within.is_some() {
        inventory.keep_due();
    }
    let text = if json { inventory.json() } else { inventory.to_string() };
    for problem in inventory.problems() {
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(std::io::stderr(), "error: {problem}");
    }
    match print(&text) {
        ExitCode::SUCCESS => ExitCode::from(inventory.exit_code(strict)),
        code => code,
    }
}

/// What this machine is good at; with the settings of a file, or with "auto".
fn hardware(config: Option<&Path>, json: bool) -> ExitCode {
    let settings = match config.map(|path| config::load(path).map(|(config, _)| Settings::of(path, &config))) {
        None => Settings::default(),
        Some(Ok(settings)) => settings,
        Some(Err(problems)) => return refuse(problems.as_slice(), &[]),
    };
    match Hardware::measure(settings) {
        Ok(hardware) if json => print(&hardware.json()),
        Ok(hardware) => print(&hardware.to_string()),
        Err(problems) => refuse(&problems, &[]),
    }
}

/// What an operator does with keys in tokens.
fn keys(command: &KeysCommand) -> ExitCode {
    let config = match command.tokens().config.as_deref().map(config::load) {
        None => None,
        Some(Ok((config, _))) => Some(config),
        Some(Err(problems)) => return refuse(problems.as_slice(), &[]),
    };
    match keys::run(command, config.as_ref()) {
        Ok(Answer { text, whole }) => match print(&text) {
            ExitCode::SUCCESS if !whole => ExitCode::FAILURE,
            code => code,
        },
        Err(error) => fail(&error),
    }
}

fn refuse(problems: &[Problem], warnings: &[Warning]) -> ExitCode {
    show(problems, warnings);
    ExitCode::FAILURE
}

fn show(problems: &[Problem], warnings: &[Warning]) {
    let style = if std::io::stderr().is_terminal() {
        Style::Terminal {
            colour: std::env::var_os("NO_COLOR").is_none(),
        }
    } else {
        Style::Plain
    };
    // Nobody is left to tell when standard error is closed.
    let _ = std::io::stderr().write_all(cli::messages(problems, warnings, style).as_bytes());
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "ringlock: {error}");
    ExitCode::FAILURE
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

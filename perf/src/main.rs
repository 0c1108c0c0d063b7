//! `ringlock-perf`: see [`ringlock_perf`]. Exit status 0: measured and clean; 1: no result; 2: a result, but
//! connections failed.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use ringlock_perf::args::{Cli, Command, OriginArgs, RunArgs, ScenariosArgs};
use ringlock_perf::attack::args::AttackArgs;
use ringlock_perf::attack::run_until_signal;
use ringlock_perf::origin::Origin;
use ringlock_perf::report::{command, html};
use ringlock_perf::{PerfError, run, scenario};
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    let read = Cli::try_parse().map_err(PerfError::CommandLine);
    let done = read.and_then(|cli| perform(&cli.command));
    done.unwrap_or_else(|error| say(&error))
}

/// With standard error gone there is nowhere left to say it.
fn say(error: &PerfError) -> ExitCode {
    if let PerfError::CommandLine(error) = error {
        let _ = error.print();
        // Help and version come the same way, and go to standard output.
        return ExitCode::from(u8::from(error.use_stderr()));
    }
    let _ = writeln!(io::stderr(), "ringlock-perf: {error}");
    ExitCode::from(1)
}

fn perform(command: &Command) -> Result<ExitCode, PerfError> {
    match command {
        Command::Run(args) => run_scenario(args),
        Command::Scenarios(args) => scenarios(args),
        Command::Origin(args) => serve(args),
        Command::Attack(args) => attack(args),
        Command::Report(args) => print(&command::report(args)?).map(|()| ExitCode::SUCCESS),
        Command::Handshake(_)
        | Command::Resume(_)
        | Command::Echo(_)
        | Command::Http(_)
        | Command::Bulk(_)
        | Command::Idle(_) => measure(command, None),
    }
}

fn run_scenario(args: &RunArgs) -> Result<ExitCode, PerfError> {
    measure(&scenario::read(args)?, Some(&args.scenario))
}

fn scenarios(args: &ScenariosArgs) -> Result<ExitCode, PerfError> {
    match &args.name {
        None => print(&scenario::list())?,
        Some(name) => print(scenario::built_in(name)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(command: &Command, scenario: Option<&str>) -> Result<ExitCode, PerfError> {
    let client = command.client();
    let file = client.and_then(|client| client.html.as_deref());
    file.map_or(Ok(()), check_writable)?;
    let mut report = run(command)?;
    report.setting.scenario = scenario.map(str::to_owned);
    let json = client.is_some_and(|client| client.json);
    let status = print_result(json.then(|| report.to_json()), &report, report.is_clean())?;
    if let Some(file) = file {
        let label = scenario.unwrap_or(&report.work).to_owned();
        let page = html::page(&[(label, report)])?;
        fs::write(file, page).map_err(|source| PerfError::Io {
            what: format!("write {}", file.display()),
            source,
        })?;
    }
    Ok(status)
}

/// Before a run that may take long. What is in the file stays until there is something to put in its place.
fn check_writable(file: &Path) -> Result<(), PerfError> {
    let opened = OpenOptions::new().append(true).create(true).open(file);
    opened.map(drop).map_err(|error| PerfError::Flag {
        flag: "--html",
        found: file.display().to_string(),
        expected: format!("a file that can be written ({error})"),
    })
}

fn attack(args: &AttackArgs) -> Result<ExitCode, PerfError> {
    let report = run_until_signal(args)?;
    print_result(args.json.then(|| report.to_json()), &report, report.is_clean())
}

/// Says on standard error when it listens and on standard output, at the end, what it did.
fn serve(args: &OriginArgs) -> Result<ExitCode, PerfError> {
    args.check()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).map_err(|source| PerfError::Io {
            what: "handle signals".to_owned(),
            source,
        })?;
    }
    let mut origin = Origin::new(args)?;
    // Who started us may wait for this line; if nobody listens, that is no reason not to serve.
    let _ = writeln!(io::stderr(), "listening on {}", origin.address());
    let report = origin.run(&stop)?;
    print(&format!("{}\n", report.to_json()))?;
    Ok(ExitCode::SUCCESS)
}

fn print_result(json: Option<String>, text: &impl Display, is_clean: bool) -> Result<ExitCode, PerfError> {
    print(&json.map_or_else(|| text.to_string(), |json| json + "\n"))?;
    Ok(ExitCode::from(if is_clean { 0 } else { 2 }))
}

fn print(text: &str) -> Result<(), PerfError> {
    let written = io::stdout().write_all(text.as_bytes());
    written.map_err(|source| PerfError::Io {
        what: "write the report".to_owned(),
        source,
    })
}

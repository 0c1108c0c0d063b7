//! `ringlock-perf`: see [`ringlock_perf`]. Exit status 0: measured and clean; 1: no result; 2: a result, but
//! connections failed.

use std::fs;
use std::io::{self, Write};
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
    let command = Cli::parse().command;
    perform(&command).unwrap_or_else(|error| {
        if let PerfError::CommandLine(error) = error {
            error.exit();
        }
        // With standard error gone there is nowhere left to say it.
        let _ = writeln!(io::stderr(), "ringlock-perf: {error}");
        ExitCode::from(1)
    })
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
    let mut report = run(command)?;
    report.setting.scenario = scenario.map(str::to_owned);
    let client = command.client();
    if let Some(file) = client.and_then(|client| client.html.as_ref()) {
        let label = scenario.unwrap_or(&report.work).to_owned();
        let page = html::page(&[(label, report.clone())])?;
        fs::write(file, page).map_err(|source| PerfError::Io {
            what: format!("write {}", file.display()),
            source,
        })?;
    }
    let json = client.is_some_and(|client| client.json);
    print(&if json {
        format!("{}\n", report.to_json())
    } else {
        report.to_string()
    })?;
    Ok(ExitCode::from(if report.is_clean() { 0 } else { 2 }))
}

fn attack(args: &AttackArgs) -> Result<ExitCode, PerfError> {
    let report = run_until_signal(args)?;
    print(&if args.json {
        format!("{}\n", report.to_json())
    } else {
        report.to_string()
    })?;
    Ok(ExitCode::from(if report.is_clean() { 0 } else { 2 }))
}

/// Says on standard error when it listens and on standard output, at the end, what it did.
fn serve(args: &OriginArgs) -> Result<ExitCode, PerfError> {
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

fn print(text: &str) -> Result<(), PerfError> {
    let written = io::stdout().write_all(text.as_bytes());
    written.map_err(|source| PerfError::Io {
        what: "write the report".to_owned(),
        source,
    })
}

//! The gateway's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_default();
    let path = std::path::PathBuf::from(path);
    let (config, _) = ringlock::config::load(&path).unwrap();
    let mut logging = ringlock::control::log::Logging::install(&config.global.log).unwrap();
    let admin = config
        .global
        .admin
        .as_ref()
        .map(|a| ringlock::control::admin::Admin::bind(a).unwrap());
    let loader = Box::new(move || ringlock::config::load(&path).map(|(c, _)| c).map_err(|p| p.to_string()));
    let server = ringlock::server::Server::start(config, loader, logging.lines_lost()).unwrap();
    ringlock::control::run(server, admin, &mut logging).unwrap()
}

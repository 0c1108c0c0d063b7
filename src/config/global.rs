//! `[global]`, `[global.log]` and `[crypto]`.

use std::num::NonZeroUsize;

use toml::de::DeValue;

use super::address::{self, Taken};
use super::keys::CPUS_MAX;
use super::ocsp;
use super::read::{Item, Refusal, Report, Table, choice, flag, parsed, path, share, whole_number};
use super::units::duration;
use super::{ConnectionLog, Crypto, GivenUp, Global, Io, Log, LogFormat, LogLevel, MadeAhead, Multibuffer, Workers};

/// `[global]`
pub(super) fn read(table: &mut Table<'_, '_>, taken: &mut Taken) -> Option<Global> {
    let workers = table.read("workers", workers);
    let io = table.read(
        "io",
        choice(&[("auto", Io::Auto), ("io_uring", Io::IoUring), ("epoll", Io::Epoll)]),
    );
    let admin = table.read_optional("admin", |report, item| address::admin(report, taken, item));
    let drain_timeout = table.read("drain_timeout", duration);
    let user = table.read_optional("user", parsed(|text| Ok(text.to_owned())));
    let group = table.read_optional("group", parsed(|text| Ok(text.to_owned())));
    if table.has("group") && !table.has("user") {
        let at = table.at("group");
        let what = "it has no effect: the process does not become another user";
        table.report.warn(&at, what, "set user, or remove it");
    }
    let given_up = GivenUp {
        capabilities: !unsafe_flag(table, "unsafe_keep_capabilities", "the process keeps its capabilities"),
        dumps: !unsafe_flag(
            table,
            "unsafe_dumpable",
            "core dumps and debuggers of the same user get private keys",
        ),
        files: !unsafe_flag(
            table,
            "unsafe_no_landlock",
            "all files of the user stay within reach of the gateway",
        ),
        system_calls: !unsafe_flag(table, "unsafe_no_seccomp", "the gateway keeps all system calls"),
    };
    let watch_files = table.read("watch_files", flag);
    let stapling = ocsp::read_settings(table);
    let log = table.section("log", read_log);
    Some(Global {
        workers: workers?,
        io: io?,
        admin: admin?,
        drain_timeout: drain_timeout?,
        user: user?,
        group: group?,
        given_up,
        watch_files: watch_files?,
        stapling: stapling?,
        log: log?,
    })
}

/// Whether protection is switched off, which is warned of.
fn unsafe_flag(table: &mut Table<'_, '_>, name: &'static str, what: &str) -> bool {
    let at = table.at(name);
    // One that is no flag has been refused.
    let set = table.read(name, flag).unwrap_or(false);
    if set {
        table.report.warn(&at, what, "remove it when it is not needed any more");
    }
    set
}

fn read_log(table: &mut Table<'_, '_>) -> Option<Log> {
    let format = table.read(
        "format",
        choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
    );
    let level = table.read(
        "level",
        choice(&[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
        ]),
    );
    let file = table.read_optional("file", path);
    let connections = table.read(
        "connections",
        choice(&[
            ("off", ConnectionLog::Off),
            ("failures", ConnectionLog::Failures),
            ("all", ConnectionLog::All),
        ]),
    );
    let connections_sample = table.read("connections_sample", share);
    if table.has("connections_sample") && connections.is_some_and(|log| log != ConnectionLog::All) {
        let at = table.at("connections_sample");
        let what = "it has no effect: successful connections are not logged";
        table.report.warn(&at, what, "set connections = \"all\" or remove it");
    }
    Some(Log {
        format: format?,
        level: level?,
        file: file?,
        connections: connections?,
        connections_sample: connections_sample?,
    })
}

/// `[crypto]`
pub(super) fn read_crypto(table: &mut Table<'_, '_>) -> Option<Crypto> {
    let multibuffer = table.read("multibuffer", |report, item| {
        let word = item.value.as_str().map(str::to_owned);
        match word.as_deref() {
            Some("auto") => Some(Multibuffer::Auto),
            Some("off") => Some(Multibuffer::Off),
            Some(_) | None => path(report, item).map(Multibuffer::Library),
        }
    });
    let made_ahead = table.read(
        "made_ahead",
        choice(&[
            ("auto", MadeAhead::Auto),
            ("on", MadeAhead::On),
            ("off", MadeAhead::Off),
        ]),
    );
    Some(Crypto {
        multibuffer: multibuffer?,
        made_ahead: made_ahead?,
    })
}

fn workers(report: &mut Report, item: Item<'_>) -> Option<Workers> {
    if matches!(item.value, DeValue::Integer(_)) {
        let count = whole_number(&item.value)
            .filter(|&count| count <= CPUS_MAX)
            .and_then(|count| NonZeroUsize::new(usize::try_from(count).ok()?));
        if count.is_none() {
            report.refuse_value(&item, format!("write a number from 1 to {CPUS_MAX}"));
        }
        return count.map(Workers::Count);
    }
    let at = item.at.clone();
    let expected = item.kind.expected();
    let workers = parsed(|text| match text {
        "auto" => Ok(Workers::Auto),
        list => parse_cpus(list)
            .map(Workers::Cpus)
            .map_err(|remedy| Refusal::new(expected, remedy)),
    })(report, item)?;
    if let Workers::Cpus(cpus) = &workers
        && let [cpu] = cpus.as_slice()
        && *cpu > 0
    {
        let what = format!("this is one worker, on processor {cpu}");
        report.warn(&at, what, format!("for {cpu} workers write {cpu} without quotes"));
    }
    Some(workers)
}

/// A list such as "0-3,8" in its own order, or the remedy.
fn parse_cpus(text: &str) -> Result<Vec<usize>, String> {
    const FORM: &str = "write processors and ranges with commas between, such as \"0-3,8\"";
    let number = |text: &str| -> Result<usize, String> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits {
            return Err(FORM.to_owned());
        }
        let number = text
            .parse::<u64>()
            .ok()
            .filter(|&number| number < CPUS_MAX)
            .map(usize::try_from);
        match number {
            Some(Ok(number)) => Ok(number),
            Some(Err(_)) | None => Err(format!("write processor numbers below {CPUS_MAX}")),
        }
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first.trim())?, number(last.trim())?);
        if first > last {
            return Err(format!("write the range as {last}-{first}"));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("name processor {cpu} once"));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists() {
        assert_eq!(parse_cpus("0-3,8"), Ok(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_cpus("5, 1-2"), Ok(vec![5, 1, 2]));
        assert_eq!(parse_cpus("1023"), Ok(vec![1023]));
        let form = "write processors and ranges with commas between, such as \"0-3,8\"";
        for (text, remedy) in [
            ("two", form),
            ("", form),
            ("1,", form),
            ("1-", form),
            ("-1", form),
            ("+1", form),
            ("3-1", "write the range as 1-3"),
            ("0-3,2", "name processor 2 once"),
            ("1024", "write processor numbers below 1024"),
            ("99999999999999999999", "write processor numbers below 1024"),
        ] {
            assert_eq!(parse_cpus(text), Err(remedy.to_owned()), "{text}");
        }
    }
}

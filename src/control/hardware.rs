//! What this machine is good at and what Ringlock will use of it, as `ringlock hw` shows it: as a table or as JSON.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::{Config, Crypto, Io, MadeAhead, Multibuffer, Places, Problem};
use crate::crypto::batch::LANES;
use crate::crypto::cpu::{Cpu, Mask, Processor, has_hypervisor};
use crate::crypto::measure::{self, RECORD_BYTES};
use crate::crypto::provider::auto_suites;
use crate::server::host;

/// What the configuration says that concerns the machine.
#[derive(Clone, Debug)]
pub struct Settings {
    file: Option<PathBuf>,
    io: Io,
    crypto: Crypto,
    places: Places,
}

impl Default for Settings {
    /// "auto".
    fn default() -> Self {
        Settings {
            file: None,
            io: Io::Auto,
            crypto: Crypto {
                multibuffer: Multibuffer::Auto,
                made_ahead: MadeAhead::Auto,
            },
            places: Places::default(),
        }
    }
}

impl Settings {
    /// Those of a configuration that came from `file`.
    #[must_use]
    pub fn of(file: &Path, config: &Config) -> Settings {
        Settings {
            file: Some(file.to_owned()),
            io: config.global.io,
            crypto: config.crypto.clone(),
            places: config.places.clone(),
        }
    }

    fn shown(&self) -> ShownSettings {
        ShownSettings {
            file: self.file.clone(),
            io: match self.io {
                Io::Auto => "auto",
                Io::IoUring => "io_uring",
                Io::Epoll => "epoll",
            },
            made_ahead: match self.crypto.made_ahead {
                MadeAhead::Auto => "auto",
                MadeAhead::On => "on",
                MadeAhead::Off => "off",
            },
            multibuffer: match &self.crypto.multibuffer {
                Multibuffer::Auto => "auto".to_owned(),
                Multibuffer::Off => "off".to_owned(),
                Multibuffer::Library(path) => path.display().to_string(),
            },
        }
    }
}

/// Everything that `ringlock hw` says. All times are those of one operation that nothing disturbs, in microseconds.
#[derive(Debug, Serialize)]
pub struct Hardware {
    processor: ShownProcessor,
    /// Nothing when the variable is not set.
    mask: Option<ShownMask>,
    kernel: String,
    settings: ShownSettings,
    driver: Choice,
    library: Library,
    operations: Vec<Operation>,
    suites: Vec<Suite>,
    uses: Uses,
    /// What a start pays for choosing the driver, checking the library and measuring its break-evens.
    start_ms: f64,
    /// How long all of this took.
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct ShownProcessor {
    architecture: &'static str,
    /// As the kernel calls it, where it does.
    name: Option<String>,
    /// Nothing where it cannot be told.
    hypervisor: Option<bool>,
    features: Vec<Feature>,
}

#[derive(Debug, Serialize)]
struct Feature {
    name: &'static str,
    present: bool,
    serves: &'static str,
}

#[derive(Debug, Serialize)]
struct ShownMask {
    variable: &'static str,
    value: String,
    hides: Vec<&'static str>,
    effect: String,
}

#[derive(Debug, Serialize)]
struct ShownSettings {
    file: Option<PathBuf>,
    io: &'static str,
    made_ahead: &'static str,
    multibuffer: String,
}

#[derive(Debug, Serialize)]
struct Choice {
    name: &'static str,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Library {
    /// Nothing when it is not used.
    path: Option<PathBuf>,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Operation {
    name: &'static str,
    kind: &'static str,
    alone_us: f64,
    /// What is left when the rest was made ahead.
    left_us: Option<f64>,
    batch: Option<Batch>,
}

#[derive(Debug, Serialize)]
struct Batch {
    call_us: f64,
    /// Of a call that is full.
    operation_us: f64,
    break_even: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Suite {
    name: String,
    seal_us: f64,
    seal_gb_per_s: f64,
    open_us: f64,
    open_gb_per_s: f64,
    derive_us: f64,
}

/// What Ringlock makes of it.
#[derive(Debug, Serialize)]
struct Uses {
    driver: &'static str,
    engine: String,
    made_ahead: String,
    /// Operations that are computed together, and from how many on.
    together: Vec<Together>,
    /// In the order of "auto".
    suites: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Together {
    name: &'static str,
    from: usize,
}

impl Hardware {
    /// Looks, and measures for a few seconds.
    ///
    /// # Errors
    /// What the settings ask for by name and is not there.
    pub fn measure(settings: Settings) -> Result<Hardware, Vec<Problem>> {
        let start = Instant::now();
        let equipment = host::equipment(settings.io, &settings.crypto, &settings.places)?;
        let start_ms = milliseconds(start.elapsed());
        let processor = Processor::detect();
        let operations: Vec<Operation> = measure::operations(&equipment.engine)
            .into_iter()
            .map(Operation::of)
            .collect();
        let suites = measure::suites().into_iter().map(Suite::of).collect();
        let together = operations.iter().filter_map(|operation| {
            let from = operation.batch.as_ref()?.break_even?;
            Some(Together {
                name: operation.name,
                from,
            })
        });
        Ok(Hardware {
            processor: ShownProcessor::of(processor),
            mask: Mask::from_environment().map(|mask| ShownMask {
                variable: Mask::VARIABLE,
                value: mask.value().to_owned(),
                hides: mask.hides(processor),
                effect: mask.effect(processor),
            }),
            kernel: kernel(),
            settings: settings.shown(),
            uses: Uses {
                driver: equipment.driver.name(),
                engine: equipment.engine.to_string(),
                made_ahead: equipment.engine.ahead().to_string(),
                together: together.collect(),
                suites: auto_suites(Cpu::detect()).into_iter().map(suite_name).collect(),
            },
            driver: Choice {
                name: equipment.driver.name(),
                reason: equipment.reason,
            },
            library: Library {
                path: equipment.engine.library().map(|library| library.path().to_owned()),
                reason: equipment.engine_reason,
            },
            operations,
            suites,
            start_ms,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// For other programs: indented JSON and a newline.
    #[must_use]
    pub fn json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("numbers and text are JSON");
        json + "\n"
    }
}

impl ShownProcessor {
    fn of(processor: Processor) -> ShownProcessor {
        let features = processor.features().into_iter().map(|feature| Feature {
            name: feature.name,
            present: feature.present,
            serves: feature.serves,
        });
        ShownProcessor {
            architecture: std::env::consts::ARCH,
            name: processor_name(),
            hypervisor: has_hypervisor(),
            features: features.collect(),
        }
    }
}

impl Operation {
    fn of(measured: measure::Operation) -> Operation {
        Operation {
            name: measured.name,
            kind: measured.kind,
            alone_us: microseconds(measured.alone),
            left_us: measured.left.map(microseconds),
            batch: measured.batch.map(|batch| Batch {
                call_us: microseconds(batch.call),
                operation_us: microseconds(batch.call) / LANES as f64,
                break_even: batch.break_even,
            }),
        }
    }
}

impl Suite {
    fn of(measured: measure::Suite) -> Suite {
        let rate = |time: Duration| RECORD_BYTES as f64 / time.as_secs_f64() / 1e9;
        Suite {
            name: suite_name(measured.name),
            seal_us: microseconds(measured.seal),
            seal_gb_per_s: rate(measured.seal),
            open_us: microseconds(measured.open),
            open_gb_per_s: rate(measured.open),
            derive_us: microseconds(measured.derive),
        }
    }
}

fn suite_name(suite: rustls::CipherSuite) -> String {
    suite.as_str().expect("a suite of ours").to_owned()
}

fn kernel() -> String {
    let uname = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    format!("{} {}", part(uname.sysname()), part(uname.release()))
}

fn processor_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Three digits, or those before the point.
fn figure(number: f64) -> String {
    let decimals = match number {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{number:.decimals$}")
}

/// Nothing is a dash.
fn optional(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), figure)
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.machine(f)?;
        self.operations(f)?;
        self.records(f)?;
        self.uses(f)
    }
}

/// The parts of the table.
impl Hardware {
    fn machine(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ShownProcessor {
            architecture,
            name,
            hypervisor,
            features,
        } = &self.processor;
        let name = name.as_deref().unwrap_or("unknown");
        let hypervisor = match hypervisor {
            Some(true) => "under a hypervisor",
            Some(false) => "no hypervisor",
            None => "this architecture does not tell of a hypervisor",
        };
        writeln!(f, "Processor      {name} ({architecture}), {hypervisor}")?;
        for Feature { name, present, serves } in features {
            let has = if *present { "yes" } else { "no" };
            writeln!(f, "  {name:<16} {has:<4} {serves}")?;
        }
        match &self.mask {
            Some(mask) => writeln!(f, "WARNING        {} is set: {}", mask.variable, mask.effect)?,
            None => writeln!(f, "Masked         nothing, {} is not set", Mask::VARIABLE)?,
        }
        let ShownSettings {
            file,
            io,
            made_ahead,
            multibuffer,
        } = &self.settings;
        let file = file.as_ref().map_or_else(
            || "no configuration given".to_owned(),
            |file| file.display().to_string(),
        );
        writeln!(
            f,
            "Settings       io = \"{io}\", multibuffer = \"{multibuffer}\", made_ahead = \"{made_ahead}\" ({file})"
        )?;
        writeln!(
            f,
            "Driver         {}: {} ({})",
            self.driver.name, self.driver.reason, self.kernel
        )?;
        let used = if self.library.path.is_some() {
            "loaded"
        } else {
            "not used"
        };
        writeln!(f, "libcrypto_mb   {used}: {}", self.library.reason)
    }

    fn operations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<24} {:>9} {:>9} {:>9} {:>9} {:>11}",
            "Handshakes, µs", "alone", "ahead", "one of 8", "call", "break-even"
        )?;
        for kind in ["key exchange", "signature", "verification"] {
            writeln!(f, "  {kind}")?;
            for operation in self.operations.iter().filter(|operation| operation.kind == kind) {
                let batch = operation.batch.as_ref();
                let break_even = match batch {
                    None => "-".to_owned(),
                    Some(batch) => batch
                        .break_even
                        .map_or_else(|| "never".to_owned(), |count| count.to_string()),
                };
                writeln!(
                    f,
                    "    {:<20} {:>9} {:>9} {:>9} {:>9} {break_even:>11}",
                    operation.name,
                    figure(operation.alone_us),
                    optional(operation.left_us),
                    optional(batch.map(|batch| batch.operation_us)),
                    optional(batch.map(|batch| batch.call_us)),
                )?;
            }
        }
        Ok(())
    }

    fn records(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<32} {:>9} {:>7} {:>9} {:>7} {:>9}",
            "Records of 16 KiB", "seal µs", "GB/s", "open µs", "GB/s", "secret µs"
        )?;
        for suite in &self.suites {
            writeln!(
                f,
                "  {:<30} {:>9} {:>7} {:>9} {:>7} {:>9}",
                suite.name,
                figure(suite.seal_us),
                figure(suite.seal_gb_per_s),
                figure(suite.open_us),
                figure(suite.open_gb_per_s),
                figure(suite.derive_us),
            )?;
        }
        Ok(())
    }

    fn uses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nRinglock will therefore use")?;
        writeln!(f, "  driver       {}", self.uses.driver)?;
        let from = |together: &Together| format!("{} from {}", together.name, together.from);
        let together: Vec<String> = self.uses.together.iter().map(from).collect();
        match together.as_slice() {
            [] => writeln!(f, "  handshakes   {}", self.uses.engine)?,
            together => writeln!(f, "  handshakes   {}: {}", self.uses.engine, together.join(", "))?,
        }
        writeln!(f, "  made ahead   {}", self.uses.made_ahead)?;
        for (position, suite) in self.uses.suites.iter().enumerate() {
            let title = if position == 0 { "suites, auto" } else { "" };
            writeln!(f, "  {title:<12} {suite}")?;
        }
        writeln!(
            f,
            "\nMeasured in {:.1} s. A start takes {} ms to choose.",
            self.seconds,
            figure(self.start_ms)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let shown = [0.271_828, 2.5252, 25.2525, 252.52, 2525.25].map(figure);
        assert_eq!(shown, ["0.27", "2.53", "25.3", "253", "2525"]);
        assert_eq!(optional(None), "-");
    }
}

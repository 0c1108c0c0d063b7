//! What the gateway gives up once it has bound and opened what it needs, so that whoever takes it over has little: root and capabilities,
//! that others see its memory, files, system calls. docs/security.md tells operators.

mod reach;
mod system_calls;

use std::fmt;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};
use ringlock_hsm::sandbox::{self, SandboxError};

use self::reach::Reach;
use super::host::{self, DriverKind};
use crate::config::{Config, Isolation, Problem};
use crate::control::profile;

/// What is in force of each measure. Some need a second step, once all threads have been started.
#[derive(Debug)]
pub struct Confinement {
    capabilities: Measure,
    dumps: Measure,
    files: Measure,
    system_calls: Measure,
}

/// Whether something has been given up.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Measure {
    /// It has; by what, for people.
    InForce(String),
    /// It has not, and why.
    Off(&'static str),
}

impl Measure {
    fn is_in_force(&self) -> bool {
        match self {
            Measure::InForce(_) => true,
            Measure::Off(_) => false,
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::InForce(by) => f.write_str(by),
            Measure::Off(why) => write!(f, "off ({why})"),
        }
    }
}

const BY_KEY: &str = "an unsafe key of the configuration";
const MODULE_HERE: &str = "a PKCS#11 module runs in this process, and needs what only its maker knows";
const NOT_THERE: &str = "the kernel has none, or it is forbidden";

/// Why the gateway cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// What the configuration asks for cannot be had.
    #[error("{0}")]
    Problem(Problem),
    /// A measure that every kernel has.
    #[error("cannot give up rights: {0}; a sandbox around this process may forbid it")]
    Sandbox(#[from] SandboxError),
}

impl Confinement {
    /// Everything but system calls. Threads take over what the one that starts them has given up, so there is to be one only. The
    /// folder `temporary` is this process's own, to be removed at its end.
    ///
    /// # Errors
    /// There is no such user or group, or this process may not become it, or the kernel refuses.
    pub fn begin(config: &Config, temporary: Option<&Path>) -> Result<Confinement, ConfineError> {
        let given_up = config.global.given_up;
        if given_up.capabilities {
            sandbox::empty_bounding_set()?;
        }
        become_user(config).map_err(ConfineError::Problem)?;
        let capabilities = if given_up.capabilities {
            sandbox::drop_capabilities()?;
            Measure::InForce("none".into())
        } else {
            Measure::Off(BY_KEY)
        };
        let dumps = if given_up.dumps {
            // Last among those that concern the user: becoming another one changes it.
            sandbox::keep_memory_to_itself()?;
            Measure::InForce("no core dumps, no debuggers".into())
        } else {
            sandbox::show_memory()?;
            Measure::Off(BY_KEY)
        };
        sandbox::gain_no_rights()?;
        // As the user that takes profiles later, and while all files are within reach.
        profile::prepare();
        let files = if !given_up.files {
            Measure::Off(BY_KEY)
        } else if has_module_here(config) {
            Measure::Off(MODULE_HERE)
        } else {
            match Reach::of(config, temporary).enforce() {
                Ok(Some(abi)) => Measure::InForce(format!("Landlock ABI {abi}")),
                Ok(None) => Measure::Off(NOT_THERE),
                Err(error) => return Err(SandboxError::Landlock(error.to_string()).into()),
            }
        };
        Ok(Confinement {
            capabilities,
            dumps,
            files,
            system_calls: Measure::Off("not yet"),
        })
    }

    /// The rest, for all threads: those that need more system calls to begin with than later have to run by now.
    pub fn complete(&mut self, config: &Config, driver: DriverKind) {
        self.system_calls = if !config.global.given_up.system_calls {
            Measure::Off(BY_KEY)
        } else if has_module_here(config) {
            Measure::Off(MODULE_HERE)
        } else {
            match sandbox::keep_system_calls(system_calls::needed(driver)) {
                Ok(()) => Measure::InForce("seccomp".into()),
                // Containers may forbid it; the gateway is of use without.
                Err(_) => Measure::Off(NOT_THERE),
            }
        };
        let user = user_name(Uid::effective());
        let Confinement {
            capabilities,
            dumps,
            files,
            system_calls,
        } = self;
        tracing::info!(user, %capabilities, memory = %dumps, %files, %system_calls, "confined");
        if has_module_here(config) {
            tracing::warn!(
                "with isolation = \"thread\" neither files nor system calls are given up: use isolation = \"process\""
            );
        }
    }

    /// Each measure by name, and whether it is in force.
    #[must_use]
    pub fn in_force(&self) -> [(&'static str, bool); 4] {
        [
            ("capabilities", self.capabilities.is_in_force()),
            ("memory", self.dumps.is_in_force()),
            ("files", self.files.is_in_force()),
            ("system_calls", self.system_calls.is_in_force()),
        ]
    }

    /// Whether this process can still do what a new configuration asks for.
    ///
    /// # Errors
    /// Everything that it has given up.
    pub fn check(&self, config: &Config) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        if self.files.is_in_force() {
            problems.extend(reach::forbidden(config));
        }
        if self.files.is_in_force() || self.system_calls.is_in_force() {
            let here = config
                .tokens
                .iter()
                .filter(|token| token.isolation == Isolation::Thread);
            problems.extend(here.map(|token| {
                config.places.problem(
                    token.key("isolation"),
                    "\"thread\", for a module that could not work: this process has given up files and system calls",
                    "\"process\" in a configuration that comes with a reload",
                    "leave the key out, or restart the gateway",
                )
            }));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// What may be why files in folders could not be read: links that lead to where this process cannot read any more.
    #[must_use]
    pub fn links_out_of_reach(&self, config: &Config) -> Vec<Problem> {
        match self.files {
            Measure::InForce(_) => reach::forbidden_in_folders(config),
            Measure::Off(_) => Vec::new(),
        }
    }
}

fn has_module_here(config: &Config) -> bool {
    config.tokens.iter().any(|token| token.isolation == Isolation::Thread)
}

/// Becomes the user that the configuration names, for good.
fn become_user(config: &Config) -> Result<(), Problem> {
    let Some(name) = &config.global.user else { return Ok(()) };
    let user = host::find_user(name).map_err(|refusal| refusal.at(&config.places, "global.user"))?;
    let group = group(config)?;
    sandbox::become_user(&user, group).map_err(|error| {
        config.places.problem(
            "global.user",
            format!("\"{name}\", which this process may not become ({error})"),
            "a process started as root, or as that user",
            "start it so, or leave the key out",
        )
    })
}

/// The group that the configuration names.
///
/// # Errors
/// There is none of that name.
pub(super) fn group(config: &Config) -> Result<Option<Gid>, Problem> {
    let Some(name) = &config.global.group else {
        return Ok(None);
    };
    let found = match Group::from_name(name) {
        Ok(Some(group)) => return Ok(Some(group.gid)),
        Ok(None) => format!("\"{name}\""),
        Err(error) => format!("\"{name}\", which cannot be looked up ({error})"),
    };
    let remedy = format!("create it (groupadd --system {name}), or name another");
    Err(config
        .places
        .problem("global.group", found, "a group of this machine", remedy))
}

fn user_name(user: Uid) -> String {
    match User::from_uid(user) {
        Ok(Some(known)) => known.name,
        Ok(None) | Err(_) => user.to_string(),
    }
}

//! `[keys.NAME]`, and the URIs that refer to them.

use std::path::Path;

use ringlock_hsm::uri::{PinSource, TokenMatch, Uri, UriError};

use super::keys::alternatives;
use super::names::{name, name_trouble};
use super::nearest::suggestion;
use super::read::{At, Item, Report, Table, choice, count, parsed, path_of_a_signer, shown, shown_key};
use super::units::duration;
use super::{InTokens, Isolation, TokenConfig, TokenId, WhenDown};

/// The tokens in file order, whether or not their tables are right: so that one problem does not make every reference to
/// its table another.
#[derive(Default)]
pub(super) struct Tokens(Vec<Entry>);

struct Entry {
    name: String,
    /// Its table.
    at: At,
    /// What that says; `None` after a problem.
    token: Option<TokenConfig>,
    /// What says where its PIN is: a key of its table, or a URI.
    pin_at: At,
    used: bool,
}

impl Tokens {
    /// Reads one `[keys.NAME]`.
    pub(super) fn define(&mut self, name: &str, table: &mut Table<'_, '_>) -> Option<()> {
        let token = read(name, table).filter(|token| self.agrees(token, table));
        let sound = token.is_some();
        self.0.push(Entry {
            name: name.to_owned(),
            at: table.own_place(),
            token,
            pin_at: table.at("pin_source"),
            used: false,
        });
        sound.then_some(())
    }

    /// Whether a token goes together with those before it.
    fn agrees(&self, token: &TokenConfig, table: &mut Table<'_, '_>) -> bool {
        for Entry { at, token: other, .. } in &self.0 {
            let Some(other) = other else { continue };
            let (key, line) = (&at.key, table.report.line(at));
            let (at, found, expected, remedy) = if let Some(name) = token.differs_in_process(other) {
                (
                    table.at(name),
                    format!("another {name} than {key} has in line {line}"),
                    "the same: both tokens are of one module, which is loaded once",
                    "change one of the two",
                )
            } else if other.module == token.module && other.find == token.find {
                (
                    table.own_place(),
                    format!("the token that {key} is in line {line}"),
                    "a token of its own",
                    "remove one of the two tables, or say by token which token each is",
                )
            } else if token.group.as_ref() == Some(&other.name) {
                (
                    table.at("group"),
                    format!("the name of {key} in line {line}"),
                    "a name that no table [keys.NAME] has: URIs may have either",
                    "rename one of the two",
                )
            } else if other.group.as_ref() == Some(&token.name) {
                (
                    table.own_place(),
                    format!("the name of the group of {key} in line {line}"),
                    "a name that no group has: URIs may have either",
                    "rename one of the two",
                )
            } else {
                continue;
            };
            table.report.refuse(&at, found, expected, remedy);
            return false;
        }
        true
    }

    /// The object of a URI that is meant for `at`, and its tokens.
    pub(super) fn refer(&mut self, report: &mut Report, at: &At, uri: Uri) -> Option<InTokens> {
        warn_of_ignored(report, at, &uri);
        let found = self.find(report, &uri);
        if found.is_empty() {
            self.refuse_unknown(report, at, &uri);
            return None;
        }
        let mut groups = found
            .iter()
            .filter_map(|&index| self.0[index].token.as_ref())
            .map(|token| &token.group);
        let first = groups.next().cloned();
        if groups.any(|group| group.is_none() || Some(group) != first.as_ref()) {
            let tables: Vec<&str> = found.iter().map(|&index| self.0[index].at.key.as_str()).collect();
            report.refuse(
                at,
                format!("a pkcs11: URI that fits several tokens ({})", tables.join(", ")),
                "the URI of one token, or of those of one group",
                "begin the URI with pkcs11:token=NAME; for the NAME of one table, or give them the same group",
            );
            return None;
        }
        if let Some(source) = uri.pin_source.clone() {
            let source = resolved(report, source);
            for &index in &found {
                self.0[index].set_pin(report, at, &source)?;
            }
        }
        for &index in &found {
            self.0[index].used = true;
        }
        let shown = Uri {
            token: uri.token,
            object: uri.object.clone(),
            kind: uri.kind,
            ..Uri::default()
        };
        Some(InTokens {
            tokens: found.into_iter().map(TokenId).collect(),
            object: uri.object,
            uri: shown.to_string(),
        })
    }

    /// The tokens that a URI fits: by the names of their tables, else by that of their group, else by their labels.
    fn find(&self, report: &Report, uri: &Uri) -> Vec<usize> {
        let module = uri.module_path.as_ref().map(|path| report.resolve(path));
        let fits = |token: &TokenConfig| {
            is_module(&token.module, module.as_deref(), uri.module_name.as_deref()) && has(&token.find, &uri.token)
        };
        let all = |is_named: &dyn Fn(&Entry) -> bool| -> Vec<usize> {
            let found = self.0.iter().enumerate().filter(|(_, entry)| {
                // Of a table that has been refused, nothing but the name is known.
                is_named(entry) && entry.token.as_ref().is_none_or(fits)
            });
            found.map(|(index, _)| index).collect()
        };
        let Some(label) = &uri.token.label else {
            return all(&|_| true);
        };
        let found = WAYS.map(|is_named| all(&|entry| is_named(entry, label)));
        found.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
    }

    fn refuse_unknown(&self, report: &mut Report, at: &At, uri: &Uri) {
        let of_token = |token: TokenMatch| Uri {
            token,
            ..Uri::default()
        };
        let asked = of_token(uri.token.clone());
        let label = uri.token.label.as_deref();
        let named = label.and_then(|label| {
            let entry = self.0.iter().find(|entry| WAYS.iter().any(|is| is(entry, label)))?;
            entry.token.as_ref().map(|token| (&entry.at.key, token))
        });
        let (found, expected, remedy) = if let Some((table, token)) = named
            && has(&token.find, &uri.token)
        {
            (
                format!("a pkcs11: URI with another module than {table} has"),
                format!("the module {}", token.module.display()),
                "leave module-path and module-name out, or correct them".to_owned(),
            )
        } else if let Some((table, token)) = named {
            let whole = of_token(TokenMatch {
                label: token.find.label.clone(),
                ..uri.token.clone()
            });
            (
                format!("the token {asked}, of which {table} does not say all that"),
                format!("nothing of the token that the table [{table}] does not say"),
                format!(
                    "leave out all but token={}, or write token = \"{whole}\" in the table",
                    token.name
                ),
            )
        } else {
            let names: Vec<&str> = self.0.iter().map(|entry| entry.name.as_str()).collect();
            let expected = match (names.as_slice(), label) {
                ([], _) => "the token of a table [keys.NAME], of which there is none".to_owned(),
                (names, Some(label)) => format!("token={}", suggestion(label, names, "name of a table [keys.NAME]")),
                (names, None) => format!("token={}", alternatives(names.to_vec())),
            };
            let name = shown_key(label.unwrap_or("NAME"));
            let add = format!("add a table [keys.{name}] with module = the path of the token's module");
            match (label, uri.token == TokenMatch::default()) {
                (Some(_), _) => (
                    format!("the token {asked}"),
                    expected,
                    format!("correct the URI, or {add}"),
                ),
                (None, false) => (
                    format!("the token {asked}"),
                    expected,
                    format!("correct the URI, or {add} and token = \"{asked}\""),
                ),
                (None, true) => ("a pkcs11: URI without a token".to_owned(), expected, add),
            }
        };
        report.refuse(at, found, expected, remedy);
    }

    /// Warns of every token that nothing refers to.
    pub(super) fn warn_unused(&self, report: &mut Report) {
        for entry in self.0.iter().filter(|entry| !entry.used) {
            let name = Uri {
                token: labelled(&entry.name),
                ..Uri::default()
            };
            let remedy = format!("refer to it from an [[identity]] by key = \"{name};object=…\", or remove it");
            report.warn(&entry.at, "no identity uses this token", remedy);
        }
    }

    /// Those whose tables are right.
    pub(super) fn into_tokens(self) -> Vec<TokenConfig> {
        self.0.into_iter().filter_map(|entry| entry.token).collect()
    }
}

/// How a URI's token attribute names a token, the strongest first.
const WAYS: [fn(&Entry, &str) -> bool; 3] = [
    |entry, label| entry.name == label,
    |entry, label| {
        entry
            .token
            .as_ref()
            .is_some_and(|token| token.group.as_deref() == Some(label))
    },
    |entry, label| {
        entry
            .token
            .as_ref()
            .is_some_and(|token| token.find.label.as_deref() == Some(label))
    },
];

impl Entry {
    /// Takes the source of its PIN from a URI, unless there is another one.
    fn set_pin(&mut self, report: &mut Report, at: &At, source: &PinSource) -> Option<()> {
        let Some(token) = &mut self.token else {
            return Some(());
        };
        if token.pin.is_none() {
            token.pin = Some(source.clone());
            self.pin_at = at.clone();
        } else if token.pin.as_ref() != Some(source) {
            let line = report.line(&self.pin_at);
            report.refuse(
                at,
                format!(
                    "a pkcs11: URI with another pin-source than {} has in line {line}",
                    self.pin_at.key
                ),
                "one source of the PIN of a token",
                "remove one of the two",
            );
            return None;
        }
        Some(())
    }
}

fn read(name: &str, table: &mut Table<'_, '_>) -> Option<TokenConfig> {
    let trouble = name_trouble(name);
    if let Some(remedy) = trouble {
        let found = format!("{} as the name of a table", shown(name));
        let at = table.own_place();
        table.report.refuse(&at, found, "a name of 1 to 64 characters", remedy);
    }
    let module = table.read("module", path_of_a_signer);
    let find = table.read_optional("token", token);
    let group = table.read_optional("group", self::name);
    let pin = table.read_optional("pin_source", pin_source);
    let sessions = table.read("sessions", count);
    let isolation = table.read(
        "isolation",
        choice(&[("process", Isolation::Process), ("thread", Isolation::Thread)]),
    );
    let timeout = table.read("timeout", duration);
    let queue = table.read("queue", count);
    let when_down = table.read(
        "when_down",
        choice(&[("wait", WhenDown::Wait), ("fail", WhenDown::Fail)]),
    );
    let keep_alive = table.read("keep_alive", duration);
    let user = table.read_optional("user", parsed(|text| Ok(text.to_owned())));
    let sandbox = table.read("sandbox", choice(&[("auto", true), ("off", false)]));
    if isolation == Some(Isolation::Thread) && table.has("user") {
        let at = table.at("user");
        let what = "it has no effect: with isolation = \"thread\" there is no signer process";
        table.report.warn(&at, what, "remove it, or isolation");
    }
    trouble.is_none().then_some(())?;
    Some(TokenConfig {
        name: name.to_owned(),
        module: module?,
        find: find?.unwrap_or_else(|| labelled(name)),
        group: group?,
        pin: pin?,
        sessions: u32::try_from(sessions?).expect("its bound fits"),
        isolation: isolation?,
        timeout: timeout?,
        queue: usize::try_from(queue?).expect("its bound fits any usize of 32 bits"),
        when_down: when_down?,
        keep_alive: Some(keep_alive?).filter(|time| !time.is_zero()),
        user: user?,
        sandbox: sandbox?,
    })
}

impl TokenConfig {
    /// The key `name` of its table, as in [`super::Problem::key`].
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("keys.{}.{name}", shown_key(&self.name))
    }

    /// The key in which two tokens of one module may not differ, and do.
    fn differs_in_process(&self, other: &TokenConfig) -> Option<&'static str> {
        if self.module != other.module {
            None
        } else if self.isolation != other.isolation {
            Some("isolation")
        } else if self.user != other.user {
            Some("user")
        } else if self.sandbox != other.sandbox {
            Some("sandbox")
        } else {
            None
        }
    }
}

/// A label, or a URI of nothing but a token's attributes.
fn token(report: &mut Report, item: Item<'_>) -> Option<TokenMatch> {
    let text = item.value.as_str().unwrap_or_default();
    if !Uri::is_meant(text) {
        return parsed(|text| Ok(labelled(text)))(report, item);
    }
    let uri = uri(report, &item, text)?;
    let only_token = Uri {
        token: uri.token.clone(),
        ignored: uri.ignored.clone(),
        ..Uri::default()
    };
    if uri != only_token {
        let found = "a pkcs11: URI of more than a token";
        let remedy = "leave out all but token, serial, manufacturer, model and slot-id";
        report.refuse(&item.at, found, item.kind.expected(), remedy);
        return None;
    }
    warn_of_ignored(report, &item.at, &uri);
    Some(uri.token)
}

/// A URI. What is refused is not repeated: it can hold a PIN.
pub(super) fn uri(report: &mut Report, item: &Item<'_>, text: &str) -> Option<Uri> {
    noted(report, item, Uri::parse(text))
}

/// Where a PIN is. What is refused is not repeated: it can be the PIN.
fn pin_source(report: &mut Report, item: Item<'_>) -> Option<PinSource> {
    let Some(text) = item.value.as_str() else {
        let remedy = "write the PIN to a file of its own, and its path here in double quotes";
        report.refuse(&item.at, "a value that is no string", item.kind.expected(), remedy);
        return None;
    };
    let source = noted(report, &item, PinSource::parse(text))?;
    Some(resolved(report, source))
}

fn noted<T>(report: &mut Report, item: &Item<'_>, read: Result<T, UriError>) -> Option<T> {
    read.map_err(|UriError { found, remedy }| report.refuse(&item.at, found, item.kind.expected(), remedy))
        .ok()
}

/// With a path that is relative to the folder of the file.
fn resolved(report: &Report, source: PinSource) -> PinSource {
    match source {
        PinSource::File(path) => PinSource::File(report.resolve(path)),
        PinSource::Credential(name) => PinSource::Credential(name),
    }
}

fn warn_of_ignored(report: &mut Report, at: &At, uri: &Uri) {
    if !uri.ignored.is_empty() {
        let what = format!("nothing is compared with {}", uri.ignored.join(" and "));
        report.warn(
            at,
            what,
            "remove it from the URI; a token is known by its label and serial",
        );
    }
}

fn labelled(label: &str) -> TokenMatch {
    TokenMatch {
        label: Some(label.to_owned()),
        ..TokenMatch::default()
    }
}

/// Whether a module has the path and the name that a URI gives it, if any.
fn is_module(module: &Path, path: Option<&Path>, name: Option<&str>) -> bool {
    // RFC 7512 section 2.3: the name is without what an operating system puts around it.
    let bare = || {
        let file = module.file_name()?.to_str()?.split(".so").next()?;
        Some(file.strip_prefix("lib").unwrap_or(file))
    };
    path.is_none_or(|path| path == module) && (name.is_none() || name == bare())
}

/// Whether a table says of its token all that a URI does, besides the label.
fn has(token: &TokenMatch, asked: &TokenMatch) -> bool {
    let TokenMatch {
        label: _,
        serial,
        manufacturer,
        model,
        slot_id,
    } = asked;
    (serial.is_none() || *serial == token.serial)
        && (manufacturer.is_none() || *manufacturer == token.manufacturer)
        && (model.is_none() || *model == token.model)
        && (slot_id.is_none() || *slot_id == token.slot_id)
}

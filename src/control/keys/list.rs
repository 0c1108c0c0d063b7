//! `ringlock keys list`: tokens with what they hold, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use ringlock_hsm::pkcs11::{Access, ObjectDescription, Pkcs11Module, TokenDescription};
use ringlock_hsm::protocol::Fault;
use ringlock_hsm::token::Module;
use ringlock_hsm::uri::TokenMatch;
use serde::Serialize;

use super::{Answer, KeysError, Place};
use crate::control::table::{printable, table};

#[derive(Serialize)]
struct Listed {
    /// Of `[keys.NAME]`.
    name: Option<String>,
    module: PathBuf,
    /// What the module calls itself.
    library: Option<String>,
    token: Option<TokenDescription>,
    objects: Vec<ObjectDescription>,
    /// Whether the token was logged in to, or wants no login: whether `objects` are all.
    logged_in: bool,
    /// Why something is missing.
    trouble: Option<String>,
}

pub(super) fn run(places: &[Place], json: bool) -> Result<Answer, KeysError> {
    let mut modules = BTreeMap::new();
    let mut listed = Vec::new();
    for place in places {
        let module = modules
            .entry(place.module.clone())
            .or_insert_with(|| Pkcs11Module::load(&place.module));
        match module {
            Err(fault) => listed.push(Listed::failed(place, None, fault)),
            // Without a name, all that are there.
            Ok(module) if place.name.is_none() && place.settings.find == TokenMatch::default() => {
                for token in module.tokens()? {
                    let mut place = place.clone();
                    place.settings.find = TokenMatch {
                        label: Some(token.label),
                        serial: Some(token.serial),
                        slot_id: Some(token.slot_id),
                        ..TokenMatch::default()
                    };
                    listed.push(Listed::new(&place, module));
                }
            }
            Ok(module) => listed.push(Listed::new(place, module)),
        }
    }
    let whole = listed.iter().all(|listed| listed.trouble.is_none());
    let text = if json {
        let value = serde_json::json!({ "tokens": listed });
        format!("{value:#}\n")
    } else if listed.is_empty() {
        String::from("no tokens\n")
    } else {
        let texts: Vec<String> = listed.iter().map(Listed::text).collect();
        texts.join("\n")
    };
    Ok(Answer { text, whole })
}

impl Listed {
    fn new(place: &Place, module: &Pkcs11Module) -> Listed {
        let read = || -> Result<Listed, Fault> {
            let public = module.session(&place.settings, Access::Public)?;
            let token = public.description()?;
            let logged_in =
                !token.login_required || token.protected_authentication_path || place.settings.pin.is_some();
            let mut session = if logged_in {
                module.session(&place.settings, Access::Read)?
            } else {
                public
            };
            Ok(Listed {
                name: place.name.clone(),
                module: place.module.clone(),
                library: Some(module.description()),
                token: Some(token),
                objects: session.objects()?,
                logged_in,
                trouble: None,
            })
        };
        read().unwrap_or_else(|fault| Listed::failed(place, Some(module), &fault))
    }

    fn failed(place: &Place, module: Option<&Pkcs11Module>, fault: &Fault) -> Listed {
        Listed {
            name: place.name.clone(),
            module: place.module.clone(),
            library: module.map(Module::description),
            token: None,
            objects: Vec::new(),
            logged_in: false,
            trouble: Some(KeysError::from(fault.clone()).to_string()),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let name = self.name.as_ref().map(|name| format!("[keys.{name}] "));
        let library = self.library.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "{}{} {}",
            name.unwrap_or_default(),
            self.module.display(),
            printable(library)
        );
        if let Some(trouble) = &self.trouble {
            let _ = writeln!(text, "  error: {}", printable(trouble));
        }
        if let Some(token) = &self.token {
            let _ = writeln!(
                text,
                "  token {}, serial number {}, slot {}, {} by {}",
                printable(&token.label),
                printable(&token.serial),
                token.slot_id,
                printable(&token.model),
                printable(&token.manufacturer)
            );
            let _ = writeln!(text, "  mechanisms {}", token.mechanisms.join(", "));
            if let Some(trouble) = token.pin_trouble {
                let _ = writeln!(text, "  PIN: {trouble}");
            }
            if !self.logged_in {
                let _ = writeln!(
                    text,
                    "  not logged in: give its PIN by --pin-source or pin_source to see private keys"
                );
            }
            text.push_str(&objects(&self.objects));
        }
        text
    }
}

fn objects(objects: &[ObjectDescription]) -> String {
    if objects.is_empty() {
        return String::from("  no keys and no certificates\n");
    }
    let row = |object: &ObjectDescription| {
        let text = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
        vec![
            object.class.to_owned(),
            text(&object.label),
            text(&object.id),
            object.key.clone().unwrap_or_else(|| "-".to_owned()),
            flags(object),
        ]
    };
    let head = ["", "label", "id", "key", ""];
    table(&head, objects.iter().map(row).collect(), 2, head.len())
}

/// What a private key is allowed to, and what it should not be.
fn flags(object: &ObjectDescription) -> String {
    let flags = [
        (object.sign == Some(false), "does not sign"),
        (object.sensitive == Some(false), "can be read"),
        (object.extractable == Some(true), "can be taken out"),
    ];
    let set: Vec<&str> = flags.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
    set.join(", ")
}

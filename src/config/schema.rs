//! The JSON Schema of the file, from the table of keys.

use serde_json::{Map, Value, json};

use super::keys::{Key, Kind, Presence, ROOT, Section, Word};
use super::units::{SIZE_UNITS, UNITS};

/// The JSON Schema (draft 2020-12) of the configuration file. It has the keys and words that are accepted: those whose
/// feature comes later are not in it.
#[must_use]
pub fn schema() -> Value {
    let mut schema = section(&ROOT);
    schema.insert(
        "$schema".to_owned(),
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    schema.insert("title".to_owned(), json!("Ringlock configuration"));
    Value::Object(schema)
}

fn section(section: &Section) -> Map<String, Value> {
    let required: Vec<&str> = section
        .keys
        .iter()
        .filter(|key| matches!(key.presence, Presence::Required))
        .map(|key| key.name)
        .collect();
    let properties: Map<String, Value> = section
        .keys
        .iter()
        .map(|key| (key.name.to_owned(), Value::Object(property(key))))
        .collect();
    object(json!({
        "description": section.doc,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    }))
}

fn property(key: &Key) -> Map<String, Value> {
    let mut property = kind(key);
    property.insert("description".to_owned(), json!(key.doc));
    if let Presence::Default(text) = key.presence {
        property.insert("default".to_owned(), default_value(text));
    }
    property
}

fn kind(key: &Key) -> Map<String, Value> {
    let words =
        |words: &[Word]| -> Vec<&str> { words.iter().filter(|word| !word.later).map(|word| word.text).collect() };
    object(match key.kind {
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Text(_) => json!({ "type": "string", "minLength": 1 }),
        Kind::Texts { empty, .. } => texts(usize::from(!empty)),
        Kind::TextOrTexts(_) => json!({ "anyOf": [{ "type": "string", "minLength": 1 }, texts(1)] }),
        Kind::Duration { zero: true } => json!({ "type": "string", "pattern": format!("^[0-9]+{}$", unit()) }),
        Kind::Duration { zero: false } => json!({ "type": "string", "pattern": format!("^0*[1-9][0-9]*{}$", unit()) }),
        Kind::WholeSeconds { .. } => json!({ "type": "string", "pattern": format!("^0*[1-9][0-9]*{}$", unit()) }),
        Kind::OffOrSize { .. } => json!({
            "anyOf": [
                { "const": "off" },
                { "type": "string", "pattern": format!("^0*[1-9][0-9]*({})$", SIZE_UNITS.map(|(name, _)| name).join("|")) },
            ]
        }),
        Kind::Count(max) => json!({ "type": "integer", "minimum": 1, "maximum": max }),
        Kind::UpTo(max) => json!({ "type": "integer", "minimum": 0, "maximum": max }),
        Kind::Share => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        Kind::Word(list) => json!({ "enum": words(list) }),
        Kind::AutoOrNames(names) => json!({
            "anyOf": [
                { "const": "auto" },
                { "type": "array", "items": { "enum": names() }, "minItems": 1, "uniqueItems": true },
            ]
        }),
        Kind::Workers => json!({
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": super::keys::CPUS_MAX },
                { "const": "auto" },
                { "type": "string", "pattern": "^ *[0-9]+ *(- *[0-9]+ *)?(, *[0-9]+ *(- *[0-9]+ *)?)*$" },
            ]
        }),
        Kind::Section(inner) => Value::Object(section(inner)),
        Kind::Sections(inner) => json!({
            "type": "array",
            "items": section(inner),
            "minItems": usize::from(matches!(key.presence, Presence::Required)),
        }),
        Kind::Named(inner) => json!({ "type": "object", "additionalProperties": section(inner) }),
    })
}

/// The unit of a duration, as a regular expression.
fn unit() -> String {
    format!("({})", UNITS.map(|(name, _)| name).join("|"))
}

fn texts(at_least: usize) -> Value {
    json!({
        "type": "array",
        "items": { "type": "string", "minLength": 1 },
        "minItems": at_least,
        "uniqueItems": true,
    })
}

fn default_value(text: &str) -> Value {
    serde_json::from_str(text)
        .expect("the defaults in the table of keys are JSON as well as TOML; a unit test prints all")
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else {
        panic!("the literals above are objects")
    };
    map
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::{BASE, CONTRACT};
    use crate::config::{keys, parse};

    /// What of `value` the schema does not allow; patterns are not looked at.
    fn violations(schema: &Value, value: &Value, path: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut demand = |fine: bool, what: &str| {
            if !fine {
                found.push(format!("{path}: {what}"));
            }
        };
        let mut inner = Vec::new();
        for (keyword, rule) in schema.as_object().expect("a schema is an object") {
            match keyword.as_str() {
                "$schema" | "title" | "description" | "default" | "pattern" => {}
                "type" => demand(
                    match rule.as_str().expect("one type") {
                        "object" => value.is_object(),
                        "array" => value.is_array(),
                        "string" => value.is_string(),
                        "boolean" => value.is_boolean(),
                        "integer" => value.is_i64() || value.is_u64(),
                        "number" => value.is_number(),
                        other => panic!("{other} is no type of this schema"),
                    },
                    "type",
                ),
                "enum" => demand(rule.as_array().expect("a list").contains(value), "enum"),
                "const" => demand(rule == value, "const"),
                "anyOf" => demand(
                    rule.as_array()
                        .expect("a list")
                        .iter()
                        .any(|schema| violations(schema, value, path).is_empty()),
                    "anyOf",
                ),
                "minLength" => demand(value.as_str().is_none_or(|text| !text.is_empty()), "minLength"),
                "minItems" => {
                    let enough = |list: &Vec<Value>| list.len() as u64 >= rule.as_u64().expect("a number");
                    demand(value.as_array().is_none_or(enough), "minItems");
                }
                "uniqueItems" => {
                    let unique = |list: &Vec<Value>| (1..list.len()).all(|i| !list[..i].contains(&list[i]));
                    demand(value.as_array().is_none_or(unique), "uniqueItems");
                }
                "minimum" => demand(
                    value.as_f64().is_none_or(|n| n >= rule.as_f64().expect("a number")),
                    "minimum",
                ),
                "maximum" => demand(
                    value.as_f64().is_none_or(|n| n <= rule.as_f64().expect("a number")),
                    "maximum",
                ),
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        inner.extend(violations(rule, item, &format!("{path}[{index}]")));
                    }
                }
                "required" => {
                    for name in rule.as_array().expect("a list") {
                        let name = name.as_str().expect("a name");
                        demand(value.get(name).is_some(), &format!("{name} is required"));
                    }
                }
                "properties" => {
                    for (name, schema) in rule.as_object().expect("an object") {
                        if let Some(value) = value.get(name) {
                            inner.extend(violations(schema, value, &format!("{path}.{name}")));
                        }
                    }
                }
                "additionalProperties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        if rule == &json!(false) {
                            demand(schema["properties"].get(name).is_some(), &format!("{name} is unknown"));
                        } else {
                            inner.extend(violations(rule, value, &format!("{path}.{name}")));
                        }
                    }
                }
                other => panic!("{other} is no keyword of this schema"),
            }
        }
        found.extend(inner);
        found
    }

    fn of_toml(text: &str) -> Vec<String> {
        let value: toml::Value = toml::from_str(text).expect("it is TOML");
        violations(&schema(), &serde_json::to_value(value).expect("it is JSON"), "")
    }

    #[test]
    fn legal_files_are_legal_by_the_schema() {
        for text in [BASE, CONTRACT, include_str!("../../docs/ringlock.example.toml")] {
            parse(text, Path::new("ringlock.toml")).expect("it is legal");
            assert_eq!(of_toml(text), Vec::<String>::new());
        }
    }

    #[test]
    fn what_is_refused_is_refused_by_the_schema() {
        for (added, violation) in [
            ("colour = 1", ".listener[0]: colour is unknown"),
            ("mode = \"http\"", ".listener[0].mode: enum"),
            ("connections_max = 0", ".listener[0].connections_max: minimum"),
            (
                "routes = [{ sni = \"a\" }]",
                ".listener[0].routes[0]: upstream is required",
            ),
            ("tls.tickets = \"on\"", ".listener[0].tls.tickets: type"),
            ("tls.session_cache = 64", ".listener[0].tls.session_cache: anyOf"),
            ("tls.groups = [\"P-256\"]", ".listener[0].tls.groups: anyOf"),
            ("tls.alpn = [\"h2\", \"h2\"]", ".listener[0].tls.alpn: uniqueItems"),
            (
                "[keys.edge]\nmodul = \"a\"\nmodule = \"a\"",
                ".keys.edge: modul is unknown",
            ),
            ("[keys.edge]\nsessions = 9", ".keys.edge: module is required"),
            (
                "[keys.edge]\nmodule = \"a\"\nsessions = 0",
                ".keys.edge.sessions: minimum",
            ),
            (
                "client_auth.verify_depth = 7",
                ".listener[0].client_auth.verify_depth: maximum",
            ),
        ] {
            let text = BASE.replacen("upstream = \"app\"\n", &format!("upstream = \"app\"\n{added}\n"), 1);
            assert_eq!(of_toml(&text), [violation], "{added}");
            parse(&text, Path::new("ringlock.toml")).expect_err("it is refused");
        }
    }

    #[test]
    fn every_key_has_a_meaning_and_every_default_is_legal() {
        for (header, section) in keys::sections() {
            for key in section.keys {
                let property = Value::Object(property(key));
                assert!(
                    property["description"].as_str().is_some_and(|doc| doc.ends_with('.')),
                    "{header} {}",
                    key.name
                );
                if let Some(default) = property.get("default") {
                    assert_eq!(
                        violations(&property, default, ""),
                        Vec::<String>::new(),
                        "{header} {}",
                        key.name
                    );
                }
            }
        }
        let durations = &schema()["properties"]["listener"]["items"]["properties"]["handshake_timeout"];
        assert_eq!(durations["default"], json!("10s"));
        assert_eq!(durations["pattern"], json!("^0*[1-9][0-9]*(ms|s|m|h|d)$"));
    }
}

//! The JSON Schema of the file, from the table of keys.

use serde_json::{Map, Value, json};

use super::keys::{Key, Kind, Presence, ROOT, Section, Word};

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
        .legal_keys()
        .filter(|key| matches!(key.presence, Presence::Required))
        .map(|key| key.name)
        .collect();
    let properties: Map<String, Value> = section
        .legal_keys()
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
        Kind::OnlyFalse => json!({ "const": false }),
        Kind::Text(_) => json!({ "type": "string", "minLength": 1 }),
        Kind::Texts { empty, .. } => texts(usize::from(!empty)),
        Kind::TextOrTexts(_) => json!({ "anyOf": [{ "type": "string", "minLength": 1 }, texts(1)] }),
        Kind::Duration { zero: true } => json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$" }),
        Kind::Duration { zero: false } => json!({ "type": "string", "pattern": "^0*[1-9][0-9]*(ms|s|m|h|d)$" }),
        Kind::Count(max) => json!({ "type": "integer", "minimum": 1, "maximum": max }),
        Kind::Share => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        Kind::Word(list) | Kind::WordOrPathLater(list) => json!({ "enum": words(list) }),
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
    })
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

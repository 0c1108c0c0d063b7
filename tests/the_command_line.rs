//! What the program says about itself, and the schema of its configuration.

use crate::support::*;

use serde_json::Value;

#[test]
fn version_and_help_are_for_people_and_succeed() {
    let version = ringlock(&["--version"]).ok();
    assert_eq!(
        version.stdout,
        format!("ringlock {}\n", env!("CARGO_PKG_VERSION")),
        "{version:?}"
    );
    let help = ringlock(&["--help"]).ok();
    for word in [
        "run", "check", "hw", "keys", "config", "demo", "SIGTERM", "SIGHUP", "SIGUSR1",
    ] {
        assert!(help.stdout.contains(word), "the help does not name {word}: {help:?}");
    }
    assert_eq!(help.stderr, "");
}

#[test]
fn an_unknown_command_fails_and_names_the_nearest() {
    let ran = ringlock(&["chekc"]).says("'check'");
    assert_eq!(ran.status.code(), Some(2));
    assert_eq!(ran.stdout, "");
}

#[test]
fn run_needs_its_file() {
    let ran = ringlock(&["run"]).says("--config <FILE>");
    assert_eq!(ran.status.code(), Some(2));
    let ran = ringlock(&["run", "--config", "/nonexistent/ringlock.toml"]).says("/nonexistent/ringlock.toml");
    assert_eq!(ran.status.code(), Some(1));
}

fn schema() -> Value {
    let printed = ringlock(&["config", "schema"]).ok().stdout;
    serde_json::from_str(&printed).expect("the schema is JSON")
}

#[test]
fn the_schema_is_made_of_keywords_that_json_schema_has() {
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    check_schema(&schema, "");
}

/// The vocabulary that the schema may use. A keyword that is none would silently accept everything.
fn check_schema(schema: &Value, at: &str) {
    if schema.is_boolean() {
        return;
    }
    let object = schema
        .as_object()
        .unwrap_or_else(|| panic!("{at}: a schema is an object"));
    for (keyword, value) in object {
        let at = format!("{at}/{keyword}");
        match keyword.as_str() {
            "$schema" | "title" | "description" | "type" | "pattern" | "format" | "$ref" => {
                assert!(value.is_string() || keyword == "type" && value.is_array(), "{at}");
            }
            "default" | "const" | "examples" => {}
            "enum" | "required" => assert!(value.is_array(), "{at}"),
            "minimum" | "maximum" | "minItems" | "maxItems" | "minLength" | "maxLength" => {
                assert!(value.is_number(), "{at}");
            }
            "uniqueItems" => assert!(value.is_boolean(), "{at}"),
            "additionalProperties" | "items" | "not" => check_schema(value, &at),
            "properties" | "$defs" | "patternProperties" => {
                for (name, inner) in value.as_object().unwrap_or_else(|| panic!("{at}")) {
                    check_schema(inner, &format!("{at}/{name}"));
                }
            }
            "anyOf" | "oneOf" | "allOf" => {
                for inner in value.as_array().unwrap_or_else(|| panic!("{at}")) {
                    check_schema(inner, &at);
                }
            }
            other => panic!("{at}: {other} is no keyword that is known here"),
        }
    }
}

/// Whether `value` fits `schema`, as far as the keywords above go; the error says where it does not.
fn fits(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(permitted) = schema.as_bool() {
        return if permitted {
            Ok(())
        } else {
            Err(format!("{at} may not be there"))
        };
    }
    for alternatives in ["anyOf", "oneOf"].iter().filter_map(|word| schema[*word].as_array()) {
        let tried: Vec<_> = alternatives.iter().map(|one| fits(one, value, at)).collect();
        if !tried.iter().any(Result::is_ok) {
            return Err(format!("{at} fits no alternative: {tried:?}"));
        }
    }
    if let Some(kind) = schema["type"].as_str() {
        let is = match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            other => panic!("{other} is no type"),
        };
        if !is {
            return Err(format!("{at} is no {kind}: {value}"));
        }
    }
    if let Some(choices) = schema["enum"].as_array()
        && !choices.contains(value)
    {
        return Err(format!("{at} is none of {choices:?}: {value}"));
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
        && number < least
    {
        return Err(format!("{at} is below {least}"));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(
            schema.get("items").unwrap_or(&Value::Bool(true)),
            item,
            &format!("{at}[{index}]"),
        )?;
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().expect("names are strings");
            if !object.contains_key(name) {
                return Err(format!("{at} has no {name}"));
            }
        }
        for (name, inner) in object {
            let rule = schema["properties"]
                .get(name)
                .or_else(|| schema.get("additionalProperties"))
                .unwrap_or(&Value::Bool(true));
            fits(rule, inner, &format!("{at}.{name}"))?;
        }
    }
    Ok(())
}

fn example() -> Value {
    let text = std::fs::read_to_string("docs/ringlock.example.toml").unwrap();
    let table: toml::Table = text.parse().unwrap();
    serde_json::to_value(table).unwrap()
}

#[test]
fn the_schema_accepts_the_example() {
    fits(&schema(), &example(), "example").unwrap();
}

#[test]
fn the_schema_refuses_what_the_program_refuses() {
    let schema = schema();
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 4] = [
        ("an unknown key", |file| file["global"]["wrokers"] = 2.into()),
        ("a missing key", |file| {
            file["listener"][0].as_object_mut().unwrap().remove("address");
        }),
        ("another type", |file| file["upstream"][0]["servers"] = 7.into()),
        ("another word", |file| file["global"]["io"] = "kqueue".into()),
    ];
    for (what, change) in changes {
        let mut file = example();
        change(&mut file);
        assert!(fits(&schema, &file, "example").is_err(), "{what} is accepted");
    }
}

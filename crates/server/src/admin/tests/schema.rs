//! Checks a JSON value against a schema, with the part of JSON Schema that the document uses. An unknown
//! keyword is an error, so that nothing is left unchecked.

use serde_json::{Map, Value};

/// Keywords that do not constrain a value's shape.
const REMARKS: &[&str] = &["description", "format", "title", "example"];

/// Fails with the first mismatch and its place.
pub fn check(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let schema = schema.as_object().ok_or(format!("{place}: no schema"))?;
    for (keyword, said) in schema {
        match keyword.as_str() {
            "$ref" => {
                let pointer = said.as_str().and_then(|r| r.strip_prefix('#'));
                let named = pointer.and_then(|p| document.pointer(p));
                let named = named.ok_or(format!("{place}: {said} is not there"))?;
                check(document, named, value, place)?;
            }
            "type" => of_type(said, value, place)?,
            "enum" => {
                if !said.as_array().is_some_and(|all| all.contains(value)) {
                    return Err(format!("{place}: {value} is none of {said}"));
                }
            }
            "minimum" => {
                if value.is_number() && value.as_f64() < said.as_f64() {
                    return Err(format!("{place}: {value} is less than {said}"));
                }
            }
            "items" => {
                for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, said, item, &format!("{place}[{at}]"))?;
                }
            }
            "required" => {
                for name in said.as_array().into_iter().flatten() {
                    let name = name.as_str().unwrap_or_default();
                    if value.get(name).is_none() {
                        return Err(format!("{place}: {name} is missing"));
                    }
                }
            }
            "properties" => properties(document, said, schema, value, place)?,
            "allOf" => {
                for part in said.as_array().into_iter().flatten() {
                    check(document, part, value, place)?;
                }
            }
            "oneOf" | "anyOf" => one_of(document, said, value, place)?,
            remark if REMARKS.contains(&remark) => {}
            other => return Err(format!("{place}: {other} is not known to this test")),
        }
    }
    Ok(())
}

fn of_type(said: &Value, value: &Value, place: &str) -> Result<(), String> {
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    let fits = match said {
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        one => one.as_str().is_some_and(is),
    };
    fits.then_some(())
        .ok_or(format!("{place}: {value} is no {said}"))
}

fn properties(
    document: &Value,
    said: &Value,
    schema: &Map<String, Value>,
    value: &Value,
    place: &str,
) -> Result<(), String> {
    let said = said.as_object().ok_or(format!("{place}: no properties"))?;
    let Some(value) = value.as_object() else {
        return Ok(());
    };
    for (name, part) in value {
        let place = format!("{place}.{name}");
        match said.get(name) {
            Some(schema) => check(document, schema, part, &place)?,
            None if schema.contains_key("additionalProperties") => {}
            None => return Err(format!("{place} is not documented")),
        }
    }
    Ok(())
}

fn one_of(document: &Value, said: &Value, value: &Value, place: &str) -> Result<(), String> {
    let mut problems = Vec::new();
    for choice in said.as_array().into_iter().flatten() {
        match check(document, choice, value, place) {
            Ok(()) => return Ok(()),
            Err(problem) => problems.push(problem),
        }
    }
    Err(format!("{place} is none of: {}", problems.join("; ")))
}

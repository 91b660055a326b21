//! Texts in JSON from elsewhere that people are to read.

use printable::is_printable;
use serde_json::Value;

/// The field with a text, or under a name, that cannot be shown as it is: with characters that a
/// terminal obeys, that reorder others, or that have no width. Keys and names of hosts have no use
/// for any, so they can be there to deceive only.
pub fn unprintable_field(json: &Value) -> Option<String> {
    match json {
        Value::String(text) => (!shows(text)).then(String::new),
        Value::Array(items) => items.iter().find_map(unprintable_field),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            if !shows(name) {
                return Some("the name of a field".to_owned());
            }
            let within = unprintable_field(value)?;
            Some(match within.as_str() {
                "" => format!("`{name}`"),
                _ => within,
            })
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn shows(text: &str) -> bool {
    text.chars().all(is_printable)
}

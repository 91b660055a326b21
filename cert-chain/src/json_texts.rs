//! JSON from elsewhere: read so that it says one thing only, and with texts that people can read.

use std::fmt;

use printable::is_printable;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// UTF-8's byte order mark, which editors leave at the start of files.
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// Reads JSON, and refuses an object that has one name twice: which of the two counts would be up to its
/// reader (RFC 8259 §4). A byte order mark is passed over (§8.1).
pub fn read_strictly(json: &[u8]) -> Result<Value, serde_json::Error> {
    let json = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Strictly.deserialize(&mut deserializer)?;
    deserializer.end().map(|()| value)
}

struct Strictly;

impl<'de> DeserializeSeed<'de> for Strictly {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strictly {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format_args!(
                    "{name:?} stands there twice"
                )));
            }
            object.insert(name, fields.next_value_seed(Self)?);
        }
        Ok(object.into())
    }
}

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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn json_is_read_as_it_is_and_refused_where_a_name_stands_twice() {
        let text = r#"{"a":[1,-2,2.5,"x",null,true,{"b":{}}],"c":18446744073709551615}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(read_strictly(text.as_bytes()).unwrap(), value);
        assert_eq!(
            read_strictly(format!("\u{feff}{text}\r\n").as_bytes()).unwrap(),
            value
        );
        for twice in [
            r#"{"a":1,"a":1}"#,
            r#"[{"b":{"a":1,"c":2,"\u0061":3}}]"#,
            "{\"a\":1}{}",
            "\u{feff}\u{feff}{}",
        ] {
            assert!(read_strictly(twice.as_bytes()).is_err(), "{twice}");
        }
        let shown = read_strictly(br#"{"\u001b[2J":1,"\u001b[2J":2}"#)
            .unwrap_err()
            .to_string();
        assert!(
            shown.contains("twice") && !shown.contains('\u{1b}'),
            "{shown}"
        );
    }
}

//! Lists within a reason: a few values, and how many more there are.
//!
//! A policy can accept thousands of values, and evidence can have thousands of events that are
//! none of them. A reason that listed them all would make a result of their product.

use std::fmt::Display;

/// How many values a reason spells out.
const SHOWN: usize = 4;
/// How many characters of each: those of a SHA-512 value.
const MAX_VALUE: usize = 128;

/// The first values of a list, and the number of the others: `a or b or 7 others`.
pub(crate) fn list<T: Display>(
    values: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
) -> String {
    let values = values.into_iter();
    let others = values.len().saturating_sub(SHOWN);
    let mut texts: Vec<String> = values
        .take(SHOWN)
        .map(|value| shortened(&value.to_string()))
        .collect();
    match others {
        0 if texts.is_empty() => return "none".to_owned(),
        0 => {}
        1 => texts.push("1 other".to_owned()),
        _ => texts.push(format!("{others} others")),
    }
    texts.join(" or ")
}

/// A text of limited length; `…` stands for what was cut off.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_spells_out_a_few_values_and_counts_the_others() {
        assert_eq!(list([0; 0]), "none");
        assert_eq!(list([1, 2, 3, 4]), "1 or 2 or 3 or 4");
        assert_eq!(list([1, 2, 3, 4, 5]), "1 or 2 or 3 or 4 or 1 other");
        assert_eq!(list(0..1_000_i32), "0 or 1 or 2 or 3 or 996 others");
        assert_eq!(list(["é".repeat(129)]), format!("{}…", "é".repeat(128)));
    }
}

//! Texts of managers on their way to the page.

use printable::Printable;

/// What is longer is cut off: nothing that is shown in a cell is.
const LONGEST: usize = 2000;

/// A text as it is shown: characters that are not printable escaped, as in a terminal, so that none of
/// them reorders or hides what stands beside it; and no longer than what anybody reads.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = Printable(text).to_string();
    if let Some((at, _)) = shown.char_indices().nth(LONGEST) {
        shown.truncate(at);
        shown.push('…');
    }
    shown
}

/// The same of a text that may be there.
pub(crate) fn shown_if(text: Option<&String>) -> Option<String> {
    text.map(|text| shown(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reorders_or_hides_is_escaped_and_what_is_long_is_cut_off() {
        assert_eq!(shown("web-1\u{202e}"), "web-1\\u{202e}");
        assert_eq!(shown("<img>"), "<img>");
        assert_eq!(shown(&"ü".repeat(5000)).chars().count(), LONGEST + 1);
    }
}

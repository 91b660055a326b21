//! What the screen shows: the text, and around it what no text can imitate.

use confirmation::Rendering;

use crate::request::Request;

/// The first page, before any key counts.
pub(crate) fn announced(request: &Request, rendering: &Rendering) -> String {
    framed(request, rendering, 0).join("\r\n")
}

/// One page.
pub(crate) fn page(request: &Request, rendering: &Rendering, page: usize, note: &str) -> String {
    let pages = rendering.pages().len();
    let mut lines = framed(request, rendering, page);
    lines.push(format!("Page {} of {pages}. {note}", page + 1));
    lines.push(match page + 1 == pages {
        true => "Esc declines. PIN and Enter confirm: ".to_owned(),
        false => "Esc declines. Space: next page. ".to_owned(),
    });
    lines.join("\r\n")
}

/// Everything that comes from elsewhere was found to be printable, and lines of the text stand behind a bar.
fn framed(request: &Request, rendering: &Rendering, page: usize) -> Vec<String> {
    let nonce = request.nonce.to_string();
    let nonce: String = nonce.chars().take(16).collect();
    let rule = "-".repeat(usize::from(rendering.size().columns()) - 1);
    let mut lines = vec![
        format!("Request {nonce} of the service"),
        request.service.to_string(),
        rule.clone(),
    ];
    let shown = rendering.pages().nth(page).unwrap_or_default();
    lines.extend(shown.iter().map(|line| format!("| {line}")));
    lines.push(rule);
    lines
}

//! Whether texts of a page can be read: their contrast, in a real browser.

#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null; a panic is a failed test"
)]

use anyhow::{Context, Result};

use crate::chromium::Tab;

/// The page's ground, and the worst contrast of any text on it (WCAG 2.2, "contrast ratio").
pub fn contrasts(tab: &Tab<'_>) -> Result<(String, f64)> {
    let measured = tab.evaluate(CONTRASTS)?;
    let ground = measured[0].as_str().context("a colour")?.to_owned();
    println!("{measured}");
    Ok((ground, measured[1].as_f64().context("a contrast")?))
}

const CONTRASTS: &str = r"(() => {
    const parse = (text) => text.match(/[\d.]+/g).map(Number);
    const light = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
    const ground = (element) => {
        for (; element; element = element.parentElement) {
            const colour = parse(getComputedStyle(element).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    let worst = [99, ''];
    for (const element of document.querySelectorAll('#page *')) {
        const isText = [...element.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!isText || element.closest('[hidden], .unseen') || element.closest('svg')) continue;
        const [a, b] = [parse(getComputedStyle(element).color), ground(element)].map(luminance);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst[0]) worst = [ratio, element.className + ': ' + element.textContent];
    }
    return [getComputedStyle(document.body).backgroundColor, ...worst];
})()";

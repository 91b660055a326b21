//! What the page is made of. It is public: data come by `/api/` only.

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asset {
    pub(crate) path: &'static str,
    pub(crate) media_type: &'static str,
    pub(crate) text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! asset {
    ($path:literal, $media_type:expr, $file:literal) => {
        Asset {
            path: $path,
            media_type: $media_type,
            text: include_str!(concat!("../assets/", $file)),
        }
    };
}

const ASSETS: [Asset; 18] = [
    asset!("/", HTML, "index.html"),
    asset!("/icon.svg", SVG, "icon.svg"),
    asset!("/theme.css", CSS, "theme.css"),
    asset!("/layout.css", CSS, "layout.css"),
    asset!("/table.css", CSS, "table.css"),
    asset!("/chain.css", CSS, "chain.css"),
    asset!("/main.js", SCRIPT, "main.js"),
    asset!("/access.js", SCRIPT, "access.js"),
    asset!("/stream.js", SCRIPT, "stream.js"),
    asset!("/model.js", SCRIPT, "model.js"),
    asset!("/judge.js", SCRIPT, "judge.js"),
    asset!("/dom.js", SCRIPT, "dom.js"),
    asset!("/hosts.js", SCRIPT, "hosts.js"),
    asset!("/summary.js", SCRIPT, "summary.js"),
    asset!("/table.js", SCRIPT, "table.js"),
    asset!("/events.js", SCRIPT, "events.js"),
    asset!("/details.js", SCRIPT, "details.js"),
    asset!("/picture.js", SCRIPT, "picture.js"),
];

/// The file at this path.
pub(crate) fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

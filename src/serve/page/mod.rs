//! The page at `/`: a chat, as a bundle of files inside of the binary.
//!
//! ```text
//! src/  package.json  package-lock.json  ── scripts/build-page ──►  bundle/  ── include_bytes! ──►  PARTS
//! ```
//!
//! The bundle is committed, so that nobody needs Node to build nibble. It loads nothing from elsewhere: the server sends
//! [`HEADERS`] with every part, and the policy in them keeps browsers from doing so, whatever a model writes. What is kept of
//! conversations stays in the browser; the page speaks to `/v1/chat/completions`, `/v1/models`, `/props` and `/health`.

use std::sync::LazyLock;

/// A file of the page.
#[derive(Debug)]
pub struct Part {
    /// Where it is served.
    pub path: &'static str,
    /// Its media type.
    pub content_type: &'static str,
    /// Its contents.
    pub bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";
const FONT: &str = "font/woff2";

macro_rules! parts {
    ($($path:literal $content_type:ident $file:literal)*) => {
        &[$(Part { path: $path, content_type: $content_type, bytes: include_bytes!(concat!("bundle/", $file)) }),*]
    };
}

/// All files of the page. A test compares them with the folder.
pub const PARTS: &[Part] = parts! {
    "/" HTML "index.html"
    "/page/page.js" JAVASCRIPT "page.js"
    "/page/page.css" CSS "page.css"
    "/page/icon.svg" SVG "icon.svg"
    "/page/licences.txt" TEXT "licences.txt"
    "/page/fonts/KaTeX_AMS-Regular.woff2" FONT "fonts/KaTeX_AMS-Regular.woff2"
    "/page/fonts/KaTeX_Caligraphic-Bold.woff2" FONT "fonts/KaTeX_Caligraphic-Bold.woff2"
    "/page/fonts/KaTeX_Caligraphic-Regular.woff2" FONT "fonts/KaTeX_Caligraphic-Regular.woff2"
    "/page/fonts/KaTeX_Fraktur-Bold.woff2" FONT "fonts/KaTeX_Fraktur-Bold.woff2"
    "/page/fonts/KaTeX_Fraktur-Regular.woff2" FONT "fonts/KaTeX_Fraktur-Regular.woff2"
    "/page/fonts/KaTeX_Main-Bold.woff2" FONT "fonts/KaTeX_Main-Bold.woff2"
    "/page/fonts/KaTeX_Main-BoldItalic.woff2" FONT "fonts/KaTeX_Main-BoldItalic.woff2"
    "/page/fonts/KaTeX_Main-Italic.woff2" FONT "fonts/KaTeX_Main-Italic.woff2"
    "/page/fonts/KaTeX_Main-Regular.woff2" FONT "fonts/KaTeX_Main-Regular.woff2"
    "/page/fonts/KaTeX_Math-BoldItalic.woff2" FONT "fonts/KaTeX_Math-BoldItalic.woff2"
    "/page/fonts/KaTeX_Math-Italic.woff2" FONT "fonts/KaTeX_Math-Italic.woff2"
    "/page/fonts/KaTeX_SansSerif-Bold.woff2" FONT "fonts/KaTeX_SansSerif-Bold.woff2"
    "/page/fonts/KaTeX_SansSerif-Italic.woff2" FONT "fonts/KaTeX_SansSerif-Italic.woff2"
    "/page/fonts/KaTeX_SansSerif-Regular.woff2" FONT "fonts/KaTeX_SansSerif-Regular.woff2"
    "/page/fonts/KaTeX_Script-Regular.woff2" FONT "fonts/KaTeX_Script-Regular.woff2"
    "/page/fonts/KaTeX_Size1-Regular.woff2" FONT "fonts/KaTeX_Size1-Regular.woff2"
    "/page/fonts/KaTeX_Size2-Regular.woff2" FONT "fonts/KaTeX_Size2-Regular.woff2"
    "/page/fonts/KaTeX_Size3-Regular.woff2" FONT "fonts/KaTeX_Size3-Regular.woff2"
    "/page/fonts/KaTeX_Size4-Regular.woff2" FONT "fonts/KaTeX_Size4-Regular.woff2"
    "/page/fonts/KaTeX_Typewriter-Regular.woff2" FONT "fonts/KaTeX_Typewriter-Regular.woff2"
};

/// Headers of every part, by their names in lower case. Browsers ask again each time whether a part has changed: a server
/// that was updated must not run with half of an old page.
pub const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types dompurify; \
         frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),
];

/// Bytes of a hash that tell two versions of a part from each other.
const TAG_BYTES: usize = 16;

static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| PARTS.iter().map(|part| tag(part.bytes)).collect());

fn tag(bytes: &[u8]) -> String {
    let hash = blake3::hash(bytes);
    let hex: String = hash.as_bytes().iter().take(TAG_BYTES).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// Returns the part at a path, and its `ETag`, quotes included. `None` if the page has no such part.
pub fn find(path: &str) -> Option<(&'static Part, &'static str)> {
    let (part, tag) = PARTS.iter().zip(TAGS.iter()).find(|(part, _)| part.path == path)?;
    Some((part, tag))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn text(path: &str) -> &'static str {
        std::str::from_utf8(find(path).unwrap().0.bytes).unwrap()
    }

    /// Returns what stands between `before` and `after`, wherever `before` is.
    fn between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
        text.split(before).skip(1).map(|rest| rest.split(after).next().unwrap()).collect()
    }

    #[test]
    fn every_file_of_the_bundle_is_a_part() {
        let bundle = Path::new(file!()).with_file_name("bundle");
        let mut files = BTreeSet::new();
        for folder in ["", "fonts"] {
            for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(&bundle).join(folder)).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().unwrap().is_file() {
                    files.insert(if folder.is_empty() { name } else { format!("{folder}/{name}") });
                }
            }
        }
        let served = PARTS.iter().map(|part| match part.path {
            "/" => "index.html".to_owned(),
            path => path.strip_prefix("/page/").unwrap().to_owned(),
        });
        assert_eq!(served.collect::<BTreeSet<_>>(), files);
    }

    #[test]
    fn the_whole_page_is_small() {
        let bytes: usize = PARTS.iter().map(|part| part.bytes.len()).sum();
        assert!(bytes < 1_200_000, "{bytes} bytes");
    }

    #[test]
    fn a_part_is_found_by_its_path_alone() {
        let (part, tag) = find("/").unwrap();
        assert_eq!(part.content_type, HTML);
        assert!(tag.len() == 2 * TAG_BYTES + 2 && tag.starts_with('"') && tag.ends_with('"'));
        assert_eq!(TAGS.iter().collect::<BTreeSet<_>>().len(), PARTS.len(), "two parts have the same tag");
        for path in ["", "/page", "/page/", "/page/../page/page.js", "/page/page.js?x", "/PAGE/PAGE.JS", "/page/mod.rs"]
        {
            assert!(find(path).is_none(), "{path}");
        }
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let html = text("/");
        let mut addresses = between(html, "src=\"", "\"");
        addresses.extend(between(html, "href=\"", "\""));
        assert_eq!(addresses.len(), 3, "{addresses:?}");
        for address in addresses {
            assert!(find(&format!("/{address}")).is_some(), "{address} is no part");
        }
        let css = text("/page/page.css");
        assert!(!css.contains("@import"));
        let fonts: BTreeSet<_> = between(css, "url(", ")").into_iter().map(|url| url.trim_matches('"')).collect();
        for font in &fonts {
            let path = font.strip_prefix("./").map(|rest| format!("/page/{rest}"));
            assert!(path.is_some_and(|path| find(&path).is_some()), "{font} is no part");
        }
        assert_eq!(fonts.len(), PARTS.iter().filter(|part| part.content_type == FONT).count());
        // Whatever else a script could load with, or run text with. `fetch` is there twice: for routes, and for /health.
        let script = text("/page/page.js");
        for word in ["importScripts", "XMLHttpRequest", "WebSocket", "EventSource", "sendBeacon", "new Worker"] {
            assert!(!script.contains(word), "{word}");
        }
        for word in ["document.write", "new Function(", "sourceMappingURL"] {
            assert!(!script.contains(word), "{word}");
        }
        // KaTeX has a method of that name.
        let of_katex = script.matches(".fetch(").count() + script.matches("fetch(){").count();
        let of_the_browser = script.matches("fetch(").count() - of_katex;
        assert_eq!((of_the_browser, script.matches("await fetch(new URL(").count()), (2, 2));
    }

    #[test]
    fn the_page_has_the_policy_of_the_headers() {
        let (_, policy) = HEADERS.iter().find(|(name, _)| *name == "content-security-policy").unwrap();
        let own = between(text("/"), "Content-Security-Policy\" content=\"", "\"");
        // The last directive counts in a header only.
        assert_eq!(format!("{}; frame-ancestors 'none'", own[0]), *policy);
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("data:"));
    }

    #[test]
    fn licences_of_all_packages_are_listed() {
        let licences = text("/page/licences.txt");
        let package: serde_json::Value = serde_json::from_str(include_str!("package.json")).unwrap();
        let mut n_listed = 0;
        for (name, version) in package["devDependencies"].as_object().unwrap() {
            let version = version.as_str().unwrap();
            assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{name} is not pinned: {version}");
            // The bundler leaves nothing of itself in the bundle.
            if name != "esbuild" {
                assert!(licences.contains(&format!("\n{name} {version}: ")), "{name} {version} is not listed");
                n_listed += 1;
            }
        }
        assert!(n_listed >= 6);
        let lock: serde_json::Value = serde_json::from_str(include_str!("package-lock.json")).unwrap();
        for (path, package) in lock["packages"].as_object().unwrap() {
            // Its own entry and the bundler's parts come from nowhere, or are not in the bundle.
            assert!(path.is_empty() || package["integrity"].is_string(), "{path} has no hash");
        }
    }
}

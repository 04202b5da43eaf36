//! Names of files without their endings.
//!
//! What follows the last dot of a name need not be an ending: `Yi-1.5-9B-Q4_0` has none. [`Path::file_stem`] would cut it
//! to `Yi-1`, and give two models one name.

use std::path::Path;

/// Returns the file's name without its ending, where that is one of `endings`, in whatever case.
pub fn without(path: &Path, endings: &[&str]) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() && endings.iter().any(|known| ending.eq_ignore_ascii_case(known)) => {
            stem.to_string()
        }
        _ => name,
    }
}

/// Returns the file's name without its ending, where what follows the last dot looks like one: letters and digits that begin
/// with a letter, as in `notes.txt`.
pub fn stem(path: &Path) -> String {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let looks_like_one = ending.starts_with(|c: char| c.is_ascii_alphabetic())
        && ending.bytes().all(|byte| byte.is_ascii_alphanumeric());
    without(path, if looks_like_one { std::slice::from_ref(&ending) } else { &[] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_an_ending_is_cut() {
        let gguf = |path: &str| without(Path::new(path), &["gguf"]);
        assert_eq!(gguf("models/Yi-1.5-9B-Q4_0"), "Yi-1.5-9B-Q4_0");
        assert_eq!(gguf("models/Yi-1.5-9B-Q4_0.gguf"), "Yi-1.5-9B-Q4_0");
        assert_eq!(gguf("Yi-1.5.GGUF"), "Yi-1.5");
        assert_eq!(gguf("零一.万物"), "零一.万物");
        assert_eq!(gguf(".gguf"), ".gguf");
        assert_eq!(gguf("/"), "");
        for (path, wanted) in [
            ("a/notes.txt", "notes"),
            ("wiki.test.raw", "wiki.test"),
            ("notes-1.5", "notes-1.5"),
            ("notes-v1.5-final", "notes-v1.5-final"),
            ("x.jsonl", "x"),
            (".hidden", ".hidden"),
        ] {
            assert_eq!(stem(Path::new(path)), wanted);
        }
    }
}

//! No room imports one that the table of `docs/architecture.md` lists after it.
//!
//! The check reads the source as tokens, follows `mod` declarations from `src/lib.rs`, and looks at every path that begins
//! at the crate's root: `crate::room`, groups such as `use crate::{a, b::c}`, and `super::super::room` where it leads
//! there. It sees into macro calls, too. Test code may look up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Where the order of the rooms is written down.
const TABLE: &str = "docs/architecture.md";

#[test]
fn no_room_imports_one_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join(TABLE)).unwrap();
    let rooms = rooms(&table);
    let arrows = Source::read(&root.join("src/lib.rs")).arrows;
    let rank: BTreeMap<&str, usize> = rooms.iter().enumerate().map(|(rank, room)| (room.as_str(), rank)).collect();

    let mut complaints = String::new();
    for arrow in &arrows {
        let place = format!("{}:{}", arrow.file.strip_prefix(root).unwrap().display(), arrow.line);
        let (from, to) = (arrow.from.as_str(), arrow.to.as_str());
        match (rank.get(from), rank.get(to)) {
            (Some(from_rank), Some(to_rank)) if from_rank < to_rank => {
                writeln!(complaints, "{place}: {from} -> {to}, which the table lists later").unwrap();
            }
            (None, _) => writeln!(complaints, "{place}: the room {from} is missing in the table of {TABLE}").unwrap(),
            // What is no room is a macro or an item of the crate's root.
            _ => {}
        }
    }
    assert!(complaints.is_empty(), "a room may import only rooms that {TABLE} lists before it:\n{complaints}");
}

#[test]
fn the_table_lists_every_room_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut listed = rooms(&std::fs::read_to_string(root.join(TABLE)).unwrap());
    let mut there: Vec<String> = Source::read(&root.join("src/lib.rs")).rooms;
    listed.sort();
    there.sort();
    assert_eq!(listed, there, "left: the table of {TABLE}; right: the modules of src/lib.rs");
}

/// A check that finds nothing may be one that looks nowhere.
#[test]
fn arrows_are_found_in_every_form_of_import() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    };
    file("lib.rs", "pub mod low; #[cfg(feature = \"x\")] pub mod high;");
    file("high.rs", "use super::low;");
    file(
        "low/mod.rs",
        r##"
        //! crate::comment
        use crate::simple::Thing;
        use crate::{grouped, nested::{self, crate_name}, renamed as other};
        use super::parent;
        mod inner { use super::super::grandparent; use super::sibling; }
        mod deep;
        #[cfg(test)] mod tests;
        #[cfg(all(test, feature = "llama"))] mod oracle { use crate::in_tests; }
        #[cfg(test)] use crate::in_tests;
        #[cfg(not(test))] use crate::not_in_tests;
        macro_rules! of { ($t:ty) => { $crate::in_macro::of($t) } }
        /// [`crate::documented`]
        fn f<'a>(_: &'a str) -> char { println!("crate::quoted {}", crate::argument::of()); 'c' }
        "##,
    );
    file("low/deep.rs", "fn f() { super::super::from_a_file::g(); super::sibling() }");
    file("low/tests.rs", "use crate::in_tests;");

    let found = Source::read(&folder.path().join("lib.rs"));
    assert_eq!(found.rooms, ["low", "high"]);
    let arrows: Vec<String> = found.arrows.iter().map(|arrow| format!("{} -> {}", arrow.from, arrow.to)).collect();
    let wanted = [
        "low -> simple",
        "low -> grouped",
        "low -> nested",
        "low -> renamed",
        "low -> parent",
        "low -> grandparent",
        "low -> from_a_file",
        "low -> not_in_tests",
        "low -> in_macro",
        "low -> argument",
        "high -> low",
    ];
    assert_eq!(arrows, wanted);
    let grouped = found.arrows.iter().find(|arrow| arrow.to == "grouped").unwrap();
    assert_eq!(grouped.line, 4);
}

/// The rooms from the ground up: the first cells of the table under the heading "Rooms".
fn rooms(page: &str) -> Vec<String> {
    let section = page.split("\n## ").find(|section| section.starts_with("Rooms")).expect("a section \"Rooms\"");
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    cells.map(|(room, _)| room.trim_end_matches('/').to_string()).collect()
}

/// An import of one room by another.
struct Arrow {
    file: PathBuf,
    line: usize,
    from: String,
    to: String,
}

/// What the crate's source says about its rooms.
#[derive(Default)]
struct Source {
    /// The modules of the crate's root, in its order.
    rooms: Vec<String>,
    arrows: Vec<Arrow>,
}

/// Where tokens stand.
#[derive(Clone)]
struct Place {
    file: PathBuf,
    /// The folder in which the files of the module's children are.
    folder: PathBuf,
    /// The modules from the crate's root to here. The first is the room.
    modules: Vec<String>,
}

impl Source {
    fn read(lib: &Path) -> Self {
        let mut source = Self::default();
        let folder = lib.parent().unwrap().to_path_buf();
        source.file(&Place { file: lib.to_path_buf(), folder, modules: Vec::new() });
        source
    }

    fn file(&mut self, place: &Place) {
        let text = std::fs::read_to_string(&place.file).unwrap_or_else(|e| panic!("{}: {e}", place.file.display()));
        let tokens = text.parse().unwrap_or_else(|e| panic!("{}: {e}", place.file.display()));
        self.items(tokens, place);
    }

    /// Looks at tokens in their order, and into groups.
    fn items(&mut self, tokens: TokenStream, place: &Place) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if let Some(attribute) = attribute(&tokens[at..])
                && is_for_tests(attribute)
            {
                at += 2 + item_length(&tokens[at + 2..]);
            } else if word(&tokens, at) == Some("mod".into())
                && let Some(name) = word(&tokens, at + 1)
            {
                at += 2 + usize::from(self.module(&name, tokens.get(at + 2), place));
            } else if let Some(rest) = path_from_root(&tokens, at, place.modules.len()) {
                self.targets(&tokens[rest..], place);
                at = rest;
            } else {
                if let TokenTree::Group(group) = &tokens[at] {
                    self.items(group.stream(), place);
                }
                at += 1;
            }
        }
    }

    /// A module, whose body follows or is a file. Returns whether the body follows.
    fn module(&mut self, name: &str, body: Option<&TokenTree>, place: &Place) -> bool {
        let mut inside = place.clone();
        inside.modules.push(name.to_string());
        inside.folder = place.folder.join(name);
        let body = match body {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => Some(group.stream()),
            Some(TokenTree::Punct(punct)) if punct.as_char() == ';' => None,
            // Tokens of a macro.
            _ => return false,
        };
        if place.modules.is_empty() {
            self.rooms.push(name.to_string());
        }
        match &body {
            Some(body) => self.items(body.clone(), &inside),
            None => {
                let alone = place.folder.join(name).with_extension("rs");
                inside.file = if alone.exists() { alone } else { inside.folder.join("mod.rs") };
                self.file(&inside);
            }
        }
        body.is_some()
    }

    /// Notes what follows `crate::`: a name, or a group of paths.
    fn targets(&mut self, tokens: &[TokenTree], place: &Place) {
        match tokens.first() {
            Some(TokenTree::Ident(name)) => {
                let line = name.span().start().line;
                let (file, to) = (place.file.clone(), name.to_string());
                if let Some(from) = place.modules.first().filter(|from| **from != to) {
                    self.arrows.push(Arrow { file, line, from: from.clone(), to });
                }
            }
            Some(TokenTree::Group(group)) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
                inner.split(is_comma).for_each(|path| self.targets(path, place));
            }
            _ => {}
        }
    }
}

/// The identifier at `at`.
fn word(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at)? {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    }
}

/// The body of the attribute that `tokens` begin with.
fn attribute(tokens: &[TokenTree]) -> Option<&Group> {
    match tokens {
        [TokenTree::Punct(hash), TokenTree::Group(body), ..]
            if hash.as_char() == '#' && body.delimiter() == Delimiter::Bracket =>
        {
            Some(body)
        }
        _ => None,
    }
}

/// Whether an attribute keeps what follows to tests: `cfg(test)`, `cfg(all(test, ..))`, not `cfg(not(test))`.
fn is_for_tests(attribute: &Group) -> bool {
    fn has_test(tokens: TokenStream) -> bool {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        (0..tokens.len()).any(|at| match &tokens[at] {
            TokenTree::Ident(ident) => ident == "test",
            TokenTree::Group(group) => {
                !matches!(at.checked_sub(1).and_then(|at| word(&tokens, at)).as_deref(), Some("not" | "any"))
                    && has_test(group.stream())
            }
            _ => false,
        })
    }
    let tokens: Vec<TokenTree> = attribute.stream().into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(name), TokenTree::Group(condition)] => name == "cfg" && has_test(condition.stream()),
        _ => false,
    }
}

/// How many tokens the item takes that `tokens` begin with: up to its semicolon or body.
fn item_length(tokens: &[TokenTree]) -> usize {
    let is_use = (0..tokens.len().min(4)).any(|at| word(tokens, at) == Some("use".into()));
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        // The braces of a `use` are part of its path.
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace && !is_use,
        _ => false,
    };
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}

/// Where a path goes on that begins at `at` and leads to the crate's root: after `crate::`, or after as many `super::` as
/// there are modules around it.
fn path_from_root(tokens: &[TokenTree], at: usize, depth: usize) -> Option<usize> {
    let colons = |at: usize| {
        let is_colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == ':');
        is_colon(tokens.get(at)) && is_colon(tokens.get(at + 1))
    };
    if word(tokens, at)? == "crate" {
        return colons(at + 1).then_some(at + 3);
    }
    // Not from the middle of a path.
    let is_start = at < 2 || !colons(at - 2);
    let supers =
        (0..).take_while(|n| word(tokens, at + 3 * n) == Some("super".into()) && colons(at + 3 * n + 1)).count();
    (is_start && depth > 0 && supers == depth).then_some(at + 3 * supers)
}

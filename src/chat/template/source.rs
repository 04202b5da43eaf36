//! Rewrites what minijinja does not parse, or parses otherwise than Jinja2 does with transformers' settings.
//!
//! | in the source | becomes | |
//! |---|---|---|
//! | a byte order mark at the start | nothing | some editors write one |
//! | `{% generation %}`, `{% endgeneration %}` | `{% if true %}`, `{% endif %}` | marks answers for training |
//! | `'%s: %s' % (a, b)` | `('%s: %s'\|nibble_percent((a, b)))` | Python's formatting of strings |
//!
//! White space control and line numbers stay.

use crate::base::text::after_mark;
use std::collections::BTreeMap;

/// The filter that stands for `%` after a string.
pub(super) const PERCENT: &str = "nibble_percent";

/// Rewrites a template. What is not well formed stays as it is, for minijinja to refuse.
pub(super) fn prepared(source: &str) -> String {
    let source = after_mark(source);
    map_tags(source, |part| {
        let word = part.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" => part.replacen("generation", "if true", 1),
            "endgeneration" => part.replacen("endgeneration", "endif", 1),
            _ => with_percent(part),
        }
    })
}

/// Replaces characters in the texts that a template looks for in others, as in `'</think>' in x`, `x.split('</think>')`
/// and `x == '</think>'`. It never writes these texts.
pub(super) fn guarded(source: &str, swap: &BTreeMap<char, char>) -> String {
    map_tags(source, |part| {
        let tokens = tokens(part);
        let (mut out, mut from) = (String::with_capacity(part.len()), 0);
        for (i, token) in tokens.iter().enumerate() {
            if token.kind != Kind::String || !is_looked_for(part, &tokens, i) {
                continue;
            }
            out.push_str(&part[from..token.from]);
            let mut escaped = false;
            for c in part[token.from..token.to].chars() {
                out.push(if escaped { c } else { *swap.get(&c).unwrap_or(&c) });
                escaped = c == '\\' && !escaped;
            }
            from = token.to;
        }
        out + &part[from..]
    })
}

/// Methods and filters that look for their first argument.
const LOOKING: [&str; 14] = [
    "count",
    "endswith",
    "find",
    "index",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rpartition",
    "rsplit",
    "split",
    "startswith",
];

/// Whether the string at `i` is only compared with others.
fn is_looked_for(part: &str, tokens: &[Token], i: usize) -> bool {
    let text = |i: Option<usize>| i.and_then(|i| tokens.get(i)).map_or("", |token| &part[token.from..token.to]);
    let before = |n: usize| text(i.checked_sub(n));
    let after = |n: usize| text(Some(i + n));
    let brackets = (1..=2).take_while(|n| before(*n) == "(").count();
    after(1) == "in"
        || (after(1) == "not" && after(2) == "in")
        || (matches!(after(1), "=" | "!") && after(2) == "=")
        || (before(1) == "=" && matches!(before(2), "=" | "!"))
        || matches!(before(1), "startingwith" | "endingwith")
        || (brackets > 0 && LOOKING.contains(&before(brackets + 1)) && matches!(before(brackets + 2), "." | "|"))
}

/// Rewrites every tag of a source, but for comments and what stands between `raw` and `endraw`.
fn map_tags(source: &str, mut rewrite: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = match from.as_bytes().get(1) {
            Some(b'#') => from.find("#}").map(|end| end + 2),
            Some(b'%') => tag(from, "%}"),
            Some(b'{') => tag(from, "}}"),
            _ => Some(1),
        };
        let Some(end) = end else {
            rest = from;
            break;
        };
        let (part, after) = from.split_at(end);
        rest = after;
        if part.len() == 1 || part.starts_with("{#") {
            out.push_str(part);
            continue;
        }
        let word = part.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        if word == "raw" {
            let end = end_of_raw(rest);
            out.push_str(part);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else {
            out.push_str(&rewrite(part));
        }
    }
    out + rest
}

/// Returns where the tag at the start of `text` ends, behind its `close`. Strings and brackets may contain it.
fn tag(text: &str, close: &str) -> Option<usize> {
    let (mut at, mut depth) = (2, 0_usize);
    while let Some(c) = text[at..].chars().next() {
        if depth == 0 && text[at..].starts_with(close) {
            return Some(at + close.len());
        }
        match c {
            '"' | '\'' => at = string(text, at)?,
            '{' | '[' | '(' => (at, depth) = (at + 1, depth + 1),
            '}' | ']' | ')' => (at, depth) = (at + 1, depth.saturating_sub(1)),
            _ => at += c.len_utf8(),
        }
    }
    None
}

/// Returns where the string that begins at `at` ends.
fn string(text: &str, at: usize) -> Option<usize> {
    let quote = text[at..].chars().next()?;
    let mut chars = text[at + 1..].char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            c if c == quote => return Some(at + 1 + i + 1),
            _ => {}
        }
    }
    None
}

/// Returns where `{% endraw %}` begins in `text`; its end if there is none.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%") {
        let word = text[from + at + 2..].trim_start_matches(['-', '+']).trim_start();
        if word.starts_with("endraw") {
            return from + at;
        }
        from += at + 2;
    }
    text.len()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Name,
    Number,
    String,
    /// An operator or a bracket.
    Sign,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    kind: Kind,
    from: usize,
    to: usize,
}

/// The tokens between the brackets of a tag.
fn tokens(part: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 2;
    let end = part.len() - 2;
    while let Some(c) = part.get(at..end).and_then(|rest| rest.chars().next()) {
        let run = |is: fn(char) -> bool| at + part[at..end].find(|c| !is(c)).unwrap_or(end - at);
        let (kind, to) = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '"' | '\'' => (Kind::String, string(part, at).unwrap_or(end)),
            c if c.is_ascii_digit() => (Kind::Number, run(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_')),
            c if c.is_alphanumeric() || c == '_' => (Kind::Name, run(|c| c.is_alphanumeric() || c == '_')),
            '*' | '/' if part[at + 1..].starts_with(c) => (Kind::Sign, at + 2),
            c => (Kind::Sign, at + c.len_utf8()),
        };
        tokens.push(Token { kind, from: at, to });
        at = to;
    }
    tokens
}

/// Rewrites each `%` after a string in a tag.
fn with_percent(part: &str) -> String {
    let mut part = part.to_string();
    // Each round rewrites one, from the left: '%s' % a % b formats twice.
    for _ in 0..100 {
        let tokens = tokens(&part);
        let found = (0..tokens.len()).find_map(|i| {
            let (from, to) = operands(&part, &tokens, i)?;
            Some((tokens[from].from, tokens[i], tokens[to].to))
        });
        let Some((from, sign, to)) = found else { break };
        let (left, right) = (part[from..sign.from].trim_end(), part[sign.to..to].trim_start());
        part = format!("{}({left}|{PERCENT}({right})){}", &part[..from], &part[to..]);
    }
    part
}

/// The first and the last token of the operands of the `%` at `i`, if it formats a string.
fn operands(part: &str, tokens: &[Token], i: usize) -> Option<(usize, usize)> {
    let text = |i: usize| tokens.get(i).map_or("", |token| &part[token.from..token.to]);
    if text(i) != "%" || i == 0 {
        return None;
    }
    let from = left(tokens, i - 1, &text)?;
    let to = right(tokens, i + 1, &text)?;
    // Operators of the same rank, and of a higher one, would take a part of an operand.
    if (from > 0 && matches!(text(from - 1), "*" | "/" | "//" | "**" | "%")) || matches!(text(to + 1), "**" | "is") {
        return None;
    }
    let is_string = tokens[from].kind == Kind::String
        // What is in brackets is a string if it begins with one: a sum of strings.
        || (text(from) == "(" && tokens.get(from + 1).is_some_and(|token| token.kind == Kind::String));
    // A number has no remainder for a string, a tuple or a dictionary.
    let values = i + 1;
    let is_format = tokens[values].kind == Kind::String || text(values) == "{" || is_tuple(tokens, values, &text);
    (is_string || is_format).then_some((from, to))
}

/// Whether brackets at `i` hold a tuple.
fn is_tuple<'a>(tokens: &[Token], i: usize, text: &impl Fn(usize) -> &'a str) -> bool {
    let Some(end) = (text(i) == "(").then(|| closing(tokens, i, text)).flatten() else { return false };
    let mut depth = 0;
    (i..end).any(|j| {
        match text(j) {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        depth == 1 && text(j) == ","
    })
}

/// The index of the bracket that closes the one at `i`.
fn closing<'a>(tokens: &[Token], i: usize, text: &impl Fn(usize) -> &'a str) -> Option<usize> {
    let mut depth = 0;
    (i..tokens.len()).find(|&j| {
        match text(j) {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

/// The index of the first token of the value that ends with token `end`, with its attributes, calls and filters.
fn left<'a>(tokens: &[Token], end: usize, text: &impl Fn(usize) -> &'a str) -> Option<usize> {
    let mut at = end;
    loop {
        if matches!(text(at), ")" | "]" | "}") {
            let mut depth = 0;
            at = (0..=at).rev().find(|&j| {
                match text(j) {
                    ")" | "]" | "}" => depth += 1,
                    "(" | "[" | "{" => depth -= 1,
                    _ => {}
                }
                depth == 0
            })?;
            let before = at.checked_sub(1).map(|i| (tokens[i].kind, text(i)));
            // A call or an item of what comes before.
            let follows = matches!(before, Some((Kind::Name, word)) if !KEYWORDS.contains(&word))
                || matches!(before, Some((Kind::String, _)) | Some((_, ")" | "]")));
            if text(at) != "{" && follows {
                at -= 1;
                continue;
            }
            return Some(at);
        }
        match tokens[at].kind {
            Kind::Name if at > 0 && matches!(text(at - 1), "." | "|") => at = at.checked_sub(2)?,
            Kind::Name | Kind::Number => return Some(at),
            // Strings beside each other are one.
            Kind::String if at > 0 && tokens[at - 1].kind == Kind::String => at -= 1,
            Kind::String => return Some(at),
            Kind::Sign => return None,
        }
    }
}

/// Words that end an expression.
const KEYWORDS: [&str; 14] =
    ["in", "if", "else", "elif", "and", "or", "not", "is", "set", "for", "return", "do", "with", "print"];

/// The index of the last token of the value that begins with token `start`, with its attributes, calls and filters.
fn right<'a>(tokens: &[Token], start: usize, text: &impl Fn(usize) -> &'a str) -> Option<usize> {
    let mut at = start;
    while matches!(text(at), "-" | "+") {
        at += 1;
    }
    match tokens.get(at)?.kind {
        Kind::Sign if matches!(text(at), "(" | "[" | "{") => at = closing(tokens, at, text)?,
        Kind::Sign => return None,
        Kind::String => {
            while tokens.get(at + 1).is_some_and(|token| token.kind == Kind::String) {
                at += 1;
            }
        }
        Kind::Name | Kind::Number => {}
    }
    loop {
        match text(at + 1) {
            "." | "|" if tokens.get(at + 2).is_some_and(|token| token.kind == Kind::Name) => at += 2,
            "(" | "[" => at = closing(tokens, at + 1, text)?,
            _ => return Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_looked_for_is_guarded() {
        let swap = BTreeMap::from([('<', '«')]);
        for (source, wanted) in [
            ("<a>{{ '<a>' + x.split('<b>')[0] }}", "<a>{{ '<a>' + x.split('«b>')[0] }}"),
            (
                "{{ x.replace('<a>', '<b>') ~ x|replace(\"<a>\", '<b>') }}",
                "{{ x.replace('«a>', '<b>') ~ x|replace(\"«a>\", '<b>') }}",
            ),
            ("{% if '<a>' in x or '<b>' not in x %}", "{% if '«a>' in x or '«b>' not in x %}"),
            (
                "{{ '<c>' if x == '<a>' or '<b>' != x else '<d>' }}",
                "{{ '<c>' if x == '«a>' or '«b>' != x else '<d>' }}",
            ),
            ("{% set x = '<a>' %}{{ f('<a>') }}{# '<a>' in x #}", "{% set x = '<a>' %}{{ f('<a>') }}{# '<a>' in x #}"),
            ("{{ x.startswith(('<a>', '<b>')) }}", "{{ x.startswith(('«a>', '<b>')) }}"),
        ] {
            assert_eq!(guarded(source, &swap), wanted);
        }
    }

    #[test]
    fn only_what_minijinja_lacks_is_rewritten() {
        for (source, wanted) in [
            ("\u{feff}{% generation %}a{%- endgeneration -%}", "{% if true %}a{%- endif -%}"),
            ("{# {% generation %} #}{{ '{% generation %}' }}", "{# {% generation %} #}{{ '{% generation %}' }}"),
            (
                "{% raw %}{% generation %}{{ '%' % 1 }}{% endraw %}",
                "{% raw %}{% generation %}{{ '%' % 1 }}{% endraw %}",
            ),
            ("{{ loop.index0 % 2 == 0 }}{{ (a|length) % n }}", "{{ loop.index0 % 2 == 0 }}{{ (a|length) % n }}"),
            ("{{ '%s' % a }}", "{{ ('%s'|nibble_percent(a)) }}"),
            ("{{ x ~ '%d-%d' % (a, b[1:]) ~ y }}", "{{ x ~ ('%d-%d'|nibble_percent((a, b[1:]))) ~ y }}"),
            ("{{ f % (a, b) + f % {'a': 1} }}", "{{ (f|nibble_percent((a, b))) + (f|nibble_percent({'a': 1})) }}"),
            ("{%- set x = '%5.2f' % m.y['z']|float -%}", "{%- set x = ('%5.2f'|nibble_percent(m.y['z']|float)) -%}"),
            ("{{ '%s' % '%s' % 1 }}", "{{ (('%s'|nibble_percent('%s'))|nibble_percent(1)) }}"),
            ("{{ 7 % 3 }}{{ {'a': {}} }}{{ '}}' % x }}", "{{ 7 % 3 }}{{ {'a': {}} }}{{ ('}}'|nibble_percent(x)) }}"),
            ("{{ 3 * 'a%s' % 1 }}{ {{ '' % ", "{{ 3 * 'a%s' % 1 }}{ {{ '' % "),
            ("{% if x in '%s' % y %}", "{% if x in ('%s'|nibble_percent(y)) %}"),
        ] {
            assert_eq!(prepared(source), wanted);
        }
    }
}

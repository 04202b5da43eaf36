//! Translates llama.cpp's grammar notation, GBNF, to a Lark grammar for `llguidance`.
//!
//! Notation: `grammars/README.md` and `src/llama-grammar.cpp` in llama.cpp.
//!
//! GBNF is defined over characters. `llguidance` has a lexer below the parser, which always takes the longest lexeme
//! and never backtracks. It is fast, while a grammar over single characters is slow. So parts without recursion become
//! lexemes, the larger the better, but only if taking the longest match loses nothing:
//!
//! ```text
//! a part P may be a lexeme  if  no text of P, plus a character that can follow it, begins a lexeme that
//!                               is possible in the same place
//! object ::= "{" ws (string ":" ws object)? "}" ws      ws ::= [ \n]*
//!            └─ P ─┘ └─── P ─────┘           └─ P ─┘
//! list   ::= [a-z]+ "s" list?                           [a-z]+ would take the "s" too: single characters
//! ```
//!
//! Whether a character can extend a lexeme is decided exactly, by testing whether a regular expression is empty. A
//! grammar without recursion is a single lexeme, and always exact.

use crate::base::text::after_mark;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use llguidance::derivre::{ExprRef, RegexAst, RegexBuilder};

/// The deepest nesting of groups.
const DEEPEST: usize = 200;
/// The largest count of a repetition.
const MOST_REPEATED: u32 = 1_000_000;
/// The most rules.
const MOST_RULES: usize = 5_000;
/// The most pairs of lexemes that are compared, and the effort for each, before single characters are used instead.
const MOST_CHECKS: usize = 20_000;
const CHECK_FUEL: u64 = 20_000;
/// The most characters of a lexeme with all its rules expanded. Rules that double each other have many.
const LARGEST_LEXEME: u64 = 5_000;
/// The most sets of lexemes that are possible in one place.
const MOST_SETS: usize = 300;
const LAST_CHARACTER: u32 = 0x10_ffff;

/// Returns whether the text defines rules in the syntax of GBNF.
pub(super) fn looks_like(text: &str) -> bool {
    text.lines().any(|line| {
        let rest = line.trim_start().trim_start_matches(is_name);
        rest.len() < line.trim_start().len() && rest.trim_start_matches([' ', '\t']).starts_with("::=")
    })
}

/// Translates a grammar to Lark.
///
/// # Errors
/// If the grammar cannot be translated. The error is in words that follow `the grammar: `, with line and column if they
/// are known.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let grammar = Parser::new(text).grammar()?;
    check_ends(&grammar)?;
    let mut translation = Translation::new(&grammar);
    translation.split();
    Ok(translation.lark())
}

// --- reading ------------------------------------------------------------------------------------------

/// A set of characters: sorted ranges that neither overlap nor touch, without surrogates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Set(Vec<(u32, u32)>);

impl Set {
    fn new(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        let apart = joined.into_iter().flat_map(|(first, last)| {
            // Surrogates are not characters.
            [(first, last.min(0xd7ff)), (first.max(0xe000), last)].into_iter().filter(|(first, last)| first <= last)
        });
        // A range that is entirely on one side occurs twice.
        let mut apart: Vec<_> = apart.collect();
        apart.dedup();
        Self(apart)
    }

    fn one(character: char) -> Self {
        Self(vec![(character.into(), character.into())])
    }

    fn not(&self) -> Self {
        let mut ranges = Vec::new();
        let mut next = 0;
        for (first, last) in &self.0 {
            if *first > next {
                ranges.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= LAST_CHARACTER {
            ranges.push((next, LAST_CHARACTER));
        }
        Self::new(ranges)
    }

    fn or(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).copied().collect())
    }

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.0 <= b.1 && b.0 <= a.1))
    }

    /// Writes the set as a character class of a regular expression.
    fn class(&self) -> String {
        let mut out = "[".to_string();
        for (first, last) in &self.0 {
            // Writing to a string does not fail.
            let _ = write!(out, "\\x{{{first:x}}}");
            if last > first {
                let _ = write!(out, "-\\x{{{last:x}}}");
            }
        }
        out.push(']');
        out
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Node {
    Char(Set),
    Rule(usize),
    Seq(Vec<Node>),
    Alt(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

/// Rules by number; the first is `root`.
#[derive(Debug)]
struct Rules {
    names: Vec<String>,
    bodies: Vec<Node>,
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    numbers: HashMap<&'a str, usize>,
    names: Vec<&'a str>,
    // The offset of the first mention of each rule, and its definition.
    mentioned: Vec<usize>,
    bodies: Vec<Option<Node>>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let mut parser = Self {
            text: after_mark(text),
            at: 0,
            depth: 0,
            numbers: HashMap::new(),
            names: Vec::new(),
            mentioned: Vec::new(),
            bodies: Vec::new(),
        };
        parser.number("root");
        parser
    }

    fn number(&mut self, name: &'a str) -> usize {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len();
        self.numbers.insert(name, number);
        self.names.push(name);
        self.mentioned.push(self.at);
        self.bodies.push(None);
        number
    }

    fn grammar(mut self) -> Result<Rules, String> {
        self.space(true);
        while self.at < self.text.len() {
            self.rule()?;
            self.space(true);
        }
        if self.bodies[0].is_none() {
            return Err("it has no rule 'root', which is where texts begin".to_string());
        }
        if let Some(number) = self.bodies.iter().position(Option::is_none) {
            self.at = self.mentioned[number];
            return Err(self.error(format!("there is no rule '{}'", self.names[number])));
        }
        if self.names.len() > MOST_RULES {
            return Err(format!("it has {} rules; at most {MOST_RULES} are allowed", self.names.len()));
        }
        let names = self.names.iter().map(|name| name.to_string()).collect();
        Ok(Rules { names, bodies: self.bodies.into_iter().flatten().collect() })
    }

    fn error(&self, what: impl std::fmt::Display) -> String {
        let before = &self.text[..self.at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("line {line}, column {column}: {what}")
    }

    fn wanted(&self, what: &str) -> String {
        match self.peek() {
            Some(c) => self.error(format!("expected {what}, found {c:?}")),
            None => self.error(format!("expected {what}, found the end of the grammar")),
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.rest().starts_with(wanted);
        self.at += if found { wanted.len() } else { 0 };
        found
    }

    /// Skips white space and comments, and also line breaks if `breaks`.
    fn space(&mut self, breaks: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if breaks => self.at += 1,
                '#' => self.at += self.rest().find(['\r', '\n']).unwrap_or(self.rest().len()),
                _ => break,
            }
        }
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let rest = self.rest();
        let len = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.wanted("the name of a rule"));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    fn rule(&mut self) -> Result<(), String> {
        let start = self.at;
        let name = self.name()?;
        let number = self.number(name);
        self.space(false);
        if !self.take("::=") {
            return Err(self.wanted("'::='"));
        }
        if self.bodies[number].is_some() {
            self.at = start;
            return Err(self.error(format!("the rule '{name}' is defined twice")));
        }
        self.space(true);
        let body = self.alternatives(false)?;
        match self.peek() {
            None | Some('\r' | '\n') => {}
            Some(_) => return Err(self.wanted("the end of the rule")),
        }
        self.bodies[number] = Some(body);
        Ok(())
    }

    fn alternatives(&mut self, nested: bool) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.error(format!("groups are nested more than {DEEPEST} deep")));
        }
        let mut options = vec![self.sequence(nested)?];
        while self.take("|") {
            self.space(true);
            options.push(self.sequence(nested)?);
        }
        self.depth -= 1;
        Ok(if options.len() == 1 { options.remove(0) } else { Node::Alt(options) })
    }

    fn sequence(&mut self, nested: bool) -> Result<Node, String> {
        let mut nodes = Vec::new();
        while let Some(c) = self.peek() {
            let node = match c {
                '"' => self.literal()?,
                '[' => self.class()?,
                '(' => {
                    self.at += 1;
                    self.space(true);
                    let group = self.alternatives(true)?;
                    if !self.take(")") {
                        return Err(self.wanted("')'"));
                    }
                    group
                }
                '.' => {
                    self.at += 1;
                    Node::Char(Set::new(vec![(0, LAST_CHARACTER)]))
                }
                '<' | '!' => {
                    return Err(self.error("tokens, such as <think>, are not supported; only text is"));
                }
                '*' | '+' | '?' | '{' => {
                    let last =
                        nodes.pop().ok_or_else(|| self.error(format!("'{c}' has nothing before it to repeat")))?;
                    let (least, most) = self.repetition()?;
                    Node::Repeat(Box::new(last), least, most)
                }
                c if is_name(c) => {
                    let at = self.at;
                    let name = self.name()?;
                    let end = std::mem::replace(&mut self.at, at);
                    let number = self.number(name);
                    self.at = end;
                    Node::Rule(number)
                }
                _ => break,
            };
            nodes.push(node);
            self.space(nested);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Seq(nodes) })
    }

    fn repetition(&mut self) -> Result<(u32, Option<u32>), String> {
        let start = self.at;
        for (sign, counts) in [("*", (0, None)), ("+", (1, None)), ("?", (0, Some(1)))] {
            if self.take(sign) {
                return Ok(counts);
            }
        }
        self.at += 1;
        self.space(false);
        let least = self.count()?;
        self.space(false);
        let mut most = Some(least);
        if self.take(",") {
            self.space(false);
            most = if self.peek().is_some_and(|c| c.is_ascii_digit()) { Some(self.count()?) } else { None };
            self.space(false);
        }
        if !self.take("}") {
            return Err(self.wanted("',' or '}'"));
        }
        if most.is_some_and(|most| most < least) {
            self.at = start;
            return Err(self.error(format!("the minimum of {least} is above the maximum")));
        }
        Ok((least, most))
    }

    fn count(&mut self) -> Result<u32, String> {
        let rest = self.rest();
        let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.wanted("a number"));
        }
        let count = rest[..len].parse().ok().filter(|count| *count <= MOST_REPEATED);
        let count = count.ok_or_else(|| self.error(format!("at most {MOST_REPEATED} repetitions are allowed")))?;
        self.at += len;
        Ok(count)
    }

    fn literal(&mut self) -> Result<Node, String> {
        let start = self.at;
        self.at += 1;
        let mut nodes = Vec::new();
        while !self.take("\"") {
            if self.peek().is_none() {
                self.at = start;
                return Err(self.error("this string has no closing '\"'"));
            }
            nodes.push(Node::Char(Set::one(self.character()?)));
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Seq(nodes) })
    }

    fn class(&mut self) -> Result<Node, String> {
        let start = self.at;
        self.at += 1;
        let negated = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            if self.peek().is_none() {
                self.at = start;
                return Err(self.error("this character class has no closing ']'"));
            }
            let at = self.at;
            let first = self.character()?;
            let mut last = first;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                last = self.character()?;
            }
            if last < first {
                self.at = at;
                return Err(self.error(format!("the range from {first:?} to {last:?} is reversed")));
            }
            ranges.push((first.into(), last.into()));
        }
        let set = Set::new(ranges);
        let set = if negated { set.not() } else { set };
        if set.0.is_empty() {
            self.at = start;
            return Err(self.error("this character class is empty"));
        }
        Ok(Node::Char(set))
    }

    fn character(&mut self) -> Result<char, String> {
        let start = self.at;
        let Some(c) = self.peek() else { return Err(self.wanted("a character")) };
        self.at += c.len_utf8();
        if c != '\\' {
            return Ok(c);
        }
        let Some(escaped) = self.peek() else { return Err(self.wanted("the rest of the escape")) };
        self.at += escaped.len_utf8();
        let digits = match escaped {
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'n' => return Ok('\n'),
            '\\' | '"' | '[' | ']' | '-' | '^' => return Ok(escaped),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => {
                self.at = start;
                return Err(self.error(format!("unknown escape '\\{}'", escaped.escape_default())));
            }
        };
        let hex = self.rest().get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(hex) = hex else {
            self.at = start;
            return Err(self.error(format!("'\\{escaped}' must be followed by {digits} hexadecimal digits")));
        };
        self.at += digits;
        let character = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
        character.ok_or_else(|| {
            self.at = start;
            self.error(format!("'\\{escaped}{hex}' is not a character"))
        })
    }
}

/// Refuses a grammar that no finite text satisfies.
fn check_ends(rules: &Rules) -> Result<(), String> {
    let mut ends = vec![false; rules.bodies.len()];
    loop {
        let mut changed = false;
        for i in 0..ends.len() {
            if !ends[i] && can_end(&rules.bodies[i], &ends) {
                ends[i] = true;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    if ends[0] {
        return Ok(());
    }
    let endless = (0..ends.len()).rev().find(|i| !ends[*i]).unwrap_or(0);
    Err(format!("the rule '{}' requires itself, so no finite text satisfies it", rules.names[endless]))
}

fn can_end(node: &Node, ends: &[bool]) -> bool {
    match node {
        Node::Char(_) => true,
        Node::Rule(rule) => ends[*rule],
        Node::Seq(nodes) => nodes.iter().all(|node| can_end(node, ends)),
        Node::Alt(nodes) => nodes.iter().any(|node| can_end(node, ends)),
        Node::Repeat(node, least, _) => *least == 0 || can_end(node, ends),
    }
}

// --- what becomes a lexeme ----------------------------------------------------------------------------

/// A grammar over lexemes.
#[derive(Clone, Debug)]
enum Production {
    Lexeme(usize),
    Rule(usize),
    Seq(Vec<Production>),
    Alt(Vec<Production>),
    Repeat(Box<Production>, u32, Option<u32>),
}

struct Translation<'a> {
    rules: &'a Rules,
    // Whether a rule is free of recursion.
    regular: Vec<bool>,
    empty: Vec<bool>,
    first: Vec<Set>,
    // The number of characters with all rules expanded; for regular rules.
    size: Vec<u64>,
    // Nodes that are not a lexeme, but consist of smaller ones.
    broken: HashSet<Node>,
    lexemes: Vec<Node>,
    numbers: HashMap<Node, usize>,
    parts: BTreeMap<usize, Production>,
}

impl<'a> Translation<'a> {
    fn new(rules: &'a Rules) -> Self {
        let n = rules.bodies.len();
        let mut this = Self {
            rules,
            regular: vec![false; n],
            empty: vec![false; n],
            first: vec![Set(Vec::new()); n],
            size: vec![0; n],
            broken: HashSet::new(),
            lexemes: Vec::new(),
            numbers: HashMap::new(),
            parts: BTreeMap::new(),
        };
        // Each is the least fixed point: start from false and repeat until nothing changes.
        loop {
            let mut changed = false;
            for (i, body) in rules.bodies.iter().enumerate() {
                let found = (this.is_regular(body), this.is_empty(body), this.firsts(body));
                if found != (this.regular[i], this.empty[i], this.first[i].clone()) {
                    (this.regular[i], this.empty[i], this.first[i]) = found;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        // Ends after at most as many steps as there are rules, because recursive rules are left out.
        loop {
            let mut changed = false;
            for (i, body) in rules.bodies.iter().enumerate().filter(|(i, _)| this.regular[*i]) {
                let size = this.size(body);
                changed |= std::mem::replace(&mut this.size[i], size) != size;
            }
            if !changed {
                return this;
            }
        }
    }

    fn size(&self, node: &Node) -> u64 {
        let sum = |nodes: &[Node]| nodes.iter().fold(1u64, |sum, node| sum.saturating_add(self.size(node)));
        match node {
            Node::Char(_) => 1,
            Node::Rule(rule) => self.size[*rule],
            Node::Seq(nodes) | Node::Alt(nodes) => sum(nodes),
            Node::Repeat(node, ..) => self.size(node).saturating_add(1),
        }
    }

    /// Returns whether a node can be a single lexeme.
    fn fits_a_lexeme(&self, node: &Node) -> bool {
        self.is_regular(node) && !self.broken.contains(node) && self.size(node) <= LARGEST_LEXEME
    }

    fn is_regular(&self, node: &Node) -> bool {
        match node {
            Node::Char(_) => true,
            Node::Rule(rule) => self.regular[*rule],
            Node::Seq(nodes) | Node::Alt(nodes) => nodes.iter().all(|node| self.is_regular(node)),
            Node::Repeat(node, ..) => self.is_regular(node),
        }
    }

    /// Returns whether a node matches the empty text.
    fn is_empty(&self, node: &Node) -> bool {
        match node {
            Node::Char(_) => false,
            Node::Rule(rule) => self.empty[*rule],
            Node::Seq(nodes) => nodes.iter().all(|node| self.is_empty(node)),
            Node::Alt(nodes) => nodes.iter().any(|node| self.is_empty(node)),
            Node::Repeat(node, least, _) => *least == 0 || self.is_empty(node),
        }
    }

    /// The first characters of the texts that a node matches.
    fn firsts(&self, node: &Node) -> Set {
        match node {
            Node::Char(set) => set.clone(),
            Node::Rule(rule) => self.first[*rule].clone(),
            Node::Alt(nodes) => nodes.iter().fold(Set(Vec::new()), |all, node| all.or(&self.firsts(node))),
            Node::Repeat(node, ..) => self.firsts(node),
            Node::Seq(nodes) => {
                let mut all = Set(Vec::new());
                for node in nodes {
                    all = all.or(&self.firsts(node));
                    if !self.is_empty(node) {
                        break;
                    }
                }
                all
            }
        }
    }

    /// Finds lexemes for which taking the longest match loses nothing.
    fn split(&mut self) {
        let mut left = MOST_CHECKS;
        loop {
            self.divide();
            let unsafe_ones = match self.too_greedy(&mut left) {
                Some(found) if found.is_empty() => return,
                Some(found) => found,
                // Too much to check. Single characters are always correct.
                None => self.lexemes.iter().filter(|node| !matches!(node, Node::Char(_))).cloned().collect(),
            };
            if unsafe_ones.is_empty() {
                return;
            }
            self.broken.extend(unsafe_ones);
        }
    }

    /// Divides the rules that `root` needs into lexemes and rules.
    fn divide(&mut self) {
        self.lexemes.clear();
        self.numbers.clear();
        self.parts.clear();
        let mut todo = vec![0];
        while let Some(rule) = todo.pop() {
            if !self.parts.contains_key(&rule) {
                let part = self.part(&self.rules.bodies[rule], &mut todo);
                self.parts.insert(rule, part);
            }
        }
    }

    fn part(&mut self, node: &Node, todo: &mut Vec<usize>) -> Production {
        if self.fits_a_lexeme(node) {
            if matches!(node, Node::Seq(nodes) if nodes.is_empty()) {
                return Production::Seq(Vec::new());
            }
            return Production::Lexeme(self.lexeme(node));
        }
        match node {
            // A single character is never split.
            Node::Char(_) => Production::Lexeme(self.lexeme(node)),
            Node::Rule(rule) => {
                todo.push(*rule);
                Production::Rule(*rule)
            }
            Node::Repeat(inner, least, most) => Production::Repeat(Box::new(self.part(inner, todo)), *least, *most),
            Node::Seq(nodes) => {
                let runs = self.runs(node, nodes);
                Production::Seq(runs.iter().map(|run| self.part(run, todo)).collect())
            }
            Node::Alt(nodes) => {
                let (regular, mut options): (Vec<_>, Vec<_>) =
                    nodes.iter().cloned().partition(|option| self.is_regular(option));
                match regular.len() {
                    0 => {}
                    // Together they would be the node itself, which cannot be a lexeme.
                    _ if options.is_empty() => options = regular,
                    1 => options.extend(regular),
                    _ => options.push(Node::Alt(regular)),
                }
                Production::Alt(options.iter().map(|option| self.part(option, todo)).collect())
            }
        }
    }

    /// The nodes of a sequence, with adjacent regular ones joined.
    fn runs(&self, whole: &Node, nodes: &[Node]) -> Vec<Node> {
        let mut runs: Vec<Vec<Node>> = Vec::new();
        let mut open = false;
        for node in nodes {
            let regular = self.is_regular(node);
            match runs.last_mut() {
                Some(run) if open && regular => run.push(node.clone()),
                _ => runs.push(vec![node.clone()]),
            }
            open = regular;
        }
        let joined = |run: Vec<Node>| if run.len() == 1 { run } else { vec![Node::Seq(run)] };
        let runs: Vec<Node> = runs.into_iter().flat_map(joined).collect();
        if runs.len() == 1 && runs[0] == *whole { nodes.to_vec() } else { runs }
    }

    fn lexeme(&mut self, node: &Node) -> usize {
        if let Some(number) = self.numbers.get(node) {
            return *number;
        }
        self.lexemes.push(node.clone());
        self.numbers.insert(node.clone(), self.lexemes.len() - 1);
        self.lexemes.len() - 1
    }

    /// Returns the lexemes that would consume text after another lexeme that is possible in the same place. `None` if
    /// that is too much to check.
    fn too_greedy(&self, left: &mut usize) -> Option<Vec<Node>> {
        let places = Places::of(self);
        let firsts: Vec<Set> = self.lexemes.iter().map(|node| self.firsts(node)).collect();
        let after: Vec<Set> = places
            .next
            .iter()
            .map(|next| next.iter().fold(Set(Vec::new()), |all, lexeme| all.or(&firsts[*lexeme])))
            .collect();
        let mut pairs = BTreeSet::new();
        for set in places.sets(&firsts)? {
            for a in &set {
                pairs.extend(set.iter().filter(|b| firsts[*a].meets(&firsts[**b])).map(|b| (*a, *b)));
            }
        }
        let mut greedy = BTreeSet::new();
        let mut expressions = Expressions::new(self);
        for (a, b) in pairs {
            if matches!(self.lexemes[b], Node::Char(_)) || after[a].0.is_empty() || greedy.contains(&b) {
                continue;
            }
            *left = left.checked_sub(1)?;
            if expressions.extends(a, &after[a], b) {
                greedy.insert(b);
            }
        }
        Some(greedy.into_iter().map(|lexeme| self.lexemes[lexeme].clone()).collect())
    }
}

/// Which lexemes can follow which.
struct Places {
    start: BTreeSet<usize>,
    // By lexeme: the lexemes that can follow it.
    next: Vec<BTreeSet<usize>>,
}

impl Places {
    fn of(translation: &Translation<'_>) -> Self {
        let parts = &translation.parts;
        let empty_lexeme: Vec<bool> = translation.lexemes.iter().map(|node| translation.is_empty(node)).collect();
        let mut first_sets = FirstSets { empty_lexeme, empty: BTreeMap::new(), first: BTreeMap::new() };
        loop {
            let mut changed = false;
            for (rule, part) in parts {
                let found = (first_sets.is_empty(part), first_sets.firsts(part));
                changed |= first_sets.empty.insert(*rule, found.0) != Some(found.0);
                changed |= first_sets.first.insert(*rule, found.1.clone()).as_ref() != Some(&found.1);
            }
            if !changed {
                break;
            }
        }
        let mut next = vec![BTreeSet::new(); translation.lexemes.len()];
        let mut after: BTreeMap<usize, BTreeSet<usize>> = parts.keys().map(|rule| (*rule, BTreeSet::new())).collect();
        loop {
            let before: usize = next.iter().chain(after.values()).map(BTreeSet::len).sum();
            for (rule, part) in parts {
                let follow = after[rule].clone();
                first_sets.walk(part, &follow, &mut next, &mut after);
            }
            if next.iter().chain(after.values()).map(BTreeSet::len).sum::<usize>() == before {
                break;
            }
        }
        Self { start: first_sets.first.get(&0).cloned().unwrap_or_default(), next }
    }

    /// Returns the sets of lexemes that can be possible in one place; `None` if there are too many.
    fn sets(&self, firsts: &[Set]) -> Option<BTreeSet<BTreeSet<usize>>> {
        let mut sets = BTreeSet::new();
        let mut todo = vec![self.start.clone()];
        while let Some(set) = todo.pop() {
            if set.is_empty() || sets.contains(&set) {
                continue;
            }
            if sets.len() == MOST_SETS {
                return None;
            }
            for a in &set {
                // Lexemes that can match the same text end in the same place.
                let same = set.iter().filter(|b| firsts[*a].meets(&firsts[**b]));
                todo.push(same.flat_map(|b| self.next[*b].iter().copied()).collect());
            }
            sets.insert(set);
        }
        Some(sets)
    }
}

/// Which rules can match nothing, and the lexemes with which each can begin.
struct FirstSets {
    empty_lexeme: Vec<bool>,
    empty: BTreeMap<usize, bool>,
    first: BTreeMap<usize, BTreeSet<usize>>,
}

impl FirstSets {
    fn is_empty(&self, part: &Production) -> bool {
        match part {
            Production::Lexeme(lexeme) => self.empty_lexeme[*lexeme],
            Production::Rule(rule) => self.empty.get(rule).copied().unwrap_or(false),
            Production::Seq(parts) => parts.iter().all(|part| self.is_empty(part)),
            Production::Alt(parts) => parts.iter().any(|part| self.is_empty(part)),
            Production::Repeat(part, least, _) => *least == 0 || self.is_empty(part),
        }
    }

    fn firsts(&self, part: &Production) -> BTreeSet<usize> {
        match part {
            Production::Lexeme(lexeme) => BTreeSet::from([*lexeme]),
            Production::Rule(rule) => self.first.get(rule).cloned().unwrap_or_default(),
            Production::Alt(parts) => parts.iter().flat_map(|part| self.firsts(part)).collect(),
            Production::Repeat(part, ..) => self.firsts(part),
            Production::Seq(parts) => {
                let mut all = BTreeSet::new();
                for part in parts {
                    all.extend(self.firsts(part));
                    if !self.is_empty(part) {
                        break;
                    }
                }
                all
            }
        }
    }

    fn walk(
        &self,
        part: &Production,
        follow: &BTreeSet<usize>,
        next: &mut [BTreeSet<usize>],
        after: &mut BTreeMap<usize, BTreeSet<usize>>,
    ) {
        match part {
            Production::Lexeme(lexeme) => next[*lexeme].extend(follow),
            Production::Rule(rule) => after.entry(*rule).or_default().extend(follow),
            Production::Alt(parts) => parts.iter().for_each(|part| self.walk(part, follow, next, after)),
            Production::Repeat(part, _, most) => {
                let mut follow = follow.clone();
                if *most != Some(1) {
                    follow.extend(self.firsts(part));
                }
                self.walk(part, &follow, next, after);
            }
            Production::Seq(parts) => {
                let mut follow = follow.clone();
                for part in parts.iter().rev() {
                    self.walk(part, &follow, next, after);
                    if !self.is_empty(part) {
                        follow.clear();
                    }
                    follow.extend(self.firsts(part));
                }
            }
        }
    }
}

/// Lexemes as regular expressions that can be tested for emptiness.
struct Expressions<'a> {
    translation: &'a Translation<'a>,
    builder: RegexBuilder,
    rules: HashMap<usize, ExprRef>,
    lexemes: HashMap<usize, Option<ExprRef>>,
}

impl<'a> Expressions<'a> {
    fn new(translation: &'a Translation<'a>) -> Self {
        Self { translation, builder: RegexBuilder::new(), rules: HashMap::new(), lexemes: HashMap::new() }
    }

    /// Returns whether some text of lexeme `a`, plus one of the characters `after`, begins a text of lexeme `b`.
    fn extends(&mut self, a: usize, after: &Set, b: usize) -> bool {
        let (Some(a), Some(b)) = (self.lexeme(a), self.lexeme(b)) else { return true };
        let rest = RegexAst::Regex("(?s:.*)".to_string());
        let longer = RegexAst::Concat(vec![RegexAst::ExprRef(a), RegexAst::Regex(after.class()), rest]);
        let both = RegexAst::And(vec![RegexAst::ExprRef(b), longer]);
        let found = self.builder.mk(&both).and_then(|both| self.builder.to_regex_limited(both, CHECK_FUEL));
        // If that is too hard to tell, assume yes.
        found.map_or(true, |mut regex| !regex.always_empty())
    }

    fn lexeme(&mut self, lexeme: usize) -> Option<ExprRef> {
        if let Some(known) = self.lexemes.get(&lexeme) {
            return *known;
        }
        let ast = self.ast(&self.translation.lexemes[lexeme]);
        let some = RegexAst::Regex("(?s:.+)".to_string());
        let made = ast.and_then(|ast| self.builder.mk(&RegexAst::And(vec![ast, some])).ok());
        self.lexemes.insert(lexeme, made);
        made
    }

    fn ast(&mut self, node: &Node) -> Option<RegexAst> {
        Some(match node {
            Node::Char(set) => RegexAst::Regex(set.class()),
            Node::Seq(nodes) => RegexAst::Concat(nodes.iter().map(|node| self.ast(node)).collect::<Option<_>>()?),
            Node::Alt(nodes) => RegexAst::Or(nodes.iter().map(|node| self.ast(node)).collect::<Option<_>>()?),
            Node::Repeat(node, least, most) => {
                RegexAst::Repeat(Box::new(self.ast(node)?), *least, most.unwrap_or(u32::MAX))
            }
            Node::Rule(rule) => {
                if !self.rules.contains_key(rule) {
                    let ast = self.ast(&self.translation.rules.bodies[*rule])?;
                    let made = self.builder.mk(&ast).ok()?;
                    self.rules.insert(*rule, made);
                }
                RegexAst::ExprRef(self.rules[rule])
            }
        })
    }
}

// --- writing ------------------------------------------------------------------------------------------

/// Lark text: `start`, rules `r1`, groups `g1`, lexemes `L1`, and their parts, `T1` for rules and `G1` for groups.
/// Every group has a name, because Lark limits the nesting of anonymous ones.
#[derive(Default)]
struct Lark {
    lines: Vec<String>,
    groups: usize,
    terminals: BTreeSet<usize>,
}

impl Translation<'_> {
    fn lark(&self) -> String {
        let mut lark = Lark::default();
        for (rule, part) in &self.parts {
            let body = lark.part(self, part);
            lark.lines.push(if *rule == 0 { format!("r0: {body}\nstart: r0") } else { format!("r{rule}: {body}") });
        }
        for (i, node) in self.lexemes.iter().enumerate() {
            let body = lark.terminal(self, node);
            let some = if self.is_empty(node) { " & /(?s:.+)/" } else { "" };
            lark.lines.push(format!("L{i}: {body}{some}"));
        }
        lark.lines.join("\n") + "\n"
    }
}

impl Lark {
    fn group(&mut self, sigil: char, body: &str) -> String {
        self.groups += 1;
        let name = format!("{sigil}{}", self.groups);
        self.lines.push(format!("{name}: {body}"));
        name
    }

    /// Writes a part as one or more words of a sequence.
    fn part(&mut self, translation: &Translation<'_>, part: &Production) -> String {
        match part {
            // A lexeme that may be empty is written as a nonempty lexeme or nothing.
            Production::Lexeme(i) if translation.is_empty(&translation.lexemes[*i]) => format!("L{i}?"),
            Production::Lexeme(i) => format!("L{i}"),
            Production::Rule(rule) => format!("r{rule}"),
            Production::Seq(parts) if parts.is_empty() => "\"\"".to_string(),
            Production::Seq(parts) => {
                parts.iter().map(|part| self.part(translation, part)).collect::<Vec<_>>().join(" ")
            }
            Production::Alt(parts) => {
                let options: Vec<String> = parts.iter().map(|part| self.part(translation, part)).collect();
                self.group('g', &options.join(" | "))
            }
            Production::Repeat(part, least, most) => {
                let inner = self.part(translation, part);
                let inner = self.group('g', &inner);
                repeat(&inner, *least, *most)
            }
        }
    }

    fn terminal(&mut self, translation: &Translation<'_>, node: &Node) -> String {
        match node {
            Node::Char(set) => format!("/{}/", set.class()),
            Node::Rule(rule) => {
                if self.terminals.insert(*rule) {
                    let body = self.terminal(translation, &translation.rules.bodies[*rule]);
                    self.lines.push(format!("T{rule}: {body}"));
                }
                format!("T{rule}")
            }
            Node::Seq(nodes) if nodes.is_empty() => "\"\"".to_string(),
            Node::Seq(nodes) => {
                let mut words: Vec<String> = Vec::new();
                let mut after_character = false;
                for node in nodes {
                    match (node, words.last_mut()) {
                        // Adjacent characters become one expression.
                        (Node::Char(set), Some(before)) if after_character => {
                            before.pop();
                            before.push_str(&set.class());
                            before.push('/');
                        }
                        _ => words.push(self.terminal(translation, node)),
                    }
                    after_character = matches!(node, Node::Char(_));
                }
                words.join(" ")
            }
            Node::Alt(nodes) => {
                let options: Vec<String> = nodes.iter().map(|node| self.terminal(translation, node)).collect();
                self.group('G', &options.join(" | "))
            }
            Node::Repeat(node, least, most) => {
                let inner = self.terminal(translation, node);
                let inner =
                    if matches!(**node, Node::Char(_) | Node::Rule(_)) { inner } else { self.group('G', &inner) };
                repeat(&inner, *least, *most)
            }
        }
    }
}

fn repeat(inner: &str, least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (_, Some(0)) => "\"\"".to_string(),
        (0, None) => format!("{inner}*"),
        (1, None) => format!("{inner}+"),
        (0, Some(1)) => format!("{inner}?"),
        (1, Some(1)) => inner.to_string(),
        (least, None) => format!("{inner}{{{least},}}"),
        (least, Some(most)) => format!("{inner}{{{least},{most}}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constrain::Grammar;
    use crate::constrain::grammar::tests::matches;

    #[track_caller]
    fn check(grammar: &str, good: &[&str], bad: &[&str]) {
        let made = Grammar::gbnf(grammar).unwrap_or_else(|error| panic!("{error}\n{grammar}"));
        let lark = || to_lark(grammar).unwrap();
        good.iter().for_each(|text| assert!(matches(&made, text), "{text:?} is not taken by\n{grammar}\n{}", lark()));
        bad.iter().for_each(|text| assert!(!matches(&made, text), "{text:?} is taken by\n{grammar}\n{}", lark()));
    }

    fn lexemes(grammar: &str) -> usize {
        to_lark(grammar).unwrap().lines().filter(|line| line.starts_with('L')).count()
    }

    #[test]
    fn characters_escapes_and_ranges() {
        check(r#"root ::= "a\"b\\\n" [x-z_0-9-] [^\]\-\n] ."#, &["a\"b\\\nx😀\n", "a\"b\\\n-ab"], &["a\"b\\\nw.."]);
        check(r#"root ::= "\x41\u4e00\U0001F600" [ぁ-ゟ]+"#, &["A一😀ひら"], &["A一😀", "A一😀カ"]);
        check(r#"root ::= [^"\\\x7F\x00-\x1F]*"#, &["", "零 /ok"], &["a\"", "a\n"]);
        check("root ::= [a\\u0062]", &["a", "b"], &["c"]);
        check("root ::= \"\"", &[""], &["a"]);
        check("root ::= [a-]", &["a", "-"], &["]"]);
    }

    #[test]
    fn repetitions_groups_and_alternatives() {
        check(
            "root ::= \"a\"{2} \"b\"{1,} \"c\"{0,2} (\"d\" | \"e\"?){ 2 , 3 }",
            &["aab", "aabbccde", "aabddd"],
            &["ab", "aabccc", "aabdddd"],
        );
        check("root ::= \"a\"* \"b\"+ \"c\"?", &["b", "aabbc"], &["a", "bcc"]);
        check("root ::= (\"ab\" | \"a\") \"bc\"", &["abc", "abbc"], &["ab", "abcbc"]);
        check("root ::= \"x\"{0} \"y\"", &["y"], &["xy"]);
        check("root ::= | \"a\" | (\n\"b\" # a comment\n | \"c\"\n)", &["", "a", "b", "c"], &["d"]);
        check(
            "# first\r\nroot ::= one |\r\n  two # why\r\n\r\none ::= \"1\"\r\ntwo ::= \"2\"\r\nunused ::= one unused\r\n",
            &["1", "2"],
            &["12"],
        );
        check("root ::= Camel-1\nCamel-1 ::= [0-9]{3}", &["123"], &["12"]);
    }

    #[test]
    fn a_grammar_without_recursion_is_one_lexeme() {
        assert_eq!(lexemes("root ::= item+\nitem ::= \"- \" line\nline ::= [^\\n]+ \"\\n\""), 1);
        // Taking the longest is no matter then.
        check("root ::= [a-z]+ \"s\" [a-z]*", &["as", "ssss", "asas"], &["s", "aa"]);
    }

    const OBJECTS: &str = r#"
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
        array  ::= "[" ws ( value ("," ws value)* )? "]" ws
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
        number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,2})? ws
        ws     ::= | " " | "\n" [ \t]{0,20}
    "#;

    #[test]
    fn recursion_with_lexemes_between() {
        check(
            OBJECTS,
            &["{}", "{ }", r#"{"a": [1, -2.5e+3, {"b\n": "\u00e9零"}], "": null }"#, "{\n    \"a\": true\n}"],
            &["{", "{\"a\"}", "[]", "{\"a\": 01}", "{\"a\": \"\n\"}", "{\"a\": tru}"],
        );
        let lark = to_lark(OBJECTS).unwrap();
        let single = lark.lines().filter(|line| line.starts_with('L') && line.matches('/').count() == 2);
        assert!(lexemes(OBJECTS) < 20 && single.count() < 10, "taken by the character:\n{lark}");
    }

    #[test]
    fn taking_the_longest_loses_nothing() {
        // Each of these has a lexeme that would consume what follows it.
        check("root ::= [a-z]+ \"s\" root?", &["as", "asbs", "sss"], &["s", "a", "asb"]);
        check("root ::= \"a\" root \"b\" | \"ab\"", &["ab", "aabb", "aaabbb"], &["aab", "ba"]);
        check("root ::= \"(\" root \")\" | word \"if\"?\nword ::= [a-z]+", &["(if)", "((a))", "aif"], &["()", "(a"]);
        check("root ::= x \"c\" | \"[\" root \"]\"\nx ::= \"a\" | \"ab\"", &["ac", "abc", "[[abc]]"], &["ab", "[ac"]);
        check(
            "root ::= item*\nitem ::= \"a\" | \"ab\" | \"(\" root \")\" | \"b\"",
            &["ab", "aab(a(b))b", ""],
            &["(", "c"],
        );
        check(
            "root ::= ws value ws\nws ::= [ ]*\nvalue ::= \"x\" | \"(\" ws value ws \")\"",
            &[" x  ", "( ( x ) )"],
            &["()"],
        );
        check(
            "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] ws term)*\n\
             term ::= ident | num | \"(\" ws expr \")\" ws\nident ::= [a-z] [a-z0-9_]* ws\nnum ::= [0-9]+ ws\n\
             ws ::= [ \\t\\n]*",
            &["a_1 + (b*2) = 5\n\n", "x=y\n", "x=y\n1 = z\n \n"],
            &["x=y", "a+=b\n", "(a=b\n"],
        );
    }

    #[test]
    fn recursion_on_the_left_and_through_others() {
        check("root ::= root \",\" item | item\nitem ::= [0-9]+", &["1", "12,3,4"], &["", "1,", ",1"]);
        check("root ::= a\na ::= b \"x\" | \"y\"\nb ::= a \"z\" | \"w\"", &["y", "wx", "yzx", "wxzx"], &["w", "yx"]);
        check("root ::= \"\" | root root | \"a\"", &["", "aaa"], &["b"]);
    }

    #[test]
    fn rules_that_double_each_other_are_no_matter() {
        let rules: String = (0..60).map(|i| format!("d{i} ::= d{0} d{0}\n", i + 1)).collect();
        let start = std::time::Instant::now();
        check(&format!("root ::= d0 | \"b\"\n{rules}d60 ::= \"a\""), &["b"], &["a", "ab", "aaaaaaaa"]);
        let near = format!("root ::= d57 | \"(\" root \")\"\n{rules}d60 ::= \"a\"");
        check(&near, &["aaaaaaaa", "(aaaaaaaa)"], &["aa"]);
        assert!(start.elapsed().as_secs() < 8, "{:?}", start.elapsed());
    }

    #[test]
    fn groups_may_be_deep() {
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(150), ")?".repeat(150));
        check(&deep, &["a", ""], &["aa"]);
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000));
        assert!(Grammar::gbnf(&deep).unwrap_err().to_string().contains("groups are nested"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (grammar, words) in [
            ("root := \"a\"", &["line 1, column 6", "'::='"][..]),
            ("root ::= \"a\n", &["line 1, column 10", "closing '\"'"]),
            ("root ::= \"a\"\nb ::= [a", &["line 2, column 7", "closing ']'"]),
            ("root ::= [z-a]", &["column 11", "reversed"]),
            ("root ::= []", &["class is empty"]),
            ("root ::= (\"a\"", &["expected ')', found the end"]),
            ("root ::= \"a\")", &["expected the end of the rule, found ')'"]),
            ("root ::= *", &["nothing before it"]),
            ("root ::= \"a\"{3,2}", &["above the maximum"]),
            ("root ::= \"a\"{99999999999}", &["at most 1000000"]),
            ("root ::= \"a\"{x}", &["a number"]),
            ("root ::= \"\\q\"", &["unknown escape '\\q'"]),
            ("root ::= \"\\u12\"", &["4 hexadecimal digits"]),
            ("root ::= \"\\uD800\"", &["'\\uD800' is not a character"]),
            ("root ::= a", &["column 10", "no rule 'a'"]),
            ("a ::= \"b\"", &["no rule 'root'"]),
            ("root ::= \"a\"\nroot ::= \"b\"", &["line 2, column 1", "defined twice"]),
            ("root ::= <think> \"a\"", &["tokens", "only text"]),
            ("root ::= \"a\" b\nb ::= \"x\" b", &["'b'", "requires itself"]),
            ("root ::= \"a\0\"", &["line 1 contains a NUL"]),
            ("  \n", &["empty"]),
        ] {
            let error = Grammar::gbnf(grammar).unwrap_err().to_string();
            words.iter().for_each(|word| assert!(error.contains(word), "no '{word}' in '{error}' for {grammar:?}"));
            assert_eq!(error.lines().count(), 1);
        }
    }

    #[test]
    fn the_notation_is_recognised() {
        assert!(looks_like("# hi\nroot ::= \"a\"") && looks_like("  a-b\t::= x"));
        assert!(!looks_like("start: \"a\"") && !looks_like("start: NAME \"::=\" x") && !looks_like("start::_: x"));
    }
}

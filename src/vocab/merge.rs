//! Byte-pair merging as in sentencepiece, but fast.
//!
//! Sentencepiece starts with single characters and repeatedly joins the two neighbors whose concatenation is the piece
//! with the highest score (the leftmost of equals), until no two neighbors spell a piece. Three things make this fast
//! without changing a single id:
//!
//! - all ways to join two symbols into a piece are found when the vocabulary is loaded, so a join is a lookup of two
//!   numbers, not of a string;
//! - scores become ranks, so the queue orders plain integers;
//! - two characters that are not adjacent in any piece are never joined: the text is cut between them, and each stretch
//!   has a small queue of its own.
//!
//! Reference: sentencepiece, `src/bpe_model.cc`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::{Error, PieceType};

/// No symbol: the character is in no piece.
pub(super) const NONE: u32 = u32::MAX;

/// The longest piece that can be merged, in bytes: building the table of joins takes time quadratic in it. The default
/// of sentencepiece is 16 characters.
pub(super) const MAX_MERGED_BYTES: usize = 1024;

/// Refuses a piece that is too long to be searched for.
pub(super) fn check_length(text: &str, id: u32) -> Result<(), Error> {
    match text.len() {
        n_bytes if n_bytes > MAX_MERGED_BYTES => Err(Error::LongPiece { id, n_bytes, limit: MAX_MERGED_BYTES }),
        _ => Ok(()),
    }
}

/// All joins of a vocabulary. A symbol is a piece (its id) or, from `n_pieces` on, a character that occurs in pieces
/// without being one.
pub(super) struct MergeTable {
    n_pieces: u32,
    /// Symbols of the characters below U+10000.
    bmp: Vec<u32>,
    /// Symbols of the other characters.
    astral: HashMap<char, u32>,
    /// The characters with symbols from `n_pieces` on.
    lone_chars: Vec<char>,
    /// The length of every symbol in bytes.
    n_bytes: Vec<u32>,
    /// What two adjacent symbols become; [`NONE`] if they are only adjacent in a longer piece.
    joins: HashMap<u64, Join, BuildHasherDefault<PairHasher>>,
    /// Whether a piece is marked as unused: it is split again after merging.
    unused: Vec<bool>,
    any_unused: bool,
}

#[derive(Clone, Copy)]
struct Join {
    /// Lower ranks are joined first.
    rank: u32,
    /// The resulting symbol.
    to: u32,
}

/// A pair of symbols as one number.
fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Hashes a pair of small numbers with one folded multiplication.
#[derive(Default)]
pub(super) struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, pair: u64) {
        // 2^64 divided by the golden ratio spreads similar ids over all bits.
        let wide = u128::from(pair) * 0x9E37_79B9_7F4A_7C15;
        self.0 = wide as u64 ^ (wide >> 64) as u64;
    }
}

/// A piece that may take part in merging.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub id: u32,
    pub text: &'a str,
    pub score: f32,
    pub ty: PieceType,
}

impl MergeTable {
    /// Builds the table for `candidates`: normal, user-defined and unused pieces, the types that take part in merging.
    ///
    /// `merges`, if given, replaces the order by scores: only these pairs of texts are joined, in this order.
    pub fn new(n_pieces: u32, candidates: &[Candidate<'_>], merges: Option<&[(&str, &str)]>) -> Self {
        let by_text: HashMap<&str, u32> = candidates.iter().map(|c| (c.text, c.id)).collect();
        let mut table = Self {
            n_pieces,
            bmp: vec![NONE; 1 << 16],
            astral: HashMap::new(),
            lone_chars: Vec::new(),
            n_bytes: vec![0; n_pieces as usize],
            joins: HashMap::default(),
            unused: vec![false; n_pieces as usize],
            any_unused: false,
        };
        for c in candidates {
            table.n_bytes[c.id as usize] = c.text.len() as u32;
            table.unused[c.id as usize] = c.ty == PieceType::Unused;
            table.any_unused |= c.ty == PieceType::Unused;
        }
        for c in candidates {
            for char in c.text.chars() {
                table.add_char(char, &by_text);
            }
        }
        let ranks = ranks(candidates);
        for (c, rank) in candidates.iter().zip(ranks) {
            if c.text.len() <= MAX_MERGED_BYTES {
                table.add_piece(*c, rank, merges.is_none(), &by_text);
            }
        }
        for (rank, (left, right)) in merges.into_iter().flatten().enumerate() {
            let joined = [*left, *right].concat();
            let symbols = (table.symbol(left, &by_text), table.symbol(right, &by_text), by_text.get(joined.as_str()));
            if let (Some(left), Some(right), Some(&to)) = symbols {
                let join = Join { rank: rank as u32, to };
                let slot = table.joins.entry(pair(left, right)).or_insert(join);
                // If a pair is listed twice, the first one counts, as in the tokenizers library.
                if slot.to == NONE {
                    *slot = join;
                }
            }
        }
        table
    }

    fn add_char(&mut self, char: char, by_text: &HashMap<&str, u32>) {
        if self.char_symbol(char) != NONE {
            return;
        }
        let symbol = by_text.get(char.encode_utf8(&mut [0; 4]) as &str).copied().unwrap_or_else(|| {
            self.lone_chars.push(char);
            self.n_bytes.push(char.len_utf8() as u32);
            self.n_bytes.len() as u32 - 1
        });
        match self.bmp.get_mut(char as usize) {
            Some(slot) => *slot = symbol,
            None => {
                self.astral.insert(char, symbol);
            }
        }
    }

    /// Records which symbols are adjacent in a piece and, if `by_score`, all ways to join two symbols into it.
    fn add_piece(&mut self, c: Candidate<'_>, rank: u32, by_score: bool, by_text: &HashMap<&str, u32>) {
        let mut before: Option<char> = None;
        for (at, char) in c.text.char_indices() {
            if let Some(before) = before {
                let neighbours = pair(self.char_symbol(before), self.char_symbol(char));
                self.joins.entry(neighbours).or_insert(Join { rank: 0, to: NONE });
                let (left, right) = c.text.split_at(at);
                if let (true, Some(left), Some(right)) =
                    (by_score, self.symbol(left, by_text), self.symbol(right, by_text))
                {
                    self.joins.insert(pair(left, right), Join { rank, to: c.id });
                }
            }
            before = Some(char);
        }
    }

    /// Returns the symbol that spells `text`, if there is one.
    fn symbol(&self, text: &str, by_text: &HashMap<&str, u32>) -> Option<u32> {
        if let Some(&id) = by_text.get(text) {
            return Some(id);
        }
        let mut chars = text.chars();
        let symbol = self.char_symbol(chars.next()?);
        (chars.next().is_none() && symbol != NONE).then_some(symbol)
    }

    /// The symbol of a single character; [`NONE`] if no piece contains it.
    pub fn char_symbol(&self, char: char) -> u32 {
        match self.bmp.get(char as usize) {
            Some(&symbol) => symbol,
            None => self.astral.get(&char).copied().unwrap_or(NONE),
        }
    }

    fn join(&self, left: u32, right: u32) -> Option<Join> {
        self.joins.get(&pair(left, right)).copied()
    }
}

/// Ranks pieces by score: 0 for the highest, and equal ranks for equal scores.
fn ranks(candidates: &[Candidate<'_>]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    // Adding zero turns -0 into 0, which total_cmp would tell apart.
    let score = |i: usize| candidates[i].score + 0.0;
    order.sort_unstable_by(|&a, &b| score(b).total_cmp(&score(a)));
    let mut ranks = vec![0; candidates.len()];
    let mut rank = 0;
    for (n, &i) in order.iter().enumerate() {
        if n > 0 && score(i) != score(order[n - 1]) {
            rank += 1;
        }
        ranks[i] = rank;
    }
    ranks
}

/// Receives the results of merging, in order.
pub(super) trait Output {
    /// A piece.
    fn piece(&mut self, id: u32);
    /// A character that is not a piece.
    fn unknown(&mut self, char: char);
}

/// A symbol in the text, linked to its neighbors.
#[derive(Clone, Copy)]
struct Node {
    /// [`NONE`] once it is joined to the symbol on its left.
    symbol: u32,
    prev: u32,
    next: u32,
    /// Whether it is a user-defined piece, which is never joined.
    frozen: bool,
}

/// Two neighbors that may be joined.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Offer {
    rank: u32,
    left: u32,
    right: u32,
    to: u32,
}

impl Ord for Offer {
    /// The greatest offer, which the queue returns first, has the lowest rank; among equals it is the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        pair(other.rank, other.left).cmp(&pair(self.rank, self.left))
    }
}

impl PartialOrd for Offer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Takes characters and frozen pieces, and outputs pieces.
pub(super) struct Merger<'a, O> {
    table: &'a MergeTable,
    nodes: Vec<Node>,
    queue: BinaryHeap<Offer>,
    /// For unused pieces: the last two symbols that could be joined into them. sentencepiece also keeps the last pair,
    /// over the whole text, which is why a text is never cut if the vocabulary has such pieces.
    parts: HashMap<u32, (u32, u32)>,
    out: O,
}

impl<'a, O: Output> Merger<'a, O> {
    pub fn new(table: &'a MergeTable, out: O) -> Self {
        Self { table, nodes: Vec::new(), queue: BinaryHeap::new(), parts: HashMap::new(), out }
    }

    /// Takes the next character of the text.
    pub fn char(&mut self, char: char) {
        let symbol = self.table.char_symbol(char);
        if symbol == NONE && !self.table.any_unused {
            self.flush();
            self.out.unknown(char);
            return;
        }
        let join = self.nodes.last().filter(|last| !last.frozen).and_then(|last| self.table.join(last.symbol, symbol));
        if join.is_none() && !self.table.any_unused {
            self.flush();
        }
        if symbol == NONE {
            // Only if texts are not cut: the character keeps its place, as a node that stands for itself.
            self.push(UNKNOWN_BASE + char as u32, true);
            return;
        }
        let right = self.push(symbol, false);
        if let (Some(join), Some(left)) = (join.filter(|join| join.to != NONE), right.checked_sub(1)) {
            self.offer(left, right, join);
        }
    }

    /// Takes a user-defined piece, which is next in the text.
    pub fn frozen(&mut self, id: u32) {
        if self.table.any_unused {
            self.push(id, true);
        } else {
            self.flush();
            self.out.piece(id);
        }
    }

    /// Ends a word: nothing is joined across its end.
    pub fn end_word(&mut self) {
        self.flush();
    }

    /// Ends the text.
    pub fn finish(mut self) -> O {
        self.flush();
        self.out
    }

    /// Appends a symbol and returns its position.
    fn push(&mut self, symbol: u32, frozen: bool) -> u32 {
        // Positions are 32 bits wide, so even text without a place to cut is cut after four billion characters.
        if self.nodes.len() >= NONE as usize - 1 {
            self.flush();
        }
        let at = self.nodes.len() as u32;
        if let Some(last) = self.nodes.last_mut() {
            last.next = at;
        }
        self.nodes.push(Node { symbol, prev: at.wrapping_sub(1), next: NONE, frozen });
        at
    }

    fn offer(&mut self, left: u32, right: u32, join: Join) {
        self.queue.push(Offer { rank: join.rank, left, right, to: join.to });
        if self.table.any_unused && self.is_unused(join.to) {
            self.parts.insert(join.to, (self.nodes[left as usize].symbol, self.nodes[right as usize].symbol));
        }
    }

    fn try_offer(&mut self, left: u32, right: u32) {
        let (Some(l), Some(r)) = (self.nodes.get(left as usize), self.nodes.get(right as usize)) else { return };
        if l.frozen || r.frozen {
            return;
        }
        if let Some(join) = self.table.join(l.symbol, r.symbol).filter(|join| join.to != NONE) {
            self.offer(left, right, join);
        }
    }

    /// Joins the symbols so far, outputs them, and starts over.
    fn flush(&mut self) {
        while let Some(offer) = self.queue.pop() {
            let (left, right) = (self.nodes[offer.left as usize], self.nodes[offer.right as usize]);
            let n_bytes = |symbol: u32| self.table.n_bytes.get(symbol as usize).copied().unwrap_or(0);
            // Symbols only grow, so a different sum means that one of the two has been joined to another since.
            if left.symbol == NONE
                || right.symbol == NONE
                || n_bytes(left.symbol) + n_bytes(right.symbol) != n_bytes(offer.to)
            {
                continue;
            }
            self.nodes[offer.right as usize].symbol = NONE;
            self.nodes[offer.left as usize].symbol = offer.to;
            self.nodes[offer.left as usize].next = right.next;
            if let Some(after) = self.nodes.get_mut(right.next as usize) {
                after.prev = offer.left;
            }
            self.try_offer(left.prev, offer.left);
            self.try_offer(offer.left, right.next);
        }
        let mut at = 0;
        while let Some(node) = self.nodes.get(at as usize) {
            let next = node.next;
            self.emit(node.symbol);
            at = next;
        }
        self.nodes.clear();
        self.parts.clear();
    }

    fn is_unused(&self, symbol: u32) -> bool {
        self.table.unused.get(symbol as usize).copied().unwrap_or(false)
    }

    fn emit(&mut self, symbol: u32) {
        if !self.table.any_unused {
            return self.emit_whole(symbol);
        }
        // An explicit stack, because the file decides how deep an unused piece splits.
        let mut stack = vec![symbol];
        while let Some(symbol) = stack.pop() {
            match self.parts.get(&symbol) {
                Some(&(left, right)) if self.is_unused(symbol) => stack.extend([right, left]),
                _ => self.emit_whole(symbol),
            }
        }
    }

    fn emit_whole(&mut self, symbol: u32) {
        if symbol < self.table.n_pieces {
            self.out.piece(symbol);
        } else if let Some(&char) = self.table.lone_chars.get((symbol - self.table.n_pieces) as usize) {
            self.out.unknown(char);
        } else if let Some(char) = symbol.checked_sub(UNKNOWN_BASE).and_then(char::from_u32) {
            self.out.unknown(char);
        }
    }
}

/// The symbols of unknown characters in a text that is not cut start here. Vocabularies are far smaller: see
/// [`super::MAX_PIECES`].
const UNKNOWN_BASE: u32 = 0x8000_0000;
const _: () = assert!(super::MAX_PIECES + (char::MAX as usize) < UNKNOWN_BASE as usize);

#[cfg(test)]
impl MergeTable {
    /// Returns whether this piece can be reached by merging.
    pub fn can_spell(&self, id: u32) -> bool {
        self.joins.values().any(|join| join.to == id)
    }
}

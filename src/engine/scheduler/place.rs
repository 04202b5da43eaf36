//! Which text gets which sequence, and which prefix it starts from.

use std::sync::Arc;
use std::time::Instant;

use super::disk::{Disk, FileId};
use super::memory::Saved;
use super::text::{Event, Found, Text};
use super::{EventSink, Scheduler, Slot, common};
use crate::engine::SequenceDecoder;

/// How many texts are looked at in a step, when the first ones wait for others.
const LOOK_AHEAD: usize = 16;

/// Where tokens are that need not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Nowhere,
    Slot(usize),
    Memory(u64),
    File(FileId),
}

/// The beginning of a text that need not be read.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    source: Source,
    n_tokens: usize,
}

/// Whether a text can have a sequence.
enum Placing {
    /// Now, with this beginning.
    Now(Prefix),
    /// When another text is further, or a file is read. Others may go first.
    Later,
    /// When there is more memory. Others may not go first.
    Full,
}

impl<D: SequenceDecoder> Scheduler<D> {
    /// Gives sequences to the texts that wait, in order.
    pub(super) fn admit(&mut self, sink: &mut EventSink<'_>) {
        let (mut at, mut claimed) = (0, None);
        while at < self.queue.len().min(LOOK_AHEAD) && self.slots.iter().any(|slot| slot.text.is_none()) {
            match self.place(&self.queue[at], *claimed.get_or_insert_with(|| self.n_claimed())) {
                Placing::Later => at += 1,
                Placing::Full => return,
                Placing::Now(prefix) => {
                    let Some(text) = self.queue.remove(at) else { return };
                    self.start(text, prefix, sink);
                    claimed = None;
                }
            }
        }
    }

    /// Says whether a text can have a sequence, if the texts that run claim so many tokens.
    fn place(&self, text: &Text, claimed: usize) -> Placing {
        if text.loading.is_some_and(|file| matches!(self.files.get(&file), Some(None))) {
            return Placing::Later;
        }
        let prefix = self.best_prefix(text, claimed);
        let reading = self.slots.iter().filter_map(|slot| Some((slot, slot.text.as_ref()?)));
        for (slot, other) in reading.filter(|(_, other)| !other.is_writing()) {
            let saves = match other.task == text.task && other.n_prompt == text.tokens().len() {
                // All of it, because the last logits will serve both.
                true => text.tokens().len(),
                false if !text.cache || !slot.is_public || !self.decoder.can_truncate() => 0,
                false => self.usable(text.tokens(), other.tokens(), other.n_prompt),
            };
            // It does not wait for long: only until as much of the other prompt was read as both have.
            if saves > prefix.n_tokens {
                return Placing::Later;
            }
        }
        if self.has_room(text, prefix, claimed) { Placing::Now(prefix) } else { Placing::Full }
    }

    /// Returns whether there is room for a text beside those that run, at least until all of them are read.
    fn has_room(&self, text: &Text, prefix: Prefix, claimed: usize) -> bool {
        if !self.decoder.shares_tokens() || self.slots.iter().all(|slot| slot.text.is_none()) {
            return true;
        }
        let shared = match prefix.source {
            Source::Slot(i) if self.slots[i].text.is_some() => prefix.n_tokens,
            _ => 0,
        };
        let left = text.most - text.tokens().len().min(text.most);
        let wanted = text.tokens().len() - shared + self.least_room(Some(left));
        claimed + wanted <= self.decoder.n_ctx() as usize
    }

    /// Returns how many tokens the texts that run hold, or have to read.
    fn n_claimed(&self) -> usize {
        let held = self.cells.n_used_by(|i| self.slots[i].text.is_some());
        let texts = self.slots.iter().filter_map(|slot| Some((slot, slot.text.as_ref()?)));
        held + texts.map(|(slot, text)| text.tokens().len() - slot.sequence.tokens().len()).sum::<usize>()
    }

    /// Returns how many of the first tokens of a text need not be read if a sequence holds `held`, of which the first
    /// `clean` were read in the pieces of a prompt.
    fn usable(&self, tokens: &[u32], held: &[u32], clean: usize) -> usize {
        // The last token is always read, because its logits are needed.
        let most = tokens.len().saturating_sub(1);
        let same = common(tokens, held).min(most);
        let piece = self.options.piece;
        match (self.decoder.can_truncate(), self.options.deterministic) {
            (true, false) => same,
            (true, true) => same.min(clean) / piece * piece,
            // All or nothing.
            (false, false) if same == held.len() => same,
            (false, true) if same == held.len() && same <= clean && same.is_multiple_of(piece) => same,
            (false, _) => 0,
        }
    }

    /// Returns the longest beginning of a text that need not be read, if the texts that run claim so many tokens.
    fn best_prefix(&self, text: &Text, claimed: usize) -> Prefix {
        let mut best = Prefix { source: Source::Nowhere, n_tokens: 0 };
        if !text.cache {
            return best;
        }
        // Of equal ones, what an idle sequence holds is best, then what another one holds.
        let idle = |i: &usize| self.slots[*i].text.is_some();
        let mut order: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].is_public).collect();
        order.sort_by_key(idle);
        let mut offer = |source, n_tokens, gain| {
            if n_tokens >= best.n_tokens + gain {
                best = Prefix { source, n_tokens };
            }
        };
        for i in order {
            let slot = &self.slots[i];
            offer(Source::Slot(i), self.usable(text.tokens(), slot.sequence.tokens(), slot.clean), 1);
        }
        // A state is restored as a whole, which must be worth it.
        let gain = self.options.least_kept.max(1);
        for (number, saved) in self.memory.iter().filter(|(_, saved)| self.can_restore(saved.tokens.len(), claimed)) {
            offer(Source::Memory(number), self.usable(text.tokens(), &saved.tokens, saved.tokens.len()), gain);
        }
        if let Some(file) = text.loading
            && let Some(Some(saved)) = self.files.get(&file)
            && self.can_restore(saved.tokens.len(), claimed)
        {
            offer(Source::File(file), self.usable(text.tokens(), &saved.tokens, saved.tokens.len()), gain);
        }
        best
    }

    /// Returns whether there is room for a whole state.
    fn can_restore(&self, n_tokens: usize, claimed: usize) -> bool {
        let fits = n_tokens <= self.decoder.n_ctx_sequence() as usize;
        fits && (!self.decoder.shares_tokens() || claimed + n_tokens <= self.decoder.n_ctx() as usize)
    }

    /// Lets a file be read if it has more of the beginning of a text than the context and memory.
    pub(super) fn look_on_disk(&mut self, text: &mut Text) {
        let Some(disk) = self.disk.as_ref().filter(|_| text.cache) else { return };
        let least = self.best_prefix(text, self.n_claimed()).n_tokens + self.options.least_kept;
        let n_ctx = self.decoder.n_ctx_sequence() as usize;
        let usable = |tokens: &[u32]| match tokens.len() <= n_ctx {
            true => self.usable(text.tokens(), tokens, tokens.len()),
            false => 0,
        };
        let Some((file, _)) = disk.best(least.saturating_sub(1), usable) else { return };
        self.files.entry(file).or_insert_with(|| {
            disk.load(file);
            None
        });
        text.loading = Some(file);
    }

    /// Takes the files that were read.
    pub(super) fn take_files(&mut self) {
        let Some(disk) = &self.disk else { return };
        while let Some(loaded) = disk.take_loaded() {
            match loaded.result {
                // Nobody may wait for it any more.
                Ok(saved) => drop(self.files.get_mut(&loaded.file).map(|file| *file = Some(saved))),
                Err(reason) => {
                    self.files.remove(&loaded.file);
                    for text in self.queue.iter_mut().filter(|text| text.loading == Some(loaded.file)) {
                        text.loading = None;
                        text.unusable = Some(reason.clone());
                    }
                }
            }
        }
    }

    /// Drops the files that no text waits for.
    pub(super) fn forget_files(&mut self) {
        let queue = &self.queue;
        self.files.retain(|file, _| queue.iter().any(|text| text.loading == Some(*file)));
    }

    /// Gives a sequence to a text.
    fn start(&mut self, mut text: Box<Text>, prefix: Prefix, sink: &mut EventSink<'_>) {
        let Some(target) = self.target(prefix) else { return self.queue.push_front(text) };
        let miss = self.miss(&text, prefix);
        let (found, result) = match prefix.source {
            Source::Nowhere => {
                self.clear(target);
                (Found::Nowhere, Ok(()))
            }
            Source::Slot(from) => (Found::Context, self.take_over(from, target, prefix.n_tokens)),
            Source::Memory(number) => {
                let saved = self.memory.take_up(number);
                let result = self.take_back(target, saved, prefix.n_tokens);
                if result.is_err() {
                    self.memory.remove(number);
                }
                (Found::Memory, result)
            }
            Source::File(file) => {
                let saved = self.files.get(&file).cloned().flatten();
                (Found::Disk, self.take_back(target, saved, prefix.n_tokens))
            }
        };
        let (found, miss) = match result {
            Ok(()) => (found, miss),
            Err(reason) => {
                // The text is read from its beginning.
                self.slots[target].sequence.truncate(&mut self.decoder, 0);
                (Found::Nowhere, format!("{} tokens were found, but {reason}", prefix.n_tokens))
            }
        };
        self.forget_file(&mut text);
        self.occupy(target, text, found, miss, sink);
    }

    fn forget_file(&mut self, text: &mut Text) {
        if text.loading.take().is_some() {
            self.forget_files();
        }
    }

    /// Puts a text into a sequence that holds a beginning of it, and nothing else.
    fn occupy(&mut self, i: usize, mut text: Box<Text>, found: Found, miss: String, sink: &mut EventSink<'_>) {
        let held = self.slots[i].sequence.tokens().len();
        self.cells.resize(i, held);
        self.clock += 1;
        if text.started.is_none() {
            text.started = Some(Instant::now());
            text.cached = held.min(text.n_prompt);
            if let (Some(draft), Some(experience)) = (&mut text.draft, &self.experience) {
                draft.learn_from(experience);
            }
            self.counts.cached_tokens += text.cached as u64;
            sink(text.task, Event::Started { index: text.index, cached: text.cached, found, miss });
        }
        if let Some(task) = self.tasks.get_mut(&text.task) {
            task.has_begun = true;
        }
        let slot = &mut self.slots[i];
        let piece = self.options.piece;
        slot.clean = if self.options.deterministic { held.min(text.n_prompt) / piece * piece } else { held };
        slot.is_public = text.cache;
        slot.used = self.clock;
        slot.text = Some(text);
    }

    /// Returns the sequence that a text with this beginning should have.
    fn target(&self, prefix: Prefix) -> Option<usize> {
        if let Source::Slot(i) = prefix.source {
            let slot = &self.slots[i];
            let held = slot.sequence.tokens().len();
            // What is lost is the end of an answer that the client has changed, not a text of its own.
            if slot.text.is_none() && held - prefix.n_tokens <= (held / 8).max(self.options.least_kept) {
                return Some(i);
            }
        }
        let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.text.is_none());
        idle.min_by_key(|(_, slot)| (!slot.sequence.tokens().is_empty(), slot.used)).map(|(i, _)| i)
    }

    /// Makes sequence `to` hold the first tokens of `from`.
    fn take_over(&mut self, from: usize, to: usize, n_tokens: usize) -> Result<(), String> {
        if from == to {
            if n_tokens < self.slots[to].sequence.tokens().len() {
                let lost = self.slots[to].sequence.tokens().len() - n_tokens;
                // The end of an answer that was changed is of no use to anybody.
                if lost > self.options.least_kept {
                    self.keep(to);
                }
                self.slots[to].sequence.truncate(&mut self.decoder, n_tokens);
            }
            return Ok(());
        }
        self.clear(to);
        if !self.decoder.shares_tokens() {
            self.cells.resize(to, n_tokens);
        } else {
            self.cells.share(from, to, n_tokens);
        }
        let (from_id, to_id) = (self.slots[from].sequence.id(), self.slots[to].sequence.id());
        let copied = self.decoder.copy(from_id, to_id, n_tokens);
        match copied {
            Ok(()) => {
                let tokens = self.slots[from].sequence.tokens()[..n_tokens].to_vec();
                self.slots[to].sequence.restored(&tokens);
                Ok(())
            }
            Err(error) => {
                self.cells.resize(to, 0);
                // It may hold some of them.
                let _ = self.decoder.truncate(to_id, 0);
                Err(format!("they could not be copied: {error}"))
            }
        }
    }

    /// Makes a sequence hold the first tokens of a state.
    fn take_back(&mut self, to: usize, saved: Option<Saved>, n_tokens: usize) -> Result<(), String> {
        let saved = saved.ok_or("their state is gone")?;
        self.clear(to);
        if self.free_for(saved.tokens.len()) < saved.tokens.len() {
            return Err("there is no room for their state".to_string());
        }
        let slot = &mut self.slots[to];
        let restored = self.decoder.restore(slot.sequence.id(), &saved.state, saved.tokens.len());
        restored.map_err(|error| format!("their state is of no use: {error}"))?;
        slot.sequence.restored(&saved.tokens);
        slot.sequence.truncate(&mut self.decoder, n_tokens);
        Ok(())
    }

    /// Empties an idle sequence. What it holds is moved to memory.
    fn clear(&mut self, i: usize) {
        self.keep(i);
        self.slots[i].sequence.truncate(&mut self.decoder, 0);
        self.slots[i].clean = 0;
        self.cells.resize(i, 0);
    }

    /// Saves what an idle sequence holds in memory, and what gives way to it on the disk.
    fn keep(&mut self, i: usize) {
        let slot = &self.slots[i];
        let tokens = slot.sequence.tokens();
        if !slot.is_public || tokens.len() < self.options.least_kept.max(1) || self.memory.covers(tokens) {
            return;
        }
        let has_it = |other: &Slot| other.is_public && other.sequence.tokens().starts_with(tokens);
        let mut others = self.slots.iter().enumerate().filter(|(other, _)| *other != i);
        if self.decoder.can_truncate() && others.any(|(_, other)| has_it(other)) {
            return;
        }
        let n_bytes = self.bytes_per_token.unwrap_or(0).saturating_mul(tokens.len() as u64);
        let disk_wants = self.disk.as_ref().is_some_and(|disk| disk.wants(tokens, n_bytes));
        if !self.memory.accepts(n_bytes) && !disk_wants {
            self.memory.remember(tokens.into());
            return;
        }
        let Some(saved) = self.save(i) else { return };
        for dropped in self.memory.insert(saved) {
            if let Some(disk) = self.disk.as_ref().filter(|disk| disk.wants(&dropped.tokens, dropped.n_bytes())) {
                disk.write(dropped);
            }
        }
    }

    /// Returns what a sequence holds; `None` if there is no memory for it.
    fn save(&mut self, i: usize) -> Option<Saved> {
        let sequence = &self.slots[i].sequence;
        let state = self.decoder.save(sequence.id()).ok()?;
        let saved = Saved { tokens: sequence.tokens().into(), state: Arc::new(state) };
        self.bytes_per_token = Some(saved.n_bytes().div_ceil(saved.tokens.len().max(1) as u64));
        Some(saved)
    }

    /// Takes the text from a sequence, which is then idle.
    pub(super) fn make_idle(&mut self, i: usize) -> Option<Box<Text>> {
        self.drop_guesses(i);
        let slot = &mut self.slots[i];
        let text = slot.text.take()?;
        let keep = match (slot.is_public, self.options.deterministic) {
            (false, _) => 0,
            (true, true) => slot.clean,
            (true, false) => slot.sequence.tokens().len(),
        };
        slot.sequence.truncate(&mut self.decoder, keep);
        let held = slot.sequence.tokens().len();
        slot.clean = slot.clean.min(held);
        self.clock += 1;
        slot.used = self.clock;
        self.cells.resize(i, held);
        Some(text)
    }

    /// Removes what a sequence holds of guesses that were wrong.
    pub(super) fn drop_guesses(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        let Some(n_own) = slot.text.as_ref().map(|text| text.n_own()) else { return };
        if slot.sequence.tokens().len() > n_own {
            let held = slot.sequence.truncate(&mut self.decoder, n_own);
            self.cells.resize(i, held);
        }
    }

    /// Gives up idle sequences until there is room for this many tokens. Returns for how many there is.
    pub(super) fn free_for(&mut self, n_tokens: usize) -> usize {
        if !self.decoder.shares_tokens() {
            return usize::MAX;
        }
        let n_ctx = self.decoder.n_ctx() as usize;
        while n_ctx - self.cells.n_used().min(n_ctx) < n_tokens {
            let holds = |slot: &Slot| slot.text.is_none() && !slot.sequence.tokens().is_empty();
            let idle = self.slots.iter().enumerate().filter(|(_, slot)| holds(slot));
            let Some((i, _)) = idle.min_by_key(|(_, slot)| slot.used) else { break };
            self.clear(i);
        }
        n_ctx - self.cells.n_used().min(n_ctx)
    }

    /// Lets a text wait until there is room again. It goes on where it was.
    pub(super) fn preempt(&mut self, i: usize) {
        let Some(text) = self.make_idle(i) else { return };
        self.counts.preempted += 1;
        let at = self.queue.iter().position(|other| other.order > text.order).unwrap_or(self.queue.len());
        self.queue.insert(at, text);
    }

    /// Starts the other texts of a task whose prompt sequence `from` has just read. Returns their sequences.
    pub(super) fn start_siblings(&mut self, from: usize, sink: &mut EventSink<'_>) -> Vec<usize> {
        let Some(task) = self.slots[from].text.as_ref().map(|text| text.task) else { return Vec::new() };
        let n_tokens = self.slots[from].sequence.tokens().len();
        let mut started = Vec::new();
        while let Some(at) = self.queue.iter().position(|text| text.task == task && text.started.is_none()) {
            let prefix = Prefix { source: Source::Slot(from), n_tokens };
            let Some(to) = self.target(prefix).filter(|_| self.has_room(&self.queue[at], prefix, self.n_claimed()))
            else {
                break;
            };
            let copied = self.take_over(from, to, n_tokens);
            if copied.is_err() {
                break;
            }
            let Some(mut text) = self.queue.remove(at) else { break };
            self.forget_file(&mut text);
            self.occupy(to, text, Found::Context, String::new(), sink);
            self.slots[to].clean = self.slots[from].clean;
            started.push(to);
        }
        started
    }

    /// Says why not more of a prompt was found; empty if there is no more.
    fn miss(&self, text: &Text, prefix: Prefix) -> String {
        let tokens = text.tokens();
        let most = self.usable(tokens, tokens, tokens.len()).max(if self.decoder.can_truncate() { 0 } else { 1 });
        if prefix.n_tokens >= most {
            return String::new();
        }
        if !text.cache {
            return "the request asks for it".to_string();
        }
        if let Some(reason) = &text.unusable {
            return format!("a file on the disk has more of it, but {reason}");
        }
        let slots = self.slots.iter().filter(|slot| slot.is_public).map(|slot| slot.sequence.tokens());
        let saved = self.memory.iter().map(|(_, saved)| &*saved.tokens);
        let same = slots.chain(saved).map(|held| common(held, tokens)).max().unwrap_or(0);
        let dropped = self.memory.had(tokens);
        if dropped > same.max(prefix.n_tokens) {
            return format!("{dropped} tokens of it were read before, but there was no room to keep them");
        }
        if same <= prefix.n_tokens {
            return match prefix.n_tokens {
                0 => "nothing was read before that begins like it".to_string(),
                n => format!("nothing else was read before that begins with the same {n} tokens and goes on like it"),
            };
        }
        if !self.decoder.can_truncate() {
            return format!("{same} tokens were read before, but this model's memory cannot be cut back to them");
        }
        if self.options.deterministic {
            let piece = self.options.piece;
            return format!("{same} tokens were read before, of which only whole pieces of {piece} are used");
        }
        format!("{same} tokens were read before, but there is no room for their state")
    }

    /// Writes a prefix to the disk that is not there yet. Returns whether there was one. To be called when nothing else is
    /// to be done.
    pub fn tidy(&mut self) -> bool {
        let Some(disk) = &self.disk else { return false };
        let least = self.options.least_kept.max(1);
        let wants = |tokens: &[u32]| {
            let n_bytes = self.bytes_per_token.unwrap_or(0).saturating_mul(tokens.len() as u64);
            tokens.len() >= least && disk.wants(tokens, n_bytes)
        };
        if let Some((_, saved)) = self.memory.iter().find(|(_, saved)| wants(&saved.tokens)) {
            disk.write(saved.clone());
            return true;
        }
        let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.text.is_none() && slot.is_public);
        let mut idle: Vec<_> = idle.filter(|(_, slot)| wants(slot.sequence.tokens())).collect();
        idle.sort_by_key(|(_, slot)| slot.used);
        let Some(i) = idle.first().map(|(i, _)| *i) else { return false };
        let saved = self.save(i);
        match (saved, &self.disk) {
            (Some(saved), Some(disk)) if disk.wants(&saved.tokens, saved.n_bytes()) => {
                disk.write(saved);
                true
            }
            _ => false,
        }
    }

    /// Writes all prefixes to the disk, and waits for that.
    pub fn close(&mut self) {
        // Only so many may wait to be written.
        while self.tidy() {
            self.disk.iter().for_each(Disk::wait);
        }
        self.disk.iter().for_each(Disk::wait);
    }
}

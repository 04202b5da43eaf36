//! One evaluation: which tokens are in it, and what follows from its logits.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::text::{End, Event, TaskError, TaskId};
use super::{EventSink, Scheduler};
use crate::engine::speculate::Weighing;
use crate::engine::{Action, Error, Finish, LogitRows, Logits, SequenceDecoder, Share, evaluate_together};
use crate::llama;

/// For so long, about, texts that are being written may wait for a piece of a prompt, if no longer pause is allowed,
const STALL: Duration = Duration::from_millis(300);
/// or for so many times as long as their next tokens take, if that is longer.
const STALLED_STEPS: f64 = 2.0;
/// The smallest such piece, unless smaller ones are wanted: with fewer tokens, reading would take much longer in all.
const LEAST_PIECE: usize = 8;
/// Evaluations with a larger piece have multiples of so many tokens: kernels compute so many at a time, and what is left over
/// one by one.
const TILE: usize = 16;

/// An evaluation should not take longer, so that a request that comes in the meantime is not kept waiting.
const LONGEST: Duration = Duration::from_secs(2);
/// But it has at least so many tokens, if there are any.
const LEAST_BATCH: usize = 64;

/// How much of prompts may be in an evaluation.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    /// So many tokens of all prompts,
    piece: usize,
    /// and so many with one that is then read to its end.
    whole: usize,
}

impl Pieces {
    fn up_to(piece: usize) -> Self {
        Self { piece, whole: piece }
    }

    /// Returns how many of the `left` tokens of a prompt may be in an evaluation that has `taken` tokens of others.
    fn of(self, left: usize, taken: usize) -> usize {
        if taken + left <= self.whole { left } else { left.min(self.piece.saturating_sub(taken)) }
    }
}

/// What an evaluation had of one sequence.
struct Part {
    slot: usize,
    /// Tokens of the text.
    n_tokens: usize,
    /// Tokens after them that were guessed.
    n_guesses: usize,
    /// Tokens before it.
    held: usize,
    /// The row of the logits after which a token can be chosen.
    row: Option<usize>,
    /// The row of the logits of its first token, if there is one for each.
    first: Option<usize>,
}

impl<D: SequenceDecoder> Scheduler<D> {
    /// Decides on the tokens of the next evaluation. Returns whether there are any.
    pub(super) fn plan(&mut self) -> bool {
        self.slots.iter_mut().for_each(|slot| slot.planned = 0);
        if self.options.deterministic { self.plan_one() } else { self.plan_many() }
    }

    /// Returns the sequences with texts, beginning with the one whose turn it is.
    fn running(&self) -> Vec<usize> {
        let n = self.slots.len();
        (0..n).map(|i| (self.turn + i) % n).filter(|i| self.slots[*i].text.is_some()).collect()
    }

    /// Returns how many tokens of a sequence one evaluation may have: rows of logits are few, if each of them needs one.
    fn most_scored(&self, i: usize) -> usize {
        let slot = &self.slots[i];
        let is_scored = slot.text.as_ref().is_some_and(|text| text.is_scored_at(slot.sequence.tokens().len()));
        if is_scored { self.decoder.n_rows() } else { usize::MAX }
    }

    /// Returns how many tokens a sequence has to read before the next token is written.
    fn to_read(&self, i: usize) -> usize {
        let slot = &self.slots[i];
        slot.text.as_ref().map_or(0, |text| text.tokens().len().saturating_sub(slot.sequence.tokens().len()))
    }

    /// One sequence: the next token, or the next piece of its prompt, which ends where pieces always end.
    fn plan_one(&mut self) -> bool {
        let Some(&i) = self.running().first() else { return false };
        let held = self.slots[i].sequence.tokens().len();
        let piece = self.options.piece.min(self.decoder.n_batch());
        self.slots[i].planned = self.to_read(i).min(piece - held % piece).min(self.most_scored(i));
        self.turn = (i + 1) % self.slots.len();
        true
    }

    /// The next token of every text that writes, and then of prompts what has room.
    fn plan_many(&mut self) -> bool {
        let (running, writers) = loop {
            let running = self.running();
            let writers: Vec<usize> = running.iter().copied().filter(|i| self.to_read(*i) == 1).collect();
            let least = writers.len().max(1);
            if running.len() < 2 || self.free_for(least) >= least {
                break (running, writers);
            }
            let order = |i: &usize| self.slots[*i].text.as_ref().map(|text| text.order);
            let Some(&youngest) = running.iter().max_by_key(|i| order(i)) else { return false };
            self.preempt(youngest);
        };
        let n_batch = self.decoder.n_batch();
        let (mut rows, mut n_tokens) = (self.decoder.n_rows(), 0);
        for &i in writers.iter().take(rows.min(n_batch)) {
            self.slots[i].planned = 1;
            n_tokens += 1;
            rows -= 1;
        }
        let n_writing = n_tokens;
        // One row is left for a prompt that is read to its end.
        n_tokens += self.guess(&writers, running.len() > writers.len(), rows.saturating_sub(1));
        rows -= n_tokens - n_writing;
        let pieces = self.pieces(n_tokens, n_writing);
        let (mut next_turn, is_alone, mut n_prompts) = (None, running.len() == 1, 0);
        for i in running.into_iter().filter(|i| !writers.contains(i)) {
            let wanted = pieces.of(self.to_read(i), n_prompts).min(n_batch - n_tokens);
            let free = self.free_for(n_tokens + wanted).saturating_sub(n_tokens);
            // There is always room for one text alone; if not, the decoder says so.
            let mut n = wanted.min(free.max(usize::from(is_alone)));
            if self.most_scored(i) != usize::MAX {
                n = n.min(rows);
                rows -= n;
            } else if n == self.to_read(i) {
                // It needs a row.
                n -= usize::from(rows == 0);
                rows = rows.saturating_sub(1);
            }
            self.slots[i].planned = n;
            n_tokens += n;
            n_prompts += n;
            if n > 0 {
                next_turn.get_or_insert((i + 1) % self.slots.len());
            }
        }
        self.turn = next_turn.unwrap_or(self.turn);
        n_tokens > 0
    }

    /// Guesses what follows the next tokens of texts that write, in at most so many rows. Returns how many guesses there are.
    fn guess(&mut self, writers: &[usize], is_reading: bool, rows: usize) -> usize {
        self.slots.iter_mut().filter_map(|slot| slot.text.as_mut()?.draft.as_mut()).for_each(|draft| draft.withdraw());
        let writing: Vec<usize> = writers.iter().copied().filter(|i| self.slots[*i].planned > 0).collect();
        let (n, Some(one)) = (writing.len(), self.row_costs.one()) else { return 0 };
        // Nothing is given up for guesses.
        let room = match self.decoder.shares_tokens() {
            true => (self.decoder.n_ctx() as usize).saturating_sub(self.cells.n_used() + n),
            false => usize::MAX,
        };
        let (mut left, mut guessed) = (rows.min(room).min(self.decoder.n_batch().saturating_sub(n)), 0);
        let mut written = n as f64;
        // A row beside a prompt costs as much as one of the prompt.
        let beside = self.seconds_per_token.filter(|_| is_reading).map(|seconds| seconds / one);
        for i in writing {
            let costs = &self.row_costs;
            let cost = |more: usize| match beside {
                Some(each) => costs.of(n) + each * (guessed + more) as f64,
                None => costs.of(n + guessed + more),
            };
            let Some(text) = &mut self.slots[i].text else { continue };
            let most = text.most_guesses.min(left);
            let Some(draft) = &mut text.draft else { continue };
            let (found, expected) = draft.propose_beside(most, Weighing { tokens: written, cost: &cost });
            guessed += found;
            left -= found;
            written += expected;
        }
        guessed
    }

    /// Returns how much of prompts may be read while `n_writing` texts are written, in an evaluation that has `n_tokens` tokens
    /// of these.
    fn pieces(&self, n_tokens: usize, n_writing: usize) -> Pieces {
        if n_writing == 0 {
            return Pieces::up_to(self.affordable(LONGEST, LEAST_BATCH));
        }
        let known = |time: Duration| self.seconds_per_token.map_or(0, |_| self.affordable(time, 0));
        let step = self.row_costs.one().map_or(0.0, |one| one * self.row_costs.of(n_writing));
        let half = self.options.pause / 2;
        let stall = STALL.max(half).max(Duration::try_from_secs_f64(STALLED_STEPS * step).unwrap_or(STALL));
        let piece = self.options.piece.max(known(half)).min(self.affordable(stall, LEAST_PIECE));
        let tile = if piece < TILE { 1 } else { TILE };
        let most = (n_tokens + piece + tile / 2) / tile * tile;
        Pieces { piece: most.saturating_sub(n_tokens).max(1), whole: known(self.options.pause) }
    }

    /// Returns how many tokens are probably read in this time, but not fewer than `least`.
    fn affordable(&self, time: Duration, least: usize) -> usize {
        let n = self.seconds_per_token.map_or(f64::INFINITY, |seconds| time.as_secs_f64() / seconds.max(1e-9));
        // Saturates.
        (n as usize).max(least)
    }

    /// Evaluates what was planned, and takes the steps that follow.
    pub(super) fn evaluate(&mut self, sink: &mut EventSink<'_>) {
        let begun = Instant::now();
        let reading = self.slots.iter().filter(|slot| slot.planned > 1);
        let reading: Vec<TaskId> = reading.filter_map(|slot| Some(slot.text.as_ref()?.task)).collect();
        let was_long = !reading.is_empty();
        self.interrupt.begin(reading);
        let result = self.evaluate_planned();
        self.interrupt.end();
        match result {
            Ok(parts) => {
                self.count(&parts, begun);
                self.go_on(parts, sink);
            }
            // Somebody has cancelled a task of it. Nothing has changed, and the others are evaluated again.
            Err(Error::Cancelled) if was_long && !self.decoder.is_cancelled() => {}
            Err(Error::Llama(llama::Error::ContextFull { .. })) if self.has_other_room() => {}
            Err(error) => self.failed(error, sink),
        }
    }

    fn evaluate_planned(&mut self) -> Result<Vec<Part>, Error> {
        let (mut parts, mut planned) = (Vec::new(), Vec::new());
        for (i, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.planned > 0) {
            let Some(text) = &slot.text else { continue };
            let held = slot.sequence.tokens().len();
            let end = (held + slot.planned).min(text.tokens().len());
            let is_last = end == text.tokens().len();
            let is_scored = text.is_scored_at(held);
            let guesses = text.draft.as_ref().map_or(&[][..], |draft| draft.guesses());
            let logits = match (is_scored || !guesses.is_empty(), is_last) {
                (true, _) => Logits::All,
                (false, true) => Logits::Last,
                (false, false) => Logits::None,
            };
            let tokens = &text.tokens()[held..end];
            // Counted from the first row of its own.
            let row = is_last.then_some(if is_scored { tokens.len() - 1 } else { 0 });
            let n_guesses = guesses.len();
            parts.push(Part { slot: i, n_tokens: tokens.len(), n_guesses, held, row, first: is_scored.then_some(0) });
            let tokens = match n_guesses {
                0 => Cow::Borrowed(tokens),
                _ => Cow::Owned([tokens, guesses].concat()),
            };
            planned.push((&mut slot.sequence, tokens, logits));
        }
        let mut shares: Vec<Share<'_>> =
            planned.iter_mut().map(|(sequence, tokens, logits)| Share { sequence, tokens, logits: *logits }).collect();
        let result = evaluate_together(&mut self.decoder, &mut self.batch, &mut shares);
        // After an error, sequences whose memory cannot be truncated are empty.
        for part in &parts {
            self.cells.resize(part.slot, self.slots[part.slot].sequence.tokens().len());
        }
        let rows = result?;
        for (part, first) in parts.iter_mut().zip(rows) {
            part.row = part.row.map(|row| first + row);
            part.first = part.first.map(|_| first);
        }
        Ok(parts)
    }

    fn count(&mut self, parts: &[Part], begun: Instant) {
        let elapsed = begun.elapsed();
        let is_writing = |part: &&Part| self.slots[part.slot].text.as_ref().is_some_and(|text| text.is_writing());
        let written: usize = parts.iter().filter(is_writing).map(|part| part.n_tokens + part.n_guesses).sum();
        let all: usize = parts.iter().map(|part| part.n_tokens + part.n_guesses).sum();
        let writing = elapsed.mul_f64(written as f64 / all.max(1) as f64);
        self.counts.read_tokens += (all - written) as u64;
        self.counts.reading += elapsed.saturating_sub(writing);
        self.counts.writing += writing;
        self.counts.evaluations += 1;
        self.counts.guessed_tokens += parts.iter().map(|part| part.n_guesses as u64).sum::<u64>();
        self.counts.guesses += parts.iter().filter(|part| part.n_guesses > 0).count() as u64;
        if all - written >= LEAST_PIECE {
            // Of fewer tokens, most of the time goes into reading the weights.
            let seconds = elapsed.as_secs_f64() / all as f64;
            self.seconds_per_token = Some(self.seconds_per_token.map_or(seconds, |known| 0.7 * known + 0.3 * seconds));
        }
        if parts.iter().all(|part| part.n_tokens == 1) {
            self.row_costs.learn(all, elapsed);
        }
        self.counts.evaluated_sequences += parts.len() as u64;
        let most = parts.iter().map(|part| part.held + part.n_tokens).max().unwrap_or(0);
        self.counts.most_tokens = self.counts.most_tokens.max(most as u64);
    }

    /// Takes the steps after an evaluation.
    fn go_on(&mut self, parts: Vec<Part>, sink: &mut EventSink<'_>) {
        let piece = self.options.piece;
        for part in &parts {
            let slot = &mut self.slots[part.slot];
            let Some(text) = &mut slot.text else { continue };
            let held = slot.sequence.tokens().len();
            if slot.clean == part.held
                && held <= text.n_prompt
                && (!self.options.deterministic || held.is_multiple_of(piece))
            {
                slot.clean = held;
            }
            if let Some(first) = part.first {
                let task = text.task;
                match text.scored(part.held, part.n_tokens, LogitRows::new(&self.decoder, first)) {
                    Ok(Some(event)) => sink(task, event),
                    Ok(None) => {}
                    Err(error) => {
                        self.fail(task, error.into(), sink);
                        continue;
                    }
                }
            }
            if text.progress && !text.is_writing() {
                let (done, total) = (held.min(text.n_prompt), text.n_prompt);
                sink(text.task, Event::Reading { index: text.index, done, total });
            }
        }
        for part in parts {
            let Some(row) = part.row else { continue };
            let Some(text) = &mut self.slots[part.slot].text else { continue };
            if text.read.is_none() {
                text.read = Some(Instant::now());
                // The prompt is read once for all texts of a task, and its last logits serve them all.
                for sibling in self.start_siblings(part.slot, sink) {
                    if let Some(text) = &mut self.slots[sibling].text {
                        text.read = Some(Instant::now());
                    }
                    self.write(sibling, row, sink);
                }
            }
            self.write(part.slot, row, sink);
        }
    }

    /// Writes the next token of a text.
    fn write(&mut self, i: usize, row: usize, sink: &mut EventSink<'_>) {
        loop {
            let Some(text) = &mut self.slots[i].text else { return };
            let action = match text.step(LogitRows::new(&self.decoder, row)) {
                Ok(action) => action,
                Err(error) => {
                    let task = text.task;
                    return self.fail(task, error.into(), sink);
                }
            };
            if let Some(piece) = text.piece() {
                sink(text.task, piece);
                self.counts.written_tokens += u64::from(text.generation.piece().is_some_and(|p| p.token.is_some()));
            }
            match action {
                Action::Evaluate { .. } => return self.drop_guesses(i),
                Action::Accepted => self.counts.accepted_guesses += 1,
                Action::Flush => {}
                Action::Finished => return self.finished(i, sink),
            }
        }
    }

    /// Ends a text that has come to its end.
    fn finished(&mut self, i: usize, sink: &mut EventSink<'_>) {
        let Some(text) = self.make_idle(i) else { return };
        if let Some(draft) = &text.draft {
            self.experience = Some(draft.experience().clone());
        }
        let finish = text.generation.finish().cloned().unwrap_or(Finish::Complete);
        sink(text.task, text.finished(End::Finish(finish)));
        self.one_ended(text.task, sink);
    }

    /// Makes room after the decoder had none. Returns whether there was anything to give up.
    fn has_other_room(&mut self) -> bool {
        let before = self.cells.n_used();
        self.free_for(usize::MAX);
        let running = self.running();
        if self.cells.n_used() < before {
            return true;
        }
        let order = |i: &usize| self.slots[*i].text.as_ref().map(|text| text.order);
        match running.iter().max_by_key(|i| order(i)) {
            Some(&youngest) if running.len() > 1 => {
                self.preempt(youngest);
                true
            }
            _ => false,
        }
    }

    /// Fails the tasks of an evaluation that failed.
    fn failed(&mut self, error: Error, sink: &mut EventSink<'_>) {
        let planned: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].planned > 0).collect();
        let tasks: Vec<_> = planned.iter().filter_map(|i| Some(self.slots[*i].text.as_ref()?.task)).collect();
        let message = error.to_string();
        let mut error = Some(error);
        for task in tasks {
            // The first has the error itself, the others its words.
            let again = || llama::Error::Decode { status: -1, reason: message.clone() }.into();
            self.fail(task, TaskError::Engine(error.take().unwrap_or_else(again)), sink);
        }
        // Whatever went wrong, nobody starts from these.
        for i in planned {
            self.slots[i].sequence.truncate(&mut self.decoder, 0);
            self.slots[i].clean = 0;
            self.cells.resize(i, 0);
        }
    }
}

//! Generates one text in a session, by driving a [`Generation`] to its end.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::generation::{Action, Finish, GenerateOptions, Generation, Step, TokenLogprobs, Writer};
use super::speculate::Speculation;
use super::{Decoder, Error, Logits, Session};

/// A generated text, and how long it took.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The tokens, without the end token.
    pub tokens: Vec<u32>,
    /// The log-probabilities of each token, if they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that the context already held.
    pub reused_tokens: usize,
    /// Time until the first logits.
    pub prompt_time: Duration,
    /// Time from there to the end.
    pub generate_time: Duration,
    /// Written tokens that were evaluated in that time. The first token comes from the evaluation of the prompt, and
    /// the last one is usually not evaluated.
    pub evaluated_tokens: usize,
    /// Statistics of drafting; `None` without a draft.
    pub speculation: Option<Speculation>,
}

impl Generated {
    /// Returns how many tokens of the prompt were evaluated per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens.saturating_sub(self.reused_tokens), self.prompt_time)
    }

    /// Returns how many tokens were written per second after the prompt was read; 0 if there were too few to measure.
    pub fn generate_rate(&self) -> f64 {
        rate(self.evaluated_tokens, self.generate_time)
    }
}

fn rate(n: usize, time: Duration) -> f64 {
    if n == 0 { 0.0 } else { n as f64 / time.as_secs_f64().max(1e-9) }
}

/// Continues `prompt` until an end token, a stop text or a limit, or until `on_step` breaks or the session's flag is
/// set. Passes text to `on_step` as soon as it is certain.
///
/// Afterwards, the context holds the prompt and the written text, so a prompt that continues it costs only its new
/// tokens.
///
/// # Errors
/// If the prompt is empty or does not fit in the context, nothing can be drafted for the model, llama.cpp fails, the
/// logits are broken, or the tokens that the grammar allows cannot be computed.
pub fn generate<D: Decoder>(
    session: &mut Session<D>,
    mut writer: Writer<'_>,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_step: impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Generated, Error> {
    let begun = Instant::now();
    let tokenizer = session.decoder().tokenizer();
    let mut generation = Generation::new(tokenizer, prompt, session.n_ctx() as usize, options, writer.sampler);
    if let Some(draft) = &mut writer.draft {
        draft.begin(prompt, writer.sampler, session.decoder().can_truncate())?;
    }
    let mut reused_tokens = 0;
    let mut prompt_tokens = prompt.len();
    // When the prompt was read.
    let mut read = None;
    loop {
        let action = generation.step(&mut writer, session.logit_rows())?;
        if let Some(piece) = generation.piece()
            && on_step(piece).is_break()
        {
            generation.abandon();
        }
        if generation.finish().is_some() {
            break;
        }
        let evaluated = match action {
            Action::Finished => break,
            Action::Flush => Ok(()),
            Action::Accepted => accept_guess(session, &mut writer, &generation),
            Action::Evaluate { .. } if read.is_none() => {
                let evaluated = read_prompt(session, &mut writer, prompt).map(|reused| reused_tokens = reused);
                if matches!(evaluated, Err(Error::Cancelled)) {
                    prompt_tokens = session.tokens().len();
                }
                read = Some(Instant::now());
                evaluated
            }
            Action::Evaluate { known, most_guesses } => {
                evaluate(session, &mut writer, generation.text(), known, most_guesses)
            }
        };
        match evaluated {
            Ok(()) => {}
            Err(Error::Cancelled) => generation.cancel(),
            Err(error) => return Err(error),
        }
    }
    let read = read.unwrap_or(begun);
    let generate_time = read.elapsed();
    let evaluated_tokens = generation.n_evaluated();
    let speculation = writer.draft.map(|draft| {
        draft.decided(true);
        // Guesses are not part of the written text.
        session.truncate(prompt.len() + evaluated_tokens);
        draft.stats()
    });
    let (tokens, logprobs, text, finish) = generation.into_parts();
    Ok(Generated {
        tokens,
        logprobs,
        text,
        finish,
        prompt_tokens,
        reused_tokens,
        prompt_time: read - begun,
        generate_time,
        evaluated_tokens,
        speculation,
    })
}

/// Lets the model, and the draft model if there is one, read the prompt. Returns how many tokens the context already
/// held.
fn read_prompt<D: Decoder>(session: &mut Session<D>, writer: &mut Writer<'_>, prompt: &[u32]) -> Result<usize, Error> {
    let reused = session.prefill(prompt)?;
    if let Some(draft) = &mut writer.draft {
        draft.read()?;
    }
    Ok(reused)
}

/// Records that the last token was guessed, and has already been read as a guess.
fn accept_guess<D: Decoder>(
    session: &Session<D>,
    writer: &mut Writer<'_>,
    generation: &Generation,
) -> Result<(), Error> {
    if let (Some(draft), Some(token)) = (&mut writer.draft, generation.piece().and_then(|piece| piece.token)) {
        draft.push(token);
        draft.taken();
    }
    if session.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Reads the last token of `text`, and guesses of what follows it. The session has read the first `known` tokens;
/// anything beyond them is wrong guesses.
fn evaluate<D: Decoder>(
    session: &mut Session<D>,
    writer: &mut Writer<'_>,
    text: &[u32],
    known: usize,
    most_guesses: usize,
) -> Result<(), Error> {
    let (Some(draft), [.., token]) = (&mut writer.draft, text) else {
        return session.extend(text, known).map(drop);
    };
    draft.push(*token);
    draft.decided(false);
    if session.truncate(known) < known {
        // The memory could not be truncated after all, so the whole text has to be read again.
        draft.give_up();
        return session.prefill(text).map(drop);
    }
    let most = most_guesses.min(session.rows() - 1);
    let guesses = draft.propose(most, writer.sampler)?;
    let n = guesses.len();
    let begun = Instant::now();
    if n == 0 {
        session.eval(&[*token], Logits::Last)?;
    } else {
        let batch: Vec<u32> = std::iter::once(*token).chain(guesses.iter().copied()).collect();
        session.eval(&batch, Logits::All)?;
    }
    draft.evaluated(n, begun);
    Ok(())
}

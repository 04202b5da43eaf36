//! Constrains one text to a grammar, token by token.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use llguidance::toktrie::SimpleVob;
use llguidance::{CancellationHandle, Matcher};

use super::grammar::plain;
use super::guard::Guard;
use super::limited::{PREPARE, STACK_BYTES};
use super::{Error, Grammar, Tokens};

/// The time limit for computing a mask. Most take well below a millisecond.
const STEP: Duration = Duration::from_secs(10);

/// Knows which tokens may come next in a text that satisfies a grammar.
///
/// Its own thread starts to compute the next mask as soon as a token is accepted, while the model evaluates the token.
/// [`mask`](Self::mask) waits for it to finish.
pub struct Constraint {
    what: &'static str,
    commands: Sender<Command>,
    replies: Receiver<Reply>,
    cancel: CancellationHandle,
    // None while the thread is computing it.
    next: Option<Result<Next, Error>>,
    finished: bool,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Constraint({}, finished: {})", self.what, self.finished)
    }
}

enum Command {
    Accept(u32),
    Restart,
}

enum Reply {
    Ready(Result<CancellationHandle, Error>),
    /// Whether the grammar ends with the token.
    Accepted(Result<bool, Error>),
    Next(Result<Next, Error>),
}

/// The next mask.
struct Next {
    mask: SimpleVob,
    complete: bool,
    only_end: bool,
}

impl Constraint {
    /// Begins a text that satisfies `grammar`, in the vocabulary `tokens`.
    ///
    /// # Errors
    /// If the grammar cannot be prepared for this vocabulary.
    pub fn new(grammar: &Grammar, tokens: &Arc<Tokens>) -> Result<Self, Error> {
        let what = grammar.what();
        let (commands, inbox) = mpsc::channel();
        let (outbox, replies) = mpsc::channel();
        let (grammar, tokens) = (grammar.clone(), tokens.clone());
        let spawned =
            std::thread::Builder::new().name("constraint".to_string()).stack_size(STACK_BYTES).spawn(move || {
                // An error means that the constraint was dropped.
                let _ = Worker::run(&grammar, &tokens, &inbox, &outbox);
            });
        spawned.map_err(|error| Error::Failed { what, why: format!("no thread could be started ({error})") })?;
        let cancel = match replies.recv_timeout(PREPARE) {
            Ok(Reply::Ready(ready)) => ready?,
            Err(RecvTimeoutError::Timeout) => return Err(Error::TooSlow { what, seconds: PREPARE.as_secs() }),
            _ => return Err(lost(what)),
        };
        Ok(Self { what, commands, replies, cancel, next: None, finished: false })
    }

    /// Returns the tokens that may come next: bit i % 32 of word i / 32 is token i. End tokens are included if the text
    /// may end here. Never all zero.
    ///
    /// # Errors
    /// If the mask could not be computed, or nothing can come next.
    pub fn mask(&mut self) -> Result<&[u32], Error> {
        match self.wait() {
            Ok(next) => Ok(next.mask.as_slice()),
            Err(error) => Err(error.clone()),
        }
    }

    /// Appends `token` to the text, and starts to compute the next mask.
    ///
    /// # Errors
    /// If the mask does not allow the token.
    pub fn accept(&mut self, token: u32) -> Result<(), Error> {
        let allowed = match self.wait() {
            Ok(next) => (token as usize) < next.mask.len() && next.mask.is_allowed(token),
            Err(error) => return Err(error.clone()),
        };
        if !allowed {
            return Err(Error::NotAllowed { token, what: self.what });
        }
        self.next = None;
        self.commands.send(Command::Accept(token)).map_err(|_| lost(self.what))?;
        match self.receive() {
            Ok(Reply::Accepted(Ok(finished))) => {
                self.finished = finished;
                Ok(())
            }
            Ok(Reply::Accepted(Err(error))) | Err(error) => {
                self.next = Some(Err(error.clone()));
                Err(error)
            }
            Ok(_) => Err(lost(self.what)),
        }
    }

    /// Returns whether the text may end here.
    pub fn is_complete(&mut self) -> bool {
        self.wait().as_ref().is_ok_and(|next| next.complete)
    }

    /// Returns whether the text is complete and cannot continue. Known right after [`accept`](Self::accept) if the
    /// grammar itself ends, otherwise after the next [`mask`](Self::mask). Does not wait.
    pub fn is_finished(&self) -> bool {
        self.finished || matches!(&self.next, Some(Ok(next)) if next.only_end)
    }

    /// Begins another text.
    ///
    /// # Errors
    /// If there was an error before.
    pub fn restart(&mut self) -> Result<(), Error> {
        if let Err(error) = self.wait() {
            return Err(error.clone());
        }
        self.commands.send(Command::Restart).map_err(|_| lost(self.what))?;
        (self.next, self.finished) = (None, false);
        Ok(())
    }

    fn wait(&mut self) -> &Result<Next, Error> {
        if self.next.is_none() {
            let next = match self.receive() {
                Ok(Reply::Next(next)) => next,
                Ok(_) => Err(lost(self.what)),
                Err(error) => Err(error),
            };
            self.next = Some(next);
        }
        self.next.get_or_insert_with(|| Err(lost(self.what)))
    }

    fn receive(&mut self) -> Result<Reply, Error> {
        self.replies.recv_timeout(STEP).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                self.cancel.cancel();
                Error::Failed { what: self.what, why: format!("it took more than {} seconds", STEP.as_secs()) }
            }
            RecvTimeoutError::Disconnected => lost(self.what),
        })
    }
}

impl Drop for Constraint {
    fn drop(&mut self) {
        // Nobody waits for the thread any more.
        self.cancel.cancel();
    }
}

fn lost(what: &'static str) -> Error {
    Error::Failed { what, why: "its thread ended".to_string() }
}

/// The thread's side of a constraint.
struct Worker<'a> {
    what: &'static str,
    tokens: &'a Tokens,
    matcher: Matcher,
    guard: Option<Guard>,
}

impl Worker<'_> {
    fn run(
        grammar: &Grammar,
        tokens: &Tokens,
        inbox: &Receiver<Command>,
        outbox: &Sender<Reply>,
    ) -> Result<(), mpsc::SendError<Reply>> {
        let mut matcher = match matcher(grammar, tokens) {
            Ok(matcher) => matcher,
            Err(error) => return outbox.send(Reply::Ready(Err(error))),
        };
        matcher = matcher.into_cancellable();
        outbox.send(Reply::Ready(Ok(matcher.cancellation_handle().unwrap_or_default())))?;
        let guard = grammar.is_json().then(Guard::default);
        let mut worker = Worker { what: grammar.what(), tokens, matcher, guard };
        outbox.send(Reply::Next(worker.next()))?;
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Restart => {
                    worker.guard = worker.guard.map(|_| Guard::default());
                    let reset = worker.matcher.reset().map_err(|error| worker.failed(&error));
                    outbox.send(Reply::Next(reset.and_then(|()| worker.next())))?;
                }
                Command::Accept(token) => {
                    let accepted = worker.accept(token);
                    let go_on = accepted.is_ok();
                    outbox.send(Reply::Accepted(accepted))?;
                    if go_on {
                        outbox.send(Reply::Next(worker.next()))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool, Error> {
        self.matcher.consume_token(token).map_err(|error| self.failed(&error))?;
        if let Some(guard) = &mut self.guard {
            guard.accept(self.tokens.bytes(token));
        }
        Ok(self.matcher.is_stopped())
    }

    fn next(&mut self) -> Result<Next, Error> {
        let stopped = self.matcher.is_stopped();
        let complete = stopped || self.matcher.is_accepting().map_err(|error| self.failed(&error))?;
        let mut mask = self.matcher.compute_mask_or_eos().map_err(|error| self.failed(&error))?;
        // Grammars can refer to tokens by id, but must not allow control tokens.
        mask.and(self.tokens.text());
        self.watch(&mut mask, complete);
        let only_end = complete && mask.is_zero();
        if complete {
            self.tokens.ends().iter().for_each(|end| mask.allow_token(*end));
        } else if mask.is_zero() {
            let why = "no token of the model can come next".to_string();
            return Err(Error::Failed { what: self.what, why });
        }
        Ok(Next { mask, complete, only_end })
    }

    /// Removes tokens that JSON parsers would refuse, unless that would leave nothing before the text is complete.
    fn watch(&self, mask: &mut SimpleVob, complete: bool) {
        let Some(guard) = &self.guard else { return };
        let mut refused = Vec::new();
        if guard.watches() {
            mask.iter_set_entries(|id| {
                if guard.refuses(self.tokens.bytes(id as u32)) {
                    refused.push(id as u32);
                }
            });
        } else if !guard.in_string() {
            refused.extend(self.tokens.numbers());
        }
        if refused.is_empty() {
            return;
        }
        let before = mask.clone();
        refused.into_iter().for_each(|id| mask.disallow_token(id));
        if mask.is_zero() && !complete {
            *mask = before;
        }
    }

    fn failed(&self, error: &anyhow::Error) -> Error {
        Error::Failed { what: self.what, why: plain(&error.to_string()) }
    }
}

/// Returns a matcher at the start of `grammar`.
pub(super) fn matcher(grammar: &Grammar, tokens: &Tokens) -> Result<Matcher, Error> {
    let refused = |why| Error::Refused { what: grammar.what(), why };
    let parser = tokens.parser(grammar.source()).map_err(|error| refused(plain(&format!("{error:#}"))))?;
    let matcher = Matcher::new(Ok(parser));
    match matcher.get_error() {
        None => Ok(matcher),
        Some(error) => Err(refused(plain(&error))),
    }
}

//! `nibble chat`
//!
//! ```text
//! input ──► command ──► Session ──► Talk ──► engine::generate
//! a line    message or   does it     conversation, what is read,   │
//! editor,   /command                 forgotten, written            ▼
//! or a pipe                                                     screen
//! ```

mod command;
mod echo;
mod files;
mod input;
mod screen;
mod settings;
mod signal;
mod talk;

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ArgAction;

use self::command::{Command, Typed};
use self::input::{Input, Line};
use self::screen::Screen;
use self::settings::Settings;
use self::signal::Interrupt;
use self::talk::{Aids, Answered, Ended, Talk, Turn, Unanswered};
use super::interrupt::Interrupted;
use super::machine::{MachineArgs, interruptible};
use super::message;
use super::progress::Patient;
use super::sampling::SamplingArgs;
use super::speculation::{self, SpeculationArgs};
use super::structure::StructureArgs;
use super::template::Source;
use crate::base::units;
use crate::chat::{self, Conversation};
use crate::engine::{Draft, Session};
use crate::gguf::Gguf;
use crate::llama;

/// Talk with a model in the terminal
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What you type is put to the model in its own chat template; /help lists what else can be typed. Answers go to standard
output, all else to standard error.

Where something is piped in, every line of it is a message or a command; a line that ends in \\ goes on in the next one,
and \"\"\" opens and closes a message of several lines. The exit code is 1 where anything could not be done.

Examples:
  nibble chat yi-34b-chat-q4_k.gguf
  nibble chat yi-34b-chat-q4_k.gguf --system '请用中文回答。' --ctx 8192
  printf 'What is a nibble?\\nAnd a byte?\\n/save bytes.json\\n' | nibble chat yi-34b-chat-q4_k.gguf")]
pub struct Args {
    /// The model: a GGUF file, or any part of a split one
    model: PathBuf,

    /// What the model is told first
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Conversation")]
    system: Option<String>,

    /// Read what the model is told first from a file
    #[arg(long, value_name = "FILE", conflicts_with = "system", help_heading = "Conversation")]
    system_file: Option<PathBuf>,

    /// Go on with a saved conversation: what /save wrote, or a list of messages as OpenAI's API has them
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    load: Option<PathBuf>,

    /// A Jinja template from a file, or 'chatml', in place of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    chat_template: Option<PathBuf>,

    /// Do not keep what is typed for the next time; NIBBLE_HISTORY names another file to keep it in, or none if empty
    #[arg(long, help_heading = "Conversation")]
    no_history: bool,

    /// Tokens an answer has at most [default: until the model ends it]
    #[arg(short = 'n', long, value_name = "N", help_heading = "Writing")]
    max_tokens: Option<usize>,

    /// End an answer when this text comes up, which is not shown; can be given several times
    #[arg(long, value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true, help_heading = "Writing")]
    stop: Vec<String>,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    structure: StructureArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    speculation: SpeculationArgs,

    /// Show the speed after each answer
    #[arg(long, help_heading = "Output")]
    stats: bool,

    /// Show llama.cpp's log
    #[arg(short, long, help_heading = "Output")]
    verbose: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    // What can be wrong with the command line comes out before gigabytes are loaded.
    let mut settings = Settings { params: args.sampling.params(), stats: args.stats, ..Settings::default() };
    settings.params.check()?;
    let grammar = args.structure.grammar()?;
    if let Some(n) = args.max_tokens {
        settings.set("max_tokens", &n.to_string()).map_err(anyhow::Error::msg)?;
    }
    let system = match &args.system_file {
        None => args.system.clone(),
        Some(path) => Some(super::run::prompt_text(None, Some(path))?.trim_end_matches(['\r', '\n']).to_string()),
    };
    let source = Source::read(args.chat_template.as_ref())?;
    let template = match source.template(Gguf::open(&args.model)?.metadata()) {
        Err(chat::Error::NoTemplate) => bail!(
            "{} has no chat template, so it cannot be told who says what; give it one with --chat-template FILE, or with \
             --chat-template chatml where it was trained on <|im_start|>; or have it go on from a text with 'nibble run'",
            args.model.display()
        ),
        template => template?,
    };
    let loaded = args.load.as_deref().map(files::load).transpose()?;

    let screen = Screen::new();
    let history = if args.no_history { None } else { input::history_file() };
    let input = Input::open(history, screen.colour())?;
    let interrupt = Interrupt::listen(input.is_terminal())?;
    llama::set_verbose(args.verbose);
    let (session, draft) = load(&args, &interrupt)?;
    if let Some(warning) = source.warning(session.model().tokenizer()) {
        screen.say(&format!("warning: {warning}"));
    }
    if let Some(trained) = session.model().n_ctx_train().filter(|trained| session.n_ctx() > *trained) {
        screen.say(&format!("warning: the model was trained on {trained} tokens; beyond them it may write nonsense"));
    }

    let codec = session.model().tokenizer();
    settings.params = args.sampling.params_for(codec);
    let constraint = grammar.as_ref().map(|grammar| StructureArgs::constraint(grammar, codec)).transpose()?;
    let kept_to = grammar.as_ref().map(|grammar| grammar.what());
    let talk = Talk::new(session, template, settings, Aids { constraint, draft }, args.stop.clone())?;
    let mut chat = Chat { talk, screen, input, interrupt, file: None, kept_to, failed: false };
    if chat.input.is_terminal() {
        chat.greet();
    }
    if let Some(conversation) = loaded {
        chat.take_over(conversation)?;
        chat.file = args.load.clone();
    }
    if let Some(system) = system {
        chat.set_system(Some(system)).map_err(anyhow::Error::msg)?;
    }
    chat.talk()
}

fn load(args: &Args, interrupt: &Interrupt) -> anyhow::Result<(Session, Option<Draft>)> {
    let _busy = interrupt.busy();
    let options = args.speculation.session(args.machine.session(interrupt.flag()))?;
    let bar = Patient::new("loading", 1000);
    let loaded = args.machine.load_watched(&args.model, &options, move |part| bar.at((part * 1000.0) as u64));
    let model = interruptible(loaded)?;
    let draft = interruptible(args.speculation.draft(&args.machine, &model, &options))?;
    Ok((Session::new(&model, &options)?, draft))
}

/// A chat from its first prompt to its end.
struct Chat {
    talk: Talk,
    screen: Screen,
    input: Input,
    interrupt: Interrupt,
    /// Where the conversation came from, or was saved last.
    file: Option<PathBuf>,
    /// What answers are held to.
    kept_to: Option<&'static str>,
    /// Something could not be done.
    failed: bool,
}

/// What to do after a line.
enum Next {
    /// Ask for another one, which begins with this.
    Ask(String),
    /// Have the last message edited.
    Edit,
    /// End.
    End,
}

impl Next {
    fn ask() -> Self {
        Self::Ask(String::new())
    }
}

impl Chat {
    fn greet(&self) {
        let model = self.talk.model();
        let file = model.path().file_name().unwrap_or_default().to_string_lossy();
        let name = match model.metadata().str("general.name") {
            Some(name) => format!("{name} ({file})"),
            None => file.into_owned(),
        };
        // It comes from a file, and a hostile one can name itself by the megabyte.
        let name: String = name.chars().take(200).collect();
        self.screen.say(&format!(
            "{}, context of {} tokens",
            crate::base::display::printable(&name),
            self.talk.session().n_ctx()
        ));
        self.screen.say("/help lists commands; Ctrl-C stops an answer, Ctrl-D ends.\n");
    }

    fn talk(mut self) -> anyhow::Result<()> {
        let (mut next, mut interrupted) = (Next::ask(), false);
        loop {
            let (prefill, editing) = match next {
                Next::Ask(prefill) => (prefill, false),
                Next::Edit => (self.talk.conversation.last_question().unwrap_or_default().to_string(), true),
                Next::End => break,
            };
            let line = self.input.next(&prefill)?;
            let twice = std::mem::replace(&mut interrupted, line == Line::Interrupted);
            next = match line {
                Line::End => Next::End,
                Line::Interrupted if editing => {
                    self.screen.note("nothing is changed");
                    interrupted = false;
                    Next::ask()
                }
                Line::Interrupted if twice => Next::End,
                Line::Interrupted => {
                    self.screen.note("Ctrl-C again, or Ctrl-D, ends");
                    Next::ask()
                }
                Line::Text(text) if editing => self.edited(&text)?,
                Line::Text(text) => self.typed(&text)?,
            };
        }
        // What failed has been said.
        if self.failed && !self.input.is_terminal() { bail!("") } else { Ok(()) }
    }

    /// Says what could not be done; the chat goes on, with `prefill` in the next line.
    fn wrong(&mut self, why: &str, prefill: &str) -> Next {
        self.failed = true;
        self.screen.wrong(why);
        // A script has its next line already.
        Next::Ask(prefill.to_string())
    }

    fn typed(&mut self, text: &str) -> anyhow::Result<Next> {
        match command::parse(text) {
            Ok(Typed::Nothing) => Ok(Next::ask()),
            Ok(Typed::Message(said)) => {
                let before = self.talk.conversation.clone();
                self.talk.conversation.ask(said);
                self.answer(before, text)
            }
            Ok(Typed::Command(command)) => self.command(command),
            Err(why) => Ok(self.wrong(&why, "")),
        }
    }

    /// The last message has been edited to `text`.
    fn edited(&mut self, text: &str) -> anyhow::Result<Next> {
        let said = match command::parse(text) {
            Ok(Typed::Nothing) => {
                self.screen.note("nothing is changed");
                return Ok(Next::ask());
            }
            // Quotes that were opened while editing.
            Ok(Typed::Message(said)) if text.trim_start().starts_with(command::FENCE) => said,
            _ => text.to_string(),
        };
        let before = self.talk.conversation.clone();
        self.talk.conversation.edit(said);
        self.answer(before, text)
    }

    /// Has the last message answered. Where that fails, all is as it was `before`, and `text` is there to be changed.
    fn answer(&mut self, before: Conversation, text: &str) -> anyhow::Result<Next> {
        let busy = self.interrupt.busy();
        let answered = self.talk.answer(&mut self.screen);
        let was_stopped = self.interrupt.is_set();
        drop(busy);
        self.after(answered, before, text, was_stopped)
    }

    fn go_on(&mut self) -> anyhow::Result<Next> {
        let before = self.talk.conversation.clone();
        let busy = self.interrupt.busy();
        let answered = self.talk.go_on(&mut self.screen);
        let was_stopped = self.interrupt.is_set();
        drop(busy);
        match answered {
            None => Ok(self.wrong("there is no answer to go on with", "")),
            Some(answered) => self.after(answered, before, "", was_stopped),
        }
    }

    /// Says what is to be said after an answer.
    fn after(
        &mut self,
        answered: Result<Answered, Unanswered>,
        before: Conversation,
        text: &str,
        was_stopped: bool,
    ) -> anyhow::Result<Next> {
        match self.screen.take_error() {
            // Whoever read the answers has enough of them.
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Next::End),
            Some(error) => return Err(error).context("cannot write to standard output"),
            None => {}
        }
        if was_stopped && !self.input.is_terminal() {
            return Err(Interrupted(String::new()).into());
        }
        let Answered { ended, forgotten, is_empty, is_whole } = match answered {
            Ok(answered) => answered,
            Err(why) => {
                self.talk.conversation = before;
                if let Unanswered::Stopped = why {
                    self.screen.note(match text {
                        "" => "stopped before it began",
                        _ => "stopped before it began; your message is back in the line",
                    });
                    return Ok(Next::Ask(text.to_string()));
                }
                return Ok(self.wrong(&message(&why.into()), text));
            }
        };
        match ended {
            Ended::Itself if is_empty => self.screen.note("the model has nothing to say"),
            Ended::Itself | Ended::Unread => {}
            Ended::Stopped => self.screen.note("stopped; /continue goes on"),
            Ended::Limit => self.screen.note("as many tokens as max_tokens allows; /continue goes on"),
            Ended::Full => {
                self.screen.note("the context is full, so the answer ends here; --ctx makes it larger");
            }
            Ended::Failed(error) => drop(self.wrong(&message(&error.into()), "")),
        }
        if let (false, Some(kept_to)) = (is_whole, self.kept_to) {
            self.screen.note(&format!("cut before it was whole, the answer does not keep to {kept_to}"));
        }
        if forgotten > 0 {
            self.screen.note(&format!(
                "the context was full: the oldest {} forgotten",
                if forgotten == 1 { "turn is".to_string() } else { format!("{forgotten} turns are") }
            ));
        }
        if self.talk.settings().stats
            && let Some(turn) = &self.talk.last
        {
            self.screen.note(&format!("{}; {}", wrote(turn), read(turn)));
        }
        self.screen.gap();
        Ok(Next::ask())
    }

    fn command(&mut self, command: Command) -> anyhow::Result<Next> {
        let done = match command {
            Command::Exit => return Ok(Next::End),
            Command::Retry => {
                let before = self.talk.conversation.clone();
                if self.talk.conversation.take_answer() {
                    if self.talk.settings().is_greedy() && before.last_answer().is_some() {
                        self.screen.note("with temperature 0 every answer is the same");
                    }
                    return self.answer(before, "");
                }
                Err("there is no message to answer".to_string())
            }
            Command::Continue => return self.go_on(),
            Command::Edit => {
                if self.talk.conversation.last_question().is_some() {
                    return Ok(Next::Edit);
                }
                Err("there is no message to edit".to_string())
            }
            Command::Undo => self.undo(),
            Command::System(text) => self.system(text),
            Command::Save { file, replace } => self.save(file.as_deref(), replace),
            Command::Load(file) => self.load(&file),
            Command::Set(None) => {
                self.settings();
                Ok(())
            }
            Command::Set(Some((name, value))) => self.talk.set(&name, &value),
            Command::Stats => {
                self.stats();
                Ok(())
            }
            Command::Clear => {
                self.talk.conversation.clear();
                self.file = None;
                self.screen.note("a new conversation");
                Ok(())
            }
            Command::Help => {
                self.screen.list(command::KNOWN.iter().map(|known| {
                    (format!("/{} {}", known.name, known.takes).trim_end().to_string(), Cow::Borrowed(known.help))
                }));
                self.screen.say("");
                command::TYPING.iter().for_each(|line| self.screen.say(line));
                self.screen.gap();
                Ok(())
            }
        };
        Ok(match done {
            Ok(()) => Next::ask(),
            Err(why) => self.wrong(&why, ""),
        })
    }

    fn undo(&mut self) -> Result<(), String> {
        if !self.talk.conversation.undo() {
            return Err("there is nothing to take back".to_string());
        }
        match self.talk.conversation.n_turns() {
            0 => self.screen.note("taken back; nothing has been said"),
            _ => {
                let last = excerpt(self.talk.conversation.last_question().unwrap_or_default());
                self.screen.note(&format!("taken back; the last message is now: {last}"));
            }
        }
        Ok(())
    }

    fn system(&mut self, text: Option<String>) -> Result<(), String> {
        match text {
            None => match self.talk.conversation.system() {
                Some(text) => self.screen.say(text),
                None => self.screen.note("no system message; /system TEXT sets one"),
            },
            Some(text) => {
                let text = (text != "-").then_some(text);
                let gone = text.is_none();
                self.set_system(text)?;
                self.screen.note(if gone {
                    "no system message any more"
                } else {
                    "the model is told this from now on"
                });
            }
        }
        Ok(())
    }

    fn set_system(&mut self, text: Option<String>) -> Result<(), String> {
        let mut conversation = self.talk.conversation.clone();
        conversation.set_system(text);
        self.talk.check(&conversation).map_err(|why| message(&why.into()))?;
        self.talk.conversation = conversation;
        Ok(())
    }

    fn save(&mut self, name: Option<&str>, replace: bool) -> Result<(), String> {
        let file = match (name, &self.file) {
            (Some(name), _) => files::path(name),
            (None, Some(file)) => file.clone(),
            (None, None) => return Err("to which file? /save FILE".to_string()),
        };
        let model = self.talk.model().path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = self.talk.conversation.to_json(&model, self.talk.settings().to_json());
        // It is the same conversation, some turns on.
        let replace = replace || self.file.as_ref() == Some(&file);
        files::save(&file, &text, replace).map_err(|why| message(&why))?;
        self.screen.note(&format!("saved to {}", file.display()));
        self.file = Some(file);
        Ok(())
    }

    fn load(&mut self, name: &str) -> Result<(), String> {
        let file = files::path(name);
        let conversation = files::load(&file).map_err(|why| message(&why))?;
        self.take_over(conversation).map_err(|why| message(&why))?;
        self.file = Some(file);
        Ok(())
    }

    /// Goes on with a conversation from elsewhere, and shows where it stands.
    fn take_over(&mut self, conversation: Conversation) -> anyhow::Result<()> {
        let n_tokens = self.talk.check(&conversation)?;
        let n_turns = conversation.n_turns();
        self.talk.conversation = conversation;
        let (conversation, screen) = (&self.talk.conversation, &self.screen);
        screen.note(&format!("loaded: {}, {n_tokens} tokens", counted(n_turns, "turn")));
        if self.input.is_terminal() {
            if let Some(question) = conversation.last_question() {
                screen.say(&format!("> {}", excerpt(question)));
            }
            match conversation.last_answer() {
                Some(answer) => screen.say(&format!("{}\n", answer.trim())),
                None if n_turns > 0 => screen.note("it is not answered yet; /retry has it answered"),
                None => {}
            }
        }
        Ok(())
    }

    fn settings(&self) {
        let value = |name| self.talk.settings().get(name).unwrap_or_default();
        let default = Settings::default();
        let (changed, others): (Vec<_>, Vec<_>) =
            settings::others().partition(|name| self.talk.settings().get(name) != default.get(name));
        let known = settings::KNOWN.iter().map(|known| (known.name, known.help));
        let lines = known.chain(changed.into_iter().map(|name| (name, "see 'nibble chat --help'")));
        self.screen.list(lines.map(|(name, help)| (format!("{name} {}", value(name)), Cow::Borrowed(help))));
        self.screen.say(&format!("\nand, as 'nibble chat --help' explains them: {}", others.join(", ")));
        self.screen.gap();
    }

    fn stats(&self) {
        let (session, conversation) = (self.talk.session(), &self.talk.conversation);
        let forgotten = match conversation.n_forgotten() {
            0 => String::new(),
            n => format!(", of which the model no longer reads the first {n}"),
        };
        let mut lines = vec![
            ("turns", format!("{}{forgotten}", conversation.n_turns())),
            (
                "context",
                format!("{} of {} tokens, room for {}", session.tokens().len(), session.n_ctx(), session.room()),
            ),
        ];
        if let Some(turn) = &self.talk.last {
            lines.push(("last answer", format!("{}; {}", wrote(turn), read(turn))));
            lines.push(("all answers", format!("{}; {}", wrote(&self.talk.total), read(&self.talk.total))));
            if self.talk.has_draft() {
                lines.push(("guessed", speculation::line(&self.talk.total.speculation)));
            }
        }
        self.screen.list(lines.into_iter().map(|(name, what)| (name.to_string(), Cow::Owned(what))));
        self.screen.gap();
    }
}

/// `212 tokens written, 9.8 tokens/s`
fn wrote(turn: &Turn) -> String {
    format!("{} written{}", counted(turn.written, "token"), speed(turn.evaluated, turn.write_time))
}

/// `23 read, 45.0 tokens/s, and 1180 kept from before`
fn read(turn: &Turn) -> String {
    format!(
        "{} read{}, and {} kept from before",
        units::count(turn.read as u64),
        speed(turn.read, turn.read_time),
        units::count(turn.reused as u64)
    )
}

fn speed(n: usize, time: std::time::Duration) -> String {
    if n == 0 { String::new() } else { format!(", {:.1} tokens/s", n as f64 / time.as_secs_f64().max(1e-9)) }
}

fn counted(n: usize, what: &str) -> String {
    format!("{} {what}{}", units::count(n as u64), if n == 1 { "" } else { "s" })
}

/// The beginning of a message, in a line.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    let line = text.trim().lines().next().unwrap_or_default();
    let cut: String = line.chars().take(LONGEST).collect();
    if cut.len() < text.trim().len() { format!("{cut}...") } else { cut }
}

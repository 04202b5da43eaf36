//! What all requests share.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use super::backend::{Answers, Backend, Model, State};
use super::body;
use super::error::ApiError;
use super::log::{Log, Record};
use super::metrics::Counters;
use super::options::Options;
use super::prompt_ends::PromptEnds;
use super::protocol::{Answer, ModelInfo, Task};
use super::schemas::Schemas;
use super::store::Store;

/// What all requests share.
pub struct App {
    /// The models.
    pub backend: Arc<dyn Backend>,
    /// The settings.
    pub options: Options,
    /// The log.
    pub log: Log,
    /// What the server counts.
    pub counters: Counters,
    /// Answers that `/v1/responses` can go on from.
    pub store: Mutex<Store>,
    /// Schemas of tools and answers.
    pub schemas: Schemas,
    /// Memory for bodies of requests.
    pub room: body::Room,
    /// How prompts of templates end.
    pub prompt_ends: PromptEnds,
    /// `true` once answers have to end.
    pub ending: watch::Receiver<bool>,
    end: watch::Sender<bool>,
    random: RandomState,
    n_ids: AtomicU64,
}

/// A model that a request goes to.
pub struct Chosen {
    /// Its name.
    pub name: String,
    /// What it is.
    pub info: Arc<ModelInfo>,
}

impl App {
    /// Returns it for these models.
    pub fn new(backend: Arc<dyn Backend>, options: Options, log: Log) -> Arc<Self> {
        let (end, ending) = watch::channel(false);
        let store = Mutex::new(Store::new(options.max_stored_responses, options.max_stored_bytes));
        let room = body::Room::new(options.max_bodies_bytes);
        Arc::new(Self {
            backend,
            options,
            log,
            counters: Counters::default(),
            store,
            schemas: Schemas::default(),
            room,
            prompt_ends: PromptEnds::default(),
            ending,
            end,
            random: RandomState::new(),
            n_ids: AtomicU64::new(0),
        })
    }

    /// Reads a request's body of JSON.
    ///
    /// # Errors
    /// If it does not say that it is JSON, is too large, comes too slowly, is not JSON, or there is no room for it.
    pub async fn read_body(&self, request: Request) -> Result<Value, ApiError> {
        body::read(&self.options, &self.room, request).await
    }

    /// Reads a request of this type. What is not in the type is lost: see [`App::read_body`].
    ///
    /// # Errors
    /// If its body is none, or not of the type.
    pub async fn read<T: DeserializeOwned>(&self, request: Request) -> Result<T, ApiError> {
        body::typed(&self.read_body(request).await?)
    }

    /// Ends all answers.
    pub fn end_answers(&self) {
        self.end.send_replace(true);
    }

    /// The stored answers.
    pub fn stored(&self) -> std::sync::MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a new name that nobody can guess, such as `resp_3f...`.
    pub fn new_id(&self, prefix: &str) -> String {
        let n = self.n_ids.fetch_add(1, Ordering::Relaxed);
        // A keyed hash, whose keys only this process knows.
        format!("{prefix}{:016x}{:016x}", self.random.hash_one((n, 0)), self.random.hash_one((n, 1)))
    }

    /// Finds the model that a request names.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn find(&self, name: Option<&str>) -> Result<Model, ApiError> {
        let models = self.backend.models();
        let name = name.filter(|name| !name.is_empty());
        if name.is_none() && self.options.needs_model_name {
            return Err(ApiError::field("model", "is missing; /v1/models lists what there is"));
        }
        let is_called =
            |model: &Model, name: &str| model.name == name || model.aliases.iter().any(|alias| alias == name);
        let found = match name {
            None => models.first(),
            Some(name) => models
                .iter()
                .find(|model| is_called(model, name))
                .or(models.first().filter(|_| self.options.any_model_name && models.len() == 1)),
        };
        found.cloned().ok_or_else(|| {
            let shown: String = name.unwrap_or_default().chars().take(100).collect();
            let names: Vec<&str> = models.iter().take(20).map(|model| model.name.as_str()).collect();
            let there = if names.is_empty() {
                "there are none".to_string()
            } else {
                format!("there are: {}", names.join(", "))
            };
            ApiError::not_found(format!("there is no model '{shown}'; {there}")).code("model_not_found").param("model")
        })
    }

    /// Finds the model that a request names, loaded.
    ///
    /// # Errors
    /// If there is none of that name, or it cannot answer.
    pub async fn choose(&self, name: Option<&str>, record: &Record) -> Result<Chosen, ApiError> {
        let model = self.find(name)?;
        record.set("model", model.name.as_str());
        match self.backend.info(&model.name).await {
            Ok(info) => Ok(Chosen { name: model.name, info }),
            Err(failure) => Err(self.with_progress(failure.into(), &model.name)),
        }
    }

    /// Adds how far the model is loaded.
    fn with_progress(&self, error: ApiError, model: &str) -> ApiError {
        let state = self.backend.models().into_iter().find(|known| known.name == model).map(|known| known.state);
        match state {
            Some(State::Loading { progress }) => error.fact("state", "loading").fact("progress", progress),
            Some(state) => error.fact("state", state.name()),
            None => error,
        }
    }

    /// Gives a model something to do.
    ///
    /// # Errors
    /// If the model does not take it.
    pub async fn submit(&self, model: &str, task: Task) -> Result<Answers, ApiError> {
        self.backend.submit(model, task).await.map_err(|failure| self.with_progress(failure.into(), model))
    }

    /// Gives a model something to do that has one answer.
    ///
    /// # Errors
    /// If it fails, or the server ends.
    pub async fn ask(&self, model: &str, task: Task) -> Result<Answer, ApiError> {
        let mut answers = self.submit(model, task).await?;
        let mut ending = self.ending.clone();
        tokio::select! {
            answer = answers.next() => match answer {
                Some(Answer::Failed(failure)) => Err(failure.into()),
                Some(answer) => Ok(answer),
                None => Err(unexpected()),
            },
            _ = ending.wait_for(|ending| *ending) => Err(ended()),
        }
    }
}

/// The server ends before the answer does.
pub fn ended() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down").code("shutting_down")
}

/// The engine does not keep to the protocol.
pub fn unexpected() -> ApiError {
    let message = "the process of the model gave an answer that does not belong to the question";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("engine_error")
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

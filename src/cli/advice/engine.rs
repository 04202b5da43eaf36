//! What to type when something goes wrong with generation, drafts and prompt caches.

use std::error::Error;

use crate::engine::{self, CacheError, CacheSetting, DraftError, DraftSetting};
use crate::remote::{self, Address};

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<engine::Error>() {
        return match error {
            // These say what their own error says, and hide it from the chain of causes.
            engine::Error::Llama(error) => super::of(error),
            engine::Error::Memory(error) => super::of(&**error),
            engine::Error::Draft(error) => super::of(error),
            engine::Error::Tokenize(error) => super::of(error),
            engine::Error::Sample(error) => super::of(error),
            engine::Error::Constrain(error) => super::of(error),
            engine::Error::Remote(error) => super::of(&**error),
            engine::Error::DraftSetting { setting, .. } => Some(format!("set it with {}", flag(*setting))),
            engine::Error::Split { .. } => Some("--split has a number for each --worker and each GPU".to_string()),
            engine::Error::LoadCancelled | engine::Error::Cancelled => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<remote::Error>() {
        return match error {
            remote::Error::Unreachable { address, .. } if is_here(address) => {
                Some("start it with 'nibble worker'".into())
            }
            remote::Error::Unreachable { .. } => {
                Some("start it there with 'nibble worker --listen' and that machine's address".into())
            }
            remote::Error::Public { address: Address { host, port } } => Some(format!(
                "use a tunnel: 'ssh -L {port}:localhost:{port} {host}' here, and '--worker localhost:{port}'"
            )),
            remote::Error::Llama(error) => super::of(error),
            remote::Error::Stranger { .. } | remote::Error::Refused { .. } => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<DraftError>() {
        let advice = match error {
            DraftError::Vocabulary { .. } | DraftError::CannotTruncate(_) => {
                "pass another model to --draft, or '--draft ngram'"
            }
            DraftError::TargetCannotTruncate => "leave out --draft",
        };
        return Some(advice.to_string());
    }
    match cause.downcast_ref::<CacheError>()? {
        CacheError::Foreign { setting } => {
            let flag = match setting {
                CacheSetting::KvType => "--kv-type",
                CacheSetting::FlashAttention => "--flash-attn",
                CacheSetting::Positions => "--rope-scaling and --rope-scale",
                CacheSetting::ContextSize => "--ctx",
                CacheSetting::Model | CacheSetting::Lora | CacheSetting::LlamaCpp => return None,
            };
            Some(format!("pass the same {flag} each time to use it again"))
        }
        _ => None,
    }
}

fn is_here(address: &Address) -> bool {
    address.resolve().is_ok_and(|known| known.iter().all(|at| at.ip().is_loopback()))
}

fn flag(setting: DraftSetting) -> &'static str {
    match setting {
        DraftSetting::Max => "--draft-max",
        DraftSetting::Min => "--draft-min",
        DraftSetting::MinProbability => "--draft-p-min",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::{self, Setting};
    use crate::placement::{Estimate, NoRoom};

    #[test]
    fn errors_get_the_flags_that_help() {
        let told = |error: engine::Error| crate::cli::advice::advice(&anyhow::Error::from(error));
        let setting = |setting| llama::Error::Setting { setting, value: 0, least: 1, most: 9 };
        assert_eq!(told(setting(Setting::ContextSize).into()).as_deref(), Some("set it with --ctx"));
        assert_eq!(told(setting(Setting::BatchSize).into()), None);
        assert_eq!(told(engine::Error::Cancelled), None);
        let needs = Estimate { weights: 1, kv_cache: 1, compute: 1 };
        let no_room = |fits| Box::new(NoRoom { needs, has: 1, beside: 0, n_ctx: 9000, fits });
        let advice = told(no_room(Some(2048)).into()).unwrap();
        assert!(advice.starts_with("try --ctx 2048, --kv-type q8_0") && advice.contains("--allow-swap"), "{advice}");
        assert!(told(no_room(None).into()).unwrap().contains("nibble quants"));
        let context = |reason: &str| llama::Error::Context { n_ctx: 9000, reason: reason.to_string() };
        let heads = "K cache type q8_0 with block size 32 does not divide n_embd_head_k=8";
        assert_eq!(told(context(heads).into()).as_deref(), Some("pass --kv-type f16"));
        assert!(told(context("no memory").into()).unwrap().starts_with("try a smaller --ctx"));
        assert_eq!(told(DraftError::TargetCannotTruncate.into()).as_deref(), Some("leave out --draft"));
    }
}

//! Checkpoints in, models out: by names and shapes alone.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;

use super::llama::Llama;
use super::mistral::Mistral;
use super::yi::Yi;
use super::*;

type Shapes = Vec<(String, Vec<u64>)>;

/// Name, sizes and order of the rows of a tensor in the file.
type Written = (String, Vec<u64>, Option<RowOrder>);

/// Describes a checkpoint whose tensors have these shapes, slowest dimension first.
fn describe_shapes(config: &Map<String, Value>, shapes: &Shapes) -> Result<Model, Error> {
    describe_with(config, shapes, true)
}

/// As [`describe_shapes`], where two tensors of one shape hold the same numbers or do not.
fn describe_with(config: &Map<String, Value>, shapes: &Shapes, same: bool) -> Result<Model, Error> {
    let shapes = shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    ARCHITECTURES.describe(config, shapes, |_, _| Ok(same))
}

/// What a `YiForCausalLM`, `LlamaForCausalLM` or `MistralForCausalLM` checkpoint with these numbers holds.
fn checkpoint(hyper: &Hyperparameters, name: &str) -> (Map<String, Value>, Shapes) {
    let config = hyper.to_config(name);
    let shapes = ARCHITECTURES.by_name(name).unwrap().blueprint(&config).unwrap().checkpoint_shapes();
    (config, shapes)
}

/// The numbers that an architecture reads from a configuration.
fn read(config: &Map<String, Value>) -> Hyperparameters {
    match ARCHITECTURES.lookup(config).unwrap().names()[0] {
        "YiForCausalLM" => Yi::hyperparameters(config),
        "MistralForCausalLM" => Mistral::hyperparameters(config),
        _ => Llama::hyperparameters(config),
    }
    .unwrap()
}

/// Small, with grouped-query attention, and no two sizes the same.
fn small() -> Hyperparameters {
    Hyperparameters {
        n_layers: 3,
        hidden: 48,
        ffn: 112,
        n_heads: 6,
        n_kv_heads: 2,
        head_dim: 8,
        vocab: 100,
        ..Hyperparameters::yi_6b()
    }
}

fn with(mut config: Map<String, Value>, key: &str, value: Value) -> Map<String, Value> {
    config.insert(key.to_string(), value);
    config
}

fn without(mut config: Map<String, Value>, key: &str) -> Map<String, Value> {
    config.remove(key);
    config
}

/// The message of the error that a small Llama gives with this key set to this value.
fn refusal(key: &str, value: Value) -> String {
    let (config, shapes) = checkpoint(&small(), "LlamaForCausalLM");
    describe_shapes(&with(config, key, value), &shapes).unwrap_err().to_string()
}

/// The configuration and the shapes of the bundled model, read from its files.
fn yi_nano() -> (Map<String, Value>, Shapes) {
    let checkpoint = crate::checkpoint::testing::yi_nano();
    let shapes = checkpoint.tensors().iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    (checkpoint.config().map().clone(), shapes)
}

/// Metadata and tensors, without the names that the tensors had in the checkpoint.
fn as_written(model: &Model) -> (&Metadata, Vec<Written>) {
    let order = |tensor: &OutputTensor| tensor.inputs().first().map(|input| input.order);
    let tensors = model.tensors.iter().map(|t| (t.name.clone(), t.dims.clone(), order(t)));
    (&model.metadata, tensors.collect())
}

#[test]
fn yi_nano_maps_fully() {
    let (config, shapes) = yi_nano();
    let model = describe_shapes(&config, &shapes).unwrap();
    assert_eq!(model.tensors.len(), shapes.len());
    assert_eq!(model.warnings, Vec::<String>::new());
    let elements: u64 = shapes.iter().map(|(_, shape)| shape.iter().product::<u64>()).sum();
    assert_eq!(model.n_parameters(), elements);

    let names: Vec<&str> = model.tensors.iter().map(|t| t.name.as_str()).collect();
    let (first, last) = (&names[..10], &names[names.len() - 3..]);
    assert_eq!(
        first,
        [
            "token_embd.weight",
            "blk.0.attn_norm.weight",
            "blk.0.attn_q.weight",
            "blk.0.attn_k.weight",
            "blk.0.attn_v.weight",
            "blk.0.attn_output.weight",
            "blk.0.ffn_norm.weight",
            "blk.0.ffn_gate.weight",
            "blk.0.ffn_up.weight",
            "blk.0.ffn_down.weight",
        ]
    );
    assert_eq!(last, ["blk.3.ffn_down.weight", "output_norm.weight", "output.weight"]);

    let tensor = |name: &str| model.tensors.iter().find(|t| t.name == name).unwrap();
    let from =
        |name: &str, stored: &[u64], order| Origin::Checkpoint(vec![Input::new(name, stored.to_vec()).ordered(order)]);
    let k = tensor("blk.2.attn_k.weight");
    assert_eq!((k.role(), k.layer(), k.dims.as_slice()), (Role::AttentionK, Some(2), [256, 128].as_slice()));
    let halves = |n_heads| RowOrder::InterleaveHalves { n_heads };
    assert_eq!(k.origin, from("model.layers.2.self_attn.k_proj.weight", &[256, 128], halves(2)));
    let q = tensor("blk.0.attn_q.weight");
    assert_eq!(q.origin, from("model.layers.0.self_attn.q_proj.weight", &[256, 256], halves(4)));
    let down = tensor("blk.3.ffn_down.weight");
    assert_eq!((down.role(), down.dims.as_slice()), (Role::FfnDown, [768, 256].as_slice()));
    assert_eq!(down.origin, from("model.layers.3.mlp.down_proj.weight", &[768, 256], RowOrder::AsStored));
}

#[test]
fn metadata_are_those_of_llama_cpps_converter() {
    let (config, shapes) = yi_nano();
    let model = describe_shapes(&config, &shapes).unwrap();
    let expected: Vec<(&str, crate::gguf::Value)> = vec![
        ("general.architecture", "llama".into()),
        ("llama.block_count", 4u32.into()),
        ("llama.context_length", 512u32.into()),
        ("llama.embedding_length", 256u32.into()),
        ("llama.feed_forward_length", 768u32.into()),
        ("llama.attention.head_count", 4u32.into()),
        ("llama.attention.head_count_kv", 2u32.into()),
        ("llama.rope.freq_base", 5e6f32.into()),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5f32.into()),
        ("llama.attention.key_length", 64u32.into()),
        ("llama.attention.value_length", 64u32.into()),
        ("llama.vocab_size", 6400u32.into()),
        ("llama.rope.dimension_count", 64u32.into()),
    ];
    let found: Vec<_> = model.metadata.iter().map(|(key, value)| (key, value.clone())).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_first_releases_of_yi_give_the_same_file() {
    let (config, shapes) = yi_nano();
    let llama = describe_shapes(&config, &shapes).unwrap();
    let as_first_released = |(name, shape): &(String, Vec<u64>)| {
        let name = name.replace(".input_layernorm.", ".ln1.").replace(".post_attention_layernorm.", ".ln2.");
        (name, shape.clone())
    };
    // Other names, another order.
    let yi_shapes: Shapes = shapes.iter().rev().map(as_first_released).collect();
    let yi_config = with(config, "architectures", json!(["YiForCausalLM"]));
    let yi = describe_shapes(&yi_config, &yi_shapes).unwrap();
    assert_eq!(as_written(&yi), as_written(&llama));
    assert_ne!(yi.tensors, llama.tensors);
    let ln2 = Origin::Checkpoint(vec![Input::new("model.layers.1.ln2.weight", [256])]);
    assert!(yi.tensors.iter().any(|t| t.name == "blk.1.ffn_norm.weight" && t.origin == ln2));
    // Renamed tensors under the old name of the architecture.
    assert_eq!(describe_shapes(&yi_config, &shapes).unwrap(), llama);
    // Yi's names are not Llama's.
    let llama_config = with(yi_config, "architectures", json!(["LlamaForCausalLM"]));
    let error = describe_shapes(&llama_config, &yi_shapes).unwrap_err().to_string();
    assert!(error.contains("lacks model.layers.0.input_layernorm.weight"), "{error}");
    assert!(error.contains("it has instead model.layers.0.ln1.weight"), "{error}");
}

#[test]
fn yi_takes_the_defaults_of_its_own_configuration_class() {
    let config = without(Hyperparameters::yi_6b().to_config("YiForCausalLM"), "rope_theta");
    let config = without(without(config, "num_key_value_heads"), "head_dim");
    let yi = Yi::hyperparameters(&config).unwrap();
    assert_eq!(yi, Hyperparameters::yi_6b());
    let llama = Llama::hyperparameters(&config).unwrap();
    assert_eq!((llama.rope_theta, llama.n_kv_heads), (10000.0, 32));
    let null = with(config, "num_key_value_heads", Value::Null);
    assert_eq!(Yi::hyperparameters(&null).unwrap().n_kv_heads, 32);
}

#[test]
fn order_does_not_depend_on_the_checkpoints() {
    let (config, mut shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    shapes.sort();
    assert_eq!(describe_shapes(&config, &shapes).unwrap(), model);
    shapes.reverse();
    assert_eq!(describe_shapes(&config, &shapes).unwrap(), model);
    let names: BTreeSet<_> = model.tensors.iter().map(|t| &t.name).collect();
    assert_eq!(names.len(), model.tensors.len());
    assert!(model.tensors.iter().all(|t| t.role() != Role::Other));
}

#[test]
fn keys_and_queries_are_permuted_by_their_own_heads() {
    let biased = Hyperparameters { attention_bias: true, mlp_bias: true, ..small() };
    let (config, shapes) = checkpoint(&biased, "LlamaForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    assert_eq!(model.tensors.len(), 3 + 3 * (9 + 7));
    for tensor in &model.tensors {
        let [input] = tensor.inputs() else { panic!("{}", tensor.name) };
        let expected = match tensor.name.split('.').nth(2) {
            Some("attn_q") => RowOrder::InterleaveHalves { n_heads: 6 },
            Some("attn_k") => RowOrder::InterleaveHalves { n_heads: 2 },
            _ => RowOrder::AsStored,
        };
        assert_eq!(input.order, expected, "{}", tensor.name);
    }
    let q_bias = model.tensors.iter().find(|t| t.name == "blk.1.attn_q.bias").unwrap();
    assert_eq!((q_bias.role(), q_bias.dims.as_slice()), (Role::Bias, [48].as_slice()));
    let after = model.tensors.iter().position(|t| t.name == "blk.1.attn_q.weight").unwrap() + 1;
    assert_eq!(model.tensors[after].name, "blk.1.attn_q.bias");
}

#[test]
fn heads_need_not_divide_the_hidden_size() {
    // Mistral Nemo.
    let nemo = Hyperparameters {
        n_layers: 2,
        hidden: 5120,
        ffn: 14336,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        vocab: 131072,
        context: 131072,
        rope_theta: 1e6,
        ..Hyperparameters::yi_6b()
    };
    let (config, shapes) = checkpoint(&nemo, "MistralForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    assert_eq!((read(&config), model.topology), (nemo.clone(), nemo.topology()));
    let dims = |name: &str| model.tensors.iter().find(|t| t.name == name).unwrap().dims.clone();
    assert_eq!(dims("blk.0.attn_q.weight"), [5120, 4096]);
    assert_eq!(dims("blk.0.attn_k.weight"), [5120, 1024]);
    assert_eq!(dims("blk.0.attn_output.weight"), [4096, 5120]);
    for key in ["llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count"] {
        assert_eq!(model.metadata.u64(key), Some(128), "{key}");
    }
    let error = describe_shapes(&without(config, "head_dim"), &shapes).unwrap_err().to_string();
    assert_eq!(
        error,
        "tensor 'model.layers.0.self_attn.q_proj.weight' has shape [4096, 5120], slowest dimension first; config.json \
         makes it [5120, 5120]. One of the two is wrong: compare them with the model's page, or download the checkpoint \
         again"
    );
}

#[test]
fn tied_models_have_no_output() {
    let tied = Hyperparameters { tied: true, ..small() };
    let (config, shapes) = checkpoint(&tied, "LlamaForCausalLM");
    assert!(shapes.iter().all(|(name, _)| name != "lm_head.weight"));
    let model = describe_shapes(&config, &shapes).unwrap();
    assert!(model.tensors.iter().all(|t| t.role() != Role::Output));
    // Saved all the same, with the same numbers.
    let mut both = shapes.clone();
    both.push(("lm_head.weight".into(), vec![100, 48]));
    assert_eq!(describe_with(&config, &both, true).unwrap(), model);
    // Not said.
    for silent in
        [without(config.clone(), "tie_word_embeddings"), with(config.clone(), "tie_word_embeddings", Value::Null)]
    {
        assert_eq!(describe_shapes(&silent, &shapes).unwrap(), model);
        let untied = describe_shapes(&silent, &checkpoint(&small(), "LlamaForCausalLM").1).unwrap();
        assert_eq!(untied.tensors.last().unwrap().name, "output.weight");
    }
    // Said not to be.
    let error = describe_shapes(&with(config, "tie_word_embeddings", json!(false)), &shapes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the checkpoint lacks lm_head.weight; if the model's embedding is its output matrix too, config.json has to say \
         'tie_word_embeddings': true"
    );
}

/// The rule of `PreTrainedModel.tie_weights` in transformers 5.24: both there and equal, one; both there and different, two
/// and a warning; one there, that one.
#[test]
fn a_head_of_its_own_is_kept_whatever_the_configuration_says() {
    let tied = Hyperparameters { tied: true, ..small() };
    let (config, shapes) = checkpoint(&tied, "LlamaForCausalLM");
    let mut both = shapes.clone();
    both.push(("lm_head.weight".into(), vec![100, 48]));
    let own = describe_with(&config, &both, false).unwrap();
    let untied = describe_shapes(&checkpoint(&small(), "LlamaForCausalLM").0, &both).unwrap();
    assert_eq!(as_written(&own), as_written(&untied));
    let [warning] = own.warnings.as_slice() else { panic!("{:?}", own.warnings) };
    assert!(warning.contains("'lm_head.weight' holds other numbers than 'model.embed_tokens.weight'"), "{warning}");
    // Another shape holds other numbers, and does not fit the configuration either.
    both.last_mut().unwrap().1 = vec![7];
    let error = describe_with(&config, &both, true).unwrap_err().to_string();
    assert!(error.starts_with("tensor 'lm_head.weight' has shape [7]"), "{error}");
    // Where nothing says that they are tied, they are not even compared.
    both.last_mut().unwrap().1 = vec![100, 48];
    for config in [with(config.clone(), "tie_word_embeddings", json!(false)), without(config, "tie_word_embeddings")] {
        let model = describe_with(&config, &both, true).unwrap();
        assert_eq!(model.tensors.last().unwrap().name, "output.weight");
        assert_eq!(model.warnings, Vec::<String>::new());
    }
}

#[test]
fn a_head_alone_is_the_embedding_too() {
    let tied = Hyperparameters { tied: true, ..small() };
    let (config, shapes) = checkpoint(&tied, "LlamaForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    let mut shapes = shapes;
    shapes.iter_mut().find(|(name, _)| name == "model.embed_tokens.weight").unwrap().0 = "lm_head.weight".into();
    for config in [config.clone(), without(config.clone(), "tie_word_embeddings")] {
        let found = describe_shapes(&config, &shapes).unwrap();
        assert_eq!(as_written(&found), as_written(&model));
        assert_eq!(found.tensors[0].inputs()[0].tensors[0].name(), "lm_head.weight");
        assert_eq!(found.warnings, ["the embedding is missing, and 'lm_head.weight' stands for it too"]);
    }
    let error = describe_shapes(&with(config, "tie_word_embeddings", json!(false)), &shapes).unwrap_err();
    assert_eq!(error.to_string(), "the checkpoint lacks model.embed_tokens.weight");
}

#[test]
fn a_wrapper_around_all_names_is_taken_away() {
    let (config, shapes) = checkpoint(&small(), "YiForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    type Rename = fn(&str) -> String;
    let all: [(Rename, &str); 6] = [
        (|name| format!("_orig_mod.{name}"), "'_orig_mod.model.' (torch.compile)"),
        (|name| format!("module.{name}"), "'module.model.' (DistributedDataParallel)"),
        (|name| format!("base_model.model.{name}"), "'base_model.model.model.' (PEFT)"),
        (|name| name.replacen("model.", "model.language_model.", 1), "'model.language_model.' (the text part"),
        (|name| format!("language_model.{name}"), "'language_model.model.' (the text part"),
        (|name| name.replacen("model.", "", 1), "lack 'model.' at their beginning"),
    ];
    for (rename, words) in all {
        let wrapped: Shapes = shapes.iter().map(|(name, shape)| (rename(name), shape.clone())).collect();
        let found = describe_shapes(&config, &wrapped).unwrap();
        assert_eq!(as_written(&found), as_written(&model));
        let names: BTreeSet<_> = found.tensors.iter().map(|t| t.inputs()[0].tensors[0].name().to_string()).collect();
        assert_eq!(names, wrapped.into_iter().map(|(name, _)| name).collect(), "the checkpoint's own names");
        let [warning] = found.warnings.as_slice() else { panic!("{:?}", found.warnings) };
        assert!(warning.contains(words), "{warning}");
    }
    // A tensor that is there with the wrapper and without it.
    let mut twice: Shapes = shapes.iter().map(|(name, shape)| (format!("module.{name}"), shape.clone())).collect();
    twice.push(("lm_head.weight".into(), vec![100, 48]));
    let error = describe_shapes(&config, &twice).unwrap_err().to_string();
    assert!(
        error.contains("'module.lm_head.weight' and 'lm_head.weight'") || error.contains("'lm_head.weight' and"),
        "{error}"
    );
}

#[test]
fn a_model_saved_without_its_head_is_read() {
    for (name, bare) in
        [("LlamaForCausalLM", "LlamaModel"), ("MistralForCausalLM", "MistralModel"), ("YiForCausalLM", "YiModel")]
    {
        let (config, shapes) = checkpoint(&small(), name);
        let bare = with(config, "architectures", json!([bare]));
        let bare_shapes: Shapes = shapes
            .iter()
            .filter(|(name, _)| name != "lm_head.weight")
            .map(|(name, shape)| (name.replacen("model.", "", 1), shape.clone()))
            .collect();
        let model = describe_shapes(&bare, &bare_shapes).unwrap();
        assert!(model.tensors.iter().all(|tensor| tensor.role() != Role::Output));
        let about_head = model.warnings.iter().any(|w| w.contains("saved without its output matrix"));
        assert!(about_head, "{:?}", model.warnings);
        // The name of the class does not take a matrix away that is there.
        let whole = describe_shapes(&bare, &shapes).unwrap();
        assert_eq!(whole.tensors.last().unwrap().name, "output.weight");
    }
}

#[test]
fn placeholders_of_zero_3_are_named() {
    let (config, mut shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let n = shapes.iter_mut().filter(|(name, _)| name.contains("_proj")).map(|(_, shape)| *shape = vec![0]).count();
    let error = describe_shapes(&config, &shapes).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{n} of the tensors are empty: model.layers.0.mlp.down_proj.weight, ")),
        "{error}"
    );
    assert!(error.contains("zero_to_fp32.py"), "{error}");
}

#[test]
fn buffers_of_old_checkpoints_are_left_out() {
    let (config, mut shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"] {
        shapes.push((name.into(), vec![4]));
    }
    shapes.push(("model.layers.1.attention.masked_bias".into(), vec![]));
    for name in ["v_head.summary.weight", "v_head.summary.bias", "score.weight", "model.layers.0.self_attn.k_scale"] {
        shapes.push((name.into(), vec![1]));
    }
    let found = describe_shapes(&config, &shapes).unwrap();
    assert_eq!(as_written(&found), as_written(&model));
    let wanted = "7 tensors that no text is made with are left out: model.layers.0.self_attn.k_scale, \
                  model.layers.0.self_attn.rotary_emb.inv_freq, model.layers.1.attention.masked_bias, \
                  model.rotary_emb.inv_freq, score.weight and 2 more";
    assert_eq!(found.warnings, [wanted]);
    // TRL's, under the name of its wrapper.
    let (config, shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let mut wrapped: Shapes = shapes.into_iter().map(|(n, shape)| (format!("pretrained_model.{n}"), shape)).collect();
    wrapped.push(("pretrained_model.v_head.summary.weight".into(), vec![1, 48]));
    assert_eq!(describe_shapes(&config, &wrapped).unwrap().warnings.len(), 2);
}

#[test]
fn names_missing_tensors() {
    let (config, mut shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let removed = "model.layers.2.mlp.up_proj.weight";
    shapes.retain(|(name, _)| name != removed);
    let error = describe_shapes(&config, &shapes).unwrap_err().to_string();
    assert_eq!(error, format!("the checkpoint lacks {removed}"));
    shapes.retain(|(name, _)| !name.starts_with("model.layers.1."));
    let error = describe_shapes(&config, &shapes).unwrap_err().to_string();
    assert!(error.starts_with("the checkpoint lacks model.layers.1.input_layernorm.weight, "), "{error}");
    assert!(error.ends_with(" and 5 more"), "{error}");
    let error = describe_shapes(&config, &Vec::new()).unwrap_err().to_string();
    assert!(error.ends_with(" and 25 more"), "{error}");
    let (config, mut shapes) = checkpoint(&small(), "LlamaForCausalLM");
    shapes.retain(|(name, _)| !name.starts_with("model.layers.2."));
    let error = describe_shapes(&config, &shapes).unwrap_err().to_string();
    assert!(error.contains("has fewer layers than config.json gives under 'num_hidden_layers'"), "{error}");
}

#[test]
fn a_vocabulary_of_another_size_is_told_from_another_model() {
    let (config, shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let error = describe_shapes(&with(config, "vocab_size", json!(96)), &shapes).unwrap_err().to_string();
    assert_eq!(
        error,
        "tensor 'model.embed_tokens.weight' has a row for each of 100 tokens; config.json says 96 under 'vocab_size'. If \
         tokens were added to the model, that number has to be 100"
    );
}

#[test]
fn names_unexpected_tensors_and_what_they_tell() {
    let (config, shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let error = |extra: &str| {
        let mut shapes = shapes.clone();
        shapes.push((extra.to_string(), vec![1]));
        describe_shapes(&config, &shapes).unwrap_err().to_string()
    };
    assert_eq!(
        error("scorer.weight"),
        "the checkpoint has tensors that a LlamaForCausalLM model does not: scorer.weight"
    );
    let layer = "model.layers.0.";
    // The model is whole: nothing says whether the adapter is in its weights.
    let beside = error(&format!("base_model.{layer}mlp.up_proj.lora_A.weight"));
    assert!(beside.contains("saved with the model and is not merged into its weights"), "{beside}");
    let adapter: Shapes = vec![(format!("base_model.model.{layer}mlp.up_proj.lora_A.weight"), vec![8, 48])];
    assert!(describe_shapes(&config, &adapter).unwrap_err().to_string().contains("this is an adapter: merge it"));
    assert!(error(&format!("{layer}block_sparse_moe.experts.0.w1.weight")).contains("a mixture of experts"));
    assert!(error(&format!("{layer}self_attn.q_proj.bias")).contains("has to say 'attention_bias'"));
    assert!(error("model.layers.3.mlp.up_proj.weight").ends_with("fewer layers under 'num_hidden_layers'"));
}

#[test]
fn refuses_a_tensor_that_is_there_twice() {
    let (config, mut shapes) = checkpoint(&small(), "YiForCausalLM");
    shapes.push(("model.layers.0.input_layernorm.weight".into(), vec![48]));
    assert_eq!(
        describe_shapes(&config, &shapes).unwrap_err().to_string(),
        "the checkpoint has two tensors for blk.0.attn_norm.weight: 'model.layers.0.ln1.weight' and \
         'model.layers.0.input_layernorm.weight'; remove one"
    );
    let (config, mut shapes) = checkpoint(&small(), "LlamaForCausalLM");
    shapes.push(shapes[5].clone());
    let error = describe_shapes(&config, &shapes).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("the checkpoint lists tensor '{}' twice; remove one of the files that hold it", shapes[5].0)
    );
}

#[test]
fn names_the_architecture_it_found_and_those_it_knows() {
    let known = ARCHITECTURES.known();
    assert!(known.starts_with("YiForCausalLM, LlamaForCausalLM"), "{known}");
    assert_eq!(
        refusal("architectures", json!(["GPT2LMHeadModel"])),
        format!("config.json: architecture 'GPT2LMHeadModel' is not one that nibble knows; it converts {known}")
    );
    assert_eq!(
        refusal("architectures", json!(["MixtralForCausalLM"])),
        format!(
            "config.json: MixtralForCausalLM is a mixture of experts, which nibble does not convert; it converts {known}"
        )
    );
    assert_eq!(
        refusal("architectures", json!(["LlamaForSequenceClassification"])),
        format!(
            "config.json: LlamaForSequenceClassification classifies texts and does not write any; nibble converts {known}"
        )
    );
    assert!(
        refusal("num_local_experts", json!(8)).contains("a model with 'num_local_experts' is a mixture of experts")
    );
    let wanted = "a list with the name of the architecture";
    let (config, shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let config = with(config, "architectures", Value::Null);
    let untold = |config| describe_shapes(&config, &shapes).unwrap_err().to_string();
    let missing = format!("config.json has no 'architectures'; wanted {wanted}");
    assert_eq!(untold(without(config.clone(), "model_type")), missing);
    assert_eq!(
        untold(with(config.clone(), "model_type", json!("bloom"))),
        format!("config.json: architecture 'bloom' is not one that nibble knows; it converts {known}")
    );
    assert!(untold(with(config, "model_type", json!("mixtral"))).contains("mixtral is a mixture of experts"));
    for found in [json!([]), json!("LlamaForCausalLM"), json!([1])] {
        let expected = format!("config.json: 'architectures' is {found}; wanted {wanted}");
        assert_eq!(refusal("architectures", found), expected);
    }
}

/// As `AutoModelForCausalLM` of transformers chooses a class by `model_type` where `architectures` is absent.
#[test]
fn a_configuration_without_architectures_is_told_by_its_model_type() {
    for (name, kind) in [("YiForCausalLM", "Yi"), ("LlamaForCausalLM", "llama"), ("MistralForCausalLM", "mistral")] {
        let (config, shapes) = checkpoint(&small(), name);
        let wanted = describe_shapes(&config, &shapes).unwrap();
        assert_eq!(config["model_type"], kind);
        for config in [without(config.clone(), "architectures"), with(config, "architectures", Value::Null)] {
            let found = describe_shapes(&config, &shapes).unwrap();
            assert_eq!((&found.metadata, &found.tensors), (&wanted.metadata, &wanted.tensors));
            let said = format!(
                "config.json has no 'architectures'; the model is read as {name}, because its 'model_type' is '{kind}'"
            );
            assert!(found.warnings.contains(&said), "{:?}", found.warnings);
            assert!(!wanted.warnings.contains(&said));
        }
    }
}

#[test]
fn weights_that_are_quantized_are_told_by_their_tensors() {
    let (config, shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let up = "model.layers.0.mlp.up_proj.";
    for (codes, more, by) in [
        (
            ("weight", vec![2688, 1]),
            vec!["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"],
            "bitsandbytes, to 4 bits",
        ),
        (("weight", vec![112, 48]), vec!["SCB", "weight_format"], "bitsandbytes, to 8 bits"),
        (("weight", vec![112, 6]), vec!["scales", "biases"], "MLX"),
        (("qweight", vec![48, 14]), vec!["qzeros", "scales"], "AWQ or GPTQ"),
        (("qweight", vec![6, 112]), vec!["qzeros", "scales", "g_idx"], "GPTQ"),
        (("weight_packed", vec![112, 6]), vec!["weight_scale", "weight_shape"], "compressed-tensors"),
        (("weight", vec![112, 48]), vec!["weight_scale_inv"], "FP8 with scales"),
        (("weight", vec![112, 48]), vec!["weight_scale", "input_scale"], "with scales of their own"),
        (("W_q", vec![112, 24]), vec!["meta"], "HQQ"),
    ] {
        let mut shapes = shapes.clone();
        shapes.retain(|(name, _)| *name != format!("{up}weight"));
        shapes.push((format!("{up}{}", codes.0), codes.1));
        shapes.extend(more.iter().map(|name| (format!("{up}{name}"), vec![1])));
        let error = describe_shapes(&config, &shapes).unwrap_err().to_string();
        assert!(error.starts_with(&format!("the weights are quantized already ({by}), as '{up}")), "{error}");
        assert!(error.ends_with("nibble converts from the 16-bit original"), "{error}");
        // The key names the method, and a wrapper around the names hides nothing.
        let config = with(config.clone(), "quantization_config", json!({"quant_method": "my-method"}));
        let wrapped: Shapes = shapes.into_iter().map(|(name, shape)| (format!("module.{name}"), shape)).collect();
        let error = describe_shapes(&config, &wrapped).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("the weights are quantized already (my-method), as 'module.{up}")),
            "{error}"
        );
    }
}

#[test]
fn a_key_about_quantization_alone_does_not_make_weights_quantized() {
    let (config, shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    for (key, value, method) in [
        ("quantization_config", json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "bitsandbytes"),
        ("compression_config", json!({}), "a method it does not name"),
        ("quantization", json!({"group_size": 64, "bits": 4}), "a method it does not name"),
    ] {
        let config = with(config.clone(), key, value);
        let found = describe_shapes(&config, &shapes).unwrap();
        assert_eq!(as_written(&found), as_written(&model));
        let wanted = format!("config.json has '{key}' ({method}), but no tensor is quantized; the key is passed over");
        assert_eq!(found.warnings, [wanted]);
        // What the weights are in may have names that nothing here knows.
        let odd: Shapes =
            shapes.iter().map(|(n, s)| (n.replace("up_proj.weight", "up_proj.codes"), s.clone())).collect();
        let error = describe_shapes(&config, &odd).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("config.json: '{key}' says that the weights are quantized already ({method})"))
        );
        assert!(error.contains("lacks model.layers.0.mlp.up_proj.weight"), "{error}");
    }
}

#[test]
fn refuses_numbers_that_are_missing_or_do_not_fit() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        let message = refusal(key, Value::Null);
        assert!(message.starts_with(&format!("config.json has no '{key}'; wanted a ")), "{message}");
        let message = refusal(key, json!(0));
        assert!(message.starts_with(&format!("config.json: '{key}' is 0; wanted a ")), "{message}");
        let message = refusal(key, json!("many"));
        assert!(message.starts_with(&format!("config.json: '{key}' is \"many\"; wanted a ")), "{message}");
    }
    let without_head_dim = without(small().to_config("LlamaForCausalLM"), "head_dim");
    let error = Llama::hyperparameters(&with(without_head_dim, "hidden_size", json!(50)));
    assert_eq!(
        error.unwrap_err().to_string(),
        "config.json: 'hidden_size' 50 is not a multiple of 'num_attention_heads' 6; a model whose heads do not divide \
         its hidden size needs 'head_dim'"
    );
    assert_eq!(
        refusal("num_key_value_heads", json!(4)),
        "config.json: 'num_attention_heads' 6 is not a multiple of 'num_key_value_heads' 4; each KV head has to serve as \
         many heads as the others"
    );
    for head_dim in [7, 65538, i32::MAX - 1] {
        assert_eq!(
            refusal("head_dim", json!(head_dim)),
            format!(
                "config.json: heads have {head_dim} channels; wanted an even number up to 65536, because they are rotated in \
                 pairs"
            )
        );
    }
    assert_eq!(
        refusal("num_hidden_layers", json!(513)),
        "config.json: 'num_hidden_layers' is 513; llama.cpp loads models of 1 to 512 layers"
    );
    assert_eq!(
        refusal("hidden_act", json!("gelu")),
        "config.json: 'hidden_act' is \"gelu\"; wanted 'silu', the only activation llama.cpp has for these models"
    );
    assert!(refusal("hidden_act", json!(["silu"])).contains("wanted a string"));
    assert!(refusal("partial_rotary_factor", json!(0.5)).contains("'partial_rotary_factor' is 0.5; wanted 1"));
    assert!(
        refusal("tie_word_embeddings", json!("no")).contains("'tie_word_embeddings' is \"no\"; wanted true or false")
    );
    assert!(refusal("rope_theta", json!(-1)).contains("'rope_theta' is -1; wanted a number above 1"));
    // Sizes at the limit must neither overflow nor fill memory.
    let message = refusal("vocab_size", json!(2147483647));
    assert!(message.contains("says 2147483647 under 'vocab_size'"), "{message}");
    let message = refusal("num_attention_heads", json!(2147483646));
    assert!(message.contains("makes it [17179869168, 48]"), "{message}");
}

/// What a small Llama makes of this under `rope_scaling`, or under `rope_parameters`.
fn rope(key: &str, value: Value) -> Result<Model, Error> {
    let (config, shapes) = checkpoint(&small(), "LlamaForCausalLM");
    let config = with(without(without(config, "rope_scaling"), "rope_theta"), "rope_theta", json!(20000));
    describe_shapes(&with(config, key, value), &shapes)
}

fn rope_keys(model: &Model) -> Vec<(&str, crate::gguf::Value)> {
    let keys = model.metadata.iter().filter(|(key, _)| key.starts_with("llama.rope."));
    keys.map(|(key, value)| (&key["llama.rope.".len()..], value.clone()))
        .filter(|(key, _)| *key != "dimension_count")
        .collect()
}

fn rope_factors(model: &Model) -> Option<&[f32]> {
    let tensor = model.tensors.iter().find(|t| t.role() == Role::RopeFactors)?;
    assert_eq!((tensor.name.as_str(), tensor.layer()), ("rope_freqs.weight", None));
    let Origin::Generated(factors) = &tensor.origin else { panic!("read from the checkpoint") };
    assert_eq!(tensor.dims, [factors.len() as u64]);
    Some(factors)
}

#[test]
fn reads_rotary_scaling_under_its_old_and_new_names() {
    let none = vec![("freq_base", 20000f32.into())];
    for (key, value) in [
        ("rope_scaling", Value::Null),
        ("rope_scaling", json!({"rope_type": "default"})),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 20000.0})),
        ("rope_parameters", json!({"rope_theta": 20000})),
    ] {
        let model = rope(key, value).unwrap();
        assert_eq!(rope_keys(&model), none);
        assert_eq!(rope_factors(&model), None);
    }
    let linear: Vec<(&str, crate::gguf::Value)> =
        vec![("scaling.type", "linear".into()), ("scaling.factor", 4f32.into()), ("freq_base", 20000f32.into())];
    for (key, value) in [
        ("rope_scaling", json!({"type": "linear", "factor": 4})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 4.0})),
        ("rope_parameters", json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0})),
    ] {
        assert_eq!(rope_keys(&rope(key, value).unwrap()), linear);
    }
    let newer = rope("rope_parameters", json!({"rope_theta": 1e6})).unwrap();
    // Theta in the new place, the scaling still in the old one.
    let old_scaling = json!({"type": "linear", "factor": 4.0});
    for parameters in [json!({}), json!({"rope_theta": 1e6})] {
        let config = with(small().to_config("LlamaForCausalLM"), "rope_scaling", old_scaling.clone());
        let mixed = Llama::hyperparameters(&with(config, "rope_parameters", parameters)).unwrap();
        assert_eq!(mixed.rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
    }
    assert_eq!(rope_keys(&newer), [("freq_base", 1e6f32.into())]);
}

#[test]
fn writes_the_keys_of_yarn_that_llama_cpp_reads() {
    let yarn = |extra: Value| {
        let mut value = json!({"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 1024});
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        rope("rope_scaling", value).unwrap()
    };
    let plain: Vec<(&str, crate::gguf::Value)> = vec![
        ("scaling.type", "yarn".into()),
        ("scaling.factor", 16f32.into()),
        ("scaling.original_context_length", 1024u32.into()),
        ("freq_base", 20000f32.into()),
    ];
    assert_eq!(rope_keys(&yarn(json!({}))), plain);
    assert_eq!(rope_keys(&yarn(json!({"beta_fast": 32, "beta_slow": 1, "finetuned": true}))), plain);
    assert_eq!(rope_factors(&yarn(json!({}))), None);
    // llama.cpp's own factor is 0.1 ln 16 + 1.
    let own = 0.1 * 16f64.ln() + 1.0;
    let model = yarn(json!({"attention_factor": 1.0}));
    assert_eq!(model.metadata.get("llama.rope.scaling.attn_factor"), Some(&((1.0 / own) as f32).into()));
    let model = yarn(json!({"mscale": 0.5, "mscale_all_dim": 1.0}));
    let wanted = (0.05 * 16f64.ln() + 1.0) / own / own;
    assert_eq!(model.metadata.get("llama.rope.scaling.attn_factor"), Some(&(wanted as f32).into()));
    // Factor and original context follow from each other and the model's context, 4096.
    let model = rope("rope_scaling", json!({"type": "yarn", "original_max_position_embeddings": 1024})).unwrap();
    assert_eq!(model.metadata.get("llama.rope.scaling.factor"), Some(&4f32.into()));
    let model = rope("rope_scaling", json!({"type": "yarn", "factor": 2.0})).unwrap();
    assert_eq!(model.metadata.u64("llama.rope.scaling.original_context_length"), Some(4096));
}

#[test]
fn a_ramp_of_yarn_that_llama_cpp_does_not_have_becomes_factors() {
    let hyper = Hyperparameters {
        hidden: 6 * 64,
        head_dim: 64,
        rope_theta: 20000.0,
        rope_scaling: Some(RopeScaling::Yarn {
            factor: 16.0,
            original_context: 1024,
            attention_factor: 1.25,
            beta_fast: 16.0,
            beta_slow: 2.0,
            truncate: true,
        }),
        ..small()
    };
    let (config, shapes) = checkpoint(&hyper, "LlamaForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    assert_eq!((read(&config), model.topology), (hyper.clone(), hyper.topology()));
    assert_eq!(rope_keys(&model), [("scaling.attn_factor", 1.25f32.into()), ("freq_base", 20000f32.into())]);
    // By transformers' formula: 1 / frequency after, over 1 / frequency before. Rotations of channel pair j over 1024
    // tokens are 1024 / (2 pi 20000^(j / 32)): pair 7 makes 18.7, pair 8 makes 13.7; 14 makes 2.1, 15 makes 1.6.
    let (low, high) = (7.0, 15.0);
    let expected: Vec<f32> = (0..32)
        .map(|j| {
            let before = 20000f64.powf(-2.0 * f64::from(j) / 64.0);
            let ramp = ((f64::from(j) - low) / (high - low)).clamp(0.0, 1.0);
            let after = before / 16.0 * ramp + before * (1.0 - ramp);
            (before / after) as f32
        })
        .collect();
    let factors = rope_factors(&model).unwrap();
    assert_eq!((factors[7], factors[15], factors[31]), (1.0, 16.0, 16.0));
    for (found, wanted) in factors.iter().zip(&expected) {
        assert!((found - wanted).abs() <= wanted * 1e-6, "{factors:?} is not {expected:?}");
    }
}

#[test]
fn factors_of_llama_3_agree_with_double_precision() {
    // Llama 3.1 8B, and Llama 3.2 1B with its smaller heads and larger factor.
    for (head_dim, factor) in [(128u32, 8.0), (64, 32.0)] {
        let scaling =
            RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let hyper = Hyperparameters {
            hidden: 6 * head_dim,
            head_dim,
            rope_theta: 5e5,
            rope_scaling: Some(scaling),
            tied: true,
            ..small()
        };
        let (config, shapes) = checkpoint(&hyper, "LlamaForCausalLM");
        let model = describe_shapes(&config, &shapes).unwrap();
        assert_eq!((read(&config), model.topology), (hyper.clone(), hyper.topology()));
        assert_eq!(rope_keys(&model), [("freq_base", 5e5f32.into())]);
        let factors = rope_factors(&model).unwrap();
        assert_eq!(factors.len() as u32, head_dim / 2);
        assert_eq!((factors[0], factors[factors.len() - 1]), (1.0, factor as f32));
        let mut between = 0;
        for (j, &found) in factors.iter().enumerate() {
            let wavelength = std::f64::consts::TAU * 5e5f64.powf(2.0 * j as f64 / f64::from(head_dim));
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            let wanted = 1.0 / ((1.0 - smooth) / factor + smooth);
            between += u32::from(smooth > 0.0 && smooth < 1.0);
            assert!((f64::from(found) - wanted).abs() <= wanted * 2e-6, "factor {j} is {found}, not {wanted}");
        }
        assert!(between > 2, "the formula's middle part is not reached");
    }
}

#[test]
fn factors_of_llama_3_have_the_bits_that_single_precision_gives() {
    let scaling =
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    let factors = scaling.factors(5e5, 64).unwrap();
    // The converter's operations one by one on numpy.float32; the ones before and after are 1 and 32.
    assert_eq!(
        factors[14..19].iter().map(|f| f.to_bits()).collect::<Vec<_>>(),
        [0x3f800000, 0x3fd35ec2, 0x4052b46f, 0x411aaaee, 0x42000000]
    );
}

#[test]
fn refuses_rotary_scaling_that_it_cannot_express() {
    let refusal = |value: Value| rope("rope_scaling", value).unwrap_err().to_string();
    assert_eq!(
        refusal(json!({"rope_type": "longrope", "factor": 8})),
        "config.json: 'rope_scaling.rope_type' is \"longrope\"; wanted 'default', 'linear', 'dynamic', 'yarn' or 'llama3'"
    );
    assert!(refusal(json!({"type": "su"})).starts_with("config.json: 'rope_scaling.type' is \"su\"; wanted"));
    assert_eq!(
        refusal(json!({"rope_type": "llama3"})),
        "config.json has no 'rope_scaling.factor'; wanted a number that is at least 1"
    );
    assert_eq!(
        refusal(json!({"factor": 4.0})),
        "config.json has no 'rope_scaling.rope_type'; wanted 'linear', 'yarn' or 'llama3'"
    );
    assert_eq!(
        refusal(json!({"type": "linear", "factor": 0.5})),
        "config.json: 'rope_scaling.factor' is 0.5; wanted a number that is at least 1"
    );
    assert!(refusal(json!({"type": "llama3", "factor": 8, "high_freq_factor": 1})).contains("above 'low_freq_factor'"));
    assert!(refusal(json!({"type": "yarn", "factor": 8, "beta_fast": 0.5})).contains("at least 'beta_slow'"));
    assert!(refusal(json!({"full_attention": {"rope_theta": 1e6}})).contains("one set of values for all layers"));
    assert!(refusal(json!([1])).contains("'rope_scaling' is [1]; wanted an object or null"));
}

#[test]
fn warns_of_what_the_file_cannot_say() {
    let model = rope("rope_scaling", json!({"type": "dynamic", "factor": 2.0})).unwrap();
    assert_eq!(rope_keys(&model), [("freq_base", 20000f32.into())]);
    assert_eq!(model.warnings.len(), 1);
    assert!(model.warnings[0].contains("exact up to 4096 tokens"), "{}", model.warnings[0]);

    let windowed = Hyperparameters { sliding_window: Some(1024), ..small() };
    let (config, shapes) = checkpoint(&windowed, "MistralForCausalLM");
    let model = describe_shapes(&config, &shapes).unwrap();
    assert!(model.warnings[0].contains("longer than 1024 tokens differ"), "{}", model.warnings[0]);
    assert!(model.metadata.iter().all(|(key, _)| !key.contains("sliding")));
    // A window as long as the context is none; to Llama it never is one.
    let wide = with(config.clone(), "sliding_window", json!(4096));
    assert!(describe_shapes(&wide, &shapes).unwrap().warnings.is_empty());
    let llama = with(config, "architectures", json!(["LlamaForCausalLM"]));
    assert!(describe_shapes(&llama, &shapes).unwrap().warnings.is_empty());
}

#[test]
fn a_configuration_written_is_read_back() {
    let scalings = [
        None,
        Some(RopeScaling::Linear { factor: 4.0 }),
        Some(RopeScaling::Dynamic { factor: 2.0 }),
        Some(RopeScaling::Yarn {
            factor: 8.0,
            original_context: 512,
            attention_factor: 1.1,
            beta_fast: 20.0,
            beta_slow: 3.0,
            truncate: false,
        }),
    ];
    for rope_scaling in scalings {
        for name in ["LlamaForCausalLM", "YiForCausalLM", "MistralForCausalLM"] {
            let hyper = Hyperparameters { rope_scaling: rope_scaling.clone(), attention_bias: true, ..small() };
            let config = hyper.to_config(name);
            assert_eq!(read(&config), hyper, "{name}");
        }
    }
}

#[test]
fn the_published_sizes_have_their_published_parameters() {
    for (hyper, billions) in
        [(Hyperparameters::yi_6b(), 6.06), (Hyperparameters::yi_9b(), 8.83), (Hyperparameters::yi_34b(), 34.39)]
    {
        hyper.check().unwrap();
        let parameters: u64 = shapes(&hyper).iter().map(|(_, dims)| dims.iter().product::<u64>()).sum();
        assert_eq!((parameters as f64 / 1e7).round() / 100.0, billions);
        for name in ["LlamaForCausalLM", "YiForCausalLM"] {
            let (config, hf) = checkpoint(&hyper, name);
            let model = describe_shapes(&config, &hf).unwrap();
            assert_eq!((read(&config), model.topology), (hyper.clone(), hyper.topology()));
            assert_eq!(model.n_parameters(), parameters);
            assert!(model.tensors.iter().all(adds_up));
            let described: Shapes = model.tensors.iter().map(|t| (t.name.clone(), t.dims.clone())).collect();
            assert_eq!(described, shapes(&hyper));
        }
    }
}

#[test]
fn sizes_at_8_bits_are_those_llama_cpp_measured() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/plans");
    let models = [
        ("yi-6b.json", Hyperparameters::yi_6b()),
        ("yi-9b.json", Hyperparameters::yi_9b()),
        ("yi-34b.json", Hyperparameters::yi_34b()),
    ];
    for (file, hyper) in models {
        let plans: Value = serde_json::from_slice(&std::fs::read(dir.join(file)).unwrap()).unwrap();
        let bytes: u64 = shapes(&hyper)
            .iter()
            .map(|(_, dims)| match dims.as_slice() {
                [len] => 4 * len,
                [cols, rows] => cols / 32 * 34 * rows,
                _ => panic!("a tensor of {dims:?}"),
            })
            .sum();
        let mib = (bytes as f64 / 1024.0 / 1024.0 * 100.0).round() / 100.0;
        assert_eq!(mib, plans["Q8_0"]["size_mib"].as_f64().unwrap(), "{file}");
    }
}

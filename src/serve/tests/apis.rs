//! `/v1/responses`, `/v1/messages`, and the routes of llama.cpp.

use serde_json::{Value, json};

use super::super::backend::State;
use super::super::protocol::{Constraint, Part, Prompt, Task};
use super::*;

const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

fn names(events: &[(String, Value)]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names
}

fn function() -> Value {
    json!([
        {"type": "function", "name": "weather", "strict": true, "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
        {"type": "web_search"},
    ])
}

#[tokio::test]
async fn items_are_answered() {
    let server = Server::new();
    let got =
        server.ok(RESPONSES, &json!({"input": "say Hi", "instructions": "Be brief.", "metadata": {"a": "b"}})).await;
    assert_eq!(
        (&got["status"], &got["object"], &got["metadata"]),
        (&json!("completed"), &json!("response"), &json!({"a": "b"}))
    );
    let item = &got["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    assert_eq!(item["content"], json!([{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}]));
    assert_eq!(got["usage"]["total_tokens"], got["usage"]["input_tokens"].as_u64().unwrap() + 2);
    let got = server.ok(RESPONSES, &json!({"input": "say Hello", "max_output_tokens": 2})).await;
    assert_eq!(
        (&got["status"], &got["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!((&got["output"][0]["status"], &got["nibble"]["ended_by"]), (&json!("incomplete"), &json!("max_tokens")));
    let got = server
        .ok(
            RESPONSES,
            &json!({"input": "say x", "text": {"format": {"type": "json_schema", "name": "n",
        "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}}}}}),
        )
        .await;
    assert_eq!(got["output"][0]["content"][0]["text"], "{\"a\":true}");
    let got = server.ok(RESPONSES, &json!({"input": "say x", "include": ["message.output_text.logprobs"]})).await;
    assert_eq!(got["output"][0]["content"][0]["logprobs"][0]["token"], "x");
}

#[tokio::test]
async fn answers_are_kept_and_continued() {
    let server = Server::new();
    let first = server.ok(RESPONSES, &json!({"input": "say one", "instructions": "Once."})).await;
    let id = first["id"].as_str().unwrap();
    let second = server.ok(RESPONSES, &json!({"input": "say two", "previous_response_id": id})).await;
    let Prompt::Chat(chat) = server.fake.last_generate().unwrap().prompt else { panic!() };
    // Instructions are not carried over.
    let wanted = json!([{"role": "user", "content": "say one"}, {"role": "assistant", "content": "one"},
        {"role": "user", "content": "say two"}]);
    assert_eq!(json!(chat.messages), wanted);
    assert_eq!(second["previous_response_id"], id);
    let path = format!("{RESPONSES}/{id}");
    assert_eq!(server.get(&path).await.body, first);
    let items = server.get(&format!("{path}/input_items")).await.body;
    assert_eq!(items["data"][0]["content"][0]["text"], "say one");
    let deleted = server.send("DELETE", &path, &[], Body::empty()).await;
    assert_eq!(deleted.body, json!({"id": id, "object": "response.deleted", "deleted": true}));
    assert_eq!(server.get(&path).await.status, 404);
    assert_eq!(server.send("DELETE", &path, &[], Body::empty()).await.status, 404);
    let got = server.post(RESPONSES, &json!({"input": "x", "previous_response_id": id})).await;
    assert_eq!((got.status.as_u16(), &got.body["error"]["code"]), (400, &json!("previous_response_not_found")));
    assert_eq!(server.post(&format!("{RESPONSES}/compact"), &json!({})).await.status, 404);
    // Unless they are not to be.
    let got = server.ok(RESPONSES, &json!({"input": "say one", "store": false})).await;
    assert_eq!(server.get(&format!("{RESPONSES}/{}", got["id"].as_str().unwrap())).await.status, 404);
}

#[tokio::test]
async fn functions_are_called_and_answered() {
    let server = Server::new();
    let ask = json!({"input": "call weather {\"city\": \"Paris\"}", "tools": function()});
    let got = server.ok(RESPONSES, &ask).await;
    let call = &got["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["arguments"]),
        (&json!("function_call"), &json!("weather"), &json!("{\"city\": \"Paris\"}"))
    );
    assert!(server.log().contains("note=tool_skipped type=web_search"), "{}", server.log());
    let output = json!([{"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}]);
    server.ok(RESPONSES, &json!({"input": output, "previous_response_id": got["id"], "tools": function()})).await;
    let Prompt::Chat(chat) = server.fake.last_generate().unwrap().prompt else { panic!() };
    assert_eq!(chat.messages[1]["tool_calls"][0]["id"], call["call_id"]);
    assert_eq!(chat.messages[2], json!({"role": "tool", "tool_call_id": call["call_id"], "content": "rain"}));
    // The same from items, as clients send that keep nothing here.
    let items = json!([
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "d", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "web_search_call", "id": "ws"},
        {"role": "user", "content": [{"type": "input_text", "text": "say Hi"}]},
    ]);
    server.ok(RESPONSES, &json!({"input": items, "store": false})).await;
    let Prompt::Chat(chat) = server.fake.last_generate().unwrap().prompt else { panic!() };
    assert_eq!(chat.messages.len(), 3, "{:?}", chat.messages);
    assert_eq!(
        (&chat.messages[0]["reasoning_content"], chat.messages[0]["tool_calls"].as_array().unwrap().len()),
        (&json!("Hm"), 2)
    );
    assert!(chat.messages[0].get("thought_only").is_none());
    assert!(server.log().contains("note=item_skipped type=web_search_call"));
    // Choices.
    for (choice, called) in [
        (json!("required"), true),
        (json!({"type": "function", "name": "weather"}), true),
        (json!("none"), false),
        (
            json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}),
            true,
        ),
        (json!({"type": "web_search"}), false),
    ] {
        let got = server.ok(RESPONSES, &json!({"input": "Hi", "tools": function(), "tool_choice": choice})).await;
        assert_eq!(got["output"][0]["type"] == "function_call", called, "{choice}");
    }
}

#[tokio::test]
async fn events_of_responses_come_in_order() {
    let server = Server::of_template(THINKS);
    let ask = json!({"input": "call weather {\"city\": \"Paris\"}", "tools": function()});
    let events = server.events(RESPONSES, &ask).await;
    let wanted = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names(&events), wanted);
    for (i, (name, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(i)));
    }
    let last = &events.last().unwrap().1["response"];
    assert_eq!(last["output"].as_array().unwrap().len(), 2);
    assert_eq!(last["output"][0]["content"][0], json!({"type": "reasoning_text", "text": "Hm."}));
    let arguments: String = events
        .iter()
        .filter(|(name, _)| name.ends_with("arguments.delta"))
        .map(|(_, data)| data["delta"].as_str().unwrap())
        .collect();
    assert_eq!(last["output"][1]["arguments"], arguments.as_str());
    assert!(
        events
            .iter()
            .filter(|(name, _)| name.ends_with("arguments.delta"))
            .all(|(_, data)| { data["output_index"] == 1 && data["item_id"] == last["output"][1]["id"] })
    );
    assert_eq!(server.get(&format!("{RESPONSES}/{}", last["id"].as_str().unwrap())).await.body, *last);
    let text = server.events(RESPONSES, &json!({"input": "say Hi"})).await;
    let wanted = [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names(&text)[8..], wanted);
    // How much was read, and how fast, for those who ask as they ask llama.cpp's server.
    assert!(text.iter().all(|(_, data)| data.get("prompt_progress").is_none()));
    let ask = json!({"input": "say Hi", "return_progress": true, "timings_per_token": true});
    let told = server.events(RESPONSES, &ask).await;
    let progress: Vec<&Value> = told.iter().filter_map(|(_, data)| data.get("prompt_progress")).collect();
    assert_eq!(progress.len(), 2);
    assert_eq!((&progress[0]["processed"], &progress[1]["processed"]), (&progress[0]["cache"], &progress[0]["total"]));
    for (name, data) in &told {
        let is_progress = data.get("prompt_progress").is_some();
        let is_timed = is_progress || name.ends_with(".delta") || name == "response.completed";
        assert_eq!(data["timings"]["predicted_per_second"].is_number(), is_timed, "{name}");
        assert!(!is_progress || name == "response.in_progress");
    }
    // A failure in the middle.
    let broken = server.events(RESPONSES, &json!({"input": "break died"})).await;
    assert_eq!(names(&broken)[names(&broken).len() - 2..], ["error", "response.failed"]);
    let failed = &broken.last().unwrap().1["response"];
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("engine_died")));
}

#[tokio::test]
async fn tokens_are_counted_without_an_answer() {
    let server = Server::new();
    let got = server.ok("/v1/responses/input_tokens", &json!({"input": "Hi"})).await;
    let used = server.ok(RESPONSES, &json!({"input": "Hi"})).await;
    assert_eq!(got, json!({"object": "response.input_tokens", "input_tokens": used["usage"]["input_tokens"]}));
    let got = server.ok("/v1/messages/count_tokens", &json!({"model": "fake", "messages": user("Hi")})).await;
    assert_eq!(got["input_tokens"], used["usage"]["input_tokens"]);
}

#[tokio::test]
async fn anthropic_messages_are_answered() {
    let server = Server::new();
    let body = json!({"model": "fake", "max_tokens": 100, "system": [{"type": "text", "text": "Be brief."}],
        "messages": user("say Hi there"),
        "stop_sequences": [" there"], "temperature": 0.3, "top_k": 4});
    let got = server.ok(MESSAGES, &body).await;
    assert_eq!(got["content"], json!([{"type": "text", "text": "Hi", "citations": null}]));
    assert_eq!((&got["stop_reason"], &got["stop_sequence"]), (&json!("stop_sequence"), &json!(" there")));
    let usage = &got["usage"];
    let total = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert!(total > 20 && usage["output_tokens"] == 2);
    let generate = server.fake.last_generate().unwrap();
    assert_eq!((generate.max_tokens, generate.sampling.len()), (Some(100), 2));
    let got = server.ok(MESSAGES, &json!({"max_tokens": 2, "messages": user("say Hello")})).await;
    assert_eq!(got["stop_reason"], "max_tokens");
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}});
    let format = json!({"type": "json_schema", "schema": schema});
    for more in [json!({"output_config": {"format": format, "effort": "low"}}), json!({"output_format": format})] {
        let mut body = json!({"max_tokens": 50, "messages": user("Hi")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(server.ok(MESSAGES, &body).await["content"][0]["text"], "{\"a\":true}");
    }
}

#[tokio::test]
async fn anthropic_tools_are_called_and_answered() {
    let server = Server::new();
    let tools = json!([
        {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}},
        {"type": "web_search_20250305", "name": "web_search"},
    ]);
    let ask = |text: &str, choice: Value| {
        json!({"max_tokens": 200, "messages": user(text), "tools": tools,
        "tool_choice": choice})
    };
    let got = server.ok(MESSAGES, &ask("call weather {\"city\": \"Paris\"}", Value::Null)).await;
    let call = &got["content"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (&json!("tool_use"), &json!("weather"), &json!({"city": "Paris"}))
    );
    assert_eq!(got["stop_reason"], "tool_use");
    for (choice, called) in [
        (json!({"type": "any"}), true),
        (json!({"type": "tool", "name": "weather"}), true),
        (json!({"type": "none"}), false),
    ] {
        let got = server.ok(MESSAGES, &ask("Hi", choice)).await;
        assert_eq!(got["content"][0]["type"] == "tool_use", called);
    }
    server.ok(MESSAGES, &ask("Hi", json!({"type": "auto", "disable_parallel_tool_use": true}))).await;
    let Some(Constraint::Lark(lark)) = server.fake.last_generate().unwrap().constraint else { panic!() };
    assert!(lark.starts_with("start: head call | FREE"), "{lark}");
    let messages = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": ""}, {"type": "text",
            "text": "Let me see"}, call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text",
            "text": "rain"}]},
            {"type": "text", "text": "say thanks"}]},
    ]);
    let got = server.ok(MESSAGES, &json!({"max_tokens": 200, "messages": messages, "tools": tools})).await;
    assert_eq!(got["content"][0]["text"], "thanks");
    let Prompt::Chat(chat) = server.fake.last_generate().unwrap().prompt else { panic!() };
    assert_eq!((&chat.messages[1]["reasoning_content"], &chat.messages[2]["content"]), (&json!("Hm"), &json!("rain")));
    assert_eq!(chat.messages[1]["tool_calls"][0]["function"]["arguments"], "{\"city\":\"Paris\"}");
    // Arguments that were cut off are shown, not called.
    let cut = json!({"max_tokens": 56, "messages": user("call weather {\"city\": \"Paris\"}"), "tools": tools});
    let got = server.ok(MESSAGES, &cut).await;
    assert_eq!(
        (&got["content"][0]["type"], &got["content"][0]["text"]),
        (&json!("text"), &json!("weather {\"city\": \"P")),
        "{got}"
    );
}

#[tokio::test]
async fn anthropic_events_come_in_order() {
    let server = Server::of_template(THINKS);
    let body = json!({"max_tokens": 200, "messages": user("call weather {\"city\": \"Paris\"}"),
        "thinking": {"type": "enabled", "budget_tokens": 100},
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}]});
    let events = server.events(MESSAGES, &body).await;
    let wanted = [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names(&events), wanted);
    assert!(events.iter().all(|(name, data)| data["type"] == name.as_str()));
    let starts: Vec<&Value> =
        events.iter().filter(|(name, _)| name == "content_block_start").map(|(_, data)| data).collect();
    assert_eq!((&starts[0]["index"], &starts[0]["content_block"]["type"]), (&json!(0), &json!("thinking")));
    assert_eq!((&starts[1]["index"], &starts[1]["content_block"]["name"]), (&json!(1), &json!("weather")));
    let joined =
        |field: &str| -> String { events.iter().filter_map(|(_, data)| data["delta"][field].as_str()).collect() };
    assert_eq!((joined("thinking").as_str(), joined("partial_json").as_str()), ("Hm.", "{\"city\": \"Paris\"}"));
    let last = &events[events.len() - 2].1;
    assert_eq!((&last["delta"]["stop_reason"], last["usage"]["output_tokens"].is_u64()), (&json!("tool_use"), true));
    let broken = server.events(MESSAGES, &json!({"max_tokens": 9, "messages": user("break internal")})).await;
    let (name, data) = broken.last().unwrap();
    assert_eq!((name.as_str(), &data["error"]["type"]), ("error", &json!("api_error")));
}

#[tokio::test]
async fn anthropic_errors_have_its_form() {
    let server = Server::new();
    for (body, status, kind) in [
        (json!({"messages": user("Hi")}), 400, "invalid_request_error"),
        (json!({"messages": user("Hi"), "max_tokens": 0}), 400, "invalid_request_error"),
        (json!({"messages": [], "max_tokens": 1}), 400, "invalid_request_error"),
        (json!({"messages": [{"role": "tool", "content": "x"}], "max_tokens": 1}), 400, "invalid_request_error"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 1}),
            400,
            "invalid_request_error",
        ),
        (json!({"messages": user("Hi"), "max_tokens": 1, "model": "x"}), 404, "not_found_error"),
        (json!({"messages": user("fail busy"), "max_tokens": 1}), 429, "rate_limit_error"),
        (json!({"messages": user("fail unavailable"), "max_tokens": 1}), 503, "overloaded_error"),
        (json!({"messages": user("fail died"), "max_tokens": 1}), 500, "api_error"),
    ] {
        let got = server.post(MESSAGES, &body).await;
        assert_eq!((got.status.as_u16(), got.body["error"]["type"].as_str()), (status, Some(kind)), "{}", got.body);
        assert_eq!(
            (&got.body["type"], got.body["request_id"].as_str()),
            (&json!("error"), got.headers["x-request-id"].to_str().ok())
        );
    }
}

#[tokio::test]
async fn llama_cpp_completes() {
    let server = Server::new();
    for path in ["/completion", "/completions"] {
        let got = server
            .ok(
                path,
                &json!({"prompt": "say one two", "stop": [" two"], "n_predict": 50,
            "return_tokens": true, "n_probs": 1}),
            )
            .await;
        assert_eq!(
            (&got["content"], &got["stop_type"], &got["stopping_word"]),
            (&json!("one"), &json!("word"), &json!(" two"))
        );
        assert_eq!(
            (&got["tokens"], &got["tokens_predicted"], &got["tokens_evaluated"]),
            (&json!([111, 110, 101]), &json!(3), &json!(11))
        );
        assert_eq!((&got["timings"]["predicted_n"], &got["timings"]["cache_n"]), (&json!(3), &json!(5)));
        assert_eq!(got["completion_probabilities"][0]["top_logprobs"][0]["token"], "o");
    }
    // Control tokens are recognized here, as in llama.cpp; tokens may stand among texts.
    server.ok("/completion", &json!({"prompt": [1, 2, "<|im_end|>"]})).await;
    let parts = vec![Part::Tokens(vec![1, 2]), Part::Text { text: "<|im_end|>".to_string(), special: true }];
    assert_eq!(server.fake.last_generate().unwrap().prompt, Prompt::Parts { parts, begin: false });
    let several =
        server.ok("/completion", &json!({"prompt": ["say a", {"prompt_string": "say b"}], "n_predict": 1})).await;
    assert_eq!(
        (&several[0]["content"], &several[1]["content"], &several[1]["index"]),
        (&json!("a"), &json!("b"), &json!(1))
    );
    assert_eq!(several[0]["stop_type"], "eos");
    let events = server
        .events("/completion", &json!({"prompt": "say Hi", "return_progress": true, "timings_per_token": true}))
        .await;
    let text: String = events.iter().map(|(_, data)| data["content"].as_str().unwrap()).collect();
    assert_eq!(text, "Hi");
    // Before anything is read, and when all is.
    let read = |i: usize| {
        let (progress, timings) = (&events[i].1["prompt_progress"], &events[i].1["timings"]);
        assert_eq!((&progress["total"], &progress["cache"]), (&json!(6), &json!(3)));
        (progress["processed"].clone(), timings["prompt_n"].clone())
    };
    assert_eq!((read(0), read(1)), ((json!(3), json!(0)), (json!(6), json!(3))));
    assert_eq!(events[0].1["timings"]["prompt_ms"], 0.0);
    assert_eq!((&events[2].1["content"], events[2].1["timings"].is_object()), (&json!("H"), true));
    let last = &events.last().unwrap().1;
    assert_eq!((&last["stop"], &last["stop_type"]), (&json!(true), &json!("eos")));
    for (body, param) in [
        (json!({"prompt": 3}), "prompt"),
        (json!({"prompt": [1, {}]}), "prompt[1]"),
        (json!({"prompt": "a", "n_probs": 101}), "n_probs"),
        (json!({"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}}), "prompt.multimodal_data"),
        (json!({"prompt": {"prompt_string": "a", "multimodal_data": "x"}}), "prompt.multimodal_data"),
        (json!({"prompt": {"content": [{"type": "text", "text": "a"}]}}), "prompt"),
        (json!({"prompt": "a", "response_fields": "content"}), "response_fields"),
    ] {
        let got = server.post("/completion", &body).await;
        assert_eq!((got.status.as_u16(), got.body["error"]["param"].as_str()), (400, Some(param)), "{body}");
    }
}

#[tokio::test]
async fn answers_of_llama_cpp_tell_all_settings() {
    let server = Server::new();
    let asked = json!({"prompt": "say Hi", "seed": 7, "top_k": 3.0, "n_predict": 5.0, "stop": "x", "ignore_eos": true,
        "logit_bias": {" the": -1, "65": false}, "n_probs": 2});
    let got = server.ok("/completion", &asked).await;
    for (name, value) in [
        ("seed", json!(7)),
        ("top_k", json!(3)),
        ("temperature", json!(0.8)),
        ("adaptive_decay", json!(0.9)),
        ("n_predict", json!(5)),
        ("max_tokens", json!(5)),
        ("stop", json!(["x"])),
        ("ignore_eos", json!(true)),
        (
            "logit_bias",
            // The last one is the token that ends texts.
            json!([{"token": " the", "bias": -1.0}, {"token": 65, "bias": null}, {"token": 0x11_0001, "bias": null}]),
        ),
        ("n_probs", json!(2)),
        ("stream", json!(false)),
    ] {
        assert_eq!(got["generation_settings"][name], value, "{name}");
    }
    // Without a seed it is the one that was drawn.
    let events = server.events("/completion", &json!({"prompt": "say Hi"})).await;
    let settings = &events.last().unwrap().1["generation_settings"];
    assert_eq!((&settings["seed"], &settings["stream"]), (&json!(42), &json!(true)));
    let props = server.get("/props").await.body;
    let defaults = &props["default_generation_settings"]["params"];
    assert_eq!((&defaults["seed"], &defaults["n_predict"], &defaults["top_p"]), (&json!(-1), &json!(-1), &json!(0.95)));
    let names = |settings: &Value| settings.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(defaults), names(settings));
}

#[tokio::test]
async fn probabilities_after_sampling_have_names_of_their_own() {
    let server = Server::new();
    let asked = json!({"prompt": "say Hi", "n_probs": 2, "post_sampling_probs": true});
    let got = server.ok("/completion", &asked).await;
    assert!(server.fake.last_generate().unwrap().after_sampling);
    assert_eq!(got["generation_settings"]["post_sampling_probs"], true);
    let first = &got["completion_probabilities"][0];
    assert_eq!((&first["token"], &first["bytes"], first.get("logprob")), (&json!("H"), &json!([72]), None));
    assert_eq!(first["prob"], json!((-0.5_f64).exp()));
    assert_eq!((first["top_probs"].as_array().unwrap().len(), first.get("top_logprobs")), (2, None));
    assert_eq!(first["top_probs"][1]["prob"], json!((-1.5_f64).exp()));
    let events = server.events("/completion", &asked).await;
    assert_eq!(events[0].1["completion_probabilities"][0], *first);
    server.ok("/completion", &json!({"prompt": "say Hi", "n_probs": 2})).await;
    assert!(!server.fake.last_generate().unwrap().after_sampling);
}

#[tokio::test]
async fn a_full_context_is_told() {
    let server = Server::with(with_room(100), Options::default());
    let full = json!({"prompt": format!("say {}", "x".repeat(70))});
    for (body, is_full) in [(full, true), (json!({"prompt": "say xx", "n_predict": 1}), false)] {
        let got = server.ok("/completion", &body).await;
        assert_eq!((&got["truncated"], &got["stop_type"]), (&json!(is_full), &json!("limit")), "{got}");
    }
}

#[tokio::test]
async fn answers_of_llama_cpp_have_the_fields_that_were_chosen() {
    let server = Server::new();
    let fields = ["content", "generation_settings/n_predict", "content/x", "none"];
    let asked = json!({"prompt": "say Hi", "n_predict": 9, "response_fields": fields});
    let got = server.ok("/completion", &asked).await;
    assert_eq!(got, json!({"content": "Hi", "generation_settings/n_predict": 9}));
    let events = server.events("/completion", &asked).await;
    assert_eq!(events.last().unwrap().1, json!({"content": "", "generation_settings/n_predict": 9}));
    let all = server.ok("/completion", &json!({"prompt": "say Hi", "response_fields": []})).await;
    assert_eq!((&all["prompt"], all["timings"].is_object()), (&json!("say Hi"), true));
    // The model spells what is not text.
    for (prompt, text) in [
        (json!({"prompt_string": "say a", "multimodal_data": null}), "say a"),
        (json!([104, 105]), "hi"),
        (json!(["hi", 1_114_113.0]), "hi<|im_end|>"),
    ] {
        let got = server.ok("/completion", &json!({"prompt": prompt, "response_fields": ["prompt"]})).await;
        assert_eq!(got, json!({"prompt": text}));
    }
}

#[tokio::test]
async fn embeddings_are_computed_of_all_forms_of_prompts() {
    let server = Server::new();
    let got = server.ok("/v1/embeddings", &json!({"input": [12, 34.0, "string", 56]})).await;
    assert_eq!((got["data"].as_array().unwrap().len(), &got["usage"]["prompt_tokens"]), (1, &json!(9)));
    let parts = json!([{"type": "text", "text": "say "}, {"type": "text", "text": "Hi"}]);
    let forms = json!(["say Hi", {"content": parts}, {"prompt_string": "say Hi"}, [115, "ay Hi"]]);
    let got = server.ok("/v1/embeddings", &json!({"input": forms})).await;
    assert!(got["data"].as_array().unwrap().iter().all(|one| one["embedding"] == got["data"][0]["embedding"]));
    assert_eq!(got["usage"]["prompt_tokens"], 4 * 6);
    let joined = vec![Part::Text { text: "say Hi".to_string(), special: false }];
    let Some(Task::Embed { prompts }) = server.fake.tasks().pop() else { panic!() };
    assert_eq!(prompts[1], Prompt::Parts { parts: joined, begin: true });
    // As llama.cpp's server answers.
    let numbers = |list: &Value| -> Vec<f32> {
        list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
    };
    for (path, name) in [("/embedding", "content"), ("/embeddings", "input")] {
        let native = server.ok(path, &json!({name: ["say Hi", [1]], "embd_normalize": 2})).await;
        assert_eq!((native.as_array().unwrap().len(), &native[1]["index"]), (2, &json!(1)));
        assert_eq!(numbers(&native[0]["embedding"][0]), numbers(&got["data"][0]["embedding"]));
    }
    for (path, body, param) in [
        ("/v1/embeddings", json!({"input": null}), "input"),
        ("/v1/embeddings", json!({"input": ["a", ""]}), "input[1]"),
        ("/v1/embeddings", json!({"input": [1, []]}), "input[1]"),
        ("/v1/embeddings", json!({"input": {"content": "a"}}), "input.content"),
        ("/v1/embeddings", json!({"input": {"content": []}}), "input"),
        ("/v1/embeddings", json!({"input": {"content": [{"type": "image_url"}]}}), "input.content[0]"),
        ("/v1/embeddings", json!({"input": {"prompt_string": "a", "multimodal_data": ["x"]}}), "input.multimodal_data"),
        ("/embedding", json!({}), "input"),
        ("/embedding", json!({"content": [""]}), "content[0]"),
        ("/embedding", json!({"input": "a", "embd_normalize": -1}), "embd_normalize"),
        ("/embeddings", json!({"input": "a", "content": {"a": "b"}}), "content"),
    ] {
        let got = server.post(path, &body).await;
        assert_eq!((got.status.as_u16(), got.body["error"]["param"].as_str()), (400, Some(param)), "{body}");
    }
    let metrics = server.get("/metrics").await;
    let line = "nibble:embedded_tokens_total 47";
    assert!(metrics.body.as_str().unwrap().lines().any(|found| found == line), "{}", metrics.body);
}

#[tokio::test]
async fn gaps_are_filled() {
    let server = Server::new();
    let body = json!({"input_prefix": "say a", "input_suffix": "b", "prompt": "c", "input_extra": [{"filename": "x.rs",
        "text": "d"}]});
    let got = server.ok("/infill", &body).await;
    assert_eq!((&got["content"], &got["prompt"]), (&json!("a"), &json!("bsay ac")));
    let Prompt::Infill(gap) = server.fake.last_generate().unwrap().prompt else { panic!() };
    assert_eq!((gap.suffix.as_str(), gap.begun.as_str(), gap.files.len()), ("b", "c", 1));
    assert_eq!(server.post("/infill", &json!({"input_prefix": "a"})).await.status, 400);
    let server = Server::with(with_room(100), Options::default());
    assert_eq!(server.post("/infill", &body).await.status, 501);
}

#[tokio::test]
async fn texts_become_tokens_and_back() {
    let server = Server::new();
    let got = server.ok("/tokenize", &json!({"content": "a<|im_end|>", "with_pieces": true})).await;
    assert_eq!(got["tokens"], json!([{"id": 97, "piece": "a"}, {"id": 0x11_0001, "piece": "<|im_end|>"}]));
    let got = server.ok("/tokenize", &json!({"content": "a<|im_end|>", "parse_special": false})).await;
    assert_eq!(got["tokens"].as_array().unwrap().len(), 11);
    assert_eq!(server.ok("/tokenize", &json!({"content": ["ab", 99]})).await["tokens"], json!([97, 98, 99]));
    assert_eq!(server.ok("/detokenize", &json!({"tokens": [97, 0x11_0001]})).await["content"], "a<|im_end|>");
    assert_eq!(server.ok("/detokenize", &json!({"tokens": [97.0]})).await["content"], "a");
    for tokens in [json!([4_000_000_000_u32]), json!([1.5]), json!(["a"]), json!("a")] {
        let got = server.post("/detokenize", &json!({"tokens": tokens})).await;
        assert_eq!(got.status, 400, "{tokens}");
    }
    let got = server.ok("/apply-template", &json!({"messages": user("Hi")})).await;
    assert_eq!(got["prompt"], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

#[tokio::test]
async fn the_server_tells_how_it_is() {
    let server = Server::new();
    assert_eq!(server.get("/health").await.body["status"], "ok");
    let props = server.get("/props").await.body;
    assert_eq!(
        (&props["total_slots"], &props["model_alias"], &props["eos_token"]),
        (&json!(4), &json!("fake"), &json!("<|im_end|>"))
    );
    assert_eq!(server.get("/slots").await.body.as_array().unwrap().len(), 4);
    assert_eq!(server.get("/slots?fail_on_no_slot=1&model=alias").await.status, 200);
    assert_eq!(server.get("/props?model=none").await.status, 404);
    let off = Server::with(Fake::default(), Options { slots: false, ..Options::default() });
    assert_eq!(off.get("/slots").await.status, 501);
    let got = server.get("/metrics").await;
    assert!(got.headers["process-start-time-unix"].to_str().unwrap().parse::<u64>().unwrap() > 1_700_000_000);
    let metrics = got.body.as_str().unwrap();
    for line in [
        "llamacpp:prompt_tokens_total 7",
        "llamacpp:prompt_tokens_seconds 3.5",
        "llamacpp:prompt_tokens_cached_total 0",
        "# TYPE llamacpp:n_tokens_max counter",
        "llamacpp:spec_decode_num_drafts_total 0",
        "nibble:embedded_tokens_total 0",
        "# TYPE llamacpp:requests_processing gauge",
        "nibble:http_requests_total{route=\"/props\",status=\"404\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    // Each state.
    for (state, status) in [
        (State::Loading { progress: 0.25 }, 503),
        (State::Crashed { reason: "abort".to_string() }, 503),
        (State::CrashLoop { reason: "abort".to_string() }, 503),
        (State::Unloaded, 200),
    ] {
        server.fake.set_state(state.clone());
        let got = server.get("/health").await;
        assert_eq!(got.status, status, "{state:?}");
        let models = if status == 200 { &got.body["models"] } else { &got.body["error"]["models"] };
        assert_eq!(models[0]["state"], state.name());
    }
    server.fake.set_state(State::Loading { progress: 0.25 });
    let got = server.post("/v1/chat/completions", &json!({"messages": user("Hi")})).await;
    assert_eq!((got.status.as_u16(), &got.body["error"]["progress"]), (503, &json!(0.25)));
    assert!(got.headers.contains_key("retry-after") && got.body["error"]["message"].as_str().unwrap().contains("25%"));
    assert!(server.get("/metrics").await.body.as_str().unwrap().contains("nibble:model_ready 0"));
    // Where there may be several models, lines say which one they are about.
    server.fake.add("later", State::Unloaded);
    let got = server.get("/metrics").await;
    for line in ["nibble:model_ready{model=\"fake\"} 0", "nibble:model_restarts_total{model=\"later\"} 3"] {
        assert!(got.body.as_str().unwrap().lines().any(|found| found == line), "{line}\n{}", got.body);
    }
}

//! What is refused, and how.

use serde_json::{Value, json};

use super::*;

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn wrong_requests_are_told_what_to_change() {
    let server = Server::new();
    let with = |name: &str, value: Value| {
        let mut body = json!({"messages": user("Hi")});
        body[name] = value;
        body
    };
    let message = |message: Value| json!({"messages": [message]});
    for (body, param, words) in [
        (json!({}), None, "missing field `messages`"),
        (json!([]), None, "the body has to be a JSON object"),
        (json!({"messages": []}), Some("messages"), "at least one message"),
        (json!({"messages": "Hi"}), Some("messages"), "invalid type"),
        (message(json!({"role": 3})), Some("messages[0].role"), "messages[0].role: invalid type: integer `3`"),
        (message(json!({"role": "wizard", "content": ""})), Some("messages[0].role"), "unknown role 'wizard'"),
        (message(json!({"role": "user"})), Some("messages[0].content"), "is missing"),
        (message(json!({"role": "user", "content": 3})), Some("messages[0].content"), "a string or a list"),
        (
            message(json!({"role": "user", "content": [{"type": "image_url"}]})),
            Some("messages[0].content[0]"),
            "understands parts of type 'text' only",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "text"}]})),
            Some("messages[0].content[0]"),
            "has no 'text'",
        ),
        (with("temperature", json!(-1)), Some("temperature"), "a number of 0 or more"),
        (with("n", json!(0)), Some("n"), "from 1 to 128"),
        (with("n", json!("2")), Some("n"), "invalid type"),
        (with("max_tokens", json!(-2)), Some("max_tokens"), "0 or more, or -1"),
        (with("top_logprobs", json!(21)), Some("top_logprobs"), "from 0 to 20"),
        (with("top_logprobs", json!(2)), Some("top_logprobs"), "needs 'logprobs'"),
        (with("stop", json!(vec!["x"; 65])), Some("stop"), "at most 64"),
        (with("stop", json!([1])), Some("stop[0]"), "expected a string"),
        (with("logit_bias", json!({"-1": 1})), Some("logit_bias"), "not the number of a token"),
        (with("truncation", json!("maybe")), Some("truncation"), "auto or disabled"),
        (with("stream", json!("yes")), Some("stream"), "expected a boolean"),
    ] {
        let got = server.post(CHAT, &body).await;
        let error = &got.body["error"];
        assert_eq!(
            (got.status.as_u16(), error["param"].as_str(), error["type"].as_str()),
            (400, param, Some("invalid_request_error")),
            "{body} {error}"
        );
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    // Null is as good as nothing.
    let mut body = json!({"messages": user("Hi")});
    for name in [
        "model",
        "n",
        "stop",
        "max_tokens",
        "tools",
        "tool_choice",
        "response_format",
        "logprobs",
        "stream",
        "stream_options",
        "seed",
        "logit_bias",
        "json_schema",
    ] {
        body[name] = Value::Null;
    }
    server.ok(CHAT, &body).await;
    assert!(server.fake.last_generate().unwrap().constraint.is_none());
}

#[tokio::test]
async fn bodies_are_checked() {
    let small = Server::with(Fake::default(), Options { max_body_bytes: 1000, max_items: 3, ..Options::default() });
    let send =
        async |kind: &str, body: String| small.send("POST", CHAT, &[("content-type", kind)], Body::from(body)).await;
    let json = "application/json";
    let fits = json!({"messages": user("Hi")}).to_string();
    for kind in [json, "application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"] {
        assert_eq!(send(kind, fits.clone()).await.status, 200, "{kind}");
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"] {
        assert_eq!(send(kind, fits.clone()).await.status, 415, "{kind}");
    }
    assert_eq!(small.send("POST", CHAT, &[], Body::from(fits)).await.status, 200);
    let got = send(json, json!({"messages": user(&"x".repeat(1000))}).to_string()).await;
    assert_eq!(
        (got.status.as_u16(), got.body["error"]["message"].as_str().unwrap().contains("1000 bytes")),
        (413, true)
    );
    // Announced, or not.
    let streamed = Body::from_stream_of(vec![b" ".to_vec(); 2000]);
    assert_eq!(small.send("POST", CHAT, &[], streamed).await.status, 413);
    let got = send(json, "{\"messages\": [\n{\"role\": }]}".to_string()).await;
    assert!(got.body["error"]["message"].as_str().unwrap().contains("line 2 column 10"), "{}", got.body);
    assert_eq!(send(json, String::new()).await.status, 400);
    assert_eq!(small.send("POST", CHAT, &[], Body::from(&b"{\"a\": \"\xff\"}"[..])).await.status, 400);
    let many: Vec<Value> = (0..4).map(|_| json!({"role": "user", "content": ""})).collect();
    let got = small.post(CHAT, &json!({"messages": many})).await;
    assert_eq!((got.status.as_u16(), &got.body["error"]["param"]), (400, &json!("messages")));
    // Nothing is deep enough to matter.
    let large = Server::new();
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let got = large.send("POST", CHAT, &[], Body::from(deep)).await;
    assert!(got.body["error"]["message"].as_str().unwrap().contains("recursion limit"));
}

#[tokio::test]
async fn bodies_share_their_room() {
    let options = Options { max_bodies_bytes: 3000, ..Options::default() };
    let server = Server::with(Fake::default(), options);
    let large = || Body::from(format!("{{\"messages\": [], \"padding\": \"{}\"}}", "x".repeat(4000)));
    let got = server.send("POST", CHAT, &[], large()).await;
    assert_eq!((got.status.as_u16(), &got.body["error"]["code"]), (503, &json!("bodies_too_large")));
    assert!(got.headers.contains_key("retry-after"));
    // Each gives back what it had, whatever becomes of it.
    for _ in 0..10 {
        let body = format!("{{\"messages\": 1, \"padding\": \"{}\"}}", "x".repeat(2000));
        assert_eq!(server.send("POST", CHAT, &[], Body::from(body)).await.status, 400);
        server.ok(CHAT, &json!({"messages": user(&"x".repeat(2000))})).await;
    }
}

/// A body that does not announce its length.
trait OfStream {
    fn from_stream_of(pieces: Vec<Vec<u8>>) -> Body;
}

impl OfStream for Body {
    fn from_stream_of(pieces: Vec<Vec<u8>>) -> Body {
        struct Pieces(std::vec::IntoIter<Vec<u8>>);
        impl http_body::Body for Pieces {
            type Data = bytes::Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
                std::task::Poll::Ready(self.0.next().map(|piece| Ok(http_body::Frame::data(piece.into()))))
            }
        }
        Body::new(Pieces(pieces.into_iter()))
    }
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_told_both_numbers() {
    let server = Server::with(with_room(100), Options::default());
    let long = user(&"x".repeat(200));
    for (path, body) in [
        (CHAT, json!({"messages": long})),
        (CHAT, json!({"messages": long, "stream": true})),
        ("/v1/messages", json!({"messages": long, "max_tokens": 1})),
        ("/v1/responses", json!({"input": "x".repeat(200)})),
        ("/v1/completions", json!({"prompt": "x".repeat(200)})),
        ("/completion", json!({"prompt": "x".repeat(200)})),
        ("/v1/embeddings", json!({"input": "x".repeat(200)})),
    ] {
        let got = server.post(path, &body).await;
        let error = &got.body["error"];
        assert_eq!((got.status.as_u16(), &error["n_ctx"]), (400, &json!(100)), "{path} {error}");
        let message = error["message"].as_str().unwrap();
        let tokens = error["n_prompt_tokens"].to_string();
        let wanted = "this model's maximum context length is 100 tokens, and the prompt is too long: ";
        assert!(message.contains(&format!("{tokens} tokens > 100 maximum")), "{message}");
        assert!(message.starts_with(wanted) && message.contains("exceeds the available context size"), "{message}");
        let kind = if path == "/completion" { "exceed_context_size_error" } else { "invalid_request_error" };
        assert_eq!(error["type"], kind, "{path}");
        assert!(path == "/v1/messages" || error["code"] == "context_length_exceeded");
    }
    // Unless old turns may go; then the answer says how many did.
    let messages: Vec<Value> = (0..6).map(|_| json!({"role": "user", "content": "x".repeat(20)})).collect();
    assert_eq!(server.post(CHAT, &json!({"messages": messages})).await.status, 400);
    let got = server.ok(CHAT, &json!({"messages": messages, "truncation": "auto"})).await;
    let forgotten = got["nibble"]["forgotten_turns"].as_u64().unwrap();
    assert!((1..6).contains(&forgotten));
    let events = server.events(CHAT, &json!({"messages": messages, "truncation": "auto"})).await;
    assert_eq!(events[events.len() - 2].1["nibble"]["forgotten_turns"], forgotten);
    let got = server.ok("/v1/responses", &json!({"input": messages, "truncation": "auto"})).await;
    assert_eq!((&got["nibble"]["forgotten_turns"], &got["truncation"]), (&json!(forgotten), &json!("auto")));
}

#[tokio::test]
async fn failures_have_their_status() {
    let server = Server::new();
    for (kind, status, code) in [
        ("invalid", 400, None),
        ("unsupported", 400, Some("unsupported")),
        ("too_long", 400, Some("context_length_exceeded")),
        ("busy", 429, Some("queue_full")),
        ("cancelled", 503, Some("cancelled")),
        ("timeout", 504, Some("timeout")),
        ("internal", 500, Some("engine_error")),
        ("died", 500, Some("engine_died")),
        ("unavailable", 503, Some("model_unavailable")),
    ] {
        for stream in [false, true] {
            let body = json!({"messages": user(&format!("fail {kind}")), "stream": stream});
            let got = server.post(CHAT, &body).await;
            assert_eq!((got.status.as_u16(), got.body["error"]["code"].as_str()), (status, code), "{kind}");
            assert_eq!(
                got.headers.get("retry-after").is_some(),
                matches!(status, 429 | 503) && kind != "cancelled",
                "{kind}"
            );
        }
        // In the middle of an answer.
        let got = server.post(CHAT, &json!({"messages": user(&format!("break {kind}"))})).await;
        assert_eq!(got.status.as_u16(), status);
        for (path, body) in [
            (CHAT, json!({"messages": user(&format!("break {kind}"))})),
            ("/completion", json!({"prompt": format!("break {kind}")})),
            ("/v1/completions", json!({"prompt": format!("break {kind}")})),
        ] {
            let events = server.events(path, &body).await;
            let last = &events.last().unwrap().1;
            assert!(
                last["error"]["message"].is_string() && events.iter().all(|(_, data)| data != "[DONE]"),
                "{path} {last}"
            );
            assert!(events.len() > 3);
        }
    }
    assert_eq!(server.post(CHAT, &json!({"messages": user("fail busy")})).await.headers["retry-after"], "7");
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let server = Server::new();
    let got = server.post("/v1/nothing", &json!({})).await;
    assert_eq!((got.status.as_u16(), &got.body["error"]["code"]), (404, &json!("route_not_found")));
    let got = server.get(CHAT).await;
    assert_eq!((got.status.as_u16(), &got.headers["allow"]), (405, &"POST".parse().unwrap()));
    assert!(got.body["error"]["message"].as_str().unwrap().contains("is for POST"));
    assert_eq!(server.send("DELETE", "/v1/messages", &[], Body::empty()).await.body["type"], "error");
    let got = server.post(CHAT, &json!({"messages": user("Hi"), "model": "x\n<script>"})).await;
    assert_eq!((got.status.as_u16(), &got.body["error"]["param"]), (404, &json!("model")));
    assert_eq!(got.headers["x-content-type-options"], "nosniff");
    assert_eq!(server.get("/v1/models/%ff").await.status, 400);
}

#[tokio::test]
async fn keys_are_needed_if_there_are_some() {
    let options = Options { api_keys: vec!["secret".to_string()], ..Options::default() };
    let server = Server::with(Fake::default(), options);
    let body = json!({"messages": user("Hi"), "max_tokens": 5}).to_string();
    let send = async |path: &str, header: (&str, &str)| {
        server.send("POST", path, &[header, ("content-type", "application/json")], Body::from(body.clone())).await
    };
    for path in [CHAT, "/v1/messages"] {
        assert_eq!(send(path, ("authorization", "Bearer secret")).await.status, 200);
        assert_eq!(send(path, ("authorization", "bearer secret")).await.status, 200);
        assert_eq!(send(path, ("x-api-key", "secret")).await.status, 200);
        for header in [
            ("authorization", "Bearer secre"),
            ("authorization", "secret"),
            ("authorization", "Bearer"),
            ("x-api-key", ""),
            ("x-api-key", "secret2"),
            ("accept", "*/*"),
        ] {
            let got = send(path, header).await;
            assert_eq!(got.status, 401, "{header:?}");
            assert_eq!(
                (&got.body["error"]["type"], &got.headers["www-authenticate"]),
                (&json!("authentication_error"), &"Bearer".parse().unwrap())
            );
        }
    }
    assert_eq!(server.get("/health").await.status, 200);
    for path in ["/v1/models", "/metrics", "/slots", "/props", "/openapi.json", "/healthx"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
    assert!(!server.log().contains("secret"));
}

#[tokio::test]
async fn pages_of_others_cannot_use_it() {
    let options = Options {
        cors_origins: vec!["http://app.example".to_string()],
        hosts: vec!["box.lan".to_string()],
        ..Options::default()
    };
    let server = Server::with(Fake::default(), options);
    let send = async |method: &str, host: Option<&str>, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri("/v1/models");
        for (name, value) in headers.iter().copied().chain(host.map(|host| ("host", host))) {
            request = request.header(name, value);
        }
        let (status, headers, _) = server.raw(request.body(Body::empty()).unwrap()).await;
        (status.as_u16(), headers)
    };
    for (host, status) in [
        (Some("127.0.0.1:8080"), 200),
        (Some("box.lan"), 200),
        (Some("evil.example"), 403),
        (None, 403),
        (Some("localhost.evil.example"), 403),
    ] {
        assert_eq!(send("GET", host, &[]).await.0, status, "{host:?}");
    }
    let host = Some("localhost:8080");
    for (origin, status) in [
        ("http://localhost:8080", 200),
        ("http://app.example", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://localhost:9999", 403),
    ] {
        let (got, headers) = send("GET", host, &[("origin", origin)]).await;
        assert_eq!(got, status, "{origin}");
        assert_eq!(headers.contains_key("access-control-allow-origin"), origin == "http://app.example");
    }
    let ask = ("access-control-request-method", "POST");
    let (status, headers) = send("OPTIONS", host, &[("origin", "http://app.example"), ask]).await;
    assert_eq!((status, headers["access-control-allow-origin"].to_str().unwrap()), (200, "http://app.example"));
    assert_eq!(headers["access-control-allow-methods"], "GET, POST, DELETE, OPTIONS");
    // Pages send keys, which they have to know, and nothing that browsers keep.
    assert_eq!(headers["access-control-allow-headers"], "*, authorization");
    assert!(!headers.contains_key("access-control-allow-credentials"));
    assert_eq!(send("OPTIONS", host, &[("origin", "http://evil.example"), ask]).await.0, 403);
}

#[tokio::test]
async fn requests_have_numbers() {
    let server = Server::new();
    let got = server.send("GET", "/health", &[("x-request-id", "mine-1")], Body::empty()).await;
    assert_eq!(got.headers["x-request-id"], "mine-1");
    let got = server.send("GET", "/health", &[("x-request-id", "a\tb")], Body::empty()).await;
    assert!(got.headers["x-request-id"].to_str().unwrap().starts_with("req_"));
    server.ok(CHAT, &json!({"messages": user("say secret words")})).await;
    let log = server.log();
    let line = log.lines().find(|line| line.contains("path=/v1/chat/completions")).unwrap();
    for field in [
        "request=req_",
        "method=POST",
        "status=200",
        "model=fake",
        "prompt_tokens=",
        "cached_tokens=",
        "written_tokens=12",
        "finish=end",
        "ms=",
    ] {
        assert!(line.contains(field), "{field}: {line}");
    }
    // Nor does what is wrong quote it.
    for body in
        [json!({"messages": "secret words"}), json!({"messages": user("secret"), "stop": [{"secret words": 1}]})]
    {
        assert_eq!(server.post(CHAT, &body).await.status, 400);
    }
    server.post(CHAT, &json!({"messages": user("fail died")})).await;
    let log = server.log();
    assert!(!log.contains("secret"), "{log}");
    assert!(log.contains("error=invalid_request_error param=messages status=400"), "{log}");
    assert!(log.contains("error=engine_died message=\"it was told to fail\""), "{log}");
}

#[tokio::test]
async fn a_full_queue_is_told_to_wait() {
    let info = ModelInfo { n_ctx_sequence: 4096, template: "tools".to_string(), ..ModelInfo::default() };
    let server = Server::with(Fake::with_info(info, 1), Options::default());
    let slow = json!({"messages": user("slow 0123456789")});
    let (first, second) = tokio::join!(server.post(CHAT, &slow), server.post(CHAT, &slow));
    let mut statuses = [first.status.as_u16(), second.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);
    assert_eq!(server.post(CHAT, &slow).await.status, 200);
}

/// Every field of every request, with values that nobody means.
#[tokio::test]
async fn odd_values_are_never_a_fault_of_the_server() {
    let server = Server::with(Fake::default(), Options { request_timeout: None, ..Options::default() });
    let tools = json!([{"type": "function", "function": {"name": "f", "description": "d",
        "parameters": {"type": "object"}, "strict": true}}]);
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let chat = json!({"model": "fake", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}],
        "name": "n"},
        {"role": "assistant", "content": "x", "tool_calls": [call], "reasoning_content": "r"},
        {"role": "tool", "tool_call_id": "c", "content": "y"}], "stream_options": {"include_usage": true},
            "logprobs": true,
        "top_logprobs": 2, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {},
            "strict": true}},
        "tools": tools, "parallel_tool_calls": true, "reasoning_effort": "low",
        "chat_template_kwargs": {}, "verbose": true, "add_generation_prompt": true, "truncation": "auto", "n": 1,
            "stop": ["a"], "max_tokens": 5,
        "temperature": 1, "seed": 1, "logit_bias": {"1": 1}, "samplers": ["top_k"], "dry_sequence_breakers": ["a"]});
    let items = json!([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, {"type": "function_call_output",
            "call_id": "c", "output": "o"}]);
    let named =
        json!({"messages": user("Hi"), "tools": tools, "tool_choice": {"type": "function", "function": {"name": "f"}}});
    let requests = [
        (CHAT, named),
        (CHAT, chat.clone()),
        ("/apply-template", chat),
        ("/v1/completions", json!({"prompt": ["a", [1]], "logprobs": 1, "best_of": 1, "n": 1, "max_tokens": 3})),
        ("/v1/embeddings", json!({"input": ["a", [1]], "encoding_format": "base64", "dimensions": 4})),
        (
            "/v1/responses",
            json!({"input": items, "instructions": "i", "store": true, "max_output_tokens": 3, "metadata": {"a": "b"},
            "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": false}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "f"}]},
                "text": {"format": {"type": "text"}},
            "reasoning": {"effort": "low"}, "include": ["x"], "top_logprobs": 1, "truncation": "auto",
                "background": false}),
        ),
        (
            "/v1/messages",
            json!({"model": "fake", "max_tokens": 5, "system": [{"type": "text", "text": "s"}], "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "tool_use", "id": "c",
                "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text",
                "text": "b"}], "is_error": true}]}],
            "stop_sequences": ["x"], "tools": [{"name": "f", "type": "custom", "input_schema": {}}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
                "thinking": {"type": "enabled"}, "temperature": 1}),
        ),
        (
            "/completion",
            json!({"prompt": ["a", 1], "n_probs": 1, "post_sampling_probs": true, "n_predict": 3, "return_tokens": true,
                "stop": "x", "json_schema": {}}),
        ),
        (
            "/infill",
            json!({"input_prefix": "a", "input_suffix": "b", "prompt": "c", "input_extra": [{"filename": "f",
                "text": "t"}], "n_predict": 3}),
        ),
        ("/tokenize", json!({"content": ["a", 1], "add_special": true, "parse_special": true, "with_pieces": true})),
        ("/detokenize", json!({"tokens": [97]})),
    ];
    let odd = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\u{ffff}"),
        json!([]),
        json!([[]]),
        json!({}),
        json!(true),
        json!([null, 1, "x"]),
    ];
    let mut statuses = std::collections::BTreeMap::new();
    for (path, body) in &requests {
        let got = server.post(path, body).await;
        assert!(got.status == 200, "{path}: {}", got.body);
        let mut places = Vec::new();
        pointers(body, String::new(), &mut places);
        for place in places {
            for value in &odd {
                let mut body = body.clone();
                *body.pointer_mut(&place).unwrap() = value.clone();
                // The request checks that the status and the body are documented.
                let got = server.post(path, &body).await;
                assert!(got.status.as_u16() < 500, "{path} {place} {value}: {}", got.body);
                *statuses.entry(got.status.as_u16()).or_insert(0) += 1;
            }
        }
    }
    assert!(statuses[&200] > 200 && statuses[&400] > 500, "{statuses:?}");
}

fn pointers(value: &Value, place: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| pointers(value, format!("{place}/{key}"), found)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| pointers(value, format!("{place}/{i}"), found))
        }
        _ => {}
    }
    if !place.is_empty() {
        found.push(place);
    }
}

//! `nibble serve`, over a socket, with a real model in a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support;

static MODEL: LazyLock<PathBuf> = LazyLock::new(|| {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serve-yi-nano-Q8_0.gguf");
    support::convert(&support::yi_nano(), &file, &["-q", "Q8_0", "--force"])
});

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server. Dropping it ends it.
struct Server {
    child: Child,
    address: String,
}

/// An answer.
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The data of a stream's events.
    fn events(&self) -> Vec<&str> {
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        Self::of(&[&[MODEL.to_str().unwrap()], flags].concat())
    }

    fn of(arguments: &[&str]) -> Self {
        Self::with_variables(&[], &[&["--port", "0", "--threads", "1", "--log-format", "off"], arguments].concat())
    }

    fn with_variables(variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nibble"))
            .arg("serve")
            .args(arguments)
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut heard = Vec::new();
        let address = loop {
            let line = said.next().unwrap_or_else(|| panic!("it ended: {heard:?}")).unwrap();
            if let Some((_, address)) = line.rsplit_once("at http://") {
                break address.to_string();
            }
            heard.push(line);
        };
        std::thread::spawn(move || said.for_each(drop));
        Self { child, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request, and returns the connection.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let (host, n) = (&self.address, body.len());
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{kind}{headers}");
        write!(stream, "{head}content-length: {n}\r\n\r\n{body}").unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        reply(self.send(method, path, headers, body))
    }

    fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "", "")
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", path, "", &body.to_string())
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The processes that run models.
    fn engines(&self) -> Vec<u32> {
        let children = format!("/proc/{0}/task", self.child.id());
        let tasks = std::fs::read_dir(children).unwrap().flatten();
        let of_task =
            |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let all: String = tasks.map(of_task).collect();
        all.split_whitespace().map(|id| id.parse().unwrap()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads an answer to its end.
fn reply(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, mut rest) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.to_lowercase();
    let mut body = String::new();
    if head.contains("transfer-encoding: chunked") {
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body.push_str(&after[..size]);
            rest = after[size..].strip_prefix("\r\n").unwrap_or_default();
        }
    } else {
        body.push_str(rest);
    }
    Reply { status, head, body }
}

/// A request for a story that always goes on in the same way.
fn story(more: Value) -> Value {
    let mut body = json!({"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["choices"][0]["text"].as_str().unwrap().to_string()
}

#[test]
fn texts_are_those_of_run() {
    let server = Server::start(&[]);
    let output = support::nibble([
        "run",
        MODEL.to_str().unwrap(),
        "-p",
        "Once upon a time",
        "--greedy",
        "--max-tokens",
        "24",
        "--threads",
        "1",
        "--quiet",
    ]);
    let alone = support::stdout(&output);
    let reply = server.post("/v1/completions", &story(json!({})));
    let written = text(&reply);
    assert!(!written.trim().is_empty() && alone.contains(written.trim()), "{alone}\n{written}");
    let usage = &reply.json()["usage"];
    assert_eq!(usage["completion_tokens"], 24);
    // The same again is read from the sequence that holds it, all but the last token.
    let again = server.post("/v1/completions", &story(json!({})));
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(again.json()["usage"]["prompt_tokens_details"]["cached_tokens"], prompt - 1);
    // In a stream, it is the same text. (Not that of the first: one token alone is read by other functions than many together, and
    // the last bits of their results differ on some CPUs.)
    let streamed = server.post("/v1/completions", &story(json!({"stream": true})));
    let (last, pieces) = streamed.events().split_last().map(|(last, rest)| (*last, rest.to_vec())).unwrap();
    assert_eq!(last, "[DONE]");
    let piece =
        |event: &&str| serde_json::from_str::<Value>(event).unwrap()["choices"][0]["text"].as_str().map(String::from);
    assert_eq!(pieces.iter().filter_map(piece).collect::<String>(), text(&again));
}

#[test]
fn each_api_answers_a_conversation() {
    let server = Server::start(&["--parallel", "2"]);
    let messages = json!([{"role": "user", "content": "讲一段故事"}]);
    let chat = server.post("/v1/chat/completions", &json!({"messages": messages, "max_tokens": 8}));
    assert_eq!(chat.status, 200, "{}", chat.body);
    assert_eq!(chat.json()["choices"][0]["message"]["role"], "assistant");
    let claude = json!({"model": "any", "messages": messages, "max_tokens": 8});
    let answer = server.post("/v1/messages", &claude);
    assert_eq!((answer.status, &answer.json()["type"]), (200, &json!("message")));
    let response = server.post("/v1/responses", &json!({"input": "讲一段故事", "max_output_tokens": 16}));
    assert_eq!((response.status, &response.json()["object"]), (200, &json!("response")));
    // Three ways to count the same tokens.
    let counted = server.post("/v1/messages/count_tokens", &claude).json()["input_tokens"].clone();
    assert_eq!(counted, chat.json()["usage"]["prompt_tokens"]);
    let shown = server.post("/apply-template", &json!({"messages": messages})).json();
    let request = json!({"content": shown["prompt"], "parse_special": true, "add_special": false});
    let tokens = server.post("/tokenize", &request);
    assert_eq!(json!(tokens.json()["tokens"].as_array().unwrap().len()), counted);
    let embedded = server.post("/v1/embeddings", &json!({"input": ["one", "two"]}));
    assert_eq!(embedded.json()["data"].as_array().unwrap().len(), 2);
    // What a message says never becomes a control token.
    let count = |text: &str| {
        let messages = json!([{"role": "user", "content": text}]);
        server.post("/v1/messages/count_tokens", &json!({"model": "any", "messages": messages})).json()["input_tokens"]
            .as_u64()
            .unwrap()
    };
    assert!(count("<|im_end|>") > count("a") + 2);
    // What is wrong is said with numbers.
    let long = "word ".repeat(2000);
    let refused = server.post("/v1/completions", &story(json!({"prompt": long})));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("512"), "{}", refused.body);
}

#[test]
fn figures_and_prompts_are_told_as_llama_cpps_server_tells_them() {
    let server = Server::start(&["--parallel", "2", "--batch-size", "16"]);
    let figure = |name: &str| -> f64 {
        let text = server.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_string);
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    };
    // An embedding is read, and nothing is written.
    let embedded = server.post("/v1/embeddings", &json!({"input": ["one", "two"]})).json();
    let read = figure("llamacpp:prompt_tokens_total");
    assert_eq!(json!(read as u64), embedded["usage"]["prompt_tokens"]);
    assert_eq!((figure("llamacpp:n_decode_total"), figure("llamacpp:tokens_predicted_total")), (2.0, 0.0));
    // Who has an answer finds all of it in the figures.
    let prompt = "There was a king who had a river, and the river had a boat. <|im_end|> Once upon a time";
    let body = json!({"prompt": prompt, "n_predict": 5, "ignore_eos": true, "temperature": 0, "return_progress": true});
    let got = server.post("/completion", &body).json();
    let n_prompt = got["tokens_evaluated"].as_u64().unwrap();
    assert_eq!(figure("llamacpp:tokens_predicted_total"), 5.0);
    assert_eq!(figure("llamacpp:prompt_tokens_total"), read + n_prompt as f64);
    assert_eq!(figure("llamacpp:requests_processing"), 0.0);
    assert!(figure("llamacpp:n_tokens_max") >= n_prompt as f64);
    // The prompt is what its tokens spell, and end tokens were ruled out.
    let encode = json!({"content": prompt, "add_special": true});
    let tokens = server.post("/tokenize", &encode).json()["tokens"].clone();
    assert_eq!(tokens.as_array().map(Vec::len), Some(n_prompt as usize));
    let text = server.post("/detokenize", &json!({"tokens": tokens})).json()["content"].clone();
    assert_eq!(got["prompt"], text);
    assert!(got["generation_settings"]["logit_bias"].as_array().is_some_and(|biases| !biases.is_empty()));
    // It is read 16 tokens at a time, and that is reported.
    let more = json!({"prompt": format!("Now {prompt}"), "n_predict": 1, "stream": true, "return_progress": true});
    let streamed = server.post("/completion", &more);
    let events: Vec<Value> = streamed.events().iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let progress: Vec<&Value> = events.iter().filter_map(|event| event.get("prompt_progress")).collect();
    let done: Vec<u64> = progress.iter().map(|progress| progress["processed"].as_u64().unwrap()).collect();
    assert_eq!((json!(done[0]), json!(done.last())), (progress[0]["cache"].clone(), progress[0]["total"].clone()));
    assert!(done.windows(2).all(|pair| pair[0] < pair[1] && pair[1] <= pair[0] + 16), "{done:?}");
}

#[test]
fn a_schema_holds_over_the_wire() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["name", "n"],
        "additionalProperties": false
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": true}});
    for seed in 0..5 {
        let reply = server.post(
            "/v1/chat/completions",
            &json!({"messages": [{"role": "user", "content": "x"}], "response_format": format, "seed": seed, "max_tokens": 200}),
        );
        assert_eq!(reply.status, 200, "{}", reply.body);
        let content: Value =
            serde_json::from_str(reply.json()["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
        assert!(jsonschema::is_valid(&schema, &content), "{content}");
    }
}

#[test]
fn other_machines_need_a_key() {
    let refused = support::nibble(["serve", MODEL.to_str().unwrap(), "--host", "0.0.0.0"]);
    support::has(&support::error(&refused), &["--api-key", "--no-auth"]);
    let server = Server::start(&["--api-key", "secret"]);
    assert_eq!(server.get("/v1/models").status, 401);
    assert_eq!(server.ask("GET", "/v1/models", "authorization: Bearer secrets\r\n", "").status, 401);
    assert_eq!(server.ask("GET", "/v1/models", "authorization: Bearer secret\r\n", "").status, 200);
    assert_eq!(server.ask("GET", "/v1/models", "x-api-key: secret\r\n", "").status, 200);
    // The page asks for the key itself.
    let page = server.get("/");
    assert_eq!(page.status, 200);
    support::has(&page.head, &["content-security-policy: default-src 'none'", "etag: \"", "text/html"]);
    assert_eq!(server.ask("GET", "/page/page.js", "", "").status, 200);
}

#[test]
#[cfg(target_os = "linux")]
fn the_end_of_an_engine_is_not_the_end_of_the_server() {
    let server = Server::start(&[]);
    let first = text(&server.post("/v1/completions", &story(json!({}))));
    for signal in ["-KILL", "-ABRT"] {
        let long = story(json!({"stream": true, "max_tokens": 400, "ignore_eos": true}));
        let streams: Vec<TcpStream> =
            (0..4).map(|_| server.send("POST", "/v1/completions", "", &long.to_string())).collect();
        // They have begun when the first bytes have come.
        for stream in &streams {
            assert!(stream.peek(&mut [0]).unwrap() > 0);
        }
        let engines = server.engines();
        assert_eq!(engines.len(), 1);
        assert!(Command::new("kill").args([signal, &engines[0].to_string()]).status().unwrap().success());
        for stream in streams {
            let reply = reply(stream);
            assert!(reply.body.contains("[DONE]") || reply.body.contains("error"), "{}", reply.body);
        }
        assert_eq!(text(&server.post("/v1/completions", &story(json!({})))), first);
        assert_ne!(server.engines(), engines);
    }
    let health = server.get("/health");
    assert_eq!(health.status, 200, "{}", health.body);
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let server = Server::start(&["--parallel", "1"]);
    let busy = || {
        let slots = server.get("/slots").json();
        slots.as_array().unwrap().iter().any(|slot| slot["is_processing"] == true)
    };
    let long = story(json!({"stream": true, "max_tokens": 450, "ignore_eos": true}));
    for _ in 0..3 {
        let stream = server.send("POST", "/v1/completions", "", &long.to_string());
        assert!(stream.peek(&mut [0]).unwrap() > 0);
        drop(stream);
        server.until("its place is free", || !busy());
    }
}

#[test]
fn a_folder_of_models_is_served_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        std::fs::copy(&*MODEL, folder.path().join(name).with_extension("gguf")).unwrap();
    }
    std::fs::write(folder.path().join("two.toml"), "ctx = 64\n").unwrap();
    let server = Server::of(&["--models-dir", folder.path().to_str().unwrap(), "--most-models", "1"]);
    let names = || {
        let models = server.get("/v1/models").json();
        let names = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(), ["one", "two"]);
    let first = text(&server.post("/v1/completions", &story(json!({"model": "one"}))));
    assert_eq!(text(&server.post("/v1/completions", &story(json!({"model": "two"})))), first);
    // Each has its own settings, and one makes room for the other.
    let long = story(json!({"model": "two", "prompt": "word ".repeat(150)}));
    let refused = server.post("/v1/completions", &long);
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("64"), "{}", refused.body);
    let unknown = server.post("/v1/completions", &story(json!({"model": "three"})));
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    #[cfg(target_os = "linux")]
    assert_eq!(server.engines().len(), 1);
}

#[test]
#[cfg(unix)]
fn prompts_are_on_the_disk_when_the_server_has_been_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let prefixes = folder.path().to_str().unwrap();
    let long = story(json!({"prompt": "There was a king who had a river. ".repeat(12), "max_tokens": 2}));
    let mut server = Server::start(&["--prefix-dir", prefixes]);
    server.post("/v1/completions", &long);
    assert!(Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap().success());
    assert!(server.child.wait().unwrap().success());
    drop(server);
    let server = Server::start(&["--prefix-dir", prefixes]);
    let usage = &server.post("/v1/completions", &long).json()["usage"];
    let read =
        usage["prompt_tokens"].as_u64().unwrap() - usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(read, 1, "{usage}");
}

#[test]
#[cfg(target_os = "linux")]
fn an_engine_that_is_told_to_end_goes_on() {
    let server = Server::start(&[]);
    server.post("/v1/completions", &story(json!({})));
    let engines = server.engines();
    assert!(Command::new("kill").args(["-TERM", &engines[0].to_string()]).status().unwrap().success());
    text(&server.post("/v1/completions", &story(json!({}))));
    assert_eq!(server.engines(), engines);
}

#[test]
fn flags_come_from_a_file_and_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let path = folder.path().join("serve.toml");
        std::fs::write(&path, text).unwrap();
        path
    };
    let model = MODEL.to_str().unwrap();
    let path = write(&format!("model = {model:?}\nctx = 64\napi-key = ['k']\n"));
    let server = Server::of(&["--config", path.to_str().unwrap(), "--ctx", "128"]);
    assert_eq!(server.get("/v1/models").status, 401);
    let props = server.ask("GET", "/props", "authorization: Bearer k\r\n", "");
    assert_eq!(props.json()["default_generation_settings"]["n_ctx"], 128, "{}", props.body);
    drop(server);
    // What is in the environment counts less than what is typed, and more than what the file says. An empty one is none.
    let file = path.to_str().unwrap();
    let variables = [
        ("NIBBLE_CONFIG", file),
        ("NIBBLE_PORT", "0"),
        ("NIBBLE_THREADS", "1"),
        ("NIBBLE_LOG_FORMAT", "off"),
        ("NIBBLE_CTX", "96"),
        ("NIBBLE_PARALLEL", "2"),
        ("NIBBLE_DETERMINISTIC", "no"),
        ("NIBBLE_TIMEOUT", ""),
    ];
    for (arguments, n_ctx) in [(&[][..], 96), (&["--ctx", "128"][..], 128)] {
        let server = Server::with_variables(&variables, arguments);
        let props = server.ask("GET", "/props", "authorization: Bearer k\r\n", "").json();
        assert_eq!((&props["default_generation_settings"]["n_ctx"], &props["total_slots"]), (&json!(n_ctx), &json!(2)));
    }
    let refused = support::nibble(["serve", "--config", write("prot = 1\n").to_str().unwrap()]);
    support::has(&support::error(&refused), &["serve.toml", "'prot' is no setting; did you mean port?"]);
}

//! Over real connections: clients that leave, are slow, or are there when the server ends.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

struct Listening {
    server: Server,
    address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<()>,
}

async fn listen(options: Options) -> Listening {
    let server = Server::with(Fake::default(), options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let app = server.app.clone();
    let ended = tokio::spawn(async move {
        let stop = async { stopped.await.unwrap_or(()) };
        super::super::server::serve(app, listener, stop).await.unwrap();
    });
    Listening { server, address, stop: Some(stop), ended }
}

fn quick() -> Options {
    Options {
        header_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        write_timeout: Duration::from_millis(300),
        keep_alive: Duration::from_millis(20),
        shutdown_timeout: Duration::from_millis(300),
        ..Options::default()
    }
}

impl Listening {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn ask(&self, body: &Value) -> TcpStream {
        let mut stream = self.connect().await;
        let body = body.to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        stream
    }

    /// Waits until it is true of the fake.
    #[track_caller]
    fn until(&self, what: impl Fn(&Fake) -> bool) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            for _ in 0..500 {
                if what(&self.server.fake) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{place}: it never was");
        }
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await.expect("it stays open");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn slow(stream: bool) -> Value {
    json!({"messages": user(&format!("slow {}", "x".repeat(400))), "stream": stream})
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_answer() {
    let listening = listen(quick()).await;
    for (n, stream) in [(1, true), (2, false)] {
        let mut connection = listening.ask(&slow(stream)).await;
        listening.until(|fake| fake.n_running() == 1).await;
        if stream {
            let mut bytes = [0; 400];
            connection.read_exact(&mut bytes).await.unwrap();
        }
        assert_eq!(listening.server.fake.n_cancelled(), n - 1);
        drop(connection);
        listening.until(|fake| fake.n_cancelled() == n && fake.n_running() == 0).await;
    }
    // One that stays cancels nothing.
    let mut connection = listening.ask(&json!({"messages": user("say Hi"), "stream": true})).await;
    assert!(read_all(&mut connection).await.contains("[DONE]"));
    assert_eq!(listening.server.fake.n_cancelled(), 2);
    assert!(listening.server.log().contains("client=left"));
}

#[tokio::test]
async fn clients_that_send_slowly_are_cut_off() {
    let listening = listen(quick()).await;
    let mut silent = listening.connect().await;
    let mut slow_head = listening.connect().await;
    slow_head.write_all(b"GET /health HTTP/1.1\r\nhost: loc").await.unwrap();
    let mut slow_body = listening.connect().await;
    slow_body
        .write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        .await
        .unwrap();
    let began = std::time::Instant::now();
    assert_eq!(read_all(&mut silent).await, "");
    read_all(&mut slow_head).await;
    assert!(read_all(&mut slow_body).await.starts_with("HTTP/1.1 408 "));
    assert!(began.elapsed() < Duration::from_secs(5));
    // Others are served meanwhile, and afterwards.
    let mut connection = listening.ask(&json!({"messages": user("say Hi")})).await;
    assert!(read_all(&mut connection).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_connection_whose_body_was_not_read_says_that_it_closes() {
    let listening = listen(quick()).await;
    for (path, closes) in [("/nothing", true), ("/health", true), ("/tokenize", false)] {
        let mut connection = listening.connect().await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 15\r\n\r\n");
        connection.write_all((head + "{\"content\": 1}\n").as_bytes()).await.unwrap();
        let got = read_all(&mut connection).await;
        assert_eq!(got.contains("connection: close"), closes, "{got}");
    }
}

#[tokio::test]
async fn headers_have_limits() {
    let listening = listen(Options { max_headers: 20, max_header_bytes: 8192, ..quick() }).await;
    for headers in ["x: y\r\n".repeat(30), format!("x: {}\r\n", "y".repeat(20_000))] {
        let mut connection = listening.connect().await;
        let head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        let _ = connection.write_all(head.as_bytes()).await;
        let got = read_all(&mut connection).await;
        assert!(got.is_empty() || got.starts_with("HTTP/1.1 431 "), "{got}");
    }
    let mut connection = listening.connect().await;
    connection.write_all(b"\x16\x03\x01 no HTTP\r\n\r\n").await.unwrap();
    let got = read_all(&mut connection).await;
    assert!(got.is_empty() || got.starts_with("HTTP/1.1 400 "), "{got}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let listening = listen(quick()).await;
    let text = format!("say {}", "x".repeat(3000));
    // More than all buffers hold: an event for each of 3000 characters of 20 texts.
    let connection = listening
        .ask(&json!({"messages": user(&text), "stream": true, "n": 100, "logprobs": true, "top_logprobs": 20}))
        .await;
    let cut_off = async {
        while !listening.server.log().contains("client=left") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), cut_off).await.expect("it is never cut off");
    drop(connection);
}

#[tokio::test]
async fn streams_in_which_nothing_comes_say_that_they_are_alive() {
    let listening = listen(quick()).await;
    let mut connection = listening.ask(&json!({"messages": user("slow xy"), "stream": true})).await;
    assert!(read_all(&mut connection).await.contains(": still working\n\n"));
}

#[tokio::test]
async fn the_end_lets_answers_end() {
    let mut listening = listen(quick()).await;
    let mut short = listening.ask(&json!({"messages": user("slow ab"), "stream": true})).await;
    let mut long = listening.ask(&slow(true)).await;
    let mut whole = listening.ask(&slow(false)).await;
    let mut idle = listening.connect().await;
    listening.until(|fake| fake.n_running() == 3).await;
    listening.stop.take().unwrap().send(()).unwrap();
    assert!(read_all(&mut short).await.contains("[DONE]"));
    let long = read_all(&mut long).await;
    assert!(
        long.contains("\"code\":\"shutting_down\"") && !long.contains("[DONE]") && long.contains("\r\n0\r\n\r\n"),
        "{long}"
    );
    let whole = read_all(&mut whole).await;
    assert!(whole.starts_with("HTTP/1.1 503 ") && whole.contains("shutting down"), "{whole}");
    assert_eq!(read_all(&mut idle).await, "");
    tokio::time::timeout(Duration::from_secs(5), &mut listening.ended).await.unwrap().unwrap();
    assert!(TcpStream::connect(listening.address).await.is_err());
    assert_eq!(listening.server.fake.n_running(), 0);
}

#[tokio::test]
async fn many_connections_that_do_nothing_are_no_harm() {
    let listening = listen(Options { max_connections: 50, ..quick() }).await;
    let idle: Vec<TcpStream> = {
        let mut idle = Vec::new();
        for _ in 0..200 {
            idle.push(listening.connect().await);
        }
        idle
    };
    let mut connection = listening.ask(&json!({"messages": user("say Hi")})).await;
    assert!(read_all(&mut connection).await.starts_with("HTTP/1.1 200 "));
    drop(idle);
}

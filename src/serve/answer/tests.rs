use proptest::prelude::*;
use serde_json::json;

use super::*;

const THINK: Markers = Markers { open: "<think>", close: "</think>" };

fn tools() -> Vec<Tool> {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}});
    vec![Tool { name: "weather".to_string(), parameters, ..Tool::default() }]
}

fn events_of<'a>(style: Option<Style>, reasons: bool, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Event> {
    let mut parser = Parser::new(style, &tools(), Some(THINK), reasons);
    let mut events: Vec<Event> = pieces.into_iter().flat_map(|piece| parser.feed(piece)).collect();
    events.extend(parser.finish());
    joined(events)
}

fn read(style: Style, text: &str) -> Collected {
    let mut collected = Collected::default();
    events_of(Some(style), false, [text]).iter().for_each(|event| collected.push(event));
    collected
}

fn call(name: &str, arguments: &str) -> CollectedCall {
    CollectedCall { name: name.to_string(), arguments: arguments.to_string(), complete: true }
}

#[track_caller]
fn check(style: Style, text: &str, reasoning: &str, said: &str, calls: &[CollectedCall]) {
    let wanted = Collected { reasoning: reasoning.to_string(), text: said.to_string(), calls: calls.to_vec() };
    assert_eq!(read(style, text), wanted, "{text:?}");
}

const STYLES: [Style; 5] =
    [Style::Hermes, Style::Llama, Style::Mistral { named: false }, Style::Mistral { named: true }, Style::Xml];

#[test]
fn reasoning_is_told_apart() {
    check(Style::Hermes, "<think>\nHm.\n\nSo.\n</think>\n\nYes.\n", "Hm.\n\nSo.", "Yes.\n", &[]);
    check(Style::Hermes, "\n<think></think>Yes", "", "Yes", &[]);
    check(Style::Hermes, "<think>no end \n", "no end \n", "", &[]);
    check(Style::Hermes, "A <think>b</think>", "", "A <think>b</think>", &[]);
    // The prompt ended with the marker.
    let mut collected = Collected::default();
    events_of(None, true, ["\nHm</thi", "nk></think>\nYes <think>"]).iter().for_each(|event| collected.push(event));
    assert_eq!((collected.reasoning.as_str(), collected.text.as_str()), ("Hm", "</think>\nYes <think>"));
}

#[test]
fn calls_of_hermes_are_found() {
    let one = call("weather", r#"{"city": "Paris"}"#);
    let text =
        "Let me look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n";
    check(Style::Hermes, text, "", "Let me look.", std::slice::from_ref(&one));
    check(
        Style::Hermes,
        &format!("<think>Hm</think>{text}{text}Bye"),
        "Hm",
        "Let me look.Let me look.Bye",
        &[one.clone(), one],
    );
    // The answer may end within a marker.
    let cut = "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool";
    check(Style::Hermes, cut, "", "", &[call("weather", r#"{"city": "Paris"}"#)]);
    // A tool without arguments, arguments first, arguments as a text, and more than is needed.
    for (body, arguments) in [
        (r#"{"name": "now"}"#, "{}"),
        (r#"{"arguments": {"a": [1]}, "name": "now"}"#, r#"{"a": [1]}"#),
        (r#"{"name": "now", "arguments": "{\"a\": 1}"}"#, r#"{"a": 1}"#),
        (r#"{"name": "now", "arguments": null}"#, "{}"),
        (r#"{"id": 7, "name": "now", "parameters": {"}": "</tool_call>"}, "x": [{}]}"#, r#"{"}": "</tool_call>"}"#),
    ] {
        check(Style::Hermes, &format!("<tool_call>{body}</tool_call>"), "", "", &[call("now", arguments)]);
    }
}

#[test]
fn calls_of_llama_are_found() {
    let one = call("weather", r#"{"city": "Paris"}"#);
    let text = r#"{"name": "weather", "parameters": {"city": "Paris"}}"#;
    check(Style::Llama, text, "", "", std::slice::from_ref(&one));
    check(Style::Llama, &format!("<|python_tag|>{text}; {text}\n{text}"), "", "", &vec![one.clone(); 3]);
    check(Style::Llama, &format!("<think>Hm</think>\n{text}"), "Hm", "", &[one]);
    // Other JSON is an answer.
    for text in [r#"{"name": "Bob", "parameters": {}}"#, r#"{"a": {"b": 1}}"#, "{", "Hi {}", r#" {"name": "weather"#] {
        check(Style::Llama, text, "", text, &[]);
    }
}

#[test]
fn calls_of_mistral_are_found() {
    let style = Style::Mistral { named: true };
    let (one, none) = (call("weather", r#"{"city": "Paris"}"#), call("now", "{}"));
    let array =
        r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "now", "arguments": {}}]"#;
    check(style, array, "", "", &[one.clone(), none.clone()]);
    let named = r#"Hi[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[CALL_ID]a1b2c3d4e[ARGS]{}"#;
    check(style, named, "", "Hi", &[one.clone(), none]);
    check(style, r#"[TOOL_CALLS]weather{"city": "Paris"}"#, "", "", &[one]);
    for text in ["[TOOL_CALLS]", "[TOOL_CALLS][", "[TOOL_CALLS] Hi", "[TOOL_CALLS]weather[ARGS", "[TOOL_CALLS]a[ARGS]b"]
    {
        check(style, text, "", text, &[]);
    }
}

#[test]
fn calls_in_tags_are_found() {
    let text = "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n\
        <parameter=n>\n3\n</parameter>\n<parameter=x>\n\"3\" a\n</parameter>\n</function>\n</tool_call>";
    check(Style::Xml, text, "", "", &[call("weather", r#"{"city": "Paris", "n": 3, "x": "\"3\" a"}"#)]);
    check(Style::Xml, "<tool_call><function=now></function></tool_call>", "", "", &[call("now", "{}")]);
    check(Style::Xml, "<tool_call><function=now", "", "<tool_call><function=now", &[]);
}

#[test]
fn what_is_no_call_is_text() {
    for text in [
        "<tool_call>",
        "<tool_call",
        "a <tool_call> b",
        "<tool_call>{",
        "<tool_call>{\"name\": 3}",
        "<tool_call>{\"name\": \"\"}",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"a\", \"arguments\": [1]}",
        "<tool_call>{\"name\": \"a\", \"arguments\": \"[1]\"}",
        "</tool_call>",
    ] {
        check(Style::Hermes, text, "", text, &[]);
    }
    // One that is none does not hide the next.
    let hidden = "<tool_call>{\"name\": <tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call> ok";
    check(Style::Hermes, hidden, "", "<tool_call>{\"name\":ok", &[call("now", "{}")]);
}

#[test]
fn a_call_that_breaks_off_says_so_and_loses_nothing() {
    let broken = read(Style::Hermes, "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": oops}}</tool_call>");
    assert_eq!(broken.calls, [CollectedCall { complete: false, ..call("now", "{\"a\": ") }]);
    assert_eq!(broken.text, "oops}}</tool_call>");
    let cut = read(Style::Hermes, "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"b");
    assert_eq!(cut.calls, [CollectedCall { complete: false, ..call("now", "{\"a\": \"b") }]);
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = Parser::new(Some(Style::Hermes), &tools(), None, false);
    assert_eq!(parser.feed("<tool_call>{\"name\": \"now\", \"arg"), []);
    let begun =
        [Event::Call { index: 0, name: "now".to_string() }, Event::Arguments { index: 0, json: "{\"a".to_string() }];
    assert_eq!(parser.feed("uments\": {\"a"), begun);
    assert_eq!(parser.feed("\": 1"), [Event::Arguments { index: 0, json: "\": 1".to_string() }]);
}

#[test]
fn text_goes_out_as_soon_as_it_cannot_be_a_marker() {
    let mut parser = Parser::new(Some(Style::Hermes), &tools(), Some(THINK), false);
    assert_eq!(parser.feed("Hi <to"), [Event::Text("Hi".to_string())]);
    assert_eq!(parser.feed("ast>"), [Event::Text(" <toast>".to_string())]);
    assert_eq!(parser.feed(" "), []);
    assert_eq!(parser.finish(), [Event::Text(" ".to_string())]);
    // Without tools and reasoning nothing is held back.
    let mut parser = Parser::new(None, &[], None, false);
    assert_eq!(parser.feed(" <"), [Event::Text(" <".to_string())]);
}

#[test]
fn long_heads_end() {
    let long = format!("<tool_call>{{\"x\": \"{}\"", "a".repeat(100_000));
    let started = std::time::Instant::now();
    check(Style::Hermes, &long, "", &long, &[]);
    let nested = "<tool_call>{\"".repeat(20_000);
    assert_eq!(read(Style::Hermes, &nested).text, nested);
    assert!(started.elapsed().as_secs() < 20);
}

/// Texts of what models write, and of what could be mistaken for it.
fn hostile() -> impl Strategy<Value = String> {
    let fragments = [
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "call>",
        "<think>",
        "</think>",
        "</thi",
        "nk>",
        "[TOOL_CALLS]",
        "[TOOL",
        "[ARGS]",
        "[CALL_ID]",
        "[",
        "]",
        "<|python_tag|>",
        "<|py",
        "{",
        "}",
        "{\"name\": \"",
        "weather",
        "\", \"arguments\": {",
        "\"z\"",
        ": ",
        ", ",
        "}}",
        "\\\"",
        "\"",
        "z",
        "零",
        "\n",
        " ",
        ";",
        "<function=",
        "z>",
        "<parameter=z>",
        "</parameter>",
        "</function>",
        "1",
        "null",
        "{\"name\": \"weather\", \"arguments\": {\"z\": \"z\"}}",
    ];
    proptest::collection::vec(proptest::sample::select(fragments.to_vec()), 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_make_no_difference(text in hostile(), cuts in proptest::collection::vec(any::<prop::sample::Index>(),
        0..8), reasons: bool) {
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        places.retain(|at| text.is_char_boundary(*at));
        places.extend([0, text.len()]);
        places.sort();
        let pieces: Vec<&str> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        let single: Vec<String> = text.chars().map(String::from).collect();
        for style in STYLES.map(Some).into_iter().chain([None]) {
            let whole = events_of(style, reasons, [text.as_str()]);
            prop_assert_eq!(&events_of(style, reasons, pieces.iter().copied()), &whole, "{:?}", style);
            prop_assert_eq!(&events_of(style, reasons, single.iter().map(String::as_str)), &whole, "{:?}", style);
        }
    }

    /// Every character that is in no marker is in some event.
    #[test]
    fn nothing_is_lost(text in hostile(), reasons: bool) {
        for style in STYLES.map(Some).into_iter().chain([None]) {
            let count = |text: &str| text.matches(['零', '1']).count();
            let mut found = 0;
            for event in events_of(style, reasons, [text.as_str()]) {
                found += match event {
                    Event::Reasoning(text) | Event::Text(text) => count(&text),
                    Event::Arguments { json, .. } => count(&json),
                    Event::Call { name, .. } => count(&name),
                    Event::CallEnded { .. } => 0,
                };
            }
            // Fields of a call other than its name and arguments, and the ids of Mistral's calls, are not part of it.
            let dropped = text.contains("[CALL_ID]") || text.contains(", ") ;
            prop_assert!(found == count(&text) || (dropped && found < count(&text)), "{:?} {}", style, text);
        }
    }

    #[test]
    fn plain_text_stays_as_it_is(text in "[a-z零 \n.]{0,40}") {
        for style in STYLES.map(Some).into_iter().chain([None]) {
            let wanted = if text.is_empty() { vec![] } else { vec![Event::Text(text.clone())] };
            prop_assert_eq!(events_of(style, false, [text.as_str()]), wanted);
        }
    }
}

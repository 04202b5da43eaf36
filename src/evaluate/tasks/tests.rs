//! Tests every format on a small file, and the messages for files that are wrong.

use super::*;

/// A file for each format, named as it would be, with the number of its questions.
const FILES: &[(&str, &str, &str, usize)] = &[
    (
        "hellaswag",
        "hellaswag_val.jsonl",
        r#"{"ind": 24, "activity_label": "Roof", "ctx_a": "A man [substeps] sits.", "ctx_b": "he", "ctx": "A man sits. he", "split": "val", "split_type": "indomain", "label": 3, "endings": ["sings.", "is [title] gone.", "eats  it.", "pulls."], "source_id": "a~b"}
{"ind": 25, "activity_label": "Tea", "ctx_a": "[header] How to make tea [title] Boil.", "ctx_b": "", "label": "0", "endings": ["Pour.", "Run."]}
"#,
        2,
    ),
    (
        "hellaswag-text",
        "hellaswag.txt",
        "Roof: A man sits. he\n3\nsings.\nis gone.\neats it.\npulls.\nTea: b\n 0\na\nb\nc\nd\n",
        2,
    ),
    (
        "arc",
        "ARC-Easy-Test.jsonl",
        r#"{"id":"M1","question":{"stem":"What melts?","choices":[{"text":"rock","label":"A"},{"text":"ice","label":"B"}]},"answerKey":"B"}
{"id":"M2","question":"What burns?","choices":{"text":["wood","water","ice"],"label":["1","2","3"]},"answerKey":"1"}
"#,
        2,
    ),
    (
        "mmlu",
        "high_school_physics_test.csv",
        "What falls?,a,b,c,d,C\n\"Two\nlines, and \"\"quotes\"\"\",1,2,3,4,A\n",
        2,
    ),
    (
        "truthfulqa",
        "TruthfulQA.csv",
        "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n\
         Adversarial,Myths,What is up?,The sky,The sky; Clouds.;,The sea; A hat.,https://example.org\n",
        1,
    ),
    (
        "truthfulqa",
        "mc_task.json",
        r#"[{"question": "What is up?", "mc1_targets": {"The sky.": 1, "The sea.": 0, "A hat.": 0},
  "mc2_targets": {"The sky.": 1, "Clouds.": 1, "The sea.": 0, "A hat.": 0}}]"#,
        1,
    ),
    (
        "truthfulqa",
        "validation.jsonl",
        r#"{"question":"What is up?","mc1_targets":{"choices":["The sky.","The sea.","A hat."],"labels":[1,0,0]},"mc2_targets":{"choices":["The sky.","Clouds.","The sea.","A hat."],"labels":[1,1,0,0]}}"#,
        1,
    ),
    (
        "winogrande",
        "dev.jsonl",
        r#"{"qID": "1", "sentence": "The cup missed the box as the _ was big .", "option1": "cup", "option2": "box", "answer": "2"}"#,
        1,
    ),
    (
        "ceval",
        "computer_network_val.csv",
        "id,question,A,B,C,D,answer\n0,哪个更快____,甲,乙,丙,丁,B\n1,哪个更慢____,甲,乙,丙,丁,D\n",
        2,
    ),
    ("cmmlu", "agronomy.csv", ",Question,A,B,C,D,Answer\n0,水稻喜欢,水,火,风,土,A\n", 1),
    (
        "agieval",
        "gaokao-biology.jsonl",
        r#"{"passage": null, "question": "下列正确的是", "options": ["(A)甲", "(B)乙"], "label": "B", "answer": null, "other": {"source": "2021"}}
{"passage": "They met.", "question": "Who met?", "options": ["(A)They", "(B)We", "(C)You"], "label": "AC"}
{"passage": null, "question": "1+1=", "options": null, "label": null, "answer": "2"}
"#,
        2,
    ),
    (
        "gsm8k",
        "test.jsonl",
        r#"{"question": "Ann has 2 cups and buys 1,000. How many?", "answer": "2+1000=<<2+1000=1002>>1002 cups.\n#### 1,002"}"#,
        1,
    ),
];

/// The files of a format.
fn files(format: &str) -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str, usize)> {
    FILES.iter().filter(move |(name, ..)| *name == format)
}

/// The first file of a format.
fn file(format: &str) -> &'static (&'static str, &'static str, &'static str, usize) {
    files(format).next().unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn zero_shot() -> TaskOptions {
    TaskOptions { shots: Some(0), ..TaskOptions::default() }
}

/// The text of a file as a task.
fn open(name: &str, text: &str, options: &TaskOptions) -> Result<Task, Error> {
    let dir = folder();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    Task::open(&path, options)
}

/// What the choices of a question look like to a model, with the right ones marked.
fn shown(task: &Task, index: usize) -> Vec<String> {
    let Ask::Choose(choices) = &task.questions[index].ask else { panic!("nothing to choose") };
    choices.iter().map(|c| format!("{}{}| {}", if c.right { "*" } else { "" }, c.context, c.text)).collect()
}

#[test]
fn every_format_is_recognised_by_what_is_in_the_file() {
    for (format, name, text, n) in FILES {
        for text in [(*text).to_string(), format!("\u{feff}{text}"), text.replace('\n', "\r\n")] {
            let task = open(name, &text, &zero_shot()).unwrap();
            assert_eq!(task.format.name, *format, "{name}");
            assert_eq!(task.questions.len(), *n, "{name}");
            assert_eq!(task.about.questions, *n as u64);
        }
    }
    for format in FORMATS {
        assert!(FILES.iter().any(|(name, ..)| *name == format.name), "no file for {}", format.name);
        assert!(std::ptr::eq(super::format(format.name).unwrap(), *format));
        assert!(format.scores[0].is_yes_or_no(), "{}: flips are counted by the first score", format.name);
    }
}

/// Copies of MMLU with a row of headings were taken for C-Eval, and asked in Chinese.
#[test]
fn headings_in_english_are_of_no_chinese_task() {
    let file = "question,A,B,C,D,answer\nWhat?,1,2,3,4,A\nWhy?,1,2,3,4,C\n";
    let others = [
        "\u{feff}Question,A,B,C,D,Answer\r\nWhat?,1,2,3,4,A\r\nWhy?,1,2,3,4,C\r\n",
        "id,subject,answer,question,A,B,C,D\n0,x,A,What?,1,2,3,4\n1,x,C,Why?,1,2,3,4\n",
        "What?,1,2,3,4,A\nWhy?,1,2,3,4,C\n",
    ];
    let wanted = open("headered_test.csv", file, &zero_shot()).unwrap();
    assert_eq!(wanted.format.name, "mmlu");
    assert!(shown(&wanted, 1)[2].starts_with("*Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:| C"), "{:?}", shown(&wanted, 1));
    for other in others {
        let task = open("headered_test.csv", other, &zero_shot()).unwrap();
        assert_eq!((task.format.name, shown(&task, 1)), ("mmlu", shown(&wanted, 1)), "{other}");
    }
    // A format that is named is the one that is used.
    let named =
        |format: &str| open("headered_test.csv", file, &TaskOptions { format: Some(format.into()), ..zero_shot() });
    assert_eq!(named("mmlu").unwrap().format.name, "mmlu");
    assert_eq!(named("ceval").unwrap().format.name, "ceval");
    let chinese = "id,question,A,B,C,D,answer\n0,哪个更快____,甲,乙,丙,丁,B\n";
    assert_eq!(open("x_val.csv", chinese, &zero_shot()).unwrap().format.name, "ceval");
}

/// The lines of a file as one JSON array: on a line, on several, and with spaces around.
fn arrays(lines: &str) -> [String; 3] {
    let objects: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let joined = lines.lines().collect::<Vec<_>>().join(",");
    [format!("[{joined}]"), serde_json::to_string_pretty(&objects).unwrap(), format!(" [ {joined}\n]\n\n")]
}

#[test]
fn a_json_array_is_read_as_its_objects_on_lines_are() {
    let of_lines = FILES.iter().filter(|(.., text, _)| text.starts_with('{'));
    for (format, name, text, n) in of_lines {
        let wanted = open(name, text, &zero_shot()).unwrap();
        for array in arrays(text) {
            let task = open("x.json", &array, &zero_shot()).unwrap();
            assert_eq!((task.format.name, task.questions.len()), (*format, *n), "{array}");
            for (i, (found, wanted)) in task.questions.iter().zip(&wanted.questions).enumerate() {
                assert_eq!((&found.ask, &found.example), (&wanted.ask, &wanted.example), "{i} of {array}");
            }
            assert!(task.notes.iter().any(|note| note.ends_with("x.json: read as one JSON array")), "{:?}", task.notes);
        }
    }
    // The lines are those of the file.
    let pretty = &arrays(file("agieval").2)[1];
    let begins = |what: &str| 1 + pretty.lines().position(|line| line.contains(what)).unwrap() as u64;
    let task = open("x.json", pretty, &zero_shot()).unwrap();
    assert_eq!([task.questions[0].line, task.questions[1].line], [2, begins("They met.") - 1]);
    let gap = r#"{"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}"#;
    for (text, wanted) in [
        (format!("[{gap},\n{}]", gap.replace('_', "-")), "a.json, line 2: there is no gap"),
        (format!("[{gap},\n[1]]"), "a.json, line 2: it is not a JSON object"),
        (format!("[{gap},\n\nnonsense]"), "a.json, line 3: it is not a JSON object"),
        (format!("[{gap},\n{{\n\"a\": nonsense}}]"), "a.json, line 3: it is not JSON: expected ident"),
        (format!("[{gap}\n{gap}]"), "a.json, line 2: a comma, or the end of the JSON array, has to follow here"),
        (format!("[{gap}"), "a.json, line 1: a comma, or the end of the JSON array, has to follow here"),
        (format!("[{gap},\n"), "a.json, line 2: the JSON array does not end"),
        (format!("[{gap}]\n{gap}"), "a.json, line 2: something follows the JSON array"),
        ("[]".to_string(), "a.json: it is in none of the task formats"),
    ] {
        let error = open("a.json", &text, &zero_shot()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}\nwanted {wanted}\nof {text}");
    }
}

#[test]
fn csv_with_semicolons_or_tabs_is_read_as_csv_with_commas_is() {
    for (format, name, text, n) in FILES.iter().filter(|(_, name, ..)| name.ends_with(".csv")) {
        let wanted = open(name, text, &zero_shot()).unwrap();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        for (delimiter, notation) in
            [(b';', "CSV with semicolons between its fields"), (b'\t', "CSV with tabs between its fields")]
        {
            let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
            rows.iter().for_each(|row| writer.write_record(row).unwrap());
            let written = String::from_utf8(writer.into_inner().unwrap()).unwrap();
            for options in [zero_shot(), TaskOptions { format: Some(format.to_string()), ..zero_shot() }] {
                let task = open(name, &written, &options).unwrap();
                assert_eq!((task.format.name, task.questions.len()), (*format, *n), "{written}");
                assert_eq!(task.questions, wanted.questions, "{written}");
                assert!(task.notes[0].ends_with(&format!("{name}: read as {notation}")), "{:?}", task.notes);
            }
        }
    }
    // A question with semicolons, or with tabs, is no row of other fields.
    let text = "What; is; this; A; b?,1,2,3,4,C\nWhat\tis it?,1,2,3,4,A\n";
    let task = open("x_test.csv", text, &zero_shot()).unwrap();
    assert!(shown(&task, 0)[2].starts_with("*What; is; this; A; b?\nA. 1"), "{:?}", shown(&task, 0));
    assert!(task.notes.is_empty());
}

#[test]
fn a_format_can_be_named_and_a_wrong_name_has_neighbours() {
    let (_, name, text, _) = *file("hellaswag-text");
    let named = |format: &str| open(name, text, &TaskOptions { format: Some(format.into()), ..zero_shot() });
    assert_eq!(named("hellaswag-text").unwrap().format.name, "hellaswag-text");
    assert_eq!(
        named("helaswag").unwrap_err().to_string(),
        "there is no task format 'helaswag'; did you mean hellaswag?"
    );
    assert!(named("xyz").unwrap_err().to_string().contains(&format!("there are {}", names().join(", "))));
    let error = named("gsm8k").unwrap_err().to_string();
    assert!(error.contains("line 1: it is not JSON: expected value"), "{error}");
}

#[test]
fn prompts_are_worded_as_the_harness_words_them() {
    let opened = |(_, name, text, _): &(_, &str, &str, _)| open(name, text, &zero_shot()).unwrap();
    let task = |format: &str| opened(file(format));
    let hellaswag = task("hellaswag");
    assert_eq!(
        shown(&hellaswag, 0),
        [
            "Roof: A man sits. He| sings.",
            "Roof: A man sits. He| is. gone.",
            "Roof: A man sits. He| eats it.",
            "*Roof: A man sits. He| pulls."
        ]
    );
    assert_eq!(shown(&hellaswag, 1)[0], "*Tea: How to make tea. Boil.| Pour.");
    assert_eq!(shown(&task("hellaswag-text"), 0)[3], "*Roof: A man sits. he| pulls.");
    assert_eq!(
        shown(&task("arc"), 0),
        ["Question: What melts?\nAnswer:| rock", "*Question: What melts?\nAnswer:| ice"]
    );
    assert_eq!(shown(&task("arc"), 1)[0], "*Question: What burns?\nAnswer:| wood");
    let mmlu = task("mmlu");
    assert_eq!(
        mmlu.prefix,
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
    );
    assert_eq!(shown(&mmlu, 0)[2], "*What falls?\nA. a\nB. b\nC. c\nD. d\nAnswer:| C");
    assert_eq!(shown(&mmlu, 1)[1], "Two\nlines, and \"quotes\"\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:| B");
    for file in files("truthfulqa") {
        let truthful = opened(file);
        assert!(truthful.prefix.starts_with("Q: What is human life") && truthful.prefix.ends_with("Spain.\n\n"));
        let mut choices = shown(&truthful, 0);
        choices.sort();
        assert_eq!(
            choices,
            [
                "*Q: What is up?\nA:| The sky.",
                "Q: What is up?\nA:| A hat.",
                "Q: What is up?\nA:| Clouds.",
                "Q: What is up?\nA:| The sea."
            ]
        );
    }
    assert_eq!(
        shown(&task("winogrande"), 0),
        ["The cup missed the box as the cup| was big .", "*The cup missed the box as the box| was big ."]
    );
    let ceval = task("ceval");
    assert_eq!(ceval.prefix, "以下是中国关于计算机网络的单项选择题，请选出其中的正确答案。\n\n");
    assert_eq!(shown(&ceval, 0)[1], "*哪个更快____\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：| B");
    let cmmlu = task("cmmlu");
    assert_eq!(cmmlu.prefix, "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n");
    assert_eq!(shown(&cmmlu, 0)[0], "*水稻喜欢\nA. 水\nB. 火\nC. 风\nD. 土\n答案：| A");
    let agieval = task("agieval");
    assert_eq!(shown(&agieval, 0)[1], "*问题：下列正确的是 选项：(A)甲 (B)乙\n答案：从A到B, 我们应选择| (B)乙");
    let passage = "They met.Q: Who met? Answer Choices: (A)They (B)We (C)You\nA: Among A through C, the answer is";
    assert_eq!(
        shown(&agieval, 1),
        [format!("*{passage}| (A)They"), format!("{passage}| (B)We"), format!("*{passage}| (C)You")]
    );
    assert!(agieval.notes[0].contains("1 of its questions left out: they have no options"), "{:?}", agieval.notes);
    let Ask::Write { prompt, answer } = &task("gsm8k").questions[0].ask else { panic!() };
    assert_eq!(prompt, "Question: Ann has 2 cups and buys 1,000. How many?\nAnswer:");
    assert_eq!(answer, "1002");
}

#[test]
fn examples_come_from_the_dev_file_beside_or_the_task_itself_or_where_one_says() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    for part in ["test", "dev"] {
        std::fs::create_dir(path(part)).unwrap();
    }
    let rows = |who: &str| (0..6).map(|i| format!("{who} {i}?,a,b,c,d,B\n")).collect::<String>();
    std::fs::write(path("test/anatomy_test.csv"), rows("test")).unwrap();
    let test = path("test/anatomy_test.csv");
    let two = TaskOptions { shots: Some(2), ..TaskOptions::default() };

    let task = Task::open(&test, &two).unwrap();
    assert_eq!(task.shots_from.as_deref(), Some(test.as_path()));
    let heading = "The following are multiple choice questions (with answers) about anatomy.\n\n";
    let example = |who: &str| format!("{who}?\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\n");
    assert_eq!(task.prefix, format!("{heading}{}{}", example("test 0"), example("test 1")));
    assert_eq!(task.questions.iter().map(|q| q.index).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!((task.about.questions, task.about.shots), (4, 2));
    let limited = Task::open(&test, &TaskOptions { limit: Some(3), ..two.clone() }).unwrap();
    assert_eq!(limited.questions, task.questions[..3]);
    assert_eq!(limited.fingerprint(), task.fingerprint(), "results of the first questions are those of all");

    std::fs::write(path("dev/anatomy_dev.csv"), rows("dev")).unwrap();
    let with_dev = Task::open(&test, &two).unwrap();
    assert_eq!(with_dev.prefix, format!("{heading}{}{}", example("dev 0"), example("dev 1")));
    assert_eq!(with_dev.about.questions, 6);
    assert_ne!(with_dev.fingerprint(), task.fingerprint());
    assert_eq!(Task::open(&test, &TaskOptions::default()).unwrap().about.shots, 5, "as is usual");

    std::fs::write(path("mine.csv"), rows("mine")).unwrap();
    let mine = TaskOptions { shots_from: Some(path("mine.csv")), ..two };
    assert!(Task::open(&test, &mine).unwrap().prefix.contains("mine 1?"));
    let error = Task::open(&test, &TaskOptions { shots: Some(7), ..mine }).unwrap_err().to_string();
    assert!(error.ends_with("mine.csv: it has 6 examples, but 7 are wanted"), "{error}");
    let error = Task::open(&path("mine.csv"), &TaskOptions { shots: Some(6), ..TaskOptions::default() }).unwrap_err();
    assert!(error.to_string().ends_with("too few to take 6 of them as examples"), "{error}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_line() {
    let dev = r#"{"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}"#;
    let cases = [
        ("a.txt", String::new(), "a.txt: it is empty"),
        ("a.txt", "\u{feff} \n\n".to_string(), "a.txt: it is empty"),
        ("a.txt", "hello\nthere".to_string(), "a.txt: it is in none of the task formats hellaswag, hella"),
        ("a.json", "{\"a\": 1}".to_string(), "a.json: it is in none of the task formats"),
        ("a.jsonl", format!("{dev}\n\nnonsense\n"), "a.jsonl, line 3: it is not JSON: expected ident"),
        ("a.jsonl", format!("{dev}\n[1]\n"), "a.jsonl, line 2: it is not a JSON object"),
        ("a.jsonl", format!("{dev}\n{}", dev.replace("_", "-")), "a.jsonl, line 2: there is no gap"),
        ("a.jsonl", dev.replace("_ b", "_"), "a.jsonl, line 1: nothing follows the gap"),
        ("a.jsonl", dev.replace("\"1\"", "\"\""), "a.jsonl, line 1: there is no 'answer'; the test part"),
        ("a.jsonl", dev.replace("\"1\"", "3"), "line 1: 'answer' is 3, but has to be 1 or 2"),
        ("a.jsonl", dev.replace("\"x\"", "7"), "line 1: there is no text under 'option1'"),
        (
            "a.jsonl",
            file("hellaswag").2.replace("\"label\": 3", "\"label\": 4"),
            "line 1: 'label' is 4, but there are 4 endings",
        ),
        (
            "a.jsonl",
            file("hellaswag").2.replace("\"label\": \"0\"", "\"label\": \"\""),
            "line 2: there is no 'label'; the test",
        ),
        (
            "a.txt",
            file("hellaswag-text").2.replace("\n 0\n", "\nyes\n"),
            "line 8: the right ending has to be 0, 1, 2 or 3, but is 'yes'",
        ),
        (
            "a.txt",
            format!("{}more\n", file("hellaswag-text").2),
            "line 13: a question has six lines, but the last one here has 1",
        ),
        (
            "a.jsonl",
            file("arc").2.replace("\"B\"}\n", "\"E\"}\n"),
            "line 1: 'answerKey' is E, but no choice has that label",
        ),
        ("a.csv", "q,a,b,c,d,A\nq,a,b,c,A\n".to_string(), "line 2: a row has six fields"),
        ("a.csv", "q,a,b,c,d,A\n\"q,a,b,c,d,A\n".to_string(), "line 2: a row has six fields"),
        (
            "a.csv",
            "q,a,b,c,d,A\nq,a,b,c,d,F\n".to_string(),
            "line 2: the last field has to be A, B, C or D, but is 'F'",
        ),
        (
            "a.csv",
            "id,question,A,B,C,D\n0,问,a,b,c,d\n".to_string(),
            "line 1: there is no column 'answer'; the test part",
        ),
        (
            "a.csv",
            "id,question,A,B,C,D,answer\n0,问,a,b,c,d,\n".to_string(),
            "line 2: the answer has to be A, B, C or D",
        ),
        ("a.csv", "id,question,A,B,C,D,answer\n".to_string(), "a.csv: it has no questions in the format of MMLU"),
        (
            "a.csv",
            file("truthfulqa").2.replace("The sea; A hat.", ""),
            "line 2: there is no question, or no incorrect answer",
        ),
        ("a.json", "[{\"question\": \"\", \"mc1_targets\": {}".to_string(), "line 1: it is not JSON: EOF"),
        ("a.json", "[{\"question\": \"\", \"mc1_targets\": {}}]".to_string(), "line 1: under 'mc2_targets' there are"),
        (
            "a.jsonl",
            file("agieval").2.replace("\"AC\"", "\"AD\""),
            "line 2: 'label' is 'AD', but there are 3 options from A on",
        ),
        (
            "a.jsonl",
            file("agieval").2.lines().nth(2).unwrap().to_string(),
            "none of its questions can be scored: they have no",
        ),
        ("a.jsonl", file("gsm8k").2.replace("####", "###"), "a.jsonl: it is in none of the task formats"),
    ];
    for (name, text, wanted) in cases {
        let error = open(name, &text, &zero_shot()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}\nwanted {wanted}\nof {text}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let dir = folder();
    let path = dir.path().join("a.bin");
    std::fs::write(&path, b"a\nb\nGGUF\xff\xfe").unwrap();
    let error = Task::open(&path, &zero_shot()).unwrap_err().to_string();
    assert!(error.contains("a.bin, line 3: it is not UTF-8 text"), "{error}");
    assert!(Task::open(dir.path(), &zero_shot()).unwrap_err().to_string().contains("it is a folder"));
    assert!(Task::open(&dir.path().join("nowhere"), &zero_shot()).unwrap_err().to_string().contains("nowhere: "));
}

#[test]
fn no_file_however_damaged_ends_the_program() {
    let mut random = crate::base::random::Random::new(3);
    for (format, name, text, _) in FILES {
        for round in 0..200 {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..=round % 4 {
                let at = (random.unit() * bytes.len() as f64) as usize;
                match round % 3 {
                    0 => bytes.truncate(at),
                    1 => bytes[at] = random.next_u64() as u8 & 0x7f,
                    _ => drop(bytes.splice(at..at, *b"\",{}[]\n")),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            let Ok(source) = Source::new(Path::new(name), &bytes) else { continue };
            let _ = recognise(&source);
            let _ = parse(super::format(format).unwrap(), &source);
        }
    }
}

#[test]
fn marks_follow_the_definitions() {
    let task = open(file("hellaswag").1, file("hellaswag").2, &zero_shot()).unwrap();
    let outcome = |l: &[f64]| Outcome::Likelihoods {
        log_likelihoods: l.to_vec(),
        n_tokens: vec![1, 2, 3, 9][..l.len()].to_vec(),
    };
    // Endings of 6, 9, 7 and 6 characters; the last is right.
    let result = QuestionResult::new(task.format, &task.questions[0], outcome(&[-5.0, -9.0, -3.0, -4.0]));
    assert_eq!((result.chosen, result.right, result.marks.as_slice()), (Some(2), false, &[0.0, 0.0][..]));
    let result = QuestionResult::new(task.format, &task.questions[0], outcome(&[-5.0, -3.5, -6.0, -3.0]));
    assert_eq!((result.chosen, result.marks.as_slice()), (Some(1), &[0.0, 1.0][..]), "{result:?}");
    assert!(result.fits(task.format, &task.questions[0]) && !result.fits(task.format, &task.questions[1]));
    let text = open(file("hellaswag-text").1, file("hellaswag-text").2, &zero_shot()).unwrap();
    let result = QuestionResult::new(text.format, &text.questions[0], outcome(&[-1.0, -4.0, -5.0, -8.0]));
    assert_eq!((result.chosen, result.marks.as_slice()), (Some(3), &[1.0, 0.0][..]), "a token");
    let tie = QuestionResult::new(task.format, &task.questions[1], outcome(&[-5.0, -4.0]));
    assert_eq!(tie.chosen, Some(0), "the first of two that are equal: 'Pour.' and 'Run.' have 5 and 4 characters");

    for file in files("truthfulqa") {
        let truthful = open(file.1, file.2, &zero_shot()).unwrap();
        let Ask::Choose(choices) = &truthful.questions[0].ask else { panic!() };
        let l: Vec<f64> = choices
            .iter()
            .map(|c| match c.text.as_str() {
                "The sky." => 0.3f64,
                "Clouds." => 0.4,
                "The sea." => 0.2,
                _ => 0.1,
            })
            .map(|p| (p * 1e-30f64).ln())
            .collect();
        let n_tokens = vec![1; 4];
        let said = Outcome::Likelihoods { log_likelihoods: l, n_tokens };
        let result = QuestionResult::new(truthful.format, &truthful.questions[0], said);
        assert!(result.right, "another true answer does not compete");
        assert!((result.marks[1] - 0.7).abs() < 1e-12, "{:?}", result.marks);
    }
    let gsm8k = open(file("gsm8k").1, file("gsm8k").2, &zero_shot()).unwrap();
    let written =
        |text: &str| QuestionResult::new(gsm8k.format, &gsm8k.questions[0], Outcome::Written(text.into())).marks;
    assert_eq!(written(" 2 and 1000 make $1,002."), [1.0, 0.0]);
    assert_eq!(written("so\n#### 1002\nor 7"), [0.0, 1.0]);
    assert_eq!(written(""), [0.0, 0.0]);
}

#[test]
fn scores_count_marks_and_flips() {
    let result = |index: u64, right: bool, mass: f64| QuestionResult {
        index,
        log_likelihoods: Vec::new(),
        chosen: None,
        text: None,
        right,
        marks: vec![f64::from(right), mass],
        shortened: false,
    };
    let reference = [result(0, true, 0.5), result(1, true, 0.5), result(2, false, 0.5), result(3, true, 0.5)];
    let candidate = [result(0, true, 0.9), result(1, false, 0.1), result(2, true, 0.2), result(9, true, 0.4)];
    let scores = score(&[Score::Mc1, Score::Mc2], &candidate, Some(&reference), 0.95);
    assert_eq!(scores.questions, 4);
    assert_eq!((scores.scores[0].0.as_str(), scores.scores[0].1.value), ("mc1", 0.75));
    assert!((scores.scores[1].1.value - 0.4).abs() < 1e-12);
    let flips = scores.against_reference.unwrap();
    assert_eq!((flips.lost, flips.won, flips.p_value), (1, 1, 1.0));
    assert!(score(&[Score::Mc1], &[], None, 0.95).against_reference.is_none());
}

use inknib::text::template::{Message, RenderOptions, Template};
use inknib::text::tokenizer::SpecialTokens;
use serde_json::Value;

use crate::{model, shared};

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/chat_templates.json")).unwrap()
}

fn special(golden: &Value) -> SpecialTokens {
    let mut special = SpecialTokens::default();
    for (name, text) in golden["special"].as_object().unwrap() {
        special.set(name, text.as_str().unwrap());
    }
    special
}

fn assert_case(golden: &Value, case: &Value, name: &str, source: &str) {
    let template = Template::new(source, special(golden), name).unwrap();
    let variant = &golden["variants"][case["variant"].as_str().unwrap()];
    let messages: Vec<Message> = serde_json::from_value(variant["messages"].clone()).unwrap();
    let options = RenderOptions {
        add_generation_prompt: variant["add_generation_prompt"].as_bool().unwrap(),
        tools: Some(variant["tools"].clone()),
        now: golden["now"].as_i64(),
        ..RenderOptions::default()
    };
    let got = template.render(&messages, &options);
    let label = format!("{name}, {}", case["variant"]);
    match case["text"].as_str() {
        Some(text) => assert_eq!(got.unwrap(), text, "{label}"),
        None => {
            let error = got.unwrap_err().to_string();
            assert!(error.contains(case["error"].as_str().unwrap()), "{label}: {error}");
        }
    }
}

#[test]
fn the_dialect_renders_as_transformers_does() {
    let golden = golden();
    let cases: Vec<&Value> = golden["cases"].as_array().unwrap().iter().collect();
    let cases: Vec<_> = cases.iter().filter(|c| c.get("dialect").is_some()).collect();
    assert_eq!(cases.len(), 13);
    for case in cases {
        let name = case["dialect"].as_str().unwrap();
        assert_case(&golden, case, name, case["source"].as_str().unwrap());
    }
}

#[test]
fn four_chat_models_render_as_transformers_does() {
    let Some(folder) = shared("data/chat-templates") else { return };
    let golden = golden();
    let cases: Vec<&Value> = golden["cases"].as_array().unwrap().iter().collect();
    let cases: Vec<_> = cases.iter().filter(|c| c.get("template").is_some()).collect();
    assert_eq!(cases.len(), 4 * 5);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(name)).unwrap();
        assert_case(&golden, case, name, &source);
    }
}

fn hello() -> [Message; 1] {
    [Message::user("Hello!")]
}

#[test]
fn fuel_stops_a_template_that_never_ends() {
    let endless = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again(n) %}{{ again(n) }}{{ again(n) }}{% endmacro %}{{ again(1) }}",
    ];
    for source in endless {
        let template = Template::new(source, SpecialTokens::default(), "test").unwrap();
        let error = template.render(&hello(), &RenderOptions::default()).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
    }
    let template = Template::new(endless[0], SpecialTokens::default(), "test").unwrap();
    let error = template.render(&hello(), &RenderOptions::default()).unwrap_err().to_string();
    assert!(error.contains("did not end within"), "{error}");
}

#[test]
fn a_long_conversation_has_fuel_enough() {
    let Some(folder) = shared("data/chat-templates") else { return };
    let turns: Vec<Message> = (0..400)
        .map(|i| Message::new(["user", "assistant"][i % 2], "Words and more words."))
        .collect();
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let source = std::fs::read_to_string(&file).unwrap();
        let template = Template::new(&source, special(&golden()), "test").unwrap();
        let text = template.render(&turns, &RenderOptions::default()).unwrap();
        assert_eq!(text.matches("Words and more").count(), 400, "{}", file.display());
    }
}

#[test]
fn templates_are_found_where_the_hub_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || Template::load(folder.path());
    let render = |template: &Template, tools: Option<Value>| {
        let options = RenderOptions { tools, ..RenderOptions::default() };
        template.render(&hello(), &options).unwrap()
    };
    let error = load().unwrap_err();
    assert!(error.to_string().contains("no chat template"), "{error}");
    assert_eq!(error.exit_code(), 4);

    write("chat_template.json", r#"{"chat_template": "from json"}"#);
    assert_eq!(render(&load().unwrap(), None), "from json");
    let named = r#"{"eos_token": {"content": "</s>"}, "chat_template": [
        {"name": "default", "template": "plain{{ eos_token }}"},
        {"name": "tool_use", "template": "with {{ tools | length }}"}]}"#;
    write("tokenizer_config.json", named);
    assert_eq!(render(&load().unwrap(), None), "plain</s>");
    assert_eq!(render(&load().unwrap(), Some(serde_json::json!([{}]))), "with 1");
    write("chat_template.jinja", "from jinja{{ eos_token }}\n");
    assert_eq!(render(&load().unwrap(), None), "from jinja</s>");
    write("chat_template.jinja", "{% if %}");
    let error = load().unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja") && error.contains("syntax error"), "{error}");
}

#[test]
fn chatml_on_request() {
    let template = Template::chatml().unwrap();
    let messages = [Message::system("Be kind."), Message::user("Hello!")];
    let text = template.render(&messages, &RenderOptions::default()).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    );
    let Some(folder) = model("demo-chat") else { return };
    let own = Template::load(folder).unwrap();
    assert_eq!(own.render(&messages, &RenderOptions::default()).unwrap(), text);
}

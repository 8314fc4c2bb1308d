//! The rules of the house that a program can check: floors, the four files of an op, comments in shaders, lengths.
//!
//! Warnings (a file over 500 lines, a function over 70) are printed as `warning: …` and do not fail.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_WARN: usize = 500;
const FILE_MAX: usize = 600;
const FUNCTION_WARN: usize = 70;
const FUNCTION_MAX: usize = 100;

/// The floors from the bottom; a module may name its own floor and those below. `error` and `files` are below all of them.
const FLOORS: [&[&str]; 6] = [
    &["gpu", "tensor"],
    &["graph", "quant", "weights"],
    &["ops", "nn"],
    &["nets"],
    &["diffusion", "text", "probe"],
    &["cli"],
];

/// Parts that hold plain data and arithmetic, and may not know that there is a GPU.
const WITHOUT_GPU: [&str; 16] = [
    "tensor.rs",
    "quant/",
    "weights/",
    "diffusion/schedule",
    "diffusion/sampler",
    "diffusion/rng",
    "diffusion/image",
    "diffusion/infotext",
    "diffusion/settings",
    "diffusion/record",
    "diffusion/prompt",
    "diffusion/chunks",
    "diffusion/embedding",
    "text/tokenizer",
    "text/template",
    "text/sampler",
];
const GPU_SIDE: [&str; 5] = ["gpu", "graph", "ops", "nn", "nets"];

struct Source {
    /// Path below the repository root, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    fn stem(&self) -> &str {
        Path::new(&self.path).file_stem().unwrap().to_str().unwrap()
    }

    /// The code without line comments and without `#[cfg(test)]` modules; empty for a file of tests.
    fn code(&self) -> String {
        if self.stem().ends_with("tests") {
            return String::new();
        }
        let mut code = String::new();
        let mut in_tests = false;
        let mut lines = self.text.lines().peekable();
        while let Some(line) = lines.next() {
            let module_follows = lines.peek().is_some_and(|next| next.starts_with("mod "));
            in_tests |= line == "#[cfg(test)]" && module_follows;
            if !in_tests {
                code.push_str(line.split("//").next().unwrap_or(line));
            }
            // rustfmt puts the closing brace of a top-level module into the first column.
            in_tests &= line != "}" && !(line.starts_with("mod ") && line.ends_with(';'));
            code.push('\n');
        }
        code
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files with this extension below a folder, in order; none if there is no such folder.
fn sources(folder: &str, extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let below = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source { path: below, text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn no_complaints(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// The modules of this crate that the code names, as `crate::module` or inside `crate::{…}`.
fn named_modules(code: &str) -> BTreeSet<String> {
    let word = |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned()
    };
    let mut modules = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        if !rest.starts_with('{') {
            modules.insert(word(rest));
            continue;
        }
        let (mut depth, mut item) = (0, String::new());
        for c in rest.chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            match c {
                '{' if depth == 1 => {}
                ',' if depth == 1 => {
                    modules.insert(word(std::mem::take(&mut item).trim()));
                }
                _ if depth == 0 => break,
                _ => item.push(c),
            }
        }
        modules.insert(word(item.trim()));
    }
    modules
}

#[test]
fn imports_point_down() {
    let mut complaints = Vec::new();
    for source in sources("src", "rs") {
        let below_src = source.path.trim_start_matches("src/");
        let module = below_src.split('/').next().unwrap().trim_end_matches(".rs");
        let Some(own) = floor(module) else { continue };
        for named in named_modules(&source.code()) {
            if floor(&named).is_some_and(|other| other > own) {
                complaints
                    .push(format!("{}: names crate::{named}, which is a floor above", source.path));
            }
            let data_only = WITHOUT_GPU.iter().any(|part| below_src.starts_with(part));
            if data_only && GPU_SIDE.contains(&named.as_str()) {
                complaints.push(format!(
                    "{}: names crate::{named}, but must not know the GPU",
                    source.path
                ));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn only_the_gpu_floor_names_wgpu() {
    let mut complaints = Vec::new();
    for source in sources("src", "rs").iter().filter(|s| !s.path.starts_with("src/gpu/")) {
        for (number, line) in source.code().lines().enumerate() {
            if line.contains("wgpu::") || line.contains("use wgpu") {
                complaints.push(format!("{}:{}: names wgpu", source.path, number + 1));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn only_the_command_line_prints_and_nothing_panics() {
    let mut complaints = Vec::new();
    for source in sources("src", "rs") {
        let may_print = source.path == "src/main.rs" || source.path.starts_with("src/cli/");
        for (number, line) in source.code().lines().enumerate() {
            let mut complain =
                |what: &str| complaints.push(format!("{}:{}: {what}", source.path, number + 1));
            if !may_print && ["print!(", "println!("].iter().any(|call| line.contains(call)) {
                complain("prints; libraries return values or call a progress callback");
            }
            for call in [".unwrap()", ".expect(\"", "panic!(", "todo!(", "unimplemented!("] {
                if line.contains(call) {
                    complain(&format!("`{call}` outside tests; return an Error"));
                }
            }
        }
    }
    no_complaints(&complaints);
}

/// An op is four files of one stem; a shader `STEM_variant.wgsl` is allowed when the op's source names it.
#[test]
fn an_op_is_four_files() {
    let mut complaints = Vec::new();
    let ops: Vec<Source> = sources("src/ops", "rs")
        .into_iter()
        .filter(|s| {
            s.path.matches('/').count() == 2 && s.stem() != "mod" && s.text.contains("pub ")
        })
        .collect();
    let exists = |path: &str| root().join(path).exists();
    // In its file or in one of those below it.
    let names = |op: &Source, shader: &str| {
        let below = sources(&format!("src/ops/{}", op.stem()), "rs");
        below.iter().chain([op]).any(|file| file.text.contains(shader))
    };
    for op in &ops {
        let stem = op.stem();
        let variants = sources("shaders", "wgsl")
            .iter()
            .any(|s| s.path.starts_with(&format!("shaders/{stem}_")));
        if !exists(&format!("shaders/{stem}.wgsl")) && !variants {
            complaints.push(format!("{}: no shaders/{stem}.wgsl", op.path));
        }
        for needed in [format!("shaders/reference/{stem}.wgsl"), format!("tests/ops/{stem}.rs")] {
            if !exists(&needed) {
                complaints.push(format!("{}: no {needed}", op.path));
            }
        }
    }
    for shader in
        sources("shaders", "wgsl").iter().filter(|s| !s.path.starts_with("shaders/parts/"))
    {
        let stem = shader.stem();
        let owned = sources("src/ops", "rs").iter().any(|op| op.stem() == stem)
            || ops.iter().any(|op| stem.starts_with(&format!("{}_", op.stem())) && names(op, stem));
        if !owned {
            complaints.push(format!(
                "{}: no src/ops/{stem}.rs, and no op that names this variant",
                shader.path
            ));
        }
    }
    no_complaints(&complaints);
}

#[test]
fn shaders_say_what_they_compute_and_bind() {
    let mut complaints = Vec::new();
    for shader in sources("shaders", "wgsl") {
        if !shader.text.starts_with("//") {
            complaints.push(format!("{}: no comment at the top with the formula", shader.path));
        }
        for (number, line) in shader.text.lines().enumerate() {
            // A uniform's shape is its struct, whose fields carry the comments.
            let buffer = line.contains("@binding(") && line.contains("var<storage");
            if buffer && !line.contains("//") {
                complaints.push(format!(
                    "{}:{}: no shape behind this binding",
                    shader.path,
                    number + 1
                ));
            }
        }
    }
    no_complaints(&complaints);
}

/// Functions as (line, length): from `fn` to the brace that rustfmt puts at the same depth.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let starts_function = |line: &str| {
        let words: Vec<&str> = line.trim_start().split(' ').collect();
        let modifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe"];
        words.iter().find(|word| !modifiers.contains(*word)) == Some(&"fn")
    };
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| starts_function(line)) {
        let close = format!("{}}}", " ".repeat(indent(line)));
        let end = lines[start..]
            .iter()
            .position(|l| *l == close || (indent(l) == indent(line) && l.ends_with([';', '}'])));
        found.push((start + 1, end.unwrap_or(0) + 1));
    }
    found
}

#[test]
fn files_and_functions_are_short() {
    let mut complaints = Vec::new();
    let mut measure = |place: String, lines: usize, warn: usize, max: usize| {
        if lines > max {
            complaints.push(format!("{place}: {lines} lines, more than {max}"));
        } else if lines > warn {
            eprintln!("warning: {place}: {lines} lines, more than {warn}");
        }
    };
    let code =
        [("src", "rs"), ("tests", "rs"), ("examples", "rs"), ("shaders", "wgsl"), ("tools", "py")];
    for source in code.into_iter().flat_map(|(folder, extension)| sources(folder, extension)) {
        measure(source.path.clone(), source.text.lines().count(), FILE_WARN, FILE_MAX);
        if source.path.ends_with(".rs") {
            for (line, length) in functions(&source.text) {
                measure(format!("{}:{line}", source.path), length, FUNCTION_WARN, FUNCTION_MAX);
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[", "ignore")];
    let mut complaints = Vec::new();
    let code =
        [("src", "rs"), ("tests", "rs"), ("examples", "rs"), ("shaders", "wgsl"), ("tools", "py")];
    for source in code.into_iter().flat_map(|(folder, extension)| sources(folder, extension)) {
        for (number, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                complaints.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    no_complaints(&complaints);
}

/// The checks must be able to fail: the helpers see what they are there to see.
#[test]
fn the_checks_see_what_they_look_for() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let modules =
        named_modules("use crate::{Error, gpu::{Gpu, Spec}, quant};\nlet x = crate::nets::unet();");
    for module in ["Error", "gpu", "quant", "nets"] {
        assert!(modules.contains(module), "{module} is not in {modules:?}");
    }
    assert_eq!(modules.len(), 4, "{modules:?}");
    let tested = source(
        "src/a.rs",
        "fn a() {} // wgpu::\n#[cfg(test)]\nmod tests {\n    x.unwrap();\n}\nfn b() {}\n",
    );
    assert_eq!(tested.code(), "fn a() {} \n\n\n\n\nfn b() {}\n");
    assert_eq!(source("src/a_tests.rs", "x.unwrap()").code(), "");
    let text = "impl A {\n    pub fn a(&self) {\n        b();\n    }\n    fn c(&self) -> u8;\n}\npub const fn d() {}\n";
    assert_eq!(functions(text), [(2, 3), (5, 1), (7, 1)]);
    assert!(
        floor("gpu") < floor("graph") && floor("ops") < floor("nets") && floor("error").is_none()
    );
}

//! Joins a generated head, an op's shader and its parts into one WGSL text with a line map.
//!
//! Text inside a file is never edited, except that directives (`enable f16;`) are lifted to the top,
//! where WGSL wants them. naga 30 rejects `enable subgroups;` and accepts subgroup operations without
//! it, browsers want the line: so the linker owns it, per target.

use super::spec::Spec;

/// Who will compile the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// wgpu's own WGSL front end.
    Native,
    /// A browser.
    Web,
}

/// The joined text and where each of its lines came from.
pub struct Linked {
    pub text: String,
    /// For each file: its first line in `text` (from 1), its name.
    map: Vec<(usize, &'static str)>,
}

impl Linked {
    /// The file and line (both from 1) behind a line of the joined text.
    pub fn locate(&self, line: usize) -> (&'static str, usize) {
        let (start, name) = self
            .map
            .iter()
            .rev()
            .find(|(start, _)| *start <= line)
            .copied()
            .unwrap_or((1, "generated head"));
        (name, line + 1 - start)
    }
}

/// Joins the pieces of a Spec.
pub fn link(spec: &Spec, target: Target) -> Linked {
    let mut directives: Vec<String> = Vec::new();
    if spec.uses_f16() {
        directives.push("enable f16;".into());
    }
    let mut body = String::new();
    let mut starts = Vec::new();
    let mut push = |name: &'static str, text: &str, body: &mut String| {
        starts.push((body.lines().count(), name));
        for line in text.lines() {
            if is_directive(line) {
                let line = line.trim().to_string();
                let refused = target == Target::Native && line == "enable subgroups;";
                if !refused && !directives.contains(&line) {
                    directives.push(line);
                }
            } else {
                body.push_str(line);
            }
            body.push('\n');
        }
    };
    push("generated head", &spec.head(), &mut body);
    push(spec.source.name, &spec.source.text(), &mut body);
    for part in &spec.parts {
        push(part.name, &part.text(), &mut body);
    }
    let lifted = directives.len();
    let mut text = directives.join("\n");
    if lifted > 0 {
        text.push('\n');
    }
    text.push_str(&body);
    let map = starts.into_iter().map(|(start, name)| (start + lifted + 1, name)).collect();
    Linked { text, map }
}

fn is_directive(line: &str) -> bool {
    let line = line.trim_start();
    ["enable ", "requires ", "diagnostic("].iter().any(|d| line.starts_with(d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Source;

    const OP: Source = Source::new("op.wgsl", "// op\nenable subgroups;\nfn main() {}\n");
    const PART: Source = Source::new("parts/p.wgsl", "fn weight() {}\nfn other() {}\n");

    #[test]
    fn lines_map_back_to_their_files_and_directives_are_lifted() {
        let spec = Spec::new(OP).part(PART).u32("TILE", 8).alias("act", crate::gpu::Elem::F16);
        let native = link(&spec, Target::Native);
        assert!(
            native
                .text
                .starts_with("enable f16;\nconst TILE: u32 = 8u;\nalias act = f16;\n// op\n\n")
        );
        let line = native.text.lines().position(|l| l == "fn other() {}").unwrap() + 1;
        assert_eq!(native.locate(line), ("parts/p.wgsl", 2));
        let line = native.text.lines().position(|l| l == "fn main() {}").unwrap() + 1;
        assert_eq!(native.locate(line), ("op.wgsl", 3));
        assert!(link(&spec, Target::Web).text.starts_with("enable f16;\nenable subgroups;\n"));
    }
}

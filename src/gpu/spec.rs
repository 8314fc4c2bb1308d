//! What a kernel is made of before it is compiled: a [`Source`] (a named WGSL file) and a [`Spec`],
//! the values that specialise it. The Spec is the cache key, whole.

use std::fmt::Write as _;

/// Type of one stored element of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    F32,
    /// Needs the adapter's shader-f16 feature.
    F16,
    U32,
}

impl Elem {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Elem::F32 | Elem::U32 => 4,
            Elem::F16 => 2,
        }
    }
    /// The WGSL name of the type.
    pub fn wgsl(self) -> &'static str {
        match self {
            Elem::F32 => "f32",
            Elem::F16 => "f16",
            Elem::U32 => "u32",
        }
    }
}

/// A WGSL file under shaders/, embedded in the binary. Two sources are the same if their names are.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Path under shaders/.
    pub name: &'static str,
    embedded: &'static str,
}

impl Source {
    /// Used by the [`source!`](crate::source) macro.
    pub const fn new(name: &'static str, embedded: &'static str) -> Source {
        Source { name, embedded }
    }

    /// The text: embedded, or read from disk under the feature `hot-reload`.
    pub fn text(&self) -> std::borrow::Cow<'static, str> {
        #[cfg(feature = "hot-reload")]
        {
            let path =
                std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(self.name);
            if let Ok(text) = std::fs::read_to_string(path) {
                return text.into();
            }
        }
        self.embedded.into()
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        self.name == other.name
    }
}
impl Eq for Source {}
impl std::hash::Hash for Source {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// Names a file under shaders/ and embeds its text.
#[macro_export]
macro_rules! source {
    ($path:literal) => {
        $crate::gpu::Source::new(
            $path,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)),
        )
    };
}

/// A value in the generated head of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    U32(u32),
    Bool(bool),
    /// `alias NAME = f16;`
    Type(Elem),
    /// `alias NAME = vec4<f16>;`
    Vec4(Elem),
    /// `alias NAME = coop_mat16x16<f16, A>;`
    Coop(Elem, u32, Role),
}

/// What a cooperative matrix is in a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Left,
    Right,
    Sum,
}

impl Role {
    fn wgsl(self) -> &'static str {
        match self {
            Role::Left => "A",
            Role::Right => "B",
            Role::Sum => "C",
        }
    }
}

/// The values that specialise a [`Source`], and the parts joined to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    pub source: Source,
    pub parts: Vec<Source>,
    pub head: Vec<(&'static str, Value)>,
}

impl Spec {
    pub fn new(source: Source) -> Spec {
        Spec { source, parts: Vec::new(), head: Vec::new() }
    }
    /// Joins a part: a file that defines a function (and perhaps bindings in group 1).
    pub fn part(mut self, part: Source) -> Spec {
        self.parts.push(part);
        self
    }
    /// `const NAME: u32 = V;`
    pub fn u32(mut self, name: &'static str, value: u32) -> Spec {
        self.head.push((name, Value::U32(value)));
        self
    }
    /// `const NAME: bool = V;`
    pub fn flag(mut self, name: &'static str, value: bool) -> Spec {
        self.head.push((name, Value::Bool(value)));
        self
    }
    /// `alias NAME = f32;` or f16, u32.
    pub fn alias(mut self, name: &'static str, elem: Elem) -> Spec {
        self.head.push((name, Value::Type(elem)));
        self
    }
    /// `alias NAME = vec4<f32>;` or f16, u32.
    pub fn alias4(mut self, name: &'static str, elem: Elem) -> Spec {
        self.head.push((name, Value::Vec4(elem)));
        self
    }
    /// `alias NAME = coop_mat16x16<f16, A>;` or of edge 8, f32, B, C.
    pub fn coop(mut self, name: &'static str, elem: Elem, edge: u32, role: Role) -> Spec {
        self.head.push((name, Value::Coop(elem, edge, role)));
        self
    }
    /// Whether the kernel needs shader-f16.
    pub fn uses_f16(&self) -> bool {
        self.head.iter().any(|(_, v)| {
            matches!(
                v,
                Value::Type(Elem::F16) | Value::Vec4(Elem::F16) | Value::Coop(Elem::F16, ..)
            )
        })
    }
    /// Whether the kernel needs subgroup operations.
    pub fn uses_subgroups(&self) -> bool {
        self.enables("enable subgroups;")
    }
    /// Whether the kernel needs cooperative matrices.
    pub fn uses_coop(&self) -> bool {
        self.enables("enable wgpu_cooperative_matrix;")
    }
    fn enables(&self, directive: &str) -> bool {
        let asks = |source: &Source| source.text().lines().any(|l| l.trim() == directive);
        asks(&self.source) || self.parts.iter().any(asks)
    }
    /// Whether it is one of the reference kernels.
    pub fn is_reference(&self) -> bool {
        self.source.name.starts_with("reference/")
    }
    /// The generated `const` and `alias` lines.
    pub fn head(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.head {
            let _ = match value {
                Value::U32(v) => writeln!(text, "const {name}: u32 = {v}u;"),
                Value::Bool(v) => writeln!(text, "const {name}: bool = {v};"),
                Value::Type(e) => writeln!(text, "alias {name} = {};", e.wgsl()),
                Value::Vec4(e) => writeln!(text, "alias {name} = vec4<{}>;", e.wgsl()),
                Value::Coop(e, n, role) => {
                    writeln!(text, "alias {name} = coop_mat{n}x{n}<{}, {}>;", e.wgsl(), role.wgsl())
                }
            };
        }
        text
    }
    /// Short description for reports: `matmul.wgsl weight_q4 GROUP=64`.
    pub fn describe(&self) -> String {
        let mut text = self.source.name.to_string();
        for part in &self.parts {
            let _ = write!(
                text,
                " {}",
                part.name.trim_start_matches("parts/").trim_end_matches(".wgsl")
            );
        }
        for (name, value) in &self.head {
            let _ = match value {
                Value::U32(v) => write!(text, " {name}={v}"),
                Value::Bool(v) => write!(text, " {name}={v}"),
                Value::Type(e) | Value::Vec4(e) => write!(text, " {name}={}", e.wgsl()),
                Value::Coop(..) => Ok(()),
            };
        }
        text
    }
}

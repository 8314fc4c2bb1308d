//! Every Source × Spec that a plan may ask for, without a GPU: linked, validated, and written as SPIR-V, MSL and
//! HLSL by naga; within WebGPU's default limits; and errors at the file and line where they are.
#![allow(clippy::unwrap_used)] // a shader that cannot be read is a failed test

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use inknib::gpu::{COOP_BYTES, Source, Spec, Target, link};
use inknib::ops;
use inknib::ops::matmul::{beside, joint};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module};
use rayon::prelude::*;

/// `file:line: message` of the first error, as a person would look for it.
fn check(spec: &Spec) -> Result<(Module, ModuleInfo), String> {
    let linked = link(spec, Target::Native);
    let at = |line: u32| {
        let (file, line) = linked.locate(line as usize);
        format!("{file}:{line}")
    };
    let module = naga::front::wgsl::parse_str(&linked.text).map_err(|e| {
        let line = e.location(&linked.text).map_or(1, |l| l.line_number);
        format!("{}: {}", at(line), e.message())
    })?;
    // unpack2x16float is in every WebGPU; only old OpenGL lacks it.
    let mut allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    allowed.set(Capabilities::SHADER_FLOAT16, spec.uses_f16());
    allowed.set(Capabilities::SUBGROUP | Capabilities::SUBGROUP_BARRIER, uses_subgroups(spec));
    allowed.set(Capabilities::COOPERATIVE_MATRIX, spec.uses_coop());
    let info = Validator::new(ValidationFlags::all(), allowed).validate(&module).map_err(|e| {
        // The validator names the function and the expression in it: the shortest place says most.
        let places = e.spans().map(|(span, _)| span.location(&linked.text));
        let line = places.min_by_key(|l| l.length).map_or(1, |l| l.line_number);
        format!("{}: {}", at(line), e.emit_to_string(&linked.text))
    })?;
    Ok((module, info))
}

/// A shader or part says that it needs subgroups by the directive which browsers want.
fn uses_subgroups(spec: &Spec) -> bool {
    link(spec, Target::Web).text.lines().any(|line| line == "enable subgroups;")
}

fn specs() -> Vec<(&'static str, Spec)> {
    let all = ops::all();
    all.into_iter().flat_map(|op| op.specs.into_iter().map(move |s| (op.name, s))).collect()
}

/// Runs a check over every Spec and fails with all complaints.
fn every_spec(check: impl Fn(&Spec) -> Result<(), String> + Sync) {
    let complaints: Vec<String> = specs()
        .par_iter()
        .filter_map(|(op, spec)| {
            check(spec).err().map(|e| format!("{op}, {}: {e}", spec.describe()))
        })
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// For Vulkan 1.1 and up, the version in which subgroups came.
fn spirv(module: &Module, info: &ModuleInfo) -> Result<Vec<u32>, String> {
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    spv::write_vec(module, info, &options, None).map_err(|e| format!("SPIR-V: {e}"))
}

/// Shader model 6.2 has f16, the lowest that wgpu uses with it.
fn hlsl(module: &Module, info: &ModuleInfo) -> Result<String, String> {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        zero_initialize_workgroup_memory: false, // as kernels are compiled
        ..Default::default()
    };
    let mut text = String::new();
    let pipeline = hlsl::PipelineOptions::default();
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .map_err(|e| format!("HLSL: {e}"))?;
    Ok(text)
}

fn translate(spec: &Spec) -> Result<(), String> {
    let (module, info) = check(spec)?;
    if spirv(&module, &info)?.first() != Some(&0x0723_0203) {
        return Err("SPIR-V: no magic number".into());
    }
    // Metal 2.1 has subgroups of every kind that WGSL has, 2.3 matrices of subgroups.
    let lang_version = if spec.uses_coop() { (2, 3) } else { (2, 1) };
    let options = msl::Options { lang_version, ..Default::default() };
    let (text, _) = msl::write_string(&module, &info, &options, &Default::default())
        .map_err(|e| format!("MSL: {e}"))?;
    if !text.contains("kernel void") {
        return Err("MSL: no kernel".into());
    }
    if spec.uses_coop() {
        return Ok(()); // not in HLSL: wgpu's DX12 offers no cooperative matrices
    }
    if !hlsl(&module, &info)?.contains("[numthreads(") {
        return Err("HLSL: no kernel".into());
    }
    Ok(())
}

#[test]
fn every_kernel_becomes_spirv_msl_and_hlsl() {
    assert!(specs().len() > 100, "the list of ops is empty or broken");
    every_spec(translate);
}

/// SPIR-V as the Khronos validator sees it, where it is installed; `None` where it is not. Debian 12's knows no cooperative
/// matrices.
fn validate(tool: &str, spec: &Spec) -> Option<Result<(), String>> {
    let (module, info) = match check(spec) {
        Ok(checked) => checked,
        Err(e) => return Some(Err(e)),
    };
    let words = match spirv(&module, &info) {
        Ok(words) => words,
        Err(e) => return Some(Err(e)),
    };
    let mut child = Command::new(tool)
        .args(["--target-env", "vulkan1.1", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let out = child.wait_with_output().unwrap();
    let said = [out.stdout, out.stderr].concat();
    Some(match out.status.success() {
        true => Ok(()),
        false => Err(format!("spirv-val: {}", String::from_utf8_lossy(&said).trim())),
    })
}

#[test]
fn spirv_val_has_no_complaint() {
    if Command::new("spirv-val").arg("--version").output().is_err() {
        println!("skipped: no spirv-val (Debian's package spirv-tools)");
        return;
    }
    every_spec(|spec| match spec.uses_coop() {
        true => Ok(()),
        false => validate("spirv-val", spec).unwrap_or(Ok(())),
    });
}

/// What Khronos' HLSL front end (Debian's 12.0) does not know: loads of other types than u32, packed dot products, arrays of
/// zeros, subgroup operations under their HLSL names.
const NOT_GLSLANG: [&str; 4] = ["Load<", "dot4add_", "])0", "Wave"];

/// HLSL as another compiler than the one that wgpu's DX12 would use reads it, one Spec of every shader with every set of parts,
/// where it is installed and as far as it knows the language.
#[test]
fn glslang_reads_the_hlsl() {
    let tool = "glslangValidator";
    if Command::new(tool).arg("--version").output().is_err() {
        println!("skipped: no {tool} (Debian's package glslang-tools)");
        return;
    }
    let mut seen = BTreeSet::new();
    let mut complaints = Vec::new();
    let mut read = 0;
    for (op, spec) in specs() {
        let parts: Vec<&str> = spec.parts.iter().map(|part| part.name).collect();
        if spec.uses_coop() || spec.uses_f16() || !seen.insert((spec.source.name, parts)) {
            continue;
        }
        let (module, info) = check(&spec).unwrap();
        let text = hlsl(&module, &info).unwrap();
        if NOT_GLSLANG.iter().any(|word| text.contains(word)) {
            continue;
        }
        read += 1;
        let file = tempfile::Builder::new().suffix(".hlsl").tempfile().unwrap();
        fs::write(file.path(), text).unwrap();
        let arguments = ["-D", "-V", "-e", "main", "-S", "comp", "-o", "/dev/null"];
        let out = Command::new(tool).args(arguments).arg(file.path()).output().unwrap();
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            complaints.push(format!("{op}, {}: {said}", spec.describe()));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(read > 30, "only {read} kernels are within what {tool} knows");
}

/// A browser's front end has the same grammar but for the directive that naga refuses.
#[test]
fn both_targets_differ_in_the_subgroup_directive_alone() {
    every_spec(|spec| {
        if spec.uses_coop() {
            return Ok(()); // no browser has them under this name
        }
        let web = link(spec, Target::Web).text;
        let native = link(spec, Target::Native).text;
        let rest = web.replacen("enable subgroups;\n", "", 1);
        if rest.trim_start_matches('\n') != native.trim_start_matches('\n') {
            return Err("the targets differ in more than the directive".into());
        }
        naga::front::wgsl::parse_str(&rest).map(|_| ()).map_err(|e| e.message().to_string())
    });
}

/// WebGPU's default limits, which every adapter has: invocations of a workgroup, bytes of workgroup memory,
/// storage buffers of a stage. Adapters with cooperative matrices have more memory, or count as having none (`Caps`).
#[test]
fn every_kernel_fits_the_default_limits() {
    every_spec(|spec| {
        let (module, info) = check(spec)?;
        let [entry] = module.entry_points.as_slice() else {
            return Err(format!("{} entry points", module.entry_points.len()));
        };
        let own = info.get_entry_point(0);
        let used = || module.global_variables.iter().filter(|(h, _)| !own[*h].is_empty());
        let storage =
            used().filter(|(_, v)| matches!(v.space, AddressSpace::Storage { .. })).count();
        let bytes: u32 = used()
            .filter(|(_, v)| v.space == AddressSpace::WorkGroup)
            .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
            .sum();
        let [x, y, z] = entry.workgroup_size;
        let too_much = x * y * z > 256 || x > 256 || y > 256 || z > 64;
        let room = match spec.source.name {
            // Taken where the adapter has the room, see src/ops/attention/fast.rs.
            "attention_coop.wgsl" => 36_864,
            _ if spec.uses_coop() => COOP_BYTES,
            _ => 16_384,
        };
        // Taken where the adapter binds as many, see src/ops/matmul/joint.rs and beside.rs.
        let three = spec.parts.iter().any(|part| part.name == "parts/matmul_out_three.wgsl");
        let bound = match spec.source.name {
            "matmul_joint.wgsl" => joint::BUFFERS,
            _ if three => beside::BUFFERS,
            _ => 8,
        };
        if entry.name != "main" || too_much || bytes > room || storage > bound as usize {
            return Err(format!(
                "{}: workgroup {x}x{y}x{z}, {bytes} bytes of its memory, {storage} storage buffers",
                entry.name
            ));
        }
        Ok(())
    });
}

/// A binding that no Spec's code reads is missing from the layout that the driver makes, and binding fails.
#[test]
fn every_binding_is_used() {
    every_spec(|spec| {
        let (module, info) = check(spec)?;
        let own = info.get_entry_point(0);
        let unused: Vec<String> = module
            .global_variables
            .iter()
            .filter(|(h, v)| v.binding.is_some() && own[*h].is_empty())
            .filter_map(|(_, v)| v.name.clone())
            .collect();
        // Group 1 is the weight's; a kernel that decodes a weight reads all of it.
        if unused.is_empty() { Ok(()) } else { Err(format!("never read: {}", unused.join(", "))) }
    });
}

fn shader_files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn every_file_is_used_commented_and_says_its_shapes() {
    let used: BTreeSet<&str> = specs()
        .iter()
        .flat_map(|(_, s)| s.parts.iter().map(|p| p.name).chain([s.source.name]))
        .collect();
    let mut complaints = Vec::new();
    for (name, text) in shader_files() {
        if !used.contains(name.as_str()) {
            complaints.push(format!("{name}: in no Spec of ops::all()"));
        }
        if !text.starts_with("// ") {
            complaints.push(format!("{name}: no comment at the top"));
        }
        for (number, line) in text.lines().enumerate() {
            let binding = line.contains("@binding(") && line.contains("var<storage");
            let comment = line.split_once("//").map_or("", |(_, comment)| comment);
            if binding && !comment.contains('[') {
                complaints.push(format!("{name}:{}: no [shape] behind the binding", number + 1));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

const HEALTHY: Source = Source::new(
    "healthy.wgsl",
    "// y = broken(y)\n@group(0) @binding(0) var<storage, read_write> y: array<f32>; // [1]\n\
     @compute @workgroup_size(1)\nfn main() { y[0] = broken(y[0]); }\n",
);

/// Where the first error of HEALTHY joined with this part is reported.
fn report(part: Source) -> String {
    let spec = Spec::new(HEALTHY).u32("TILE", 8).alias("act", inknib::gpu::Elem::F16).part(part);
    check(&spec).err().unwrap_or_default()
}

#[test]
fn an_error_is_reported_in_its_own_file_and_line() {
    let good = Source::new("parts/good.wgsl", "fn broken(v: f32) -> f32 { return v; }\n");
    assert_eq!(report(good), "");
    // Grammar: the front end stops at the token.
    let grammar = Source::new(
        "parts/grammar.wgsl",
        "enable f16;\nfn broken(v: f32) -> f32 {\n    let w = v +;\n    return w;\n}\n",
    );
    assert!(report(grammar).starts_with("parts/grammar.wgsl:3: "), "{}", report(grammar));
    // Names: in the shader that calls what no part defines.
    let name = Source::new("parts/name.wgsl", "// nothing\n");
    assert!(report(name).starts_with("healthy.wgsl:4: "), "{}", report(name));
    // Types: the validator names the expression.
    let types = Source::new(
        "parts/types.wgsl",
        "// returns the wrong type\nfn broken(v: f32) -> f32 {\n    return vec2f(v);\n}\n",
    );
    assert!(report(types).starts_with("parts/types.wgsl:3: "), "{}", report(types));
}

#[test]
fn f16_is_refused_where_the_spec_does_not_say_so() {
    let sneaky = Source::new(
        "parts/sneaky.wgsl",
        "enable f16;\nfn broken(v: f32) -> f32 { return f32(f16(v)); }\n",
    );
    let error = check(&Spec::new(HEALTHY).part(sneaky)).err().unwrap_or_default();
    assert!(error.contains("SHADER_FLOAT16") || error.contains("f16"), "{error}");
}

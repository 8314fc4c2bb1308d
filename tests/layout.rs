//! The params structs of the host against those of the shaders, field by field, by naga's reflection.
#![allow(clippy::unwrap_used)] // a shader that cannot be read is a failed test

use std::collections::BTreeSet;
use std::mem::{offset_of, size_of};

use inknib::gpu::{Spec, Target, link};
use inknib::graph::WeightInfo;
use inknib::ops;
use naga::proc::Layouter;
use naga::{AddressSpace, Module, TypeInner};
use rayon::prelude::*;

type Fields = Vec<(String, usize, usize)>;

fn parse(spec: &Spec) -> Module {
    let text = link(spec, Target::Native).text;
    naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| {
        panic!("{}: {}", spec.describe(), e.emit_to_string(&text));
    })
}

/// Name, offset and size of each field of a struct, and the size of the whole.
fn reflect(module: &Module, name: &str) -> Option<(Fields, usize)> {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    module.types.iter().find_map(|(_, ty)| match &ty.inner {
        TypeInner::Struct { members, span } if ty.name.as_deref() == Some(name) => {
            let field = |m: &naga::StructMember| {
                let name = m.name.clone().unwrap_or_default();
                (name, m.offset as usize, layouter[m.ty].size as usize)
            };
            Some((members.iter().map(field).collect(), *span as usize))
        }
        _ => None,
    })
}

fn host(fields: &[(&str, usize, usize)]) -> (Fields, usize) {
    let list = fields.iter().map(|(n, o, s)| (n.to_string(), *o, *s)).collect();
    (list, fields.last().map_or(0, |(_, offset, size)| offset + size))
}

#[test]
fn params_of_every_shader_are_those_of_the_host() {
    let complaints: Vec<String> = ops::all()
        .par_iter()
        .flat_map(|op| {
            let (want, bytes) = host(op.params);
            // A uniform is bound in units of sixteen bytes; a shorter struct would hide padding.
            assert!(bytes.is_multiple_of(16), "{}: Params has {bytes} bytes", op.name);
            let complaints: Vec<String> = op
                .specs
                .par_iter()
                .filter_map(|spec| {
                    let module = parse(spec);
                    let got = reflect(&module, "Params");
                    let uniform = module.global_variables.iter().any(|(_, v)| {
                        v.space == AddressSpace::Uniform
                            && v.binding.is_some_and(|b| b.group == 0 && b.binding == 0)
                            && module.types[v.ty].name.as_deref() == Some("Params")
                    });
                    let same = got.as_ref() == Some(&(want.clone(), bytes));
                    (!same || !uniform).then(|| {
                        format!(
                            "{}: {}: host {want:?}, {bytes} bytes; shader {got:?}; uniform at group 0 \
                             binding 0: {uniform}",
                            op.name,
                            spec.describe()
                        )
                    })
                })
                .collect();
            complaints
        })
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

macro_rules! field {
    ($field:ident: $ty:ty) => {
        (stringify!($field), offset_of!(WeightInfo, $field), size_of::<$ty>())
    };
}

#[test]
fn weight_info_of_every_part_is_that_of_the_host() {
    let (want, bytes) = host(&[
        field!(row_blocks: u32),
        field!(tap_blocks: u32),
        field!(row_groups: u32),
        field!(tap_groups: u32),
        field!(cubic: f32),
        field!(rows: u32),
        field!(pad0: u32),
        field!(pad1: u32),
    ]);
    assert_eq!(bytes, size_of::<WeightInfo>(), "a field of WeightInfo is missing in this list");
    let mut seen = BTreeSet::new();
    for spec in ops::all().into_iter().flat_map(|op| op.specs) {
        let Some(part) = spec.parts.iter().find(|p| p.name.starts_with("parts/weight_")) else {
            continue;
        };
        if seen.insert(part.name) {
            let got = reflect(&parse(&spec), "WeightInfo");
            assert_eq!(got, Some((want.clone(), bytes)), "{}", part.name);
        }
    }
    for format in ["f32", "f16", "q8", "q4", "q4z"] {
        assert!(
            seen.contains(format!("parts/weight_{format}.wgsl").as_str()),
            "{format}: {seen:?}"
        );
    }
}

#[test]
fn reflection_sees_names_offsets_and_sizes() {
    let module = naga::front::wgsl::parse_str(
        "struct Params { n: u32, scale: f32, at: vec2u, v: vec3f, last: u32 }\n\
         @group(0) @binding(0) var<uniform> p: Params;\n",
    )
    .unwrap();
    let (fields, bytes) = reflect(&module, "Params").unwrap();
    let want = [("n", 0, 4), ("scale", 4, 4), ("at", 8, 8), ("v", 16, 12), ("last", 28, 4)];
    assert_eq!((fields, bytes), host(&want));
    assert_ne!(Some(host(&want[..4])), reflect(&module, "Params"));
}

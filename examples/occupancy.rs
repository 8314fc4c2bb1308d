//! What a model asks of a large GPU, before there is one: `cargo run --release --example occupancy -- MODEL [SIZE [TOKENS]]`. The last
//! TOKENS (1) of SIZE (1024) at once by a language model, or one evaluation of a UNet (a folder with `unet`) for a picture of SIZE pixels (512) and its guidance.
//! For each kind of launch: invocations, workgroup memory, work, and weights read. A processor that has fewer invocations than it could
//! keep has fewer loads under way, and a launch that does little is over before the next has begun.

use std::collections::BTreeMap;
use std::path::Path;

use inknib::gpu::{Caps, Elem, Gpu, GpuOptions, Spec, Target, link};
use inknib::graph::{Graph, Plan, PlanOptions, Planned};
use inknib::nets::language::{Language, LanguageConfig};
use inknib::nets::unet::{TimeConditions, Unet, UnetConfig, UnetContext, UnetTime};
use inknib::nn::Loader;
use inknib::quant::Recipe;
use inknib::weights::WeightStore;
use inknib::{Error, Result};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "models/demo-chat".into());
    let [size, tokens] = [(); 2].map(|()| args.next().and_then(|n| n.parse::<usize>().ok()));
    let gpu = Gpu::open(&GpuOptions::default())?;
    let launches = match Path::new(&model).join("unet") {
        unet if unet.exists() => step(&gpu, &unet, size.unwrap_or(512) / 8)?,
        _ => text(&gpu, Path::new(&model), (size.unwrap_or(1024), tokens.unwrap_or(1)))?,
    };
    let mut kinds: BTreeMap<(String, [u32; 3]), Vec<&Planned>> = BTreeMap::new();
    for launch in &launches {
        kinds.entry((launch.spec.describe(), launch.groups)).or_default().push(launch);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, all)| std::cmp::Reverse(all.iter().map(|l| l.flops).sum::<u64>()));
    println!(
        "| launches | workgroups | of | KiB shared | invocations | MFLOP each | KiB of weights each | kernel |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for ((name, groups), all) in kinds {
        let groups: u32 = groups.iter().product();
        let (size, shared) = workgroup(&all[0].spec)?;
        println!(
            "| {} | {groups} | {size} | {:.1} | {} | {:.1} | {:.0} | {} |",
            all.len(),
            f64::from(shared) / 1024.0,
            groups * size,
            all[0].flops as f64 / 1e6,
            all[0].weight_bytes as f64 / 1024.0,
            name.split(' ').next().unwrap_or_default()
        );
    }
    let sum = |of: fn(&Planned) -> u64| launches.iter().map(of).sum::<u64>() as f64;
    println!(
        "\n{} launches, {:.1} GFLOP, {:.1} MiB of weights",
        launches.len(),
        sum(|l| l.flops) / 1e9,
        sum(|l| l.weight_bytes) / f64::from(1 << 20)
    );
    Ok(())
}

fn text(gpu: &Gpu, dir: &Path, (context, tokens): (usize, usize)) -> Result<Vec<Planned>> {
    let (config, store) = (LanguageConfig::read(dir)?, WeightStore::open(dir)?);
    let recipe = Recipe::builtin("int4", "llm")?;
    let net = Language::load(&Loader::new(gpu, &store, &recipe), &config)?;
    let graph = Graph::new(Elem::F16);
    let cache = config.kv_cache(gpu, context, Elem::F16)?;
    let [start, last] = ["start", "last"].map(|name| graph.input(name, [1], Elem::U32));
    let ids = graph.input("ids", [1, tokens], Elem::U32);
    graph.output("logits", net.forward(ids, start, last, &cache));
    Plan::kernels(gpu, &graph, &PlanOptions::default(), &large(gpu.caps()))
}

fn step(gpu: &Gpu, dir: &Path, side: usize) -> Result<Vec<Planned>> {
    let (config, store) = (UnetConfig::read(dir)?, WeightStore::open(dir)?);
    let recipe = Recipe::builtin("int4", "unet")?;
    let loader = Loader::new(gpu, &store, &recipe);
    let net = Unet::load(&loader, &config)?;
    let (times, contexts) =
        (UnetTime::load(&loader, &config)?, UnetContext::load(&loader, &config)?);
    let graph = Graph::new(Elem::F16);
    let times = times.table(graph.input("t", [1], Elem::F32), &TimeConditions::default());
    let text = graph.input("text", [2, 77, config.cross_attention_dim], Elem::F16);
    let x = graph.input("x", [2, side, side, config.in_channels], Elem::F16);
    let row = graph.input("row", [2], Elem::U32);
    graph.output("y", net.forward(x, &times, row, &contexts.keys_values(text)));
    Plan::kernels(gpu, &graph, &PlanOptions::default(), &large(gpu.caps()))
}

/// A device with all that kernels use: thirty-two lanes, f16, matrices of sixteen.
fn large(caps: &Caps) -> Caps {
    Caps {
        software: false,
        subgroups: true,
        subgroup_min: 32,
        subgroup_max: 32,
        coop_edge: 16,
        f16: true,
        max_workgroup_invocations: 1024,
        max_workgroup_bytes: 48 << 10,
        ..caps.clone()
    }
}

/// Invocations of a workgroup and the bytes that they share.
fn workgroup(spec: &Spec) -> Result<(u32, u32)> {
    let text = link(spec, Target::Native).text;
    let failed = |e: naga::front::wgsl::ParseError| Error::Runtime(e.emit_to_string(&text));
    let module = naga::front::wgsl::parse_str(&text).map_err(failed)?;
    let of_workgroup = |v: &naga::GlobalVariable| v.space == naga::AddressSpace::WorkGroup;
    let shared = module.global_variables.iter().filter(|(_, v)| of_workgroup(v));
    let bytes = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
    let size = module.entry_points.iter().map(|e| e.workgroup_size.iter().product()).next();
    Ok((size.unwrap_or(1), bytes))
}

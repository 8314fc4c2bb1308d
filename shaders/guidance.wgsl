// The same as reference/guidance.wgsl with four neighbouring elements at a time: the plan counts item and chunk in fours.
struct Params {
    items: u32,  // pictures
    item: u32,   // elements of a picture, of the type bound
    chunk: u32,  // elements in a slice
    slices: u32, // slices of a picture
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> coef: array<f32>;          // [32] one StepCoefficients, guidance, rescale
@group(0) @binding(2) var<storage, read> a: array<act>;             // [items, item] u; or (u, c) [2, items, item]
@group(0) @binding(3) var<storage, read> b: array<act>;             // PAIR: [items, item] c
@group(0) @binding(4) var<storage, read_write> part: array<vec4f>;  // [items, slices] mean and squares of c, of g
@group(0) @binding(5) var<storage, read_write> y: array<f32>;       // [items]

const GUIDANCE = 27u;
const RESCALE = 28u;

fn total(v: vec4f) -> f32 {
    return v.x + v.y + v.z + v.w;
}

fn prompted(i: u32) -> vec4f {
    if (PAIR) { return vec4f(b[i]); }
    return vec4f(a[p.items * p.item + i]);
}

fn guided(i: u32) -> vec4f {
    let u = vec4f(a[i]);
    return u + coef[GUIDANCE] * (prompted(i) - u);
}

fn slice(i: u32) {
    let start = i % p.slices * p.chunk;
    let first = i / p.slices * p.item + start;
    let size = min(p.chunk, p.item - start);
    var c = vec4f();
    var g = vec4f();
    for (var e = 0u; e < size; e++) {
        c += prompted(first + e);
        g += guided(first + e);
    }
    let mean = vec2f(total(c), total(g)) / f32(4u * size);
    c = vec4f();
    g = vec4f();
    for (var e = 0u; e < size; e++) {
        let dc = prompted(first + e) - mean.x;
        let dg = guided(first + e) - mean.y;
        c += dc * dc;
        g += dg * dg;
    }
    part[i] = vec4f(mean.x, total(c), mean.y, total(g));
}

fn picture(i: u32) {
    var mean = vec2f();
    for (var s = 0u; s < p.slices; s++) {
        let n = f32(min(p.chunk, p.item - s * p.chunk));
        mean += n * part[i * p.slices + s].xz;
    }
    mean /= f32(p.item);
    var squares = vec2f();
    for (var s = 0u; s < p.slices; s++) {
        let n = f32(4u * min(p.chunk, p.item - s * p.chunk));
        let slice = part[i * p.slices + s];
        let d = slice.xz - mean;
        squares += slice.yw + n * d * d;
    }
    let rescale = coef[RESCALE];
    let ratio = sqrt(squares.x / squares.y);
    y[i] = select(rescale * ratio + 1.0 - rescale, 1.0, rescale == 0.0 || squares.y == 0.0);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (STAGE == 0u) {
        if (i < p.items * p.slices) { slice(i); }
    } else {
        if (i < p.items) { picture(i); }
    }
}

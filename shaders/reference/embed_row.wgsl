// y[b, c] = x[b, row[b], c], one element each; a row that x does not have gives zeros.
struct Params {
    batch: u32,
    tokens: u32,
    channels: u32, // elements of y's type in one row
    pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act>;          // [batch, tokens, channels]
@group(0) @binding(2) var<storage, read> row: array<u32>;        // [batch]
@group(0) @binding(3) var<storage, read_write> y: array<act>;    // [batch, channels]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.batch * p.channels) { return; }
    let b = i / p.channels;
    let r = row[b];
    if (r < p.tokens) {
        y[i] = x[(b * p.tokens + r) * p.channels + i % p.channels];
    } else {
        y[i] = act();
    }
}

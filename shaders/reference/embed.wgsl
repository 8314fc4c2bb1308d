// y[t, c] = w[ids[t], c], or w[ids[0] + t, c] for a range, one element each. This window of w holds rows row0 .. row0 + rows; the first window
// also writes zeros for ids that no window holds.
struct Params {
    tokens: u32,
    channels: u32,
    row0: u32,  // first row of this window
    rows: u32,  // rows of this window
    total: u32, // rows of all windows
    range: u32, // 1: the rows are those from ids[0] on
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;        // [tokens], or [1] for a range
@group(0) @binding(2) var<storage, read_write> y: array<act>;    // [tokens, channels]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.tokens * p.channels) { return; }
    let token = select(ids[select(i / p.channels, 0u, p.range == 1u)], ids[0] + i / p.channels, p.range == 1u);
    if (token >= p.row0 && token - p.row0 < p.rows) {
        y[i] = act(weight(token - p.row0, 0u, i % p.channels));
    } else if (token >= p.total && p.row0 == 0u) {
        y[i] = act(0.0);
    }
}

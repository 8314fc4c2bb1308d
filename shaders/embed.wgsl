// The same as reference/embed.wgsl for rows of a multiple of eight channels: eight channels each.
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
@group(0) @binding(1) var<storage, read> ids: array<u32>;         // [tokens], or [1] for a range
@group(0) @binding(2) var<storage, read_write> y: array<act4>;    // [tokens, channels / 4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    let blocks = p.channels / 8u;
    if (i >= p.tokens * blocks) { return; }
    let token = select(ids[select(i / blocks, 0u, p.range == 1u)], ids[0] + i / blocks, p.range == 1u);
    if (token >= p.row0 && token - p.row0 < p.rows) {
        let w = weight8(token - p.row0, 0u, i % blocks);
        y[2u * i] = act4(w.lo);
        y[2u * i + 1u] = act4(w.hi);
    } else if (token >= p.total && p.row0 == 0u) {
        y[2u * i] = act4();
        y[2u * i + 1u] = act4();
    }
}

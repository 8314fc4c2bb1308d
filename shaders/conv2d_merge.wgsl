// The end of a convolution whose sums were divided: see parts/add_partial.wgsl.
struct Params {
    m0: u32,      // first output pixel of this dispatch (of all pixels of the batch)
    m: u32,       // one past its last output pixel
    n: u32,       // rows of w in this window
    n0: u32,      // first row of this window
    n_total: u32, // channels of y
    in_h: u32,
    in_w: u32,
    out_h: u32,
    out_w: u32,
    ca: u32,      // channels of x
    cb: u32,      // channels of the second input, 0 without
    side: u32,    // taps in each direction
    stride: u32,
    up: u32,      // 1 if the input is doubled in both directions first
    before: u32,  // zeros before the first row and column
    steps: u32,   // rows of the table of time embeddings
}
@group(0) @binding(0) var<uniform> p: Params;

// A convolution's input as the rows of a matrix, one for each output pixel, in order.

// Eight neighbouring channels, as the parts that fetch an input give them.
struct Eight { lo: vec4f, hi: vec4f }

// The output pixel that a row belongs to; `base` is the first row of pixels of its picture.
struct Pixel { ox: u32, oy: u32, base: u32 }

// Where it looks under a tap.
struct Place { pixel: u32, inside: bool }

fn pixel(m: u32) -> Pixel {
    let line = m / p.out_w;
    return Pixel(m % p.out_w, line % p.out_h, line / p.out_h * p.in_h);
}

// The next one, without a division: they would be most of the work.
fn next(at: Pixel) -> Pixel {
    if (at.ox + 1u < p.out_w) { return Pixel(at.ox + 1u, at.oy, at.base); }
    if (at.oy + 1u < p.out_h) { return Pixel(0u, at.oy + 1u, at.base); }
    return Pixel(0u, 0u, at.base + p.in_h);
}

// A tap's row and column. A pixel before the first is a very large unsigned number, so that one comparison finds
// both ends.
fn place(at: Pixel, tap: vec2u) -> Place {
    let iy = at.oy * p.stride + tap.y - p.before;
    let ix = at.ox * p.stride + tap.x - p.before;
    let inside = iy < (p.in_h << p.up) && ix < (p.in_w << p.up);
    let row = at.base + min(iy >> p.up, p.in_h - 1u);
    return Place(row * p.in_w + min(ix >> p.up, p.in_w - 1u), inside);
}

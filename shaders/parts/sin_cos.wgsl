// sin_cos(x) = (sin x, cos x) within 2e-7 for |x| < 2²⁴, whatever the driver's own sin and cos are worth (Vulkan
// promises 2⁻¹¹ on [−π, π] only). The range is reduced in integers, which no fast-math option can reorder:
// |x| = m · 2⁻ˢ with m < 2²⁴, and m · 2⁶⁴/2π holds the fraction of a turn in the 32 bits from bit 32 + s on.

// 2⁶⁴ / 2π as four 16-bit limbs, low first.
const TURN_0 = 0x054au;
const TURN_1 = 0x9391u;
const TURN_2 = 0x60dbu;
const TURN_3 = 0x28beu;

// Fraction of a turn in units of 2⁻³²; the integer part drops out.
fn turn_fraction(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let exponent = (bits >> 23u) & 255u;
    if (exponent < 87u || exponent > 150u) { return 0u; } // |x| < 2⁻⁴⁰, or out of range
    let s = 150u - exponent;
    let m = (bits & 0x7fffffu) | 0x800000u;
    let ml = m & 0xffffu;
    let mh = m >> 16u; // eight bits
    // Columns of sixteen bits; each sum stays below 2³².
    var c = ml * TURN_0;
    c = (c >> 16u) + mh * TURN_0;
    let b1 = ml * TURN_1;
    c += b1 & 0xffffu;
    c = (c >> 16u) + (b1 >> 16u) + mh * TURN_1;
    let b2 = ml * TURN_2;
    c += b2 & 0xffffu;
    let d2 = c & 0xffffu;
    c = (c >> 16u) + (b2 >> 16u) + mh * TURN_2;
    let b3 = ml * TURN_3;
    c += b3 & 0xffffu;
    let d3 = c & 0xffffu;
    let top = (c >> 16u) + (b3 >> 16u) + mh * TURN_3; // bits 64 and up
    let low = d2 | (d3 << 16u);                       // bits 32 to 63
    if (s == 0u) { return low; }
    if (s < 32u) { return (low >> s) | (top << (32u - s)); }
    return top >> (s - 32u);
}

fn sin_cos(x: f32) -> vec2f {
    let turn = turn_fraction(x);
    let quarter = (turn + 0x20000000u) >> 30u;
    // Within an eighth of a turn of the nearest quarter, times 2π/2³².
    let r = f32(bitcast<i32>(turn - (quarter << 30u))) * 1.4629180792671596e-9;
    // Taylor series; the next terms are below 2e-9 and 3e-8 at π/4.
    let q = r * r;
    let s = r * (1.0 + q * (-0.16666667 + q * (8.3333333e-3 + q * (-1.9841270e-4 + q * 2.7557319e-6))));
    let c = 1.0 + q * (-0.5 + q * (4.1666667e-2 + q * (-1.3888889e-3 + q * 2.4801587e-5)));
    let swap = (quarter & 1u) == 1u;
    let sine = select(select(s, c, swap), -select(s, c, swap), (quarter & 2u) != 0u);
    let cosine = select(select(c, s, swap), -select(c, s, swap), ((quarter + 1u) & 2u) != 0u);
    return vec2f(select(sine, -sine, bitcast<u32>(x) >= 0x80000000u), cosine);
}

//! Fusion: a producer absorbs its only consumer where the op knows how ([`super::Op::absorb`]).

use std::collections::HashSet;

use super::Node;

/// Marks nodes that nothing in `roots` needs, then fuses what is left. Returns which nodes are live.
pub(crate) fn fuse(nodes: &mut [Node], roots: &HashSet<usize>) -> Vec<bool> {
    let mut uses = count_uses(nodes, roots);
    for consumer in 0..nodes.len() {
        // Repeated because a fused op may absorb again (matmul + residual, then an activation).
        while uses[consumer] > 0 && absorb_one(nodes, consumer, &mut uses, roots) {}
    }
    uses.iter().map(|u| *u > 0).collect()
}

fn count_uses(nodes: &[Node], roots: &HashSet<usize>) -> Vec<usize> {
    let mut uses = vec![0; nodes.len()];
    for id in (0..nodes.len()).rev() {
        if roots.contains(&id) {
            uses[id] += 1;
        }
        if uses[id] > 0 {
            for input in &nodes[id].inputs {
                uses[*input] += 1;
            }
        }
    }
    uses
}

fn absorb_one(
    nodes: &mut [Node],
    consumer: usize,
    uses: &mut [usize],
    roots: &HashSet<usize>,
) -> bool {
    let Some(next) = nodes[consumer].op.clone() else { return false };
    // Later inputs first: in `x + f(x)` the branch computed last is the one to absorb into.
    for slot in (0..nodes[consumer].inputs.len()).rev() {
        let producer = nodes[consumer].inputs[slot];
        let node = &nodes[producer];
        let Some(op) = &node.op else { continue };
        let alone = uses[producer] == 1 && !roots.contains(&producer);
        if !alone || node.shape.len() != nodes[consumer].shape.len() {
            continue;
        }
        let Some(fused) = op.absorb(next.as_ref(), slot) else { continue };
        let mut inputs = node.inputs.clone();
        let rest = nodes[consumer].inputs.iter().enumerate().filter(|(i, _)| *i != slot);
        inputs.extend(rest.map(|(_, id)| *id));
        uses[producer] = 0;
        nodes[consumer].op = Some(fused);
        nodes[consumer].inputs = inputs;
        return true;
    }
    false
}

//! Fusion: a producer absorbs its only consumer where the op knows how ([`super::Op::absorb`]), and one that is cheap goes
//! into each of several ([`super::Op::fold`]).

use std::collections::HashSet;

use super::Node;

/// Marks nodes that nothing in `roots` needs, then fuses what is left; `fold` says whether the kernels are there to compute
/// the same more than once. Returns which nodes are live.
pub(crate) fn fuse(nodes: &mut [Node], roots: &HashSet<usize>, fold: bool) -> Vec<bool> {
    let mut uses = count_uses(nodes, roots);
    for consumer in 0..nodes.len() {
        // Repeated because a fused op may absorb again (matmul + residual, then an activation).
        while uses[consumer] > 0 && absorb_one(nodes, consumer, &mut uses, roots) {}
    }
    for producer in (0..nodes.len()).filter(|_| fold) {
        if uses[producer] > 0 && !roots.contains(&producer) {
            fold_one(nodes, producer, &mut uses);
        }
    }
    uses.iter().map(|u| *u > 0).collect()
}

/// Folds a producer into all of its consumers, or into none.
fn fold_one(nodes: &mut [Node], producer: usize, uses: &mut [usize]) -> Option<()> {
    let op = nodes[producer].op.clone()?;
    let rows = nodes[producer].shape.rows();
    let reads = |(id, node): &(usize, &Node)| uses[*id] > 0 && node.inputs.contains(&producer);
    let readers: Vec<usize> = nodes.iter().enumerate().filter(reads).map(|(id, _)| id).collect();
    let fused = |id: &usize| {
        let node = &nodes[*id];
        let alone = node.inputs.iter().filter(|input| **input == producer).count() == 1;
        let first = node.inputs.first() == Some(&producer);
        op.fold(node.op.as_deref()?, rows).filter(|_| alone && first)
    };
    let fused = readers.iter().map(fused).collect::<Option<Vec<_>>>()?;
    let own = nodes[producer].inputs.clone();
    uses[producer] = 0;
    own.iter().for_each(|input| uses[*input] -= 1);
    for (id, op) in readers.into_iter().zip(fused) {
        nodes[id].op = Some(op);
        nodes[id].inputs.splice(..1, own.iter().copied());
        own.iter().for_each(|input| uses[*input] += 1);
    }
    Some(())
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
        // What is written in place has the shape of what it is written into.
        let same = node.shape.len() == nodes[consumer].shape.len() || next.in_place().is_some();
        if !alone || !same {
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

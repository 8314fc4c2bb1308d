//! Lifetimes → memory: values that never live at the same time share a buffer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Home, Node};
use crate::Result;
use crate::gpu::{Buffer, Gpu};

/// Activation memory of several plans that never run at the same time: it is as large as the largest
/// of them needs, not as all together.
#[derive(Clone, Debug, Default)]
pub struct Arena(Arc<Mutex<Vec<Buffer>>>);

impl Arena {
    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.buffers().iter().map(Buffer::bytes).sum()
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<Buffer>> {
        // A panic elsewhere leaves a list of buffers that is still true.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A buffer for each size. The largest request takes the largest buffer; one that is too small is
    /// replaced, and lives on in the plans that hold it.
    pub(crate) fn allocate(&self, gpu: &Gpu, sizes: &[u64]) -> Result<Vec<Buffer>> {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(sizes[*i]));
        let mut held = self.buffers();
        held.sort_by_key(|b| std::cmp::Reverse(b.bytes()));
        let mut taken = vec![None; sizes.len()];
        for (rank, index) in order.into_iter().enumerate() {
            if held.get(rank).is_none_or(|b| b.bytes() < sizes[index]) {
                let new = gpu.buffer("activations", sizes[index])?;
                match held.get_mut(rank) {
                    Some(old) => *old = new,
                    None => held.push(new),
                }
            }
            taken[index] = Some(held[rank].clone());
        }
        Ok(taken.into_iter().flatten().collect())
    }
}

/// Where a slot's value lies in its buffer: behind a guard, if the plan has guards.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub buffer: Buffer,
    pub base: u64,
}

/// Bytes before and behind every slot of a plan with guards; a binding may begin behind so many on any adapter.
pub(crate) const GUARD: u64 = 256;
/// What guards are filled with: no value that a kernel would write there by chance.
pub(crate) const GUARD_WORD: u32 = 0x9e1f_0a5c;

/// Sizes of the plan's slots and where each planned node lies.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub sizes: Vec<u64>,
    free: Vec<usize>,
    /// Slot of a root node.
    pub of: HashMap<usize, usize>,
}

impl Slots {
    /// Takes a slot of at least `bytes`: the free one that is closest in size, enlarged if need be.
    pub fn take(&mut self, bytes: u64) -> usize {
        let fit = |slot: &usize| {
            let size = self.sizes[*slot];
            if size >= bytes { (0, size - bytes) } else { (1, bytes - size) }
        };
        let best = (0..self.free.len()).min_by_key(|i| fit(&self.free[*i]));
        match best {
            Some(index) => {
                let slot = self.free.swap_remove(index);
                self.sizes[slot] = self.sizes[slot].max(bytes);
                slot
            }
            None => {
                self.sizes.push(bytes);
                self.sizes.len() - 1
            }
        }
    }
    pub fn give_back(&mut self, slot: usize) {
        self.free.push(slot);
    }
}

/// The node whose memory this node's value lies in.
pub(crate) fn root(nodes: &[Node], mut id: usize) -> usize {
    while let Some(input) = nodes[id].op.as_ref().and_then(|op| op.in_place()) {
        id = nodes[id].inputs[input];
    }
    id
}

/// For each root, the last live node that uses its memory.
pub(crate) fn last_uses(nodes: &[Node], live: &[bool], roots: &[usize]) -> HashMap<usize, usize> {
    let mut last = HashMap::new();
    for (id, node) in nodes.iter().enumerate().filter(|(id, _)| live[*id]) {
        last.insert(root(nodes, id), id);
        for input in &node.inputs {
            last.insert(root(nodes, *input), id);
        }
    }
    for id in roots {
        last.insert(root(nodes, *id), usize::MAX);
    }
    last
}

/// Whether the plan has to find memory for this root.
pub(crate) fn is_planned(node: &Node) -> bool {
    matches!(node.home, Home::Planned)
}

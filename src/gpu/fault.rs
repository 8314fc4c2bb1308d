//! Faults on purpose, so that tests can see what happens after them. `INKNIB_FAULT` is read here and nowhere
//! else; it holds one fault or several with `;` between them:
//!
//! | fault | what happens |
//! |---|---|
//! | `lose-device:N,M,…` | this process's first device is destroyed after N submissions, its second after M |
//! | `wrong:subgroups` | kernels with subgroup operations leave their outputs as they were |
//! | `wrong:f16` | so do kernels that need shader-f16 |
//! | `wrong:fast` | so do all but the reference kernels |
//! | `wrong:all` | so do all |

use std::sync::atomic::{AtomicUsize, Ordering};

use super::spec::Spec;
use crate::{Error, Result};

/// What goes wrong with one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    /// Submissions after which the device is destroyed.
    pub lose_after: Option<u64>,
    wrong: Option<Wrong>,
}

/// Which kernels do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Subgroups,
    F16,
    Fast,
    All,
}

static DEVICES: AtomicUsize = AtomicUsize::new(0);

impl Fault {
    /// The faults of the device that is opened next.
    ///
    /// # Errors
    /// `Usage` for a word that is none of the above.
    pub(super) fn of_next_device() -> Result<Fault> {
        let number = DEVICES.fetch_add(1, Ordering::Relaxed);
        match std::env::var("INKNIB_FAULT") {
            Ok(text) => Fault::parse(&text, number),
            Err(_) => Ok(Fault::default()),
        }
    }

    fn parse(text: &str, number: usize) -> Result<Fault> {
        let refuse = || {
            Error::Usage(format!(
                "INKNIB_FAULT={text}: there are lose-device:N,N…, wrong:subgroups, wrong:f16, wrong:fast and wrong:all"
            ))
        };
        let mut fault = Fault::default();
        for one in text.split(';').map(str::trim).filter(|one| !one.is_empty()) {
            match one.split_once(':').ok_or_else(refuse)? {
                ("lose-device", counts) => {
                    let counts = counts.split(',').map(|n| n.trim().parse::<u64>());
                    let counts = counts.collect::<Result<Vec<_>, _>>().map_err(|_| refuse())?;
                    fault.lose_after = counts.get(number).copied();
                }
                ("wrong", "subgroups") => fault.wrong = Some(Wrong::Subgroups),
                ("wrong", "f16") => fault.wrong = Some(Wrong::F16),
                ("wrong", "fast") => fault.wrong = Some(Wrong::Fast),
                ("wrong", "all") => fault.wrong = Some(Wrong::All),
                _ => return Err(refuse()),
            }
        }
        Ok(fault)
    }

    /// Whether launches of this kernel are to do nothing.
    pub(super) fn spoils(&self, spec: &Spec) -> bool {
        match self.wrong {
            None => false,
            Some(Wrong::Subgroups) => spec.uses_subgroups(),
            Some(Wrong::F16) => spec.uses_f16(),
            Some(Wrong::Fast) => !spec.is_reference(),
            Some(Wrong::All) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Elem, Source};

    #[test]
    fn faults_are_read_and_other_words_refused() {
        let lost = |number| Fault::parse("lose-device:3, 5", number).unwrap().lose_after;
        assert_eq!([lost(0), lost(1), lost(2)], [Some(3), Some(5), None]);
        let both = Fault::parse("lose-device:3;wrong:f16", 0).unwrap();
        assert_eq!(both, Fault { lose_after: Some(3), wrong: Some(Wrong::F16) });
        assert_eq!(Fault::parse("", 0).unwrap(), Fault::default());
        for bad in ["lose-device", "lose-device:x", "wrong:colour", "late:3"] {
            assert_eq!(Fault::parse(bad, 0).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn a_fault_is_of_the_kernels_it_names() {
        let plain = Spec::new(Source::new("op.wgsl", "fn main() {}\n"));
        let half = plain.clone().alias("act", Elem::F16);
        let lanes = Spec::new(Source::new("op_lanes.wgsl", "enable subgroups;\nfn main() {}\n"));
        let reference = Spec::new(Source::new("reference/op.wgsl", "fn main() {}\n"));
        let of = |what: &str| {
            let fault = Fault::parse(what, 0).unwrap();
            [&plain, &half, &lanes, &reference].map(|spec| fault.spoils(spec))
        };
        assert_eq!(of(""), [false; 4]);
        assert_eq!(of("wrong:subgroups"), [false, false, true, false]);
        assert_eq!(of("wrong:f16"), [false, true, false, false]);
        assert_eq!(of("wrong:fast"), [true, true, true, false]);
        assert_eq!(of("wrong:all"), [true; 4]);
    }
}

//! What a recipe asks for: the number format of one weight.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where the sixteen levels of a 4-bit code lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Levels {
    /// Evenly: `w = s·(q−8)`.
    Uniform,
    /// Denser near zero, where weights are dense: `w = s·(q−8)·(1 + c·(q−8)²)`, one `c` per tensor.
    Cubic,
}

/// How the scale of a group is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Search {
    /// The largest magnitude becomes the outermost level, as in llama.cpp's Q4_0.
    Absmax,
    /// The scale with the least squared error, clipping included.
    Mse,
    /// A float zero beside the scale, by HQQ's iteration; even levels alone. A baseline to measure against.
    Hqq,
}

/// The number format of one weight. Written as `fp32`, `fp16`, `int8-g64`, `int4-g64-cubic`,
/// `int4-g32-uniform`; `-absmax` at the end of an int4 form asks for that search, the least squared
/// error is the rule; `int4-g64-hqq` has zeros beside its scales. Groups are 32, 64 or 128 channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantSpec {
    F32,
    F16,
    Q8 { group: u32 },
    Q4 { group: u32, levels: Levels, search: Search },
}

impl QuantSpec {
    /// `int4-g64-cubic`: 4.25 bits a weight.
    pub const INT4: QuantSpec =
        QuantSpec::Q4 { group: 64, levels: Levels::Cubic, search: Search::Mse };
    /// `int8-g64`: 8.25 bits a weight.
    pub const INT8: QuantSpec = QuantSpec::Q8 { group: 64 };

    /// Channels per scale; `None` for the unscaled formats.
    pub fn group(&self) -> Option<u32> {
        match self {
            QuantSpec::F32 | QuantSpec::F16 => None,
            QuantSpec::Q8 { group } | QuantSpec::Q4 { group, .. } => Some(*group),
        }
    }
}

impl fmt::Display for QuantSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuantSpec::F32 => write!(f, "fp32"),
            QuantSpec::F16 => write!(f, "fp16"),
            QuantSpec::Q8 { group } => write!(f, "int8-g{group}"),
            QuantSpec::Q4 { group, levels, search } => {
                let levels = if *levels == Levels::Cubic { "cubic" } else { "uniform" };
                match search {
                    Search::Mse => write!(f, "int4-g{group}-{levels}"),
                    Search::Absmax => write!(f, "int4-g{group}-{levels}-absmax"),
                    Search::Hqq => write!(f, "int4-g{group}-hqq"),
                }
            }
        }
    }
}

impl FromStr for QuantSpec {
    type Err = Error;

    /// Reads the written form; `f16`, `int4` (the default int4) and parts left out are accepted.
    fn from_str(text: &str) -> Result<QuantSpec> {
        let refuse = |why: &str| {
            Error::Usage(format!(
                "`{text}` is no weight format: {why}; write fp32, fp16, int8-g64, int4-g64-cubic, \
                 int4-g32-uniform or int4-g64-cubic-absmax (groups of 32, 64 or 128)"
            ))
        };
        let mut parts = text.split('-');
        let bits = parts.next().unwrap_or_default();
        let (mut group, mut levels, mut search) = (None, None, None);
        for part in parts {
            let twice = match part {
                "uniform" => levels.replace(Levels::Uniform).is_some(),
                "cubic" => levels.replace(Levels::Cubic).is_some(),
                "absmax" => search.replace(Search::Absmax).is_some(),
                "mse" => search.replace(Search::Mse).is_some(),
                "hqq" => search.replace(Search::Hqq).is_some(),
                "g32" => group.replace(32).is_some(),
                "g64" => group.replace(64).is_some(),
                "g128" => group.replace(128).is_some(),
                _ => return Err(refuse(&format!("`{part}` is unknown"))),
            };
            if twice {
                return Err(refuse(&format!("`{part}` contradicts another part")));
            }
        }
        let plain = group.is_none() && levels.is_none() && search.is_none();
        match bits {
            "fp32" | "f32" if plain => Ok(QuantSpec::F32),
            "fp16" | "f16" if plain => Ok(QuantSpec::F16),
            "fp32" | "f32" | "fp16" | "f16" => Err(refuse("a float format takes no options")),
            "int8" | "q8" if levels.is_none() && search.is_none() => {
                Ok(QuantSpec::Q8 { group: group.unwrap_or(64) })
            }
            "int8" | "q8" => Err(refuse("int8 takes only a group")),
            "int4" | "q4" if search == Some(Search::Hqq) && levels == Some(Levels::Cubic) => {
                Err(refuse("hqq has even levels"))
            }
            "int4" | "q4" if search == Some(Search::Hqq) => Ok(QuantSpec::Q4 {
                group: group.unwrap_or(64),
                levels: Levels::Uniform,
                search: Search::Hqq,
            }),
            "int4" | "q4" => Ok(QuantSpec::Q4 {
                group: group.unwrap_or(64),
                levels: levels.unwrap_or(Levels::Cubic),
                search: search.unwrap_or(Search::Mse),
            }),
            _ => Err(refuse(&format!("`{bits}` is unknown"))),
        }
    }
}

impl Serialize for QuantSpec {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QuantSpec {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<QuantSpec, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_form_reads_back() {
        let mut specs = vec![QuantSpec::F32, QuantSpec::F16];
        for group in [32, 64, 128] {
            specs.push(QuantSpec::Q8 { group });
            for levels in [Levels::Uniform, Levels::Cubic] {
                for search in [Search::Absmax, Search::Mse] {
                    specs.push(QuantSpec::Q4 { group, levels, search });
                }
            }
            specs.push(QuantSpec::Q4 { group, levels: Levels::Uniform, search: Search::Hqq });
        }
        for spec in specs {
            assert_eq!(spec.to_string().parse::<QuantSpec>().unwrap(), spec);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<QuantSpec>(&json).unwrap(), spec);
        }
        assert_eq!(QuantSpec::INT4.to_string(), "int4-g64-cubic");
        assert_eq!("int4".parse::<QuantSpec>().unwrap(), QuantSpec::INT4);
        assert_eq!("int8".parse::<QuantSpec>().unwrap(), QuantSpec::INT8);
    }

    #[test]
    fn refuses_what_it_cannot_serve() {
        for bad in [
            "",
            "int5",
            "int4-g48",
            "int4-cubic-hqq",
            "int4-cubic-uniform",
            "int8-cubic",
            "fp16-g64",
            "int4-g64-g32",
        ] {
            let e = bad.parse::<QuantSpec>().unwrap_err();
            assert!(e.to_string().contains("int4-g64-cubic"), "{bad}: {e}");
            assert_eq!(e.exit_code(), 2);
        }
    }
}

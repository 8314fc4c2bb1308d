//! The container: gguf-py's own file is understood, a damaged one is refused and nothing worse.

use inknib::weights::{GgmlType, Gguf, WeightStore};

use crate::writer::{File, Meta, Stored};
use crate::{golden, shared};

#[test]
fn reads_what_gguf_py_writes() {
    let gguf = Gguf::open(golden("blocks.gguf")).unwrap();
    assert_eq!(gguf.version(), 3);
    for (key, value) in [
        ("kinds.u8", 200.0),
        ("kinds.i8", -100.0),
        ("kinds.u16", 60_000.0),
        ("kinds.i16", -30_000.0),
        ("kinds.u32", 4e9),
        ("kinds.i32", -2e9),
        // An f32 of 1e-5 is read as 1e-5, not as the f64 next to that f32.
        ("kinds.f32", 1e-5),
        ("kinds.u64", 2f64.powi(63)),
        ("kinds.i64", -(2f64.powi(62))),
        ("kinds.f64", 0.1),
    ] {
        assert_eq!(gguf.number(key).unwrap(), Some(value), "{key}");
    }
    assert_eq!(gguf.flag("kinds.bool").unwrap(), Some(true));
    assert_eq!(gguf.text("kinds.text").unwrap(), Some("nib ✒"));
    assert_eq!(gguf.numbers("kinds.numbers").unwrap(), Some(vec![1.0, -2.0, 3.0]));
    assert_eq!(gguf.texts("kinds.texts").unwrap(), Some(vec!["a", "", "ü"]));
    assert_eq!(gguf.flags("kinds.flags").unwrap(), Some(vec![true, false]));
    assert_eq!(gguf.count("kinds.u8").unwrap(), Some(200));
    assert_eq!(gguf.count("gone").unwrap(), None);
    let tensor = &gguf.tensors()["Q4_K.weight"];
    assert_eq!((tensor.ty, tensor.shape.as_slice()), (GgmlType::Q4K, &[3, 256][..]));
    // Wrong kinds are errors that name the key.
    for error in [
        gguf.text("kinds.u8").err(),
        gguf.count("kinds.i8").err(),
        gguf.count("kinds.f64").err(),
        gguf.count("kinds.numbers").err(),
        gguf.number("kinds.texts").err(),
        gguf.number("kinds.numbers").err(),
        gguf.texts("kinds.numbers").err(),
        gguf.flag("kinds.u8").err(),
    ] {
        let error = error.unwrap();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("metadata `kinds."), "{error}");
    }
}

/// A small file with a value of each kind and two tensors.
fn small() -> File {
    let mut file = File::default();
    file.text("general.architecture", "llama");
    file.put("a.u32", Meta::U32(7));
    file.put("a.i32", Meta::I32(-7));
    file.put("a.f32", Meta::F32(0.5));
    file.put("a.bool", Meta::Bool(true));
    file.put("a.texts", Meta::Texts(vec!["x".into(), "yz".into()]));
    file.put("a.f32s", Meta::F32s(vec![1.0, 2.0]));
    file.put("a.i32s", Meta::I32s(vec![1, 2, 3]));
    file.f32("one", &[2, 3], &[0.0; 6]);
    file.tensors.push(Stored { name: "two".into(), shape: vec![1, 32], ty: 2, bytes: vec![1; 18] });
    file
}

fn refused(file: &File) -> String {
    refused_bytes(file.bytes())
}

fn refused_bytes(bytes: Vec<u8>) -> String {
    let error = Gguf::from_bytes("x.gguf", bytes).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.starts_with("x.gguf: not a usable GGUF file: "), "{text}");
    text
}

#[test]
fn says_what_is_wrong() {
    let good = small().bytes();
    assert!(Gguf::from_bytes("x", good.clone()).is_ok());
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        refused_bytes(bad)
    };
    assert!(with(0, b"PK").contains("letters GGUF"));
    assert!(with(4, &[1, 0, 0, 0]).contains("version 1"));
    assert!(with(4, &[0, 0, 0, 3]).contains("big-endian"));
    assert!(with(4, &[9, 0, 0, 0]).contains("version 9"));
    assert!(with(8, &[255; 8]).contains("number of tensors"));
    assert!(with(16, &[255; 8]).contains("number of metadata"));
    let mut twice = small();
    twice.meta.push(("a.u32".into(), Meta::U32(1)));
    assert!(refused(&twice).contains("`a.u32` is there twice"));
    let mut twice = small();
    twice.f32("one", &[1], &[0.0]);
    assert!(refused(&twice).contains("`one` is there twice"));
    let mut ragged = small();
    ragged.tensors[1].shape = vec![2, 16];
    assert!(refused(&ragged).contains("no whole blocks of Q4_0"));
    let mut gone = small();
    gone.tensors[1].ty = 4;
    assert!(refused(&gone).contains("type number 4"));
    let mut empty = small();
    empty.tensors[0].shape = vec![0, 3];
    assert!(refused(&empty).contains("impossible"));
    let mut huge = small();
    huge.tensors[0].shape = vec![1 << 39, 1 << 39, 3];
    assert!(refused(&huge).contains("impossible"));
    let mut far = small();
    far.tensors[1].shape = vec![64, 32];
    assert!(refused(&far).contains("download is incomplete"));
    let mut overlap = small();
    overlap.tensors[0].shape = vec![4, 3];
    assert!(refused(&overlap).contains("overlap"), "{}", refused(&overlap));
    for (value, ok) in [(64, true), (0, false), (48, false), (1 << 30, false)] {
        let mut file = small();
        file.tensors.clear();
        file.put("general.alignment", Meta::U32(value));
        assert_eq!(Gguf::from_bytes("x", file.bytes()).is_ok(), ok, "{value}");
    }
}

#[test]
fn arrays_do_not_nest_for_ever() {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.push(b'k');
    for _ in 0..100_000 {
        bytes.extend(9u32.to_le_bytes());
        if bytes.len() > 40 {
            bytes.extend(1u64.to_le_bytes());
        }
    }
    assert!(refused_bytes(bytes).contains("arrays within arrays"));
}

/// Reads everything that a file offers; only panics matter here.
fn exercise(bytes: Vec<u8>) -> bool {
    let Ok(gguf) = Gguf::from_bytes("damaged", bytes) else { return false };
    for key in gguf.keys() {
        let _ = (gguf.text(key), gguf.count(key), gguf.number(key), gguf.numbers(key));
        let _ = (gguf.texts(key), gguf.flag(key), gguf.flags(key));
    }
    for tensor in gguf.tensors().values() {
        assert_eq!(gguf.data(tensor).len(), tensor.bytes());
    }
    if let Ok(store) = WeightStore::from_gguf(gguf) {
        let names: Vec<String> = store.names().map(String::from).collect();
        names.iter().for_each(|name| drop(store.values(name)));
    }
    true
}

#[test]
fn no_damage_panics() {
    let good = small().bytes();
    assert!(exercise(good.clone()));
    for length in 0..good.len() {
        assert!(!exercise(good[..length].to_vec()), "a file cut to {length} bytes was accepted");
    }
    for at in 0..good.len() {
        for value in [0x00, 0x01, 0x08, 0x09, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at] ^ 0x80] {
            let mut bad = good.clone();
            bad[at] = value;
            exercise(bad);
        }
    }
}

#[test]
fn no_damage_to_a_real_header_panics() {
    let Some(file) = shared("data/llm/stories260K/stories260K-Q4_0.gguf") else { return };
    let good = std::fs::read(file).unwrap();
    assert!(exercise(good.clone()));
    // The header ends before the first tensor; every 7th byte keeps the test short.
    let header = good.len() - good.windows(11).rev().position(|w| w == b"attn_output").unwrap();
    let header = header.min(good.len());
    for length in (0..header).step_by(7) {
        assert!(!exercise(good[..length].to_vec()), "a file cut to {length} bytes was accepted");
    }
    for at in (0..header).step_by(13) {
        for value in [0x00, 0xff, good[at] ^ 1] {
            let mut bad = good.clone();
            bad[at] = value;
            exercise(bad);
        }
    }
}

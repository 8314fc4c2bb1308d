//! `inknib test` from outside: what it prints and writes, what it calls a failure, and what it refuses; and that a wrong
//! result does not pass.
#![allow(clippy::unwrap_used)] // a call that fails is a failed test

#[path = "common/device.rs"]
mod device;

use assert_cmd::Command;
use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions};
use inknib::probe::optest::{Case, Level, problems};
use serde_json::Value;

fn inknib(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Exit code 3: no adapter on this machine.
fn skipped(code: i32) -> bool {
    if code == 3 {
        println!("skipped: no adapter");
    }
    code == 3
}

#[test]
fn results_come_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (json, md, xml) = (file("t.json"), file("t.md"), file("t.xml"));
    let (code, answer, err) = inknib(&[
        "test",
        "--quick",
        "--op",
        "softmax,concat",
        "--json",
        "-o",
        &json,
        "-o",
        &md,
        "-o",
        &xml,
    ]);
    if skipped(code) {
        return;
    }
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(code, 0, "{err}");
    let cases: Vec<Case> = serde_json::from_value(answer["cases"].clone()).unwrap();
    assert!(
        cases.len() > 10 && cases.iter().all(|c| ["softmax", "concat"].contains(&c.op.as_str()))
    );
    assert_eq!(
        answer["passed"].as_u64().unwrap() + answer["known"].as_u64().unwrap(),
        cases.len() as u64
    );
    for field in ["adapter", "driver", "failed", "skipped", "unexpected", "missing_tiers"] {
        assert!(!answer[field].is_null(), "{field}");
    }
    assert!(
        cases.iter().any(|c| c.kernels == "reference") && cases.iter().any(|c| c.kernels == "fast")
    );
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let written: Value = serde_json::from_str(&read(&json)).unwrap();
    assert_eq!(written, answer);
    let md = read(&md);
    assert!(md.contains("| softmax |") && md.contains("op test"), "{md}");
    let xml = read(&xml);
    assert_eq!(xml.matches("<testcase ").count(), cases.len());
    assert_eq!(xml.matches("<testsuite ").count(), xml.matches("</testsuite>").count());
    // The same cases as a table for people.
    let (code, table, _) = inknib(&["test", "--quick", "--op", "softmax,concat"]);
    assert!(code == 0 && table.contains("softmax") && table.contains(" passed"), "{table}");
}

/// What passes and is listed as known to fail fails the run: the list has to be mended.
#[test]
fn a_case_that_passes_unexpectedly_fails_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("known.toml");
    let entry = "[[known]]\nadapter = \"*\"\ncase = \"concat copy 7x1+1, reference f32 *\"\nreason = \"r\"\nlink = \"l\"\n";
    std::fs::write(&list, entry).unwrap();
    let list = list.to_str().unwrap();
    let args = ["test", "--quick", "--op", "concat", "--known", list, "--json"];
    let (code, answer, err) = inknib(&args);
    if skipped(code) {
        return;
    }
    assert!(code == 7 && err.contains("passed that are listed as known to fail"), "{code} {err}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((answer["unexpected"].as_u64(), answer["failed"].as_u64()), (Some(1), Some(0)));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("known.toml");
    std::fs::write(&list, "[[known]]\nadapter = \"x\"\n").unwrap();
    for (args, word) in [
        (&["--op", "matmull"][..], "no op \"matmull\"; there are matmul, conv2d"),
        (&["--shape", "sd3"], "one of small, ragged, edges, sd15"),
        (&["--tier", "fp8"], "one of none, subgroups, f16, all"),
        (&["-o", "result.txt"], ".json or .md or .xml"),
        (&["--quick", "--full"], "cannot be used with"),
        (&["--quick", "--op", "gram", "--shape", "llama"], "no case fits"),
        (&["--known", list.to_str().unwrap()], "known.toml: "),
        (&["--known", "nowhere.toml"], "nowhere.toml"),
    ] {
        let all: Vec<&str> = ["test"].iter().chain(args).copied().collect();
        let (code, _, err) = inknib(&all);
        assert!(code != 0 && err.contains(word), "{args:?}: {err}");
    }
}

/// The list is long enough for what is promised, and no case is in it twice.
#[test]
fn the_list_is_long_and_without_doubles() {
    let all = problems();
    let count = |level: Level| all.iter().filter(|p| p.level <= level).count();
    let counts = [Level::Smoke, Level::Quick, Level::Usual, Level::Full].map(count);
    println!("{counts:?} problems");
    assert!(counts.is_sorted() && counts[0] >= 40 && counts[3] >= 700, "{counts:?}");
    let mut names: Vec<String> =
        all.iter().map(|p| format!("{} {} {} {:?}", p.op, p.spec, p.shape, p.set)).collect();
    names.sort();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before);
}

#[test]
fn a_write_beside_the_planned_memory_shows() {
    let Some(gpu) = device::gpu() else { return };
    let graph = Graph::new(Elem::F32);
    let x = graph.literal([3], vec![1.0, 2.0, 3.0]);
    graph.output("y", x + x);
    let plan = |guards| {
        let options = PlanOptions { guards, poison: true, ..Default::default() };
        Plan::new(gpu, &graph, &options).unwrap()
    };
    let (plain, guarded) = (plan(false), plan(true));
    for plan in [&plain, &guarded] {
        plan.run().unwrap();
        assert_eq!(plan.read("y").unwrap(), [2.0, 4.0, 6.0]);
        assert!(plan.guards_intact().unwrap());
    }
    let memory = guarded.buffer("y").unwrap();
    gpu.write(memory, memory.bytes() - 4, &[0; 4]).unwrap();
    assert!(!guarded.guards_intact().unwrap());
    let fresh = plan(true);
    gpu.write(fresh.buffer("y").unwrap(), 0, &[0; 4]).unwrap();
    assert!(!fresh.guards_intact().unwrap());
}

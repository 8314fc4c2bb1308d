//! The results of an op test as a table of Markdown for an issue, and as JUnit for a CI server.

use std::fmt::Write as _;

use super::super::markdown::table;
use super::{Case, OpTest, Status};

/// The cases of each op, in the order in which they ran.
pub fn families(cases: &[Case]) -> Vec<(&str, Vec<&Case>)> {
    let mut families: Vec<(&str, Vec<&Case>)> = Vec::new();
    for case in cases {
        match families.iter_mut().find(|(op, _)| *op == case.op) {
            Some((_, of)) => of.push(case),
            None => families.push((&case.op, vec![case])),
        }
    }
    families
}

/// The case of a family that stands for it: the one nearest to its tolerance, failures first.
pub fn worst<'a>(cases: &[&'a Case]) -> Option<&'a Case> {
    let bad = |case: &Case| matches!(case.status, Status::Failed | Status::Known);
    let share = |case: &Case| match case.tolerance {
        0.0 => case.nmse,
        tolerance => case.nmse / tolerance,
    };
    cases.iter().copied().max_by(|a, b| {
        // NaN is the worst: total_cmp puts it last.
        bad(a).cmp(&bad(b)).then(share(a).total_cmp(&share(b)))
    })
}

/// To paste into an issue: the adapter, a table of the op families, and every failure.
pub fn markdown(test: &OpTest) -> String {
    let (adapter, caps) = (&test.adapter, &test.adapter.caps);
    let mut text = format!(
        "### inknib {} op test: {}\n\n{}, driver {}, {}; f16 {}, subgroups {}\n\n",
        env!("CARGO_PKG_VERSION"),
        adapter.name,
        adapter.backend,
        adapter.driver,
        adapter.device_type,
        if caps.f16 { "yes" } else { "no" },
        if caps.subgroups { "yes" } else { "no" },
    );
    let rows = families(&test.cases).into_iter().filter_map(|(op, cases)| {
        let failed = cases.iter().filter(|case| case.status == Status::Failed).count();
        let Case { spec, shape, kernels, activations, nmse, tolerance, .. } = worst(&cases)?;
        Some(vec![
            op.to_string(),
            cases.len().to_string(),
            failed.to_string(),
            format!("{spec} {shape}, {kernels} {activations}"),
            format!("{nmse:.1e}"),
            format!("{tolerance:.0e}"),
            if failed == 0 { "✓" } else { "✗" }.to_string(),
        ])
    });
    let headings = ["op", "cases", "failed", "worst case", "NMSE", "allowed", ""];
    text += &table(&headings, &rows.collect::<Vec<_>>());
    let _ = writeln!(
        text,
        "\n{} cases: {} passed, {} failed, {} known to fail, {} passed though known to fail, {} skipped; {:.1} s; compiling {} kernels took {:.1} s, on several threads",
        test.cases.len(),
        test.count(Status::Passed),
        test.count(Status::Failed),
        test.count(Status::Known),
        test.count(Status::Unexpected),
        test.count(Status::Skipped),
        test.seconds,
        test.kernels_compiled,
        test.compile_seconds,
    );
    for case in &test.cases {
        if matches!(case.status, Status::Failed | Status::Unexpected | Status::Known) {
            let _ =
                writeln!(text, "\n- {} {}: {}", case.status.mark(), case.name(), case.trouble());
        }
    }
    text
}

/// For CI servers: a test suite for each op family of each adapter.
pub fn junit(tests: &[OpTest]) -> String {
    let sum = |status| tests.iter().map(|test| test.count(status)).sum::<usize>();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"inknib test\" tests=\"{}\" failures=\"{}\" \
         skipped=\"{}\" time=\"{:.3}\">\n",
        tests.iter().map(|test| test.cases.len()).sum::<usize>(),
        sum(Status::Failed) + sum(Status::Unexpected),
        sum(Status::Skipped) + sum(Status::Known),
        tests.iter().map(|test| test.seconds).sum::<f64>()
    );
    for test in tests {
        for (op, cases) in families(&test.cases) {
            suite(&mut text, &test.adapter.name, op, &cases);
        }
    }
    text + "</testsuites>\n"
}

fn suite(text: &mut String, adapter: &str, op: &str, cases: &[&Case]) {
    let count = |status| cases.iter().filter(|case| case.status == status).count();
    let _ = writeln!(
        text,
        "  <testsuite name=\"{}: {op}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">",
        escaped(adapter),
        cases.len(),
        count(Status::Failed) + count(Status::Unexpected),
        count(Status::Skipped) + count(Status::Known),
    );
    for case in cases {
        let name = escaped(&case.name());
        let why = escaped(&case.trouble());
        let inside = match case.status {
            Status::Passed => String::new(),
            Status::Failed => format!("<failure message=\"{why}\"/>"),
            Status::Unexpected => {
                "<failure message=\"passed, but is listed as known to fail\"/>".into()
            }
            Status::Known => format!("<skipped message=\"known to fail: {why}\"/>"),
            Status::Skipped => format!("<skipped message=\"{why}\"/>"),
        };
        let _ = writeln!(
            text,
            "    <testcase classname=\"{op}\" name=\"{name}\" time=\"{:.3}\">{inside}</testcase>",
            case.seconds
        );
    }
    *text += "  </testsuite>\n";
}

/// For an attribute of XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // A line break in an attribute is a space to a reader of XML unless it is written like this.
            '\n' => out += "&#10;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

//! The two pieces of Python that chat templates see through: `json.dumps` and `datetime.strftime`.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// The `tojson` filter of transformers: `json.dumps` with `ensure_ascii=False` unless asked, no HTML
/// escapes, `indent`, `separators` and `sort_keys`.
pub(super) fn tojson(value: &Value, args: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = match args.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(usize::try_from(v)?),
    };
    let separators = match args.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part = |i| pair.get_item_by_index(i).map(|v| v.to_string());
            (part(0)?, part(1)?)
        }
        _ => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    args.assert_all_used()?;
    let mut dump = Dump { out: String::new(), indent, separators, ascii, sort };
    dump.value(value, 0)?;
    Ok(dump.out)
}

struct Dump {
    out: String,
    indent: Option<usize>,
    separators: (String, String),
    ascii: bool,
    sort: bool,
}

/// Deeper nesting than any tool schema has, and shallow enough for every stack.
const DEEPEST: usize = 100;

impl Dump {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::new(ErrorKind::InvalidOperation, what));
        if depth > DEEPEST {
            return refuse(format!("tojson: more than {DEEPEST} levels"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', items.len(), depth, |dump, i| {
                    dump.value(&items[i], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort_by_key(|key| key.to_string());
                }
                self.list('{', '}', keys.len(), depth, |dump, i| {
                    dump.string(&keys[i].to_string());
                    let colon = dump.separators.1.clone();
                    dump.out.push_str(&colon);
                    dump.value(&value.get_item(&keys[i])?, depth + 1)
                })?;
            }
            other => return refuse(format!("tojson: a value of type {other} has no JSON form")),
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        count: usize,
        depth: usize,
        mut item: impl FnMut(&mut Dump, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for i in 0..count {
            if i > 0 {
                let comma = self.separators.0.clone();
                self.out.push_str(&comma);
            }
            self.new_line(depth + 1);
            item(self, i)?;
        }
        if count > 0 {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', (indent * depth).min(1000)));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7f}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits, `.0` on whole numbers, an exponent from 1e16 and
/// below 1e-4.
fn float(x: f64) -> String {
    let size = x.abs();
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_string();
    }
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let Some((digits, exponent)) = text.split_once('e') else { return text };
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{x:?}")
}

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `strftime` in the C locale for a moment given in seconds since 1970-01-01. Unknown directives stay
/// as they are, as in glibc.
pub(super) fn strftime(format: &str, seconds: i64) -> String {
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let weekday = (days + 4).rem_euclid(7) as usize; // 1970-01-01 was a Thursday
    let month_name = MONTHS[(month - 1) as usize];
    let twelve = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let two = |n: i64| if unpadded { n.to_string() } else { format!("{n:02}") };
        let piece = match directive {
            Some('d') => two(day),
            Some('m') => two(month),
            Some('y') => two(year.rem_euclid(100)),
            Some('H') => two(hour),
            Some('I') => two(twelve),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('e') if unpadded => day.to_string(),
            Some('e') => format!("{day:2}"),
            Some('Y') => format!("{year:04}"),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => month_name[..3].to_string(),
            Some('A') => DAYS[weekday].to_string(),
            Some('a') => DAYS[weekday][..3].to_string(),
            Some('w') => weekday.to_string(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('j') => {
                let n = days - days_of(year) + 1;
                if unpadded { n.to_string() } else { format!("{n:03}") }
            }
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('%') => "%".to_string(),
            Some(other) => format!("%{}{other}", if unpadded { "-" } else { "" }),
            None => "%".to_string(),
        };
        out.push_str(&piece);
    }
    out
}

/// Year, month and day of a count of days since 1970-01-01 (H. Hinnant, "chrono-compatible low-level
/// date algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to the first of January of a year.
fn days_of(year: i64) -> i64 {
    let y = year - 1;
    y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strftime_agrees_with_python() {
        // datetime(2024, 7, 4, 15, 6, 9).strftime(..), seconds 1720105569 in UTC.
        let at = |format: &str| strftime(format, 1_720_105_569);
        assert_eq!(at("%d %b %Y"), "04 Jul 2024");
        assert_eq!(at("%A, %B %-d, %Y"), "Thursday, July 4, 2024");
        assert_eq!(at("%Y-%m-%d %H:%M:%S %j %p %I"), "2024-07-04 15:06:09 186 PM 03");
        assert_eq!(at("%F %T 100%% %e %Q"), "2024-07-04 15:06:09 100%  4 %Q");
        assert_eq!(strftime("%F %j %a", 951_782_400), "2000-02-29 060 Tue");
        assert_eq!(strftime("%F %R", -1), "1969-12-31 23:59");
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (123456.789, "123456.789"),
            (-0.0, "-0.0"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(float(x), text);
        }
    }
}

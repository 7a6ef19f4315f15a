// SPDX-License-Identifier: Apache-2.0
//! Chat templates: Jinja as Hugging Face models use it, with a budget of work and of output, since a
//! template comes with a model and is not trusted.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{context, Environment, Error, ErrorKind};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Work units of the interpreter for one rendering; a long conversation takes some ten thousand.
const FUEL: u64 = 2_000_000;
const NAME: &str = "chat_template";

pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    pub fn new(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_string())
            .map_err(|e| format!("the chat template does not parse: {}", describe(&e)))?;
        Ok(ChatTemplate { environment })
    }

    pub fn render(
        &self,
        variables: &str,
        max_output: usize,
        unix_seconds: i64,
    ) -> Result<Vec<u8>, String> {
        let variables: serde_json::Value =
            serde_json::from_str(variables).map_err(|e| format!("template variables: {e}"))?;
        let template = self.environment.get_template(NAME).map_err(|e| describe(&e))?;
        let now = Value::from_function(move |format: String| strftime(&format, unix_seconds));
        let mut output = Limited { bytes: Vec::new(), left: max_output, full: false };
        let given = Value::from_serialize(&variables);
        let all = context! { strftime_now => now, ..given };
        let outcome = template.render_captured_to(all, &mut output).map(|_| ());
        if output.full {
            return Err(format!("the chat template renders more than {max_output} bytes"));
        }
        outcome.map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => "the chat template does not come to an end".to_string(),
            _ => describe(&e),
        })?;
        Ok(output.bytes)
    }
}

fn describe(error: &Error) -> String {
    let detail = error.detail().unwrap_or("");
    let line = error.line().map(|n| format!(" (line {n} of the template)")).unwrap_or_default();
    if error.kind() == ErrorKind::InvalidOperation && detail.starts_with(RAISED) {
        return detail[RAISED.len()..].to_string();
    }
    if detail.is_empty() {
        format!("{}{line}", error.kind())
    } else {
        format!("{}: {detail}{line}", error.kind())
    }
}

const RAISED: &str = "raised: ";

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// A writer that refuses to grow past its limit.
struct Limited {
    bytes: Vec<u8>,
    left: usize,
    full: bool,
}

impl Write for Limited {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.left {
            self.full = true;
            return Err(io::Error::new(io::ErrorKind::Other, "output limit"));
        }
        self.left -= data.len();
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Python's json.dumps(value, ensure_ascii=False): ", " and ": " between the parts.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    let _: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = vec![b' '; width.min(16)];
            let formatter = PrettyFormatter::with_indent(&spaces);
            let mut serializer = Serializer::with_formatter(&mut bytes, formatter);
            serde::Serialize::serialize(value, &mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer = Serializer::with_formatter(&mut bytes, PythonFormatter);
            serde::Serialize::serialize(value, &mut serializer).map_err(failed)?;
        }
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(text))
}

const MONTHS: [&str; 12] = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The directives of strftime that chat templates use, in UTC.
fn strftime(format: &str, unix_seconds: i64) -> Result<String, Error> {
    let (days, seconds) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[days.rem_euclid(7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &format!("{year:04}"),
            Some('y') => out += &format!("{:02}", year.rem_euclid(100)),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", seconds / 3600),
            Some('M') => out += &format!("{:02}", seconds / 60 % 60),
            Some('S') => out += &format!("{:02}", seconds % 60),
            Some('%') => out.push('%'),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now does not know %{directive}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

/// Days since 1970-01-01 to year, month, day (Gregorian; eras of 400 years starting in March).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

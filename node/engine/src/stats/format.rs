//! How rows and fields are printed: CSV, typed lines, JSON.

use std::fmt::Write as _;

use super::{COLUMNS, Kind, Row, Value, quoted};

/// Appends the rows as CSV, header line first.
pub fn csv(rows: &[Row], out: &mut String) {
    out.push_str("# ");
    for column in COLUMNS {
        out.push_str(column.name);
        out.push(',');
    }
    // Everything after this column may come and go.
    out.push_str("-,\n");
    for row in rows {
        for value in row.values() {
            match value {
                Value::Str(text) => quoted(text, out),
                other => {
                    let _ = write!(out, "{other}");
                }
            }
            out.push(',');
        }
        out.push_str("-,\n");
    }
}

/// Appends one line per value: object, field, tags, type, value.
pub fn typed(rows: &[Row], describe: bool, out: &mut String) {
    for row in rows {
        let letter = match row.kind {
            Kind::Frontend => 'F',
            Kind::Backend => 'B',
            Kind::Server => 'S',
        };
        for (index, (column, value)) in COLUMNS.iter().zip(row.values()).enumerate() {
            if value.is_empty() {
                continue;
            }
            let _ = write!(
                out,
                "{letter}.{}.{}.{index}.{}.1:{}V:{}:",
                row.iid,
                row.sid,
                column.name,
                column.tags,
                type_name(value),
            );
            line_value(value, out);
            description(describe.then_some(column.text), out);
        }
    }
}

/// Ends a line, with a description if there is one.
pub fn description(text: Option<&str>, out: &mut String) {
    if let Some(text) = text {
        let _ = write!(out, ":\"{text}\"");
    }
    out.push('\n');
}

/// Appends the rows as JSON: an array of arrays of fields.
pub fn json(rows: &[Row], out: &mut String) {
    out.push('[');
    for (r, row) in rows.iter().enumerate() {
        out.push_str(if r > 0 { ",[" } else { "[" });
        let kind = match row.kind {
            Kind::Frontend => "Frontend",
            Kind::Backend => "Backend",
            Kind::Server => "Server",
        };
        let mut first = true;
        for (pos, (column, value)) in COLUMNS.iter().zip(row.values()).enumerate() {
            if value.is_empty() {
                continue;
            }
            if !std::mem::take(&mut first) {
                out.push(',');
            }
            let _ = write!(out, "{{\"objType\":\"{kind}\",\"proxyId\":{},\"id\":{},", row.iid, row.sid);
            json_field(pos, column.name, column.tags, value, out);
        }
        out.push(']');
    }
    out.push_str("]\n");
}

/// Appends `"field":…,"processNum":…,"tags":…,"value":…}`.
pub(super) fn json_field(pos: usize, name: &str, tags: &str, value: &Value, out: &mut String) {
    let mut letters = tags.chars();
    let origin = match letters.next() {
        Some('M') => "Metric",
        Some('S') => "Status",
        Some('K') => "Key",
        Some('C') => "Config",
        _ => "Product",
    };
    let nature = match letters.next() {
        Some('A') => "Age",
        Some('a') => "Avg",
        Some('C') => "Counter",
        Some('D') => "Duration",
        Some('G') => "Gauge",
        Some('L') => "Limit",
        Some('M') => "Max",
        Some('m') => "Min",
        Some('N') => "Name",
        Some('R') => "Rate",
        Some('T') => "Time",
        _ => "Output",
    };
    let scope = match letters.next() {
        Some('C') => "Cluster",
        Some('P') => "Process",
        Some('s') => "System",
        _ => "Service",
    };
    let _ = write!(
        out,
        "\"field\":{{\"pos\":{pos},\"name\":\"{name}\"}},\"processNum\":1,\
         \"tags\":{{\"origin\":\"{origin}\",\"nature\":\"{nature}\",\"scope\":\"{scope}\"}},\
         \"value\":{{\"type\":\"{}\",\"value\":",
        type_name(value)
    );
    match value {
        Value::Str(text) => json_string(text, out),
        other => {
            let _ = write!(out, "{other}");
        }
    }
    out.push_str("}}");
}

/// Appends a JSON string.
pub(super) fn json_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A value on a line of its own: a line end inside would start a line that is none.
pub(super) fn line_value(value: &Value, out: &mut String) {
    match value {
        Value::Str(text) => out.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c })),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Empty | Value::Str(_) => "str",
        Value::U32(_) => "u32",
        Value::U64(_) => "u64",
        Value::S32(_) => "s32",
    }
}
